"""Images made small: as Pillow does it, and by a chain that its seed alone decides."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.conditioning import degradations
from diptych.conditioning.degradations import (
    CHAINS,
    DegradationConfig,
    add_noise,
    blur,
    compress,
    degrade,
    gaussian,
    resize_randomly,
)
from diptych.core.errors import UserError
from diptych.core.images import to_images, to_tensor

BSR = ("bsr", "bsr-light")


def pictures(count: int = 2, height: int = 32, width: int = 40) -> torch.Tensor:
    """Smooth colours of 8 bits, (B, 3, H, W) in [-1, 1]."""
    y, x = np.mgrid[:height, :width]
    waves = [np.stack([np.sin(x / (4 + i + c)) * np.cos(y / (5 + c)) for c in range(3)], -1) for i in range(count)]
    return to_tensor([Image.fromarray((127.5 + 120 * wave).astype(np.uint8)) for wave in waves])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def test_bicubic_is_pillows() -> None:
    x = pictures()
    made = to_images(degrade(x, 4, DegradationConfig(), torch.tensor([0, 1])))
    for image, original in zip(made, to_images(x), strict=True):
        expected = original.resize((10, 8), Image.Resampling.BICUBIC)
        assert np.array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("kind", BSR)
@pytest.mark.parametrize("factor", (2, 4, 8))
def test_a_seed_decides_in_any_batch(kind: str, factor: int) -> None:
    x, config = pictures(3), DegradationConfig(kind=kind)
    together = degrade(x, factor, config, torch.tensor([5, 6, 7]))
    assert together.shape == (3, 3, 32 // factor, 40 // factor)
    assert together.abs().max() <= 1
    levels = (together + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)  # as a file holds it
    for i, seed in enumerate((5, 6, 7)):
        assert torch.equal(degrade(x[i : i + 1], factor, config, torch.tensor([seed]))[0], together[i])
    assert not torch.equal(degrade(x[:1], factor, config, torch.tensor([8]))[0], together[0])


def test_the_light_chain_spoils_less() -> None:
    x, seeds = pictures(1).expand(24, -1, -1, -1), torch.arange(24)
    plain = degrade(x, 4, DegradationConfig(), seeds)
    lost = {kind: (degrade(x, 4, DegradationConfig(kind=kind), seeds) - plain).square().mean() for kind in BSR}
    assert 0 < 2 * lost["bsr-light"] < lost["bsr"]


@pytest.mark.parametrize("seed", range(4))
def test_thinning_out_shifts_nothing(seed: int) -> None:
    """Of an even slope, what stands for a square of pixels has the height of the square's middle."""
    slope = (torch.arange(96) / 64 - 0.75).expand(1, 3, 96, 96)
    thinned = dataclasses.replace(CHAINS["bsr"], resize=0.0)
    small = resize_randomly(slope, 4, thinned, rng(seed))
    assert small.shape == (1, 3, 24, 24)
    middles = (4 * torch.arange(24) + 1.5) / 64 - 0.75
    inner = slice(4, 20)  # away from mirrored edges
    torch.testing.assert_close(small[0, 0, 5, inner], middles[inner], atol=1e-4, rtol=0)
    torch.testing.assert_close(resize_randomly(slope.mT, 4, thinned, rng(seed)), small.mT)


@pytest.mark.parametrize(("along", "across", "angle", "middle"), ((4.0, 1.0, 0.5, 0.0), (2.0, 2.0, 0.0, 1.5)))
def test_a_kernel_has_the_moments_that_were_asked_for(along: float, across: float, angle: float, middle: float) -> None:
    kernel = gaussian(12, along, across, angle, middle).double()
    offsets = torch.arange(-12.0, 13.0).double()
    mean = torch.stack([(kernel.sum(0) * offsets).sum(), (kernel.sum(1) * offsets).sum()])  # x, y
    torch.testing.assert_close(mean, torch.full((2,), middle).double(), atol=1e-3, rtol=0)
    from_middle = offsets - middle
    covariance = torch.einsum("yx,x,y->", kernel, from_middle, from_middle)
    assert covariance == pytest.approx((along - across) * math.sin(angle) * math.cos(angle), abs=0.01)
    variance = (kernel.sum(0) * from_middle**2).sum()
    assert variance == pytest.approx(along * math.cos(angle) ** 2 + across * math.sin(angle) ** 2, rel=0.01)


def test_a_blur_is_the_sum_over_its_window_with_mirrored_edges() -> None:
    x, kernel = pictures(1, 8, 9)[0, 0], gaussian(3, 3.0, 1.0, 0.7)
    padded = np.pad(x.numpy(), 3, mode="reflect")
    expected = [[(padded[i : i + 7, j : j + 7] * kernel.numpy()).sum() for j in range(9)] for i in range(8)]
    found = blur(x.expand(1, 3, 8, 9), kernel)
    torch.testing.assert_close(found[0, 2], torch.tensor(np.array(expected)).float(), atol=1e-5, rtol=0)
    assert blur(x[:2, :2].expand(1, 3, 2, 2), kernel).isfinite().all(), "a kernel may be larger than the image"


def test_there_are_three_kinds_of_noise() -> None:
    grey, seen = torch.zeros(1, 3, 64, 64), []
    for seed in range(60):
        values = add_noise(grey, CHAINS["bsr-light"], rng(seed))[0].flatten(1) * 127.5
        assert 0 < values.std() < 2.5
        apart = torch.corrcoef(values)
        seen.append("one" if apart.min() > 0.999 else "each" if apart.fill_diagonal_(0).abs().max() < 0.08 else "any")
    assert 12 < seen.count("one") < 36 and 12 < seen.count("each") < 36 and 3 < seen.count("any") < 24


def test_jpeg_has_the_chosen_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    write = Image.Image.save

    def save(self: Image.Image, file, kind: str, **options) -> None:
        used.append(options["quality"])
        write(self, file, kind, **options)

    monkeypatch.setattr(degradations.Image.Image, "save", save)
    x = pictures(1)
    for seed in range(40):
        assert compress(x, CHAINS["bsr"], rng(seed)).shape == x.shape
    assert min(used) >= 30 and max(used) <= 95 and len(set(used)) > 20


def test_sides_that_are_no_multiples_are_refused() -> None:
    with pytest.raises(UserError, match="40 x 30 pixels are no multiples of the factor 4"):
        degrade(pictures(1, 30), 4, DegradationConfig(), torch.tensor([0]))
