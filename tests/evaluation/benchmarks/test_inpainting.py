"""The comparison of fills: nothing under a mask is seen, numbers are as computed by hand, a rerun goes on."""

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
from diptych.core.images import to_images
from diptych.evaluation.benchmarks.inpainting import Inpainting, evaluate_inpainting, means_and_margins
from diptych.models.judge import Judge

SIZE = 16


class ToyModel(nn.Module):
    """Paints one grey, and remembers what it was shown."""

    def __init__(self, repaints: bool | None = True, grey: float = 0.0, size: int = SIZE) -> None:
        super().__init__()
        self.grey, self.device = nn.Parameter(torch.tensor(grey)), torch.device("cpu")
        self.repaints, self.size, self.factor = repaints, size, 4
        self.shown: list[dict[str, Any]] = []

    def generate(self, prompts: list[str], *, seeds: list[int], image: Tensor, mask: Tensor, steps: int | None) -> Any:
        self.shown.append({"prompts": prompts, "seeds": seeds, "image": image, "mask": mask, "steps": steps})
        return SimpleNamespace(images=to_images(torch.full_like(image, self.grey.item())))


class Largest(nn.Module):
    name = "largest difference"

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().flatten(1).amax(1)


def run(models: list, data: Path, out: Path, judge: Judge, **options: Any) -> dict[str, Any]:
    options = {"images": 5, "seeds": 2, "batch": 3, "split": "train", **options}
    return evaluate_inpainting(models, data, out, judge=judge, console=Console(file=io.StringIO()), **options)


def test_masked_pixels_are_hidden_and_unmasked_ones_put_back(
    judge: Judge, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[Tensor, Tensor, list[Image.Image]]] = []
    original = Inpainting.filled

    def spy(study: Inpainting, share: str, row: str, number: int, part: list[int]) -> list[Image.Image]:
        made = original(study, share, row, number, part)
        kept.append((study.truth[part], study.masks(share, number)[part], made))
        return made

    monkeypatch.setattr(Inpainting, "filled", spy)
    trained, plain = ToyModel(), ToyModel(repaints=False)
    run([("trained", trained), ("plain", plain)], toy_data, tmp_path, judge, steps=7)
    for truth, holes, made in kept:
        for picture, hole, image in zip(to_images(truth), holes[:, 0].bool().numpy(), made, strict=True):
            assert np.array_equal(np.asarray(picture)[~hole], np.asarray(image)[~hole])
    both = list(zip(trained.shown, plain.shown, strict=True))
    assert len(both) == 2 * 2 * 2, "two shares, two seeds, two batches"
    for one, other in both:
        assert one["prompts"] == other["prompts"] and one["seeds"] == other["seeds"] and one["steps"] == 7
        assert torch.equal(one["image"], other["image"])
        for picture, hole in zip(one["image"], one["mask"][:, 0].bool(), strict=True):
            mean = picture[:, ~hole].mean(1, keepdim=True)
            torch.testing.assert_close(picture[:, hole], mean.expand(3, int(hole.sum())))
        whole = other["mask"].unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)  # (B, 1, 4, 4, 16)
        assert torch.equal(whole.amin(-1), whole.amax(-1)), "each place of the latent is masked or is not"
        touched = one["mask"].unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).amax(-1)
        assert torch.equal(whole.amax(-1), touched)
    hidden = [float(one["mask"].mean()) for one, _ in both[:2]]
    assert all(0.4 <= share <= 0.5 for share in hidden), "the hard masks come first"


def test_means_and_margins_over_seeds() -> None:
    values = {"mean fill": [(10.0, 0.5), (14.0, 0.7)], "other": [(7.0, 0.6), (8.0, 0.9)]}
    cells = [
        {"row": row, "share": "all", "seed": seed, "hidden": 0.3, "frechet": values[row][seed][0], "psnr": 9.0}
        | {"ssim": values[row][seed][1]}
        for row in values
        for seed in (0, 1)
    ]
    first, other = means_and_margins(cells, list(values), 2)
    assert other["frechet"] == {"value": 7.5, "error": pytest.approx(0.5), "count": 2}
    assert other["frechet_margin"] == {"value": -4.5, "error": pytest.approx(1.5), "count": 2}
    assert other["ssim_margin"]["value"] == pytest.approx(0.15)
    assert other["ssim_margin"]["error"] == pytest.approx(np.std([0.1, 0.2], ddof=1) / math.sqrt(2))
    assert first["frechet_margin"]["value"] == first["psnr_margin"]["error"] == 0 and "perceptual" not in first


def test_written_files_and_resuming(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    model = ToyModel()
    results = run([("runs/it", model)], toy_data, tmp_path, judge, perceptual=Largest(), sheet=3)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert [(line["row"], line["share"]) for line in results["rows"][::2]] == [
        ("mean fill", "40-50 %"),
        ("harmonic fill", "40-50 %"),
        ("runs/it", "40-50 %"),
    ]
    assert all(0.4 <= line["hidden"] <= 0.5 for line in results["rows"][::2])
    assert results["models"]["runs/it"]["how"] == "trained to repaint" and results["perceptual"] == Largest.name
    by = {(cell["row"], cell["share"], cell["seed"]): cell["psnr"] for cell in results["cells"]}
    assert by["harmonic fill", "all", 0] != by["harmonic fill", "all", 1], "each seed has its masks"
    text = (tmp_path / "results.md").read_text()
    assert all(
        word in text
        for word in ("runs/it", "40-50 %: Fréchet", "all: perceptual", "PSNR", "What is added to mean fill")
    )
    sheet = Image.open(tmp_path / "inpainting.png")
    assert sheet.mode == "P" and sheet.height > 5 * 96

    count = len(model.shown)
    again = run([("runs/it", model)], toy_data, tmp_path, judge, perceptual=Largest(), sheet=3)
    assert again == results and len(model.shown) == count, "nothing is generated twice"
    more = run(
        [("runs/it", model), ("b", ToyModel(grey=0.9))], toy_data, tmp_path, judge, perceptual=Largest(), seeds=3
    )
    assert len(model.shown) == count * 3 // 2, "but the third seed's"
    assert {cell["row"] for cell in more["cells"]} == {"mean fill", "harmonic fill", "runs/it", "b"}
    with pytest.raises(UserError, match="holds results with other settings"):
        run([("runs/it", model)], toy_data, tmp_path, judge, perceptual=Largest(), images=4)
    with pytest.raises(UserError, match="holds results with other models"):
        run([("runs/it", ToyModel(grey=0.5))], toy_data, tmp_path, judge, perceptual=Largest())
    (tmp_path / "results.json").write_text('{"sweep": 1}')
    with pytest.raises(UserError, match="results of something else"):
        run([("runs/it", model)], toy_data, tmp_path, judge, perceptual=Largest())


@pytest.mark.parametrize(
    ("models", "options", "says"),
    [
        ([("a", nn.Identity())], {}, "a cannot inpaint"),
        ([("a", ToyModel(repaints=None))], {}, "a cannot inpaint"),
        ([("a", ToyModel()), ("a", ToyModel())], {}, "two rows have one name"),
        ([("mean fill", ToyModel())], {}, "two rows have one name"),
        ([("a", ToyModel()), ("b", ToyModel(size=32))], {}, "must be of one size"),
        ([("a", ToyModel())], {"seeds": 1}, "seeds must be at least 2"),
        ([("a", ToyModel())], {"images": 1}, "two images or more"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    judge: Judge, toy_data: Path, tmp_path: Path, models: list, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        run(models, toy_data, tmp_path / "out", judge, **options)
    assert not (tmp_path / "out").exists()
