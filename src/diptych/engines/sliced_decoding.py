"""Decoding one image at a time, which is as exact, where the device has no room for all of them at once."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.errors import warn
from diptych.core.memory_use import free_device_memory, gib
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig


class SlicedDecoder:
    """Stands in the place of a decoder's `forward`."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.decoder, self.config = autoencoder.decoder, autoencoder.config
        self.told = False

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, h * f, w * f)."""
        whole = type(self.decoder).forward
        if len(latents) == 1 or torch.is_grad_enabled() or (free := free_device_memory(latents.device)) is None:
            return whole(self.decoder, latents)
        need = len(latents) * decoding_bytes(self.config, latents.dtype, latents.shape[-2], latents.shape[-1])
        if need <= free:
            return whole(self.decoder, latents)
        if not self.told:
            have = f"{latents.device} has {gib(free)} left"
            warn(f"images are decoded one at a time: {len(latents)} at once take {gib(need)}, and {have}")
            self.told = True
        return torch.cat([whole(self.decoder, one) for one in latents.split(1)])


@functools.lru_cache
def decoding_bytes(config: AutoencoderConfig, dtype: torch.dtype, height: int, width: int) -> int:
    """What decoding a latent of this height and width takes beside the weights, counted."""
    from diptych.engines.accounting import peak_of

    with torch.device("meta"):
        decoder: nn.Module = Autoencoder(config).decoder.to(dtype)
        latent = torch.empty(1, config.latent_channels, height, width, dtype=dtype)
    return peak_of(lambda: decoder(latent), decoder)


def decode_in_slices(model: Any) -> None:
    """Have a model's autoencoder decode so."""
    autoencoder = getattr(model, "autoencoder", None)
    if isinstance(autoencoder, Autoencoder):
        vars(autoencoder.decoder)["forward"] = SlicedDecoder(autoencoder)
