"""What the README says of torchrun: the same commands, in several processes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from diptych.cli import main as cli
from diptych.cli.parser import build_parser

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "diptych"]
SMALL = ["data.size=16", "data.path=images", "training.steps=2", "training.batch_size=4", "training.device=cpu"]


def options(command: str) -> set[str]:
    """The options of a command that its help names."""
    (commands,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    shown = [a for a in commands.choices[command]._actions if a.help != argparse.SUPPRESS]
    return {option for action in shown for option in action.option_strings if option not in ("-h", "--help")}


PROTOCOLS = ("evaluate fid-30k", "evaluate unconditional", "evaluate class-conditional")


@pytest.mark.parametrize("command", ["train", "precompute", "generate", *PROTOCOLS])
def test_torchrun_leaves_the_options_to_the_command(command: str) -> None:
    """It takes every abbreviation of an option of its own for itself, also behind the name of the module."""
    from torch.distributed.run import get_args_parser

    known = [option for action in get_args_parser()._actions for option in action.option_strings]
    assert "--run-path" in known and options(command)
    taken = {"--start"} if command == "generate" else set()  # of cascades, with --low-res
    assert {o for o in options(command) if any(own.startswith(o) for own in known)} == taken
    given = [word for option in options(command) - taken for word in (option, "x")]
    read = get_args_parser().parse_args(["--nproc-per-node", "2", "-m", "diptych", *command.split(), "recipe", *given])
    assert read.training_script_args == [*command.split(), "recipe", *given]


@pytest.mark.parametrize(("rank", "suffix"), [("0", ""), ("1", " (in process 1)")])
def test_a_mistake_is_handed_to_torchrun(tmp_path: Path, monkeypatch, capsys, rank: str, suffix: str) -> None:
    waited = []
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert cli.main(["generate", ""]) == 2
    line = capsys.readouterr().err
    assert line.startswith("diptych: the prompt is empty") and line.endswith(f"{suffix}\n") and line.count("\n") == 1
    report = json.loads((tmp_path / "error.json").read_text())["message"]
    assert report["message"] == report["extraInfo"]["py_callstack"] == line.strip()
    assert waited == ([] if rank == "0" else [cli.PATIENCE])


def test_commands_that_share_no_work_are_for_one_process(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(cli.time, "sleep", lambda _: None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    words = ["evaluate", "layout", "--data", "x", "--out", str(tmp_path / "o")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(words) == 2 and not (tmp_path / "o").exists()
    assert capsys.readouterr().err == "diptych: evaluate layout is for one process: start it without torchrun\n"
    for command in (["train", "x"], ["precompute", "x"], ["generate", ""], ["evaluate", "fid-30k", "a", "b"]):
        assert cli.main([*command, *(["--out", str(tmp_path / "o")] if len(command) > 3 else [])]) == 2
        assert "one process" not in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert cli.main(["options"]) == 0


@pytest.mark.slow
def test_the_command_runs_in_two_processes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index in range(8):
        image = tmp_path / "images" / f"{index}.png"
        Image.new("RGB", (16, 16), (30 * index, 0, 0)).save(image)
        image.with_suffix(".txt").write_text(f"a colour {index}")
    command = [*TORCHRUN, "train", "emoji-autoencoder", "--run-dir", "run", *SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.slow
def test_a_mistake_is_said_once_and_ends_what_torchrun_says(tmp_path: Path) -> None:
    command = [*TORCHRUN, "train", "emoji-autoencoder", "--run-dir", "run", "training.steps=x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    told = [line.strip() for line in done.stderr.splitlines() if "must be a whole number" in line]
    assert len([line for line in told if line.startswith("diptych: ")]) == 1
    assert [line.removeprefix("traceback : ") for line in told[1:]] == [told[0]]
    assert told[-1] in done.stderr.splitlines()[-2]
