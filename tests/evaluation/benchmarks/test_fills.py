"""Fills without training: as computed by hand, and what is known is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diptych.evaluation.classical_fills import harmonic_fill, mean_fill


def random(seed: int = 0, count: int = 2, height: int = 9, width: int = 7) -> tuple[Tensor, Tensor]:
    """Images, and masks of which one touches the edge."""
    generator = torch.Generator().manual_seed(seed)
    images, masks = (
        torch.rand(count, 3, height, width, generator=generator) * 2 - 1,
        torch.zeros(count, 1, height, width),
    )
    masks[0, 0, 2:5, 1:6] = 1
    masks[1, 0, 4:, :4] = 1
    masks[1, 0, 0, 6] = 1
    return images, masks


def test_mean_fill_is_the_mean_of_unmasked_pixels() -> None:
    images, masks = random()
    made = mean_fill(images, masks)
    for image, mask, fill in zip(images, masks[:, 0].bool(), made, strict=True):
        assert torch.equal(fill[:, ~mask], image[:, ~mask])
        torch.testing.assert_close(fill[:, mask], image[:, ~mask].mean(1, keepdim=True).expand(3, int(mask.sum())))


def test_harmonic_fill_continues_a_plane() -> None:
    """A plane solves Laplace's equation."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    image = torch.stack([x, -y, (x + y) / 2])[None]
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3:12, 5:14] = 1
    torch.testing.assert_close(harmonic_fill(image, mask), image, atol=2e-3, rtol=0)


def test_harmonic_fill_agrees_with_a_dense_solver() -> None:
    """Solved once more, as a dense system, whose neighbours beyond the edge there are none."""
    images, masks = random()
    made = harmonic_fill(images, masks)
    for image, mask, fill in zip(images, masks[:, 0].bool(), made, strict=True):
        places = [(i, j) for i in range(9) for j in range(7) if mask[i, j]]
        matrix, right = torch.zeros(len(places), len(places)), torch.zeros(len(places), 3)
        for row, (i, j) in enumerate(places):
            near = [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
            near = [(a, b) for a, b in near if 0 <= a < 9 and 0 <= b < 7]
            matrix[row, row] = len(near)
            for place in near:
                if place in places:
                    matrix[row, places.index(place)] -= 1
                else:
                    right[row] += image[:, place[0], place[1]]
        wanted = torch.linalg.solve(matrix, right)  # (pixels, 3)
        found = torch.stack([fill[:, i, j] for i, j in places])
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)
        assert torch.equal(fill[:, ~mask], image[:, ~mask])


@pytest.mark.parametrize("fill", [mean_fill, harmonic_fill])
def test_fills_depend_neither_on_the_batch_nor_on_masked_pixels(fill) -> None:
    images, masks = random()
    together = fill(images, masks)
    torch.testing.assert_close(fill(images[1:], masks[1:])[0], together[1], atol=2e-3, rtol=0)
    torch.testing.assert_close(fill(torch.where(masks.bool(), -images, images), masks), together, atol=2e-3, rtol=0)
