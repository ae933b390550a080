"""Folders of image files with their captions beside them or in a table.

A caption is found in this order: rows of `metadata.jsonl`, `captions.jsonl`, or the same as `.csv` or `.tsv`, in the
image's folder or one above it (`file_name` and `text`, as Hugging Face's imagefolder has them, or any other field of
`text.CAPTION_FIELDS`; several rows of an image are several captions); `name.txt`, `name.caption`, `name.png.txt`; a
`name.json`. Upper and lower case are the same. The folder that an image lies in is its field `folder`: a class.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

from diptych.core.caches import short_hash
from diptych.core.errors import UserError
from diptych.core.progress import track
from diptych.data.caption_text import (
    MAX_TEXT_BYTES,
    decode_text,
    metadata_object,
    one_line,
    parse_json,
    with_captions,
)
from diptych.data.dataset_config import DataConfig
from diptych.data.image_sides import image_size
from diptych.data.index_files import Arrays, IndexFolder, open_arrays, text_at
from diptych.data.paths import read_bounded, read_start
from diptych.data.quarantine import BrokenExample
from diptych.data.selection import Rules, Selection, Selector, Verdict, choose


class FolderSource:
    """The images under a folder, in the order of their paths.

    `skipped`: files and rows that training does not read, path from the folder -> reason.
    """

    def __init__(self, folder: Path, index: Arrays, config: DataConfig, captions: bool) -> None:
        """index: of `index_folder`."""
        self.folder, self._index = folder, index
        self.skipped: dict[str, str] = index.notes["skipped"]
        self._folder_name = one_line(str(folder))
        self._splits: dict[str, str] = index.notes["splits"]
        self.selection = self._select(Rules.of(config, captions), config)

    def __len__(self) -> int:
        return len(self._index["hashes"])

    @property
    def index(self) -> Arrays:
        """The arrays in which it is kept."""
        return self._index

    def key(self, index: int) -> tuple[str, str]:
        return self._folder_name, one_line(self._name("paths", index))

    def meta(self, index: int) -> dict[str, Any]:
        relative = self._name("paths", index)
        top, *deeper = relative.split(os.sep)
        fields = {"folder": [top, *deeper][-2]} if deeper else {}
        if top in self._splits:
            fields["split"] = self._splits[top]
        stored = text_at(self._index, "rows", index)
        rows = [with_captions({**fields, **row}) for row in (json.loads(stored) if stored else ())]
        if captions := [caption for row in rows for caption in row["captions"]]:
            return {**rows[0], "captions": captions}
        meta, text = {}, None
        if (file := self._beside(index, "jsons")) is not None:
            meta = metadata_object(parse_json(self._text(file), file.name), file.name)
        if (file := self._beside(index, "texts")) is not None:
            text = self._text(file)
        row = {key: value for key, value in rows[0].items() if key != "captions"} if rows else {}
        return with_captions({**fields, **meta, **row}, text)

    def path(self, index: int) -> Path:
        return self.folder / self._name("paths", index)

    def image_bytes(self, index: int) -> bytes:
        return read_bounded(self.path(index))

    def image_start(self, index: int, size: int) -> bytes:
        return read_start(self.path(index), size)

    def require_same(self, index: int) -> None:
        """A file of its own is one example, so that only the folder may not go."""
        if not self.folder.is_dir():
            raise UserError(f"{self._folder_name} is not there any more: bring it back; a rerun goes on from here")

    def missing_caption(self, index: int) -> BrokenExample:
        """The error for an image without a caption."""
        file = self._beside(index, "texts") or self._beside(index, "jsons")
        return BrokenExample(f"no caption in {file.name}" if file is not None else "no caption")

    def _text(self, path: Path) -> str:
        return decode_text(read_bounded(path, MAX_TEXT_BYTES), path.name)

    def _name(self, column: str, index: int) -> str:
        return os.fsdecode(text_at(self._index, column, index))

    def _beside(self, index: int, column: str) -> Path | None:
        """A file in the folder of an image."""
        name = self._name(column, index)
        return self.path(index).with_name(name) if name else None

    def _select(self, rules: Rules, config: DataConfig) -> Selection:
        """Selector every image, or open what an earlier run found."""
        files = IndexFolder(os.path.abspath(self.folder))
        contents = self._index.notes["contents"]
        name = f"chosen-{contents}-{short_hash(f'{rules.name} {config.held_out!r} {config.least}', 16)}"
        keep = self._index.folder is not None
        if keep and (known := open_arrays(files.folder / name)) is not None:
            return Selection(len(self), known)
        with files.locked():
            if keep and (known := open_arrays(files.folder / name)) is not None:  # of the process that held the lock
                return Selection(len(self), known)
            verdict = self._judge(rules)
            splits = choose(verdict, self._index["hashes"], config.held_out, config.least)
            return Selection(len(self), files.put(name, splits, verdict.notes, keep))

    def _judge(self, rules: Rules) -> Verdict:
        judge = Selector(rules)
        for index in track(range(len(self)), "reading captions"):
            read, start = functools.partial(self.meta, index), functools.partial(self.image_start, index)
            size = functools.partial(image_size, start)
            judge.read(read, size, functools.partial(self.missing_caption, index), str(self.folder))
        return judge.verdict()
