"""Folders of picture files with their captions beside them or in a table.

A caption is found in this order: rows of `metadata.jsonl`, `captions.jsonl`, or the same as `.csv` or `.tsv`, in the
picture's folder or one above it (`file_name` and `text`, as Hugging Face's imagefolder has them, or any other field of
`text.CAPTION_FIELDS`; several rows of a picture are several captions); `name.txt`, `name.caption`, `name.png.txt`; a
`name.json`. Upper and lower case are the same. The folder that a picture lies in is its field `folder`: a class.
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
    LONGEST_TEXT,
    SPLITS,
    decoded,
    metadata,
    one_line,
    parsed,
    spoken,
    with_captions,
)
from diptych.data.paths import read_bounded, walk
from diptych.data.quarantine import Broken, reason_of
from diptych.data.shards import CONVERT, OTHER_PICTURES, PICTURES, TEXTS

TABLES = ("metadata.jsonl", "captions.jsonl", "metadata.csv", "captions.csv", "metadata.tsv", "captions.tsv")
NO_TABLES = ("metadata.parquet", "captions.parquet", "metadata.json", "captions.json")
NAME_FIELDS = ("file_name", "file", "image", "filename", "file_path", "image_path", "path")
"""Fields of a table that may name the picture, in any case."""
NO_CAPTIONS = ("readme", "license", "licence", "copying", "notice", "changelog", "citation", "requirements")
"""Names of texts that lie in folders of data and belong to no picture."""
LARGEST_TABLE = 2**32
csv.field_size_limit(LONGEST_TEXT)


class FolderSource:
    """Every picture under a folder, in the order of their paths.

    `left` holds what training will not see: the path from the folder, and why.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.left = folder, dict[str, str]()
        self._where = one_line(str(folder))
        self._paths: list[Path] = []
        self._unread: list[Path] = []  # pictures of kinds that are left out; captions beside them are no strays
        self._beside: dict[str, dict[str, list[str]]] = defaultdict(dict)  # folder -> name in lower case -> names
        tables: list[Path] = []
        for path in walk(folder, self.left):
            name, extension = path.name.casefold(), path.suffix.casefold().lstrip(".")
            if extension in PICTURES:
                self._paths.append(path)
            elif name in TABLES:
                tables.append(path)
            elif name in NO_TABLES:
                self.left[self._named(path)] = "not read: write it as metadata.jsonl, an object with file_name a line"
            elif extension in (*TEXTS, "json"):
                self._beside[os.path.dirname(path)].setdefault(name, []).append(path.name)
            elif extension in OTHER_PICTURES:
                self.left[self._named(path)] = f".{extension} pictures are not read: {CONVERT}"
                self._unread.append(path)
            elif path.name.casefold().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".zip")):
                self.left[self._named(path)] = "an archive that is compressed: unpack it"
            elif is_picture(path):
                self.left[self._named(path)] = f"a picture that is not named as one: give it .{PICTURES[0]} or the like"
        self._paths.sort()
        self._known = {os.path.normpath(path): str(path) for path in self._paths}
        self._any_case = {path.casefold(): whole for path, whole in self._known.items()} if tables else {}
        self._rows: dict[str, list[dict[str, Any]]] = {}
        read_from: dict[str, str] = {}
        for table in sorted(tables, key=lambda table: (-TABLES.index(table.name.casefold()), table)):
            found, named = self._read_table(table), self._named(table)
            for path in found.keys() & self._rows.keys():
                name = f"{read_from[path]}, {self._named(Path(path))}"
                self.left[name] = f"another caption of it is in {named}, which is read"
            self._rows |= found
            read_from |= dict.fromkeys(found, named)
        self._splits = self._split_folders()
        self._note_unused()

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> tuple[str, str]:
        return self._where, self._named(self._paths[index])

    def meta(self, index: int) -> dict[str, Any]:
        path = self._paths[index]
        top, *deeper = self._inside(path).split(os.sep)
        own = {"folder": [top, *deeper][-2]} if deeper else {}
        if top in self._splits:
            own["split"] = self._splits[top]
        rows = [with_captions({**own, **row}) for row in self._rows.get(str(path), ())]
        if captions := [caption for row in rows for caption in row["captions"]]:
            return {**rows[0], "captions": captions}
        meta, text = {}, None
        if (beside := self._file(path, ("json",))) is not None:
            meta = metadata(parsed(self._text(beside), beside.name), beside.name)
        if (beside := self._file(path, TEXTS)) is not None:
            text = self._text(beside)
        row = {key: value for key, value in rows[0].items() if key != "captions"} if rows else {}
        return with_captions({**own, **meta, **row}, text)

    def picture(self, index: int) -> bytes:
        return read_bounded(self._paths[index])

    def no_caption(self, index: int) -> Broken:
        """The error of a picture of which nothing says a caption."""
        path = self._paths[index]
        found = self._file(path, (*TEXTS, "json"))
        return Broken(f"no caption in {found.name}" if found is not None else "no caption")

    def states_split(self, index: int) -> bool:
        return True

    def _text(self, path: Path) -> str:
        return decoded(read_bounded(path, LONGEST_TEXT), path.name)

    def _named(self, path: Path) -> str:
        return one_line(self._inside(path))

    def _inside(self, path: Path) -> str:
        """The path from the folder."""
        whole, prefix = str(path), os.path.join(self.folder, "")
        return whole[len(prefix) :] if whole.startswith(prefix) else os.path.relpath(whole, self.folder)

    def _file(self, picture: Path, extensions: tuple[str, ...]) -> Path | None:
        """What lies beside a picture: cat.txt or cat.png.txt of cat.png, in any case, its own case first."""
        folder, whole = os.path.split(picture)
        if beside := self._beside.get(folder):
            for stem in (os.path.splitext(whole)[0], whole):
                for extension in extensions:
                    if names := beside.get(f"{stem}.{extension}".casefold()):
                        return Path(folder, name if (name := f"{stem}.{extension}") in names else names[0])
        return None

    def _read_table(self, table: Path) -> dict[str, list[dict[str, Any]]]:
        """Rows by the path of the picture that they describe; those that cannot be used are left out, with the line."""
        rows: dict[str, list[dict[str, Any]]] = {}
        named = self._named(table)
        try:
            text = decoded(read_bounded(table, LARGEST_TABLE), table.name)
            for line, row in rows_of(text, table.name):
                try:
                    rows.setdefault(self._described(table, row), []).append(row)
                except Broken as error:
                    self.left[f"{named}, line {line}"] = str(error)
        except Broken as error:
            self.left[named] = str(error)
        except csv.Error as error:
            self.left[named] = f"no table ({error})"
        except OSError as error:
            self.left[named] = reason_of(error, str(table))
        return rows

    def _described(self, table: Path, row: Any) -> str:
        """The path of the picture that a row of a table describes. Raises `Broken` where it is of none."""
        if isinstance(row, Broken):
            raise row
        if not isinstance(row, dict):
            raise Broken(f"no object but {spoken(row)}")
        fields = {str(key).casefold(): value for key, value in reversed(row.items())}
        name = next((n for field in NAME_FIELDS if isinstance(n := fields.get(field), str) and n), None)
        if name is None:
            raise Broken("no file_name (the picture's path from the table's folder)")
        for written in (name, name.replace("\\", "/")):
            path = os.path.normpath(os.path.join(table.parent, written))
            if found := self._known.get(path) or self._any_case.get(path.casefold()):
                return found
        raise Broken(f"its picture {one_line(name)[:200]} is not there")

    def _split_folders(self) -> dict[str, str]:
        """Folders at the top that are named train and val, or the like: their pictures are of these splits, where
        there are both."""
        tops = {self._inside(path).partition(os.sep)[0] for path in self._paths}
        found = {name: SPLITS[name.casefold()] for name in tops if name.casefold() in SPLITS}
        return found if len(set(found.values())) == 2 else {}

    def _note_unused(self) -> None:
        """Name captions that are not read: of several texts of a picture all but one; those without a picture, that is
        texts in a folder that holds pictures, and a JSON where others in its folder lie beside pictures."""
        used: dict[str, set[str]] = defaultdict(set)
        doubtful: set[str] = set()  # folders in which a picture has several texts
        for path in (*self._paths, *self._unread):
            folder = os.path.dirname(path)
            beside = self._beside.get(folder, {})
            stems = [path.stem.casefold(), path.name.casefold()]
            used[folder] |= {n for stem in stems for e in (*TEXTS, "json") if (n := f"{stem}.{e}") in beside}
            if sum(len(beside.get(f"{stem}.{end}", ())) for stem in stems for end in TEXTS) > 1:
                doubtful.add(folder)
        texts = {str(self._file(path, TEXTS)) for path in self._paths if os.path.dirname(path) in doubtful}
        for folder in doubtful:
            for name in used[folder]:
                for one in self._beside[folder][name]:
                    if not name.endswith(".json") and os.path.join(folder, one) not in texts:
                        self.left[self._named(Path(folder, one))] = "another caption of its picture is read"
        for folder, others in used.items():
            alike = any(name.endswith(".json") for name in others)
            for name in sorted(self._beside.get(folder, {}).keys() - others):
                if name.partition(".")[0] not in NO_CAPTIONS and (alike or not name.endswith(".json")):
                    for one in self._beside[folder][name]:
                        self.left[self._named(Path(folder, one))] = "a caption without a picture"


def is_picture(path: Path) -> bool:
    """Whether a file of no known kind, without an extension or with more behind one, is a picture by its content."""
    if path.suffix and not re.search(rf"\.({'|'.join(PICTURES)})\b|_", path.name, re.IGNORECASE):
        return False  # not opened
    try:
        with path.open("rb") as file:
            return is_encoded(file.read(12))
    except OSError:
        return False


def rows_of(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """(line, row) of a table; `Broken` in the place of one that cannot be read."""
    return json_rows(text, name) if name.casefold().endswith(".jsonl") else csv_rows(text)


def json_rows(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of a file with JSON on each line; `Broken` where a line holds none."""
    lines = text.split("\n")
    first = next(filter(str.strip, lines), "").strip()
    if first.startswith("[") and not first.endswith("]"):
        raise Broken("a list over several lines: write each of its objects on a line of its own")
    for line, row in enumerate(lines, 1):
        if row.strip():
            try:
                yield line, parsed(row, name, line)
            except Broken as error:
                yield line, error


def csv_rows(text: str) -> Iterator[tuple[int, dict[str, str] | Broken]]:
    """(line on which it begins, row) of a table with a head, its fields parted by commas, semicolons or tabs: by what
    parts the head so that one of them names the picture. Raises `csv.Error`, or `Broken` where no head does."""
    lines = io.StringIO(text, newline="")
    before, head, parted = 0, "", ","
    for head in lines:
        before += 1
        if head.strip() and not head.casefold().startswith("sep="):  # Excel's first line
            break
    for parted in ",;\t":
        fields = [field.strip() for field in next(csv.reader([head], delimiter=parted), [])]
        if not {field.casefold() for field in fields}.isdisjoint(NAME_FIELDS):
            break
    else:
        if head.strip():
            raise Broken("its first line names no field file_name (the picture's path from the table's folder)")
        return
    taken: list[str] = []
    reader = csv.reader((taken.append(line) or line for line in lines), delimiter=parted, skipinitialspace=True)
    while True:
        line = before + reader.line_num + 1
        taken.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        if len(taken) > 1 and "".join(taken).count('"') % 2:
            yield line, Broken("its quotation mark is never closed: what follows would be its caption")
        elif row:
            yield line, dict(zip(fields, row, strict=False))
