"""What a run says while it trains: metrics.jsonl, TensorBoard, and a bar on a terminal or plain lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diptych.core.disk import disk_errors, write_text
from diptych.core.progress import bar, waiting
from diptych.core.terminal import print_err
from diptych.models.provenance import save_generated
from diptych.training.distributed import Team

Counted = Callable[[int, int], None]
"""Called with how many of a work's parts are done, and of how many."""


class Journal:
    """The main process keeps one; the others get a silent one (`folder=None`).

    On resume everything after `step` is dropped, so that each step is logged once.
    """

    def __init__(self, folder: Path | None, step: int, steps: int) -> None:
        self.folder, self.step, self.steps = folder, step, steps
        self.writer: Any = None
        self.bar = bar()
        self.task = self.bar.add_task("training", total=steps, completed=step)
        self.images, self.since = 0, time.perf_counter()

    def open(self) -> None:
        """Begin to write: drop what is later than the step that the run goes on from, show the bar."""
        if self.folder is None:
            return
        file = self.folder / "metrics.jsonl"
        lines = file.read_text(errors="replace").splitlines() if file.exists() else []
        earlier = [line for line in lines if _step(line) <= self.step]
        if earlier != lines:
            write_text(file, "".join(line + "\n" for line in earlier))
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1)
        except ImportError:
            self.report("TensorBoard is not installed: metrics go to metrics.jsonl alone")
        except UnicodeError:
            self.report(f"TensorBoard cannot write to {self.folder}: metrics go to metrics.jsonl alone")
        self.bar.start()
        self.since = time.perf_counter()

    def report(self, line: str) -> None:
        """A line on standard error, from the main process only; nothing for an empty one."""
        if self.folder is not None and line:
            print_err(line)

    def advance(self, step: int, loss: float, images: int) -> float:
        """Count a step; returns images a second since the last call of `metrics`."""
        self.images += images
        rate = self.images / max(time.perf_counter() - self.since, 1e-9)
        if self.folder is not None:
            self.bar.update(self.task, completed=step, description=f"loss {loss:.4f}  {rate:.1f} images/s")
        return rate

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[Counted]:
        """Within, the bar says what is done between steps, and how much of it, by the function that is given; elsewhere
        lines do, if it takes a while."""
        if self.folder is None:
            yield lambda done, total: None
        elif self.bar.disable:
            with waiting(what), bar() as lines:
                task = lines.add_task(what, total=None)
                yield lambda done, total: lines.update(task, completed=done, total=total)
        else:
            before = self.bar.tasks[self.task].description
            self.bar.update(self.task, description=what)
            yield lambda done, total: self.bar.update(self.task, description=f"{what} ({done:,} of {total:,})")
            self.bar.update(self.task, description=before)

    def metrics(self, step: int, values: dict[str, float], kind: str = "train") -> None:
        """Append one line to metrics.jsonl, add to TensorBoard, and print unless a bar shows it."""
        self.images, self.since = 0, time.perf_counter()
        if self.folder is None:
            return
        self.bar.printed[self.task] = time.monotonic()  # the line below says how far the run is
        file = self.folder / "metrics.jsonl"
        with disk_errors(file), file.open("a") as lines:
            lines.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        for name, value in values.items() if self.writer else ():
            self.writer.add_scalar(f"{kind}/{name}", value, step)
        if self.bar.disable or kind != "train":
            self.report(f"step {step}/{self.steps} {kind}: " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def image(self, step: int, image: Image.Image | None) -> None:
        """Save a grid of samples as samples/step-*.png."""
        if self.folder is None or image is None:
            return
        save_generated(image, self.folder / "samples" / f"step-{step:08d}.png")

    def close(self) -> None:
        self.bar.stop()
        if self.writer:
            self.writer.close()


class Means:
    """Running means of scalars, weighted by images; tensors stay on their device until they are taken."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.weights: dict[str, float] = {}

    def add(self, values: Mapping[str, Any], weight: int) -> None:
        for key, value in values.items():
            value = value.detach().float() if isinstance(value, Tensor) else value
            self.sums[key] = self.sums.get(key, 0.0) + value * weight
            self.weights[key] = self.weights.get(key, 0) + weight

    def take(self, team: Team) -> dict[str, float]:
        """The means over all processes; starts again from nothing. Fetches what is on a device in one copy."""
        tensors = {key: value for key, value in self.sums.items() if isinstance(value, Tensor)}
        if tensors:
            devices = {value.device for value in tensors.values()}
            device = next((device for device in devices if device.type != "cpu"), torch.device("cpu"))
            fetched = torch.stack([value.reshape(()).to(device) for value in tensors.values()]).tolist()
            self.sums.update(zip(tensors, fetched, strict=True))
        sums, weights = team.sum({key: float(value) for key, value in self.sums.items()}), team.sum(self.weights)
        self.sums, self.weights = {}, {}
        return {key: value / weights[key] for key, value in sums.items()}


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; a line cut by a kill, or otherwise odd, counts as infinitely late."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return math.inf
