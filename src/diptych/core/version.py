"""Which diptych this is."""

from __future__ import annotations

import importlib.metadata


def version() -> str:
    """ "0.1.0"; "unknown" where it runs from its sources and is not installed."""
    try:
        return importlib.metadata.version("diptych")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
