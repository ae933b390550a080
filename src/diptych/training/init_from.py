"""What a model has before its first step: a first stage and its losses; the U-Net of another model, as far as it fits;
names for its classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.core.seeding import drawn_apart
from diptych.core.terminal import say
from diptych.encoders.cache import EmbeddedTexts
from diptych.encoders.classes import with_names
from diptych.encoders.configs import ClassConfig
from diptych.encoders.layout import LayoutTransformer
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.unet import UNet
from diptych.pretrained.load import open_autoencoder, open_model
from diptych.training.experiment_config import AutoregressiveTraining, LatentTraining, Recipe, StageTraining
from diptych.training.tasks.autoencoding import FirstStage, FirstStageConfig, PerceptualConfig
from diptych.training.tasks.distillation import Distillation, DistillationConfig
from diptych.weights.fingerprint import fingerprint

FIRST_WEIGHTS = "first weights"
"""What is drawn apart (`seeding.drawn_apart`) by the seed of a run."""


def begin_from(system: LatentDiffusion, source: str) -> None:
    """Give a new model the weights and the scale of another over the same first stage, and say what starts anew.

    Tensors are matched by their names. Where a kernel has more input channels, what it lacks is zeros: the new model
    starts as if what is concatenated were not there. A class with a name, also one of layouts, starts as what the other
    model reads in that name: the mean of its tokens, in the place of all of them.
    """
    other = open_model(source)
    if not isinstance(other, LatentDiffusion):
        raise UserError(f"{source} is no latent model: training cannot start from it")
    if fingerprint(other.autoencoder) != fingerprint(system.autoencoder):
        raise UserError(f"{source} stands on another first stage than system.autoencoder: its latents differ")
    stated, scale = system.config.latent_scale, other.scale.item()
    if stated is not None and not math.isclose(stated, scale, rel_tol=1e-4):
        raise UserError(
            f"{source} was trained on latents times {scale:.6g}, not {stated:g}: leave system.model.latent_scale none"
        )
    theirs = dict(other.unet.state_dict())
    if (words := spoken(system, other)) is not None:
        theirs["label.weight"] = words
    with torch.no_grad():
        copy_weights(system.unet, theirs, source)
        if isinstance(reader := system.text, LayoutTransformer) and begins(reader, other):
            names = [*reader.classes, ""]
            reader.begin_with(EmbeddedTexts.compute(other.text, names).encode(names).pooled)
        system.scale.copy_(other.scale)
    system.begun = True


def initial_stage(source: str) -> PixelDiffusion:
    """The stage from which another starts. A `UserError` where it is none."""
    other = open_model(source)
    if not isinstance(other, PixelDiffusion):
        raise UserError(f"{source} is no stage of a cascade: training cannot start from it")
    return other


def begin_stage(stage: PixelDiffusion, other: PixelDiffusion, source: str) -> None:
    """Give a new stage the weights of another, as `begin_from`; of a text encoder that is trained along, all of it."""
    if stage.joint_text is not None:
        if other.joint_text is None or other.joint_text.config.network != stage.joint_text.config.network:
            raise UserError(f"{source} has no text encoder of the shape of system.model.text, which is trained along")
        stage.joint_text.load_state_dict(other.joint_text.state_dict())
    copy_weights(stage.network, other.network.state_dict(), source)


@torch.no_grad()
def copy_weights(network: nn.Module, theirs: Mapping[str, Tensor], source: str) -> None:
    """Copy what has the same name and shape, or fewer input channels, and say what starts anew. A `UserError` where
    that is most of it."""
    own, new = network.state_dict(), []
    for name, tensor in own.items():
        found = theirs.get(name)
        if found is None or not fits(found.shape, tensor.shape):
            new.append(name)
            continue
        tensor.zero_()
        tensor[:, : found.shape[1]].copy_(found) if tensor.ndim > 1 else tensor.copy_(found)
    if 2 * len(new) > len(own):
        raise UserError(
            f"of {len(own)} tensors of this U-Net only {len(own) - len(new)} have their shape in {source}: give it the "
            "shape of that one, or leave system.init_from out"
        )
    say(f"{len(own) - len(new)} of {len(own)} tensors are those of {source}; anew: {', '.join(new) or 'none'}")


def spoken(system: LatentDiffusion, other: LatentDiffusion) -> Tensor | None:
    """A row for each class (entries, context_width): the pooled text of its name, and of no words for the null class;
    none where names, the other's text encoder or its width do not fit."""
    text, encoder = system.config.text, other.config.encoder
    if not isinstance(text, ClassConfig) or not text.names or encoder is None or not isinstance(system.unet, UNet):
        return None
    if encoder.width != system.unet.config.context_width:
        return None
    names = dict(enumerate(text.names))
    prompts = [names.get(number, "") for number in range(text.entries)]
    return EmbeddedTexts.compute(other.text, prompts).encode(prompts).pooled


def begins(reader: LayoutTransformer, other: LatentDiffusion) -> bool:
    """Whether the classes of layouts can start as what another model's text encoder makes of their names."""
    encoder = other.config.encoder
    return encoder is not None and encoder.width == reader.width and not reader.config.shared


def named(recipe: Recipe, captions: Callable[[], Iterable[str]]) -> Recipe:
    """The recipe with the captions of the data as the names of its classes, where `names_from_captions` is set."""
    system = recipe.system
    if not isinstance(system, (LatentTraining, AutoregressiveTraining, StageTraining)):
        return recipe
    text = system.model.text
    if not isinstance(text, ClassConfig) or not text.names_from_captions:
        return recipe
    model = dataclasses.replace(system.model, text=with_names(text, captions()))
    return dataclasses.replace(recipe, system=dataclasses.replace(system, model=model))


def fits(found: torch.Size, wanted: torch.Size) -> bool:
    """Whether they are alike but for fewer input channels of a convolution."""
    if found == wanted:
        return True
    return len(found) == len(wanted) == 4 and found[0] == wanted[0] and found[2:] == wanted[2:] and found[1] < wanted[1]


def first_stage_task(system: FirstStageConfig, seed: int) -> FirstStage:
    """An autoencoder to train, with the perceptual distance and the autoencoder to start from that its config names."""
    module = None
    if system.init_from is not None:
        module = open_autoencoder(system.init_from).train()
        if module.config != system.network:
            raise UserError(f"the autoencoder in {system.init_from} has another shape than the recipe's system.network")
    distance = distance_of(system.perceptual)
    with drawn_apart(seed, FIRST_WEIGHTS):
        return FirstStage(system, module, distance)


def distillation(system: DistillationConfig, seed: int) -> Distillation:
    """A tiny decoder, its teacher opened."""
    teacher, distance = open_autoencoder(system.teacher), distance_of(system.perceptual)
    with drawn_apart(seed, FIRST_WEIGHTS):
        return Distillation(system, teacher, distance)


def distance_of(config: PerceptualConfig | None) -> nn.Module | None:
    """The perceptual distance that a recipe names."""
    from diptych.training.tasks.perceptual import perceptual_distance

    return None if config is None else perceptual_distance(config.features, config.path)
