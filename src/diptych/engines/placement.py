"""Bringing an opened model to a device, in as little memory there as is asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from diptych.core.errors import UserError, warn
from diptych.core.memory_use import free_device_memory, gib
from diptych.encoders.configs import T5Config
from diptych.encoders.t5 import compute_dtype
from diptych.engines.attention_chunks import attend_in_chunks
from diptych.engines.memory_options import check_options, offload_on
from diptych.engines.offload import (
    LayersOffload,
    Offload,
    PartsOffload,
    entry_modules,
    networks,
    text_network,
    weight_bytes,
)
from diptych.engines.sliced_decoding import decode_in_slices
from diptych.engines.weight_precision import quantise, quantise_networks

PLENTY = 4 * 2**30
"""Bytes beside the weights above which nobody counts what one image takes."""


def place(
    model: Any, device: torch.device, offload: str = "none", weights: str = "stored", sparing: bool = True
) -> Any:
    """A model that was opened on the host, on a device: its weights rounded first where `weights` says so, and
    where `offload` says so there only while they are needed.

    Stages and text encoders that are opened later are placed likewise. `sparing`: whether it decodes image by image and
    attends in chunks where memory is short, which compiled networks cannot. Raises a `UserError` for a way that there
    is not, and where the device has not the memory for the weights alone.
    """
    check_options(offload, weights)
    offload = offload_on(device, offload)
    if weights == "float8" and device.type == "mps":
        raise UserError("mps has no float8: take weight_precision=int8")
    ways = {"parts": PartsOffload, "layers": LayersOffload}
    way = ways[offload](device) if offload != "none" else None
    return Placement(device, way, weights, sparing).apply(model)


class Placement:
    """How a model comes to a device."""

    def __init__(
        self,
        device: torch.device,
        offload: Offload | None = None,
        weights: str = "stored",
        sparing: bool = True,
    ) -> None:
        self.device, self.offload, self.weights, self.sparing = device, offload, weights, sparing

    def apply(self, model: Any) -> Any:
        """The model on the device."""
        if self.weights != "stored":
            quantise_networks(model, self.weights)
        if self.device.type != "cpu":
            self.require_room(networks(model), model)
            if self.sparing:
                decode_in_slices(model)
        for network in networks(model):
            self.prepare(network)
        if hasattr(model, "place"):  # a cascade's stages
            model.place = self.apply
        if hasattr(model, "open_encoder"):
            model.open_encoder = self.open_encoder
        return model.to(self.device)

    def prepare(self, network: nn.Module) -> None:
        """What there is to do with a network while it lies on the host."""
        if self.offload is not None:
            self.offload.add(network)
        for entries in entry_modules(network) if self.sparing else ():
            for entry in entries:
                attend_in_chunks(entry, self.device)

    def open_encoder(self, config: Any) -> Any:
        """A frozen text encoder, on the device as its weights are to be."""
        encoder = built_on_host(config, self.device)
        network = text_network(encoder)
        if network is not None:
            if self.weights != "stored":
                quantise(network, self.weights)
            if self.device.type != "cpu":
                self.require_room([network])
            self.prepare(network)
            network.to(self.device)
        return encoder

    def require_room(self, found: list[nn.Module], model: Any = None) -> None:
        """Raise a `UserError` where a device has not the memory for the weights of networks alone, or warn where it has
        not as much more as an image of a model takes."""
        if (free := free_device_memory(self.device)) is None:
            return
        ways = weight_bytes(found)
        way = {PartsOffload: "parts", LayersOffload: "layers"}.get(type(self.offload), "none")  # type: ignore[arg-type]
        free, need = free + (0 if self.offload is None else self.offload.present), ways[way]
        others = [f"offload={name} takes {gib(size)}" for name, size in ways.items() if size < 0.9 * need]
        if self.weights == "stored":
            others.append("weight_precision=int8 takes about a half of 16-bit weights, a quarter of 32-bit ones")
        what = f"the weights take {gib(need)}, and {self.device} has {gib(free)} free"
        if need > free:
            raise UserError(f"{what}: {', '.join(others) or 'close other programs that use it'}")
        if free - need < PLENTY and (images := image_bytes(model)) > free - need:
            more = f"one image of {model.config.size} px takes {gib(images)} more"
            warn(f"{what}; {more}, so that memory may run out: {', '.join(others) or 'take a smaller size'}")


def image_bytes(model: Any) -> int:
    """What making one image of the training size takes beside a model's weights, counted; 0 for a cascade, whose stages
    are asked one by one."""
    config = getattr(model, "config", None)
    if config is None:
        return 0
    from diptych.engines.sampling_memory import Sampling, counted, model_passes

    built = dict[str, nn.Module]()
    for name in ("unet", "network", "transformer", "autoencoder"):
        if (part := getattr(model, name, None)) is not None:
            with torch.device("meta"):
                built[name] = part.config.build()
    dtype = next(model.parameters()).dtype
    return max(counted(one).activations for one in model_passes(config, built, Sampling(dtype=dtype)))


def built_on_host(config: Any, device: torch.device) -> Any:
    """A text encoder on the host, in the type that it would have on the device."""
    if not isinstance(config, T5Config):
        return config.build()
    encoder = dataclasses.replace(config, dtype=str(compute_dtype(config, device))[6:]).build()
    encoder.config = config  # by which its embeddings are known
    return encoder
