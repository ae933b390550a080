"""What sampling takes of a device's memory, counted before it: weights of each part, and its largest activations.

The networks run once on the meta device, where tensors have shapes and no numbers, as they would on a GPU
(`engines.accounting`). No weights are read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diptych.engines.accounting import peak_of
from diptych.engines.offload import SMALL, blocks, entry_modules, moves, tensor_bytes
from diptych.engines.weight_precision import quantise
from diptych.networks.autoencoder import Autoencoder

CONTEXT = 0.5 * 2**30
"""Bytes that tensors cannot have in sampling: CUDA's context, its libraries' kernels and workspaces (assumed)."""
FRAGMENTED = 0.05
"""Share of the tensors' bytes that the allocator loses between them (assumed)."""
IN_FLOAT32 = 6
"""Tensors of the image's or latent's shape that a sampler has beside the network: x, estimates, noise."""
DECODER = "decoder"
SIZES = (3, 4, 8, 16, 24)
"""GB (10^9 bytes) of the devices that the table names."""


@dataclass(frozen=True)
class PartMemory:
    """A part of a model."""

    name: str
    weights: int
    """Bytes."""
    largest: int
    """Bytes of its largest block."""
    left: int
    """Bytes of what stays where blocks are offloaded."""
    activations: int
    """Bytes that a pass makes, at its peak."""
    small: bool = False
    """Whether it stays where parts are offloaded."""


@dataclass(frozen=True)
class Way:
    """A way to run a model, and what it takes."""

    name: str
    peak: int
    """Bytes of tensors at the peak."""
    part: str
    """The part that runs then."""

    @property
    def needed(self) -> float:
        """Bytes of a device."""
        return self.peak * (1 + FRAGMENTED) + CONTEXT

    def fits(self, size: float) -> bool:
        """Whether a device of so many GB has room."""
        return self.needed <= size * 1e9


@dataclass(frozen=True)
class NetworkPass:
    """One network's work: how it is called, and what lies beside it meanwhile."""

    name: str
    network: nn.Module
    call: Callable[[nn.Module], Any]
    beside: int = 0
    """Bytes of the sampler's tensors."""
    rounded: bool = True
    """Whether its weights are rounded, where weights are."""
    entries: Sequence[nn.Module] = ()
    """Those of its modules that are the part; all of it where there are none."""


def counted(run: NetworkPass, weights: str = "stored") -> PartMemory:
    """A part by its run, with weights as `weight_precision` has them."""
    network = run.network
    if weights != "stored" and run.rounded:
        network = copy.deepcopy(network)
        quantise(network, weights)
    modules = list(run.entries) or [network]
    total, found = tensor_bytes(modules), [block for module in modules for block in blocks(module)]
    moved = [tensor_bytes([block]) for block in found if moves(block)]
    activations = peak_of(lambda: run.call(network), network) + run.beside
    return PartMemory(run.name, total, max(moved, default=0), total - sum(moved), activations, total <= SMALL)


def ways(parts: Sequence[PartMemory]) -> Iterator[Way]:
    """What sampling takes where all parts are on the device, where one is at a time, where one block is."""
    together = sum(part.weights for part in parts)
    yield way("all on the device", parts, lambda part: together)
    stay = sum(part.weights for part in parts if part.small)
    yield way("--offload parts", parts, lambda part: stay if part.small else stay + part.weights)
    left, slot = sum(part.left for part in parts), max((part.largest for part in parts), default=0)
    yield way("--offload layers", parts, lambda part: left + 2 * slot)


def way(name: str, parts: Sequence[PartMemory], resident: Callable[[PartMemory], int]) -> Way:
    """The way in which so many bytes of weights are on the device while a part runs."""
    peak = max(parts, key=lambda part: resident(part) + part.activations)
    return Way(name, resident(peak) + peak.activations, peak.name)


@dataclass(frozen=True)
class Sampling:
    """What is sampled."""

    batch: int = 1
    size: tuple[int, int] | None = None
    """Width and height in pixels; none for the training size."""
    dtype: torch.dtype = torch.float32
    tile: int | None = None
    """Pixels along a side of the tiles that are decoded; none for whole images."""

    def sides(self, trained: int) -> tuple[int, int]:
        """Height and width in pixels, of a model that was trained at this side."""
        width, height = self.size or (trained, trained)
        return height, width


def model_passes(config: Any, networks: Mapping[str, nn.Module], sampling: Sampling) -> Iterator[NetworkPass]:
    """The runs of a model's networks on the meta device, by their names in the config's `networks()`."""
    height, width = sampling.sides(config.size)
    if "text" in networks:
        yield text_pass(config.text, networks["text"], sampling)
    if "network" in networks:
        yield denoiser_pass(f"stage {config.name}", networks["network"], config, sampling, (height, width))
        return
    autoencoder: Any = networks["autoencoder"]
    side = height // autoencoder.config.factor, width // autoencoder.config.factor
    if "unet" in networks:
        yield denoiser_pass("U-Net", networks["unet"], config, sampling, side)
    else:
        yield codes_pass(networks["transformer"], config, sampling)
    yield from autoencoder_passes(autoencoder, sampling, side)


def text_pass(text: Any, network: nn.Module, sampling: Sampling) -> NetworkPass:
    """A text encoder, which reads a batch of prompts as long as it takes. T5 has its own type on a GPU."""
    dtype = sampling.dtype
    if text.kind == "t5":
        dtype = torch.float32 if text.dtype == "float32" else torch.bfloat16
    rows, tokens = sampling.batch, text_tokens(text)

    def call(network: nn.Module) -> Any:
        ids = meta(rows, tokens, dtype=torch.int64)
        if text.kind in ("transformer", "layout"):
            part = network.network if hasattr(network, "network") else network
            return part(ids, meta(rows, tokens, dtype=torch.bool))  # type: ignore[operator]
        if text.kind == "clip":
            return network(input_ids=ids)
        return network(input_ids=ids, attention_mask=meta(rows, 1, 1, tokens, dtype=dtype))

    return NetworkPass("text encoder", network.to(dtype), call)


def text_tokens(text: Any) -> int:
    """Tokens of the longest prompt; 1 for classes, 0 without words."""
    if text is None:
        return 0
    return getattr(text, "max_tokens", None) or getattr(getattr(text, "network", None), "max_tokens", 1)


def denoiser_pass(name: str, network: Any, config: Any, sampling: Sampling, side: tuple[int, int]) -> NetworkPass:
    """A diffusion network over images or latents of this height and width; with and without the prompt at once, where
    it can be guided."""
    rows, dtype = sampling.batch * (2 if config.guidable else 1), sampling.dtype
    numbers = sampling.batch * network.config.in_channels * side[0] * side[1]

    def call(network: Any) -> Any:
        shape = network.config
        cond = conditions(shape, config.text, rows, dtype)
        if shape.concat_channels:
            cond["concat"] = meta(rows, shape.concat_channels, *side, dtype=dtype)
        if getattr(shape, "augmented", False):
            cond["level"] = meta(rows)
        return network(meta(rows, shape.in_channels, *side, dtype=dtype), meta(rows), **cond)

    return NetworkPass(name, network.to(dtype), call, beside=4 * IN_FLOAT32 * numbers)


def codes_pass(network: Any, config: Any, sampling: Sampling) -> NetworkPass:
    """A transformer over codes: its last step, in which it reads one code, beside the keys and values of all others."""
    rows, dtype, shape = sampling.batch * (2 if config.guidable else 1), sampling.dtype, network.config
    kept = 2 * shape.layers * rows * (text_tokens(config.text) + shape.length) * shape.width

    def call(network: Any) -> Any:
        return network(meta(rows, 0, dtype=torch.int64), **conditions(shape, config.text, rows, dtype))

    return NetworkPass("transformer", network.to(dtype), call, beside=kept * dtype.itemsize)


def conditions(shape: Any, text: Any, rows: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Prompts as the keyword arguments of a network with this config."""
    cond = dict[str, Tensor]()
    if getattr(shape, "classes", None):
        cond["label"] = meta(rows, dtype=torch.int64)
    elif shape.context_width is not None and text is not None:
        cond["context"] = meta(rows, text_tokens(text), shape.context_width, dtype=dtype)
        cond["context_mask"] = meta(rows, text_tokens(text), dtype=torch.bool)
    if getattr(shape, "pooled_width", None) is not None:
        cond["pooled"] = meta(rows, shape.pooled_width, dtype=dtype)
    return cond


def autoencoder_passes(autoencoder: Autoencoder, sampling: Sampling, side: tuple[int, int]) -> Iterator[NetworkPass]:
    """The encoder, which images from text need in memory at most, and the decoder over latents of this height and
    width: of all images at once, of one at a time, which is as exact, and in tiles."""
    config, factor, dtype = autoencoder.config, autoencoder.config.factor, sampling.dtype
    encoder, decoder = entry_modules(autoencoder.to(dtype))
    yield NetworkPass("encoder", autoencoder, lambda network: None, rounded=False, entries=encoder)
    images = 4 * sampling.batch * config.image_channels * side[0] * side[1] * factor**2

    def run(name: str, rows: int, *sides: int) -> NetworkPass:
        def call(network: Any) -> Any:
            return network.decode(meta(rows, config.latent_channels, *sides, dtype=dtype))

        return NetworkPass(name, autoencoder, call, beside=images, rounded=False, entries=decoder)

    yield run(DECODER, 1, *side)
    if sampling.batch > 1:
        yield run(f"{DECODER}, {sampling.batch} images at once", sampling.batch, *side)
    if sampling.tile is not None:
        tile = sampling.tile // factor
        yield run(f"{DECODER}, tiles of {sampling.tile} px", 1, *(min(tile, one) for one in side))


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without memory."""
    return torch.zeros(shape, dtype=dtype, device="meta")
