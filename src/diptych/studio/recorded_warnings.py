"""The warnings of `generate`, as texts."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from diptych.core.errors import DiptychWarning

_HERE = threading.local()
_INSTALLED = threading.Lock()


@contextlib.contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """Within, diptych's warnings in this thread are appended to the list and shown nowhere else.

    `warnings.catch_warnings` would change the filters of all threads.
    """
    install()
    _HERE.texts = texts = []
    try:
        yield texts
    finally:
        _HERE.texts = None


def install() -> None:
    """Let every `DiptychWarning` be shown, by what `recorded_warnings` listens to."""
    with _INSTALLED:
        if getattr(warnings.showwarning, "of_studio", False):
            return
        before = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any, **options: Any) -> None:
            texts = getattr(_HERE, "texts", None)
            if texts is not None and issubclass(category, DiptychWarning):
                texts.append(str(message))
            else:
                before(message, category, *where, **options)

        show.of_studio = True  # type: ignore[attr-defined]
        warnings.showwarning = show
        warnings.filterwarnings("always", category=DiptychWarning)
