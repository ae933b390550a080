"""The Fréchet distance against closed forms and the matrix square root of scipy; what pixels alone tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from diptych.core.errors import UserError
from diptych.core.images import psnr
from diptych.metrics.frechet import frechet_distance, frechet_error, trace_sqrt_product
from diptych.metrics.pixel_measures import image_psnr, saturated, ssim

rng = np.random.default_rng(0)


def by_square_root(one: np.ndarray, other: np.ndarray) -> float:
    shift = one.mean(0) - other.mean(0)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    return float(shift @ shift + np.trace(first + second - 2 * np.real(sqrtm(first @ second))))


def test_frechet_distance_agrees_with_scipy() -> None:
    one = rng.normal(size=(200, 16)) @ rng.normal(size=(16, 16))
    other = rng.normal(size=(150, 16)) @ rng.normal(size=(16, 16)) + 1
    assert frechet_distance(one, other) == pytest.approx(by_square_root(one, other), rel=1e-9)


def test_frechet_distance_of_commuting_covariances_has_a_closed_form() -> None:
    first, second = rng.uniform(0.1, 4, 8), rng.uniform(0.1, 4, 8)
    assert trace_sqrt_product(np.diag(first), np.diag(second)) == pytest.approx(np.sqrt(first * second).sum())


def test_frechet_distance_of_a_shift_is_its_squared_length() -> None:
    one = rng.normal(size=(50, 4))
    assert frechet_distance(one, one + np.array([3.0, 0, 4, 0])) == pytest.approx(25)


@pytest.mark.parametrize("count", [2, 5, 20])
def test_frechet_distance_with_fewer_images_than_dimensions(count: int) -> None:
    """The covariance is singular; its square root still has the trace that the singular values say."""
    one, other = rng.normal(size=(count, 32)), rng.normal(size=(count + 3, 32))
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (one, other))
    overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    shift = one.mean(0) - other.mean(0)
    expected = shift @ shift + (a**2).sum() + (b**2).sum() - 2 * overlap
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-5)


def test_frechet_distance_of_one_image_is_refused() -> None:
    with pytest.raises(UserError, match="two images"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))


def test_psnr_of_tensors_is_that_of_each_image_and_bounded() -> None:
    one = torch.zeros(2, 3, 4, 4)
    other = torch.stack([torch.full((3, 4, 4), 0.2), torch.zeros(3, 4, 4)])
    assert psnr(one, other).tolist() == pytest.approx([20 * math.log10(2 / 0.2), 100])
    assert psnr(one[:1], other[:1] * 255, span=255, least=0.5).item() == pytest.approx(10 * math.log10(1 / 0.5))


def test_psnr_of_a_known_error() -> None:
    grey, lighter = (Image.new("RGB", (4, 4), (value,) * 3) for value in (100, 110))
    assert image_psnr(grey, lighter) == pytest.approx(20 * math.log10(255 / 10))
    # Equal images are no better known than to half a step: the variance of an error spread evenly over one.
    spread = np.random.default_rng(0).uniform(-0.5, 0.5, 200_000)
    assert image_psnr(grey, grey) == pytest.approx(10 * math.log10(255**2 / spread.var()), abs=0.05)


def test_saturated_counts_values_of_0_and_255() -> None:
    half = Image.new("RGB", (2, 1))
    half.putpixel((0, 0), (0, 255, 254))
    half.putpixel((1, 0), (1, 128, 127))
    assert saturated([half]) == pytest.approx(2 / 6)
    assert saturated([half, Image.new("RGB", (8, 8), "white")]) == pytest.approx((2 / 6 + 1) / 2)


def by_windows(one: np.ndarray, other: np.ndarray) -> float:
    """SSIM written out: window by window, channel by channel."""
    places = range(-5, 6)
    weights = np.array([[math.exp(-(i * i + j * j) / (2 * 1.5**2)) for i in places] for j in places])
    weights /= weights.sum()
    found = []
    for channel in range(3):
        for top in range(one.shape[0] - 10):
            for left in range(one.shape[1] - 10):
                a, b = (x[top : top + 11, left : left + 11, channel].astype(float) for x in (one, other))
                ma, mb = (weights * a).sum(), (weights * b).sum()
                va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
                both = (weights * (a - ma) * (b - mb)).sum()
                light = (2 * ma * mb + 6.5025) / (ma * ma + mb * mb + 6.5025)
                found.append(light * (2 * both + 58.5225) / (va + vb + 58.5225))
    return float(np.mean(found))


def test_ssim_is_the_papers_formula() -> None:
    one = rng.integers(0, 256, (15, 19, 3), dtype=np.uint8)
    for other in (one // 2, 255 - one, rng.integers(0, 256, one.shape, dtype=np.uint8), np.roll(one, 1, 2)):
        found = ssim(Image.fromarray(one), Image.fromarray(other))
        assert found == pytest.approx(by_windows(one, other), abs=1e-9)
        assert found < 0.9
    assert ssim(Image.fromarray(one), Image.fromarray(one)) == pytest.approx(1)


def test_ssim_of_flat_images_has_a_closed_form() -> None:
    grey, white = Image.new("RGB", (11, 30), (100,) * 3), Image.new("RGB", (11, 30), (255,) * 3)
    expected = (2 * 100 * 255 + 6.5025) / (100**2 + 255**2 + 6.5025)
    assert ssim(grey, white) == pytest.approx(expected)


@pytest.mark.parametrize("sizes", [((10, 30), (10, 30)), ((20, 20), (20, 21))])
def test_ssim_refuses_different_sizes_and_images_smaller_than_its_window(sizes) -> None:
    with pytest.raises(ValueError, match="11 pixels a side"):
        ssim(*(Image.new("RGB", size) for size in sizes))


@pytest.mark.parametrize(("count", "width"), [(12, 20), (60, 5)])
def test_bootstrap_error_of_the_frechet_distance(count: int, width: int) -> None:
    """By the definition: the distances of drawn features, whether there are fewer of them than dimensions or not."""
    features, other = rng.normal(size=(count, width)), rng.normal(size=(200, width)) + 1
    draws = np.random.Generator(np.random.PCG64(7))
    distances = [frechet_distance(features[draws.integers(0, count, count)], other) for _ in range(20)]
    found = frechet_error(features, other, resamples=20, seed=7)
    assert found == pytest.approx(np.std(distances, ddof=1), rel=1e-6)


def test_bootstrap_error_is_that_of_a_mean() -> None:
    """Of features with a small fixed spread far from the reference the distance is its squared length d²: its error is
    2 d s / sqrt(n)."""
    features = 100 + 0.5 * rng.normal(size=(400, 1))
    expected = 2 * 100 * features.std() / 20
    assert frechet_error(features, rng.normal(size=(50, 1)), resamples=2000) == pytest.approx(expected, rel=0.1)
