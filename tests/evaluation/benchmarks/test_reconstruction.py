"""What first stages keep: nothing is lost by a perfect one, numbers are as computed by hand, and all is written."""

from __future__ import annotations

import io
import json
import math
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
from diptych.evaluation.benchmarks.reconstruction import codebook, evaluate_reconstruction
from diptych.metrics.frechet import frechet_distance
from diptych.models.judge import Judge
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from tests.networks.reference import randomised

VQ = AutoencoderConfig(channels=8, multipliers=(1, 2), blocks=1, norm_groups=4, latent_channels=3, codebook=16)


class Stage(nn.Module):
    """A first stage that keeps everything, or with `lost` takes so much from each value."""

    def __init__(self, lost: float = 0.0, factor: int = 1) -> None:
        super().__init__()
        self.lost = nn.Parameter(torch.tensor(lost))
        self.config = SimpleNamespace(factor=factor, codebook=None, latent_channels=3)

    def moments(self, images: Tensor) -> Tensor:
        return images

    def encode(self, images: Tensor) -> Any:
        return SimpleNamespace(mean=images)

    def decode(self, latents: Tensor) -> Tensor:
        return latents - self.lost


class Largest(nn.Module):
    name = "largest difference"

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().flatten(1).amax(1)


def run(models: list, data: Path, out: Path, judge: Judge, **options: Any) -> dict[str, Any]:
    quiet = Console(file=io.StringIO())
    return evaluate_reconstruction(models, data, out, judge=judge, batch=4, console=quiet, **options)


def test_a_perfect_first_stage_loses_nothing(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    models = [("perfect", Stage()), ("dark", Stage(0.2))]
    perfect, dark = run(models, toy_data, tmp_path, judge, images=10, perceptual=Largest())["models"]
    assert perfect["psnr"]["value"] == pytest.approx(58.92, abs=0.01) and perfect["psnr"]["error"] == 0
    assert perfect["ssim"]["value"] == pytest.approx(1) and perfect["perceptual"]["value"] == 0
    assert perfect["frechet"] == pytest.approx(0, abs=1e-4)
    for name in ("psnr", "ssim"):
        assert dark[name]["value"] < perfect[name]["value"]
    assert dark["frechet"] > 0.01 and dark["perceptual"]["value"] == pytest.approx(0.2, abs=0.005)


@torch.no_grad()
def test_scores_agree_with_those_computed_from_the_images(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    """Computed again from the images themselves, in another way."""
    module = randomised(Autoencoder(VQ))
    results = run([("vq", module)], toy_data, tmp_path, judge, images=6, seed=3, split="train", perceptual=Largest())
    (row,) = results["models"]
    dataset = open_dataset(DataConfig(path=str(toy_data), size=16, split="train"))
    by_key = {dataset[i].key: dataset[i].image for i in range(len(dataset))}
    lines = [json.loads(line) for line in (tmp_path / "pictures.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == 6
    originals = [Image.fromarray(by_key[line["key"]]) for line in lines]
    rebuilt = to_images(module.decode(module.encode(to_tensor(originals)).mean))
    values = []
    for line, one, other in zip(lines, originals, rebuilt, strict=True):
        squared = np.square(np.asarray(one, float) - np.asarray(other, float)).mean()
        values.append(20 * math.log10(255) - 10 * math.log10(squared))
        assert line["psnr"] == pytest.approx(values[-1], abs=0.01)  # a value may be rounded the other way
        assert line["perceptual"] == pytest.approx(float(Largest()(to_tensor([one]), to_tensor([other]))), abs=0.01)
    assert row["psnr"]["value"] == pytest.approx(np.mean(values), abs=0.01)
    assert row["psnr"]["error"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(6), abs=0.01)
    features = [judge.features(images).numpy() for images in (originals, rebuilt)]
    assert row["frechet"] == pytest.approx(frechet_distance(*features), rel=0.01)
    indices = module.quantise.indices(module.encode(to_tensor(originals)).mean)  # type: ignore[union-attr]
    shares = np.unique(indices, return_counts=True)[1] / indices.numel()
    assert row["codebook"]["positions"] == indices.numel() == 6 * 8 * 8
    assert row["codebook"]["used"] == len(shares) / 16
    assert row["codebook"]["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    again = run([("vq", module)], toy_data, tmp_path / "again", judge, images=6, seed=4, split="train")
    assert again["models"][0]["psnr"] != row["psnr"], "another seed, other images"


def test_perplexity_of_uniform_codebook_use_is_the_number_of_entries() -> None:
    alike = codebook(torch.tensor([5, 0, 5, 5, 0, 5]))["codebook"]
    assert alike["perplexity"] == pytest.approx(4) and alike["used"] == pytest.approx(4 / 6)
    assert codebook(torch.tensor([0, 9]))["codebook"]["perplexity"] == pytest.approx(1)


def test_written_files(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    models = [("runs/perfect", Stage()), ("black", Stage(9.0))]
    results = run(models, toy_data, tmp_path, judge, images=5, sheet=3)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["settings"]["size"] == 16 and results["settings"]["pictures"] == 5
    assert results["data"] == {"name": toy_data.name, "manifest": "a1b2", "split": "held-out"}
    assert results["frechet"]["judge"] == judge.fingerprint() and results["perceptual"] is None
    assert len({row["fingerprint"] for row in results["models"]}) == 2
    table = (tmp_path / "results.md").read_text()
    assert "runs/perfect" in table and "black" in table and "Fréchet (judge)" in table and "codebook" not in table
    lines = (tmp_path / "pictures.jsonl").read_text().splitlines()
    assert [json.loads(line)["model"] for line in lines] == ["runs/perfect"] * 5 + ["black"] * 5
    page = Image.open(tmp_path / "reconstructions.png").convert("RGB")
    first, step = 8 + 3, 128 + 2 * 3 + 8  # of the contact sheet: pad and border, and from one image to the next
    shown = [page.crop((first + n * step, first, first + n * step + 128, first + 128)) for n in range(3)]
    assert shown[0].tobytes() == shown[1].tobytes() != shown[2].tobytes()
    assert shown[2].getextrema() == ((0, 0),) * 3


def test_tiny_decoder_against_its_teacher_and_the_originals(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    results = run([("it", Stage(0.2))], toy_data, tmp_path, judge, images=5, decoder=Stage(0.2))
    teacher, tiny = results["models"]
    assert tiny["of_teacher"]["psnr"]["value"] == pytest.approx(58.92, abs=0.01)
    assert tiny["psnr"] == teacher["psnr"] and "of_teacher" not in teacher
    assert tiny["name"] == "it, tiny decoder" and tiny["times_as_fast"] > 0
    assert "from the teacher's images" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    ("models", "options", "says"),
    [
        ([("a", Stage(factor=32))], {"size": 48}, "multiple of 32 and at least 11, not 48"),
        ([("a", Stage(factor=32))], {}, "multiple of 32"),
        ([("a", Stage(factor=2)), ("b", Stage(factor=3))], {"size": 16}, "multiple of 6"),
        ([("a", Stage())], {"size": 8}, "at least 11"),
        ([("a", Stage()), ("a", Stage())], {}, "named twice"),
        ([("a", Stage()), ("b", Stage())], {"decoder": Stage()}, "give one --model"),
        ([("a", Stage())], {"images": 1}, "two images or more"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    judge: Judge, toy_data: Path, tmp_path: Path, models: list, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        run(models, toy_data, tmp_path / "out", judge, **options)
    assert not (tmp_path / "out").exists()


def test_the_size_of_a_folder_of_images_is_rounded_down_to_the_factor(judge: Judge, tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (30, 21), (90 * i, 10, 10)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("a colour")
    results = run([("a", Stage(factor=4))], tmp_path, tmp_path / "out", judge, split="all")
    assert results["settings"]["size"] == 20, "what they have, rounded down"
