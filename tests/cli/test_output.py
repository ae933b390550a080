"""The command line over real models: tiny cascades with options for each stage, assemble, info, demo."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.cli import main as cli
from diptych.evaluation.prompt_sets import PromptGroup
from diptych.evaluation.runner import generate_group, model_fingerprint
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.efficient_unet import EfficientUNetConfig
from diptych.pretrained import load as opening
from tests.cli.test_cli import one_line
from tests.models.latents import system
from tests.networks.reference import randomised

SIZES = (8, 16, 32)


def tiny(low_size: int | None, size: int) -> PixelDiffusion:
    """A stage without words and with random weights in every layer."""
    network = EfficientUNetConfig(
        concat_channels=3 if low_size else 0,
        channels=8,
        multipliers=(1, 1),
        blocks=(1, 1),
        self_attention_levels=(),
        cross_attention_levels=(),
        augmented=low_size is not None,
        norm_groups=4,
    )
    stage = PixelDiffusion(PixelDiffusionConfig(network=network, size=size, low_size=low_size, steps=2, sampler="ddim"))
    randomised(stage.network, seed=size)
    return stage


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Run folders of three stages, 8 -> 16 -> 32."""
    folder = tmp_path_factory.mktemp("runs")
    for low_size, size in zip((None, *SIZES), SIZES, strict=False):
        tiny(low_size, size).save(folder / f"{size}" / "model")
    return [str(folder / f"{size}") for size in SIZES]


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latent")
    system().save(folder)
    return folder


@pytest.fixture(scope="module")
def cascade(runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("assembled") / "tiny"
    assert cli.main(["assemble", *runs, "--out", str(folder)]) == 0
    return str(folder)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def generate(model: str, *options: str) -> Path:
    """Generate one image and return the newest file of that name."""
    assert cli.main(["generate", "a cat", "--model", model, *options]) == 0
    return max(Path("out").glob("a-cat-s0*.png"), key=lambda path: path.stat().st_mtime_ns)


def metadata_of(path: Path | str) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.text["diptych"])  # type: ignore[attr-defined]


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# generate


def test_keep_stages_writes_every_stage(cascade: str, capsys) -> None:
    Path("out").mkdir()
    Path("out/a-cat-s0.png").write_text("mine")
    assert cli.main(["generate", "a cat", "--model", cascade, "--count", "2", "--keep-stages"]) == 0
    paths = capsys.readouterr().out.split()
    names = ("a-cat-s0-2", "a-cat-s1")
    assert paths == [f"out/{name}{end}.png" for name in names for end in ("", "-stage-8", "-stage-16")]
    kept = diptych.load(cascade).generate(["a cat"] * 2, seeds=[0, 1], keep_stages=True)  # type: ignore[call-arg]
    for place, images in enumerate(zip(*kept.stages, strict=True)):
        final, *earlier = paths[3 * place : 3 * place + 3]
        for path, image in zip([*earlier, final], images, strict=True):
            assert np.array_equal(pixels(path), np.asarray(image))
            assert metadata_of(path)["size"] == list(image.size)
            assert (metadata_of(path)["seed"], metadata_of(path)["model"]["source"]) == (place, cascade)
    assert [stage["stage"] for stage in metadata_of(paths[0])["stages"]] == ["8", "8-16", "16-32"]
    assert [stage["stage"] for stage in metadata_of(paths[2])["stages"]] == ["8", "8-16"]


@pytest.mark.parametrize(
    ("options", "key", "values"),
    [
        (["--steps", "3"], "steps", [3, 3, 3]),
        (["--steps", "3,1,4"], "steps", [3, 1, 4]),
        (["--steps", ",1,"], "steps", [2, 1, 2]),
        (["--steps", "-,1,-"], "steps", [2, 1, 2]),
        (["--steps=-, 1,-"], "steps", [2, 1, 2]),
        (["--sampler", "euler,-,heun"], "sampler", ["euler", "ddim", "heun"]),
        (["--threshold", "dynamic:0.9:1.5"], "threshold", ["dynamic:0.9:1.5"] * 3),
        (["--threshold", "none,static,"], "threshold", ["none", "static", "dynamic:0.95"]),
        (["--augmentation", ",0.25,0"], "augmentation", [None, 0.25, 0]),
        (["--stop", "2", "--steps", "3,1"], "steps", [3, 1]),
    ],
)
def test_one_value_per_stage(cascade: str, options: list[str], key: str, values: list[Any]) -> None:
    stages = metadata_of(generate(cascade, *options))["stages"]
    assert [stage.get(key) for stage in stages] == values


def test_stop_after_a_stage(cascade: str) -> None:
    assert cli.main(["generate", "a cat", "--model", cascade, "--keep-stages", "--out", "all"]) == 0
    for number, size in enumerate(SIZES, 1):
        path = generate(cascade, "--stop", str(number))
        assert pixels(path).shape == (size, size, 3)
        name = "a-cat-s0" + (f"-stage-{size}" if number < 3 else "")
        assert np.array_equal(pixels(path), pixels(f"all/{name}.png"))


def test_low_res_and_start(cascade: str, runs: list[str]) -> None:
    Image.new("RGB", (16, 16), (200, 40, 40)).save("mine.png")
    path = generate(cascade, "--low", "mine.png", "--start", "2")
    assert [stage["stage"] for stage in metadata_of(path)["stages"]] == ["16-32"]
    alone = generate(runs[2], "--low", "mine.png")  # the same stage, without a cascade
    assert np.array_equal(pixels(path), pixels(alone)) and path != alone
    path = generate(cascade, "--low", "mine.png")
    assert [stage["stage"] for stage in metadata_of(path)["stages"]] == ["8-16", "16-32"]


def test_one_at_a_time_gives_the_same_image(cascade: str) -> None:
    together, alone = generate(cascade), generate(cascade, "--one-at-a-time")
    assert together != alone
    assert np.array_equal(pixels(together), pixels(alone))


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("latent", ["--threshold", "static"], "--threshold is for pixel models"),
        ("latent", ["--augmentation", "0.1"], "--augmentation is for pixel models that enlarge images"),
        ("latent", ["--low-res", "mine.png"], "--low-res is for models that enlarge images"),
        ("latent", ["--start", "1"], "--start is for cascades"),
        ("latent", ["--stop", "1"], "--stop is for cascades"),
        ("latent", ["--keep-stages"], "--keep-stages is for cascades"),
        ("latent", ["--one-at-a-time"], "--one-at-a-time is for cascades"),
        ("latent", ["--steps", "3,2"], "--steps has a value for each stage"),
        ("stage", ["--guidance", "3,2,1"], "--guidance has a value for each stage"),
        ("stage", ["--stop", "1"], "--stop is for cascades"),
        ("stage", ["--low-res", "mine.png"], "--low-res is for models that enlarge images"),
        ("stage", ["--augmentation", "0.1"], "--augmentation is for pixel models that enlarge images"),
        ("cascade", ["--steps", "3,2"], "steps: give one value for all stages"),
        ("cascade", ["--steps", "3,x,2"], "argument --steps: must be a whole number, not 'x'"),
        ("cascade", ["--steps", "3,0,2"], "argument --steps: must be at least 1, not 0"),
        ("cascade", ["--sampler", "ddim,dimm,"], "unknown sampler 'dimm'"),
        ("cascade", ["--threshold", "sometimes"], "unknown threshold 'sometimes'"),
        ("cascade", ["--threshold", "dynamic:much"], "cannot read the threshold"),
        ("cascade", ["--threshold", "dynamic:0.9:2:3"], "cannot read the threshold"),
        ("cascade", ["--augmentation", "2"], "augmentation-level: must lie between 0 and 1, not 2"),
        ("cascade", ["--stop", "4"], "stop must be a number of stages, 1 to 3, not 4"),
        ("cascade", ["--start", "2"], "low-resolution image"),
        (
            "cascade",
            ["--low", "mine.png", "--start", "3"],
            "start must be the number of a stage that enlarges, 1 to 2, not 3",
        ),
        (
            "cascade",
            ["--low", "mine.png", "--start", "0"],
            "start must be the number of a stage that enlarges, 1 to 2, not 0",
        ),
        ("cascade", ["--low", "nothing.png"], "nothing.png is no file"),
        ("cascade", ["--low", "words.txt"], "not a PNG, JPEG or WebP image"),
    ],
)
def test_refused_options(
    cascade: str, runs: list[str], latent: Path, capsys, model: str, options: list[str], says: str
) -> None:
    Image.new("RGB", (16, 16), "red").save("mine.png")
    Path("words.txt").write_text("no picture")
    source = {"latent": str(latent), "stage": runs[0], "cascade": cascade}[model]
    assert re.search(says, one_line(capsys, "generate", "a cat", "--model", source, *options))
    assert not list(Path().rglob("*-s0*.png"))


# assemble, info, evaluate


def test_assemble_and_info(runs: list[str], capsys) -> None:
    assert cli.main(["assemble", *runs[:2], "--out", "here"]) == 0
    shown = capsys.readouterr().out
    networks: list[Any] = [diptych.load(run).network for run in runs]  # type: ignore[union-attr]
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert "stage 8-16" in shown and f"{sum(counts[:2]):,}" in shown
    assert cli.main(["assemble", *runs, "--out", "here"]) == 0  # an older cascade may be replaced
    capsys.readouterr()
    assert cli.main(["info", "here", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["networks"] == dict(zip(("stage 8", "stage 8-16", "stage 16-32"), counts, strict=True))
    assert described["total"] == sum(counts)
    assert [stage["size"] for stage in described["config"]["stages"]] == list(SIZES)


def test_info_counts_a_shared_text_encoder_once(tmp_path: Path) -> None:
    from diptych.cli.describe import describe
    from diptych.encoders.configs import MiniLMConfig
    from diptych.models.cascade import CascadeConfig

    names = []
    for low_size, size in ((None, 8), (8, 16)):
        values = tiny(low_size, size).config.to_dict()
        values |= {"text": MiniLMConfig().to_dict(), "network": {**values["network"], "pooled_width": 384}}
        config = PixelDiffusionConfig.from_dict(values)
        names.append(f"stage-{config.name}")
        (tmp_path / "c" / names[-1]).mkdir(parents=True)
        (tmp_path / "c" / names[-1] / "config.json").write_text(config.to_json())
    (tmp_path / "c" / "config.json").write_text(CascadeConfig(stages=tuple(names)).to_json())
    networks = describe(tmp_path / "c")["networks"]
    with torch.device("meta"):
        text = sum(p.numel() for p in MiniLMConfig().build_network().parameters())
    assert list(networks) == ["stage 8", "stage 8-16", "text"] and networks["text"] == text


def test_assemble_refusals(runs: list[str], latent: Path, capsys) -> None:
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("keep me")
    untrained = tiny(8, 16)
    for parameter in untrained.network.get_submodule("conv_out").parameters():
        torch.nn.init.zeros_(parameter)
    untrained.save(Path("new"))
    for stages, out, says in (
        ([runs[0], runs[2]], "c", "stage 16-32 cannot follow stage 8"),
        ([runs[0], "nowhere"], "c", "no model at nowhere"),
        ([runs[0], str(latent)], "c", "holds a model of kind 'latent', not a stage"),
        ([runs[0], "new"], "c", "was never trained"),
        (runs, "notes", "notes is there already and is not a cascade"),
        (runs, "notes/mine.txt", "mine.txt is a file, not a cascade"),
        (runs, str(latent), "is not a cascade"),
        (runs, f"{runs[1]}/model", "lies in the stage"),
        (runs, f"{runs[1]}/model/deep/down", "lies in the stage"),
    ):
        assert re.search(says, one_line(capsys, "assemble", *stages, "--out", out))
    assert Path("notes/mine.txt").read_text() == "keep me"
    assert not Path("c").exists()
    assert all(diptych.load(run) for run in runs)


def test_evaluate_with_stop(cascade: str, latent: Path, capsys, monkeypatch) -> None:
    from diptych.evaluation.benchmarks import prompts as study

    calls = []
    monkeypatch.setattr(study, "evaluate", lambda *arguments, **settings: calls.append(settings))
    places = ["--data", str(latent), "--out", "o", "--stop", "2"]
    assert cli.main(["evaluate", "--model", cascade, *places, "--steps", "3,2"]) == 0
    assert calls == [{"name": cascade, "stop": 2, "steps": [3, 2]}]
    assert "--stop is for cascades" in one_line(capsys, "evaluate", "--model", str(latent), *places)
    group = PromptGroup("seen", [0, 1, 2], [{"captions": ["a cat"]}] * 3, seeds=[0, 1, 2])
    used = generate_group(diptych.load(cascade), group, 2, stop=2, steps=[3, 2], guidance=None)
    assert [image.size for image in group.generated] == [(16, 16)] * 3
    assert used["size"] == [16, 16] and [stage["steps"] for stage in used["stages"]] == [3, 2]


def test_cascade_fingerprint_covers_every_stage(cascade: str) -> None:
    model = diptych.load(cascade)
    before = model_fingerprint(model)
    assert before == model_fingerprint(diptych.load(cascade)) is not None
    with torch.no_grad():
        model.networks[2].conv_out.weight[0, 0, 0, 0] += 1  # type: ignore[union-attr]
    assert model_fingerprint(model) != before


# demo


@pytest.fixture
def panels(cascade: str, latent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Tiny models in the place of those in the package."""
    embedded = {"latent": latent, "cascade": Path(cascade)}
    monkeypatch.setattr(opening, "EMBEDDED", embedded)
    return embedded


def test_demo_sheet(panels: dict[str, Path], capsys) -> None:
    assert cli.main(["demo", "a cat", "--seed", "5", "--count", "2"]) == 0
    *paths, sheet = capsys.readouterr().out.split()
    assert paths == [f"out/a-cat-s{seed}-{panel}.png" for panel in ("latent", "cascade") for seed in (5, 6)]
    assert sheet == "out/both-panels.png"
    for path in paths:
        panel = path.removesuffix(".png").rpartition("-")[2]
        own = diptych.load(panel).generate("a cat", seeds=[metadata_of(path)["seed"]]).images[0]
        assert np.abs(pixels(path).astype(int) - np.asarray(own).astype(int)).max() <= 1
        assert metadata_of(path)["model"]["source"] == panel
    shown = pixels(sheet)
    assert shown.shape[1] > 4 * 256  # two images for each of two seeds
    corner = np.repeat(np.repeat(pixels(paths[0]), 16, 0), 16, 1)  # the latent's, 16 px, first of all
    rows, columns = np.where((shown != 255).any(-1))
    top, left = rows.min() + 3, columns.min() + 3  # within its border
    assert np.array_equal(shown[top : top + 256, left : left + 256], corner)


def test_demo_with_a_missing_model(panels: dict[str, Path], capsys) -> None:
    panels["cascade"] = Path("nothing")
    assert cli.main(["demo", "a cat"]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == ["out/a-cat-s0-latent.png"]
    assert "this package has no cascade model" in printed.err and "make default-cascade" in printed.err
    panels["latent"] = Path("nothing")
    assert cli.main(["demo", "a cat"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_demo_with_a_damaged_model(panels: dict[str, Path], capsys) -> None:
    panels["latent"] = Path("broken")
    Path("broken").mkdir()
    Path("broken/config.json").write_text("{")
    assert "not readable JSON" in one_line(capsys, "demo", "a cat")


def test_missing_default_cascade(panels: dict[str, Path], capsys) -> None:
    assert cli.main(["generate", "a cat", "--model", "cascade"]) == 0
    panels["cascade"] = Path("nothing")
    capsys.readouterr()
    assert "make it with `make default-cascade`" in one_line(capsys, "generate", "a cat", "--model", "cascade")
