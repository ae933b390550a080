"""A toy world: coloured shapes in two styles, and words as fixed random vectors, so that a judge learns in seconds."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image, ImageDraw

from diptych.core.hashing import stable_hash
from diptych.models.judge import JudgeConfig
from diptych.models.word_features import WordFeatures
from diptych.training.tasks.contrastive import ContrastConfig

COLOURS = {"red": "#e02020", "green": "#20b040", "blue": "#2040e0", "yellow": "#f0d020", "black": "#101010"}
SHAPES = ("disc", "box", "bar", "cross")
CONCEPTS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
STYLES = ("plain", "framed")
SMALL = JudgeConfig(
    size=16,
    widths=(16, 32),
    blocks=(1, 1),
    token_width=32,
    text_width=32,
    text_layers=1,
    heads=2,
    embedding=32,
    dropout=0.0,
)
TRAINING = ContrastConfig(judge=SMALL, negatives=12, foils=2)


class HashEncoder:
    """Each word is a fixed random vector: no knowledge, no order."""

    def __init__(self, width: int = 32) -> None:
        self.width, self.read = width, 0

    def encode(self, prompts: list[str]) -> SimpleNamespace:
        self.read += len(prompts)
        rows = [torch.stack([self._word(w) for w in prompt.replace(",", " ,").split()]) for prompt in prompts]
        mask = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.bool)
        for i, row in enumerate(rows):
            mask[i, : len(row)] = True
        return SimpleNamespace(sequence=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), mask=mask)

    def _word(self, word: str) -> torch.Tensor:
        return torch.randn(self.width, generator=torch.Generator().manual_seed(stable_hash(word) >> 1))


def words() -> WordFeatures:
    return WordFeatures(HashEncoder())


def drawing(
    concept: str, style: str, size: int = 16, origin: tuple[int, int] = (0, 0), page: Image.Image | None = None
):
    """A coloured shape that fills a square of `size` pixels, on white or on `page`."""
    colour, shape = concept.split()
    page = page or Image.new("RGB", (size, size), "white")
    draw, (x, y), n = ImageDraw.Draw(page), origin, size - 1
    fill = COLOURS[colour]
    if style == "framed":
        draw.rectangle((x, y, x + n, y + n), outline="#888888")
    if shape == "disc":
        draw.ellipse((x + 2, y + 2, x + n - 2, y + n - 2), fill=fill)
    elif shape == "box":
        draw.rectangle((x + 2, y + 2, x + n - 2, y + n - 2), fill=fill)
    elif shape == "bar":
        draw.rectangle((x + 1, y + n // 2 - 1, x + n - 1, y + n // 2 + 2), fill=fill)
    else:
        draw.line((x + 2, y + 2, x + n - 2, y + n - 2), fill=fill, width=3)
        draw.line((x + 2, y + n - 2, x + n - 2, y + 2), fill=fill, width=3)
    return page


def pair(left: str, right: str) -> Image.Image:
    """Two drawings side by side on a page of 16 pixels."""
    page = Image.new("RGB", (16, 16), "white")
    drawing(left, "plain", 8, (0, 4), page)
    return drawing(right, "plain", 8, (8, 4), page)


def examples() -> list[tuple[str, Image.Image, dict]]:
    """(key, image, metadata): every concept in both styles, every fourth framed one held out, and scenes of two."""
    found = []
    for i, concept in enumerate(CONCEPTS):
        for style in STYLES:
            split = "held-out" if style == "framed" and i % 4 == i // 4 % 4 else "train"
            captions = [f"a {concept}", f"a {concept}, in the style of {style}", concept]
            meta = {"kind": "single", "concept": concept, "style": style, "split": split, "captions": captions}
            found.append((f"{style}-{i}", drawing(concept, style), meta))
    for i, left in enumerate(CONCEPTS):
        for step in (1, 3, 6, 7, 9, 12, 14, 17):
            right = CONCEPTS[(i + step) % len(CONCEPTS)]
            meta = {
                "kind": "scene",
                "category": "positional" if step % 2 else "colours",
                "split": "held-out" if stable_hash(left, right) % 5 == 0 else "train",
                "captions": [f"a {left} left of a {right}"],
                "foils": [f"a {right} left of a {left}", f"a {left} left of a {left}"],
            }
            found.append((f"scene-{i}-{step}", pair(left, right), meta))
    return found


def write_shard(folder: Path) -> Path:
    """The toy world as a WebDataset shard."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "toys-0000.tar", "w") as tar:
        for key, image, meta in examples():
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            for name, data in ((f"{key}.png", buffer.getvalue()), (f"{key}.json", json.dumps(meta).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (folder / "manifest.json").write_text(json.dumps({"sha256": "a1b2"}))
    return folder
