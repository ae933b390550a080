"""The training loop: the same for every model, on one process or many, interrupted or not.

The loop knows positions, not data: position p = step * batch_size + i of the global sample stream fixes the example and
its seed, so any number of processes, any accumulation and any resume see the same numbers. On the CPU a run that was
killed and started again ends with the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.core.config import Config
from diptych.core.devices import sent
from diptych.core.disk import replacing
from diptych.core.progress import clock
from diptych.training import run_checkpoint as checkpoint
from diptych.training.acceleration import accelerate, compiling
from diptych.training.distributed import Team, require_same_data, team
from diptych.training.faults import named_faults
from diptych.training.interrupt import Interrupt
from diptych.training.learning_rate import jump, learning_rate_at
from diptych.training.logger import Journal, Means
from diptych.training.nan_guard import Taken, stop_not_finite
from diptych.training.optim import skip_unless_finite
from diptych.training.parallel import shard_group
from diptych.training.precision import autocast, settle_precision
from diptych.training.prefetch import Batch, BatchAt, prefetched, to_device
from diptych.training.readback import Readback
from diptych.training.run_state import RunState
from diptych.training.trainable import Trainable, preparation, stepped
from diptych.training.training_config import TrainingConfig, as_begun, compare_config, finished_line, write_config
from diptych.training.validation import measures
from diptych.weights.model_folder import TRAINED

START_IMAGES = 256
"""Enough to estimate a scale from; few enough for one pass."""

__all__ = ["Trainable", "TrainingConfig", "train"]


def train(
    trainable: Trainable,
    batch_at: BatchAt,
    config: TrainingConfig,
    folder: Path | str,
    validation_at: BatchAt | None = None,
    recipe: Config | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Train, or go on with, the run in `folder`; returns `folder/model`, the finished model.

    `batch_at` and `validation_at` give the batch of a list of stream positions, from background threads. `recipe` is
    the config to keep in `config.json`, with the training settings under "training", and `facts` what else is kept and
    must stay. The caller seeds the first weights. SIGTERM and SIGINT finish the step, save a checkpoint and raise
    `SystemExit`. Raises a `UserError` for a changed config, a folder in use or with files of something else, no whole
    checkpoint, a full disk, or a loss, gradient or weights that are not finite; the checkpoints stay as they are.
    """
    config = as_begun(config, folder)
    if config.threads:
        torch.set_num_threads(config.threads)
    with team(config.device) as here:
        precision = settle_precision(Path(folder), config, here)
        with named_faults(here, config):
            run = Run(trainable, batch_at, config, Path(folder), validation_at, here, precision.bf16)
            return run.run(recipe, {**(facts or {}), **precision.record})


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
        bf16: bool,
    ) -> None:
        self.trainable, self.batch_at, self.config, self.folder, self.team = trainable, batch_at, config, folder, here
        shard_group(config, here)  # where these processes cannot be grouped so, nothing begins
        self.measures = measures(trainable, validation_at, config, here)
        self.module = accelerate(trainable, config, here.device, len(getattr(batch_at, "shapes", " ")))
        self.bf16, self.autocast = bf16, autocast(bf16, here.device)
        self.interrupt, self.logged, self.results = Interrupt(), Means(), Readback[Taken](here.device)
        self.step, self.seconds, self.stopping, self.loss = 0, 0.0, False, math.nan

    @property
    def finished(self) -> bool:
        limit = self.config.minutes
        return self.step >= self.config.steps or (limit is not None and self.seconds >= limit * 60)

    def run(self, recipe: Config | None, facts: Mapping[str, Any]) -> Path:
        model, changed, values = self.folder / "model", list[str](), dict[str, Any]()
        require_same_data(self.team, facts)
        with contextlib.ExitStack() as stack:
            if self.team.main:
                checkpoint.require_run(self.folder)
                stack.enter_context(checkpoint.locked(self.folder))
                changed, values = compare_config(self.folder, recipe or {"training": self.config}, facts)
                checkpoint.clean(self.folder / "checkpoints")
            resumed = self.resume()
            journal = Journal(self.folder if self.team.main else None, self.step, self.config.steps)
            stack.callback(journal.close)
            if self.team.gather(self.finished and model.exists())[0]:
                journal.report(finished_line(model, self.step, self.config, changed))
                return model
            write_config(self.folder, values)
            journal.open()
            journal.report(compiling(self.config))
            if changed:
                journal.report(f"the run goes on with {', '.join(changed)}")
            if resumed:
                journal.report(f"going on from step {self.step}")
                journal.report(jump(resumed.state, self.step, self.config, self.seconds))
            else:
                self.start()
            stack.callback(self.state.saves.close)
            with self.interrupt.watching():
                self.train(journal)
            if not self.finished:
                journal.report(f"stopped after step {self.step}, checkpoint saved; the same command goes on from there")
                raise SystemExit(128 + (self.interrupt.number or signal.SIGTERM))
            with self.averaged(saving=True):
                if self.team.main:
                    with replacing(model, TRAINED) as made:
                        made.mkdir()
                        self.trainable.save(made)
            self.team.barrier()
            journal.report(f"finished {self.step} steps, {clock(self.seconds)} of training alone: {model}")
        return model

    def start(self) -> None:
        """Give the model the first images (for example to estimate a scale), and every process the result."""
        self.team.seed(self.config.seed, "start")
        batch = self.batch_at(list(range(min(self.config.batch_size, START_IMAGES))))
        with torch.no_grad():
            self.trainable.start({**to_device(batch, self.team.device), "random": self.config.random})
        self.team.broadcast(list(self.module.state_dict().values()))
        self.state = self.new_state()

    def new_state(self) -> RunState:
        return RunState(self.module, self.config, self.team, self.bf16)

    def train(self, journal: Journal) -> None:
        """Take steps until the run is finished or a signal came; leave a checkpoint of the last one."""
        config = self.config
        began = time.monotonic() - self.seconds
        pieces = (part for step in range(self.step, config.steps) for part in self.team.parts(step, config))
        self.module.train()
        ahead = prefetched(self.batch_at, pieces, config, self.team.device, preparation(self.trainable))
        with contextlib.closing(ahead) as batches:
            while not (self.finished or self.stopping):
                self.take_step(batches, time.monotonic() - began)
                if self.stopping or self.due(*config.intervals):
                    self.settle(wait=True)
                speed = journal.advance(self.step, self.loss, config.batch_size)
                if self.due(config.log_every):
                    journal.metrics(self.step, self.logged.take(self.team) | {"images_per_second": speed})
                for kind, doing, every, take in self.measures:
                    if self.due(every):
                        with self.averaged(), journal.doing(doing) as counted:
                            found = take(counted)
                        journal.metrics(self.step, found, kind)
                if self.due(config.sample_every):
                    with self.averaged(), journal.doing("generating samples"):
                        if self.team.main:
                            journal.image(self.step, self.trainable.samples())
                if self.due(config.checkpoint_every) or self.stopping:  # last: a resume has this step's lines
                    self.state.save(self.folder / "checkpoints", self.step, self.seconds)
                self.state.saves.check(together=self.due(config.log_every))
            self.state.saves.wait()

    def take_step(self, batches: Iterator[Batch], seconds: float) -> None:
        """One optimizer step, `seconds` after the run began. Nothing in it waits for a GPU: the host queues work, and
        learns in `settle` what came of it."""
        config, device = self.config, self.team.device
        total, parts = torch.zeros((), device=device), list[tuple[list, Tensor]]()  # keys and losses (B,)
        rate = learning_rate_at(self.step, config, self.seconds)  # seconds as all processes and a resume know them
        optimizer, parallel, split = self.state.optimizer, self.state.parallel, self.team.parts(self.step, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        self.team.seed(config.seed, self.step)
        optimizer.zero_grad(set_to_none=True)
        for part in split:
            batch = {**to_device(next(batches), device), "step": self.step}
            with self.autocast():
                losses, scalars = parallel.run(partial(self.trainable.loss, batch), part is split[-1])  # (B,)
            if losses.shape != (len(part),):
                raise ValueError(f"loss() must give one loss an image, ({len(part)},), not {tuple(losses.shape)}")
            (losses.sum() / config.batch_size).backward()
            total += losses.detach().sum() / config.batch_size
            parts.append((batch.get("key", part), losses.detach()))
            self.logged.add({"loss": losses.detach().mean(), **scalars}, len(part))
        own = torch.tensor([self.interrupt.number, seconds if self.team.main else 0.0])
        sums = parallel.sum_gradients(torch.cat([total.reshape(1), sent(own, device)]))  # loss, signals, seconds
        norm = parallel.clip_gradients(config.clip or math.inf)
        self.results.send(torch.cat([sums, norm.reshape(1)]), Taken(self.step, rate, parts))
        if self.results.lag:
            skip_unless_finite(optimizer, sums[0], norm)
        self.settle()  # without a lag a step that is not finite stops here
        optimizer.step()
        stepped(self.trainable, self.team)
        self.state.ema.update(self.step)
        self.team.broadcast(list(self.module.buffers()))
        self.step += 1

    def settle(self, wait: bool = False) -> None:
        """Take note of what came of the steps that the host may know of; with `wait` of all, which is done before
        anything is written or measured. Stops at the first that was not finite."""
        for (loss, signals, seconds, norm), taken in self.results.read(wait):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                stop_not_finite(taken, loss, norm, self.state.parallel, self.team)
            self.logged.add({"grad_norm": norm, "learning_rate": taken.rate}, 1)
            self.loss, self.seconds = loss, seconds
            self.stopping |= signals > 0  # all processes agree on the step to stop after

    @contextlib.contextmanager
    def averaged(self, saving: bool = False) -> Iterator[None]:
        """Averaged weights, evaluation mode, no gradients, and the same random numbers each time. To be entered in all
        processes; with `saving` the weights are there in the main one alone."""
        self.module.eval()
        self.team.seed(self.config.seed, "validation")
        with self.state.ema.swapped_in(saving), torch.no_grad(), self.autocast():
            yield
        self.module.train()

    def due(self, *every: int) -> bool:
        """Whether something done every so many steps is due after this step; all of it is after the last."""
        return any(steps > 0 and (self.step % steps == 0 or self.finished) for steps in every)

    def resume(self) -> checkpoint.Checkpoint | None:
        """Take everything from the newest whole checkpoint, if there is one."""
        latest = self.team.gather(checkpoint.latest(self.folder / "checkpoints") if self.team.main else None)[0]
        if latest is not None:
            self.state = self.new_state()
            self.state.load(latest)
            self.step, self.seconds = latest.step, latest.state["seconds"]
        return latest
