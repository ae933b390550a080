"""Models that enlarge side by side: a perfect one reaches its bound, bicubic is the floor, and all is written."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.core.images import to_images, to_tensor
from diptych.data.dataset import DataConfig, open_dataset
from diptych.evaluation.benchmarks.super_resolution import evaluate_super_resolution, shortened
from diptych.metrics.pixel_measures import image_psnr
from diptych.models.judge import Judge

FACTOR, SIZE = 2, 16


class Flat(nn.Module):
    """A first stage that takes a little from each value."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = nn.Parameter(torch.tensor(0.1))
        self.config = SimpleNamespace(factor=1, codebook=None, latent_channels=3)

    def moments(self, images: Tensor) -> Tensor:
        return images

    def encode(self, images: Tensor) -> Any:
        return SimpleNamespace(mean=images)

    def decode(self, latents: Tensor) -> Tensor:
        return latents - self.lost


class Enlarger(nn.Module):
    """Enlarges by looking up the truth (`knows`), or by repeating pixels; `noise` of so many levels goes on top."""

    def __init__(self, truth: list[np.ndarray] | None = None, noise: int = 0, factor: int = FACTOR) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1 + noise))
        self.size, self.low_size = SIZE, SIZE // factor
        self.known = {self.small(Image.fromarray(one)).tobytes(): one for one in truth or ()}
        self.autoencoder, self.noise, self.requests = Flat(), noise, []

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def small(self, image: Image.Image) -> Image.Image:
        return image.resize((self.low_size, self.low_size), Image.Resampling.BICUBIC)

    def generate(self, prompts: Any, *, seeds: list[int], low: Any, steps: int | None = None) -> Any:
        lows = low if isinstance(low, list) else [low]
        self.requests += seeds
        made = []
        for one, seed in zip(lows, seeds, strict=True):
            plain = one.resize((one.width * FACTOR, one.height * FACTOR), Image.Resampling.NEAREST)
            values = self.known.get(one.tobytes(), np.asarray(plain)).astype(int)
            degraded = values + np.random.default_rng(seed).integers(-self.noise, self.noise + 1, values.shape)
            made.append(Image.fromarray(degraded.clip(0, 255).astype(np.uint8)))
        return SimpleNamespace(images=made)


class Largest(nn.Module):
    name = "largest difference"

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().flatten(1).amax(1)


@pytest.fixture(scope="module")
def truth(toy_data: Path) -> list[np.ndarray]:
    dataset = open_dataset(DataConfig(path=str(toy_data), size=SIZE, split="train"))
    return [dataset[i].image for i in range(len(dataset))]


def run(models: list, data: Path, out: Path, judge: Judge, **options: Any) -> dict[str, Any]:
    given = {"images": 8, "split": "train", "batch": 3, "perceptual": Largest(), **options}
    return evaluate_super_resolution(models, data, out, judge=judge, console=Console(file=io.StringIO()), **given)


def rows(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in results["models"]}


def test_a_perfect_model_nearest_neighbour_and_bounds(judge: Judge, toy_data: Path, tmp_path: Path, truth) -> None:
    models = [("perfect", Enlarger(truth)), ("runs/blind", Enlarger())]
    found = rows(run(models, toy_data, tmp_path, judge))
    assert list(found) == ["bicubic", "perfect", "runs/blind", "first stage, of the truth"]
    perfect, bicubic = found["perfect"], found["bicubic"]
    assert perfect["psnr"]["value"] == pytest.approx(58.92, abs=0.01) and perfect["perceptual"]["value"] == 0
    assert perfect["consistency"]["value"] == pytest.approx(58.92, abs=0.01)
    assert perfect["frechet"]["value"] == pytest.approx(0, abs=1e-4) and perfect["frechet"]["count"] == 2
    assert bicubic["frechet"]["error"] is None and "margin" not in bicubic
    for row in found.values():
        if "margin" in row:
            for name in ("psnr", "ssim", "perceptual", "consistency"):
                apart = row[name]["value"] - bicubic[name]["value"]
                assert row["margin"][name]["value"] == pytest.approx(apart, abs=1e-9)
    assert found["first stage, of the truth"]["perceptual"]["value"] == pytest.approx(0.1, abs=0.01)
    assert found["runs/blind"]["margin"]["psnr"]["value"] < perfect["margin"]["psnr"]["value"]


def test_scores_agree_with_those_of_the_saved_images(judge: Judge, toy_data: Path, tmp_path: Path, truth) -> None:
    """Computed again from the files: means over seeds first, then over images, differences in pairs."""
    found = rows(run([("noisy", Enlarger(truth, noise=30))], toy_data, tmp_path, judge, seeds=3))
    sheets = [np.asarray(Image.open(tmp_path / "painted" / f"noisy-{number}.png")) for number in range(3)]
    chosen = np.random.Generator(np.random.PCG64(0)).permutation(len(truth))[:8]
    own, plain = [], []
    for place, index in enumerate(chosen):
        real = Image.fromarray(truth[int(index)])
        tiles = [Image.fromarray(sheet[:SIZE, place * SIZE : (place + 1) * SIZE]) for sheet in sheets]
        own.append(np.mean([image_psnr(real, tile) for tile in tiles]))
        low = real.resize((SIZE // 2, SIZE // 2), Image.Resampling.BICUBIC)
        plain.append(image_psnr(real, low.resize(real.size, Image.Resampling.BICUBIC)))
    row, margin = found["noisy"], np.array(own) - np.array(plain)
    assert row["psnr"]["value"] == pytest.approx(np.mean(own))
    assert row["psnr"]["error"] == pytest.approx(np.std(own, ddof=1) / np.sqrt(8))
    assert row["margin"]["psnr"]["value"] == pytest.approx(margin.mean())
    assert row["margin"]["psnr"]["error"] == pytest.approx(margin.std(ddof=1) / np.sqrt(8))
    assert row["frechet"]["error"] > 0 and row["frechet"]["count"] == 3


def test_saved_images_are_not_generated_again(judge: Judge, toy_data: Path, tmp_path: Path, truth) -> None:
    model = Enlarger(truth, noise=5)
    first = run([("m", model)], toy_data, tmp_path, judge)
    before = list(model.requests)
    assert len(set(before[:16])) == 16, "two seeds for each image"
    again = run([("m", model)], toy_data, tmp_path, judge)
    assert again == first and len(model.requests) == len(before) + 1, "the larger picture alone"
    with pytest.raises(UserError, match="with other settings"):
        run([("m", model)], toy_data, tmp_path, judge, steps=7)
    with pytest.raises(UserError, match="with other models"):
        run([("n", model)], toy_data, tmp_path, judge)
    (tmp_path / "painted" / "m-0.png").write_bytes(b"cut short")
    assert run([("m", model)], toy_data, tmp_path, judge) == first
    assert len(model.requests) == len(before) + 1 + 8 + 1
    both = run([("m", model), ("n", model)], toy_data, tmp_path, judge)
    assert [row["name"] for row in both["models"]][:3] == ["bicubic", "m", "n"], "more models go on in the same folder"


def test_written_files(judge: Judge, toy_data: Path, tmp_path: Path, truth) -> None:
    results = run([("a/perfect", Enlarger(truth))], toy_data, tmp_path, judge, sheet=2)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    table = (tmp_path / "results.md").read_text()
    assert "8 -> 16 px, bicubic: 8 train images, 2 seeds" in table and "PSNR, to bicubic" in table
    assert results["larger"]["low"] == [16, 12] and results["larger"]["size"] == [32, 24]
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(tmp_path / "larger.png") as larger:
        assert sheet.mode == larger.mode == "P" and sheet.height > 256


def test_bsr_degradation(judge: Judge, toy_data: Path, tmp_path: Path, truth) -> None:
    plain = rows(run([("m", Enlarger(truth))], toy_data, tmp_path / "a", judge, seeds=1))
    degraded = rows(run([("m", Enlarger(truth))], toy_data, tmp_path / "b", judge, seeds=1, degradation="bsr"))
    assert degraded["bicubic"]["psnr"]["value"] < plain["bicubic"]["psnr"]["value"] - 3
    assert "consistency" not in degraded["m"]


def test_what_cannot_be_compared_is_refused(judge: Judge, toy_data: Path, tmp_path: Path, truth) -> None:
    def refused(message: str, models: list, **options: Any) -> None:
        with pytest.raises(UserError, match=message):
            run(models, toy_data, tmp_path, judge, **options)

    base = SimpleNamespace(low_size=None, device="cpu")
    refused("base is no super-resolution model", [("base", base)])
    refused("a upsamples by 2 to 16 px, b upsamples by 4 to 16 px", [("a", Enlarger()), ("b", Enlarger(factor=4))])
    refused("name each model once", [("a", Enlarger()), ("a", Enlarger())])
    refused("two images", [("a", Enlarger())], images=1)
    refused("at least one seed", [("a", Enlarger())], seeds=0)


def test_shortened_names_differ_at_their_ends() -> None:
    names = (
        "bicubic",
        "runs/emoji-super-resolution/",
        "runs/emoji-super-resolution-pixels",
        "first stage, of the truth",
    )
    assert [shortened(name) for name in names] == ["bicubic", "…super-resolution", "…esolution-pixels", "first stage"]


def test_to_tensor_and_to_images_keep_8_bits() -> None:
    """The toy models above rely on it: 8 bits survive."""
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    assert to_images(to_tensor([image]))[0].tobytes() == image.tobytes()
