"""Sweeps: the table shows what really differs, the plot and the sheet can be read, and a rerun goes on."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from diptych.conditioning.lowres_augmentation import AugmentationConfig
from diptych.core.errors import UserError
from diptych.core.image_files import square
from diptych.evaluation import plots
from diptych.evaluation.benchmarks.sweep import sweep_augmentation, sweep_guidance
from diptych.metrics.pixel_measures import image_psnr
from diptych.models.cascade import Cascade
from diptych.models.judge import Judge
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.efficient_unet import EfficientUNetConfig
from tests.evaluation import toys

pytestmark = pytest.mark.usefixtures("no_plot")
KNOWN = {meta["captions"][1]: image for _, image, meta in toys.examples() if meta["kind"] == "single"}


@pytest.fixture
def no_plot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest of a sweep: only tests that ask for `with_plot` do it."""
    if "with_plot" not in request.fixturenames:
        monkeypatch.setattr(plots, "plot", lambda results, path: None)


@pytest.fixture
def with_plot() -> None:
    pass


class Fading:
    """Perfect at weight 1. Above, noise grows with the weight: clipped noise, or under a dynamic threshold a tenth."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.left = fail_after

    def generate(self, prompts, *, seeds, guidance, threshold="none", steps=None) -> SimpleNamespace:
        if self.left is not None:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        self.calls.append({"prompts": prompts, "seeds": seeds, "guidance": guidance, "threshold": threshold})
        strength = 8 * (guidance - 1) * (0.1 if threshold.startswith("dynamic") else 1)
        images = [noisy(KNOWN[prompt], seed, strength) for prompt, seed in zip(prompts, seeds, strict=True)]
        return SimpleNamespace(images=images, metadata=[{"prompt": p, "guidance": guidance} for p in prompts])


class Latent(Fading):
    """No threshold to choose."""

    def generate(self, prompts, *, seeds, guidance, steps=None) -> SimpleNamespace:  # type: ignore[override]
        return super().generate(prompts, seeds=seeds, guidance=guidance)


def noisy(image: Image.Image, seed: int, strength: float) -> Image.Image:
    values = np.asarray(image, float) + strength * np.random.default_rng(seed).standard_normal((16, 16, 3))
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def guide(model, data: Path, out: Path, judge: Judge, **options) -> dict[str, Any]:
    console = Console(file=io.StringIO(), width=160)
    return sweep_guidance(model, data, out, **{"judge": judge, "images": 20, "console": console, **options})


def by_key(results: dict[str, Any], *keys: str) -> dict[tuple, dict[str, Any]]:
    return {tuple(cell[key] for key in keys): cell for cell in results["cells"]}


def test_scores_of_guidance_and_thresholds(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    model = Fading()
    results = guide(model, toy_data, tmp_path, judge, guidances=(30, 1, 7), thresholds=("none", "dynamic"), batch=8)
    cells = by_key(results, "threshold", "guidance")
    assert list(cells) == [(bound, weight) for bound in ("none", "dynamic:0.95") for weight in (1, 7, 30)]
    for bound in ("none", "dynamic:0.95"):
        line = [cells[bound, weight] for weight in (1, 7, 30)]
        assert [cell["frechet"] for cell in line] == sorted(cell["frechet"] for cell in line)
        assert line[0]["frechet"] == pytest.approx(0, abs=1e-3)
    assert cells["none", 30]["alignment"]["value"] < cells["dynamic:0.95", 30]["alignment"]["value"] - 0.1
    assert cells["none", 30]["top1"]["value"] < cells["dynamic:0.95", 30]["top1"]["value"]
    assert cells["none", 30]["frechet"] > 2 * cells["dynamic:0.95", 30]["frechet"]
    # The perfect model is measured as the real images are.
    real = results["references"]["real"]
    for measure in ("alignment", "top1", "top5", "saturated"):
        assert cells["none", 1][measure] == real[measure]
    # The same prompts from the same seeds in every cell, in batches.
    generated: dict[tuple, list] = {}
    for call in model.calls:
        assert len(call["prompts"]) <= 8
        pairs = list(zip(call["prompts"], call["seeds"], strict=True))
        generated.setdefault((call["threshold"], call["guidance"]), []).extend(pairs)
    assert len(generated) == 6
    assert all(pairs == generated["none", 1] for pairs in generated.values())
    assert sorted(seed for _, seed in generated["none", 1]) == list(range(20))


def test_written_files_of_a_sweep(with_plot, judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160)
    options = {"guidances": (1, 4), "thresholds": ("none", "static"), "sheet": 3, "name": "toy", "console": console}
    results = guide(Fading(), toy_data, tmp_path, judge, **options)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["judge"]["fingerprint"] == judge.fingerprint()
    assert results["settings"] == {"pictures": 20, "seed": 0, "steps": None, "stop": None}
    assert results["cells"][0]["told"] == {"guidance": 1.0}
    table = (tmp_path / "results.md").read_text()
    assert table in console.file.getvalue()  # type: ignore[attr-defined]
    for cell in results["cells"]:
        (line,) = [
            one for one in table.splitlines() if one.split()[1:4:2] == [cell["threshold"], f"{cell['guidance']:g}"]
        ]
        assert f"{cell['alignment']['value']:.3f}±" in line and f" {cell['frechet']:.2f} " in line
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width > 800 and len(plot.convert("RGB").getcolors(1 << 24) or ()) > 50
    for bound in ("none", "static"):
        with Image.open(tmp_path / "cells" / f"{bound}-guidance-4.0.png") as strip:
            assert strip.size == (48, 16)
    # The sheet: two rows of weights and one of real images, twice three prompts; at weight 1 they are the real ones.
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(tmp_path / "cells" / "real.png") as real:
        first = real.crop((0, 0, 16, 16)).resize((96, 96), Image.Resampling.NEAREST)
        for left, top in ((90, 32), (90 + 3 * 100 + 16, 32), (90, 32 + 2 * 100)):
            assert sheet.crop((left, top, left + 96, top + 96)).tobytes() == first.tobytes()
        assert sheet.crop((90, 132, 186, 228)).tobytes() != first.tobytes()


def test_points_of_the_plot_are_labelled(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    results = guide(Fading(), toy_data, tmp_path, judge, guidances=(1, 4, 30), thresholds=("none", "dynamic"))
    trade, ends = plots.plot_guidance(results).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in trade.lines}  # type: ignore[union-attr]
    assert list(drawn) == ["none", "dynamic:0.95"]
    for bound, points in drawn.items():
        cells = [cell for cell in results["cells"] if cell["threshold"] == bound]
        assert points == [[cell["alignment"]["value"], cell["frechet"]] for cell in cells]
    assert [text.get_text() for text in trade.texts] == ["1", "4", "30"] * 2
    assert len({line.get_marker() for line in trade.lines}) == len({line.get_color() for line in trade.lines}) == 2
    assert [tick.get_text() for tick in ends.get_xticklabels()] == ["1", "4", "30"]
    real = next(line for line in ends.lines if line.get_label() == "real images")
    assert real.get_ydata()[0] == 100 * results["references"]["real"]["saturated"]  # type: ignore[index]


def test_a_sweep_resumes(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"guidances": (1, 4), "thresholds": ("none", "static"), "batch": 10}
    with pytest.raises(KeyboardInterrupt):
        guide(Fading(fail_after=5), toy_data, tmp_path / "a", judge, **options)  # in the middle of the third cell
    assert len(json.loads((tmp_path / "a" / "results.json").read_text())["cells"]) == 2
    model = Fading()
    results = guide(model, toy_data, tmp_path / "a", judge, **options)
    assert len(model.calls) == 4  # two cells of two batches
    whole = guide(Fading(), toy_data, tmp_path / "b", judge, **options)
    assert results == whole
    assert (tmp_path / "a" / "sheet.png").read_bytes() == (tmp_path / "b" / "sheet.png").read_bytes()
    # More cells into the same folder: only those are generated, and the table holds all.
    model = Fading()
    more = guide(model, toy_data, tmp_path / "a", judge, guidances=(2,), thresholds=("none",), batch=10)
    assert {call["guidance"] for call in model.calls} == {2}
    assert [(cell["threshold"], cell["guidance"]) for cell in more["cells"]] == [
        ("none", 1), ("none", 2), ("none", 4), ("static", 1), ("static", 4),
    ]  # fmt: skip
    # A cell whose images were lost is generated again.
    (tmp_path / "a" / "cells" / "none-guidance-2.0.png").unlink()
    model = Fading()
    assert guide(model, toy_data, tmp_path / "a", judge, guidances=(1, 2), thresholds=("none",)) == more
    assert {call["guidance"] for call in model.calls} == {2}


def test_a_folder_with_another_sweep_is_refused(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"guidances": (1,), "thresholds": ("none",)}
    guide(Fading(), toy_data, tmp_path, judge, **options)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(UserError, match="pictures 20, not 10"):
        guide(Fading(), toy_data, tmp_path, judge, images=10, **options)
    with pytest.raises(UserError, match="seed 0, not 3"):
        guide(Fading(), toy_data, tmp_path, judge, seed=3, **options)
    with pytest.raises(UserError, match="steps None, not 5"):
        guide(Fading(), toy_data, tmp_path, judge, steps=5, **options)
    other = Fading()
    other.networks = [torch.nn.Linear(1, 1)]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="other model"):
        guide(other, toy_data, tmp_path, judge, **options)
    assert (tmp_path / "results.json").read_bytes() == before
    (tmp_path / "results.json").write_text('{"groups": {}}')
    with pytest.raises(UserError, match="something else"):
        guide(Fading(), toy_data, tmp_path, judge, **options)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match="not readable"):
        guide(Fading(), toy_data, tmp_path, judge, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guidances": ()}, "guidances is empty"),
        ({"guidances": (1, float("nan"))}, "guidances must be a finite number"),
        ({"guidances": ("7",)}, "guidances must be a finite number"),
        ({"thresholds": ()}, "thresholds is empty"),
        ({"thresholds": ("none", "loud")}, "loud"),
        ({"images": 1}, "images must be at least 2"),
        ({"stop": 1}, "stop is for cascades"),
    ],
)
def test_wrong_guidance_values_are_refused(judge: Judge, toy_data: Path, tmp_path: Path, options, words: str) -> None:
    with pytest.raises(UserError, match=words):
        guide(Fading(), toy_data, tmp_path, judge, **options)
    assert not list(tmp_path.iterdir())


def test_latents_have_no_threshold(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="latents"):
        guide(Latent(), toy_data, tmp_path, judge)
    results = guide(Latent(), toy_data, tmp_path, judge, guidances=(1, 30), thresholds=("none",))
    assert results["cells"][0]["frechet"] < results["cells"][1]["frechet"]
    with pytest.raises(UserError, match="super-resolution"):
        sweep_augmentation(Latent(), toy_data, tmp_path / "b", judge=judge)


def test_without_matplotlib_nothing_is_generated(judge: Judge, toy_data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model = Fading()
    with pytest.raises(UserError, match="make install"):
        guide(model, toy_data, tmp_path, judge)
    assert not model.calls


# A real cascade, 8 -> 16, of tiny stages that were not trained to anything.


def stage(size: int, low_size: int | None) -> PixelDiffusion:
    config = PixelDiffusionConfig(
        network=EfficientUNetConfig(
            concat_channels=3 if low_size else 0,
            channels=8,
            multipliers=(1,),
            blocks=(1,),
            self_attention_levels=(),
            cross_attention_levels=(),
            augmented=bool(low_size),
            norm_groups=4,
        ),
        size=size,
        low_size=low_size,
        augmentation=AugmentationConfig(level=0.2),
        steps=2,
        sampler="ddim",
    )
    torch.manual_seed(size)
    made = PixelDiffusion(config).eval()
    torch.nn.init.normal_(made.network.conv_out.weight, std=0.05)
    return made


class Watched:
    """A cascade that records its requests."""

    def __init__(self, *stages: PixelDiffusion) -> None:
        self.inner, self.requests = Cascade.of(stages), []
        self.configs, self.networks = self.inner.configs, self.inner.networks
        self.stage_sizes = self.inner.stage_sizes

    def generate(self, prompts, **options):
        self.requests.append(options)
        return self.inner.generate(prompts, **options)


@pytest.fixture
def cascade() -> Watched:
    return Watched(stage(8, None), stage(16, 8))


def augment(model, data: Path, out: Path, judge: Judge, **options) -> dict[str, Any]:
    console = Console(file=io.StringIO(), width=160)
    return sweep_augmentation(model, data, out, **{"judge": judge, "images": 4, "console": console, **options})


def test_augmentation_levels_share_low_resolution_images(
    cascade: Watched, judge: Judge, toy_data: Path, tmp_path: Path
) -> None:
    results = augment(cascade, toy_data, tmp_path, judge, levels=(0, 0.2, 0.9), batch=4)
    first, *rest = cascade.requests
    assert first["stop"] == 1 and "augmentation" not in first
    assert [one["augmentation"] for one in rest] == [[0.0], [0.2], [0.9]]
    shown = [[image.tobytes() for image in one["low"]] for one in rest]
    assert shown[0] == shown[1] == shown[2]
    assert len({tuple(one["seeds"]) for one in cascade.requests}) == 1
    # At the stages' own level the sweep generates what the cascade generates in one call.
    whole = cascade.inner.generate("a", seeds=[first["seeds"][0]])
    with Image.open(tmp_path / "cells" / "level-0.2.png") as strip:
        assert strip.crop((0, 0, 16, 16)).tobytes() == whole.images[0].tobytes()
    scores = [json.dumps(cell["alignment"]) for cell in results["cells"]]
    assert len(set(scores)) == 3  # the level matters
    assert "psnr" not in results["cells"][0] and results["references"]["bicubic"]["pictures"] == 4
    # All done: nothing is generated again, not even the base.
    expected = len(cascade.requests)
    assert augment(cascade, toy_data, tmp_path, judge, levels=(0, 0.9)) == results
    assert len(cascade.requests) == expected


def test_augmentation_sweep_on_real_images(
    with_plot, cascade: Watched, judge: Judge, toy_data: Path, tmp_path: Path
) -> None:
    results = augment(cascade, toy_data, tmp_path, judge, levels=(0, 0.5), truth=True, sheet=4)
    assert [one["augmentation"] for one in cascade.requests] == [[0.0], [0.5]]
    with Image.open(tmp_path / "cells" / "real.png") as strip:
        real = [strip.crop((x, 0, x + 16, 16)) for x in (0, 16, 32, 48)]
    assert [p.tobytes() for p in cascade.requests[0]["low"]] == [square(p, 8).tobytes() for p in real]
    with Image.open(tmp_path / "cells" / "level-0.5.png") as strip:
        generated = [strip.crop((x, 0, x + 16, 16)) for x in (0, 16, 32, 48)]
    ratios = [image_psnr(one, other) for one, other in zip(generated, real, strict=True)]
    assert results["cells"][1]["psnr"]["value"] == pytest.approx(np.mean(ratios))
    assert results["references"]["bicubic"]["psnr"]["value"] > results["cells"][1]["psnr"]["value"]  # untrained
    assert "PSNR" in (tmp_path / "results.md").read_text()
    assert Image.open(tmp_path / "plot.png").width > 1200  # three panels


def test_augmentation_sweep_of_a_single_stage_needs_truth(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    one = stage(16, 8)
    with pytest.raises(UserError, match="truth"):
        augment(one, toy_data, tmp_path / "a", judge)
    assert "psnr" in augment(one, toy_data, tmp_path / "a", judge, levels=(0.1,), truth=True)["cells"][0]
    with pytest.raises(UserError, match="super-resolution"):
        augment(stage(8, None), toy_data, tmp_path / "b", judge)
    # Guidance too: of a stage that enlarges, on real images made small.
    guided = guide(one, toy_data, tmp_path / "c", judge, images=4, guidances=(1,), thresholds=("static",))
    assert "psnr" in guided["cells"][0]


def test_augmentation_sweep_of_one_stage_of_several(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    model = Watched(stage(8, None), stage(16, 8), stage(32, 16))
    augment(model, toy_data, tmp_path / "all", judge, levels=(0.3,), batch=4)
    assert [(one.get("start"), one.get("stop"), one.get("augmentation")) for one in model.requests] == [
        (None, 1, None), (1, None, [0.3, 0.3]),
    ]  # fmt: skip
    for number, expected in ((1, [0.3, None]), (2, [0.3])):
        model.requests.clear()
        augment(model, toy_data, tmp_path / str(number), judge, levels=(0.3,), batch=4, stage=number)
        assert model.requests[0]["stop"] == number
        assert (model.requests[1]["start"], model.requests[1]["augmentation"]) == (number, expected)
    for steps, stop, expected in ([3, 1, 2], None, [[3], [1, 2]]), ([3, 1], 2, [[3], [1]]), (2, None, [2, 2]):
        model.requests.clear()
        out = tmp_path / f"{steps} {stop}"
        augment(model, toy_data, out, judge, levels=(0.3,), batch=4, steps=steps, stop=stop)
        assert [one["steps"] for one in model.requests] == expected
    model.requests.clear()
    guide(model, toy_data, tmp_path / "base", judge, images=4, guidances=(3,), thresholds=("static",), stop=1)
    guide(model, toy_data, tmp_path / "g", judge, images=4, guidances=(3,), thresholds=("static",))
    assert [(one["guidance"], one["threshold"]) for one in model.requests] == [
        ([3.0], ["static"]), ([3.0, None, None], ["static", None, None]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": (0, 1.5)}, "between 0 and 1, not 1.5"),
        ({"levels": ()}, "levels is empty"),
        ({"stage": 0}, "stage 0 is no super-resolution stage"),
        ({"stop": 1}, "no super-resolution stage runs"),
        ({"stop": 3}, "stop must lie between 1 and 2"),
        ({"steps": [2, 1, 3]}, "steps: give one value for all stages, or a list of 2"),
    ],
)
def test_wrong_augmentation_levels_are_refused(
    cascade: Watched, judge: Judge, toy_data: Path, tmp_path: Path, options, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        augment(cascade, toy_data, tmp_path, judge, **options)
    assert not cascade.requests


def test_truth_needs_data_as_large_as_the_generated_images(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    model = Watched(stage(8, None), stage(32, 8))
    with pytest.raises(UserError, match="have 16 pixels, too few for a reference of 32"):
        augment(model, toy_data, tmp_path, judge, truth=True)
