"""Class-conditional U-Nets: the class is one context token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diptych.core.errors import UserError
from diptych.networks.unet import UNet, UNetConfig
from tests.networks.reference import noise, randomised

SMALL: dict[str, Any] = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention_levels": (1,), "heads": 2}
TOLD = UNetConfig(**SMALL, context_width=12, classes=5, norm_groups=8)
TIME = torch.tensor([3.0, 700.0])


@torch.no_grad()
def test_unet_label_is_a_context_token() -> None:
    unet = randomised(UNet(TOLD))
    x, label = noise(2, 4, 8, 8), torch.tensor([0, 4])
    output = unet(x, TIME, label=label)
    assert torch.equal(output, unet(x, TIME, context=unet.label.weight[label][:, None]))
    assert not torch.equal(output[0], unet(x, TIME, label=torch.tensor([1, 4]))[0])


def test_unet_without_classes_refuses_a_label() -> None:
    unet = UNet(UNetConfig(**SMALL, context_width=12, norm_groups=8))
    assert not any(name.startswith("label") for name in unet.state_dict())
    with pytest.raises(ValueError, match="label was given to a network that was built without: its classes is none"):
        unet(noise(2, 4, 8, 8), TIME, label=torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"classes": 0}, "classes must be at least 1, or none"),
        ({"classes": 5, "context_width": None}, "classes must be none without context_width"),
    ],
)
def test_unet_classes_errors(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        UNetConfig(**{**SMALL, "context_width": 12, **values})
