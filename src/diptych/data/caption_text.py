"""Captions and metadata from text files, JSON, tables and shard members.

Text is UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one. Anything else is an error: its
encoding cannot be known, and a wrong guess would be trained on.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from typing import Any

from diptych.core.errors import UserError
from diptych.core.terminal import printable
from diptych.data.quarantine import BrokenExample

CAPTION_FIELDS = ("captions", "caption", "text", "texts", "prompt", "prompts", "description", "tags")
"""Fields of metadata that may hold captions, in any case: the first of them that does."""
LABEL_FIELDS = ("split", "kind", "style", "category")
"""Text fields of metadata that select examples or are counted."""
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(
        ("held-out", "heldout", "held_out", "val", "valid", "validation", "dev", "eval", "test"), "held-out"
    ),
}
"""Names of the two splits in metadata and in folder names."""
MAX_TEXT_BYTES = 16 * 2**20
"""Largest size of a caption file or of a JSON file beside an image, in bytes."""
INVISIBLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]*")
"""Text without a visible character: blanks, control characters, direction and zero-width marks."""
Fit = Callable[[str], str]
"""Cuts a caption to the length that a model reads. Raises a `UserError` for a caption that it cannot read."""
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
MARKS = tuple(mark for mark, _ in BYTE_ORDER_MARKS)


def decode_text(data: bytes, name: str) -> str:
    """The text of a file: in the encoding of its byte order mark, else UTF-8. Raises `BrokenExample` for others."""
    mark, encoding = b"", "utf-8"
    if data.startswith(MARKS):
        mark, encoding = next((m, e) for m, e in BYTE_ORDER_MARKS if data.startswith(m))
    try:
        text = data[len(mark) :].decode(encoding)
        if not mark and "\0" in text and re.search(r"\w\0|\0\w", text):  # what UTF-16 makes of ASCII is valid UTF-8
            raise BrokenExample(f"{name} holds NUL bytes (UTF-16 without a byte order mark?): save it as UTF-8")
        return text
    except UnicodeDecodeError as error:
        if mark:
            raise BrokenExample(f"{name} begins as {encoding[:-3].upper()} and is not: save it as UTF-8") from None
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x} in line {line}"
        raise BrokenExample(
            f"{name} is not UTF-8 ({byte}; latin-1, cp1252, or UTF-16 without a byte order mark?): save it as UTF-8"
        ) from None


def parse_json(text: str, name: str, line: int | None = None) -> Any:
    """The value of a JSON text. Raises `BrokenExample` with the name and line; `line` is that of a JSON-lines file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {line or error.lineno}, column {error.colno}"
        raise BrokenExample(f"{name} is not JSON ({at}: {error.msg})") from None
    except RecursionError:
        raise BrokenExample(f"{name} is nested too deeply" + (f" (line {line})" if line else "")) from None
    except ValueError as error:  # a number of more digits than Python converts
        raise BrokenExample(f"{name} cannot be read ({str(error).partition(':')[0]})") from None


def metadata_object(value: Any, name: str) -> dict[str, Any]:
    """The metadata in a JSON file: an object, or captions alone (a text or a list of texts)."""
    if isinstance(value, (str, list)):
        return {"captions": value}
    if not isinstance(value, dict):
        raise BrokenExample(f"{name} holds no object but {json_type(value)}")
    return value


def with_captions(meta: dict[str, Any], text: str | None = None) -> dict[str, Any]:
    """Metadata with a list "captions", which may be empty: its field `captions`, else the text of the caption file,
    else the first other field of `CAPTION_FIELDS`. Labels become texts, splits `train` or `held-out`. Raises
    `BrokenExample` for values of another type.
    """
    if not meta:  # a caption file alone, as in most shards
        return {"captions": texts_of(text)}
    names = {str(name).casefold(): name for name in reversed(meta)}
    texts = [meta.get(names.get(field)) for field in CAPTION_FIELDS]  # type: ignore[arg-type]
    texts.insert(1, text)
    captions = next((nonempty for value in texts if (nonempty := texts_of(value))), [])
    labels = {field: label_text(meta[field], field) for field in LABEL_FIELDS if meta.get(field) not in (None, "")}
    if "split" in labels:
        split = labels["split"]
        if split.casefold() not in SPLITS:
            raise BrokenExample(f"its split {split[:40]!r} is unknown: write train or held-out")
        labels["split"] = SPLITS[split.casefold()]
    return {**meta, **labels, "captions": captions}


def texts_of(value: Any) -> list[str]:
    """The texts of a text or of a list of texts, stripped; other values give none. Raises `BrokenExample` for a lone
    surrogate, which JSON can write."""
    values = value if isinstance(value, list) else [value]
    texts = [text.strip() for text in values if isinstance(text, str) and not INVISIBLE.fullmatch(text)]
    for text in texts:
        if not text.isascii() and re.search("[\ud800-\udfff]", text):
            raise BrokenExample(f"its caption {ascii(text)[:60]} is no valid Unicode text")
    return texts


def label_text(value: Any, field: str) -> str:
    """The text of a label field, which is no list or object."""
    if isinstance(value, (dict, list)):
        raise BrokenExample(f"its {field} is {json_type(value)}, not a text")
    return str(value)


def field_texts(meta: dict[str, Any], field: str) -> list[str]:
    """The value of a field that replaces the captions, as texts: a text, a number, or a list of them."""
    value = meta.get(field)
    values = value if isinstance(value, list) else [value]
    texts = [str(entry).strip() for entry in values if isinstance(entry, (str, int, float)) and str(entry).strip()]
    if not texts or len(texts) < len(values):
        problem = f"no field {field!r}" if value is None else f"its {field!r} is {json_type(value)}, not a text"
        raise BrokenExample(f"{problem}, which data.caption_field asks for")
    return texts_of(texts)


def json_type(value: Any) -> str:
    """The type of a JSON value, in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value), "a number")


def one_line(name: str) -> str:
    """A file name in one printable line: invalid UTF-8, control characters and line breaks are escaped."""
    if name.isascii() and name.isprintable():
        return name
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")


def is_scene(meta: dict[str, Any]) -> bool:
    """Whether an example is a composed scene, not a single drawing."""
    return meta.get("kind", "single") != "single"


def concept_of(meta: dict[str, Any]) -> str:
    """The concept of an example, or its first caption where the data names none (and for scenes)."""
    return meta["captions"][0] if is_scene(meta) or not meta.get("concept") else meta["concept"]


def fit_captions(captions: list[str], fit: Fit, long_captions: str) -> tuple[list[str], str]:
    """Captions as a model reads them, and the last change: too long captions are cut or dropped (empty: none were)."""
    fitted, change = [], ""
    for caption in captions:
        try:
            shorter = fit(caption)
        except UserError as error:
            change = f"its caption cannot be read by this model: {error}"
            continue
        if shorter != caption:
            cut = f"cut after {shorter[-30:]!r}" if long_captions == "cut" and shorter else "left out"
            change = f"its caption is longer than the text encoder reads: {cut}"
        if shorter == caption or (long_captions == "cut" and shorter):
            fitted.append(shorter)
    return fitted, change
