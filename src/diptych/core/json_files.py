"""JSON files that users name, with the reason where one cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diptych.core.errors import UserError


def read_named_json(path: Path, what: str, missing: str | None = None) -> Any:
    """What a file holds that is to be `what`: "results", "answers".

    Raises a `UserError` where there is none, in the words of `missing` where given, and where it cannot be read, with
    the reason. `core.config.read_json` is for files of diptych's own, where the reason helps nobody.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(missing or f"no file {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as {what}: {reason[:120]}") from None
