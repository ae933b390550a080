"""Weights that nobody changes for a while: what runs networks then looks for changes once, and not in each call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_period: ContextVar[object | None] = ContextVar("_period", default=None)


@contextlib.contextmanager
def steady_weights(so: bool = True) -> Iterator[None]:
    """Within, weights, layers and hooks stay as they are, as far as this thread goes; `so`: whether that is known."""
    token = _period.set(object() if so else None)
    try:
        yield
    finally:
        _period.reset(token)


def steady_period() -> object | None:
    """What is another object in each `steady_weights`; none outside."""
    return _period.get()


def looks_on(callback: F) -> F:
    """Mark a callback that changes no weights."""
    callback.looks_on = True  # type: ignore[attr-defined]
    return callback


def only_looks_on(callback: Callable[..., Any] | None) -> bool:
    """Whether a callback is known to change no weights: a user's own may, as one that scales a LoRA step by step."""
    return callback is None or getattr(callback, "looks_on", False)
