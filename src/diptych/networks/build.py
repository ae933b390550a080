"""From the config of a U-Net of any kind to the network."""

from __future__ import annotations

from typing import overload

from diptych.networks.adm import AdmUNet
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.efficient_unet import EfficientUNet, EfficientUNetConfig
from diptych.networks.unet import UNet, UNetConfig


@overload
def build_network(config: UNetConfig | AdmUNetConfig) -> UNet | AdmUNet: ...
@overload
def build_network(config: UNetConfig | EfficientUNetConfig | AdmUNetConfig) -> UNet | EfficientUNet | AdmUNet: ...
def build_network(config: UNetConfig | EfficientUNetConfig | AdmUNetConfig) -> UNet | EfficientUNet | AdmUNet:
    """The network that a config describes, as it is before training."""
    if isinstance(config, AdmUNetConfig):
        return AdmUNet(config)
    return EfficientUNet(config) if isinstance(config, EfficientUNetConfig) else UNet(config)
