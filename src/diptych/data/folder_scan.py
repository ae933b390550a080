"""What lies in a folder of images, and its index: names in memory-mapped files."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import stat
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diptych.core.hashing import stable_hash
from diptych.core.image_files import is_encoded
from diptych.data.caption_tables import MAX_TABLE_BYTES, NAME_FIELDS, TABLES, UNSUPPORTED_TABLES, table_rows
from diptych.data.caption_text import SPLITS, decode_text, json_type, one_line
from diptych.data.index_files import Arrays, IndexFolder, open_arrays, settled, text_at, text_columns
from diptych.data.paths import read_bounded, walk
from diptych.data.quarantine import BrokenExample, reason_of
from diptych.data.shard_scan import CAPTION_EXTENSIONS, CONVERT_HINT, IMAGE_EXTENSIONS, UNSUPPORTED_EXTENSIONS

NOT_CAPTIONS = ("readme", "license", "licence", "copying", "notice", "changelog", "citation", "requirements")
"""Names of texts that lie in folders of data and belong to no image."""
COLUMNS = ("paths", "texts", "jsons", "rows")
FILES = "files-all"
"""Name of the arrays of a folder."""


class FolderScan:
    """What lies in a folder of images, looked through once."""

    def __init__(self, folder: Path, files: Iterable[Path], skipped: dict[str, str]) -> None:
        """files: all regular files under it. skipped: gets the files and rows that training does not read."""
        self.folder, self.skipped = folder, skipped
        self._paths: list[Path] = []
        self._unsupported: list[Path] = []  # images of kinds that are left out; captions beside them are no strays
        self._caption_files: dict[str, dict[str, list[str]]] = defaultdict(
            dict
        )  # folder -> name in lower case -> names
        self.tables = tables = list[Path]()
        for path in files:
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
        self.splits = self._split_folders()
        self._skip_unused()

    def __len__(self) -> int:
        return len(self._paths)

    def columns(self) -> dict[str, list[bytes]]:
        """Of each image, in the order of paths: its path from the folder, the name of its caption file, that of its
        JSON file, its rows of a table as JSON. Empty where there is none."""
        found: dict[str, list[bytes]] = {name: [] for name in COLUMNS}
        for path in self._paths:
            text, json_file = self._file(path, CAPTION_EXTENSIONS), self._file(path, ("json",))
            rows = self._rows.get(str(path))
            found["paths"].append(os.fsencode(self._relative(path)))
            found["texts"].append(b"" if text is None else os.fsencode(text.name))
            found["jsons"].append(b"" if json_file is None else os.fsencode(json_file.name))
            found["rows"].append(b"" if rows is None else json.dumps(rows).encode())
        return found

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


class Listing(NamedTuple):
    """All that lies under a folder, and when it was begun to be listed."""

    began: int
    """Nanoseconds."""
    files: list[Path]
    """Regular files."""
    folders: list[str]
    skipped: dict[str, str]
    """Others, and why they are not read."""

    @classmethod
    def of(cls, folder: Path) -> Listing:
        listing = cls(time.time_ns(), [], [], {})
        listing.files.extend(walk(folder, listing.skipped, listing.folders))
        return listing


def index_folder(folder: Path, listing: Listing) -> Arrays:
    """The index of a folder of images: the columns of `FolderScan`, the "hashes" of keys, and the notes "skipped",
    "splits" and "contents", a hash of what lies there. Another process that makes it is waited for.

    folder: absolute, and so in `listing`: the index names the places whose changes it is compared with."""
    assert folder.is_absolute()
    store = IndexFolder(os.path.abspath(folder))
    with store.locked():
        return known_folder(folder) or _index_folder(folder, listing, store)


def _index_folder(folder: Path, listing: Listing, store: IndexFolder) -> Arrays:
    began, files, folders, skipped = listing
    stamps, newest = stamps_of(folder, folders)
    scan = FolderScan(folder, files, skipped)
    arrays: dict[str, np.ndarray] = {}
    for name, texts in scan.columns().items():
        arrays |= text_columns(name, texts)
    keys = (one_line(os.fsdecode(text_at(arrays, "paths", index))) for index in range(len(scan)))
    arrays["hashes"] = np.fromiter((stable_hash("split", key) for key in keys), np.uint64, len(scan))
    arrays |= text_columns("folders", [os.fsencode(place) for place in folders])
    notes = {"skipped": skipped, "splits": scan.splits, "tables": [os.fspath(table) for table in scan.tables]}
    beside, last = stamps_of(folder, files_beside(folder, arrays, notes["tables"]))
    arrays["stamps"], arrays["beside"] = stamps, beside
    notes["contents"] = hashlib.sha256(stamps.tobytes() + beside.tobytes()).hexdigest()[:16]
    keep = settled(max(newest, last), began)
    if keep:
        store.forget_others(notes["contents"])
    return store.put(FILES, arrays, notes, keep)


def known_folder(folder: Path) -> Arrays | None:
    """The index that an earlier run made, if no folder, table or caption file has changed since."""
    index = open_arrays(IndexFolder(os.path.abspath(folder)).folder / FILES)
    if index is None:
        return None
    try:
        folders = [os.fsdecode(text_at(index, "folders", n)) for n in range(len(index["folders_ends"]))]
        stamps = stamps_of(folder, folders)[0]
        same = bool((stamps >= 0).all()) and np.array_equal(stamps, index["stamps"])
        if same and np.array_equal(
            stamps_of(folder, files_beside(folder, index, index.notes["tables"]))[0], index["beside"]
        ):
            return index
    except (KeyError, OSError):
        pass
    return None


def files_beside(folder: Path, arrays: Mapping[str, np.ndarray], tables: Sequence[str]) -> Iterator[str]:
    """The tables of a folder, and the caption files of its images."""
    yield from tables
    for column in ("texts", "jsons"):
        ends = arrays[f"{column}_ends"]
        for index in np.flatnonzero(np.diff(ends, prepend=ends.dtype.type(0))).tolist():
            place = os.fsdecode(text_at(arrays, "paths", index))
            yield os.path.join(folder, os.path.dirname(place), os.fsdecode(text_at(arrays, column, index)))


def stamps_of(folder: Path, places: Iterable[str]) -> tuple[np.ndarray, int]:
    """Time (ns), size (0 for folders) and number of files: int64 (N, 3). And the newest time."""
    found = []
    for place in places:
        try:
            status = os.stat(os.path.join(folder, place))
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            found.append((status.st_mtime_ns, size, status.st_ino))
        except OSError:
            found.append((-1, -1, -1))
    stamps = np.array(found, dtype=np.int64).reshape(-1, 3)
    return stamps, int(stamps[:, 0].max(initial=0))
