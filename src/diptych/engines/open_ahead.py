"""Opening what was compiled for a model while PyTorch is imported and the model read: a second of the first image.

A guess, by what was last used for the same source: whoever needs a compiled network asks by its key, which says all
that it depends on, and a wrong guess only costs idle time of a processor. Nothing here imports PyTorch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import threading
from pathlib import Path
from typing import Any

from diptych.core.caches import cache_folder, short_hash

_opened: dict[Path, tuple[dict[str, Any], Any]] = {}
_threads: dict[str, threading.Thread] = {}
_last: dict[str, dict[str, str]] = {}


def open_ahead(source: str, engine: str | None = None) -> None:
    """Begin to open, in a thread, what was compiled for the model of a source when it was last used."""
    chosen = engine if engine not in (None, "auto") else os.environ.get("DIPTYCH_ENGINE") or "auto"
    if source in _threads or chosen not in ("auto", "openvino") or importlib.util.find_spec("openvino") is None:
        return
    if _notes(source).is_file():
        # Waited for at exit: a process that ends while OpenVINO reads may crash.
        _threads[source] = threading.Thread(target=_open, args=(source,))
        _threads[source].start()


def _open(source: str) -> None:
    with contextlib.suppress(Exception):  # whoever needs it says what is wrong
        from diptych.engines import compiled_cache
        from diptych.engines.openvino_core import open_compiled

        for name in json.loads(_notes(source).read_text()).values():
            path = cache_folder("compiled", Path(name).name)
            if stored := compiled_cache.read_file(path):
                _opened[path] = stored.key, open_compiled(stored)


def take(source: str, path: Path, key: dict[str, Any]) -> Any:
    """What was opened from a file, if its key is this one; none otherwise."""
    if thread := _threads.get(source):
        thread.join()
    found, compiled = _opened.pop(path, (None, None))
    return compiled if found == key else None


def note(source: str, part: str, path: Path) -> None:
    """Remember which file a part of the model of a source uses."""
    last = _last.setdefault(source, {})
    if last.get(part) == path.name:
        return
    last[part] = path.name
    with contextlib.suppress(OSError):
        _notes(source).write_text(json.dumps(last))


def _notes(source: str) -> Path:
    return cache_folder("compiled") / f"last-{short_hash(source)}.json"
