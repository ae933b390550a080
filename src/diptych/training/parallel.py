"""Where weights, gradients, averages and the optimizer's state lie: whole in each process, or a shard in each.

Sharding (FSDP2 and HSDP: Zhao et al. 2023, PyTorch's `fully_shard`) is applied here, to any model and from outside. The
blocks of networks are units: the weights of one are gathered before it runs and freed after it. What is in no unit is
gathered for the loss as a whole, so that a loss may call any method and read any weight. The optimizer and the average
work on plain tensors, the local shards, as they would on whole weights.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

from diptych.core.errors import UserError
from diptych.networks.adm_blocks import AdmAttention
from diptych.networks.code_transformer import CodeTransformerBlock
from diptych.networks.efficient_unet import PixelShuffle
from diptych.networks.layers import Downsample, SpatialTransformer, TransformerBlock, Upsample
from diptych.networks.quantizer import VectorQuantizer
from diptych.networks.residual import ResidualBlock
from diptych.networks.transformer import TextTransformerBlock
from diptych.training.distributed import Team
from diptych.training.training_config import TrainingConfig

UNITS = (
    *(ResidualBlock, Downsample, Upsample, PixelShuffle, SpatialTransformer, TransformerBlock, AdmAttention),
    *(TextTransformerBlock, CodeTransformerBlock),
)
"""Modules that are gathered by themselves: nothing reads their weights but their own `forward`."""
CHANGED_OUTSIDE = (VectorQuantizer,)
"""Modules whose weights a task changes by other means than gradients: they stay whole in each process."""
STEP = "sharded_step"

T = TypeVar("T")


class Replicated:
    """All that is trained is whole in each process; gradients are summed over them."""

    def __init__(self, module: nn.Module, team: Team) -> None:
        self.module, self.team = module, team
        self.trained: dict[str, nn.Parameter] = {n: p for n, p in module.named_parameters() if p.requires_grad}
        """What the optimizer changes, by the names of the module's parameters."""

    def run(self, loss: Callable[[], T], last: bool = True) -> T:
        """What `loss()` gives, a part of a step. last: whether no further part follows before the gradients count."""
        return loss()

    def sum_gradients(self, extras: Tensor) -> Tensor:
        """Sum the gradients in `trained` over the processes, and return the sum of `extras` (N,)."""
        return self.team.sum_gradients(list(self.trained.values()), extras)

    def clip_gradients(self, most: float) -> Tensor:
        """The norm () of all gradients together, before they are scaled down to `most`."""
        return clip_grad_norm_(list(self.trained.values()), most)

    @contextlib.contextmanager
    def holding(self, values: Sequence[Tensor], saving: bool = False) -> Iterator[None]:
        """Within, the module has these values in place of `trained`, in the order of that. saving: only the main
        process needs them, in its memory."""
        parameters = list(self.trained.values())
        originals = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            torch._foreach_copy_(parameters, list(values))  # pyright: ignore
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, originals)  # pyright: ignore


class Sharded(Replicated):
    """Of each parameter that is trained a process has some rows: `trained` holds these, and `shards` says which.

    Some parameters stay whole: frozen ones, scalars, and those of `CHANGED_OUTSIDE`.
    """

    def __init__(self, module: nn.Module, team: Team, group: int, bf16: bool) -> None:
        """Shard a module, whose weights are the same in all processes, over groups of so many processes. bf16: gather
        weights in that type; gradients are reduced in float32 in any case."""
        whole = {p for p in module.parameters() if not p.requires_grad or p.ndim == 0}
        for part in module.modules():
            if isinstance(part, CHANGED_OUTSIDE):
                whole.update(part.parameters())
        require_shardable(module, whole)
        mesh = (group,) if group == team.size else (team.size // group, group)
        names = ("shard",) if len(mesh) == 1 else ("replicate", "shard")
        self.mesh = init_device_mesh(team.device.type, mesh, mesh_dim_names=names)
        self.group = self.mesh.get_group("shard")
        """The processes that hold one copy together."""
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        options = {
            "mesh": self.mesh,
            "mp_policy": policy if bf16 else MixedPrecisionPolicy(),
            "ignored_params": whole,
        }
        for part in reversed(list(module.modules())):  # those within others first
            if part is module or (isinstance(part, UNITS) and any(p not in whole for p in part.parameters())):
                fully_shard(part, **options)
        self.units = [part for part in module.modules() if isinstance(part, FSDPModule)]
        for unit in self.units:  # the loss is divided by the whole batch: gradients are sums
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
        setattr(module, STEP, lambda loss: loss())
        register_fsdp_forward_method(module, STEP)
        super().__init__(module, team)
        self.shards = {name: p for name, p in self.trained.items() if isinstance(p, DTensor)}
        for name, p in self.shards.items():
            self.trained[name] = nn.Parameter(p.detach().to_local())  # the same memory

    def run(self, loss: Callable[[], T], last: bool = True) -> T:
        root = cast(FSDPModule, self.module)
        if self.mesh.ndim == 2:  # over machines once a step
            root.set_requires_all_reduce(last)
        return getattr(root, STEP)(loss)

    def sum_gradients(self, extras: Tensor) -> Tensor:
        for name, p in self.shards.items():
            grad, p.grad = p.grad, None
            self.trained[name].grad = None if grad is None else cast(DTensor, grad).to_local()
        return self.team.sum_gradients([p for name, p in self.trained.items() if name not in self.shards], extras)

    def clip_gradients(self, most: float) -> Tensor:
        grads = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        own = [grad for name, grad in grads.items() if name in self.shards]
        rest = [grad for name, grad in grads.items() if name not in self.shards]
        squares = [get_total_norm(part).to(self.team.device).double().square() for part in (own, rest)]
        dist.all_reduce(squares[0], group=self.group)
        norm = (squares[0] + squares[1]).sqrt().float()
        clip_grads_with_norm_(list(self.trained.values()), most, norm)
        return norm

    @contextlib.contextmanager
    def holding(self, values: Sequence[Tensor], saving: bool = False) -> Iterator[None]:
        """As of `Replicated`. Within, parameters are plain tensors and a forward pass communicates nothing, so that
        processes may do different things."""
        with contextlib.ExitStack() as stack:
            whole = dict[int, nn.Parameter]()
            for (name, p), value in zip(self.trained.items(), values, strict=True):
                if name in self.shards:  # one after the other: no process holds the whole on its device to save it
                    p, value = self.shards[name], self.rows(name, value).full_tensor()
                if not saving or self.team.main:
                    whole[id(p)] = nn.Parameter(value.cpu() if saving else value, requires_grad=False)
            for part in self.module.modules():
                for name, p in list(part._parameters.items()):
                    if id(p) in whole:
                        stack.callback(part._parameters.__setitem__, name, p)
                        part._parameters[name] = whole[id(p)]
                if isinstance(part, FSDPModule):
                    for hooks in ("_forward_pre_hooks", "_forward_hooks"):
                        stack.callback(setattr, part, hooks, getattr(part, hooks))
                        setattr(part, hooks, OrderedDict())
            yield

    def rows(self, name: str, local: Tensor) -> DTensor:
        """This process's rows of a tensor of the shape of a sharded parameter, with what they are part of."""
        p = self.shards[name]
        return DTensor.from_local(local, self.mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def parallelize(module: nn.Module, config: TrainingConfig, team: Team, bf16: bool) -> Replicated:
    """The module as `config.shard` says, its weights being the same in all processes. bf16: gather them in that type.

    Raises a `UserError` for a model that cannot be sharded.
    """
    if (group := shard_group(config, team)) is None:
        return Replicated(module, team)
    return Sharded(module, team, group, bf16)


def shard_group(config: TrainingConfig, team: Team) -> int | None:
    """How many processes hold one copy together; none where each has its own. A `UserError` where the processes of a
    run cannot be grouped so, or would not all have the same number of parts of a batch: they gather weights together,
    part by part."""
    if config.shard == "no" or team.size == 1:
        return None
    if team.size * config.accumulation > config.batch_size:
        raise UserError(
            f"training.shard={config.shard} needs an image for each part of each process: {team.size} processes with "
            f"training.accumulation={config.accumulation}, and training.batch_size is only {config.batch_size}"
        )
    if config.shard == "fsdp":
        return team.size
    local = int(os.environ.get("LOCAL_WORLD_SIZE", team.size))
    group = config.shard_group or local
    if group < 2 or team.size % group:
        stated = f"training.shard_group={group}" if config.shard_group else f"the {group} of this machine"
        raise UserError(
            f"training.shard=hsdp divides the {team.size} processes into groups of equal size, at least 2, that hold a "
            f"copy together, which {stated} does not: set training.shard_group, or training.shard=fsdp"
        )
    return group


def require_shardable(module: nn.Module, whole: set[nn.Parameter]) -> None:
    """Raise a `UserError` for a model that cannot be sharded."""
    owners = dict[nn.Parameter, str]()
    for path, part in module.named_modules(remove_duplicate=False):
        for name, p in part.named_parameters(path, recurse=False):
            if p in whole:
                continue
            if p.dtype != torch.float32:
                raise UserError(f"training.shard needs weights in float32, and {name} is {str(p.dtype)[6:]}")
            unit = unit_of(module, path)
            if owners.setdefault(p, unit) != unit:
                raise UserError(
                    f"training.shard gathers {unit or 'the whole'} and {owners[p] or 'the whole'} one without the "
                    f"other, and both have the weights {name}: set training.shard=no"
                )


def unit_of(module: nn.Module, path: str) -> str:
    """The path of the innermost of `UNITS` at or above a path; empty for what is in none."""
    while path and not isinstance(module.get_submodule(path), UNITS):
        path = path.rpartition(".")[0]
    return path
