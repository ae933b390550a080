"""What was made: images as PNG files with their metadata, and an SQLite database of them and of the jobs.

A folder holds `studio.sqlite`, `images/ID.png`, `images/inputs/SHA256.png` (what clients sent, under the name that the
metadata of images made from it have) and `strips/ID.json` (what was seen in each step of the latest images).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from diptych.core.disk import make_folder, real
from diptych.core.errors import UserError
from diptych.models.metadata import of_stage, png_texts
from diptych.models.provenance import Signer, png_bytes
from diptych.serving.safe_files import read_inside
from diptych.studio.atomic_write import PARTIAL, written
from diptych.studio.image_request import exact
from diptych.studio.limits import FieldError, StorageError
from diptych.studio.read_upload import read_upload

if TYPE_CHECKING:
    from diptych.studio.job import Job, QueuedImage

DATABASE = "studio.sqlite"
INPUTS = "inputs"
STRIPS = 100
"""Images whose strips of steps are kept."""
THUMBNAIL = 256
STAGES = 99
"""Largest number of a stage."""
ID = re.compile(r"[0-9a-f]{24}|[0-9a-f]{64}")
"""Of an image, or of what a client sent."""
LOSE = "UPDATE jobs SET state = 'lost', ended = ? WHERE state IN ('queued', 'running')"
"""What waited when the last server ended."""
NEEDED = """
SELECT 1 FROM images WHERE instr(metadata, ?) UNION ALL
SELECT 1 FROM jobs WHERE state IN ('queued', 'running') AND instr(request, ?) LIMIT 1
"""
"""Whether an input is needed."""
TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
  id TEXT PRIMARY KEY, client TEXT NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL, error TEXT,
  created REAL NOT NULL, ended REAL);
CREATE TABLE IF NOT EXISTS images (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, job TEXT, place INTEGER NOT NULL,
  prompt TEXT NOT NULL, model TEXT NOT NULL, seed TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
  metadata TEXT NOT NULL, request TEXT NOT NULL, favourite INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL);
CREATE INDEX IF NOT EXISTS images_by_job ON images (job);
"""
COLUMNS = "sequence, id, job, place, prompt, model, seed, width, height, metadata, request, favourite, created"


class History:
    """Images and jobs in a folder. One process at a time; its methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = real(folder)
        for name in (DATABASE, "images", f"images/{INPUTS}", "strips"):
            if (self.folder / name).is_symlink():  # it would lead whoever asks for a name in it elsewhere
                raise UserError(f"{self.folder / name} is a link: only the whole folder may be one")
        for name in ("images", f"images/{INPUTS}", "strips"):
            new = not (self.folder / name).exists()
            make_folder(self.folder / name)
            if new:  # prompts, which images hold too, are nobody else's to read
                (self.folder / name).chmod(0o700)
        self.signer: Signer | None = None
        """Signs the images that are kept."""
        self._lock = threading.Lock()
        try:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.folder / DATABASE, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            self._connection = sqlite3.connect(
                self.folder / DATABASE, check_same_thread=False, isolation_level=None, timeout=30
            )
            self._connection.create_function("folded", 1, str.casefold, deterministic=True)
            self._file = os.stat(self.folder / DATABASE)
            for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", *TABLES.split(";")):
                self._connection.execute(statement)
            if (found := self._execute("PRAGMA quick_check(1)")) != [("ok",)]:
                raise StorageError(f"it is damaged ({found[0][0].splitlines()[-1]})")
            self._execute(LOSE, (time.time(),))
        except (OSError, sqlite3.Error, StorageError) as error:
            why = f"{self.folder / DATABASE} cannot be opened: {error}"
            raise UserError(f"{why}; move it away to begin a new history: the images stay in images/") from None
        for file in (self.folder / "images").rglob(f"*{PARTIAL}"):  # of a server that was killed
            file.unlink(missing_ok=True)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _execute(self, query: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """One statement, on the disk when it returns. Raises a `StorageError`."""
        try:
            with self._lock:
                return self._connection.execute(query, tuple(values)).fetchall()
        except sqlite3.Error as error:
            raise StorageError(f"the history cannot be read or written: {error}") from error

    def _require_folder(self) -> None:
        """Raise a `StorageError` where the folder was removed: what is written to an open database would be lost."""
        try:
            if os.path.samestat(self._file, os.stat(self.folder / DATABASE)) and (self.folder / "images").is_dir():
                return
        except OSError:
            pass
        raise StorageError("the folder of images was removed or moved while the server runs: start the server again")

    # Jobs

    def add_job(self, job: Job) -> None:
        self._require_folder()
        request = json.dumps(job.request.to_json())
        values = (job.id, job.client, job.state, request, job.created)
        self._execute("INSERT INTO jobs (id, client, state, request, created) VALUES (?, ?, ?, ?, ?)", values)

    def remove_job(self, job: str) -> None:
        self._execute("DELETE FROM jobs WHERE id = ?", (job,))

    def end_job(self, job: Job) -> None:
        error = None if job.error is None else json.dumps(job.error)
        query = "UPDATE jobs SET state = ?, error = ?, ended = ? WHERE id = ?"
        self._execute(query, (job.state, error, time.time(), job.id))

    def jobs(self, state: str, client: str | None = None, most: int = 50) -> list[dict[str, Any]]:
        """The latest jobs in a state, of one client or all."""
        where = "state = ?" if client is None else "state = ? AND client = ?"
        values = (state,) if client is None else (state, client)
        return self._jobs(f"{where} ORDER BY created DESC LIMIT {int(most)}", values)

    def job(self, id: str) -> dict[str, Any] | None:
        """A job that is not in memory any more, as it ended."""
        rows = self._jobs("id = ?", (id,))
        return rows[0] if rows else None

    def _jobs(self, where: str, values: Iterable[Any]) -> list[dict[str, Any]]:
        rows = self._execute(f"SELECT id, state, request, error, created FROM jobs WHERE {where}", values)
        return [
            {"id": id, "state": now, "request": json.loads(request), "created": created, "images": self.of_job(id),
             "error": None if error is None else json.loads(error), "warnings": [], "seconds_left": None}
            for id, now, request, error, created in rows
        ]  # fmt: skip

    def forget_lost(self, job: str) -> bool:
        """Strike a lost job off the list; whether there was one."""
        return bool(self._execute("DELETE FROM jobs WHERE id = ? AND state = 'lost' RETURNING 1", (job,)))

    # Images

    def add_image(
        self, queued: QueuedImage, image: Image.Image, metadata: dict[str, Any], earlier: Iterable[Image.Image] = ()
    ) -> str:
        """Keep a finished image; returns its id. It is on the disk, file and row, when this returns."""
        id, job = secrets.token_hex(12), queued.job
        metadata = with_inputs(metadata, job.request.inputs)
        for number, stage in enumerate(earlier, 1):
            self._write(self.folder / "images" / f"{id}.{number}.png", stage, of_stage(metadata, number, stage))
        self._write(self.folder / "images" / f"{id}.png", image, metadata)
        self._keep_strip(id, queued.strip)
        request = json.dumps({**job.request.to_json(), "seed": exact(queued.seed), "count": 1})
        values = (id, job.id, queued.index, job.request.prompt, job.request.model, str(queued.seed), *image.size)
        try:
            self._execute(
                "INSERT INTO images (id, job, place, prompt, model, seed, width, height, metadata, request, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, json.dumps(metadata), request, time.time()),
            )
        except StorageError:
            self._remove_files(id)
            raise
        return id

    def _write(self, path: Path, image: Image.Image, metadata: dict[str, Any]) -> None:
        """Write a new file: whole on the disk, then under its name."""
        data = png_bytes(image, png_texts(metadata), self.signer)
        with written(path) as file:
            file.write(data)

    def _keep_strip(self, id: str, strip: list[dict[str, Any]]) -> None:
        folder = self.folder / "strips"
        with contextlib.suppress(OSError):  # no image is lost for them
            (folder / f"{id}.json").write_text(json.dumps(strip), encoding="utf-8")
            files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
            for file in files[: max(0, len(files) - STRIPS)]:
                file.unlink(missing_ok=True)

    def strip(self, id: str) -> list[dict[str, Any]]:
        """What was seen in each step of an image; empty where that is not kept any more."""
        try:
            return json.loads(read_inside(self.folder / "strips", f"{id}.json") or b"[]")
        except ValueError:
            return []

    def image(self, id: str) -> dict[str, Any] | None:
        rows = self._execute(f"SELECT {COLUMNS} FROM images WHERE id = ?", (id,))
        return self._row(rows[0]) if rows else None

    def of_job(self, job: str) -> list[dict[str, Any]]:
        rows = self._execute("SELECT place, seed, id FROM images WHERE job = ? ORDER BY place", (job,))
        return [{"index": place, "seed": exact(int(seed)), "id": id, "state": "done"} for place, seed, id in rows]

    def images(
        self, search: str = "", favourite: bool = False, before: int | None = None, limit: int = 60
    ) -> list[dict[str, Any]]:
        """The latest images, newest first: those with all words of `search` in prompt or model; below a sequence."""
        where, values = ["1"], list[Any]()
        for word in search.split():
            where.append("(instr(folded(prompt), ?) OR instr(folded(model), ?) OR seed = ?)")
            values += [word.casefold(), word.casefold(), word]
        if favourite:
            where.append("favourite")
        if before is not None:
            where.append("sequence < ?")
            values.append(before)
        query = f"SELECT {COLUMNS} FROM images WHERE {' AND '.join(where)} ORDER BY sequence DESC LIMIT {int(limit)}"
        return [self._row(row) for row in self._execute(query, values)]

    def _row(self, row: tuple[Any, ...]) -> dict[str, Any]:
        values: dict[str, Any] = dict(zip(COLUMNS.split(", "), row, strict=True))
        values["metadata"], values["request"] = json.loads(values["metadata"]), json.loads(values["request"])
        values["seed"], values["favourite"] = exact(int(values["seed"])), bool(values["favourite"])
        files = (self.folder / "images" / f"{values['id']}.{number}.png" for number in range(1, STAGES + 1))
        values["stages"] = sum(1 for _ in itertools.takewhile(Path.is_file, files))  # not by a look at all images
        return values

    def png(self, id: str, stage: int | None = None) -> Path | None:
        """The file of an image, or of an earlier stage (from 1); only for ids that are in the database."""
        if not self._execute("SELECT 1 FROM images WHERE id = ?", (id,)):
            return None
        if stage is not None and not 1 <= stage <= STAGES:
            return None
        path = self.folder / "images" / (f"{id}.png" if stage is None else f"{id}.{stage}.png")
        return path if path.is_file() and not path.is_symlink() else None

    def thumbnail(self, id: str) -> bytes | None:
        """A WebP of at most 256 pixels a side, with the provenance of the image; none where its file is damaged."""
        path = self.png(id)
        if path is None:
            return None
        file = io.BytesIO()
        with contextlib.suppress(OSError, SyntaxError, ValueError), Image.open(path) as image:
            stated = image.info.get("xmp", b"")
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            image.convert("RGB").save(file, "WEBP", quality=80, xmp=stated)
        return file.getvalue() or None

    def set_favourite(self, id: str, favourite: bool) -> bool:
        rows = self._execute("UPDATE images SET favourite = ? WHERE id = ? RETURNING 1", (favourite, id))
        return bool(rows)

    def delete(self, id: str) -> bool:
        """Delete an image and its files."""
        if not self._execute("DELETE FROM images WHERE id = ? RETURNING 1", (id,)):
            return False
        self._remove_files(id)
        return True

    def _remove_files(self, id: str) -> None:
        for file in (*(self.folder / "images").glob(f"{id}.*png"), self.folder / "strips" / f"{id}.json"):
            file.unlink(missing_ok=True)

    # What clients send

    def add_input(self, image: Image.Image, most: int) -> str:
        """Keep an image that a client sent, as PNG without its metadata; returns its id, the SHA-256 of that file."""
        file = io.BytesIO()
        image.save(file, "PNG")
        data = file.getvalue()
        name = hashlib.sha256(data).hexdigest()
        path = self.folder / "images" / INPUTS / f"{name}.png"
        if not path.is_file() or path.is_symlink():
            with written(path) as file:
                file.write(data)
        else:
            os.utime(path)
        self._drop_inputs(most)
        return name

    def _drop_inputs(self, most: int) -> None:
        """Remove the oldest inputs above a number that no kept image was made from, and no waiting job needs."""
        files = sorted((self.folder / "images" / INPUTS).glob("*.png"), key=lambda file: file.stat().st_mtime)
        for file in files[: max(0, len(files) - most)]:
            if not self._execute(NEEDED, (file.stem, file.stem)):
                file.unlink(missing_ok=True)

    def kept_input(self, field: str, id: Any, most: int) -> Path:
        """As `input`, but of an image of the history a copy, which stays when that is deleted."""
        path = self.input(field, id)
        if path.parent.name == INPUTS:
            return path
        return self.input(field, self.add_input(read_upload(field, path.read_bytes()), most))

    def input(self, field: str, id: Any) -> Path:
        """The file of an input, or of an image of the history, by its id; a `FieldError` where there is none."""
        path = None
        if isinstance(id, str) and ID.fullmatch(id):
            path = self.png(id) or self.folder / "images" / INPUTS / f"{id}.png"
        if path is None or not path.is_file() or path.is_symlink():
            raise FieldError(field, f"there is no image {str(id)[:80]!r}: send it first")
        try:
            with Image.open(path) as image:
                image.verify()
        except Exception as error:  # of many kinds: whatever a decoder raises
            raise FieldError(field, f"the file of that image is damaged ({type(error).__name__})") from None
        return path


def with_inputs(metadata: dict[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Metadata that name the images sent by clients as they lie beside the image: no path of this machine."""
    metadata = dict(metadata)
    for name, path in inputs.items():
        key = "low" if name == "low_res" else name
        if isinstance(row := metadata.get(key), dict) and "file" in row:
            metadata[key] = {**row, "file": f"{INPUTS}/{path.name}" if path.parent.name == INPUTS else path.name}
    return metadata


@contextlib.contextmanager
def history_of(folder: Path) -> Iterator[History]:
    """The history in a folder, closed afterwards."""
    history = History(folder)
    try:
        yield history
    finally:
        history.close()
