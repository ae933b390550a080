"""Offloading: weights are on the device only while they are needed, as whole parts or block by block.

Applied from outside by forward hooks. The bits of images stay the same: only where weights lie changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diptych.encoders.base import network_of
from diptych.engines.host_weights import HostWeights, stay_on
from diptych.networks.autoencoder import Autoencoder
from diptych.networks.blocks import BLOCKS
from diptych.networks.quantizer import VectorQuantizer

SMALL = 32 * 2**20
"""Bytes below which a network stays on the device: a tiny decoder, say."""
SMALL_LAYER = 2**20
"""Bytes below which a layer outside of blocks does."""


class Offload(Protocol):
    """A way to offload networks."""

    @property
    def present(self) -> int:
        """Bytes on the device that make room for, or are used by, what comes next."""
        ...

    def add(self, module: nn.Module) -> None:
        """Offload a network, which lies on the host. What stays of it is left there, to be moved with the model."""
        ...


class PartsOffload:
    """Parts come to the device when they are called, and what was there makes room for them.

    A part stays until another is called, so that the steps of sampling move nothing. Parts through which gradients
    lead stay together, as the backward pass reads their weights: until a part is called without gradients.
    """

    def __init__(self, device: torch.device, small: int = SMALL) -> None:
        self.device, self.small = device, small
        self.resident: dict[HostWeights, bool] = {}
        """What is on the device, and whether gradients may lead through it."""

    @property
    def present(self) -> int:
        return sum(weights.bytes for weights in self.resident)

    def add(self, module: nn.Module) -> None:
        for entries in entry_modules(module):
            if tensor_bytes(entries) > self.small:
                weights = HostWeights(entries, self.device)
                inner = [
                    block for entry in entries for block in blocks(entry)
                ]  # called alone where features are cached
                for called in dict.fromkeys([*entries, *inner]):
                    called.register_forward_pre_hook(partial(self._enter, weights))
                for entry in entries:
                    stay_on(entry, self.device)

    def _enter(self, weights: HostWeights, module: nn.Module, inputs: Any) -> None:
        gradients = torch.is_grad_enabled()
        if len(self.resident) == 1 and self.resident.get(weights) is gradients:
            return
        for other, held in list(self.resident.items()):
            if other is not weights and not (gradients and held):
                other.unbind()
                del self.resident[other]
        if weights not in self.resident:
            weights.bind(weights.views(weights.copied()))
        self.resident[weights] = gradients


class Block(HostWeights):
    """The weights of a block."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__([module], device)
        self.views_in: weakref.WeakKeyDictionary[Slot, list[Tensor]] = weakref.WeakKeyDictionary()
        self.following: weakref.ref[Block] | None = None
        """The block that ran after it the last time, unless its network is gone."""

    def bind_in(self, slot: Slot) -> None:
        """Give the parameters what lies in a slot."""
        if slot not in self.views_in:
            self.views_in[slot] = self.views(slot.flat)
        self.bind(self.views_in[slot])


class Slot:
    """Memory on the device for the weights of one block at a time."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.flat = torch.empty(size, dtype=torch.uint8, device=device)
        self.block: Block | None = None
        """Whose weights are in it."""
        self.filled: Any = None
        """On CUDA, the event after they were copied."""
        self.used: Any = None
        """The event after the last block that read them."""


class LayersOffload:
    """Blocks come to the device one by one. While one computes, the next is copied, in the order of the last time.

    Two slots take turns. The host waits for nothing: copies and computation wait for each other on the device. Where
    gradients are asked for, all blocks that lead to them stay, as the backward pass reads their weights.
    """

    def __init__(self, device: torch.device, small: int = SMALL_LAYER) -> None:
        self.device, self.small = device, small
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.slots: list[Slot] = []
        self.largest = 0
        self.last: Block | None = None
        self.held: list[Block] = []
        """Blocks that stay for the backward pass."""

    @property
    def present(self) -> int:
        return sum(len(slot.flat) for slot in self.slots)

    def add(self, module: nn.Module) -> None:
        owners: dict[nn.Parameter, Block] = {}
        for part in blocks(module):
            if moves(part, self.small):
                first = next(part.parameters())
                block = owners.get(first) or Block(part, self.device)  # of layers that share one table, say
                owners |= dict.fromkeys(block.parameters, block)
                part.register_forward_pre_hook(partial(self._enter, block))
                part.register_forward_hook(partial(self._leave, block), always_call=True)
                stay_on(part, self.device)
                self.largest = max(self.largest, block.bytes)

    def _enter(self, block: Block, module: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled():
            if block not in self.held:
                block.bind(block.views(block.copied()))
                self.held.append(block)
            return
        for other in self.held:
            other.unbind()
        self.held.clear()
        slot = self._slot_with(block)
        if slot.filled is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.filled)
        block.bind_in(slot)
        if self.last is not None:
            self.last.following = weakref.ref(block)
        self.last = block
        if block.following is not None and (following := block.following()) is not None:
            self._slot_with(following, busy=slot)

    def _leave(self, block: Block, module: nn.Module, inputs: Any, output: Any) -> None:
        if block in self.held:
            return
        block.unbind()
        for slot in self.slots:
            if slot.block is block and self.stream is not None:
                slot.used = torch.cuda.current_stream(self.device).record_event()

    def _slot_with(self, block: Block, busy: Slot | None = None) -> Slot:
        """The slot with the weights of a block. If none has them, they are copied into one that is not busy."""
        if not self.slots or len(self.slots[0].flat) < self.largest:
            self._make_slots()
        if (slot := next((one for one in self.slots if one.block is block), None)) is not None:
            return slot
        slot = next(one for one in self.slots if one is not busy)
        slot.block = block
        if self.stream is None:
            block.copy_to(slot.flat)
            return slot
        with torch.cuda.stream(self.stream):
            if slot.used is not None:
                self.stream.wait_event(slot.used)
            block.copy_to(slot.flat)
            slot.filled = self.stream.record_event()
        return slot

    def _make_slots(self) -> None:
        if self.stream is not None:
            self.stream.synchronize()  # nothing is copied to the former slots any more
        self.slots = [Slot(self.largest, self.device) for _ in range(2)]
        if self.stream is not None:  # what had this memory before has run
            self.stream.wait_stream(torch.cuda.current_stream(self.device))


def entry_modules(module: nn.Module) -> Iterator[list[nn.Module]]:
    """The parts of a network, each as modules whose calls read all of its weights: both halves of an autoencoder, whose
    codebook belongs to neither, or the network itself."""
    if isinstance(module, Autoencoder):
        yield [module.encoder, module.quant_conv]
        yield [module.post_quant_conv, module.decoder]
    else:
        yield [module]


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network, and its layers outside of them, each called once a pass.

    Blocks are `networks.blocks.BLOCKS`, the layers of transformers' models, and modules with nothing but layers in
    them. A codebook is none: it is read without a call.
    """
    if isinstance(module, VectorQuantizer):
        return
    children = list(module.children())
    flat = not isinstance(module, nn.ModuleList) and not any(list(child.children()) for child in children)
    if isinstance(module, BLOCKS) or flat:
        if any(True for _ in module.parameters()):
            yield module
        return
    for child in children:
        if isinstance(module, nn.ModuleList) and type(child).__module__.startswith("transformers."):
            yield child
        else:
            yield from blocks(child)


def networks(model: Any) -> list[nn.Module]:
    """The networks of a model that are in memory, each once; of a cascade, those of open stages and encoders."""
    if hasattr(model, "_open"):
        found = [part for stage in model._open.values() for part in networks(stage)]
        return list(dict.fromkeys([*found, *filter(None, map(text_network, model._encoders.values()))]))
    names = ("unet", "network", "transformer", "autoencoder", "tiny")
    parts = [*(getattr(model, name, None) for name in names), text_network(model.joint_text or model._frozen["text"])]
    return [part for part in parts if isinstance(part, nn.Module)]


def text_network(encoder: Any) -> nn.Module | None:
    """The network of a text encoder, or none where it has none."""
    if isinstance(encoder, nn.Module):
        return getattr(encoder, "network", encoder)
    return network_of(encoder)


def tensor_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the parameters of modules, each once."""
    return sum(p.numel() * p.element_size() for p in {p: None for m in modules for p in m.parameters()})


def weight_bytes(found: Iterable[nn.Module]) -> dict[str, int]:
    """Bytes of the weights of networks that are on a device at a time, by the way to offload them."""
    found = list(found)
    parts = [tensor_bytes(entries) for network in found for entries in entry_modules(network)]
    single = [tensor_bytes([block]) for network in found for block in blocks(network) if moves(block)]
    total = tensor_bytes(found)
    small = sum(size for size in parts if size <= SMALL)
    return {
        "none": total,
        "parts": small + max((size for size in parts if size > SMALL), default=0),
        "layers": total - sum(single) + 2 * max(single, default=0),
    }


def moves(block: nn.Module, small: int = SMALL_LAYER) -> bool:
    """Whether a block is worth moving by itself."""
    return tensor_bytes([block]) > (0 if list(block.children()) else small)
