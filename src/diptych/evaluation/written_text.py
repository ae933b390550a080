"""What is written in images, read by OCR, against what a prompt asks to be written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from diptych.core.errors import UserError

QUOTED = re.compile(r"[\"“”„«»]([^\"“”„«»]+)[\"“”„«»]|(?<!\w)['‘]([^'’]+)['’](?!\w)")
LEAST_SIDE = 512
"""Pixels to which smaller images are enlarged: the reader finds no text of a few pixels."""
Reader = Callable[[Image.Image], list[str]]
"""An image -> the lines of text in it."""


def quoted_text(prompt: str) -> str | None:
    """What stands in quotation marks in a prompt, several texts with a space between; none where nothing does."""
    found = [first or second for first, second in QUOTED.findall(prompt)]
    return " ".join(found).strip(" .,") or None


def words_of(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return re.findall(r"\w+", text.casefold())


def edit_distance(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The least number of insertions, deletions and replacements that make one the other (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


def text_scores(wanted: str, lines: Sequence[str]) -> dict[str, float]:
    """How well lines that were read give the text that was wanted; case and punctuation do not count.

    `words`: share of the wanted words that occur, each as often as it is wanted. `letters`: 1 less the edit distance
    between the two texts over the length of the longer one. `exact`: whether they are equal.
    """
    right, read = words_of(wanted), words_of(" ".join(lines))
    common = sum((Counter(right) & Counter(read)).values())
    first, second = " ".join(right), " ".join(read)
    return {
        "words": common / len(right) if right else 0.0,
        "letters": 1 - edit_distance(first, second) / max(len(first), len(second), 1),
        "exact": float(first == second),
    }


def open_reader() -> tuple[Reader, dict[str, str]] | None:
    """RapidOCR on the CPU, whose weights are in its package, and what it is; none where it is not installed."""
    try:
        from rapidocr_onnxruntime import RapidOCR  # type: ignore[import-not-found]
    except ImportError:
        return None
    import importlib.metadata

    engine: Any = RapidOCR()

    def read(image: Image.Image) -> list[str]:
        if (times := -(-LEAST_SIDE // min(image.size))) > 1:
            image = image.resize((image.width * times, image.height * times), Image.Resampling.BICUBIC)
        lines, _ = engine(np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1]))  # it reads BGR
        return [text for _, text, _ in lines or []]

    return read, {"ocr": "rapidocr-onnxruntime", "version": importlib.metadata.version("rapidocr-onnxruntime")}


def require_reader() -> tuple[Reader, dict[str, str]]:
    """As `open_reader`; a `UserError` where there is none."""
    if (reader := open_reader()) is None:
        raise UserError("reading text in images needs RapidOCR: `pip install 'diptych[ocr]'`, or leave --ocr out")
    return reader
