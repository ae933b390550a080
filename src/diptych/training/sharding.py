"""Sharded training: FSDP2 (Zhao et al. 2023) and HSDP, PyTorch's `fully_shard`, for any model.

The blocks of networks are units: the weights of one are gathered before it runs and freed after it. What is in no unit
is gathered for the loss as a whole, so that a loss may call any method and read any weight. The optimizer and the
average work on plain tensors, this process's rows.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from diptych.core.errors import UserError
from diptych.networks.blocks import BLOCKS, blocks_of
from diptych.networks.efficient_unet import PixelShuffle
from diptych.networks.layers import Downsample, TransformerBlock, Upsample
from diptych.networks.quantizer import VectorQuantizer
from diptych.training.adafactor import Rows
from diptych.training.distributed import Team
from diptych.training.parallel import Replicated
from diptych.training.run_checkpoint import Checkpoint
from diptych.training.sharded_files import read, stored
from diptych.weights.lazy import require_shapes

T = TypeVar("T")
UNITS = (*BLOCKS, TransformerBlock, Downsample, Upsample, PixelShuffle)
"""Modules that are gathered by themselves: nothing reads their weights but their own `forward`."""
CHANGED_OUTSIDE = (VectorQuantizer,)
"""Modules whose weights a task changes by other means than gradients: they stay whole in each process."""
STEP = "sharded_step"


class Sharded(Replicated):
    """Of each parameter that is trained a process has some rows: `trained` holds these, and `shards` says which.

    Some parameters stay whole: frozen ones, scalars, and those of `CHANGED_OUTSIDE`.
    """

    def __init__(self, module: nn.Module, team: Team, group: int, bf16: bool, compiled: bool = False) -> None:
        """Shard a module, whose weights are the same in all processes, over groups of so many processes. bf16: gather
        weights in that type; gradients are reduced in float32 in any case. compiled: whether its blocks are."""
        whole = kept_whole(module)
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
        for part in units_of(module, whole, compiled):
            fully_shard(part, **options)
        self.units = [part for part in module.modules() if isinstance(part, FSDPModule)]
        for unit in self.units:  # the loss is divided by the whole batch: gradients are sums
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
        setattr(module, STEP, lambda loss: loss())
        register_fsdp_forward_method(module, STEP)
        super().__init__(module, team)
        self.shards: dict[str, DTensor] = {name: p for name, p in self.trained.items() if isinstance(p, DTensor)}
        for name, p in self.shards.items():
            self.trained[name] = nn.Parameter(cast(DTensor, p.detach()).to_local())  # the same memory

    def whole(self, name: str) -> Tensor:
        return self.shards.get(name, self.trained[name])

    def row_groups(self) -> dict[Tensor, Rows]:
        return {self.trained[name]: Rows(p.shape, self.group) for name, p in self.shards.items()}

    def summed(self) -> list[nn.Parameter]:
        return [p for p in self.trained.values() if not isinstance(p, DTensor)]

    def run(self, loss: Callable[[], T], last: bool = True) -> T:
        root = cast(FSDPModule, self.module)
        if self.mesh.ndim == 2:  # over machines once a step
            root.set_requires_all_reduce(last)
        return getattr(root, STEP)(loss)

    def sum_gradients(self, extras: Tensor) -> Tensor:
        for name, p in self.shards.items():
            grad, p.grad = p.grad, None
            self.trained[name].grad = None if grad is None else cast(DTensor, grad).to_local()
        return super().sum_gradients(extras)

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
                    p, value = self.shards[name], cast(DTensor, self.like(value, name)).full_tensor()
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

    def like(self, value: Tensor, name: str, shape: torch.Size | None = None) -> Tensor:
        if name not in self.shards or not divided(shape := shape or self.shards[name].shape, self.shards[name].shape):
            return value
        return part_of(value, self.shards[name], torch.Size(shape))

    def local(self, value: Tensor) -> Tensor:
        return value.to_local() if isinstance(value, DTensor) else value

    def own(self, value: Tensor, name: str) -> Tensor:
        if isinstance(value, DTensor):
            return value.to_local()
        if name not in self.shards or not divided(value.shape, self.shards[name].shape):
            return value
        return self.rows(value)

    def rows(self, value: Tensor) -> Tensor:
        """This process's rows of a whole tensor: as many as of any other, but for the last that has some."""
        most = -(-len(value) // self.mesh.size(self.mesh.ndim - 1))
        return value[self.mesh.get_local_rank("shard") * most :][:most]

    def read(self, found: Checkpoint, part: str) -> Mapping[str, Tensor]:
        if not found.sharded:
            return found.load(part)  # mapped, not read: processes of a machine share it
        wanted = dict[str, Tensor]()
        state = self.module.state_dict()
        for key, (shape, dtype) in stored(found.path).items():
            if not key.startswith(f"{part}/"):
                continue
            name = key.removeprefix(f"{part}/")
            like = state.get(name if part != "optimizer" else name.rpartition("/")[0])
            if isinstance(like, DTensor) and divided(shape, like.shape):
                local = torch.empty(len(like.to_local()), *shape[1:], dtype=dtype, device=self.team.device)
                wanted[key] = part_of(local, like, shape)
            else:
                wanted[key] = torch.empty(shape, dtype=dtype)
        read(found.path, wanted)
        return {key.removeprefix(f"{part}/"): tensor for key, tensor in wanted.items()}

    def load(self, tensors: Mapping[str, Tensor], source: str) -> None:
        state = self.module.state_dict()
        require_shapes(state, tensors, source, type(self.module).__name__.removeprefix("FSDP"))
        for name, tensor in state.items():
            self.fill(tensor, tensors[name])

    @torch.no_grad()
    def fill(self, tensor: Tensor, value: Tensor) -> None:
        """Copy into a tensor, plain or sharded, what this process needs of another, which may be whole."""
        if isinstance(tensor, DTensor) and not isinstance(value, DTensor):
            value = self.rows(value)
        self.local(tensor).copy_(self.local(value))

    def agree(self, what: str | None) -> str | None:
        return next((found for found in self.team.gather(what) if found is not None), None)


def kept_whole(module: nn.Module) -> set[nn.Parameter]:
    """The parameters of a module that each process has whole."""
    whole = {p for p in module.parameters() if not p.requires_grad or p.ndim == 0}
    for part in module.modules():
        if isinstance(part, CHANGED_OUTSIDE):
            whole.update(part.parameters())
    return whole


def units_of(module: nn.Module, whole: set[nn.Parameter], compiled: bool = False) -> list[nn.Module]:
    """What is gathered by itself, those within others first, and the module, which is last. compiled: whether blocks
    are; the units within one would break its graph, or leave it as it is, and so are gathered with it."""
    blocks = blocks_of(module) if compiled else []
    within = {part for block in blocks for part in block.modules()} - set(blocks)
    inside = [p for p in reversed(list(module.modules())[1:]) if isinstance(p, UNITS) and p not in within]
    return [*(p for p in inside if any(own not in whole for own in p.parameters())), module]


def divided(shape: torch.Size, of: torch.Size) -> bool:
    """Whether a tensor that belongs to a parameter is divided by rows as that is: a moment of the same shape, or means
    over another dimension."""
    return len(shape) == len(of) > 0 and shape[0] == of[0]


def part_of(local: Tensor, like: DTensor, shape: torch.Size) -> DTensor:
    """This process's rows of a tensor of that shape, which is divided as another."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)


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
