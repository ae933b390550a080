"""The parts of a model that an engine may run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from diptych.engines.replace import Part


def parts(model: Any) -> Iterator[Part]:
    """The networks of a model that are in memory, each with the method that is worth an engine.

    Text encoders are left out: they run once an image, on prompts of many lengths. So is a transformer over codes,
    which keeps what it computed for the codes before. The stages of a cascade come one by one (`each_stage`).
    """
    if isinstance(unet := getattr(model, "unet", None), nn.Module):
        yield Part(unet, "forward", "U-Net")
    if isinstance(network := getattr(model, "network", None), nn.Module):
        yield Part(network, "forward", f"stage {model.config.name}")
    if isinstance(autoencoder := getattr(model, "autoencoder", None), nn.Module):
        yield Part(autoencoder, "decode_entries", "decoder")
        yield Part(autoencoder, "moments", "encoder")
    if isinstance(tiny := getattr(model, "tiny", None), nn.Module):
        yield Part(tiny, "decode", "tiny decoder")
