"""All that a checkpoint of a run holds, and how it gets there and back: weights, their average, the optimizer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from diptych.core.terminal import print_err
from diptych.training import run_checkpoint as checkpoint
from diptych.training.background_saves import BackgroundSaves
from diptych.training.distributed import Team
from diptych.training.ema import EMA
from diptych.training.learning_rate import learning_rate_at
from diptych.training.nan_guard import require_finite_state
from diptych.training.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from diptych.training.parallel import Replicated, shard_group
from diptych.training.training_config import TrainingConfig


class RunState:
    """The weights of a module, as `config.shard` divides them, with their average and their optimizer."""

    def __init__(self, module: nn.Module, config: TrainingConfig, team: Team, bf16: bool) -> None:
        """module: on the team's device, its weights the same in all processes, or about to be read from a checkpoint.
        bf16: forward passes are in that type."""
        self.config, self.team = config, team
        group = shard_group(config, team)
        if group is None:
            self.parallel, self.saves = Replicated(module, team), BackgroundSaves(team)
        else:
            from diptych.training.sharded_checkpoint import ShardedSaves  # FSDP takes a second to import
            from diptych.training.sharding import Sharded

            half, compiled = bf16 and team.device.type == "cuda", config.compile == "blocks"
            self.parallel = Sharded(module, team, group, half, compiled)
            self.saves = ShardedSaves(team, self.parallel.mesh)
        self.optimizer = build_optimizer(self.parallel, config)
        self.ema = EMA(self.parallel, config.ema, config.ema_warmup)

    def save(self, folder: Path, step: int, seconds: float) -> None:
        """Begin to write a checkpoint into `folder`. To be called in all processes. Raises a `UserError` where that is
        not possible, or was not with the one before, or numbers are not finite; `saves` has those that came later."""
        average, moments = self.ema.state_dict(), optimizer_tensors(self.optimizer, self.parallel)
        require_finite_state(step, self.parallel, average, moments)
        parts = {"weights": self.parallel.module.state_dict(), "ema": average, "optimizer": moments}
        rate = learning_rate_at(step, self.config, seconds)  # that of the next step
        self.saves.save(folder, step, parts, {"seconds": seconds, "learning_rate": rate}, self.config.keep)

    @torch.no_grad()
    def load(self, latest: checkpoint.Checkpoint) -> None:
        """Take everything from a checkpoint, of any number of processes, sharded or not."""
        parallel = self.parallel
        parallel.load(parallel.read(latest, "weights"), str(latest.path))
        average, moments = parallel.read(latest, "ema"), parallel.read(latest, "optimizer")
        require_finite_state(latest.step, parallel, average, moments, latest.path)
        self.ema.load_state_dict(average)
        if load_optimizer_tensors(self.optimizer, parallel, moments) and self.team.main:
            print_err("Adafactor had other moments in earlier versions: they are converted")
