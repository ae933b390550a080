"""Everything that training will not see of some data, and why."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

from diptych.core.progress import track
from diptych.data.caption_text import LABELS, one_line
from diptych.data.dataset import PictureDataset

LISTED = 20
"""Names that are listed of those with one reason; a program gets all."""


class Report(NamedTuple):
    """What `examine` found."""

    path: str
    readable: int
    """Examples that training sees."""
    broken: list[dict[str, str]]
    """Examples that cannot be read: shard, key, reason."""
    left_out: list[dict[str, str]]
    """What looks like data and is no example: name, reason."""
    changed: list[dict[str, str]]
    """Examples of which captions are cut or left out: shard, key, change."""
    counts: dict[str, dict[str, int]]
    """How often each kind, split, style and category occurs."""

    @property
    def whole(self) -> bool:
        """Whether training sees all of it."""
        return not (self.broken or self.left_out or self.changed)

    def text(self) -> str:
        """For people: what is the same reason is said once."""
        found = [
            f"{self.path}: {self.readable:,} examples can be read, {len(self.broken):,} are broken"
            + (f", {len(self.left_out):,} files or rows are left out" if self.left_out else "")
        ]
        for field, counter in self.counts.items():
            common = sorted(counter.items(), key=lambda item: -item[1])
            found.append(f"  {field}: " + ", ".join(f"{one_line(name)} {count:,}" for name, count in common))
        found += grouped("broken", [(f"{e['key']} in {e['shard']}", e["reason"]) for e in self.broken])
        found += grouped("left out", [(e["name"], e["reason"]) for e in self.left_out])
        found += grouped("changed", [(f"{e['key']} in {e['shard']}", e["change"]) for e in self.changed])
        return "\n".join(found)


def examine(dataset: PictureDataset) -> Report:
    """Read every example of a data set, and what else is known of it."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    readable = 0
    for example in track(dataset.readable(), "reading", len(dataset)):
        readable += 1
        for field in LABELS:
            if field in example.meta:
                counts[field][example.meta[field]] += 1
    quarantine = dataset.quarantine
    return Report(
        dataset.config.path,
        readable,
        [{"shard": shard, "key": key, "reason": reason} for (shard, key), reason in quarantine.broken.items()],
        [{"name": name, "reason": reason} for name, reason in dataset.source.left.items()],
        [{"shard": shard, "key": key, "change": change} for (shard, key), change in quarantine.changed.items()],
        {field: dict(counter) for field, counter in counts.items()},
    )


def grouped(what: str, entries: list[tuple[str, Any]]) -> list[str]:
    """A line for each; of more than `LISTED` with one reason, the first and how many there are."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for name, reason in entries:
        groups[reason].append(name)
    lines = []
    for reason, names in groups.items():
        lines += [f"  {what}: {name}: {reason}" for name in names[:LISTED]]
        if len(names) > LISTED:
            lines.append(f"  {what}: and {len(names) - LISTED:,} more: {reason} (--json lists all)")
    return lines
