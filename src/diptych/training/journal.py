"""What a run says while it trains: metrics.jsonl, TensorBoard, and a bar on a terminal or plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import Progress

from diptych.progress import bar
from diptych.weights.files import disk_errors, replacing, write_text


class Journal:
    """The main process keeps one; the others get a silent one (`folder=None`).

    On resume everything after `step` is dropped, so that each step is told once.
    """

    def __init__(self, folder: Path | None, step: int, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.writer: Any = None
        self.bar: Progress = bar()
        self.pictures, self.since = 0, time.perf_counter()
        if folder is None:
            self.bar.disable = True
            return
        self.file = folder / "metrics.jsonl"
        self.file.touch()
        lines = self.file.read_text().splitlines()
        kept = [line for line in lines if _step(line) <= step]
        if kept != lines:
            write_text(self.file, "".join(line + "\n" for line in kept))
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except ImportError:
            self.say("TensorBoard is not installed: metrics go to metrics.jsonl alone")
        self.task = self.bar.add_task("training", total=steps, completed=step)
        self.bar.start()

    def advance(self, step: int, loss: float, pictures: int) -> float:
        """Count a step; returns pictures a second since the last call of `metrics`."""
        self.pictures += pictures
        rate = self.pictures / max(time.perf_counter() - self.since, 1e-9)
        if self.folder is not None:
            self.bar.update(self.task, completed=step, description=f"loss {loss:.4f}  {rate:.1f} pictures/s")
        return rate

    def metrics(self, step: int, values: dict[str, float], kind: str = "train") -> None:
        """Append one line to metrics.jsonl, add to TensorBoard, and print unless a bar shows it."""
        self.pictures, self.since = 0, time.perf_counter()
        if self.folder is None:
            return
        with disk_errors(self.file), self.file.open("a") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        for name, value in values.items() if self.writer else ():
            self.writer.add_scalar(f"{kind}/{name}", value, step)
        if self.bar.disable or kind != "train":
            self.say(f"step {step}/{self.steps} {kind}: " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def picture(self, step: int, image: Image.Image | None) -> None:
        """Save a grid of samples as samples/step-*.png."""
        if self.folder is None or image is None:
            return
        with replacing(self.folder / "samples" / f"step-{step:08d}.png") as partial:
            image.save(partial, format="PNG")

    def say(self, line: str) -> None:
        if self.folder is not None:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        self.bar.stop()
        if self.writer:
            self.writer.close()


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; a line cut by a kill counts as infinitely late."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
