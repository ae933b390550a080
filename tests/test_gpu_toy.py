"""The whole of `make gpu` on a CPU, at toy size: data, trainings, studies, measurements, and what is brought back."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from benchmarks import gpu, loan
from diptych import load
from diptych.data.emoji.icon_sources import CLDR, SETS
from tests.data.tiny import tiny_sources


def packages(folder: Path) -> None:
    """The emoji sets as npm would give them, with a few drawings."""
    sources = tiny_sources(tuple(one.style for one in SETS))

    def write(name: str, files: dict[str, object]) -> None:
        with tarfile.open(folder / name, "w:gz") as tar:
            for inner, value in files.items():
                data = json.dumps(value).encode()
                info = tarfile.TarInfo(f"package/{inner}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    folder.mkdir(parents=True)
    for one in SETS:
        icons = dict(sources.icons[one.style])
        chars, info = icons.pop("chars"), icons.pop("info")
        files = {"icons.json": icons, "chars.json": chars, "info.json": info, "metadata.json": {"categories": {}}}
        write(one.file, files)
    for package, version, kind in CLDR:
        told = {
            "".join(chr(int(code, 16)) for code in codes.split("-")): {"tts": [name], "default": list(words)}
            for codes, (name, words) in sources.names.items()
        }
        write(f"{package}-{version}.tgz", {f"{kind}/en/annotations.json": {kind: {"annotations": told}}})


@pytest.mark.slow
def test_the_loan_from_data_to_what_is_brought_back(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("resvg")
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    packages(tmp_path / "cache" / "npm")
    place, pack = tmp_path / "toy", tmp_path / "packed"
    code = gpu.main(["--toy", str(place), "--budget", "60", "--pack", str(pack)])
    states = {job.name: json.loads((place / "results" / f"{job.name}.json").read_text()) for job in loan.loan()}
    found = {name: record["status"] for name, record in states.items()}
    assert found == dict.fromkeys(states, "done")
    assert code == 0
    measured = states["measure-training"]["result"]
    assert measured["sd1-512"]["ours_over_theirs"] > 0 and measured["about"]["toy"]
    sampled = states["measure-sampling"]["result"]
    assert not [part for part, found in sampled.items() if {"error", "skipped"} & set(found)]
    assert sampled["ratios"]["images, both compiled, batch 1: diptych compiled over diffusers compiled"] > 0
    assert sampled["agree, diffusers compiled"]["step"] < 1e-4
    assert sampled["agree, diffusers"]["images, largest of 255"] <= 1
    pieces = b"".join(piece.read_bytes() for piece in sorted(pack.glob("gpu.tar.*")))
    with tarfile.open(fileobj=io.BytesIO(pieces)) as tar:
        tar.extractall(tmp_path / "home", filter="data")
    for model in ("runs/latent/model", "runs/cascade"):
        image = load(tmp_path / "home" / model).generate("a cat", seeds=[1], steps=1).images[0]  # type: ignore[call-arg]
        assert image.size
    assert json.loads((pack / "packed.json").read_text())["left out"] == {}
    assert (tmp_path / "home" / "runs" / "study-latent-new" / "results.json").is_file()
