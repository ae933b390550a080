"""A step of the networks of recipes at full depth, narrow, sharded and not: run in processes that a test starts."""

from __future__ import annotations

import copy
import dataclasses
import os
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.conditioned_unet import ConditionedUNetConfig
from diptych.networks.efficient_unet import EfficientUNetConfig
from diptych.networks.unet import UNetConfig
from diptych.recipes import get
from diptych.training.distributed import Team
from diptych.training.parallel import Replicated
from diptych.training.sharding import Sharded
from diptych.training.tasks.adversarial import AdversarialConfig
from diptych.training.tasks.autoencoding import FirstStage, FirstStageConfig
from tests.networks.reference import randomised

BATCH = 3
WIDTHS = {"channels": 16, "context_width": 16, "context_projection": 24, "pooled_width": 16, "time_width": 32}
NARROW = {**WIDTHS, "text_pooling_heads": 4, "heads": 4, "head_width": 8, "classes": 10, "norm_groups": 4}


def narrow(config: Any) -> Any:
    """A network's config with little in width and everything in depth."""
    have = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(
        config, **{name: value for name, value in NARROW.items() if name in have and getattr(config, name) is not None}
    )


class NetworkTask:
    """A denoiser's network with all its conditions."""

    def __init__(self, config: UNetConfig | EfficientUNetConfig | AdmUNetConfig) -> None:
        self.config, self.module = config, config.build()
        self.size = 2 ** max(len(config.multipliers), 4)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        c, rows = self.config, []
        for seed in batch["seed"].tolist():
            draws = torch.Generator().manual_seed(seed)
            one = {"x": torch.randn(c.in_channels, self.size, self.size, generator=draws)}
            if c.context_width is not None:
                one |= {"context": torch.randn(5, c.context_width, generator=draws), "context_mask": torch.ones(5) > 0}
            if c.pooled_width is not None:
                one["pooled"] = torch.randn(c.pooled_width, generator=draws)
            if c.concat_channels:
                one["concat"] = torch.randn(c.concat_channels, self.size, self.size, generator=draws)
            if c.augmented:
                one["level"] = torch.rand((), generator=draws)
            if getattr(c, "classes", None) is not None:
                one["label"] = torch.tensor(seed % 10)
            rows.append(one)
        cond = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        x = cond.pop("x")
        out = self.module(x, 100.0 * batch["seed"].float(), **cond)
        return (out[:, : x.shape[1]] - x).square().flatten(1).mean(1), {}


class FirstStageTask(FirstStage):
    """An autoencoder with its adversary from the first step on."""

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        pictures = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(s)) for s in batch["seed"].tolist()]
        return super().loss({**batch, "picture": torch.stack(pictures) * 2 - 1})


def task(name: str) -> Any:
    """What is trained of a recipe."""
    system = cast(Any, get(name).system)
    if isinstance(system, FirstStageConfig):
        assert isinstance(system.adversarial, AdversarialConfig)
        discriminator = dataclasses.replace(system.adversarial.discriminator, channels=4, norm="group", norm_groups=2)
        # Not adaptive: that weight is of the part of a batch which is computed at once.
        adversarial = dataclasses.replace(system.adversarial, discriminator=discriminator, start=0, adaptive=False)
        network = dataclasses.replace(system.network, channels=8, norm_groups=4)
        return FirstStageTask(
            dataclasses.replace(system, network=network, perceptual=None, adversarial=adversarial, kl=1e-3)
        )
    config = system.model.unet if hasattr(system.model, "unet") else system.model.network
    assert isinstance(config, ConditionedUNetConfig)
    return NetworkTask(narrow(config))


def step(task: Any, parallel: Replicated, positions: list[int]) -> list[float]:
    """Loss and gradient norm of a step."""
    losses, _ = parallel.run(lambda: task.loss({"seed": torch.tensor(positions), "step": 0}))
    (losses.sum() / BATCH).backward()
    return [
        parallel.sum_gradients(losses.detach().sum().reshape(1) / BATCH).item(),
        parallel.clip_gradients(1.0).item(),
    ]


def compare(names: list[str], environment: dict[str, str]) -> None:
    """Both ways, of each recipe; fails where they differ by more than 1e-5."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    team = Team(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    for name in names:
        torch.manual_seed(1)
        it = task(name)
        randomised(it.module, seed=5)
        other = copy.copy(it)
        other.module = copy.deepcopy(it.module)
        sharded = Sharded(other.module, team, team.size, bf16=False)
        found = step(other, sharded, team.share(range(BATCH)))
        assert len(sharded.shards) > 0.9 * len(sharded.trained), name
        assert len(sharded.units) > 20, name
        if team.main:
            expected = step(it, Replicated(it.module), list(range(BATCH)))
            torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    dist.destroy_process_group()
