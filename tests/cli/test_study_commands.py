"""`diptych study` from the command line: what it prints, what it refuses in one line, and what it does not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from diptych.cli.main import main
from diptych.serving import run_server
from tests.evaluation.human.conftest import PROMPTS, write_images


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for seed, name in enumerate(("one", "two", "real")):
        write_images(folder / name, PROMPTS[:4], 1, seed)
    (folder / "bench.csv").write_text("Prompts,Category\n" + "".join(f"{prompt},Colors\n" for prompt in PROMPTS[:4]))
    return folder


def test_a_study_from_images_to_report(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = str(root / "study")
    models = ["--model", str(root / "one"), "--model", f"second={root / 'two'}"]
    options = ["--protocol", "coco", *models, "--reference", str(root / "real"), "--pairs", "4", "--controls", "2"]
    assert main(["study", "make", study, *options]) == 0
    assert "20 questions and 10 controls in 5 batches" in capsys.readouterr().out
    assert main(["study", "export", study, str(root / "pages"), "--raters", "2"]) == 0
    assert "2 pages" in capsys.readouterr().out
    assert main(["study", "report", study]) == 2
    assert "no answers yet" in capsys.readouterr().err
    assert main(["study", "make", study, *options]) == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("make {root}/s --protocol x --model {root}/one", "unknown protocol 'x'"),
        ("make {root}/s --protocol coco --model {root}/one", "--reference"),
        ("make {root}/s --protocol coco --model {root}/one --set-size 4 --reference {root}/real", "--set-size is for"),
        ("make {root}/s --protocol drawbench --model {root}/one --model {root}/two --pairs 3", "--pairs is for"),
        ("make {root}/s --protocol drawbench --model {root}/one --model {root}/two", "fewer than 8 images"),
        ("make {root}/s --protocol drawbench --model a={root}/one --model a={root}/two", "same name"),
        ("make {root}/s --protocol drawbench --model =x", "NAME=FOLDER"),
        ("make {root}/s --protocol coco", "--model"),
        ("make {root}/one --protocol coco --model {root}/one --reference {root}/real --pairs 2", "is there already"),
        ("make {root}/s --protocol coco --model {root}/one --reference {root}/real --pairs 0", "--pairs"),
        (
            "make {root}/s --protocol drawbench --model {root}/one --model {root}/two --prompts {root}/none.csv",
            "none.csv",
        ),
        ("serve {root}/none", "study.json"),
        ("serve {root}/one --port 70000", "--port"),
        ("export {root}/one {root}/out", "study.json"),
        ("import {root}/one {root}/x.json", "study.json"),
        ("import {root}/one", "ANSWERS.json"),
        ("report {root}/one", "study.json"),
        ("report {root}/one --resamples 1", "--resamples"),
        ("nothing", "unknown command"),
    ],
)
def test_mistakes_are_one_line(root: Path, capsys: pytest.CaptureFixture[str], words: str, reason: str) -> None:
    assert main(["study", *words.format(root=root).split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and reason in error
    assert not (root / "s").exists()


def test_without_the_extra_one_line_says_what_to_install(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_server, "NEEDS", ("fastapi", "no_such_package"))
    assert main(["study", "serve", str(root / "one")]) == 2
    assert "no-such-package" in (error := capsys.readouterr().err) and "diptych[serve]" in error


def test_help_is_printed_without_what_takes_long() -> None:
    script = """
import sys
from diptych.cli.main import main
try:
    main(["study", "serve", "--help"])
except SystemExit:
    print([name for name in ("torch", "fastapi", "numpy", "matplotlib", "PIL") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--raters" in done.stdout and done.stdout.splitlines()[-1] == "[]"
