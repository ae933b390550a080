"""A tiny decoder, trained to give what the decoder of a trained autoencoder gives."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.core.config import Config, Within, read_json
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.core.images import grid, psnr, to_images
from diptych.core.random import normal
from diptych.networks.autoencoder import Autoencoder
from diptych.networks.tiny_decoder import TinyDecoder, TinyDecoderConfig
from diptych.training.tasks.autoencoding import PerceptualConfig
from diptych.weights.files import load_into, load_weights, save_weights
from diptych.weights.fingerprint import fingerprint

KIND = "tiny-decoder"


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Config):
    """A tiny decoder, its teacher, and the weights of the terms of its loss."""

    kind: Literal["tiny-decoder"] = KIND
    """Which system this is."""
    network: TinyDecoderConfig = TinyDecoderConfig()
    """The tiny decoder; its latents must be those of the teacher, in channels and factor."""
    teacher: str | None = None
    """What holds the autoencoder whose decoder is the teacher: a run or model folder, or a published model; none for
    the default model in the package."""
    after_teacher: Annotated[float, Within(0)] = 1.0
    """Weight of the mean absolute difference from what the teacher decodes."""
    after_truth: Annotated[float, Within(0)] = 0.2
    """Weight of the mean absolute difference from the true picture."""
    perceptual: PerceptualConfig | None = None
    """A perceptual distance from what the teacher decodes, or none."""
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """How the finished model's kernels are stored."""

    def check(self) -> None:
        some = self.after_teacher > 0 or self.after_truth > 0 or self.perceptual is not None
        self.require(some, "after_teacher", "be more than 0, or after_truth, or perceptual be set: nothing is learned")


class Distillation:
    """The tiny decoder as the training loop sees it. Latents are samples of the posterior, as diffusion ends with them.
    The loss of a picture: after_teacher * |y - teacher(z)| + after_truth * |y - x|, averaged over its values, plus
    perceptual.weight * d(y, teacher(z)).
    """

    def __init__(self, config: DistillationConfig, teacher: Autoencoder, perceptual: nn.Module | None = None) -> None:
        """perceptual: forward(first, second), pictures (B, 3, H, W) in [-1, 1] -> (B,)."""
        for field in ("latent_channels", "picture_channels", "factor"):
            if (own := getattr(config.network, field)) != (wanted := getattr(teacher.config, field)):
                raise UserError(f"network.{field} must be {wanted}, as the teacher's, not {own}: set the network")
        self.config = config
        self.module = TinyDecoder(config.network)
        self.teacher = teacher.eval().requires_grad_(False)
        self.perceptual = perceptual.eval().requires_grad_(False) if perceptual is not None else None
        self._shown: Tensor | None = None

    @torch.no_grad()
    def start(self, batch: dict[str, Any]) -> None:
        """Set `scale` from the first batch, as a latent model does."""
        self.module.scale.copy_(1 / self.taught(batch)[0].std())

    @torch.no_grad()
    def taught(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Latents (B, C, h, w) of the batch's pictures, and what the teacher decodes, clipped as pictures are."""
        pictures = batch["picture"]  # (B, 3, H, W)
        self.teacher.to(pictures.device)
        posterior = self.teacher.encode(pictures)
        latents = posterior.sample(normal(batch["seed"], posterior.mean.shape[1:], pictures.device))
        return latents, self.teacher.decode(latents).clamp(-1, 1)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        latents, wanted = self.taught(batch)
        painted = self.module.decode(latents)
        after_teacher = (painted - wanted).abs().flatten(1).mean(1)  # (B,)
        after_truth = (painted - batch["picture"]).abs().flatten(1).mean(1)
        losses = self.config.after_teacher * after_teacher + self.config.after_truth * after_truth
        scalars = {"after_teacher": after_teacher.mean(), "after_truth": after_truth.mean()}
        if self.perceptual is not None and self.config.perceptual is not None:
            distance = self.perceptual.to(painted.device)(painted, wanted)  # (B,)
            losses, scalars["perceptual"] = losses + self.config.perceptual.weight * distance, distance.mean()
        return losses, scalars

    @torch.no_grad()
    def validation(self, batch: dict[str, Any]) -> dict[str, float]:
        """Peak signal-to-noise ratios in dB: from the teacher's pictures, from the true ones, and the teacher's own."""
        if self._shown is None:
            self._shown = batch["picture"][:16]
        latents, wanted = self.taught(batch)
        painted = self.module.decode(latents).clamp(-1, 1)
        pairs = {"psnr_teacher": (painted, wanted), "psnr": (painted, batch["picture"])}
        return {
            name: psnr(*pair).mean().item()
            for name, pair in {**pairs, "teacher_psnr": (wanted, batch["picture"])}.items()
        }

    @torch.no_grad()
    def samples(self) -> Image.Image | None:
        """Originals, below them what the teacher decodes, below it what the tiny decoder does."""
        if self._shown is None:
            return None
        latents = self.teacher.encode(self._shown).mean
        rows = (self._shown, self.teacher.decode(latents), self.module.decode(latents))
        return grid([image for row in rows for image in to_images(row)], columns=len(self._shown))

    def save(self, folder: Path) -> None:
        network = dataclasses.replace(self.config.network, teacher=fingerprint(self.teacher))
        save_tiny_decoder(self.module, folder, dataclasses.replace(self.config, network=network))


def save_tiny_decoder(module: TinyDecoder, folder: Path, config: DistillationConfig | None = None) -> None:
    """Write a folder that `load_tiny_decoder` opens."""
    config = config or DistillationConfig(network=module.config)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(module.state_dict(), folder / "decoder", dtype=getattr(torch, config.save_dtype))
    write_text(folder / "config.json", config.to_json())


def load_tiny_decoder(source: Path | str) -> TinyDecoder:
    """The tiny decoder in a run folder or model folder. Raises a `UserError` that names what is wrong there."""
    folder = Path(source)
    folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    missing = f"no tiny decoder in {folder}: name the run or model folder of one (`diptych train emoji-tiny-decoder`)"
    values = read_json(folder / "config.json", missing=missing)
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise UserError(f"{folder} holds another kind of model, not a tiny decoder")
    module = TinyDecoder(DistillationConfig.from_dict(values).network)
    load_into(module, load_weights(folder / "decoder"), str(folder / "decoder"))
    return module.eval()


TINY = "tiny"
"""The tiny decoder in the model's own folder."""


def choose_tiny_decoder(
    chosen: TinyDecoder | Path | str, autoencoder: Autoencoder, own: TinyDecoder | None
) -> TinyDecoder:
    """The tiny decoder that is meant: itself, the model's `own` ("tiny"), or that in a folder.

    Raises a `UserError` where there is none, or one of another first stage.
    """
    if isinstance(chosen, TinyDecoder):
        decoder = chosen
    elif str(chosen) == TINY:
        if own is None:
            raise UserError("no tiny decoder came with this model: name the folder of one")
        decoder = own
    else:
        decoder = load_tiny_decoder(chosen)
    require_fits(decoder, autoencoder)
    return decoder


def require_fits(decoder: TinyDecoder, autoencoder: Autoencoder) -> None:
    """Raise a `UserError` unless the decoder was trained after this autoencoder, as far as can be told: in a type that
    is not float32 weights have another fingerprint, and only the shapes of latents are compared.
    """
    ours, theirs = decoder.config, autoencoder.config
    same = (ours.latent_channels, ours.factor) == (theirs.latent_channels, theirs.factor)
    if same and ours.teacher is not None and next(autoencoder.parameters()).dtype == torch.float32:
        same = fingerprint(autoencoder) == ours.teacher
    if not same:
        raise UserError("this tiny decoder was trained after another first stage than the model's: train one after it")
