"""Results and models in a tar archive that is cut into pieces: most important first, within a limit of bytes.

`cat FOLDER/gpu.tar.* | tar x` unpacks it. Weights are rounded to float16 (bfloat16 where they are beyond it), which
halves them. It is made anew, beside the earlier one, whenever something has changed, in a thread of its own; what was
left out is in `packed.json`.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PIECE, TOTAL = 15 * 2**20, 60 * 2**20
"""Bytes of a piece, and of all: what comes back from one call."""
EVERY = 60.0
"""Seconds after which it is made anew at the latest: logs grow."""
BLOCK = 512


class Pieces:
    """A file for writing that is cut into `FOLDER/gpu.tar.000`, `.001`, ... of at most `size` bytes."""

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.size, self.count, self.room = folder, size, 0, 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            if not self.room:
                self.count, self.room = self.count + 1, self.size
            part = view[: self.room]
            with (self.folder / f"gpu.tar.{self.count - 1:03d}").open("wb" if self.room == self.size else "ab") as file:
                file.write(part)
            view, self.room = view[len(part) :], self.room - len(part)
        return len(data)


class Parcel:
    """Packs those of the paths that exist into `folder`."""

    def __init__(self, folder: Path, paths: Sequence[Path], root: Path, piece: int = PIECE, total: int = TOTAL) -> None:
        """paths: files and folders, relative to which nothing else is packed, the most important first."""
        self.folder, self.paths, self.root, self.piece, self.total = folder, paths, root, piece, total
        self.halves: dict[Path, tuple[tuple[int, int], bytes]] = {}
        self.wanted, self.over = threading.Event(), threading.Event()
        self.problem: str | None = None

    def pack(self) -> int:
        """Make the archive anew; returns the number of pieces. Raises `OSError` where the disk is full."""
        fresh = self.folder / ".fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        pieces, room = Pieces(fresh, self.piece), self.total - 20 * BLOCK  # the archive's end is padded
        packed, left_out = [], {}
        with tarfile.open(fileobj=pieces, mode="w|", format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
            for path in dict.fromkeys(file for given in self.paths for file in files_of(given)):
                name = str(path.relative_to(self.root))
                try:
                    data = self.content(path)
                except (OSError, ValueError) as error:  # replaced while it was read: the next time
                    left_out[name] = f"{type(error).__name__}: {error}"
                    continue
                cost = 3 * BLOCK + -(-len(data) // BLOCK) * BLOCK
                if cost > room:
                    left_out[name] = f"{len(data)} bytes, beyond the limit of {self.total}"
                    continue
                room -= cost
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(data), int(path.stat().st_mtime)
                tar.addfile(info, io.BytesIO(data))
                packed.append(name)
        (fresh / "packed.json").write_text(json.dumps({"files": packed, "left out": left_out}, indent=1) + "\n")
        with locked(self.folder):
            for old in self.folder.glob("gpu.tar.*"):
                old.unlink()
            for path in sorted(fresh.iterdir()):
                os.replace(path, self.folder / path.name)
        shutil.rmtree(fresh)
        return pieces.count

    def content(self, path: Path) -> bytes:
        """A file's bytes; of weights, rounded, and kept for the next time."""
        if path.suffix != ".safetensors":
            return path.read_bytes()
        about = path.stat()
        stamp = (about.st_mtime_ns, about.st_size)
        if self.halves.get(path, ((), b""))[0] != stamp:
            self.halves[path] = (stamp, halved(path))
        return self.halves[path][1]

    # In the background.

    def __enter__(self) -> Parcel:
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        """Pack for the last time."""
        self.over.set()
        self.wanted.set()
        self.thread.join()
        self._try()

    def changed(self) -> None:
        """Have it packed soon; does not wait."""
        self.wanted.set()

    def _work(self) -> None:
        while not self.over.is_set():
            self.wanted.wait(EVERY)
            self.wanted.clear()
            self._try()

    def _try(self) -> None:
        try:
            self.pack()
            self.problem = None
        except Exception as error:  # what cannot be packed now must not end what runs
            self.problem = f"{type(error).__name__}: {error}"
            print(f"not packed: {self.problem}", flush=True)


def files_of(path: Path) -> Iterator[Path]:
    """A file, or the files of a folder by name, without hidden ones."""
    if path.is_file():
        yield path
    elif path.is_dir():
        for inner in sorted(path.iterdir()):
            if not inner.name.startswith(".") and not inner.is_symlink():
                yield from files_of(inner)


def halved(path: Path) -> bytes:
    """A safetensors file with its float32 and float64 tensors in half precision, metadata kept."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save

    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for key, tensor in tensors.items():
        if tensor.dtype in (torch.float32, torch.float64):
            half = tensor.half()
            tensors[key] = half if half.isfinite().all() or not tensor.isfinite().all() else tensor.bfloat16()
    return save(tensors, metadata)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, no other process replaces or reads the pieces."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def collect(folder: Path, out: Path) -> list[Path]:
    """Copy whole pieces of one making, and what they hold, to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        return []
    with locked(folder):
        whole = [*sorted(folder.glob("gpu.tar.*")), *folder.glob("packed.json")]
        return [Path(shutil.copy(path, out)) for path in whole]
