"""Checkpoints: whole or not there, whatever happens to the process, the disk or the files."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.core import disk
from diptych.core.errors import UserError
from diptych.training import run_checkpoint as checkpoint
from diptych.weights import save as weights_save
from tests.training.processes import finish, start


def parts(step: int, size: int = 100) -> dict[str, dict[str, torch.Tensor]]:
    values = {"weights": ("a", 1.0), "ema": ("a", 0.5), "optimizer": ("a/m", 2.0)}
    return {part: {name: torch.full((size,), step * factor)} for part, (name, factor) in values.items()}


def save(folder: Path, step: int, **options: int) -> Path:
    return checkpoint.save(folder, step, parts(step), {"seconds": step * 1.5}, **options)


def newest(folder: Path) -> checkpoint.Checkpoint:
    found = checkpoint.latest(folder)
    assert found is not None
    return found


def check(found: checkpoint.Checkpoint, step: int) -> None:
    assert found.step == step
    for part, tensors in parts(step).items():
        assert torch.equal(found.load(part)[next(iter(tensors))], next(iter(tensors.values())))


def test_the_newest_is_found_and_old_ones_go(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    for step in (5, 10, 15):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]
    check(newest(tmp_path), 15)
    assert newest(tmp_path).state["seconds"] == 22.5


def truncate(path: Path) -> None:
    file = path / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "weights.safetensors").write_bytes(content)


def lose(path: Path) -> None:
    (path / "state.json").unlink()


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def cut_manifest(path: Path) -> None:
    (path / "manifest.json").write_text((path / "manifest.json").read_text()[:40])


def nested_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[" * 100_000)


def folder_for_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()
    (path / "manifest.json").mkdir()


def short_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({"state.json": manifest["state.json"]}))


def stating(**changes: Any) -> Callable[[Path], None]:
    """A state that says something else, and hashes that say that it is as it was written."""

    def harm(path: Path) -> None:
        state = {**json.loads((path / "state.json").read_text()), **changes}
        (path / "state.json").write_text(json.dumps({key: value for key, value in state.items() if value != "gone"}))
        manifest = json.loads((path / "manifest.json").read_text())
        size, digest = (path / "state.json").stat().st_size, checkpoint._sha256(path / "state.json")
        manifest["state.json"] = {"bytes": size, "sha256": digest}
        (path / "manifest.json").write_text(json.dumps(manifest))

    return harm


@pytest.mark.parametrize(
    ("harm", "said"),
    [(truncate, "bytes instead of"), (flip, "SHA-256"), (lose, "missing"), (lose_manifest, "missing"),
     (cut_manifest, "not readable"), (nested_manifest, "not readable"), (folder_for_manifest, "cannot be read"),
     (short_manifest, "does not list weights"), (stating(step=3), "says step 3"),
     (stating(step="gone"), "not readable"), (stating(seconds=None), "seconds None"),
     (stating(seconds=math.nan), "seconds nan"), (stating(learning_rate="x"), "learning_rate 'x'")],
)  # fmt: skip
def test_a_broken_newest_falls_back_to_the_whole_one_before_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], None], said: str
) -> None:
    save(tmp_path, 1)
    harm(save(tmp_path, 2))
    check(newest(tmp_path), 1)
    warning = capsys.readouterr().err
    assert "step-00000002" in warning
    assert said in warning
    if harm is not folder_for_manifest:  # which no checkpoint has, and so is not replaced
        save(tmp_path, 2)  # the run comes there again and writes it anew
        check(newest(tmp_path), 2)


def test_an_older_one_goes_only_when_a_newer_one_is_whole_by_its_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With keep=1, a newest one that was flipped, and a run that goes on from the one before and is told to stop."""
    save(tmp_path, 10)
    flip(save(tmp_path, 20))
    save(tmp_path, 12, keep=1)
    check(newest(tmp_path), 12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000012", "step-00000020"]
    real = checkpoint._sha256

    def failing(path: Path) -> str:
        hashed.append(path)
        return "read otherwise" if hashed.count(path) == 2 else real(path)

    hashed: list[Path] = []
    monkeypatch.setattr(checkpoint, "_sha256", failing)  # what the disk gives back is not what it got
    with pytest.raises(UserError, match=r"read back of .*step-00000013 is not what was written"):
        save(tmp_path, 13, keep=1)
    check(newest(tmp_path), 12)
    monkeypatch.undo()
    save(tmp_path, 21, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000021"]


@pytest.mark.parametrize("harm", [truncate, flip, lose, lose_manifest, cut_manifest])
def test_where_no_checkpoint_is_whole_it_is_said_and_nothing_is_touched(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    for step in (1, 2):
        harm(save(tmp_path, step))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole \(step-00000002: .*move .* away") as caught:
        checkpoint.latest(tmp_path)
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_what_is_no_part_of_a_checkpoint_is_never_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (save(tmp_path, 1) / "notes.txt").write_text("mine")
    for name in (".step-00000009.partial", ".step-mine", "step-mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    (tmp_path / ".step-00000008.partial").mkdir()  # as earlier versions left it
    (tmp_path / ".step-00000008.partial" / "weights.safetensors").write_text("half")
    checkpoint.clean(tmp_path)
    save(tmp_path, 2, keep=1)
    assert "step-00000001 stays: it holds notes.txt" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *(".step-00000009.partial", ".step-mine", "step-00000001", "step-00000002", "step-mine")
    ]
    assert len(list(tmp_path.rglob("notes.txt"))) == 4
    (tmp_path / "step-00000003").mkdir()
    (tmp_path / "step-00000003" / "cat.png").write_text("mine")
    with pytest.raises(UserError, match=r"holds cat\.png"):
        save(tmp_path, 3)


def test_a_whole_checkpoint_of_the_same_step_is_never_put_at_risk(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    before = {p.name: p.stat().st_ino for p in path.iterdir()}
    save(tmp_path, 1)
    assert {p.name: p.stat().st_ino for p in path.iterdir()} == before


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_of_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    real = weights_save.save_file

    def fail(tensors: dict, path: Path, metadata: dict) -> None:
        if "optimizer" in str(path):  # in the middle: the weights are written already
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, path, metadata)

    monkeypatch.setattr(weights_save, "save_file", fail)
    with pytest.raises(UserError, match="disk is full"):
        save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    check(newest(tmp_path), 1)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(tiny_disk: Path) -> None:
    checkpoint.save(tiny_disk, 1, parts(1, 30_000), {"seconds": 1.0})  # 360 kB
    with pytest.raises(UserError, match="disk is full") as caught:
        checkpoint.save(tiny_disk, 2, parts(2, 60_000), {"seconds": 2.0})
    assert "\n" not in str(caught.value)
    assert [p.name for p in tiny_disk.iterdir()] == ["step-00000001"]
    assert newest(tiny_disk).load("weights")["a"].shape == (30_000,)


def die_at(folder: str, operation: int) -> None:
    """Write checkpoint 2 and vanish, as after kill -9, at the given disk operation."""
    done = 0

    def dying(function: Callable) -> Callable:
        def wrapper(*arguments: object, **options: object) -> object:
            nonlocal done
            done += 1
            if done == operation:
                os._exit(9)
            return function(*arguments, **options)

        return wrapper

    weights_save.save_file, disk.sync = dying(weights_save.save_file), dying(disk.sync)
    for name in ("replace", "rename", "unlink", "mkdir", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))
    save(Path(folder), 2, keep=1)


def test_death_at_any_disk_operation_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    found_new = []
    for operation in range(1, 100):
        folder = tmp_path / str(operation)
        save(folder, 1)
        code = finish(start(die_at, str(folder), operation))
        found = newest(folder)
        check(found, found.step)
        found_new.append(found.step == 2)
        checkpoint.clean(folder)
        assert not [p for p in folder.iterdir() if p.name.startswith(".")]
        if code == 0:  # it lived through all of its operations
            break
        assert code == 9
    assert operation > 8
    assert not found_new[0]
    assert found_new[-1]


def test_one_process_a_folder(tmp_path: Path) -> None:
    with checkpoint.locked(tmp_path), pytest.raises(UserError, match="another process"), checkpoint.locked(tmp_path):
        pass
    with checkpoint.locked(tmp_path):
        pass
    (tmp_path / ".lock").write_text("mine")
    with checkpoint.locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == "mine"
