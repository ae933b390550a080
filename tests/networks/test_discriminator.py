"""The patch discriminator: how large its patches are, how many parameters it has, its loss."""

from __future__ import annotations

import itertools

import pytest
import torch

from diptych.networks.discriminator import Discriminator, DiscriminatorConfig, hinge_loss
from tests.networks.reference import noise, randomised


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_discriminator_receptive_field(layers: int, patch: int) -> None:
    """The sizes of Isola et al. 2017, appendix 6.1.2 (16, 70), and where a gradient reaches the image."""
    config = DiscriminatorConfig(channels=4, layers=layers, norm="group", norm_groups=2)
    assert config.patch == patch
    network = randomised(Discriminator(config)).eval()
    for module in network.modules():  # a group norm is over the whole image: its statistics are no part of the patch
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    image = noise(1, 3, 2 * patch, 2 * patch).requires_grad_(True)
    logits = network(image)
    row = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, row, row], image)
    rows = gradient.abs().sum((0, 1, 3)).nonzero()[:, 0]
    assert len(rows) == patch and rows[-1] - rows[0] == patch - 1


def test_discriminator_has_the_published_size() -> None:
    """Counted from the layers of pix2pix's discriminator: 4 x 4 kernels, batch norms but for the first layer."""
    widths = [3, 64, 128, 256, 512]
    expected = 3 * 64 * 16 + 64 + sum(a * b * 16 + 2 * b for a, b in itertools.pairwise(widths[1:]))
    expected += 512 * 16 + 1
    assert sum(p.numel() for p in Discriminator(DiscriminatorConfig()).parameters()) == expected


def test_discriminator_initialisation() -> None:
    torch.manual_seed(0)
    network = Discriminator(DiscriminatorConfig())
    convolution, norm = network.layers[2].conv, network.layers[2].norm  # type: ignore[union-attr]
    assert convolution.weight.std().item() == pytest.approx(0.02, rel=0.01)  # type: ignore[union-attr]
    assert norm.weight.mean().item() == pytest.approx(1.0, abs=0.01)  # type: ignore[union-attr]


def test_discriminator_with_group_norm_is_independent_of_the_batch() -> None:
    network = randomised(Discriminator(DiscriminatorConfig(channels=8, layers=2, norm="group", norm_groups=4)))
    images = noise(3, 3, 32, 32)
    alone = torch.cat([network(images[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


def test_hinge_loss_by_hand() -> None:
    real, fake = torch.tensor([[[[2.0, 0.5]]], [[[-1.0, 1.0]]]]), torch.tensor([[[[-2.0, 0.0]]], [[[1.0, -1.0]]]])
    assert hinge_loss(real, fake).tolist() == pytest.approx([0.5 * (0.25 + 0.5), 0.5 * (1.0 + 1.0)])
