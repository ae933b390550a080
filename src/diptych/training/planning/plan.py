"""What a recipe's run needs: parameters, FLOPs, memory of a process, time, price and storage.

Everything but the utilisation is counted: one step of the recipe's own task runs on the meta device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.engines.accounting import Meter, OnMeta, own_rows
from diptych.training.acceleration import recompute, require_blocks
from diptych.training.adafactor import Adafactor
from diptych.training.experiment_config import Recipe
from diptych.training.optim import build_optimizer, state_shapes
from diptych.training.parallel import ALONE
from diptych.training.parallel import shard_group as processes_of_a_copy
from diptych.training.planning.cards import CARDS, Card
from diptych.training.planning.outline import Outline, outlined

FLOAT32, HALF = 4, 2
"""Bytes of a number."""
RESERVED = 1.5 * 2**30
"""Bytes of a card that tensors cannot have: CUDA's context and its libraries' kernels and workspaces (assumed)."""
MACHINE = 8
"""GPUs of a machine."""
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
    """Bytes of one process at a moment of its step."""

    weights: int
    frozen: int
    optimizer: int
    average: int
    gradients: int
    """A backward pass makes them one by one while it frees activations."""
    copies: int
    """Weights in bfloat16, by autocast; of sharded runs those that are gathered."""
    activations: int
    """And whatever else is there for a moment."""

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
    """At the peak of forward and backward passes."""
    update: Memory
    """When the optimizer moves the weights."""
    images: int
    """Images that are trained on in all."""
    examples: int | None = None
    """Examples of the data set."""
    caption_tokens: int = 20
    """Mean tokens of a caption as it is kept: with the padding of an encoder that pads."""
    example_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes that are kept of an example where it is precomputed, by kind."""
    checkpoint_bytes: int = 0
    model_bytes: int = 0
    advice: list[str] = field(default_factory=list)
    """What would make it fit, where it does not."""

    @property
    def sent_bytes(self) -> float:
        """What a GPU sends in a step for its gradients in float32, at least: around a ring of all GPUs twice (sums, and
        all of them back); sharded, once for each part of the batch, and the weights that are gathered come on top."""
        rounds = 2 if self.recipe.training.shard == "no" else self.recipe.training.accumulation
        return rounds * FLOAT32 * sum(self.parameters.values()) * (1 - 1 / self.cluster.gpus)

    @property
    def flops(self) -> float:
        """Of an image, in training."""
        return (sum(self.step.forward.values()) + self.step.backward) / self.step.images

    @property
    def images_per_second(self) -> float:
        """Of all GPUs together, which wait for those that have an image more than others."""
        peak = self.cluster.card.peak if self.half else self.cluster.card.float32
        batch = self.recipe.training.batch_size
        return batch * self.cluster.utilisation * peak * 1e12 / (self.flops * math.ceil(batch / self.cluster.gpus))

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
        return max(self.memory.total, self.update.total)

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
    half, at_once = computes_half(recipe, cluster.card), share(recipe, cluster.gpus)
    shard_group(recipe, cluster.gpus)  # what cannot be is said before anything is counted
    outline = outlined(recipe, examples)
    step = measure(outline, recipe, at_once, half, gpus=cluster.gpus)
    memory, update = memory_of(outline, recipe, step, cluster.gpus)
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
        update,
        images or recipe.training.steps * recipe.training.batch_size,
        examples,
        kept_tokens(outline, caption_tokens),
        example_bytes(outline, recipe, caption_tokens),
        2 * weights + FLOAT32 * sum(moments(outline, recipe)),
        weights,
    )
    plan = dataclasses.replace(plan, advice=[] if plan.fits else advice(plan))
    if days is not None:
        return dataclasses.replace(plan, images=max(1, int(days * 86400 * plan.images_per_second)))
    return plan


def measure(
    outline: Outline, recipe: Recipe, images: int, half: bool, device: Literal["cuda", "cpu"] = "cuda", gpus: int = 1
) -> Step:
    """One forward and backward pass over so many images on the meta device, as on a device of that type, by one of so
    many processes. To be called once for an outline."""
    task, module = outline.task, outline.task.module
    group = shard_group(recipe, gpus)
    parameters = [p for p in module.parameters() if p.requires_grad]
    before = [*module.parameters(), *module.buffers()]
    for network in outline.frozen.values():
        before += [*network.parameters(), *network.buffers()]
    meter, gathering = Meter(before), None
    for name, network in (outline.trained | outline.frozen | outline.watched).items():
        meter.watch(name, network)
    if group > 1:
        from diptych.training.planning.gathering import Gathering  # FSDP takes a second to import

        compiled = recipe.training.compile == "blocks"
        gathering = Gathering(module, meter, group, half and device == "cuda", compiled)
        parameters = [p for p in parameters if p in gathering.whole]
    mode = OnMeta(device, meter, copies=not (gathering and half and device == "cuda"))
    if recipe.training.activation_checkpointing == "blocks":
        for block in require_blocks(module, "activation_checkpointing"):
            block.forward = mode.within(block.forward)
            recompute(block)
    if recipe.training.accumulation > 1:  # gradients of the parts before
        with meter:
            meter.kind = "gradients"
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            if gathering:
                gathering.accumulate()
            meter.kind = "activations"
    meter.gradients_of(parameters)
    if gpus > 1 and group == 1:
        meter.messages_of(parameters)
    with mode, meter:
        batch = outline.batch(recipe, images)
        if gathering:
            gathering.start()
        with torch.autocast("meta", torch.bfloat16, enabled=half):
            losses, scalars = task.loss(batch)
        forward = dict(meter.flops)
        if gathering:
            gathering.turn()
        with meter.counting("backward"):
            (losses.sum() / images).backward()
        if gathering:
            gathering.finish()
    del losses, scalars, batch
    meter.messages.clear()
    for parameter in parameters:
        parameter.grad = None
    return Step(images, forward, meter.flops["backward"], dict(meter.peak))


def memory_of(outline: Outline, recipe: Recipe, step: Step, gpus: int = 1) -> tuple[Memory, Memory]:
    """Memory of the first of so many processes, which has most: at the peak of a step, and when the optimizer moves the
    weights."""
    module, group = outline.task.module, shard_group(recipe, gpus)
    sizes = {p: own_size(p.shape, p, group) for p in module.parameters() if p.requires_grad}
    trained = FLOAT32 * sum(sizes.values())
    fixed = tensor_bytes([*module.parameters(), *module.buffers()]) - tensor_bytes(sizes)
    memory = Memory(
        weights=fixed + trained,
        frozen=sum(tensor_bytes([*n.parameters(), *n.buffers()]) for n in outline.frozen.values()),
        optimizer=FLOAT32 * sum(moments(outline, recipe, group)),
        average=trained,
        gradients=step.peak.get("gradients", 0),
        copies=step.peak.get("half-precision copies", 0) + step.peak.get("gathered weights", 0),
        activations=step.peak.get("activations", 0),
    )
    largest = max(sizes, key=lambda p: sizes[p])
    moved = adafactor_bytes(sizes[largest], largest.shape) if recipe.training.optimizer == "adafactor" else 0
    summed = trained if gpus > 1 and group == 1 else 0  # all messages are there when the last one is
    return memory, dataclasses.replace(memory, gradients=trained, copies=0, activations=max(moved, summed))


def moments(outline: Outline, recipe: Recipe, group: int = 1) -> Iterator[int]:
    """Numbers that the optimizer keeps of each parameter."""
    module = outline.task.module
    optimizer = build_optimizer(module, recipe.training)
    for p in module.parameters():
        if p.requires_grad:
            yield sum(own_size(shape, p, group) for shape in state_shapes(optimizer, p.shape).values())


def own_size(shape: torch.Size, parameter: nn.Parameter, group: int) -> int:
    """Numbers that the first of so many processes that hold a copy together has of a tensor that belongs to a
    parameter."""
    if group == 1 or parameter.ndim == 0 or shape[:1] != parameter.shape[:1]:
        return shape.numel()
    return own_rows(shape, group)


def adafactor_bytes(size: int, shape: torch.Size) -> int:
    """What Adafactor needs for a moment to move so many numbers of a parameter of that shape."""
    rows = max(1, size // max(1, shape[1:].numel())) if len(shape) > 1 else size
    p = nn.Parameter(torch.empty(rows, *shape[1:], device="meta"))
    optimizer, p.grad = Adafactor([p]), torch.empty_like(p)
    optimizer.found_inf = torch.zeros((), device="meta")
    for _ in range(2):  # the first makes its state
        meter = Meter([p, p.grad, *(t for t in optimizer.state[p].values() if isinstance(t, Tensor))])
        with OnMeta("cuda", meter), meter:
            optimizer.step()
    return meter.peak_bytes


def shard_group(recipe: Recipe, gpus: int) -> int:
    """Processes that hold one copy of what is trained together, each a part. A `UserError` where they cannot."""
    training = recipe.training
    if training.shard == "hsdp" and training.shard_group is None and gpus > 1:
        training = dataclasses.replace(training, shard_group=min(gpus, MACHINE))
    return processes_of_a_copy(training, dataclasses.replace(ALONE, size=gpus)) or 1


def advice(plan: Plan) -> list[str]:
    """What would make a plan fit its card, by an estimate; nothing where all together is not enough."""
    memory, training = plan.memory, plan.recipe.training
    lasting = memory.weights + memory.frozen + memory.optimizer + memory.average
    room = (plan.cluster.card.memory * 1e9 - RESERVED) / (1 + FRAGMENTED)
    whole = lasting + memory.copies + plan.update.gradients
    said = list[str]()
    if (left := room - whole) > 0:
        images = int(plan.step.images * left / max(memory.activations, 1))
        if images >= 1:
            parts = math.ceil(math.ceil(training.batch_size / plan.cluster.gpus) / images)
            if parts > training.accumulation:
                said.append(f"training.accumulation={parts}: {images} images at once")
    if said == [] or whole > room / 2:
        group = shard_group(plan.recipe, plan.cluster.gpus)
        if group == 1 and plan.cluster.gpus > 1:
            held = lasting - memory.frozen + plan.update.gradients
            each, all_of_it = (size / 2**30 for size in (held / plan.cluster.gpus, held))
            said.append(
                f"training.shard=fsdp: weights, gradients, EMA and optimizer take {each:.2f} GiB of each GPU, "
                f"not {all_of_it:.2f}"
            )
        elif plan.cluster.gpus == 1:
            said.append("more GPUs, among which weights and the optimizer's state can be divided")
    if training.activation_checkpointing == "no":
        said.append("training.activation_checkpointing=blocks: activations are computed again, a third more FLOPs")
    if training.optimizer != "adafactor" and memory.optimizer > room / 10:
        said.append(f"training.optimizer=adafactor: almost none of {memory.optimizer / 2**30:.2f} GiB")
    larger = sorted({c.memory for c in CARDS.values() if c.memory * 1e9 >= plan.needed_bytes})
    return [*said, f"a GPU of {larger[0]:g} GB" if larger else f"fewer images at once than {plan.step.images}"]


def example_bytes(outline: Outline, recipe: Recipe, tokens: int) -> dict[str, int]:
    """Bytes that are kept of an example: latents, codes or a trajectory, and the embedding of a caption of so many
    tokens, in half precision; an encoder that pads keeps the padding."""
    kept: dict[str, int] = {}
    if outline.kept is not None:
        mirrored = 2 if recipe.data.flip else 1
        kept[outline.kept_as] = HALF * math.prod(outline.kept) * mirrored
    if outline.token_width:
        kept["text"] = HALF * outline.token_width * kept_tokens(outline, tokens)
    return kept


def kept_tokens(outline: Outline, tokens: int) -> int:
    """Tokens that are kept of a caption of so many."""
    return outline.tokens if outline.padded else min(tokens, outline.tokens)


def tensor_bytes(tensors: Any) -> int:
    """Bytes of tensors, each once."""
    return sum({id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
