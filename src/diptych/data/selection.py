"""Which examples of a data set are used, and of which split: decided once, from metadata, and kept beside the index."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from diptych.core.caches import short_hash
from diptych.core.errors import UserError
from diptych.core.hashing import stable_hash
from diptych.data.box_layouts import LAYOUT_FIELD, require_layout
from diptych.data.caption_text import field_texts
from diptych.data.dataset_config import DataConfig, Split
from diptych.data.filters import TURNED, Size, first_against, parse_filters
from diptych.data.index_files import Arrays
from diptych.data.quarantine import BrokenExample, reason_of

TRAIN, HELD_OUT, CHOSEN, BROKEN = 1, 2, 4, 8
"""Bits of an example's state: the split that its metadata states, whether it is used, whether it cannot be."""
SPLIT_BITS = {"train": TRAIN, "held-out": HELD_OUT}


@dataclasses.dataclass(frozen=True)
class Rules:
    """What decides about one example, whatever the others are."""

    kinds: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    caption_field: str | None = None
    captions: bool = True
    """Whether captions are read; if so, an example without one is broken."""
    values: bool = False
    """Whether the value of the caption field is kept, to count how often it occurs."""
    filters: tuple[str, ...] = ()
    """As `DataConfig.keep` has them."""

    @classmethod
    def of(cls, config: DataConfig, captions: bool) -> Rules:
        return cls(config.kinds, config.styles, config.caption_field, captions, config.least > 1, config.keep)

    @property
    def name(self) -> str:
        """Of files that were made by these rules."""
        turned = any(rule.field in TURNED for rule in parse_filters(self.filters))
        return short_hash(self.to_json() + (" turned" if turned else ""))  # earlier ones knew nothing of EXIF

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Rules:
        values: dict[str, Any] = json.loads(text)
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fields)

    @property
    def read_all(self) -> bool:
        """Whether the metadata of every example is needed."""
        return self.values or bool(self.filters)

    def check_captions(self, meta: dict[str, Any], missing: Callable[[], BrokenExample]) -> None:
        """Raise `BrokenExample` unless there is a caption of the field that is read."""
        if not self.captions:
            return
        if self.caption_field == LAYOUT_FIELD:
            require_layout(meta)
        elif not (meta["captions"] if self.caption_field is None else field_texts(meta, self.caption_field)):
            raise missing()

    def choose(self, meta: dict[str, Any]) -> bool:
        """Whether an example is of the kinds and styles; styles choose among the single drawings."""
        if self.kinds and meta.get("kind") not in self.kinds:
            return False
        single = meta.get("kind", "single") == "single"
        return not (self.styles and single and meta.get("style") not in self.styles)


class Verdict(NamedTuple):
    """What rules say of some examples, in order."""

    states: np.ndarray
    """uint8 (N,): bits."""
    values: np.ndarray
    """uint64 (N,): a hash of each one's value of the caption field; (0,) where nothing counts them."""
    notes: dict[str, Any]
    """"seen": how many were read; "broken": (index, reason) of each that cannot be used; "filtered": rule -> how many
    it leaves out of those that no rule before it does."""

    @classmethod
    def join(cls, parts: Sequence[Verdict]) -> Verdict:
        """The verdict of several lots of examples, one after the other."""
        notes: dict[str, Any] = {"seen": 0, "broken": [], "filtered": Counter()}
        start = 0
        for part in parts:
            notes["seen"] += part.notes["seen"]
            notes["broken"] += [(start + index, reason) for index, reason in part.notes["broken"]]
            notes["filtered"].update(part.notes["filtered"])
            start += len(part.states)
        notes["filtered"] = dict(notes["filtered"])
        if not parts:
            return cls(np.zeros(0, np.uint8), np.zeros(0, np.uint64), notes)
        return cls(np.concatenate([p.states for p in parts]), np.concatenate([p.values for p in parts]), notes)


class Selector:
    """Applies rules to examples, one after the other."""

    def __init__(self, rules: Rules) -> None:
        self.rules, self.seen = rules, 0
        self.states = bytearray()
        self.values: list[int] = []
        self.broken: list[tuple[int, str]] = []
        self.filters, self.filtered = parse_filters(rules.filters), Counter[str]()

    def accept(self) -> None:
        """An example whose metadata need not be read."""
        self.states.append(CHOSEN)

    def read(
        self, read: Callable[[], dict[str, Any]], size: Size, missing: Callable[[], BrokenExample], what: str
    ) -> None:
        """An example with the metadata that `read` returns; size: reads the width and height of its image; missing: the
        error where it has no caption.

        what: its name, for the `UserError` where memory or file descriptors are exhausted.
        """
        self.seen += 1
        state, value = 0, 0
        try:
            meta = read()
            if not self.rules.choose(meta):
                self.rules.check_captions(meta, missing)
            elif against := first_against(self.filters, meta, size):
                self.filtered[str(against)] += 1
            else:
                self.rules.check_captions(meta, missing)
                state = CHOSEN | SPLIT_BITS.get(meta.get("split", ""), 0)
            value = stable_hash(str(meta.get(self.rules.caption_field or "", "")))
        except UserError:
            raise
        except Exception as error:  # whatever a broken file makes of it
            state = BROKEN
            self.broken.append((len(self.states), reason_of(error, what)))
        self.states.append(state)
        if self.rules.values:
            self.values.append(value)

    def verdict(self) -> Verdict:
        states = np.frombuffer(self.states, np.uint8).copy()
        notes = {"seen": self.seen, "broken": self.broken, "filtered": dict(self.filtered)}
        return Verdict(states, np.array(self.values, np.uint64), notes)


def choose(verdict: Verdict, hashes: np.ndarray, held_out: float, least: int) -> dict[str, np.ndarray]:
    """The indices of the chosen examples of each split, "train" and "held-out", in order: unsigned integers.

    hashes: uint64 (N,), the hash of each example's key: the share `held_out` of the examples that state no split is
    held out by it. least: how often at least the value of an example's caption field occurs.
    """
    chosen = np.flatnonzero(verdict.states & CHOSEN)
    if least > 1:
        _, which, times = np.unique(verdict.values[chosen], return_inverse=True, return_counts=True)
        chosen = chosen[times[which] >= least]
    states = verdict.states[chosen]
    held = (states & HELD_OUT) > 0
    if held_out:
        limit = int(held_out * 2**64)  # a hash is below the share of 2^64, whole or not, if it is below or at this
        below = hashes[chosen] < limit if limit == held_out * 2**64 else hashes[chosen] <= limit
        held |= (states & (TRAIN | HELD_OUT) == 0) & below
    small = np.uint32 if len(verdict.states) < 2**32 else np.uint64
    return {"train": chosen[~held].astype(small), "held-out": chosen[held].astype(small)}


class Selection:
    """The examples of each split, and those that cannot be used. Indices lie in memory-mapped files."""

    def __init__(self, total: int, splits: Arrays) -> None:
        self.total, self.splits = total, splits

    def indices(self, split: Split) -> Sequence[int] | np.ndarray:
        """The indices of a split, in order; all that is chosen for `all`."""
        if split != "all":
            return self._compact(self.splits[split])
        if not len(self.splits["held-out"]):
            return self._compact(self.splits["train"])
        return np.sort(np.concatenate([self.splits["train"], self.splits["held-out"]]))

    def _compact(self, indices: np.ndarray) -> Sequence[int] | np.ndarray:
        """A range where an array holds every index: it takes no memory."""
        return range(self.total) if len(indices) == self.total else indices

    @property
    def seen(self) -> int:
        """How many examples were read to decide."""
        return self.splits.notes["seen"]

    @property
    def filtered(self) -> dict[str, int]:
        """How many examples each rule leaves out of those that no rule before it does."""
        return self.splits.notes["filtered"]

    @property
    def broken(self) -> list[tuple[int, str]]:
        """(index, reason) of the examples that cannot be used, as far as their metadata says."""
        return self.splits.notes["broken"]
