"""What a recipe's run needs: parameters, FLOPs, memory of a process, time, price and storage.

Everything but the utilisation is counted: one step of the recipe's own task runs on the meta device.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from diptych.core.errors import UserError
from diptych.training.experiment_config import Recipe
from diptych.training.optim import build_optimizer, state_shapes
from diptych.training.planning.accounting import Meter, OnMeta
from diptych.training.planning.cards import CARDS, Card
from diptych.training.planning.outline import Outline, outlined

FLOAT32, HALF = 4, 2
"""Bytes of a number."""
RESERVED = 1.5 * 2**30
"""Bytes of a card that tensors cannot have: CUDA's context and its libraries' kernels and workspaces (assumed)."""
MACHINE = 8
"""GPUs of a machine."""
ADAFACTOR = 5
"""Tensors of the size of a parameter that Adafactor needs while it moves it."""
FRAGMENTED = 0.05
"""Share of the tensors' bytes that the allocator loses between them (assumed)."""


@dataclass(frozen=True)
class Step:
    """What one forward and backward pass of one process does, by `measure`."""

    images: int
    forward: dict[str, int]
    """FLOPs by what runs."""
    backward: int
    peak: dict[str, int]
    """Bytes alive at the peak, by kind; weights and what else lies there all the time not among them."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the peak of its step."""

    weights: int
    frozen: int
    optimizer: int
    average: int
    gradients: int
    """Those alive at the peak: a backward pass makes them one by one while it frees activations."""
    copies: int
    """Weights in bfloat16, by autocast."""
    activations: int
    """Also what is there for a moment alone."""

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Cluster:
    """On what is trained."""

    gpus: int
    card: Card
    utilisation: float = 0.4
    """Share of the peak that is reached, all FLOPs of a step counted."""
    hour_price: float | None = None
    """Of one GPU."""


@dataclass(frozen=True)
class Plan:
    """All that `diptych plan` prints."""

    recipe: Recipe
    cluster: Cluster
    parameters: dict[str, int]
    """Trained, by network."""
    frozen_parameters: dict[str, int]
    idle: tuple[str, ...]
    """Frozen networks whose results are read from disk."""
    step: Step
    memory: Memory
    optimizer_step: int
    """Bytes alive when the optimizer moves the weights."""
    gradient_bytes: int
    """Of all gradients."""
    images: int
    """Images that are trained on in all."""
    examples: int | None = None
    """Examples of the data set."""
    caption_tokens: int = 20
    """Mean tokens of a caption."""
    example_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes that are kept of an example where it is precomputed, by kind."""
    checkpoint_bytes: int = 0
    model_bytes: int = 0
    advice: list[str] = field(default_factory=list)
    """What would make it fit, where it does not."""

    @property
    def flops(self) -> float:
        """Of an image, in training."""
        return (sum(self.step.forward.values()) + self.step.backward) / self.step.images

    @property
    def images_per_second(self) -> float:
        """Of all GPUs together."""
        peak = self.cluster.card.peak if self.half else self.cluster.card.float32
        return self.cluster.gpus * self.cluster.utilisation * peak * 1e12 / self.flops

    @property
    def half(self) -> bool:
        """Whether it computes in bfloat16."""
        return computes_half(self.recipe, self.cluster.card)

    @property
    def steps(self) -> int:
        return math.ceil(self.images / self.recipe.training.batch_size)

    @property
    def seconds(self) -> float:
        return self.images / self.images_per_second

    @property
    def gpu_hours(self) -> float:
        return self.seconds / 3600 * self.cluster.gpus

    @property
    def price(self) -> float | None:
        return None if self.cluster.hour_price is None else self.gpu_hours * self.cluster.hour_price

    @property
    def peak_bytes(self) -> int:
        """The most that is alive in a step of one process."""
        return max(self.memory.total, self.optimizer_step)

    @property
    def needed_bytes(self) -> float:
        """Of a card, with what its allocator and libraries take."""
        return self.peak_bytes * (1 + FRAGMENTED) + RESERVED

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.cluster.card.memory * 1e9


def computes_half(recipe: Recipe, card: Card) -> bool:
    """Whether a recipe computes in bfloat16 on a card."""
    return recipe.training.precision == "bf16" or (recipe.training.precision == "auto" and card.bf16)


def share(recipe: Recipe, gpus: int) -> int:
    """Images that one process computes at once. A `UserError` where some have none."""
    training = recipe.training
    if training.batch_size < gpus:
        raise UserError(
            f"training.batch_size ({training.batch_size}) is less than {gpus} GPUs: raise it, or take fewer of them"
        )
    return math.ceil(math.ceil(training.batch_size / gpus) / training.accumulation)


def make_plan(
    recipe: Recipe,
    cluster: Cluster,
    images: int | None = None,
    days: float | None = None,
    examples: int | None = None,
    caption_tokens: int = 20,
) -> Plan:
    """The plan of a recipe's run on a cluster; for so many images, or days, instead of `training.steps`."""
    half = computes_half(recipe, cluster.card)
    outline = outlined(recipe, examples)
    step = measure(outline, recipe, share(recipe, cluster.gpus), half)
    memory, optimizer_step = memory_of(outline, recipe, step, shard_group(recipe, cluster.gpus), half)
    module = outline.task.module
    weights = tensor_bytes(module.state_dict().values())
    trained = {name: count(network) for name, network in outline.trained.items()}
    plan = Plan(
        recipe,
        cluster,
        trained,
        {name: count(network) for name, network in (outline.frozen | outline.idle).items()},
        tuple(outline.idle) + (("autoencoder",) if outline.latent is not None else ()),
        step,
        memory,
        optimizer_step,
        tensor_bytes(p for p in module.parameters() if p.requires_grad),
        images or recipe.training.steps * recipe.training.batch_size,
        examples,
        caption_tokens,
        example_bytes(outline, recipe, caption_tokens),
        2 * weights + memory.optimizer,
        weights,
    )
    plan = dataclasses.replace(plan, advice=[] if plan.fits else advice(plan))
    if days is not None:
        return dataclasses.replace(plan, images=max(1, int(days * 86400 * plan.images_per_second)))
    return plan


def measure(outline: Outline, recipe: Recipe, images: int, half: bool, device: Literal["cuda", "cpu"] = "cuda") -> Step:
    """One forward and backward pass over so many images, on the meta device, as on a device of that type."""
    task, module = outline.task, outline.task.module
    parameters = [p for p in module.parameters() if p.requires_grad]
    networks = {**outline.trained, **outline.frozen}
    before = [*module.parameters(), *module.buffers()]
    for network in outline.frozen.values():
        before += [*network.parameters(), *network.buffers()]
    meter = Meter(before)
    for name, network in networks.items():
        meter.watch(name, network)
    if recipe.training.accumulation > 1:  # those of the parts before
        with meter:
            meter.kind = "gradients"
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            meter.kind = "activations"
    meter.gradients_of(parameters)
    with OnMeta(device, meter), meter:
        batch = outline.batch(recipe, images)
        with torch.autocast("meta", torch.bfloat16, enabled=half):
            losses, scalars = task.loss(batch)
        forward = dict(meter.flops)
        with meter.counting("backward"):
            (losses.sum() / images).backward()
    del losses, scalars, batch
    for parameter in parameters:
        parameter.grad = None
    return Step(images, forward, meter.flops["backward"], dict(meter.peak))


def memory_of(outline: Outline, recipe: Recipe, step: Step, group: int = 1, half: bool = True) -> tuple[Memory, int]:
    """Memory at the peak of a step, and when the optimizer moves the weights.

    group: processes that hold one copy together, each a part of what is trained.
    """
    module = outline.task.module
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = build_optimizer(module, recipe.training)
    states = sum(shape.numel() for p in parameters for shape in state_shapes(optimizer, p.shape).values())
    trained, largest = tensor_bytes(parameters), max(p.numel() for p in parameters)
    fixed = tensor_bytes([*module.parameters(), *module.buffers()]) - trained
    memory = Memory(
        weights=fixed + trained // group,
        frozen=sum(tensor_bytes([*n.parameters(), *n.buffers()]) for n in outline.frozen.values()),
        optimizer=FLOAT32 * states // group,
        average=FLOAT32 * sum(p.numel() for p in parameters) // group,
        gradients=step.peak.get("gradients", 0) // group,
        copies=gathered(module, half) if group > 1 else step.peak.get("half-precision copies", 0),
        activations=step.peak.get("activations", 0),
    )
    moving = ADAFACTOR * FLOAT32 * largest if recipe.training.optimizer == "adafactor" else 0
    lasting = memory.weights + memory.frozen + memory.optimizer + memory.average
    return memory, lasting + (trained + moving) // group


def shard_group(recipe: Recipe, gpus: int) -> int:
    """Processes that hold one copy of what is trained together, each a part."""
    training = recipe.training
    shard = getattr(training, "shard", "no")
    if shard == "no":
        return 1
    return gpus if shard == "fsdp" else min(gpus, getattr(training, "shard_group", None) or MACHINE)


def gathered(module: nn.Module, half: bool) -> int:
    """Bytes of weights that FSDP has gathered at once: those in no unit, the unit that runs, and the one ahead of it;
    and the gradients of a unit, in float32 as they are reduced."""
    from diptych.training.sharding import UNITS  # pyright: ignore[reportMissingImports]

    sizes, inside = [0], set[int]()
    for part in reversed(list(module.modules())):  # those within others first
        if isinstance(part, UNITS):
            own = [p for p in part.parameters() if p.requires_grad and id(p) not in inside]
            inside.update(id(p) for p in own)
            sizes.append(sum(p.numel() for p in own))
    rest = sum(p.numel() for p in module.parameters() if p.requires_grad and id(p) not in inside)
    return (HALF if half else FLOAT32) * (rest + 2 * max(sizes)) + FLOAT32 * max(sizes)


def advice(plan: Plan) -> list[str]:
    """What would make a plan fit its card, by an estimate; nothing where all together is not enough."""
    memory, training = plan.memory, plan.recipe.training
    lasting = memory.weights + memory.frozen + memory.optimizer + memory.average
    room = (plan.cluster.card.memory * 1e9 - RESERVED) / (1 + FRAGMENTED)
    whole = lasting + memory.copies + plan.gradient_bytes
    said = list[str]()
    if (left := room - whole) > 0:
        images = int(plan.step.images * left / max(memory.activations, 1))
        if images >= 1:
            parts = math.ceil(math.ceil(training.batch_size / plan.cluster.gpus) / images)
            if parts > training.accumulation:
                said.append(f"training.accumulation={parts}: {images} images at once")
    if said == [] or whole > room / 2:
        group = shard_group(plan.recipe, plan.cluster.gpus)
        if "shard" in training.to_dict() and group == 1 and plan.cluster.gpus > 1:
            each = (lasting - memory.frozen + plan.gradient_bytes) / plan.cluster.gpus / 2**30
            said.append(f"training.shard=fsdp: {each:.2f} GiB of each GPU instead of {whole / 2**30:.2f}")
        elif plan.cluster.gpus == 1:
            said.append("more GPUs, among which weights and the optimizer's state can be divided")
    if "activation_checkpointing" in training.to_dict() and not getattr(training, "activation_checkpointing", False):
        said.append("training.activation_checkpointing=true: activations are computed again, a third more FLOPs")
    if training.optimizer != "adafactor" and memory.optimizer > room / 10:
        said.append(f"training.optimizer=adafactor: almost none of {memory.optimizer / 2**30:.2f} GiB")
    larger = sorted({c.memory for c in CARDS.values() if c.memory * 1e9 >= plan.needed_bytes})
    return [*said, f"a GPU of {larger[0]:g} GB" if larger else f"fewer images at once than {plan.step.images}"]


def example_bytes(outline: Outline, recipe: Recipe, tokens: int) -> dict[str, int]:
    """Bytes that are kept of an example: latents or codes, and the embedding of a caption of so many tokens, in half
    precision; an encoder that pads keeps the padding."""
    kept: dict[str, int] = {}
    if outline.kept is not None:
        mirrored = 2 if recipe.data.flip else 1
        kept["codes" if outline.codes else "latents"] = HALF * math.prod(outline.kept) * mirrored
    if outline.token_width:
        kept["text"] = HALF * outline.token_width * (outline.tokens if outline.padded else min(tokens, outline.tokens))
    return kept


def tensor_bytes(tensors: Any) -> int:
    """Bytes of tensors, each once."""
    return sum({id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
