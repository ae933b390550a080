"""What is written appears whole or not at all, and only what diptych wrote is ever replaced."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diptych.core import disk
from diptych.core.disk import Written, replacing, write_new
from diptych.core.errors import UserError, disk_error
from tests.models import latents

NOTE = Written("a note", ("*.txt", "more/*.txt"), lambda folder: (folder / "sign.txt").is_file())


def write(target: Path, *names: str) -> None:
    with replacing(target, NOTE) as partial:
        for name in ("sign.txt", *names):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text(name)


def tree(folder: Path) -> dict[str, str]:
    """All that is there; a link by where it points."""
    found = {}
    for path in sorted(folder.rglob("*")):
        is_file = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(folder))] = (
            path.read_text() if is_file else os.readlink(path) if path.is_symlink() else ""
        )
    return found


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "note.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as partial:
        partial.write_text("ne")
        raise RuntimeError
    assert tree(tmp_path) == {"note.txt": "old"}


def test_a_folder_of_ours_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("one.txt", "more/two.txt"):
        write(tmp_path / "note", name)
    assert [*tree(tmp_path)] == ["note", "note/more", "note/more/two.txt", "note/sign.txt"]


def test_a_link_keeps_its_place(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "note").symlink_to("big/note")
    (tmp_path / "big" / "note").mkdir()
    write(tmp_path / "note", "one.txt")
    assert (tmp_path / "note").is_symlink()
    assert [*tree(tmp_path / "big")] == ["note", "note/one.txt", "note/sign.txt"]


def foreign_file(note: Path) -> None:
    (note / "cat.png").write_text("mine")


def foreign_file_below(note: Path) -> None:
    (note / "more").mkdir()
    (note / "more" / "cat.png").write_text("mine")


def foreign_folder(note: Path) -> None:
    (note / "txt").mkdir()


def foreign_link(note: Path) -> None:
    (note / "one.txt").symlink_to(note.parent / "precious")


def no_sign(note: Path) -> None:
    (note / "sign.txt").rename(note / "other.txt")


def a_file(note: Path) -> None:
    shutil.rmtree(note)
    note.write_text("mine")


def a_link_to_nothing(note: Path) -> None:
    shutil.rmtree(note)
    note.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (foreign_file, "holds cat.png, which is no part of a note"),
        (foreign_file_below, "holds more/cat.png"),
        (foreign_folder, "holds txt"),
        (foreign_link, "holds one.txt"),
        (no_sign, "is there already and is not a note"),
        (a_file, "is a file, not a note"),
        (a_link_to_nothing, "is a link to nothing"),
    ],
)
def test_what_is_not_ours_is_refused_before_and_after_the_work(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    note = tmp_path / "note"
    write(note)
    spoil(note)
    before = tree(tmp_path)
    with pytest.raises(UserError, match=says):
        write(note)
    assert tree(tmp_path) == before
    if not note.is_dir():
        return
    shutil.rmtree(note)
    write(note)
    with pytest.raises(UserError, match=says), replacing(note, NOTE) as partial:  # it comes while we work
        partial.mkdir()
        spoil(note)
    assert tree(tmp_path) == before


def test_where_one_stands_and_the_folders_above_are_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    write(home)
    write(home / "here")
    monkeypatch.chdir(home / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (".", "..", "../../home/here", "/", tmp_path, tmp_path / ".." / tmp_path.name):
        with pytest.raises(UserError, match="is the folder"):
            write(Path(place))
    assert [*tree(tmp_path)] == ["home", "home/here", "home/here/sign.txt", "home/sign.txt"]


def test_a_folder_without_a_kind_is_never_replaced(tmp_path: Path) -> None:
    write(tmp_path / "note")
    with pytest.raises(UserError, match="note"), replacing(tmp_path / "note") as partial:
        partial.write_text("")
    assert [*tree(tmp_path)] == ["note", "note/sign.txt"]


def test_what_a_killed_process_left_is_cleared_and_an_old_folder_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "note", "old.txt")
    left = tmp_path / ".diptych-partial-abcd_123"
    (left / "new" / "note").mkdir(parents=True)
    (left / "old").mkdir()
    os.rename(tmp_path / "note", left / "old" / "note")  # killed between the two renames
    others = (".diptych-partial-mine", ".diptych-partial-abcd_124")  # of others: by its name, and by what is in it
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "cat.png").write_text("mine")
    disk.sweep(tmp_path)
    assert {*os.listdir(tmp_path)} == {"note", *others}
    assert (tmp_path / "note" / "old.txt").is_file()


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "note", NOTE) as partial:
        partial.mkdir()
        disk.sweep(tmp_path)
        (partial / "sign.txt").write_text("")
    assert [*tree(tmp_path)] == ["note", "note/sign.txt"]


def test_a_new_file_takes_the_first_free_place_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").symlink_to("nowhere")  # taken, though there is nothing behind it
    made = [write_new(tmp_path, "a", ".png", lambda path, n=n: path.write_text(str(n))) for n in range(2)]
    assert [path.name for path in made] == ["a-2.png", "a-3.png"]

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links on this disk")

    monkeypatch.setattr(os, "link", no_links)
    assert write_new(tmp_path, "a", ".png", lambda path: path.write_text("4")).name == "a-4.png"
    with pytest.raises(RuntimeError):
        write_new(tmp_path, "b", ".png", fail)
    assert tree(tmp_path) == {"a.png": "nowhere", "a-2.png": "0", "a-3.png": "1", "a-4.png": "4"}


def fail(path: Path) -> None:
    path.write_text("half")
    raise RuntimeError


@pytest.mark.parametrize("number", [getattr(errno, name) for name in errno.errorcode.values()][:133:4])
def test_every_refusal_of_the_disk_is_one_line_that_names_the_place(tmp_path: Path, number: int) -> None:
    for error in (OSError(number, os.strerror(number), "a/b"), OSError(number, os.strerror(number))):
        line = str(disk_error(error, tmp_path / "out"))
        assert str(tmp_path / "out")[:60] in line and "\n" not in line


def test_the_error_of_a_partial_file_names_the_place_it_was_for() -> None:
    error = OSError(errno.EIO, "broken", "/runs/x/.diptych-partial-abcd1234/new/model/unet")
    assert "/runs/x/model/unet" in str(disk_error(error))


@pytest.mark.parametrize("name", ["config.json", "unet/model.safetensors", "text/config.json"])
def test_a_model_is_saved_over_nothing_but_a_model(tmp_path: Path, name: str) -> None:
    """From Python too; what stands beside it stays."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="of no model of diptych's"):
        latents.system().save(tmp_path)
    assert (tmp_path / name).read_text() == "{}" and not (tmp_path / "autoencoder").exists()
    (tmp_path / name).unlink()
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):  # also over itself
        latents.system().save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="a file where a folder"):
        latents.system().save(tmp_path / "notes.txt")


@pytest.mark.parametrize("locked", [False, True])
def test_a_folder_that_another_sweeps_before_it_is_held_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    real, sweepers = disk.tempfile.mkdtemp, list[threading.Thread]()

    def made(**how: Any) -> str:
        path = real(**how)
        if not sweepers:  # the first is swept: at once, or by one that holds it and takes a while
            descriptor = os.open(path, os.O_RDONLY)
            disk.fcntl.flock(descriptor, disk.fcntl.LOCK_EX)

            def sweep() -> None:
                time.sleep(0.2 if locked else 0)
                shutil.rmtree(path)
                os.close(descriptor)

            sweepers.append(threading.Thread(target=sweep))
            sweepers[0].start()
            if not locked:
                sweepers[0].join()
        return path

    monkeypatch.setattr(disk.tempfile, "mkdtemp", made)
    with replacing(tmp_path / "a.txt") as partial:
        sweepers[0].join()
        partial.write_text("whole")
    assert tree(tmp_path) == {"a.txt": "whole"}
