"""OpenAI's guided-diffusion (ADM: Dhariwal & Nichol 2021): U-Nets over pixels, upsamplers, noisy classifiers.

Each file is the state dict of one network, as .pt, or as .safetensors by the same keys. A U-Net becomes a stage of a
cascade, whose prompts are numbers of classes; a classifier is opened as the network that it is. What shapes do not
show is known of the files that were published; of others, and where it differs, NAME.json beside NAME.pt says it in the
fields of `Facts`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from torch import nn

from diptych.conditioning.lowres_augmentation import AugmentationConfig
from diptych.core.config import Config, Within
from diptych.core.errors import UserError
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.diffusion.times import TimesConfig
from diptych.encoders.class_configs import ClassConfig
from diptych.models.pixel_config import PixelDiffusionConfig, require_trained
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.adm import AdmUNet, AdmUNetConfig
from diptych.networks.noisy_classifier import NoisyClassifier, NoisyClassifierConfig
from diptych.pretrained.adm_keys import adm_of_shapes, compvis_adm, encoder_of_shapes
from diptych.pretrained.key_map import Layout, Piece, pieces
from diptych.pretrained.source import Family, Source, read_object
from diptych.pretrained.stable_diffusion.infer_shapes import PrefixedShapes
from diptych.weights.lazy import fill, on_meta

PIXELS = 3
"""Channels of an image."""
LINEAR = ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02)
COSINE = ScheduleConfig(kind="cosine-table")


@dataclass(frozen=True, kw_only=True)
class Facts(Config):
    """What the shapes of a guided-diffusion file do not show. The defaults are as most of them were trained."""

    size: Annotated[int | None, Within(1, 2**16)] = None
    """Side of the images, in pixels (`image_size` there, `large_size` of an upsampler); a classifier that pools by
    attention shows its own."""
    low_size: Annotated[int | None, Within(1, 2**16)] = None
    """Side of the images that an upsampler enlarges (`small_size`)."""
    heads: Annotated[int | None, Within(1, 2**16)] = None
    """Attention heads (`num_heads`), or none to derive them from `head_width`."""
    head_width: Annotated[int | None, Within(1, 2**16)] = 64
    """Channels of a head (`num_head_channels`), or none to derive it from `heads`."""
    new_attention_order: bool = False
    """`use_new_attention_order`: of query, key and value, all heads of one come before those of the next."""
    noise_schedule: Literal["linear", "cosine"] = "linear"
    """As it is called there; both have 1000 steps."""
    names: tuple[str, ...] = ()
    """A name for each class, by which prompts may call it besides by its number."""


Shape = tuple[int, int, tuple[int | float, ...], tuple[int, ...]]
"""Input channels, channels, multipliers and attention levels of a U-Net."""
PUBLISHED: dict[Shape, Facts] = {
    (3, 192, (1, 2, 3, 4), (1, 2, 3)): Facts(size=64, new_attention_order=True, noise_schedule="cosine"),
    (3, 256, (1, 1, 2, 3, 4), (2, 3, 4)): Facts(size=128, heads=4, head_width=None),
    (3, 256, (1, 1, 2, 2, 4, 4), (3, 4, 5)): Facts(size=256),  # of ImageNet with and without classes, and of LSUN
    (3, 256, (0.5, 1, 1, 2, 2, 4, 4), (4, 5, 6)): Facts(size=512),
    (6, 192, (1, 1, 2, 2, 4, 4), (3, 4, 5)): Facts(size=256, low_size=64, heads=4, head_width=None),
    (6, 192, (1, 1, 2, 2, 4, 4), (4, 5)): Facts(size=512, low_size=128),
}
"""By the shapes of the published U-Nets: the flags of guided-diffusion's README."""


def fits(source: Source) -> bool:
    """A network by ADM's names, with nothing before them; one of them may be what a damaged file lacks."""
    keys = ("input_blocks.0.0.weight", "time_embed.0.weight", "middle_block.1.qkv.weight")
    return not source.folder and sum(key in source.checkpoint for key in keys) >= 2


def read(source: Source) -> PixelDiffusion | NoisyClassifier:
    """The model in a file. A `UserError` names the key at fault, or what has to be said of a file of one's own."""
    if any(key.startswith("output_blocks.") for key in source.checkpoint):
        return read_stage(source)
    return read_classifier(source)


def read_stage(source: Source) -> PixelDiffusion:
    """A U-Net as a base or super-resolution stage."""
    config, older = stage_config(source)
    with on_meta():
        network = AdmUNet(config.network)  # type: ignore[arg-type]
    network = filled(network, compvis_adm(network, older_attention=older), source)
    require_trained(network, str(source.path))
    return PixelDiffusion(config, network=network).eval()


def stage_config(source: Source) -> tuple[PixelDiffusionConfig, bool]:
    """The stage, and whether its attention is in the older order."""
    checkpoint, name = source.checkpoint, str(source.path)
    plain = adm_of_shapes(checkpoint.shapes, name, PIXELS, heads=1)
    shape = (PIXELS + plain.concat_channels, plain.channels, plain.multipliers, plain.attention_levels)
    facts = read_facts(source, PUBLISHED.get(shape, Facts()))
    if facts.size is None or (facts.low_size is None) != (plain.concat_channels == 0):
        need = ("size",) if plain.concat_channels == 0 else ("size", "low_size")
        raise UserError(
            f"{name}: of a U-Net of {plain.channels} channels times {list(plain.multipliers)} with attention on levels "
            f"{list(plain.attention_levels)}, which OpenAI did not publish, {facts_file(source)} must say at least "
            f"{' and '.join(need)}, and what differs from {Facts().to_dict()}"
        )
    try:
        network = adm_of_shapes(checkpoint.shapes, name, PIXELS, heads=facts.heads, head_width=facts.head_width)
        config = adm_stage(network, facts)
    except UserError as error:
        raise error if str(error).startswith(name) else UserError(f"{name}: {error}") from None
    return config, not facts.new_attention_order


def adm_stage(network: AdmUNetConfig, facts: Facts) -> PixelDiffusionConfig:
    """A stage as OpenAI's were trained, and are sampled from: 250 of 1000 steps, the variance their own."""
    return PixelDiffusionConfig(
        network=network,
        text=None if network.classes is None else ClassConfig(classes=network.classes, names=facts.names),
        schedule=COSINE if facts.noise_schedule == "cosine" else LINEAR,
        times=TimesConfig(spacing="linspace"),
        learned_variance=network.out_channels == 2 * PIXELS,
        size=facts.size or 0,
        low_size=facts.low_size,
        augmentation=AugmentationConfig(kind="none", level=0.0),
        steps=250,
        sampler="ddpm",
        threshold=ThresholdConfig(kind="static"),
    )


def read_classifier(source: Source) -> NoisyClassifier:
    """A classifier of noisy images, for guidance."""
    config, older = classifier_config(source)
    with on_meta():
        network = NoisyClassifier(config)
    return filled(network, classifier_layout(network, older), source).eval()


def classifier_config(source: Source) -> tuple[NoisyClassifierConfig, bool]:
    """The classifier, and whether its attention, but for that of the pooling, is in the older order."""
    has = PrefixedShapes(source.checkpoint.shapes, "", str(source.path))
    facts = read_facts(source, Facts())
    blocks, resampled = encoder_levels(has)
    size, positions = None, "out.2.positional_embedding"
    if positions in has:
        pool, last = "attention", "out.2.c_proj.weight"
        size = math.isqrt(has.size(positions, 1) - 1) * 2 ** (len(blocks) - 1)
    elif "out.3.weight" in has and len(has.shapes["out.3.weight"]) > 2:
        pool, last = "adaptive", "out.3.weight"
    else:
        pool, last = ("spatial_v2", "out.3.weight") if "out.3.weight" in has else ("spatial", "out.2.weight")
    try:
        encoder = AdmUNetConfig(
            heads=facts.heads,
            head_width=facts.head_width,
            concat_channels=has.size("input_blocks.0.0.weight", 1) - PIXELS,
            **encoder_of_shapes(has, blocks, resampled),
        )
        config = NoisyClassifierConfig(encoder=encoder, classes=has.size(last), pool=pool, size=size)
    except UserError as error:
        raise error if str(error).startswith(has.source) else has.error(str(error)) from None
    return config, not facts.new_attention_order


def classifier_layout(network: NoisyClassifier, older_attention: bool) -> Layout:
    """Of guided-diffusion's `EncoderUNetModel`."""
    inner = compvis_adm(network.encoder, older_attention=older_attention)
    layout = {f"encoder.{name}": piece for name, piece in inner.items()}
    pool, qkv = network.config.pool, ("query", "key", "value")
    last = {"adaptive": "out.3", "spatial": "out.2", "spatial_v2": "out.3"}
    for name in network.state_dict():
        match name.split("."):
            case ["norm_out", kind]:
                layout[name] = Piece(f"out.0.{kind}")
            case ["pool", "position"]:
                layout[name] = Piece("out.2.positional_embedding")
            case ["pool", part, kind]:
                ones = int(kind == "weight")
                if part in qkv:  # always in the newer order
                    layout[name] = Piece(f"out.2.qkv_proj.{kind}", qkv.index(part), len(qkv), ones=ones)
                else:
                    layout[name] = Piece(f"out.2.c_proj.{kind}", ones=ones)
            case ["out", kind]:
                ones = 2 if pool == "adaptive" and kind == "weight" else 0
                layout[name] = Piece(f"{last[pool]}.{kind}", ones=ones)
            case ["hidden", kind]:
                layout[name] = Piece(f"out.0.{kind}")
            case ["norm_hidden", kind]:
                layout[name] = Piece(f"out.1.{kind}")
    return layout


def encoder_levels(has: PrefixedShapes) -> tuple[list[int], bool]:
    """How many residual blocks each level of a way down has, and whether the last of each but one also halves.

    By shapes, a block that halves is as any other: but a level has one width, and attention after all its blocks or
    none, and never after the block that halves.
    """
    numbers = range(1, has.count(r"input_blocks\.(\d+)\."))
    ends = [number for number in numbers if f"input_blocks.{number}.0.op.weight" in has]
    if ends:
        edges = [0, *ends, len(numbers) + 1]
        return [after - before - 1 for before, after in itertools.pairwise(edges)], False
    rows = [
        (has.size(f"input_blocks.{number}.0.out_layers.3.weight"), has.has_prefix(f"input_blocks.{number}.1."))
        for number in numbers
    ]
    fitting = []
    for each in range(2, len(rows) + 2):
        parts = [rows[start : start + each] for start in range(0, len(rows), each)]
        whole = len(rows) + 1 == each * len(parts)
        level = all(len(set(part[: each - 1])) == 1 and len({width for width, _ in part}) == 1 for part in parts)
        if whole and level and not any(attends for part in parts for _, attends in part[each - 1 :]):
            fitting.append([each - 1] * len(parts))
    if len(fitting) != 1:
        raise has.error(f"the {len(rows)} blocks of input_blocks are no levels of as many blocks each")
    return fitting[0], True


N = TypeVar("N", bound=nn.Module)


def filled(network: N, layout: Layout, source: Source) -> N:
    tensors = pieces(layout, source.checkpoint)
    fill(network, tensors, tensors.source, source.options.dtype)
    return network


def facts_file(source: Source) -> Path:
    """Where a user says what the shapes of a file do not show."""
    return source.path.with_suffix(".json")


def read_facts(source: Source, defaults: Facts) -> Facts:
    """What is known, and in its place what a user says of a file."""
    path = facts_file(source)
    if not path.is_file():
        return defaults
    values = read_object(path)
    if ("heads" in values) != ("head_width" in values):  # one says that the other is not
        values = {"heads": None, "head_width": None, **values}
    try:
        return Facts.from_dict({**defaults.to_dict(), **values})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


FAMILY = Family("guided-diffusion", fits, read, takes=())
