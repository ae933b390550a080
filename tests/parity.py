"""What the comparisons with the reference implementations found, for the table in the documents."""

from __future__ import annotations

import json
import os
from pathlib import Path


def within(family: str, files: str, what: str, error: float, limit: float) -> None:
    """Fail unless error <= limit; add a line of JSON to the file that $DIPTYCH_PARITY names, where it names one."""
    assert error <= limit, f"{family}, {files}, {what}: {error:.3g} is more than {limit:.3g}"
    if place := os.environ.get("DIPTYCH_PARITY"):
        row = {"family": family, "files": files, "what": what, "error": error, "limit": limit}
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
