"""Metrics against the tools that the field uses: torch-fidelity, scikit-image, scipy."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from diptych.core.errors import UserError
from diptych.metrics.feature_networks import InceptionFeatures
from diptych.metrics.frechet import Gaussian, frechet_distance
from diptych.metrics.inception_score import inception_score
from diptych.metrics.kernels import cmmd, kernel_inception_distance
from diptych.metrics.measure import MeasureConfig, measure_images
from diptych.metrics.neighbours import manifolds
from diptych.metrics.pixel_measures import image_psnr, ssim
from tests.metrics.torchfidelity import inception_file, torch_fidelity


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inception_file(tmp_path_factory.mktemp("inception") / "weights.pth")


@pytest.fixture(scope="module")
def sides() -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features, skewed and correlated, that lie apart."""
    draw = np.random.default_rng(0)
    mix = draw.normal(size=(24, 24))
    one, other = (draw.random((count, 24)) ** 2 @ mix for count in (700, 900))
    return one.astype(np.float32), (1.1 * other + 0.2).astype(np.float32)


def noise(size: tuple[int, int], seed: int, gain: float = 1.0) -> Image.Image:
    values = np.random.default_rng(seed).random((size[1], size[0], 3)) * gain
    return Image.fromarray((255 * values).astype(np.uint8)).resize((size[0] * 2, size[1] * 2), Image.Resampling.BICUBIC)


def folder(path: Path, count: int, gain: float) -> Path:
    path.mkdir()
    for i in range(count):
        noise((12, 15), i, gain).save(path / f"{i:03d}.png")
    return path


def test_inception_features_are_those_of_torch_fidelity(weights: Path) -> None:
    ours = InceptionFeatures(weights, allow_pickle=True)
    image = noise((90, 170), 1)
    with torch_fidelity():
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        theirs = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )
    expected, expected_logits = theirs(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
    features = ours(ours.prepare(image)[None])
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    logits = torch.from_numpy(ours.logits(features.numpy())[:])
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5 * float(expected_logits.abs().max()))


@pytest.mark.slow
def test_all_metrics_of_two_folders_are_those_of_torch_fidelity(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    real, made = folder(tmp_path / "real", 24, 1.0), folder(tmp_path / "made", 20, 0.8)
    config = MeasureConfig(subset_size=16, subsets=8, splits=5)
    ours = measure_images(
        made,
        real,
        ("fid", "kid", "is", "precision-recall"),
        config=config,
        weights={"inception": weights},
        allow_pickle=True,
    )
    with torch_fidelity() as package:
        theirs = package.calculate_metrics(
            input1=str(made),
            input2=str(real),
            **dict.fromkeys(("isc", "fid", "kid", "prc"), True),
            kid_subset_size=16,
            kid_subsets=8,
            isc_splits=5,
            batch_size=8,
            feature_extractor="inception-v3-compat",
            save_cpu_ram=True,
            **dict.fromkeys(("cuda", "verbose", "cache"), False),
            feature_extractor_weights_path=str(weights),
        )
    values = {result["metric"]: result["value"] for result in ours}
    for ours_name, name in {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "is": "inception_score_mean",
        "precision": "precision",
        "recall": "recall",
    }.items():
        assert values[ours_name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-9), name


def test_metrics_of_features_are_those_of_torch_fidelity(sides: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = sides
    exact = [torch.from_numpy(side).double() for side in sides]
    with torch_fidelity():
        fid, kid, isc, prc = (
            importlib.import_module(f"torch_fidelity.metric_{name}") for name in ("fid", "kid", "isc", "prc")
        )
        statistics = [fid.fid_features_to_statistics(side) for side in exact]
        expected = fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
        assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
        expected = kid.kid_features_to_metric(*exact, kid_subsets=5, kid_subset_size=300, verbose=False)
        ours = kernel_inception_distance(one, other, 5, 300)
        assert list(ours) == pytest.approx(list(expected.values()), rel=1e-6)
        expected = isc.isc_features_to_metric(torch.from_numpy(one))
        assert list(inception_score(one)) == pytest.approx(list(expected.values()), rel=1e-6)
        expected = prc.prc_features_to_metric(
            *(torch.from_numpy(side) for side in sides),
            prc_neighborhood=3,
            prc_batch_size=10**4,
            save_cpu_ram=False,
            verbose=False,
        )
        found = manifolds(one, other, rows=128)
        assert [found.precision, found.recall] == pytest.approx([expected["precision"], expected["recall"]])


def test_density_and_coverage_by_their_definition(sides: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = (side[:60].astype(np.float64) for side in sides)
    k = 5
    among = np.linalg.norm(other[:, None] - other[None], axis=-1)
    radius = np.sort(among, axis=1)[:, k]  # itself is the nearest
    within = np.linalg.norm(one[:, None] - other[None], axis=-1) <= radius
    found = manifolds(one, other, k, rows=7)
    assert found.density == pytest.approx(within.sum() / (k * len(one)))
    assert found.coverage == pytest.approx(within.any(0).mean())


def test_cmmd_is_the_biased_mmd_of_a_gaussian_kernel(sides: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = (side[:40].astype(np.float64) for side in sides)

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([[np.exp(-((x - y) ** 2).sum() / 200) for y in b] for x in a]))

    expected = 1000 * (mean(one, one) + mean(other, other) - 2 * mean(one, other))
    assert cmmd(one, other, rows=16) == pytest.approx(expected, rel=1e-9)
    assert cmmd(one, one) == pytest.approx(0, abs=1e-9)


def test_psnr_and_ssim_are_those_of_scikit_image() -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    one, other = noise((24, 30), 3), noise((24, 30), 4)
    first, second = np.array(one), np.array(other)
    assert image_psnr(one, other) == pytest.approx(peak_signal_noise_ratio(first, second), rel=1e-12)
    expected = structural_similarity(
        first, second, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(one, other) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_frechet_distance_of_inception_s_width_is_scipy_s_and_seven_times_faster() -> None:
    draw = np.random.default_rng(0)
    sides = [Gaussian.of(draw.random((4096, 2048)) ** (1 + i)) for i in range(2)]

    def seconds(work) -> tuple[float, float]:
        start = time.process_time()
        return work(), time.process_time() - start

    def by_square_root() -> float:
        one, other = sides
        shift = one.mean - other.mean
        root = np.real(sqrtm(one.covariance @ other.covariance))
        return float(shift @ shift + np.trace(one.covariance + other.covariance - 2 * root))

    expected, slow = seconds(by_square_root)
    found, quick = seconds(lambda: frechet_distance(*sides))
    assert found == pytest.approx(expected, rel=1e-6)
    assert slow > 7 * quick


def test_too_few_images_are_refused(sides: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = sides
    with pytest.raises(UserError, match="two images"):
        frechet_distance(one[:1], other)
    with pytest.raises(UserError, match="subsets of 1000"):
        kernel_inception_distance(one, other)
    with pytest.raises(UserError, match="k = 3"):
        manifolds(one[:3], other)
    with pytest.raises(UserError, match="10 parts"):
        inception_score(one[:9])
    with pytest.raises(UserError, match="dimensions"):
        frechet_distance(one, other[:, :5])
