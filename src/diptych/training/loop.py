"""The training loop: the same for every model, on one process or many, interrupted or not.

The loop knows positions, not data: position p = step * batch_size + i of the global sample stream fixes the example and
its seed, so any number of processes, any accumulation and any resume see the same numbers. On the CPU a run that was
killed and started again ends with the same bits as one that was not.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.errors import UserError
from diptych.training import checkpoint
from diptych.training.config import TrainingConfig, settle_config
from diptych.training.distributed import Team, team
from diptych.training.ema import EMA
from diptych.training.journal import Journal
from diptych.training.optim import build_optimizer, learning_rate_at, load_optimizer_tensors, optimizer_tensors
from diptych.weights.files import load_into, replacing

Batch = dict[str, Any]
BatchAt = Callable[[list[int]], Batch]
START_PICTURES = 256


class Trainable(Protocol):
    """A model as the loop sees it."""

    module: nn.Module
    """What is optimised; its state dict, buffers included, is what a checkpoint holds."""

    def start(self, batch: Batch) -> None:
        """Called once in a run, before step 0, with the first batch (at most 256 pictures), on every process."""
        ...

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses (B,), one a picture, and scalars to log (means over the batch)."""
        ...

    def validation(self, batch: Batch) -> dict[str, float]:
        """Metrics of a batch (means over it), with the averaged weights swapped in."""
        ...

    def samples(self) -> Image.Image | None:
        """A grid at fixed prompts, with the averaged weights swapped in."""
        ...

    def save(self, folder: Path) -> None:
        """Write the finished model into an existing, empty folder."""
        ...


def train(
    trainable: Trainable,
    batch_at: BatchAt,
    config: TrainingConfig,
    folder: Path | str,
    validation_at: BatchAt | None = None,
    resolved: dict[str, Any] | None = None,
) -> Path:
    """Train, or go on with, the run in `folder`; returns `folder/model`, the finished model.

    `batch_at` and `validation_at` give the batch of a list of stream positions (called from a background thread).
    `resolved` is the whole config to keep in `config.json`, the training settings under "training". SIGTERM and SIGINT
    finish the step, save a checkpoint and raise `SystemExit`. Raises a `UserError` for a changed config, a full disk, or
    a loss or gradient that is not finite (before it reaches the weights; the checkpoints stay as they are).
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    with team(config.device) as here:
        return Run(trainable, batch_at, config, Path(folder), validation_at, here).run(resolved)


class Run:
    """One call of `train`: the model, its optimizer and average, and how far they are."""

    def __init__(
        self,
        trainable: Trainable,
        batch_at: BatchAt,
        config: TrainingConfig,
        folder: Path,
        validation_at: BatchAt | None,
        here: Team,
    ) -> None:
        self.trainable, self.batch_at, self.validation_at = trainable, batch_at, validation_at
        self.config, self.folder, self.team = config, folder, here
        self.module = trainable.module.to(here.device)
        self.optimizer = build_optimizer(
            self.module, config.optimizer, config.learning_rate, config.weight_decay, config.betas
        )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.ema = EMA(self.module, config.ema, config.ema_warmup)
        self.autocast = set_precision(config.precision, here.device)
        self.step, self.seconds, self.signal = 0, 0.0, 0

    @property
    def finished(self) -> bool:
        limit = self.config.minutes
        return self.step >= self.config.steps or (limit is not None and self.seconds >= limit * 60)

    def run(self, resolved: dict[str, Any] | None) -> Path:
        model = self.folder / "model"
        with contextlib.ExitStack() as stack:
            if self.team.main:
                stack.enter_context(checkpoint.locked(self.folder))
                settle_config(self.folder, resolved or {"training": self.config.to_dict()})
                checkpoint.clean(self.folder / "checkpoints")
            resumed = self.resume()
            if self.team.gather(self.finished and model.exists())[0]:
                self.say(f"{model} is finished ({self.step} steps); raise training.steps to train on")
                return model
            journal = Journal(self.folder if self.team.main else None, self.step, self.config.steps)
            stack.callback(journal.close)
            if resumed:
                self.say(f"going on from step {self.step}")
            else:
                self.start()
            with self.caught_signals():
                self.train(journal)
            if not self.finished:
                self.say(f"stopped after step {self.step}, checkpoint saved; the same command goes on from there")
                raise SystemExit(128 + self.signal)
            if self.team.main:
                with self.averaged(), replacing(model) as partial:
                    partial.mkdir()
                    self.trainable.save(partial)
            self.team.barrier()
            self.say(f"finished {self.step} steps in {self.seconds / 60:.1f} minutes: {model}")
        return model

    def start(self) -> None:
        """Let the model look at the first pictures (for example at their scale), and give every process the result."""
        self.seed("start")
        with torch.no_grad():
            batch = self.batch_at(list(range(min(self.config.batch_size, START_PICTURES))))
            self.trainable.start(to_device(batch, self.team.device))
        self.team.broadcast(list(self.module.state_dict().values()))
        self.ema = EMA(self.module, self.config.ema, self.config.ema_warmup)

    def train(self, journal: Journal) -> None:
        """Take steps until the run is finished or a signal came; leave a checkpoint of the last one."""
        config = self.config
        began = time.monotonic() - self.seconds
        logged = Means()
        pieces = (part for step in range(self.step, config.steps) for part in self.parts(step))
        self.module.train()
        with contextlib.closing(prefetched(self.batch_at, pieces, config.workers)) as batches:
            while not (self.finished or self.signal):
                loss = self.take_step(batches, logged, time.monotonic() - began)
                speed = journal.advance(self.step, loss, config.batch_size)
                if self.due(config.log_every):
                    journal.metrics(self.step, logged.take(self.team) | {"pictures_per_second": speed})
                if self.validation_at and self.due(config.validate_every):
                    journal.metrics(self.step, self.validate(self.validation_at), "validation")
                if self.team.main and self.due(config.sample_every):
                    with self.averaged():
                        journal.picture(self.step, self.trainable.samples())
                if (
                    self.due(config.checkpoint_every) or self.signal
                ):  # after the lines of this step, so a resume has them
                    self.save_checkpoint()

    def take_step(self, batches: Iterator[Batch], logged: Means, seconds: float) -> float:
        """One optimizer step; returns the loss of the whole batch."""
        config, total, seen = self.config, torch.zeros((), device=self.team.device), []
        rate = learning_rate_at(
            self.step, config.steps, config.learning_rate, config.warmup, config.schedule, config.cooldown
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.seed(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        for part in self.parts(self.step):
            batch = to_device(next(batches), self.team.device)
            with self.autocast():
                losses, scalars = self.trainable.loss(batch)  # (B,)
            if losses.shape != (len(part),):
                raise ValueError(f"loss() must give one loss a picture, ({len(part)},), not {tuple(losses.shape)}")
            (losses.sum() / config.batch_size).backward()
            total += losses.detach().sum() / config.batch_size
            seen.append((batch.get("key", part), losses.detach()))
            logged.add({"loss": losses.detach().mean(), **scalars}, len(part))
        extras = [total.item(), float(self.signal), seconds if self.team.main else 0.0]
        sums = self.team.sum_gradients(self.parameters, torch.tensor(extras, device=self.team.device))
        norm = nn.utils.clip_grad_norm_(self.parameters, config.clip or float("inf"))
        loss, signalled, self.seconds, norm = torch.cat([sums, norm.reshape(1)]).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.refuse(loss, norm, seen)
        self.optimizer.step()
        self.ema.update(self.step)
        self.team.broadcast(list(self.module.buffers()))
        logged.add({"grad_norm": norm, "learning_rate": rate}, 1)
        self.step += 1
        self.signal = self.signal or int(signalled > 0) * signal.SIGTERM  # another process was signalled
        return loss

    def refuse(self, loss: float, norm: float, seen: list[tuple[list, Tensor]]) -> NoReturn:
        """Stop before the weights are touched, on all processes, and say which pictures were in the batch."""
        bad = [str(key) for keys, losses in seen for key, x in zip(keys, losses.tolist(), strict=True) if x - x != 0]
        every = [str(key) for keys, _ in seen for key in keys]
        keys = sum(self.team.gather(bad), []) or sum(self.team.gather(every), [])
        listed = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
        raise UserError(
            f"step {self.step + 1}: loss {loss} with gradient norm {norm} is not finite; stopped before the weights "
            f"changed. Batch: {listed}. Lower training.learning_rate, or look at these pictures"
        )

    def validate(self, validation_at: BatchAt) -> dict[str, float]:
        """Metrics over the first validation pictures, always the same, with the averaged weights."""
        size = -(-self.config.batch_size // (self.team.size * self.config.accumulation))
        mine = self.team.share(range(self.config.validation_pictures))
        means = Means()
        with self.averaged():
            for i in range(0, len(mine), size):
                part = mine[i : i + size]
                means.add(self.trainable.validation(to_device(validation_at(part), self.team.device)), len(part))
        return means.take(self.team)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Averaged weights, evaluation mode, no gradients, and the same random numbers each time."""
        self.module.eval()
        self.seed("validation")
        with self.ema.swapped_in(), torch.no_grad(), self.autocast():
            yield
        self.module.train()

    def parts(self, step: int) -> list[list[int]]:
        """This process's positions of a step's batch, in as many parts as there are accumulated."""
        size = self.config.batch_size
        mine = self.team.share(range(step * size, (step + 1) * size))
        parts = self.config.accumulation
        split = [mine[i * len(mine) // parts : (i + 1) * len(mine) // parts] for i in range(parts)]
        return [part for part in split if part]

    def due(self, every: int) -> bool:
        """Whether something done every so many steps is due after this step; all of it is after the last."""
        return every > 0 and (self.step % every == 0 or self.finished)

    def seed(self, moment: int | str) -> None:
        """Seed PyTorch's own generators (dropout) from the run's seed, the moment and the process."""
        digest = hashlib.blake2b(f"{self.config.seed}/{moment}/{self.team.rank}".encode(), digest_size=7).digest()
        torch.manual_seed(int.from_bytes(digest))

    def save_checkpoint(self) -> None:
        if self.team.main:
            parts = {
                "weights": self.module.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizer": optimizer_tensors(self.optimizer, self.module),
            }
            folder = self.folder / "checkpoints"
            checkpoint.save(folder, self.step, parts, {"seconds": self.seconds}, self.config.keep)

    def resume(self) -> bool:
        """Take everything from the newest whole checkpoint, if there is one."""
        found = self.team.gather(checkpoint.latest(self.folder / "checkpoints") if self.team.main else None)[0]
        if found is not None:
            load_into(self.module, found.load("weights"), str(found.path))
            self.ema.load_state_dict(found.load("ema"))
            load_optimizer_tensors(self.optimizer, self.module, found.load("optimizer"))
            self.step, self.seconds = found.step, found.state["seconds"]
        return found is not None

    def say(self, line: str) -> None:
        if self.team.main:
            print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def caught_signals(self) -> Iterator[None]:
        """Note the first SIGTERM or SIGINT for after the step; a second one acts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def note(number: int, frame: object) -> None:
            self.signal = number
            for each, handler in before.items():
                signal.signal(each, handler)

        try:
            for number in before:
                signal.signal(number, note)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Means:
    """Running means of scalars, weighted by pictures; tensors stay on their device until they are taken."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.weights: dict[str, float] = {}

    def add(self, values: Mapping[str, Any], weight: int) -> None:
        for key, value in values.items():
            value = value.detach().float() if isinstance(value, Tensor) else value
            self.sums[key] = self.sums.get(key, 0.0) + value * weight
            self.weights[key] = self.weights.get(key, 0) + weight

    def take(self, here: Team) -> dict[str, float]:
        """The means over all processes; starts again from nothing."""
        sums, weights = here.sum({key: float(value) for key, value in self.sums.items()}), here.sum(self.weights)
        self.sums, self.weights = {}, {}
        return {key: value / weights[key] for key, value in sums.items()}


def prefetched(batch_at: BatchAt, pieces: Iterable[list[int]], workers: int) -> Iterator[Batch]:
    """The batches of the pieces in order, `workers` of them prepared ahead in threads."""
    if workers == 0:
        yield from map(batch_at, pieces)
        return
    pieces = iter(pieces)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batch")
    try:
        ahead = collections.deque(pool.submit(batch_at, piece) for piece in itertools.islice(pieces, workers))
        while ahead:
            batch = ahead.popleft().result()
            ahead.extend(pool.submit(batch_at, piece) for piece in itertools.islice(pieces, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch; texts and keys stay."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def set_precision(precision: str, device: torch.device) -> Callable[[], torch.autocast]:
    """What to wrap a forward pass in: bfloat16 autocast, or nothing."""
    cuda = device.type == "cuda"
    bf16 = precision == "bf16" or (precision == "auto" and cuda and torch.cuda.is_bf16_supported(False))
    if cuda:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high" if bf16 else "highest")
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=bf16)
