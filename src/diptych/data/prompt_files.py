"""Files of prompts to generate images from: text, tables, JSON lines, COCO's captions, Parquet.

Every line is checked before anything else is done; a `UserError` names the first that cannot be used.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych.core.errors import UserError
from diptych.core.values import short_repr
from diptych.data.caption_tables import csv_rows, json_rows
from diptych.data.caption_text import INVISIBLE, decode_text, json_type, parse_json
from diptych.data.paths import read_bounded
from diptych.data.quarantine import BrokenExample

PROMPT_FIELDS = ("prompt", "prompts", "caption", "text")
"""Fields that may hold the prompt, in any case: the first of them that a row has."""
ID_FIELDS = ("id", "key", "caption_id")
NEGATIVE_FIELDS = ("negative", "negative_prompt")
SURROGATE = re.compile("[\ud800-\udfff]")
SEEDS = range(2**63)
MOST_BYTES = 2**32
"""Of a file of prompts: all captions of COCO's training set are 60 MB."""
KINDS = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
Numbered = Iterator[tuple[int, Any]]
"""(line or row in the file, from 1; what stands there, or why it cannot be read)."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt of a file, and what stands beside it."""

    prompt: str
    id: str | int | None = None
    """Of its caption or image, as the file has it."""
    seed: int | None = None
    """That of its first image, where the file states one."""
    negative: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The other fields: `category`, `image_id`, ..."""

    def to_dict(self) -> dict[str, Any]:
        """As a line of a prompt file has it; what is none is left out."""
        named = {"prompt": self.prompt, "id": self.id, "seed": self.seed, "negative": self.negative}
        return {key: value for key, value in named.items() if value is not None} | dict(self.fields)


def read_prompts(path: Path | str) -> list[PromptRow]:
    """The prompts of a file, in order.

    Text has a prompt a line; a table, JSON lines or Parquet have one in the field prompt, prompts, caption or text, and
    may have id or key, seed, negative and others; JSON is a list of such objects or texts, or COCO's captions.

    Raises a `UserError` that names the file, and the first line that is empty or cannot be read.
    """
    path = Path(path)
    kind = path.suffix.casefold()
    if path.is_dir() or not path.exists():
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'no file'}: give a file of prompts")
    if kind not in KINDS:
        raise UserError(f"{path}: prompts are read from {', '.join(KINDS)}, by the ending of the name")
    what = "row" if kind in (".json", ".parquet") else "line"
    rows, broken = list[PromptRow](), list[tuple[int, str]]()
    try:
        for number, value in numbered(path, kind):
            try:
                if isinstance(value, BrokenExample):
                    raise value
                rows.append(prompt_row(value))
            except BrokenExample as error:
                broken.append((number, str(error)))
    except (BrokenExample, csv.Error) as error:
        text = str(error)
        raise UserError(text if str(path) in text else f"{path}: {text}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if broken:
        number, reason = broken[0]
        reason = reason if str(path) in reason else f"{path}, {what} {number}: {reason}"
        more = f"; {len(broken) - 1:,} more of {len(broken) + len(rows):,} are broken too" if len(broken) > 1 else ""
        raise UserError(f"{reason}{more}")
    if not rows:
        raise UserError(f"{path} holds no prompts")
    return rows


def numbered(path: Path, kind: str) -> Numbered:
    """What a file holds, row by row."""
    if kind == ".parquet":
        yield from enumerate(parquet_rows(path), 1)
        return
    text = decode_text(read_bounded(path, MOST_BYTES), str(path))
    if kind == ".txt":
        yield from enumerate(re.split(r"\r\n|\r|\n", text.rstrip()), 1) if text.strip() else ()
    elif kind in (".csv", ".tsv"):
        yield from csv_rows(text, PROMPT_FIELDS, exact=True)
    elif kind == ".json":
        yield from enumerate(json_list(parse_json(text, str(path))), 1)
    else:
        yield from json_rows(text, str(path))


def json_list(value: Any) -> Iterable[Any]:
    """The rows of a JSON file: those of a list, or COCO's captions, each with the name of its image."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and isinstance(captions := value.get("annotations"), list):
        return coco_rows(captions, value.get("images"))
    raise BrokenExample(f"it holds {json_type(value)}, neither a list nor COCO's captions (a list `annotations`)")


def coco_rows(captions: Sequence[Any], images: Any) -> Iterator[Any]:
    """The annotations of COCO's `captions_*.json` with fields id, image_id, caption and file_name."""
    names = {}
    for image in images if isinstance(images, list) else ():
        if isinstance(image, dict) and isinstance(number := image.get("id"), (int, str)):
            name = image.get("file_name")
            if names.setdefault(number, name) != name:
                raise BrokenExample(f"image {number} has two file names, {names[number]} and {name}: mend its `images`")
    for one in captions:
        if not isinstance(one, dict) or not isinstance(one.get("caption"), str):
            yield BrokenExample("it has no caption: give the file captions_*.json")
        elif not isinstance(one.get("image_id"), (int, str)):
            yield BrokenExample("it has no image_id, which COCO's captions have")
        else:
            name = names.get(one["image_id"])
            yield {**one, **({} if name is None else {"file_name": name})}


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file, by pyarrow or else pandas."""
    with contextlib.suppress(ImportError):
        import pyarrow.parquet  # type: ignore[import-not-found]

        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except OSError:
            raise
        except Exception as error:  # pyarrow's own kinds
            raise BrokenExample(f"no readable Parquet file ({' '.join(str(error).split())[:120]})") from None
    raise UserError(f"{path} is Parquet, which needs pyarrow: `pip install pyarrow`, or give it as .csv or .jsonl")


def prompt_row(value: Any) -> PromptRow:
    """A row of a file, checked. Raises `BrokenExample`."""
    if isinstance(value, str):
        return PromptRow(readable("prompt", value))
    if not isinstance(value, dict):
        raise BrokenExample(f"it is {json_type(value)}, not a text or an object")
    left = {str(key): one for key, one in value.items() if one is not None and one == one}  # Parquet's NaN is none
    names = {key.casefold(): key for key in reversed(left)}

    def take(*fields: str) -> Any:
        for name in fields:
            if name in names:
                return left.pop(names.pop(name))
        return None

    prompt = take(*PROMPT_FIELDS)
    if prompt is None:
        raise BrokenExample(f"it has no {', '.join(PROMPT_FIELDS[:-1])} or {PROMPT_FIELDS[-1]}")
    prompt, seed, identity = readable("prompt", prompt), take("seed"), take(*ID_FIELDS)
    negative, category = take(*NEGATIVE_FIELDS), take("category")
    if not isinstance(identity, (str, int, type(None))):
        raise BrokenExample(f"its id is {short_repr(identity)}, neither a text nor a whole number")
    if negative is not None and (not isinstance(negative, str) or not unicode(negative)):
        raise BrokenExample(f"its negative prompt is {short_repr(negative)}, not a text")
    if category is not None:
        left = {"category": str(category).strip(), **left}
    return PromptRow(
        prompt, None if identity == "" else identity, read_seed(seed), (negative or "").strip() or None, left
    )


def readable(name: str, text: Any) -> str:
    """A text without the space around it. Raises `BrokenExample` for an empty one and for what is none."""
    if not isinstance(text, str):
        raise BrokenExample(f"its {name} is {json_type(text)}, not a text")
    if INVISIBLE.fullmatch(text):
        raise BrokenExample(f"the {name} is empty")
    if not unicode(text):
        raise BrokenExample(f"its {name} {ascii(text)[:60]} is no valid Unicode text")
    if "\0" in text:
        raise BrokenExample(f"its {name} holds a null byte")
    return text.strip()


def unicode(text: str) -> bool:
    """Whether a text can be written; JSON can state half a character."""
    return text.isascii() or not SURROGATE.search(text)


def read_seed(value: Any) -> int | None:
    """A seed, in a table as text. Raises `BrokenExample` for what is none."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,19}\s*", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():  # of a Parquet column with gaps
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value not in SEEDS:
        raise BrokenExample(f"its seed is {short_repr(value)}, not a whole number from 0 to 2^63 - 1")
    return value
