"""Rows of the tables that hold captions: JSON lines, and values separated by commas, semicolons or tabs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from diptych.data.caption_text import MAX_TEXT_BYTES, parse_json
from diptych.data.quarantine import BrokenExample

TABLES = ("metadata.jsonl", "captions.jsonl", "metadata.csv", "captions.csv", "metadata.tsv", "captions.tsv")
UNSUPPORTED_TABLES = ("metadata.parquet", "captions.parquet", "metadata.json", "captions.json")
NAME_FIELDS = ("file_name", "file", "image", "filename", "file_path", "image_path", "path")
"""Fields of a table that may name the image, in any case."""
MAX_TABLE_BYTES = 2**32
csv.field_size_limit(MAX_TEXT_BYTES)


def table_rows(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """(line, row) of a table; `BrokenExample` for a row that cannot be read."""
    return json_rows(text, name) if name.casefold().endswith(".jsonl") else csv_rows(text)


def json_rows(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of a file with JSON on each line; `BrokenExample` for a line without JSON."""
    lines = text.split("\n")
    first = next(filter(str.strip, lines), "").strip()
    if first.startswith("[") and not first.endswith("]"):
        raise BrokenExample("a list over several lines: write each of its objects on a line of its own")
    for line, row in enumerate(lines, 1):
        if row.strip():
            try:
                yield line, parse_json(row, name, line)
            except BrokenExample as error:
                yield line, error


def csv_rows(
    text: str, named: Sequence[str] = NAME_FIELDS, exact: bool = False
) -> Iterator[tuple[int, dict[str, str] | BrokenExample]]:
    """(first line, row) of a table with a header, separated by commas, semicolons or tabs: whichever gives a header
    with one of the fields `named`. Raises `csv.Error`, or `BrokenExample` where no head does.

    exact: a row of more values than the header has is broken; else what is beyond is left out.
    """
    lines = io.StringIO(text, newline="")
    before, header, separator = 0, "", ","
    for header in lines:
        before += 1
        if header.strip() and not header.casefold().startswith("sep="):  # Excel's first line
            break
    for separator in ",;\t":
        fields = [field.strip() for field in next(csv.reader([header], delimiter=separator), [])]
        if not {field.casefold() for field in fields}.isdisjoint(named):
            break
    else:
        if header.strip():
            if named is NAME_FIELDS:
                raise BrokenExample(
                    "its first line names no field file_name (the image's path from the table's folder)"
                )
            raise BrokenExample(f"its first line names none of the fields {', '.join(named)}")
        return
    consumed: list[str] = []
    reader = csv.reader((consumed.append(line) or line for line in lines), delimiter=separator, skipinitialspace=True)
    while True:
        line = before + reader.line_num + 1
        consumed.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        if len(consumed) > 1 and "".join(consumed).count('"') % 2:
            yield line, BrokenExample("its quotation mark is never closed: what follows would be its caption")
        elif exact and len(row) > len(fields):
            count = f"{len(row)} values, and the first line {len(fields)}"
            yield line, BrokenExample(f"it has {count}: put what holds a separator in quotation marks")
        elif row:
            yield line, dict(zip(fields, row, strict=False))
