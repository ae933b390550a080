"""The wheel holds the whole package, and runs from anywhere."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As pip has it built, but for the compression, which takes seconds."""
    folder = tmp_path_factory.mktemp("wheel")
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["build-backend"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # where a backend finds what it builds
        patch.setattr(zlib, "Z_DEFAULT_COMPRESSION", 0)
        return folder / importlib.import_module(backend).build_wheel(str(folder))


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(unpacked: Path, folder: Path, *commands: Sequence[str]) -> str:
    """`diptych` from the unpacked wheel, in an empty folder: what the commands printed, which run in one process."""
    script = (
        "import diptych, json, sys; from diptych.cli.main import main; print(diptych.__file__)\n"
        "sys.exit(max(map(main, json.loads(sys.argv[1]))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(str(unpacked)), "another diptych than the one in the wheel was run"
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    source = ROOT / "src"
    files = {str(path.relative_to(source)) for path in (source / "diptych").rglob("*") if path.is_file()}
    wanted = {name for name in files if "__pycache__" not in name and not name.rpartition("/")[2].startswith(".")}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert packed == wanted
    assert licences


def test_the_wheel_runs_and_paints_from_an_empty_folder(unpacked: Path, tmp_path: Path) -> None:
    told = run(unpacked, tmp_path, ["recipes"], ["generate", "a red apple", "--steps", "2"])
    assert "emoji-latent" in told
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a-red-apple-s0.png"]
