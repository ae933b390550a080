"""The network of any U-Net's config: `config.build()`, for callers that have not moved to it."""

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
    return config.build()
