from __future__ import annotations

import argparse
import errno
import inspect
import json
import os
import resource
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import diptych
from diptych.cli import main as cli
from diptych.cli.arguments import options_given
from diptych.cli.image_list import ImageList
from diptych.cli.output import slug
from diptych.cli.parser import build_parser
from diptych.core.errors import UserError
from diptych.core.version import version
from diptych.models import option_registry
from diptych.models import options as table


@dataclass
class Result:
    images: list[Image.Image]
    metadata: list[dict[str, Any]]


@dataclass
class FakeModel:
    """Its images are grey, by the seed; it keeps the arguments of its calls."""

    asked: list[dict[str, Any]] = field(default_factory=list)

    def generate(
        self, prompts, *, seeds, callback: Any, steps=7, guidance=6.0, sampler="ddim", negative=None
    ) -> Result:
        if sampler not in ("ddim", "euler"):
            raise UserError(f"unknown sampler {sampler!r}: choose one of ddim, euler")
        self.asked.append(
            {"prompts": prompts, "seeds": seeds, "steps": steps, "guidance": guidance, "negative": negative}
        )
        for step in range(steps):
            callback(step, steps, None)
        images = [Image.new("RGB", (8, 8), (seed % 256,) * 3) for seed in seeds]
        common = {"steps": steps, "guidance": guidance, "sampler": sampler}
        metadata = [{"prompt": p, "seed": s, **common} for p, s in zip(prompts, seeds, strict=True)]
        return Result(images, metadata)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    model = FakeModel()

    def load(source: str | None = None, device: str = "auto") -> FakeModel:
        if source not in (None, "run"):
            raise UserError(f"no model at {source}")
        return model

    monkeypatch.setattr(diptych, "load", load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / "config.json").write_text('{"kind": "judge"}')
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "evaluation.json").write_text('{"evaluation": "reconstruction"}')
    return model


def one_line(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on standard error of a command that fails with exit code 2."""
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("diptych: ") and captured.err.endswith("\n")
    assert len(captured.err.splitlines()) == 1
    return captured.err


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "diptych", *argv], capture_output=True, text=True, **options)


# generate


def test_generate_writes_png_with_metadata(model: FakeModel, capsys) -> None:
    assert cli.main(["generate", "A red apple, ü!", "--seed", "5", "--steps", "3", "--guidance", "2"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == Path("out/a-red-apple-ü-s5.png")
    with Image.open(path) as image:
        assert image.getpixel((0, 0)) == (5, 5, 5)
        assert image.text["Software"] == f"diptych {version()}"  # type: ignore[attr-defined]
        parameters = json.loads(image.text["diptych"])  # type: ignore[attr-defined]
    how = {"steps": 3, "guidance": 2.0, "sampler": "ddim"}
    assert parameters == {"diptych": version(), "prompt": "A red apple, ü!", "seed": 5, **how}


def test_generate_leaves_defaults_to_the_model(model: FakeModel) -> None:
    assert cli.main(["generate", "a cat"]) == 0
    assert model.asked == [{"prompts": ["a cat"], "seeds": [0], "steps": 7, "guidance": 6.0, "negative": None}]


@pytest.mark.parametrize(
    ("options", "seeds"),
    [
        ([], [0]),
        (["--seed", "3"], [3]),
        (["--seed", "3,1", "--seed", "2"], [3, 1, 2]),
        (["--count", "3"], [0, 1, 2]),
        (["--seed", "7", "--count", "2"], [7, 8]),
        (["--seed", "1-3,9"], [1, 2, 3, 9]),
    ],
)
def test_generate_each_prompt_with_each_seed(model: FakeModel, capsys, options: list[str], seeds: list[int]) -> None:
    assert cli.main(["generate", "a cat", *options, "--out", "here", "a dog"]) == 0
    assert model.asked[0]["prompts"] == ["a cat"] * len(seeds) + ["a dog"] * len(seeds)
    assert model.asked[0]["seeds"] == seeds * 2
    paths = capsys.readouterr().out.split()
    assert paths == [f"here/{word}-s{seed}.png" for word in ("a-cat", "a-dog") for seed in seeds]
    assert sorted(paths) == sorted(str(path) for path in Path("here").iterdir())


def test_seed_minus_one_is_random_and_in_the_file_name(model: FakeModel, capsys) -> None:
    assert cli.main(["generate", "a cat", "--seed", "-1", "--seed", "-1,-1"]) == 0
    (asked,) = model.asked
    assert len(set(asked["seeds"])) == 3
    assert capsys.readouterr().out.split() == [f"out/a-cat-s{seed}.png" for seed in asked["seeds"]]


def test_image_list_is_lazy() -> None:
    jobs = ImageList(["a", "b"], [range(3, 5), range(9, 10)])
    expected = [(prompt, seed) for prompt in "ab" for seed in (3, 4, 9)]
    assert len(jobs) == 6 and list(jobs) == expected
    assert jobs[1:5] == expected[1:5] and jobs[-1] == expected[-1]
    assert ImageList(["a"], [range(2**62, 2**62 + 10**6)])[999_999] == ("a", 2**62 + 999_999)


def test_errors_before_the_model_is_loaded(model: FakeModel, capsys, monkeypatch) -> None:
    def load(*source, **options) -> None:
        pytest.fail("a model was opened")

    monkeypatch.setattr(diptych, "load", load)
    for options in (
        *(["--sampler", "dimm"], ["--image", "gone.png"], ["--threshold", "x"], ["--lora", "gone"]),
        *(["--clip", "gone:2"], ["--classifier", "./gone"], ["--preview-decoder", "a/gone"]),
        *(["--negative", "caf\udce9"], ["caf\udce9"]),
    ):
        one_line(capsys, "generate", "a cat", *options)
    for study in (["evaluate"], ["evaluate", "layout", "--model", "m"], ["sweep", "guidance"]):
        one_line(capsys, *study, "--data", "gone", "--out", "o")


def test_generate_in_batches(model: FakeModel, capsys) -> None:
    assert cli.main(["generate", "a cat", "--count", "5", "--batch", "2"]) == 0
    assert [asked["seeds"] for asked in model.asked] == [[0, 1], [2, 3], [4]]
    assert len(capsys.readouterr().out.split()) == 5


def test_files_are_never_overwritten(model: FakeModel, capsys) -> None:
    Path("out").mkdir()
    Path("out/a-cat-s0.png").write_text("mine")
    assert cli.main(["generate", "a cat"]) == cli.main(["generate", "A CAT."]) == 0
    assert capsys.readouterr().out.split() == ["out/a-cat-s0-2.png", "out/a-cat-s0-3.png"]
    assert Path("out/a-cat-s0.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A red apple!", "a-red-apple"),
        ("../../etc/passwd", "etc-passwd"),
        ("...", "image"),
        ("苹果 🍎", "苹果"),
        ("x" * 300, "x" * 48),
        ("a\nb\0c", "a-b-c"),
    ],
)
def test_slug(text: str, name: str) -> None:
    assert slug(text) == name


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["generate"], "PROMPT"),
        (["generate", ""], "the prompt is empty"),
        (["generate", "a cat", " \n"], "the prompt is empty"),
        (["generate", "a cat", "--steps", "0"], "argument --steps: must be at least 1, not 0"),
        (["generate", "a cat", "--steps", "ten"], "argument --steps: must be a whole number"),
        (["generate", "a cat", "--guidance", "nan"], "argument --guidance: must be a finite number, not nan"),
        (["generate", "a cat", "--seed", "-2"], "argument --seed"),
        (["generate", "a cat", "--seed", "4-1"], "argument --seed: must be a whole number from 0 to"),
        (["generate", "a cat", "--seed", f"0-{2**63 - 1}"], "ask for at most 1,000,000 at once"),
        (["generate", "a cat", "--seed", str(2**63 - 1), "--count", "2"], "seeds end at 9223372036854775807"),
        (
            ["generate", "a cat", "--count", "100000000000"],
            "--count: must be at most 1000000, not 100000000000",
        ),
        (["demo", "a cat", "--count", "101"], "demo shows at most 100 images"),
        (["generate", "a cat", "--seed", "1,x"], "argument --seed"),
        (["generate", "a cat", "--seed", str(2**63)], "argument --seed"),
        (["generate", "a cat", "--seed", "1,2", "--count", "2"], "--count goes with one --seed"),
        (["generate", "a cat", "--guidance", "-1e9"], "argument --guidance: must lie between -1000 and 1000"),
        (["generate", "a cat", "--guidance", "-inf"], "argument --guidance: must be a finite number, not -inf"),
        (["generate", "a cat", "--negative", "-x"], "begins with a dash is written --negative-prompt=-VALUE"),
        (
            ["generate", "a cat", "--negative", "a", "--negative-prompt", "b"],
            "--negative and --negative-prompt are one option: give one of them",
        ),
        (["generate", "--low", "a", "--low-res", "b"], "--low and --low-res are one option: give one of them"),
        (["generate", "a cat", "--sampler", "dimm"], "unknown sampler 'dimm': choose one of ddim, "),
        (["generate", "a cat", "--sampler", "ddim,,dimm"], "did you mean ddim?"),
        (["generate", "a cat", "--threshold", "dynamik"], "unknown threshold 'dynamik'"),
        (["generate", "a cat", "--steps", "10001"], "argument --steps: must be at most 10000, not 10001"),
        (
            ["generate", "a cat", "--size", "9000x64"],
            "argument --size: must be WIDTHxHEIGHT or one number for both, from 1",
        ),
        (["generate", "a cat", "--image", "gone.png"], "gone.png is no file"),
        (["generate", "a cat", "--image", "d", "--mask", "d"], "d is a folder"),
        (["generate", "a cat", "--low", "gone.png"], "gone.png is no file"),
        (["generate", "a cat", "--lora", "gone.safetensors:0.5"], "there is no file or folder gone.safetensors"),
        (["generate", "a cat", "--model", "nowhere", "--mask", "m.png"], "--mask goes with --image"),  # before loading
        (["generate", "a cat", "--strength", "1.5"], "argument --strength: must be more than 0 and at most 1, not 1.5"),
        (["generate", "a cat", "--sed", "4"], "unrecognized arguments: --sed 4; did you mean --seed?"),
        (["genrate", "a cat"], "unknown command 'genrate': choose one of generate, "),
        (["genrate", "a cat"], "did you mean generate? (see `diptych --help`)"),
        (["info", "sd1", "--jsn"], "did you mean --json? (see `diptych info --help`)"),
        (["evaluate", "--data", "gone", "--out", "o"], "there is no file or folder gone"),
        (["generate", "a cat", "--model", "nowhere"], "no model at nowhere"),
        (["generate", "a cat", "--ste", "5"], "unrecognized arguments: --ste 5"),
        (["generate", "a cat", "--steps", "5,x,-"], "argument --steps: must be a whole number, not 'x'"),
        (["generate", "a cat", "--steps", ""], "argument --steps: must be a whole number"),
        (["generate", "a cat", "--steps", "5,6"], "--steps has a value for each stage, but the model latent is no"),
        (
            ["generate", "a cat", "--augmentation", "much"],
            "argument --augmentation/--augmentation-level: must be a finite number, not 'much'",
        ),
        (["generate", "a cat", "--temperature", "1"], "--temperature is for autoregressive models"),
        (["generate", "a cat", "--stop", "0"], "argument --stop: must be at least 1, not 0"),
        (["evaluate", "--data", "d", "--out", "o", "--stop", "2"], "--stop is for cascades"),
        (["evaluate", "--data", "d", "--out", "taken"], "taken holds the results of an evaluation of another kind"),
        (["sweep", "guidance", "--data", "d", "--out", "taken"], "taken holds the results of"),
        (["unseen", "--model", "a", "--data", "d", "--out", "j/config.json/x"], "there is a file where a folder"),
        (["evaluate", "inpainting", "--data", "d", "--out", "o", "--judge", "d"], "no judge in d"),
        (["data", "emoji", "--out", f"{'x' * 300}"], "is too long for the disk"),
        (["train", "emoji-latent", "--run-dir", "j/config.json/x"], "there is a file where a folder"),
        (["generate", "a\0b"], "null byte"),
        (["train", "emoji-latent", "--run-dir", "a\ud800"], "half a character"),
        (["demo"], "PROMPT"),
        (["demo", "a cat", ""], "the prompt is empty"),
        (["assemble", "a", "b"], "--out"),
        (["assemble", "--out", "o"], "STAGE"),
        (["sweep"], "SETTING"),
        (["sweep", "guidance", "--data", "d"], "--out"),
        (["sweep", "guidance", "--data", "d", "--out", "o", "--guidances", "1,,2"], "argument --guidances"),
        (["unseen", "--data", "d", "--out", "o"], "--model"),
        (["paint", "a cat"], "unknown command 'paint': choose one of generate, "),
        ([], "COMMAND"),
        (["data"], "COMMAND"),
        (["data", "emoji", "--size", "9"], "argument --size: must be at least 16, not 9"),
        (["data", "check", "nowhere"], "no data at nowhere"),
        (["info"], "RECIPE|MODEL"),
        (["train", "emoji-autoencodr"], "unknown recipe 'emoji-autoencodr'; did you mean emoji-autoencoder? `dip"),
        (["generate", "x", "--model", "runs/emoji-layout"], "; `diptych train emoji-layout` makes runs/emoji-layout"),
        (["train", "emoji-layout"], "; `diptych precompute emoji-layout` makes cache/emoji-layout"),
        (["data", "check", "data/emoji-96"], "; `diptych data emoji --size 96` makes data/emoji-96"),
        (["train", "mine"], "unknown recipe 'mine': `diptych recipes` lists all "),
        (["train", "emoji-autoencoder", "training.stepz=5"], "no field 'stepz' in 'training.stepz'"),
        (["train", "emoji-autoencoder", "training.stepz=5"], "did you mean steps?"),
        (["train", "emoji-autoencoder", "batch_size=5"], "did you mean training.batch_size?"),
        (["train", "emoji-autoencoder", "training.optimizer=adamww"], "did you mean adamw?"),
        (["train", "emoji-autoencoder", "training.steps=many"], "training.steps must be a whole number, not 'many'"),
        (["train", "emoji-autoencoder", "--run", "r", "data.path=gone"], "no data at gone"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(model: FakeModel, capsys, argv: list[str], says: str) -> None:
    assert says in one_line(capsys, *argv)


def test_multiline_error_is_printed_in_one_line(model: FakeModel, capsys, monkeypatch) -> None:
    def load(*source) -> None:
        raise UserError("first\nsecond\r\n  third")

    monkeypatch.setattr(diptych, "load", load)
    assert one_line(capsys, "generate", "a cat") == "diptych: first second third\n"


def test_full_disk_leaves_no_partial_file(model: FakeModel, capsys, monkeypatch) -> None:
    whole = Path.write_bytes

    def half(path: Path, data: bytes) -> None:
        whole(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", half)
    assert "the disk is full: could not write out" in one_line(capsys, "generate", "a cat")
    assert list(Path("out").iterdir()) == []


def test_unwritable_output_folder(model: FakeModel, capsys) -> None:
    Path("file").write_text("")
    for out in ("file", "file/out"):
        assert f"{out}: there is a file where a folder is needed" in one_line(capsys, "generate", "a cat", "--out", out)
    for out, says in (("/proc/x", "/proc/x: No such file"), ("x" * 300, "is too long"), ("a/" * 3000, "is too long")):
        assert says in one_line(capsys, "generate", "a cat", "--out", out)
    Path("loop").symlink_to("loop")
    assert "loop" in one_line(capsys, "generate", "a cat", "--out", "loop/out")
    assert "loop" in one_line(capsys, "assemble", ".", "--out", "loop")


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EIO, errno.ENOENT, errno.ELOOP, errno.ESTALE, errno.EMFILE])
def test_os_errors_are_one_line(model: FakeModel, capsys, monkeypatch, number: int) -> None:
    def load(*source, **options) -> None:
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr(diptych, "load", load)
    assert f"some/file: {os.strerror(number)}" in one_line(capsys, "generate", "a cat")


def test_terminal_escapes_are_printed_as_text(model: FakeModel, capsys) -> None:
    evil = "\x1b[2J\x07\u202egnp"
    for argv in (("generate", "a cat", "--out", evil), ("train", evil), ("info", evil), ("data", "check", evil)):
        cli.main(argv)
        out, err = capsys.readouterr()
        assert "\\x1b[2J\\x07\\u202egnp" in out + err, argv
        assert not {"\x1b", "\x07", "\u202e"} & {*out, *err}, argv


def test_keyboard_interrupt_exits_with_130(model: FakeModel, capsys, monkeypatch) -> None:
    def generate(*arguments, **options) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "generate", generate)
    assert cli.main(["generate", "a cat"]) == 130
    assert capsys.readouterr().err == "diptych: interrupted\n"


def test_programming_errors_keep_their_traceback(model: FakeModel, monkeypatch) -> None:
    def generate(*arguments, **options) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(model, "generate", generate)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["generate", "a cat"])


# the others


def test_train_arguments(monkeypatch) -> None:
    from diptych.training import experiment as recipes_run

    calls = []
    monkeypatch.setattr(recipes_run, "train", lambda recipe, folder: calls.append((recipe, folder)))
    assert cli.main(["train", "emoji-autoencoder"]) == 0
    assert cli.main(["train", "emoji-autoencoder", "training.steps=3", "--run", "r", "training.seed=4"]) == 0
    (first, default_folder), (second, folder) = calls
    assert (default_folder, folder) == (Path("runs/emoji-autoencoder"), Path("r"))
    assert second == first.override(["training.steps=3", "training.seed=4"]) != first


def test_precompute_arguments(monkeypatch) -> None:
    from diptych.training import experiment as recipes_run

    calls = []
    monkeypatch.setattr(recipes_run, "precompute", lambda recipe, out: calls.append((recipe, out)))
    assert cli.main(["precompute", "emoji-autoencoder", "--out", "there", "training.seed=4"]) == 0
    assert calls[0][0].training.seed == 4
    assert calls[0][1] == Path("there")


def test_evaluate_arguments(model: FakeModel, monkeypatch) -> None:
    from diptych.evaluation.benchmarks import prompts as study

    calls = []
    monkeypatch.setattr(study, "evaluate", lambda *arguments, **settings: calls.append((arguments, settings)))
    assert cli.main(["evaluate", "--data", "d", "--out", "o"]) == 0
    options = ["--pictures", "5", "--steps", "3", "--guidance", "2", "--seed", "4", "--judge", "j", "--scenes", "0"]
    assert cli.main(["evaluate", "--model", "run", "--data", "d", "--out", "o", *options]) == 0
    assert calls == [
        ((model, Path("d"), Path("o")), {"name": "default"}),
        (
            (model, Path("d"), Path("o")),
            {"name": "run", "images": 5, "scenes": 0, "seed": 4, "steps": 3, "guidance": 2.0, "judge": "j"},
        ),
    ]


@pytest.mark.parametrize(
    ("sweep", "options", "settings"),
    [
        ("guidance", [], {}),
        ("guidance", ["--guidances", "1,2.5", "--thresholds", "none,static"], {"guidances": [1, 2.5]}),
        ("augmentation", ["--levels", "0, .5", "--truth", "--stage", "1"], {"levels": [0, 0.5], "truth": True}),
        ("augmentation", ["--steps", "3", "--judge", "j", "--batch", "2"], {"steps": 3, "judge": "j", "batch": 2}),
    ],
)
def test_sweep_arguments(model: FakeModel, monkeypatch, sweep: str, options, settings) -> None:
    from diptych.evaluation.benchmarks import sweep as sweeps

    calls = []
    for kind in ("guidance", "augmentation"):

        def run(*arguments, kind: str = kind, **given) -> None:
            calls.append((kind, arguments, given))

        monkeypatch.setattr(sweeps, f"sweep_{kind}", run)
    places = ["--data", "d", "--out", "o", "--pictures", "5", "--seed", "4"]
    assert cli.main(["sweep", sweep, "--model", "run", *places, *options]) == 0
    more = {"thresholds": ["none", "static"]} if "--thresholds" in options else {}
    more |= {"stage": 1} if "--stage" in options else {}
    given = {"name": "run", "images": 5, "seed": 4, **settings, **more}
    assert calls == [(sweep, (model, Path("d"), Path("o")), given)]


def test_unseen_arguments(model: FakeModel, monkeypatch) -> None:
    from diptych.evaluation.benchmarks import novel_words as unseen

    calls = []
    monkeypatch.setattr(unseen, "compare", lambda *arguments, **settings: calls.append((arguments, settings)))
    monkeypatch.setattr(diptych, "load", lambda source, device: f"{source} on {device}")
    models = ["--model", "a", "--model", "b", "--device", "cpu"]
    assert cli.main(["unseen", *models, "--data", "d", "--out", "o", "--pictures", "3", "--judge", "j"]) == 0
    expected = [("a", "a on cpu"), ("b", "b on cpu")]
    assert calls == [((expected, Path("d"), Path("o")), {"images": 3, "judge": "j"})]


def test_evaluation_functions_have_these_parameters() -> None:
    """The tests above put others in their place, which would take any name."""
    from diptych.evaluation.benchmarks import novel_words as unseen
    from diptych.evaluation.benchmarks import prompts as study
    from diptych.evaluation.benchmarks import sweep

    common = {"images", "seed", "judge", "batch"}
    for function, names in (
        (study.evaluate, {*common, "scenes", "sampler", "steps", "guidance", "stop", "name"}),
        (sweep.sweep_guidance, {*common, "guidances", "thresholds", "steps", "stop", "name"}),
        (sweep.sweep_augmentation, {*common, "levels", "truth", "stage", "steps", "stop", "name"}),
        (unseen.compare, common),
    ):
        assert names <= inspect.signature(function).parameters.keys(), function


def test_info_parameter_counts(capsys, monkeypatch) -> None:

    described = {"name": "sd1", "networks": {"unet": 859_520_964, "text": 36}, "total": 859_521_000, "config": {}}
    monkeypatch.setattr("diptych.cli.describe.describe", lambda name: described)
    assert cli.main(["info", "sd1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == described
    assert cli.main(["info", "sd1"]) == 0
    text = capsys.readouterr().out
    assert "859,520,964" in text and "859,521,000" in text


def test_recipes_list(capsys) -> None:
    from diptych.recipes import all_recipes

    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(all_recipes())
    for line, recipe in zip(lines, all_recipes().values(), strict=True):
        assert line.endswith(recipe.description)


def test_data_check_counts(tmp_path: Path, capsys) -> None:
    for index in range(6):
        Image.new("RGB", (16, 16), (40 * index, 0, 0)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(f"picture {index}")
    assert cli.main(["data", "check", str(tmp_path)]) == 0
    assert "6 examples can be read, 0 are broken" in capsys.readouterr().out

    (tmp_path / "3.png").write_bytes(b"not a picture")
    assert cli.main(["data", "check", str(tmp_path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["readable"] == 5
    assert [entry["key"] for entry in report["broken"]] == ["3.png"]


# help


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        cli.main([*words, "--help"])
    return capsys.readouterr().out


def test_help_choices_and_examples(capsys, monkeypatch) -> None:
    from diptych.core.image_files import FITS
    from diptych.diffusion.times import SCHEDULE_TYPES
    from diptych.encoders.base import LONG_PROMPTS

    monkeypatch.setenv("COLUMNS", "400")
    text = help_of(capsys, "generate")
    for names in (table.SAMPLERS, SCHEDULE_TYPES, FITS, LONG_PROMPTS):
        assert f": {', '.join(names)} (default: " in text
    assert "none, static, or dynamic[:PERCENTILE[:CAP]]" in text
    examples = [shlex.split(line) for line in text.splitlines() if line.startswith("  diptych ")]
    assert len(examples) == 3
    for words in examples:
        cli.parse(words[1:])


def test_help_headings_without_old_names(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    text = help_of(capsys, "generate")
    parts = {part.partition(":")[0]: part for part in text.split("\n\n")}
    for option in option_registry.all_options().values():
        for name in option.arguments:
            where = text[text.index(f"\n{option.group}:\n") :]
            assert f"  {name}" in where or f", {name}" in where
        assert not any(f" {name} " in text for name in option.old_arguments)
    assert option_registry.GROUPS.keys() <= {heading.strip() for heading in parts}


def test_old_option_names() -> None:
    words = ["--low", "a.png", "--weights", "--preview-decoder", "tiny", "--augmentation-level", "0.5"]
    old = cli.parse(["generate", *words, "--negative-prompt", "x"])
    new = cli.parse(
        [
            *("generate", "--low-res", "a.png", "--prompt-weights", "--decoder", "tiny"),
            *("--augmentation", "0.5", "--negative", "x"),
        ]
    )
    assert vars(old).keys() == vars(new).keys()
    assert options_given(old) == options_given(new) != {}
    assert cli.parse(["train", "x", "--run", "r"]).run_dir == cli.parse(["train", "x", "--run-dir", "r"]).run_dir


def test_negative_values() -> None:
    assert cli.parse(["generate", "a", "--guidance", "-2,3,-1e1"]).guidance == [-2, 3, -10]
    assert cli.parse(["generate", "a", "--guidance", "-1e1"]).guidance == -10
    assert cli.parse(["generate", "a", "--negative=-x"]).negative == "-x"


def test_options_page_is_up_to_date(capsys) -> None:
    assert cli.main(["options", "--markdown"]) == 0
    assert capsys.readouterr().out == (Path(__file__).parents[2] / "docs" / "options.md").read_text()


# start-up


def every_command() -> list[list[str]]:
    """The words of each command."""
    found = []

    def visit(parser: argparse.ArgumentParser, words: list[str]) -> None:
        found.append(words)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, command in action.choices.items():
                    visit(command, [*words, *name.split()])

    visit(build_parser(), [])
    return found


def test_help_and_errors_import_no_pytorch() -> None:
    mistakes = [
        ["--version"],
        ["generate", "a", "--steps", "x"],
        ["generate", "a", "--sampler", "dimm"],
        ["generate", "a", "--no-such-option"],
        ["generate", "a", "--count", "0"],
        ["generate", "   "],
        ["no-such-command"],
        ["train"],
        ["options"],
    ]
    calls = [[*words, "--help"] for words in every_command()] + mistakes
    assert len(calls) > 30
    script = f"""
import contextlib, io, sys
from diptych.cli.main import main
for argv in {calls!r}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(argv)
    heavy = {{"torch", "numpy", "transformers", "PIL", "rich"}} & set(sys.modules)
    assert not heavy, (argv, heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_start_up_time() -> None:
    """In processor time, so that other work on the machine does not count."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("generate", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.3


def test_python_m_diptych() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"diptych {version()}\n")
    done = run("generate", "")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_closed_pipe_exits_with_141() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "diptych", "--help"], stdout=pipe, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (141, "")
