"""Folders of image files with their captions beside them or in a table.

A caption is found in this order: rows of `metadata.jsonl`, `captions.jsonl`, or the same as `.csv` or `.tsv`, in the
image's folder or one above it (`file_name` and `text`, as Hugging Face's imagefolder has them, or any other field of
`text.CAPTION_FIELDS`; several rows of an image are several captions); `name.txt`, `name.caption`, `name.png.txt`; a
`name.json`. Upper and lower case are the same. The folder that an image lies in is its field `folder`: a class.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diptych.core.image_files import is_encoded
from diptych.data.caption_text import (
    MAX_TEXT_BYTES,
    SPLITS,
    decode_text,
    json_type,
    metadata_object,
    one_line,
    parse_json,
    with_captions,
)
from diptych.data.paths import read_bounded, walk
from diptych.data.quarantine import BrokenExample, reason_of
from diptych.data.shards import CAPTION_EXTENSIONS, CONVERT_HINT, IMAGE_EXTENSIONS, UNSUPPORTED_EXTENSIONS

TABLES = ("metadata.jsonl", "captions.jsonl", "metadata.csv", "captions.csv", "metadata.tsv", "captions.tsv")
UNSUPPORTED_TABLES = ("metadata.parquet", "captions.parquet", "metadata.json", "captions.json")
NAME_FIELDS = ("file_name", "file", "image", "filename", "file_path", "image_path", "path")
"""Fields of a table that may name the image, in any case."""
NOT_CAPTIONS = ("readme", "license", "licence", "copying", "notice", "changelog", "citation", "requirements")
"""Names of texts that lie in folders of data and belong to no image."""
MAX_TABLE_BYTES = 2**32
csv.field_size_limit(MAX_TEXT_BYTES)


class FolderSource:
    """The images under a folder, in the order of their paths.

    `skipped`: files and rows that training does not read, path from the folder -> reason.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.skipped = folder, dict[str, str]()
        self._folder_name = one_line(str(folder))
        self._paths: list[Path] = []
        self._unsupported: list[Path] = []  # images of kinds that are left out; captions beside them are no strays
        self._caption_files: dict[str, dict[str, list[str]]] = defaultdict(
            dict
        )  # folder -> name in lower case -> names
        tables: list[Path] = []
        for path in walk(folder, self.skipped):
            name, extension = path.name.casefold(), path.suffix.casefold().lstrip(".")
            if extension in IMAGE_EXTENSIONS:
                self._paths.append(path)
            elif name in TABLES:
                tables.append(path)
            elif name in UNSUPPORTED_TABLES:
                self.skipped[self._relative_name(path)] = (
                    "not read: write it as metadata.jsonl, an object with file_name a line"
                )
            elif extension in (*CAPTION_EXTENSIONS, "json"):
                self._caption_files[os.path.dirname(path)].setdefault(name, []).append(path.name)
            elif extension in UNSUPPORTED_EXTENSIONS:
                self.skipped[self._relative_name(path)] = f".{extension} images are not read: {CONVERT_HINT}"
                self._unsupported.append(path)
            elif path.name.casefold().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".zip")):
                self.skipped[self._relative_name(path)] = "an archive that is compressed: unpack it"
            elif is_image_file(path):
                self.skipped[self._relative_name(path)] = (
                    f"an image that is not named as one: give it .{IMAGE_EXTENSIONS[0]} or the like"
                )
        self._paths.sort()
        self._by_path = {os.path.normpath(path): str(path) for path in self._paths}
        self._any_case = {path.casefold(): whole for path, whole in self._by_path.items()} if tables else {}
        self._rows: dict[str, list[dict[str, Any]]] = {}
        read_from: dict[str, str] = {}
        for table in sorted(tables, key=lambda table: (-TABLES.index(table.name.casefold()), table)):
            rows, table_name = self._read_table(table), self._relative_name(table)
            for path in rows.keys() & self._rows.keys():
                name = f"{read_from[path]}, {self._relative_name(Path(path))}"
                self.skipped[name] = f"another caption of it is in {table_name}, which is read"
            self._rows |= rows
            read_from |= dict.fromkeys(rows, table_name)
        self._splits = self._split_folders()
        self._skip_unused()

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> tuple[str, str]:
        return self._folder_name, self._relative_name(self._paths[index])

    def meta(self, index: int) -> dict[str, Any]:
        path = self._paths[index]
        top, *deeper = self._relative(path).split(os.sep)
        fields = {"folder": [top, *deeper][-2]} if deeper else {}
        if top in self._splits:
            fields["split"] = self._splits[top]
        rows = [with_captions({**fields, **row}) for row in self._rows.get(str(path), ())]
        if captions := [caption for row in rows for caption in row["captions"]]:
            return {**rows[0], "captions": captions}
        meta, text = {}, None
        if (file := self._file(path, ("json",))) is not None:
            meta = metadata_object(parse_json(self._text(file), file.name), file.name)
        if (file := self._file(path, CAPTION_EXTENSIONS)) is not None:
            text = self._text(file)
        row = {key: value for key, value in rows[0].items() if key != "captions"} if rows else {}
        return with_captions({**fields, **meta, **row}, text)

    def image_bytes(self, index: int) -> bytes:
        return read_bounded(self._paths[index])

    def missing_caption(self, index: int) -> BrokenExample:
        """The error for an image without a caption."""
        path = self._paths[index]
        file = self._file(path, (*CAPTION_EXTENSIONS, "json"))
        return BrokenExample(f"no caption in {file.name}" if file is not None else "no caption")

    def may_state_split(self, index: int) -> bool:
        return True

    def _text(self, path: Path) -> str:
        return decode_text(read_bounded(path, MAX_TEXT_BYTES), path.name)

    def _relative_name(self, path: Path) -> str:
        return one_line(self._relative(path))

    def _relative(self, path: Path) -> str:
        """The path from the folder."""
        whole, prefix = str(path), os.path.join(self.folder, "")
        return whole[len(prefix) :] if whole.startswith(prefix) else os.path.relpath(whole, self.folder)

    def _file(self, image: Path, extensions: tuple[str, ...]) -> Path | None:
        """The caption file of an image: cat.txt or cat.png.txt of cat.png, in any case, the exact case first."""
        folder, whole = os.path.split(image)
        if files := self._caption_files.get(folder):
            for stem in (os.path.splitext(whole)[0], whole):
                for extension in extensions:
                    if names := files.get(f"{stem}.{extension}".casefold()):
                        return Path(folder, name if (name := f"{stem}.{extension}") in names else names[0])
        return None

    def _read_table(self, table: Path) -> dict[str, list[dict[str, Any]]]:
        """Path of an image -> its rows; rows that cannot be used are skipped, with their line."""
        rows: dict[str, list[dict[str, Any]]] = {}
        table_name = self._relative_name(table)
        try:
            text = decode_text(read_bounded(table, MAX_TABLE_BYTES), table.name)
            for line, row in table_rows(text, table.name):
                try:
                    rows.setdefault(self._row_path(table, row), []).append(row)
                except BrokenExample as error:
                    self.skipped[f"{table_name}, line {line}"] = str(error)
        except BrokenExample as error:
            self.skipped[table_name] = str(error)
        except csv.Error as error:
            self.skipped[table_name] = f"no table ({error})"
        except OSError as error:
            self.skipped[table_name] = reason_of(error, str(table))
        return rows

    def _row_path(self, table: Path, row: Any) -> str:
        """The path of the image that a row of a table describes. Raises `BrokenExample` where there is none."""
        if isinstance(row, BrokenExample):
            raise row
        if not isinstance(row, dict):
            raise BrokenExample(f"no object but {json_type(row)}")
        fields = {str(key).casefold(): value for key, value in reversed(row.items())}
        name = next((n for field in NAME_FIELDS if isinstance(n := fields.get(field), str) and n), None)
        if name is None:
            raise BrokenExample("no file_name (the image's path from the table's folder)")
        for written in (name, name.replace("\\", "/")):
            path = os.path.normpath(os.path.join(table.parent, written))
            if known_path := self._by_path.get(path) or self._any_case.get(path.casefold()):
                return known_path
        raise BrokenExample(f"its image {one_line(name)[:200]} is not there")

    def _split_folders(self) -> dict[str, str]:
        """Folders at the top that are named train and val, or the like: their images are of these splits, where
        there are both."""
        tops = {self._relative(path).partition(os.sep)[0] for path in self._paths}
        splits = {name: SPLITS[name.casefold()] for name in tops if name.casefold() in SPLITS}
        return splits if len(set(splits.values())) == 2 else {}

    def _skip_unused(self) -> None:
        """Record captions that are not read: all but one of several texts of an image; texts without an image in a
        folder of images, and JSON files without one in a folder where others have one."""
        used: dict[str, set[str]] = defaultdict(set)
        ambiguous: set[str] = set()  # folders in which an image has several texts
        for path in (*self._paths, *self._unsupported):
            folder = os.path.dirname(path)
            captions = self._caption_files.get(folder, {})
            stems = [path.stem.casefold(), path.name.casefold()]
            used[folder] |= {
                n for stem in stems for e in (*CAPTION_EXTENSIONS, "json") if (n := f"{stem}.{e}") in captions
            }
            if sum(len(captions.get(f"{stem}.{end}", ())) for stem in stems for end in CAPTION_EXTENSIONS) > 1:
                ambiguous.add(folder)
        texts = {
            str(self._file(path, CAPTION_EXTENSIONS)) for path in self._paths if os.path.dirname(path) in ambiguous
        }
        for folder in ambiguous:
            for name in used[folder]:
                for file_name in self._caption_files[folder][name]:
                    if not name.endswith(".json") and os.path.join(folder, file_name) not in texts:
                        self.skipped[self._relative_name(Path(folder, file_name))] = (
                            "another caption of its image is read"
                        )
        for folder, others in used.items():
            has_json = any(name.endswith(".json") for name in others)
            for name in sorted(self._caption_files.get(folder, {}).keys() - others):
                if name.partition(".")[0] not in NOT_CAPTIONS and (has_json or not name.endswith(".json")):
                    for file_name in self._caption_files[folder][name]:
                        self.skipped[self._relative_name(Path(folder, file_name))] = "a caption without a picture"


def is_image_file(path: Path) -> bool:
    """Whether a file of no known kind, without an extension or with more behind one, is an image by its content."""
    if path.suffix and not re.search(rf"\.({'|'.join(IMAGE_EXTENSIONS)})\b|_", path.name, re.IGNORECASE):
        return False  # not opened
    try:
        with path.open("rb") as file:
            return is_encoded(file.read(12))
    except OSError:
        return False


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


def csv_rows(text: str) -> Iterator[tuple[int, dict[str, str] | BrokenExample]]:
    """(first line, row) of a table with a header, separated by commas, semicolons or tabs: whichever gives a header
    with a field that names the image. Raises `csv.Error`, or `BrokenExample` where no head does."""
    lines = io.StringIO(text, newline="")
    before, header, separator = 0, "", ","
    for header in lines:
        before += 1
        if header.strip() and not header.casefold().startswith("sep="):  # Excel's first line
            break
    for separator in ",;\t":
        fields = [field.strip() for field in next(csv.reader([header], delimiter=separator), [])]
        if not {field.casefold() for field in fields}.isdisjoint(NAME_FIELDS):
            break
    else:
        if header.strip():
            raise BrokenExample("its first line names no field file_name (the image's path from the table's folder)")
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
        elif row:
            yield line, dict(zip(fields, row, strict=False))
