"""Bringing an opened model to a device, in as little memory there as is asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from diptych.core.errors import pick, warn
from diptych.encoders.configs import T5Config
from diptych.encoders.t5 import compute_dtype
from diptych.engines.offload import OFFLOADS, LayersOffload, Offload, PartsOffload, networks, text_network
from diptych.engines.weight_precision import WEIGHTS, quantise, quantise_networks


def place(model: Any, device: torch.device, offload: str = "none", weights: str = "stored") -> Any:
    """A model that was opened on the host, on a device: its weights rounded first where `weights` says so, and where
    `offload` says so there only while they are needed.

    Stages and text encoders that are opened later are placed likewise. Raises a `UserError` for a way that there is
    not.
    """
    pick("offload", offload, OFFLOADS)
    pick("weights", weights, WEIGHTS)
    if offload != "none" and device.type != "cuda":
        warn(f"offload={offload} is for CUDA devices: on {device} it changes nothing")
        offload = "none"
    ways = {"parts": PartsOffload, "layers": LayersOffload}
    return Placement(device, ways[offload](device) if offload != "none" else None, weights).apply(model)


class Placement:
    """How a model comes to a device."""

    def __init__(self, device: torch.device, offload: Offload | None = None, weights: str = "stored") -> None:
        self.device, self.offload, self.weights = device, offload, weights

    def apply(self, model: Any) -> Any:
        """The model on the device."""
        if self.weights != "stored":
            quantise_networks(model, self.weights)
        if self.offload is not None:
            for network in networks(model):
                self.offload.add(network)
        if self.offload is not None or self.weights != "stored":
            if hasattr(model, "place"):  # a cascade's stages
                model.place = self.apply
            if hasattr(model, "open_encoder"):
                model.open_encoder = self.open_encoder
        return model.to(self.device)

    def open_encoder(self, config: Any) -> Any:
        """A frozen text encoder, on the device as its weights are to be."""
        encoder = built_on_host(config, self.device)
        network = text_network(encoder)
        if network is not None:
            if self.weights != "stored":
                quantise(network, self.weights)
            if self.offload is not None:
                self.offload.add(network)
            network.to(self.device)
        return encoder


def built_on_host(config: Any, device: torch.device) -> Any:
    """A text encoder on the host, in the type that it would have on the device."""
    if not isinstance(config, T5Config):
        return config.build()
    encoder = dataclasses.replace(config, dtype=str(compute_dtype(config, device))[6:]).build()
    encoder.config = config  # by which its embeddings are known
    return encoder
