"""A check of a whole data set: broken, skipped and changed examples, with reasons."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

from diptych.core.progress import track
from diptych.data.caption_text import LABEL_FIELDS, one_line
from diptych.data.dataset import ImageDataset

MAX_LISTED = 20
"""Names listed for one reason in the text; the JSON has all."""


class DataReport(NamedTuple):
    """The result of `check_dataset`."""

    path: str
    readable: int
    """Number of readable examples."""
    broken: list[dict[str, str]]
    """Examples that cannot be read, and shards or what follows in them: shard, key, reason."""
    lost: int
    """Number of examples in those shards, as far as it is known."""
    left_out: list[dict[str, str]]
    """Files and rows that are no examples: name, reason."""
    changed: list[dict[str, str]]
    """Examples with shortened or dropped captions: shard, key, change."""
    counts: dict[str, dict[str, int]]
    """How often each kind, split, style and category occurs."""

    @property
    def whole(self) -> bool:
        """Whether every example is readable and unchanged."""
        return not (self.broken or self.left_out or self.changed)

    def text(self) -> str:
        """The report as text; each reason is printed once."""
        lines = [
            f"{self.path}: {self.readable:,} examples can be read, {len(self.broken):,} are broken"
            + (f", {self.lost:,} in shards that cannot be read" if self.lost else "")
            + (f", {len(self.left_out):,} files or rows are left out" if self.left_out else "")
        ]
        for field, counter in self.counts.items():
            common = sorted(counter.items(), key=lambda item: -item[1])
            lines.append(f"  {field}: " + ", ".join(f"{one_line(name)} {count:,}" for name, count in common))
        lines += grouped("broken", [(f"{e['key']} in {e['shard']}", e["reason"]) for e in self.broken])
        lines += grouped("left out", [(e["name"], e["reason"]) for e in self.left_out])
        lines += grouped("changed", [(f"{e['key']} in {e['shard']}", e["change"]) for e in self.changed])
        return "\n".join(lines)


def check_dataset(dataset: ImageDataset) -> DataReport:
    """Read every example of a data set."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    readable = 0
    for example in track(dataset.readable(), "reading", len(dataset)):
        readable += 1
        for field in LABEL_FIELDS:
            if field in example.meta:
                counts[field][example.meta[field]] += 1
    quarantine = dataset.quarantine
    return DataReport(
        dataset.config.path,
        readable,
        [{"shard": shard, "key": key, "reason": reason} for (shard, key), reason in quarantine.broken.items()],
        quarantine.lost,
        [{"name": name, "reason": reason} for name, reason in dataset.source.skipped.items()],
        [{"shard": shard, "key": key, "change": change} for (shard, key), change in quarantine.changed.items()],
        {field: dict(counter) for field, counter in counts.items()},
    )


def grouped(what: str, entries: list[tuple[str, Any]]) -> list[str]:
    """A line for each entry; of more than `MAX_LISTED` with one reason, the first ones and a count."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for name, reason in entries:
        groups[reason].append(name)
    lines = []
    for reason, names in groups.items():
        lines += [f"  {what}: {name}: {reason}" for name in names[:MAX_LISTED]]
        if len(names) > MAX_LISTED:
            lines.append(f"  {what}: and {len(names) - MAX_LISTED:,} more: {reason} (--json lists all)")
    return lines
