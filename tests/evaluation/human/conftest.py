"""Small studies of drawn images, made once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.evaluation.human.make_study import make_coco, make_drawbench

COLOURS = ("red", "green", "blue", "white")
SHAPES = ("circle", "square", "cross")
PROMPTS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]


def write_images(folder: Path, prompts: Sequence[str], count: int, seed: int, side: int = 24) -> Path:
    """`count` different images of each prompt, with captions.jsonl."""
    folder.mkdir(parents=True)
    draw = np.random.Generator(np.random.PCG64(seed))
    rows = []
    for n, prompt in enumerate(prompts):
        for k in range(count):
            name = f"{n:03}.png" if count == 1 else f"{n:03}-{k}.png"
            coarse = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((side, side)).save(folder / name)
            rows.append(json.dumps({"file_name": name, "text": prompt}))
    (folder / "captions.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three models, and of a reference; a table of prompts."""
    root = tmp_path_factory.mktemp("images")
    for seed, name in enumerate(("alpha", "beta", "gamma"), 1):
        write_images(root / name, PROMPTS, 3, seed)
    write_images(root / "reference", PROMPTS, 1, 9, side=40)
    rows = [f'"{prompt}",{"Colors" if "c" in prompt[-6:] else "Shapes "}' for prompt in PROMPTS]
    (root / "prompts.csv").write_text("Prompts,Category\n" + "\n".join(rows) + "\n")
    return root


@pytest.fixture
def coco(folders: Path, tmp_path: Path) -> Path:
    models = {name: folders / name for name in ("alpha", "beta")}
    make_coco(tmp_path / "coco", models, folders / "reference", pairs=8, batch=4, controls=2)
    return tmp_path / "coco"


@pytest.fixture
def drawbench(folders: Path, tmp_path: Path) -> Path:
    models = {name: folders / name for name in ("alpha", "beta", "gamma")}
    make_drawbench(tmp_path / "bench", models, folders / "prompts.csv", set_size=2, controls=2)
    return tmp_path / "bench"
