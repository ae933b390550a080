"""A recipe's task on the meta device: the networks and the loss of a real run, in shapes alone.

Weights are not read, so neither first stages nor text encoders need to be there; prompts have as many tokens as their
encoder reads.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.encoders.base import TextEmbedding
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.classes import with_names
from diptych.encoders.configs import JointTransformerConfig, LayoutConfig
from diptych.encoders.joint import JointTransformer
from diptych.models.autoregressive import Autoregressive
from diptych.models.judge import Judge, judge_config
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.models.noisy_guide import NoisyGuide, NoisyGuideConfig
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.lpips import Lpips
from diptych.pretrained.adapted_model import latent_config
from diptych.training.experiment_config import (
    AutoregressiveTraining,
    LatentTraining,
    PixelTraining,
    Recipe,
)
from diptych.training.guided_model import guided_model
from diptych.training.model_training import SecondStageTraining
from diptych.training.precomputed import NAMES, Kept
from diptych.training.read_text import FEW, Embedding, ahead
from diptych.training.tasks.autoencoding import FirstStage, FirstStageConfig
from diptych.training.tasks.codes import CodesTask
from diptych.training.tasks.contrastive import ContrastConfig, JudgeTrainable
from diptych.training.tasks.diffusion import DiffusionTask
from diptych.training.tasks.distillation import Distillation, DistillationConfig
from diptych.training.tasks.few_steps import FewStepTask, FewStepTraining
from diptych.training.tasks.guide_training import GuideTask, GuideTraining
from diptych.training.tasks.perceptual import JudgeDistance, PerceptualConfig
from diptych.training.trainable import Trainable

LATE = 10**9
"""A step at which every part of a loss counts."""
CONCEPTS = 1577
"""Things that the judge tells apart in the emoji data."""


@dataclass
class Outline:
    """What trains, and what its steps run besides."""

    task: Trainable
    trained: dict[str, nn.Module]
    """Trained networks by name."""
    frozen: dict[str, nn.Module] = field(default_factory=dict)
    """Frozen networks that lie on the device, and run in every step unless they are `idle`."""
    watched: dict[str, nn.Module] = field(default_factory=dict)
    """What runs for a trained network that is none by itself, as a LoRA, by its name."""
    idle: dict[str, nn.Module] = field(default_factory=dict)
    """Frozen networks whose results are read from disk."""
    latent: tuple[int, ...] | None = None
    """Shape of what is precomputed of an image, where that is read instead of it."""
    kept: tuple[int, ...] | None = None
    """Shape of what `diptych precompute` keeps of an image; none where it keeps nothing."""
    kept_as: Kept = "latents"
    """What that is."""
    tokens: int = 0
    """Tokens of a caption as its encoder reads it."""
    token_width: int = 0
    """Width of the embedding of one, where a frozen encoder reads it; else 0."""
    padded: bool = False
    """Whether that encoder pads every caption to `tokens`."""
    caption: str = ""
    place: str = "meta"

    def batch(self, recipe: Recipe, images: int) -> dict[str, Any]:
        """A batch of so many images."""
        batch: dict[str, Any] = {
            "caption": [self.caption] * images,
            "key": [f"concept {i % CONCEPTS}" for i in range(images)],
            "seed": torch.arange(images),
            "step": LATE,
        }
        if self.latent is None:
            side = recipe.data.side
            return {**batch, "picture": torch.zeros(images, 3, side, side, device=self.place)}
        dtype = torch.int16 if self.kept_as == "codes" else torch.float16
        return {**batch, NAMES[self.kept_as][1]: torch.zeros(images, *self.latent, dtype=dtype, device=self.place)}


class FrozenOutline:
    """A frozen text encoder. With a network it runs that, else embeddings come from a cache."""

    def __init__(self, config: Any, network: nn.Module | None, run: Situation) -> None:
        self.config, self.model, self.device, self.place = config, network, run.device, run.place
        self.width, self.max_tokens = config.width, config.max_tokens
        self.own_pooled = config.kind == "clip"

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextEmbedding:
        shape = (len(prompts), self.max_tokens)
        mask = torch.ones(shape, dtype=torch.bool, device=self.place)
        if self.model is None:
            sequence = torch.zeros(*shape, self.width, device=self.place)
        else:
            ids = torch.zeros(shape, dtype=torch.long, device=self.place)
            added = torch.zeros(len(prompts), 1, 1, self.max_tokens, dtype=next(self.model.parameters()).dtype)
            added = None if self.config.kind == "clip" else added.to(self.place)  # in which every token is read
            precision = contextlib.nullcontext() if self.device == "cuda" else torch.autocast(self.place, enabled=False)
            with precision:  # as `FrozenText.precision`
                sequence = self.model(input_ids=ids, attention_mask=added).last_hidden_state.float()
        return TextEmbedding.from_sequence(sequence, mask)


class LongestPrompts:
    """A tokenizer that makes of every prompt as many tokens as are read."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def get_vocab_size(self) -> int:
        return 0

    def encode(self, prompt: str) -> SimpleNamespace:
        return SimpleNamespace(ids=[0] * self.tokens)


def outlined(recipe: Recipe, examples: int | None = None, device: str = "cuda", place: str = "meta") -> Outline:
    """The outline of a recipe over so many examples (none: many), for a device of that type.

    place: where tensors are; on a real device there are random weights, to measure what was planned.

    Raises a `UserError` where a folder is missing of which the shape of a network follows.
    """
    with torch.device(place):
        outline = outline_of(recipe.system, Situation(recipe, examples, device, place))
    outline.place = place
    if isinstance(recipe.system, (SecondStageTraining, GuideTraining)) and not recipe.system.texts_precomputable:
        outline.token_width = 0
    outline.task.module.to(place).train()  # a number that a constructor took from a list is on the CPU
    for network in outline.frozen.values():
        network.to(place)
    return outline


class Situation(NamedTuple):
    """What an outline depends on beside the system."""

    recipe: Recipe
    examples: int | None
    device: str
    place: str

    def ahead(self, when: Embedding) -> bool:
        """Whether captions are embedded before the first step."""
        return ahead(when, FEW + 1 if self.examples is None else self.examples)


@functools.singledispatch
def outline_of(system: Any, run: Situation) -> Outline:
    raise UserError(f"{type(system).__name__} cannot be planned")


@outline_of.register
def _(system: LatentTraining, run: Situation) -> Outline:
    config, precomputed = system.model, system.precomputed is not None
    autoencoder, reader = config.autoencoder.build(), text_of(config.text, system.texts_stored, run)
    model = LatentDiffusion(config, autoencoder, reader.encoder)
    kept = system.kept_shape() if config.concat_condition is None else None
    return reader.outline(
        DiffusionTask(model, system.diffusion), {"unet": model.unet}, autoencoder, kept, kept if precomputed else None
    )


@outline_of.register
def _(system: AutoregressiveTraining, run: Situation) -> Outline:
    config, precomputed = system.model, system.precomputed is not None
    autoencoder, reader = config.autoencoder.build(), text_of(config.text, system.texts_stored, run)
    model, kept = Autoregressive(config, autoencoder, reader.encoder), system.kept_shape()
    outline = reader.outline(
        CodesTask(model, system.codes),
        {"transformer": model.transformer},
        autoencoder,
        kept,
        kept if precomputed else None,
    )
    outline.kept_as = "codes"
    return outline


@outline_of.register
def _(system: PixelTraining, run: Situation) -> Outline:
    stored = system.precomputed is not None or run.ahead(system.embed_text)
    reader = text_of(system.model.text, stored, run)
    model = PixelDiffusion(system.model, reader.encoder)
    return reader.outline(DiffusionTask(model, system.diffusion), {"network": model.network})


@outline_of.register
def _(system: FirstStageConfig, run: Situation) -> Outline:
    distance = distance_of(system.perceptual)
    task = FirstStage(system, None, distance)
    trained: dict[str, nn.Module] = {"autoencoder": task.autoencoder}
    if task.module.adversary is not None:
        trained["discriminator"] = task.module.adversary.discriminator
    return Outline(task, trained, {} if distance is None else {"perceptual distance": distance})


@outline_of.register
def _(system: DistillationConfig, run: Situation) -> Outline:
    from diptych.pretrained.load import open_autoencoder

    with torch.device("cpu"):
        teacher = open_autoencoder(system.teacher)
    distance = distance_of(system.perceptual)
    task = Distillation(system, teacher, distance)
    frozen: dict[str, nn.Module] = {"teacher": task.teacher}
    return Outline(task, {"decoder": task.module}, frozen if distance is None else {**frozen, "perceptual": distance})


@outline_of.register
def _(system: FewStepTraining, run: Situation) -> Outline:
    config, precomputed = latent_config(system.teacher), system.precomputed is not None
    autoencoder, reader = config.autoencoder.build(), text_of(config.text, system.texts_stored, run)
    teacher, kept = LatentDiffusion(config, autoencoder, reader.encoder), system.kept_shape()
    task = FewStepTask(system, teacher, reader.encoder)
    trained: nn.Module = task.system.unet if task.lora is None else task.lora
    outline = reader.outline(task, {"student": trained}, autoencoder, kept, kept if precomputed else None)
    outline.frozen["teacher"] = task.teacher
    outline.watched["student"] = task.system.unet
    outline.kept_as = system.kept
    if system.kept == "trajectories":  # whose teacher rests
        outline.idle["teacher"] = outline.frozen.pop("teacher")
    return outline


@outline_of.register
def _(system: GuideTraining, run: Situation) -> Outline:
    with torch.device("cpu"):
        guided = None if system.guided is None else guided_model(system.guided)
    stored = system.precomputed is not None and system.embed_text == "auto"
    reader = text_of(system.text, stored or run.ahead(system.embed_text), run)
    classes = None if system.classes is None else with_names(system.classes, numbers(system.classes))
    config = NoisyGuideConfig(
        network=system.network,
        classes=classes,
        text=system.text,
        schedule=system.schedule if guided is None else guided.schedule,
        first_stage=None if guided is None else "any",
        scale=None if guided is None else guided.scale,
    )
    guide = NoisyGuide(config, reader.encoder)
    task = GuideTask(system, guide, None if guided is None else guided.autoencoder, ["0"])
    kept = None
    if guided is not None and system.precomputable:
        shape = guided.autoencoder.config
        kept = (shape.moment_channels, *[run.recipe.data.side // shape.factor] * 2)
    read = kept if system.precomputed is not None else None
    name = "classifier" if system.text is None else "pictures"
    outline = reader.outline(task, {name: guide}, task.autoencoder, kept, read)
    outline.caption = "0"
    return outline


@outline_of.register
def _(system: ContrastConfig, run: Situation) -> Outline:
    config = system.judge

    def words(captions: Sequence[str], device: Any) -> tuple[Tensor, Tensor]:
        shape = (len(captions), config.tokens)
        features = torch.zeros(*shape, config.token_width, device=device)
        return features, torch.ones(shape, dtype=torch.bool, device=device)

    concepts = [f"concept {i}" for i in range(CONCEPTS)]
    task = JudgeTrainable(system, Drawings(concepts), words)  # type: ignore[arg-type]
    return Outline(task, {"judge": task.judge}, tokens=config.tokens, token_width=config.token_width)


class Drawings:
    """Examples of these concepts, one of each, for the judge."""

    def __init__(self, concepts: Sequence[str]) -> None:
        self.concepts = concepts

    def split(self, name: str, in_memory: bool = False) -> Drawings:
        return self

    def __len__(self) -> int:
        return len(self.concepts)

    def __getitem__(self, index: int) -> SimpleNamespace:
        concept = self.concepts[index]
        return SimpleNamespace(key=concept, meta={"concept": concept, "captions": [concept]})


@dataclass
class Reader:
    """What reads the captions of a system."""

    encoder: Any = None
    network: nn.Module | None = None
    """The network of a frozen encoder."""
    trained: nn.Module | None = None
    online: bool = False
    tokens: int = 0
    width: int = 0
    padded: bool = False
    caption: str = ""

    def outline(
        self,
        task: Any,
        trained: dict[str, nn.Module],
        autoencoder: nn.Module | None = None,
        kept: tuple[int, ...] | None = None,
        latent: tuple[int, ...] | None = None,
    ) -> Outline:
        outline = Outline(task, trained, latent=latent, kept=kept, tokens=self.tokens, caption=self.caption)
        if autoencoder is not None:
            outline.frozen["autoencoder"] = autoencoder
        if self.trained is not None:
            outline.trained["text"] = self.trained
        if self.network is not None:
            (outline.frozen if self.online else outline.idle)["text"] = self.network
            outline.token_width, outline.padded = self.width, self.padded
        return outline


def text_of(config: Any, cached: bool, run: Situation) -> Reader:
    """The reader of captions of a text config, of classes, or of none."""
    if config is None:
        return Reader()
    if isinstance(config, ClassConfig):
        return Reader(with_names(config, numbers(config)).build(), caption="0")
    if isinstance(config, LayoutConfig):
        encoder = config.from_captions(lambda *splits: [])
        return Reader(encoder, trained=encoder, tokens=config.network.max_tokens)
    if isinstance(config, JointTransformerConfig):
        tokens = config.network.max_tokens
        encoder = JointTransformer(config, LongestPrompts(tokens))
        return Reader(encoder, trained=encoder, tokens=tokens)
    network = config.build_network().eval().requires_grad_(False)
    if config.kind == "clip" and config.path is None and config.width not in (768, 1024):
        raise UserError(f"no CLIP of Stable Diffusion is {config.width} wide: set text.path to the folder of one")
    if config.kind == "t5" and (config.dtype == "bfloat16" or (config.dtype == "auto" and run.device == "cuda")):
        network.to(torch.bfloat16)
    encoder = FrozenOutline(config, None if cached else network, run)
    padded = config.kind == "clip" or getattr(config, "padded", False)
    return Reader(encoder, network, None, not cached, config.max_tokens, config.width, padded)


def numbers(config: ClassConfig) -> list[str]:
    """Captions that name classes, where their names would be learned from captions."""
    return [str(number) for number in range(config.classes)]


def distance_of(config: PerceptualConfig | None) -> nn.Module | None:
    """The shape of a perceptual distance."""
    if config is None:
        return None
    if config.features == "lpips":
        return Lpips()
    return MetaDistance(Judge(judge_config(None if config.path is None else Path(config.path))[1]))


class MetaDistance(JudgeDistance):
    """The judge's distance without its weights, and so without their fingerprint."""

    def __init__(self, judge: Judge) -> None:
        nn.Module.__init__(self)
        self.name = "judge features"
        self.tower = judge.picture_tower.requires_grad_(False)
        self.eval()
