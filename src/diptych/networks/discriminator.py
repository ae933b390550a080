"""The patch discriminator of a first stage's adversarial training (PatchGAN: Isola et al. 2017, section 3.2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.config import Config, Within

KERNEL = 4
SLOPE = 0.2
"""Of the leaky rectifiers."""
WIDEST = 8
"""How many times as wide as the first layer the others may be."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(Config):
    """The shape of a `Discriminator`. The defaults are those of VQGAN and latent-diffusion: 2,765,633 parameters, and
    patches of 70 x 70 pixels."""

    most = 2**16

    renamed: ClassVar[dict[str, str]] = {"picture_channels": "image_channels"}

    image_channels: int = 3
    """Channels of an image."""
    channels: int = 64
    """Channels of the first layer; each further one has twice as many, at most 8 times."""
    layers: Annotated[int, Within(0, 1000)] = 3
    """Convolutions that halve the image. They determine the receptive field of a logit: `patch`."""
    norm: Literal["batch", "group"] = "batch"
    """Between the convolutions: batch norm as published, or group norm, with which the logits of an image do not
    depend on the others in its batch: for one or two images a process, too few for batch norm."""
    norm_groups: int = 32
    """Groups of a group norm."""

    def check(self) -> None:
        self.require_at_least(1, "image_channels", "channels", "layers", "norm_groups")

    @property
    def patch(self) -> int:
        """The receptive field: side in pixels of the patch of one logit."""
        side = 1 + 2 * (KERNEL - 1)  # two convolutions of stride 1 at the end
        for _ in range(self.layers):
            side = (side - 1) * 2 + KERNEL
        return side

    def width(self, layer: int) -> int:
        return self.channels * min(2**layer, WIDEST)

    def build(self) -> Discriminator:
        return Discriminator(self)


class Discriminator(nn.Module):
    """Tells real images from reconstructions, patch by patch.

    forward(images (B, image_channels, H, W)) -> logits (B, 1, h, w), high for real; h and w are about H and W over
    2 ** layers. The weights start normal with deviation 0.02, those of batch norms around 1 (Isola et al. 2017,
    appendix 6.2).
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = c = config
        self.conv_in = nn.Conv2d(c.image_channels, c.channels, KERNEL, stride=2, padding=1)
        layers: list[nn.Module] = []
        for layer in range(1, c.layers + 1):
            stride = 2 if layer < c.layers else 1
            layers.append(DiscriminatorLayer(c.width(layer - 1), c.width(layer), stride, c))
        self.layers = nn.Sequential(*layers)
        self.conv_out = nn.Conv2d(c.width(c.layers), 1, KERNEL, stride=1, padding=1)
        self.apply(_init_weights)

    def forward(self, images: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv_in(images), SLOPE)  # (B, channels, H / 2, W / 2)
        return self.conv_out(self.layers(x))  # (B, 1, h, w)


class DiscriminatorLayer(nn.Module):
    """Convolution, norm, leaky rectifier."""

    def __init__(self, inputs: int, outputs: int, stride: int, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, KERNEL, stride=stride, padding=1, bias=False)
        batch = config.norm == "batch"
        self.norm = nn.BatchNorm2d(outputs) if batch else nn.GroupNorm(min(config.norm_groups, outputs), outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), SLOPE)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Of the discriminator, for each image (B,): half of E max(0, 1 - D(x)) + E max(0, 1 + D(x')) over the patches
    (Lim & Ye 2017; the half as in VQGAN)."""
    return 0.5 * (F.relu(1 - real).flatten(1).mean(1) + F.relu(1 + fake).flatten(1).mean(1))
