"""How captions are read, the same from every place: text files, JSON, tables, members of shards.

Text is UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one. Anything else is refused by name: what
latin-1, cp1252 or GBK would make of it cannot be known, and a guess would be learned.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

from diptych.core.terminal import printable
from diptych.data.quarantine import Broken

CAPTION_FIELDS = ("captions", "caption", "text", "texts", "prompt", "prompts", "description", "tags")
"""Fields of metadata that may hold captions, in any case: the first of them that does."""
LABELS = ("split", "kind", "style", "category")
"""Fields of metadata that choose examples or are counted: texts."""
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(
        ("held-out", "heldout", "held_out", "val", "valid", "validation", "dev", "eval", "test"), "held-out"
    ),
}
"""What metadata, or the folders of a data set, may call the two splits."""
LONGEST_TEXT = 16 * 2**20
"""Bytes of a caption file or a JSON beside a picture: more is no caption."""
INVISIBLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]*")
"""Text in which there is nothing to see: blanks, control characters, marks of direction and of no width."""
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decoded(data: bytes, name: str) -> str:
    """The text of a file, known by its byte order mark, else UTF-8. Raises `Broken` with the name where it is not."""
    mark, encoding = next(((m, e) for m, e in MARKS if data.startswith(m)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
        if not mark and re.search(r"\w\0|\0\w", text):  # what UTF-16 makes of ASCII is valid UTF-8
            raise Broken(f"{name} holds NUL bytes (UTF-16 without a byte order mark?): save it as UTF-8")
        return text
    except UnicodeDecodeError as error:
        if mark:
            raise Broken(f"{name} begins as {encoding[:-3].upper()} and is not: save it as UTF-8") from None
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x} in line {line}"
        raise Broken(
            f"{name} is not UTF-8 ({byte}; latin-1, cp1252, or UTF-16 without a byte order mark?): save it as UTF-8"
        ) from None


def parsed(text: str, name: str, line: int | None = None) -> Any:
    """What a JSON text holds. Raises `Broken` with the name and the line, which is `line` of a file of one a line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {line or error.lineno}, column {error.colno}"
        raise Broken(f"{name} is not JSON ({at}: {error.msg})") from None
    except RecursionError:
        raise Broken(f"{name} is nested too deeply" + (f" (line {line})" if line else "")) from None
    except ValueError as error:  # a number of more digits than Python converts
        raise Broken(f"{name} cannot be read ({str(error).partition(':')[0]})") from None


def metadata(value: Any, name: str) -> dict[str, Any]:
    """What a JSON beside a picture says: an object, or captions alone (a text, a list of texts)."""
    if isinstance(value, (str, list)):
        return {"captions": value}
    if not isinstance(value, dict):
        raise Broken(f"{name} holds no object but {spoken(value)}")
    return value


def with_captions(meta: dict[str, Any], text: str | None = None) -> dict[str, Any]:
    """Metadata with a list "captions", which is empty where nothing says any: its own `captions`, else the text of the
    file beside the picture, else what another field of `CAPTION_FIELDS` says. Labels become texts, splits `train` or
    `held-out`. Raises `Broken` for what can be none of these.
    """
    names = {str(name).casefold(): name for name in reversed(meta)}
    texts = [meta.get(names.get(field)) for field in CAPTION_FIELDS]  # type: ignore[arg-type]
    texts.insert(1, text)
    captions = next((found for one in texts if (found := texts_of(one))), [])
    labels = {field: label(meta[field], field) for field in LABELS if meta.get(field) not in (None, "")}
    if "split" in labels:
        split = labels["split"]
        if split.casefold() not in SPLITS:
            raise Broken(f"its split {split[:40]!r} is unknown: write train or held-out")
        labels["split"] = SPLITS[split.casefold()]
    return {**meta, **labels, "captions": captions}


def texts_of(value: Any) -> list[str]:
    """The texts of a text or of a list of them, stripped; none of what is neither. Raises `Broken` for half a character
    (a lone surrogate, as JSON can write it)."""
    values = value if isinstance(value, list) else [value]
    texts = [one.strip() for one in values if isinstance(one, str) and not INVISIBLE.fullmatch(one)]
    for one in texts:
        if re.search("[\ud800-\udfff]", one):
            raise Broken(f"its caption {ascii(one)[:60]} is no valid Unicode text")
    return texts


def label(value: Any, field: str) -> str:
    """A field that must say one word, as text."""
    if isinstance(value, (dict, list)):
        raise Broken(f"its {field} is {spoken(value)}, not a text")
    return str(value)


def labels_of(meta: dict[str, Any], field: str) -> list[str]:
    """What a field says in the place of captions: a text, a number, or a list of them."""
    value = meta.get(field)
    values = value if isinstance(value, list) else [value]
    kept = [str(one).strip() for one in values if isinstance(one, (str, int, float)) and str(one).strip()]
    if not kept or len(kept) < len(values):
        said = f"no field {field!r}" if value is None else f"its {field!r} is {spoken(value)}, not a text"
        raise Broken(f"{said}, which data.caption_field asks for")
    return texts_of(kept)


def spoken(value: Any) -> str:
    """What kind of JSON value it is, in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value), "a number")


def one_line(name: str) -> str:
    """A file name as any terminal and file can show it: bytes that are no UTF-8, control characters and line breaks
    written out."""
    if name.isascii() and name.isprintable():
        return name
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")


def is_scene(meta: dict[str, Any]) -> bool:
    """Whether an example is a composed scene, not a single drawing."""
    return meta.get("kind", "single") != "single"


def concept_of(meta: dict[str, Any]) -> str:
    """The concept of an example, or its first caption where the data names none (and for scenes)."""
    return meta["captions"][0] if is_scene(meta) or not meta.get("concept") else meta["concept"]
