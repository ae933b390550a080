"""Styles: words around a prompt, under a name, as web UIs keep them in a styles.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.core.errors import UserError
from diptych.studio.limits import FieldError

FILE = "styles.csv"
"""In a model's folder: its own styles."""
MOST = 500
PLACE = "{prompt}"


@dataclass(frozen=True)
class Style:
    """Words that are put around a prompt, or behind it where they do not say `{prompt}`."""

    prompt: str = ""
    negative: str = ""

    def apply(self, prompt: str, negative: str) -> tuple[str, str]:
        """A prompt and a negative prompt in this style."""
        return joined(self.prompt, prompt), joined(self.negative, negative)


def joined(words: str, prompt: str) -> str:
    if PLACE in words:
        return words.replace(PLACE, prompt)
    return ", ".join(part for part in (prompt, words) if part.strip())


def read_styles(path: Path) -> dict[str, Style]:
    """The styles of a CSV file with the columns name, prompt, negative_prompt. Raises a `UserError` for any other."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, restkey="more"))
    except FileNotFoundError:
        raise UserError(f"there is no file of styles {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a CSV file of styles: {error}") from None
    if not rows or not {"name", "prompt"} <= rows[0].keys():
        raise UserError(f"{path} is no file of styles: its first line is name,prompt,negative_prompt")
    if len(rows) > MOST:
        raise UserError(f"{path} has {len(rows)} styles: at most {MOST}")
    return {
        row["name"].strip(): Style(row["prompt"] or "", row.get("negative_prompt") or "")
        for row in rows
        if (row["name"] or "").strip()
    }


def apply_styles(names: Any, known: Mapping[str, Style], prompt: str, negative: str) -> tuple[str, str]:
    """A prompt and a negative prompt in the styles of these names, one after another. Raises a `FieldError`."""
    for name in [names] if isinstance(names, str) else names if isinstance(names, list) else [None]:
        if not isinstance(name, str):
            raise FieldError("style", "style is the name of a style, or a list of names")
        if name and name not in known:
            there = f"there are {', '.join(known)}" if known else "this model has none"
            raise FieldError("style", f"no style {name[:80]!r}: {there}")
        if name:
            prompt, negative = known[name].apply(prompt, negative)
    return prompt, negative
