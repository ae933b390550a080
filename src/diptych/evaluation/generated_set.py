"""Large sets of images from a list of prompts, for evaluation: resumable, by any number of processes, never in memory.

An image of the set is what `generate` makes of its prompt and seed. Images are generated in batches of consecutive
numbers, which are the same whichever process takes them and whatever is there already: the last bits of an image depend
on the batch that it is computed in.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from diptych.core.disk import sweep, write_text
from diptych.core.errors import DiptychWarning, UserError
from diptych.core.progress import bar, waiting
from diptych.core.steady import looks_on
from diptych.core.values import MOST, Integer, checked
from diptych.data.prompt_files import PromptRow, read_prompts
from diptych.encoders.base import PromptOptions
from diptych.encoders.prompt_weights import require_encodable
from diptych.evaluation.set_files import MANIFEST, present, stored_row, write_image
from diptych.evaluation.set_mark import SetMark, begin
from diptych.evaluation.set_plan import PlannedImage, SetPlan

QUALITY = 95
OFTEN = 5.0
"""Seconds between two counts of what other processes have made."""
WRITERS = 4
"""Threads that write images."""
SHOWN = 5
"""Warnings of single prompts that are printed."""


@dataclass
class GeneratedSet:
    """What a call of `generate_set` did."""

    out: Path
    total: int
    """Images of the set, as far as it was asked for."""
    generated: int = 0
    """By this process, now."""
    kept: int = 0
    """Of this process's share, from earlier."""
    damaged: list[str] = field(default_factory=list)
    """Files that were not whole, and were made again."""
    notes: Counter[str] = field(default_factory=Counter)
    """How many of the images made now have a note, by kind: `unread` words, `cut` prompts, little `likeness`."""
    complete: bool = False
    """Whether all images are there, by whichever process, and the manifest with them."""


def generate_set(
    model: Any,
    prompts: Sequence[PromptRow | str] | Path,
    out: Path | str,
    *,
    images_per_prompt: int = 1,
    seed: int = 0,
    batch: int | None = None,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
    format: str = "png",
    quality: int = QUALITY,
    source: str | None = None,
    drawn: Mapping[str, Any] | None = None,
    counted: bool = False,
    quiet: bool = False,
    **options: Any,
) -> GeneratedSet:
    """Generate the images of all prompts into the folder `out`, those that are there already left out.

    Image c of prompt r has the seed that its row states, plus c, or else `set_plan.image_seed(seed, r, c)`. Files are
    `00000/00012-3.png` (image 3 of prompt 12). `manifest.jsonl` lists them once all are there; `set.json` says what
    they were made from. A call with the same arguments goes on after any interruption.

    Args:
        prompts: texts, rows, or a file as `read_prompts` reads it.
        batch: images generated at a time; none is that with which the set was begun, or 8. Of another one than the set
            was begun with, the last bits of images differ.
        limit: take only the first so many prompts. It may be raised later.
        shard: (k, n), the share k, from 0, of n processes.
        format: "png" or "jpeg", with `quality`.
        source: a name of the prompts for `set.json`, and how they were `drawn`.
        counted: whether progress counts what other processes make too.
        quiet: show no progress.
        options: those of the model's `generate`, the same for all images.

    Raises:
        UserError: an argument or a prompt that the model cannot take, before any image; a folder with other images, or
            a set made from something else. What is there stays as it is.
    """
    out = Path(out)
    if isinstance(prompts, Path):
        source, prompts = source or prompts.name, read_prompts(prompts)
    options = set_options(options)
    negative = options.pop("negative", "")
    if not isinstance(negative, str):
        raise UserError("a set of images has one negative prompt, or those of its rows")
    rows = [PromptRow(row.strip()) if isinstance(row, str) else row for row in prompts]
    plan = SetPlan(rows=rows, copies=images_per_prompt, seed=seed, negative=negative, format=format)
    wanted = len(rows) if limit is None else min(checked("limit", Integer(1, MOST).check, limit), len(rows))
    (place, shares) = shard
    if not 0 <= place < shares:
        raise UserError(f"a share is a number from 0 to {shares - 1} of {shares}, not {place}")
    mark = SetMark.of(model, plan, options, quality, source, drawn)
    check_prompts(model, rows[:wanted], options, source)
    batch = begin(out, mark, batch)
    run = _Run(model, plan, out, mark, options, quality, wanted * plan.copies)
    return run.run(range(place * batch, len(plan), shares * batch), batch, counted, quiet)


def set_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `generate` that are set. Raises a `UserError` for one that a set decides itself."""
    options = {key: value for key, value in options.items() if value is not None and value is not False}
    for name in ("seeds", "callback", "noise", "keep_stages"):
        if name in options:
            raise UserError(f"{name} is not for a set of images: leave it out")
    return options


@dataclass
class _Run:
    """One process at work."""

    model: Any
    plan: SetPlan
    out: Path
    mark: SetMark
    options: dict[str, Any]
    quality: int
    total: int
    """The images that are asked for are those of numbers below this."""

    def run(self, starts: range, batch: int, counted: bool, quiet: bool) -> GeneratedSet:
        done = GeneratedSet(self.out, self.total)
        batches = [range(start, min(start + batch, len(self.plan))) for start in starts if start < self.total]
        with contextlib.nullcontext() if quiet else waiting(f"verifying the images that are in {self.out}"):
            missing = self.missing(batches, done)
        share = sum(min(each.stop, self.total) - each.start for each in batches)
        count = _Count(self, share if not counted else self.total, done.kept, counted)
        with few_warnings(), contextlib.nullcontext() if quiet else bar(rate=True) as display:
            task = None if display is None else display.add_task("generating", total=count.total, completed=count())

            def advance(images: int, step: int, steps: int) -> None:
                if display is not None and task is not None:
                    display.update(task, completed=min(count() + images * (step + 1) / steps, count.total))

            writing: list[Future[None]] = []
            with ThreadPoolExecutor(WRITERS) as writers:  # a batch is written while the next is generated
                for numbers in batches:
                    if todo := missing.get(numbers.start):
                        calls = self.generate(numbers, todo, done.notes, advance)
                        for one in writing:
                            one.result()
                        writing = [writers.submit(call) for call in calls]
                        done.generated += len(todo)
                        count.own = done.kept + done.generated
                for one in writing:
                    one.result()
            if display is not None and task is not None:
                display.update(task, completed=count(now=True))
        done.complete = self.finish()
        return done

    def missing(self, batches: Sequence[range], done: GeneratedSet) -> dict[int, list[int]]:
        """The numbers of a share's images that are not there, by the first of their batch. Those that are, are
        verified: one that is damaged is missing, and one of another set raises a `UserError`."""
        there, missing = present(self.out, self.plan.suffix), dict[int, list[int]]()
        for numbers in batches:
            for number in range(numbers.start, min(numbers.stop, self.total)):
                image = self.plan[number]
                if image.file in there:
                    row = stored_row(self.out / image.file)
                    if row is not None:
                        self.require_same(image, row)
                        done.kept += 1
                        continue
                    done.damaged.append(image.file)
                missing.setdefault(numbers.start, []).append(number)
        return missing

    def require_same(self, image: PlannedImage, row: Mapping[str, Any]) -> None:
        expected = {
            "prompt": image.prompt,
            "seed": image.seed,
            "negative": image.negative or None,
            "set": self.mark.digest,
        }
        for name, value in expected.items():
            if row.get(name) != value:
                what = "of another set" if name == "set" else f"made with {name} {row.get(name)!r}, not {value!r}"
                raise UserError(
                    f"{self.out / image.file} is no image of this set ({what}): move it, or take a new folder"
                )

    def generate(
        self, numbers: range, todo: Sequence[int], notes: Counter[str], advance: Callable[[int, int, int], None]
    ) -> list[Callable[[], None]]:
        """Generate a batch. Returns what writes those of its images that are missing."""
        images = [self.plan[number] for number in numbers]
        negatives = [image.negative for image in images]
        options = {**self.options, **({"negative": negatives} if any(negatives) else {})}
        result = self.model.generate(
            [image.prompt for image in images],
            seeds=[image.seed for image in images],
            callback=looks_on(lambda step, steps, x0: advance(len(todo), step, steps)),
            **options,
        )
        calls: list[Callable[[], None]] = []
        for number in todo:
            row = result.metadata[number - numbers.start]
            notes.update(kind for each in row.get("notes", {}).values() for kind in each)
            image = images[number - numbers.start]
            made = result.images[number - numbers.start].copy()  # Pillow notes in an image how it is being saved
            row = {**row, "set": self.mark.digest}
            calls.append(partial(write_image, made, self.out / image.file, row, self.quality))
        return calls

    def finish(self) -> bool:
        """Write the manifest where all images are there. Whichever process is the last does so; all write the same."""
        there = present(self.out, self.plan.suffix)
        if any(self.plan[number].file not in there for number in range(self.total)):
            return False
        with contextlib.suppress(OSError), open(self.out / MANIFEST, encoding="utf-8") as file:
            if sum(1 for _ in file) > self.total:  # of a run that was not limited
                return True
        for folder in {Path(self.plan[number].file).parent for number in range(0, self.total, self.plan.copies)}:
            sweep(self.out / folder)  # what a process that was killed has left
        write_text(self.out / MANIFEST, "".join(self.plan.manifest(self.total // self.plan.copies)))
        return True


class _Count:
    """How many images there are: a process's own, or those of all, counted on the disk from time to time."""

    def __init__(self, run: _Run, total: int, own: int, everywhere: bool) -> None:
        self.run, self.total, self.own, self.everywhere = run, total, own, everywhere
        self.counted, self.seen = 0, -OFTEN

    def __call__(self, now: bool = False) -> int:
        if not self.everywhere:
            return self.own
        if now or time.monotonic() - self.seen > OFTEN:
            self.counted, self.seen = len(present(self.run.out, self.run.plan.suffix)), time.monotonic()
        return min(max(self.counted, self.own), self.total)


def check_prompts(model: Any, rows: Sequence[PromptRow], options: Mapping[str, Any], source: str | None) -> None:
    """Raise a `UserError` that names the first prompt that the model's text encoder cannot read, before any image."""
    if (encoder := getattr(model, "text", None)) is None:
        return
    reading = PromptOptions.read(options.get("prompt_weights", False), options.get("long_prompts", "refuse"))
    for number, row in enumerate(rows, 1):
        try:
            require_encodable(encoder, row.prompt, reading)
            if row.negative:
                require_encodable(encoder, row.negative, reading)
        except UserError as error:
            raise UserError(f"prompt {number}{f' of {source}' if source else ''}: {error}") from None


@contextlib.contextmanager
def few_warnings(most: int = SHOWN) -> Iterator[None]:
    """Within, only the first warnings about prompts are shown: a set has thousands."""
    seen, usual = set[str](), warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, DiptychWarning):
            if str(message) in seen or len(seen) > most:
                return
            seen.add(str(message))
            if len(seen) > most:
                message = DiptychWarning("more warnings are not shown: `notes` in each image's metadata has them")
        usual(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
