"""The low-resolution picture: true averages, the published enlarging and noise, a blur that is scipy's."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.conditioning.lowres_augmentation import (
    AugmentationConfig,
    augment,
    downsample,
    level_condition,
    training_levels,
    upsample,
)
from diptych.core.errors import UserError
from tests.networks.reference import relative_error


def pictures(batch: int = 2, height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1))


def refused(like: Tensor) -> Tensor:
    raise AssertionError("this kind draws no noise")


# Reducing and enlarging


@pytest.mark.parametrize("size", [(4, 4), (2, 6), (1, 1), (8, 12)])
def test_a_picture_is_reduced_to_the_means_of_its_boxes(size: tuple[int, int]) -> None:
    high = pictures(2, 8, 12)
    boxes = high.unflatten(-1, (size[1], -1)).unflatten(-3, (size[0], -1))  # (B, C, h, H / h, w, W / w)
    torch.testing.assert_close(downsample(high, size), boxes.mean((-3, -1)))


@pytest.mark.parametrize("size", [(3, 4), (4, 5), (16, 12), (0, 4)])
def test_only_whole_factors_are_reduced(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=rf"12 x 8 pixels cannot be reduced to {size[1]} x {size[0]}: .* multiples"):
        downsample(pictures(1, 8, 12), size)


def test_enlarging_with_corners_aligned_keeps_the_corners_and_else_the_edges() -> None:
    low = pictures(1, 4, 4)
    aligned = upsample(low, (16, 16), AugmentationConfig(align_corners=True))
    torch.testing.assert_close(aligned[..., ::15, ::15], low[..., ::3, ::3])
    ramp = torch.arange(4.0).expand(1, 3, 4, 4)  # the pixel centred at x + 1/2 has the value x
    expected = ((torch.arange(16) + 0.5) / 4 - 0.5).clamp(0, 3).expand(1, 3, 16, 16)
    torch.testing.assert_close(upsample(ramp, (16, 16), AugmentationConfig()), expected)


def test_nearest_repeats_pixels_and_bicubic_is_torchs() -> None:
    low = pictures(1, 4, 6)
    repeated = low.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.equal(upsample(low, (8, 12), AugmentationConfig(upsample="nearest")), repeated)
    for corners in (False, True):
        config = AugmentationConfig(upsample="bicubic", align_corners=corners)
        expected = F.interpolate(low, (8, 12), mode="bicubic", align_corners=corners)
        assert torch.equal(upsample(low, (8, 12), config), expected)


# Levels


@pytest.mark.parametrize("kind", ["noise", "blur", "none"])
@pytest.mark.parametrize("where", ["low", "high"])
@pytest.mark.parametrize("how", ["bilinear", "bicubic", "nearest"])
def test_level_0_enlarges_and_nothing_else(kind: Any, where: Any, how: Any) -> None:
    config, low = AugmentationConfig(kind=kind, where=where, upsample=how), pictures()
    draw = noise if kind == "noise" else refused
    wanted = upsample(low, (16, 16), config)
    assert torch.equal(augment(low, (16, 16), 0.0, draw, config), wanted)
    mixed = augment(low, (16, 16), torch.tensor([0.0, 0.5], dtype=torch.float64), draw, config)
    assert torch.equal(mixed[0], wanted[0])
    assert torch.equal(mixed[1], wanted[1]) == (kind == "none")


@pytest.mark.parametrize("where", ["low", "high"])
def test_level_1_of_noise_is_noise_alone(where: Any) -> None:
    config, low = AugmentationConfig(where=where), pictures()
    alone = noise(torch.empty(2, 3, 16, 16)) if where == "high" else upsample(noise(low), (16, 16), config)
    torch.testing.assert_close(augment(low, (16, 16), 1.0, noise, config), alone, rtol=0, atol=1e-4)


def test_the_noise_keeps_the_variance_and_grows_with_the_level() -> None:
    low = torch.zeros(1, 3, 64, 64)
    deviations = []
    for level in (0.1, 0.3, 0.5, 0.9):
        spoiled = augment(low, (64, 64), level, noise, AugmentationConfig())
        constant = augment(low + 1, (64, 64), level, noise, AugmentationConfig()).double().mean().item()
        deviations.append(spoiled.std().item())
        kept = constant - spoiled.double().mean().item()
        assert kept**2 + deviations[-1] ** 2 == pytest.approx(1, abs=0.02)
        assert kept == pytest.approx(math.cos(math.pi / 2 * (level + 0.008) / 1.008), abs=1e-4)
    assert deviations == sorted(deviations)


def test_every_picture_has_its_own_level() -> None:
    for kind in ("noise", "blur"):
        config, low = AugmentationConfig(kind=kind), pictures(3)
        levels = torch.tensor([0.2, 0.0, 0.7], dtype=torch.float64)
        whole = augment(low, (16, 16), levels, noise, config)
        fixed = noise(whole)
        for i in range(3):
            own = fixed[i : i + 1]
            alone = augment(low[i : i + 1], (16, 16), levels[i].item(), lambda _, own=own: own, config)
            torch.testing.assert_close(whole[i : i + 1], alone)


@pytest.mark.parametrize("level", [-0.1, 1.01, math.nan, torch.tensor([0.5, 2.0])])
def test_a_level_outside_is_refused(level: Any) -> None:
    with pytest.raises(UserError, match="level must lie between 0 and 1, not"):
        augment(pictures(), (16, 16), level, noise, AugmentationConfig())


def test_training_levels_fill_the_range() -> None:
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-24])
    levels = training_levels(uniform, AugmentationConfig(lowest=0.1, highest=0.5))
    assert levels.dtype == torch.float64
    torch.testing.assert_close(levels, torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64))
    assert not training_levels(uniform, AugmentationConfig(kind="none")).any()


# References


def test_noise_is_the_one_of_deepfloyd_if() -> None:
    from diffusers.pipelines.deepfloyd_if.pipeline_if_superresolution import IFSuperResolutionPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    call = inspect.getsource(IFSuperResolutionPipeline.__call__)
    assert 'mode="bilinear", align_corners=True' in call  # what is written out below
    assert "image_noising_scheduler.add_noise(upscaled" in call
    table = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    low, config = pictures(1), AugmentationConfig(align_corners=True)
    upscaled = F.interpolate(low, (32, 32), mode="bilinear", align_corners=True)
    for index in (0, 1, 50, 250, 500, 990, 998, 999):
        expected = table.add_noise(upscaled, noise(upscaled), torch.tensor([index]))  # type: ignore[arg-type]
        spoiled = augment(low, (32, 32), (index + 1) / 1000, noise, config)
        assert (spoiled - expected).abs().max() <= 2e-5, index


def test_the_closed_form_is_the_published_table_to_what_float32_rounds() -> None:
    """alpha and sigma, seen through a picture of ones without noise and one of zeros with noise of ones."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    kept = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    levels = torch.arange(1, 1001, dtype=torch.float64) / 1000
    one, zero = torch.ones(1000, 1, 1, 1, dtype=torch.float64), torch.zeros(1000, 1, 1, 1, dtype=torch.float64)
    alpha = augment(one, (1, 1), levels, torch.zeros_like, AugmentationConfig()).flatten()
    sigma = augment(zero, (1, 1), levels, torch.ones_like, AugmentationConfig()).flatten()
    error = torch.maximum((alpha - kept.sqrt()).abs(), (sigma - (1 - kept).sqrt()).abs())
    assert error[:-1].max() <= 3e-6  # the table is made in float32
    assert error[-1] <= 1e-5  # the last beta is clipped


@pytest.mark.parametrize(("where", "factor"), [("low", 1), ("high", 4)])
def test_blur_is_scipys(where: Any, factor: int) -> None:
    from scipy.ndimage import gaussian_filter

    config, low = AugmentationConfig(kind="blur", where=where, upsample="nearest", blur=3.0), pictures(2, 12, 9)
    levels = torch.tensor([0.25, 1.0], dtype=torch.float64)
    blurred = augment(low, (48, 36), levels, refused, config)
    start = low if where == "low" else upsample(low, (48, 36), config)
    for picture, level, got in zip(start, levels.tolist(), blurred, strict=True):
        sigma = level * 3.0 * factor
        radius = math.ceil(4 * 3.0 * factor)  # of the widest blur there is
        rows = gaussian_filter(picture.double().numpy(), (0, sigma, sigma), mode="mirror", radius=(0, radius, radius))
        wanted = torch.from_numpy(np.ascontiguousarray(rows)).float()[None]
        wanted = upsample(wanted, (48, 36), config) if where == "low" else wanted
        torch.testing.assert_close(got[None], wanted, rtol=0, atol=2e-6)


def test_blur_spreads_as_far_as_it_says_in_pixels_of_the_low_picture() -> None:
    low = torch.zeros(1, 1, 33, 33)
    low[..., 16, 16] = 1
    for where in ("low", "high"):
        config = AugmentationConfig(kind="blur", where=where, upsample="nearest", blur=4.0)
        spread = augment(low, (99, 99), 0.5, refused, config)[0, 0].double()
        places = torch.arange(99, dtype=torch.float64) - 49
        variance = (spread.sum(0) * places**2).sum() / spread.sum()
        box = 8 / 12  # of a pixel made into 3 x 3: (n^2 - 1) / 12
        assert variance.item() == pytest.approx((3 * 2.0) ** 2 + box, rel=5e-3)
        assert spread.sum().item() == pytest.approx(9, rel=1e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lowest", -0.1), ("lowest", 1.1), ("highest", 1.5), ("level", 2.0), ("level", -1.0), ("blur", 0.0)],
)
def test_wrong_settings_name_the_field(field: str, value: float) -> None:
    with pytest.raises(UserError, match=field):
        AugmentationConfig(**{field: value})  # type: ignore[arg-type]


def test_settings_must_fit_each_other() -> None:
    with pytest.raises(UserError, match="highest must lie between lowest and 1"):
        AugmentationConfig(lowest=0.6, highest=0.5)
    with pytest.raises(UserError, match="align_corners must be false for nearest"):
        AugmentationConfig(upsample="nearest", align_corners=True)


# Levels of a table (DeepFloyd IF)


@pytest.mark.parametrize("entry", [0, 1, 250, 290, 999])
def test_levels_of_a_table_are_diffusers_entries(entry: int) -> None:
    """And entry 0 too leaves a little noise; at no level is a picture untouched."""
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    config, low = AugmentationConfig(table=1000, align_corners=True), pictures()
    large = F.interpolate(low, (16, 16), mode="bilinear", align_corners=True)
    theirs = scheduler.add_noise(large, noise(large), torch.tensor([entry, entry]))
    level = torch.full((2,), entry / 1000, dtype=torch.float64)
    assert relative_error(augment(low, (16, 16), level, noise, config), theirs) <= 1e-5
    assert (theirs - large).abs().max() > 0.01
    told = level_condition(level, config, low)
    assert torch.equal((told * 1000).float(), torch.full((2,), float(entry))), "a whole number for the network"


def test_a_table_is_trained_on_its_entries_alike() -> None:
    config = AugmentationConfig(table=4)
    levels = training_levels(torch.tensor([0.0, 0.2, 0.3, 0.6, 0.99]), config)
    assert levels.tolist() == [0, 0, 0.25, 0.5, 0.75]
    assert level_condition(torch.ones(1, dtype=torch.float64), config, pictures()).item() == 0.75, "1 is the last entry"
    with pytest.raises(UserError, match=r"table must be none unless kind is noise"):
        AugmentationConfig(kind="blur", table=1000)
