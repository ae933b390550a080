"""Broken examples: set aside with where they lie and why, counted, fatal only above a stated rate."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from diptych.errors import UserError

log = logging.getLogger(__name__)
MINIMUM_SEEN = 20


class Quarantine:
    """Counts what was read and what was broken; one JSON line a broken example goes into `path`."""

    def __init__(self, path: Path | None, max_rate: float) -> None:
        self.path, self.max_rate = path, max_rate
        self.seen = 0
        """Examples looked at since the last `restart`, each once; who looks counts."""
        self._before = 0
        self.broken: dict[tuple[str, str], str] = {}
        self._known: set[tuple[str, str]] | None = None

    def add(self, where: str, key: str, reason: str) -> None:
        """Set an example aside; `check` then says whether that is too many."""
        if (where, key) in self.broken:
            return
        self.broken[where, key] = reason
        log.warning("quarantined %s in %s: %s", key, where, reason)
        self._write(where, key, reason)

    def restart(self) -> None:
        """Count anew from here; what is set aside stays so. (Captions are all read first, pictures one by one.)"""
        self.seen, self._before = 0, len(self.broken)

    def check(self) -> None:
        """Raise a `UserError` when too many of the examples seen are broken, once at least 20 were seen."""
        broken = len(self.broken) - self._before
        if self.seen >= MINIMUM_SEEN and broken > self.max_rate * self.seen:
            (where, key), reason = list(self.broken.items())[-1]
            told = f"; all are listed in {self.path}" if self.path else ""
            raise UserError(
                f"{broken} of {self.seen} examples are broken, above the limit of {self.max_rate:.1%} "
                f"(the last: {key} in {where}: {reason}){told}. Repair the data or raise max_failure_rate"
            )

    def _write(self, where: str, key: str, reason: str) -> None:
        if self.path is None:
            return
        try:
            if self._known is None:  # a rerun does not list the same example twice
                lines = self.path.read_text().splitlines() if self.path.exists() else []
                entries = [json.loads(line) for line in lines]
                self._known = {(entry["shard"], entry["key"]) for entry in entries}
            if (where, key) not in self._known:
                self._known.add((where, key))
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "a") as file:
                    file.write(json.dumps({"shard": where, "key": key, "reason": reason}) + "\n")
        except (OSError, ValueError, KeyError, TypeError) as error:  # a folder that may not be written to, say
            log.warning("cannot list broken examples in %s: %s", self.path, error)
            self.path = None
