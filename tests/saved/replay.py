"""Recorded calls of `generate` and what they gave: made again and compared, to the bit on the machine of the record.

A file `NAME.json` holds the machine, the commit and the calls, as data: the model, the prompts, the options and the
SHA-256 of the pixels of each image. `NAME.npz` beside it holds a small copy of each image (the mean of each cell of a
grid), for machines that round otherwise.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).resolve().parent
CELLS = 16
"""Cells along each side of a small copy."""
TOLERANCE = 1.5
"""Of 255, by which the mean of a cell may differ on another machine."""


def machine() -> dict[str, str]:
    """What decides how PyTorch rounds: the processor, the instructions in use and the version."""
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        lines = dict(line.split("\t", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines() if "\t" in line)
        fields = {name.strip(): value.strip(" \t:") for name, value in lines.items()}
        names = ("vendor_id", "cpu family", "model", "model name", "stepping")
        processor = ", ".join(fields[name] for name in names if name in fields)
    return {"processor": processor, "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


def commit() -> str:
    """The last commit of the code that runs, marked where the code differs from it."""
    log = ["git", "log", "-1", "--format=%H", "--", ":/src"]
    head = subprocess.run(log, cwd=HERE, capture_output=True, text=True, check=True)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ":/src"], cwd=HERE, check=False).returncode
    return head.stdout.strip() + ("+changed" if changed else "")


def picture(width: int, height: int) -> Image.Image:
    """Waves of colour, a formula of the size alone."""
    y, x = np.mgrid[:height, :width]
    u, v = x / width, y / height
    values = np.stack([0.5 + 0.5 * np.sin(9 * u + 4 * v), u * (1 - v), 0.5 + 0.5 * np.cos(7 * u * v)], -1)
    return Image.fromarray((255 * values).round().astype(np.uint8))


def mask(width: int, height: int) -> Image.Image:
    """White in a box right of the middle."""
    values = np.zeros((height, width), np.uint8)
    values[height // 4 : -height // 8, 3 * width // 8 : 7 * width // 8] = 255
    return Image.fromarray(values)


FORMULAS = {"picture": picture, "mask": mask}


def options(call: dict[str, Any]) -> dict[str, Any]:
    """The options of a call: `{"picture": [width, height]}` stands for the image of that formula, and guides are named
    by their folders."""
    given = call.get("options", {})
    if "guides" in given:
        from diptych.pretrained.load_guide import open_guide

        given = {**given, "guides": [(open_guide(source), scale) for source, scale in given["guides"]]}
    return {
        name: FORMULAS[formula](*value[formula])
        if isinstance(value, dict) and (formula := next(iter(value))) in FORMULAS
        else value
        for name, value in given.items()
    }


def generate(model: Any, call: dict[str, Any]) -> list[Image.Image]:
    """The images of a recorded call, by one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return model.generate(call["prompts"], **options(call)).images
    finally:
        torch.set_num_threads(threads)


def sha256(image: Image.Image) -> str:
    """Of the size and the pixels."""
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()


def small(image: Image.Image) -> np.ndarray:
    """The mean of each cell (CELLS or less, CELLS or less, 3), rounded."""
    values = np.asarray(image.convert("RGB"), dtype=float)
    for axis in (0, 1):
        parts = np.array_split(values, min(CELLS, values.shape[axis]), axis)
        values = np.stack([part.mean(axis) for part in parts], axis)
    return values.round().astype(np.uint8)


def read(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A record and its small copies."""
    with np.load(HERE / f"{name}.npz") as arrays:
        return json.loads((HERE / f"{name}.json").read_text()), dict(arrays)


def write(name: str, calls: list[dict[str, Any]], images: list[list[Image.Image]]) -> None:
    """Write a record of these calls and their images."""
    found = [{**call, "sha256": [sha256(image) for image in made]} for call, made in zip(calls, images, strict=True)]
    rows = ",\n".join(json.dumps(call, ensure_ascii=False) for call in found)
    head = json.dumps({"commit": commit(), "machine": machine()}, indent=1)[1:-2]
    (HERE / f"{name}.json").write_text(f'{{{head},\n "calls": [\n{rows}\n ]\n}}\n')
    copies = {f"{i}-{j}": small(image) for i, made in enumerate(images) for j, image in enumerate(made)}
    np.savez_compressed(HERE / f"{name}.npz", **copies)  # type: ignore[arg-type]


def compare(name: str, number: int, images: list[Image.Image]) -> None:
    """Assert that the images of call `number` are those of the record."""
    record, copies = read(name)
    wanted = record["calls"][number]["sha256"]
    assert len(images) == len(wanted)
    for i, (image, recorded) in enumerate(zip(images, wanted, strict=True)):
        copy = copies[f"{number}-{i}"].astype(int)
        found = small(image).astype(int)
        assert found.shape == copy.shape
        assert np.abs(found - copy).max() <= TOLERANCE, "another image"
        if machine() == record["machine"]:
            assert sha256(image) == recorded, "the same image but for some bits"


def numbered(name: str) -> list[Any]:
    """The calls of a record as parameters of a test: (number, call)."""
    import pytest

    calls = read(name)[0]["calls"]
    return [pytest.param(i, call, id=call["name"].replace(" ", "-")) for i, call in enumerate(calls)]
