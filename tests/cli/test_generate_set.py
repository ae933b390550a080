"""`diptych generate --prompts`: a set of images from a file, its mistakes in one line, torchrun."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import diptych
from diptych.cli import main as cli
from diptych.evaluation.set_plan import image_seed
from tests.cli.test_cli import FakeModel, one_line
from tests.models.latents import system
from tests.test_torchrun import TORCHRUN


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    model = FakeModel()
    monkeypatch.setattr(diptych, "load", lambda source=None, device="auto": model)
    monkeypatch.chdir(tmp_path)
    Path("p.csv").write_text("Prompts,Category\na cat,x \na dog,y\na cat,x\n")
    return model


def files(out: str = "s") -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in Path(out).rglob("*.*") if path.is_file()}


def test_a_set_is_made_and_made_once(model: FakeModel, capsys) -> None:
    command = ["generate", "--prompts", "p.csv", "--out", "s", "--images-per-prompt", "2", "--steps", "3"]
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    assert captured.out == ("s: 6 images made now, 0 were there; all 6 are there, s/manifest.jsonl lists them\n")
    assert captured.err == "1 of 3 prompts are repetitions: each was generated, with a seed of its own\n"
    rows = [json.loads(line) for line in Path("s/manifest.jsonl").read_text().splitlines()]
    assert [(row["file"], row["prompt"], row["category"]) for row in rows[2:4]] == [
        ("00000/00001-0.png", "a dog", "y"),
        ("00000/00001-1.png", "a dog", "y"),
    ]
    assert model.asked[0]["steps"] == 3 and len(model.asked) == 1
    before = files()
    assert cli.main(command) == 0
    assert len(model.asked) == 1 and files() == before and "0 images made now, 6 were there" in capsys.readouterr().out
    assert "s holds a set of other settings [steps 3, not 4]" in one_line(capsys, *command[:-1], "4")
    assert files() == before


def test_an_image_of_a_set_is_that_of_the_command_alone(model: FakeModel) -> None:
    assert cli.main(["generate", "--prompts", "p.csv", "--out", "s", "--seed", "9"]) == 0
    seed = image_seed(9, 1, 0)
    assert cli.main(["generate", "a dog", "--out", "o", "--seed", str(seed)]) == 0
    with Image.open("s/00000/00001-0.png") as one, Image.open(f"o/a-dog-s{seed}.png") as other:
        assert one.tobytes() == other.tobytes()


def test_shares_make_the_whole(model: FakeModel, capsys) -> None:
    common = ["generate", "--prompts", "p.csv", "--batch", "1", "--images-per-prompt", "2"]
    for share in ("2/3", "3/3"):
        assert cli.main([*common, "--out", "s", "--shard", share]) == 0
        assert "of 6, other processes make the rest" in capsys.readouterr().out
    assert not Path("s/manifest.jsonl").exists()
    assert cli.main([*common, "--out", "s", "--shard", "1/3"]) == 0
    assert "all 6 are there" in capsys.readouterr().out
    assert cli.main([*common, "--out", "whole"]) == 0
    assert files("s") == files("whole")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a cat", "--prompts", "p.csv"], "PROMPT does not go with --prompts: leave it out"),
        (["--prompts", "p.csv", "--count", "2"], "--count does not go with --prompts: give --images-per-prompt"),
        (["--prompts", "p.csv", "--variations", "2"], "--variations does not go with --prompts"),
        (["--prompts", "p.csv", "--seed", "1,2"], "a set has one --seed"),
        (["--prompts", "p.csv", "--from", "a.png"], "--from does not go with --prompts"),
        (["--prompts", "p.csv", "--keep-stages"], "--keep-stages does not go with --prompts"),
        (["--prompts", "p.csv", "--quality", "9"], "--quality goes with --format jpeg"),
        (["--prompts", "p.csv", "--format", "gif"], "unknown choice 'gif'"),
        (["--prompts", "p.csv", "--shard", "0/4"], "--shard is i/n, from 1/n to n/n"),
        (["--prompts", "p.csv", "--shard", "5/4"], "--shard is i/n, from 1/n to n/n"),
        (["--prompts", "none.csv"], "none.csv is no file"),
        (["--prompts", "p.csv", "--out", "p.csv"], "p.csv is a file"),
        (["--prompts", "p.csv", "--size", "8x8"], "--size is for"),
        (["a cat", "--limit", "2"], "--limit is for a set of images: give a file of prompts as --prompts"),
        (["a cat", "--images-per-prompt", "2"], "--images-per-prompt is for a set of images"),
    ],
)
def test_mistakes(model: FakeModel, capsys, words: list[str], said: str) -> None:
    out = [] if "--out" in words else ["--out", "s"]
    assert said in one_line(capsys, "generate", *words, *out)
    assert not Path("s").exists() and model.asked == []


def test_a_broken_line_is_named_before_a_model_is_opened(model: FakeModel, monkeypatch, capsys) -> None:
    monkeypatch.setattr(diptych, "load", lambda *_, **__: pytest.fail("it was opened"))
    Path("p.txt").write_text("a cat\n\na dog\n")
    assert "p.txt, line 2: the prompt is empty" in one_line(capsys, "generate", "--prompts", "p.txt", "--out", "s")


@pytest.mark.parametrize("name", ["mine.txt", "00000/00000-0.png"])
def test_a_foreign_folder_is_refused_before_a_model_is_opened(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(diptych, "load", lambda *_, **__: pytest.fail("it was opened"))
    Path("s", name).parent.mkdir(parents=True)
    Path("s", name).write_bytes(b"mine")
    said = "s holds mine.txt, which is no set of images" if name == "mine.txt" else "s holds images and no set.json"
    assert said in one_line(capsys, "generate", "--prompts", "p.csv", "--out", "s")
    assert files() == {name: b"mine"}


def test_torchrun_divides_a_set(model: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    common = ["generate", "--prompts", "p.csv", "--out", "s", "--batch", "1", "--device", "cpu"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("1", ""), ("0", "all 3 are there")):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(common) == 0
        out = capsys.readouterr().out
        assert said in out and bool(out) == (rank == "0")
    assert [len(call["prompts"]) for call in model.asked] == [1, 1, 1]
    assert "--shard is for processes that are started one by one" in one_line(capsys, *common, "--shard", "1/2")


@pytest.mark.slow
def test_two_processes_and_one_make_the_same_set(tmp_path: Path) -> None:
    system().save(tmp_path / "model")
    (tmp_path / "p.txt").write_text("a cat\na dog\na bird\n")
    words = ["generate", "--prompts", "p.txt", "--model", "model", "--steps", "2", "--batch", "2", "--device", "cpu"]
    for command, out in (([*TORCHRUN, *words], "two"), ([sys.executable, "-m", "diptych", *words], "one")):
        done = subprocess.run(
            [*command, "--images-per-prompt", "3", "--out", out],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert f"all 9 are there, {out}/manifest.jsonl lists them" in done.stdout
    assert files(str(tmp_path / "one")) == files(str(tmp_path / "two"))
