"""Initialising a new model with the weights of another, as far as they fit."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.core.terminal import print_err
from diptych.encoders.cache import EmbeddedTexts
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.layout import LayoutTransformer
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.unet import UNet
from diptych.pretrained.load import open_model
from diptych.weights.fingerprint import fingerprint


def init_latent(model: LatentDiffusion, source: str) -> None:
    """Give a new model the weights and the scale of another over the same first stage, and print which tensors are new.

    Tensors are matched by their names. Where a kernel has more input channels, the others start at zero: the new model
    starts as if nothing were concatenated. A class with a name, also one of layouts, starts as the other model's
    embedding of that name: the mean of its tokens, in the place of all of them.
    """
    other = open_model(source)
    if not isinstance(other, LatentDiffusion):
        raise UserError(f"{source} is no latent model: training cannot start from it")
    if fingerprint(other.autoencoder) != fingerprint(model.autoencoder):
        raise UserError(f"{source} has another first stage than system.autoencoder: its latents differ")
    stated, scale = model.config.latent_scale, other.scale.item()
    if stated is not None and not math.isclose(stated, scale, rel_tol=1e-4):
        raise UserError(
            f"{source} was trained on latents times {scale:.6g}, not {stated:g}: leave system.model.latent_scale none"
        )
    weights = dict(other.unet.state_dict())
    if (rows := class_embeddings(model, other)) is not None:
        weights["label.weight"] = rows
    with torch.no_grad():
        copy_weights(model.unet, weights, source)
        if isinstance(text := model.text, LayoutTransformer) and classes_fit(text, other):
            names = [*text.classes, ""]
            text.init_classes(EmbeddedTexts.compute(other.text, names).encode(names).pooled)
        model.scale.copy_(other.scale)
    model.initialised = True


def open_pixel_model(source: str) -> PixelDiffusion:
    """The pixel diffusion model that initialises another. A `UserError` where it is none."""
    other = open_model(source)
    if not isinstance(other, PixelDiffusion):
        raise UserError(f"{source} is no stage of a cascade: training cannot start from it")
    return other


def init_pixel(model: PixelDiffusion, other: PixelDiffusion, source: str) -> None:
    """As `init_latent`, for pixels. Of a text encoder that is trained along, all weights are copied."""
    if model.joint_text is not None:
        if other.joint_text is None or other.joint_text.config.network != model.joint_text.config.network:
            raise UserError(f"{source} has no text encoder of the shape of system.model.text, which is trained along")
        model.joint_text.load_state_dict(other.joint_text.state_dict())
    copy_weights(model.network, other.network.state_dict(), source)


@torch.no_grad()
def copy_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors of the same name and shape, or with fewer input channels, and print which are new. A `UserError`
    where most are."""
    state, new = network.state_dict(), []
    for name, tensor in state.items():
        source_tensor = weights.get(name)
        if source_tensor is None or not fits(source_tensor.shape, tensor.shape):
            new.append(name)
            continue
        tensor.zero_()
        tensor[:, : source_tensor.shape[1]].copy_(source_tensor) if tensor.ndim > 1 else tensor.copy_(source_tensor)
    if 2 * len(new) > len(state):
        raise UserError(
            f"of {len(state)} tensors of this U-Net only {len(state) - len(new)} have their shape in {source}: give it "
            "the shape of that one, or leave system.init_from out"
        )
    print_err(
        f"{len(state) - len(new)} of {len(state)} tensors initialised from {source}; new: {', '.join(new) or 'none'}"
    )


def class_embeddings(model: LatentDiffusion, other: LatentDiffusion) -> Tensor | None:
    """A row for each class (entries, context_width): the other model's pooled embedding of its name, and of the empty
    prompt for the null class. None where names, the other's text encoder or its width do not fit."""
    text, encoder = model.config.text, other.config.encoder
    if not isinstance(text, ClassConfig) or not text.names or encoder is None or not isinstance(model.unet, UNet):
        return None
    if encoder.width != model.unet.config.context_width:
        return None
    names = dict(enumerate(text.names))
    prompts = [names.get(number, "") for number in range(text.entries)]
    return EmbeddedTexts.compute(other.text, prompts).encode(prompts).pooled


def classes_fit(text: LayoutTransformer, other: LatentDiffusion) -> bool:
    """Whether the classes of layouts can start as another model's embeddings of their names."""
    encoder = other.config.encoder
    return encoder is not None and encoder.width == text.width and not text.config.shared


def fits(shape: torch.Size, expected: torch.Size) -> bool:
    """Whether two shapes are alike, but for fewer input channels of a convolution."""
    if shape == expected:
        return True
    return (
        len(shape) == len(expected) == 4
        and shape[0] == expected[0]
        and shape[2:] == expected[2:]
        and shape[1] < expected[1]
    )
