"""Training the autoencoder of latent diffusion (Rombach et al. 2022, section 3.1, Eq. 25 and appendix G).

Reconstruction, a perceptual distance, a patch discriminator's reward, and a regularised latent: KL or a codebook.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.core.counter_random import draws_of
from diptych.core.devices import settled
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.core.images import grid, psnr, to_images
from diptych.core.random import ANY
from diptych.core.terminal import print_err
from diptych.data.dataset import DataConfig
from diptych.models.first_stage import save_autoencoder
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.pretrained.load import open_autoencoder
from diptych.training.distributed import Team
from diptych.training.readback import Readback
from diptych.training.system import TrainingData, TrainingSystem, first_weights, require_multiple
from diptych.training.tasks.adversarial import AdversarialConfig, Adversary
from diptych.training.tasks.codebook import Codebook, CodebookConfig
from diptych.training.tasks.perceptual import PerceptualConfig
from diptych.training.trainable import Generated


@dataclass(frozen=True, kw_only=True)
class FirstStageConfig(TrainingSystem):
    """An autoencoder and the terms of its loss."""

    renamed: ClassVar[dict[str, str]] = {"initial": "init_from"}

    kind: Literal["autoencoder"] = "autoencoder"
    """Which system this is."""
    network: AutoencoderConfig = AutoencoderConfig()
    """The autoencoder."""
    l1: float = 1.0
    """Weight of the mean absolute error."""
    l2: float = 0.0
    """Weight of the mean squared error."""
    kl: float = 1e-6
    """Weight of the KL divergence (summed over a latent) against the reconstruction error (summed over an image)."""
    codebook: CodebookConfig = CodebookConfig()
    """How the codebook is learned, where `network` has one."""
    perceptual: PerceptualConfig | None = None
    """A perceptual distance, or none."""
    adversarial: AdversarialConfig | None = None
    """A patch discriminator, or none."""
    learned_variance: bool = False
    """Divide the reconstruction error by a variance that is learned, one number, and add its logarithm. (In
    latent-diffusion's code that number is there, but nothing trains it.)"""
    init_from: str | None = None
    """Run or model whose autoencoder training starts from, or none for random weights."""
    train: Literal["all", "decoder"] = "all"
    """`decoder` leaves the encoder, and so the latents and all that was trained on them, as they are."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the finished model's matrices and kernels are stored."""

    def check(self) -> None:
        for field in ("l1", "l2", "kl"):
            self.require(getattr(self, field) >= 0, field, "be at least 0")
        if self.train == "decoder" and self.init_from is None:
            raise UserError("FirstStageConfig.train: a decoder alone is trained for an encoder that is: set init_from")

    def networks(self) -> dict[str, nn.Module]:
        return self.network.networks()

    @property
    def bucket_multiple(self) -> int:
        return self.network.factor

    def check_data(self, data: DataConfig) -> None:
        require_multiple(data, self.network.factor)

    def build(self, data: TrainingData, seed: int, resuming: bool = False) -> FirstStage:
        module = None
        if self.init_from is not None and not resuming:
            module = open_autoencoder(self.init_from).train()
            if module.config != self.network:
                raise UserError(
                    f"the autoencoder in {self.init_from} has another shape than the recipe's system.network"
                )
        distance = None if self.perceptual is None else self.perceptual.build()
        with first_weights(seed):
            return FirstStage(self, module, distance)


class Compression(nn.Module):
    """All that a run learns: the autoencoder, and what only its training needs."""

    def __init__(self, config: FirstStageConfig, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        quantise = autoencoder.quantise
        self.codebook = None if quantise is None else Codebook(config.codebook, quantise)
        self.adversary = None if config.adversarial is None else Adversary(config.adversarial)
        self.log_variance = nn.Parameter(torch.zeros(())) if config.learned_variance else None
        if config.train == "decoder":
            for part in (autoencoder.encoder, autoencoder.quant_conv, quantise):
                if part is not None:
                    part.requires_grad_(False)


class FirstStage:
    """The `Trainable` of an autoencoder. The loss of an image is taken per component, so that it does not
    grow with the image:

        rec = l1 |x - x'| + l2 (x - x')^2 + perceptual d(x, x')        averaged
        loss = rec / variance + log variance + kl KL / (3 H W)         or, for a codebook, + its two terms
               - strength * adaptive weight * D(x') + hinge loss of D  from adversarial.start on

    Images are independent of each other but for batch norms in D and for the adaptive weight, which is that of the
    part of the batch that is computed at once.
    """

    def __init__(
        self, config: FirstStageConfig, autoencoder: Autoencoder | None = None, perceptual: nn.Module | None = None
    ) -> None:
        """autoencoder: where training starts; random weights if none. perceptual: the frozen distance that the config
        names, (x, x') -> (B,)."""
        if (config.perceptual is None) != (perceptual is None):
            raise ValueError("a perceptual distance is given where the config has one, and only there")
        self.config = config
        self.module = Compression(config, autoencoder or Autoencoder(config.network))
        self._perceptual = (perceptual,)  # in a tuple: frozen, no part of the model
        self._examples: Tensor | None = None
        self._averages: Readback[int] | None = None
        self._collapse: str | None = None

    @property
    def autoencoder(self) -> Autoencoder:
        return self.module.autoencoder

    @property
    def facts(self) -> dict[str, str]:
        """What is kept in a run's config.json beside the recipe."""
        return {} if self.distance_name is None else {"perceptual_distance": self.distance_name}

    @property
    def distance_name(self) -> str | None:
        """What the perceptual distance is, for the record."""
        distance = self._perceptual[0]
        return None if distance is None else str(getattr(distance, "name", type(distance).__name__))

    def perceptual(self, images: Tensor, rebuilt: Tensor) -> Tensor | None:
        """Distances (B,), or none."""
        if (distance := self._perceptual[0]) is None:
            return None
        return settled(distance, images.device)(images, rebuilt)

    @torch.no_grad()
    def start(self, batch: dict[str, Any]) -> None:
        """Initialise the codebook's entries from latents, where the config says so."""
        if self.module.codebook is not None and self.autoencoder.quantise is not None:
            self.module.codebook.start(self.autoencoder.quantise, self.autoencoder.moments(batch["picture"]))

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        images, step = batch["picture"], batch.get("step", 0)  # (B, 3, H, W)
        latents, regular, scalars = self.regularised(batch)
        rebuilt = self.autoencoder.decode_entries(latents)
        error = rebuilt - images
        l1, l2 = error.abs().flatten(1).mean(1), error.square().flatten(1).mean(1)  # (B,)
        nll, scalars = self.config.l1 * l1 + self.config.l2 * l2, {"l1": l1.mean(), "l2": l2.mean(), **scalars}
        if (distance := self.perceptual(images, rebuilt)) is not None and self.config.perceptual is not None:
            nll, scalars["perceptual"] = nll + self.config.perceptual.weight * distance, distance.mean()
        if (log_variance := self.module.log_variance) is not None:
            nll, scalars["log_variance"] = nll * torch.exp(-log_variance) + log_variance, log_variance
        losses = nll + regular
        if (adversary := self.module.adversary) is not None and step >= adversary.config.start:
            units = 1 if self.module.codebook is not None else images[0].numel()  # published as a mean, or as a sum
            last = self.autoencoder.decoder.conv_out.weight
            reward, hinge, more = adversary.losses(images, rebuilt, nll.mean(), last, step, units)
            losses, scalars = losses + reward + hinge, {**scalars, **more, "collapsed": self.notice(adversary, step)}
        return losses, scalars

    def regularised(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What the decoder reads, with a gradient to the encoder; the regularisation of each image (B,); scalars."""
        images, quantise, codebook = batch["picture"], self.autoencoder.quantise, self.module.codebook
        posterior = self.autoencoder.encode(images)
        if quantise is None or codebook is None:
            latents = posterior.sample(draws_of(batch).normal(posterior.mean, ANY))
            kl = posterior.kl()
            scalars = {"kl": kl.mean(), "deviation": latents.std()}
            return latents, self.config.kl / images[0].numel() * kl, scalars
        indices = quantise.indices(posterior.mean)
        entries = quantise.entries(indices)
        losses = codebook.losses(posterior.mean, entries)
        if self.module.training and self.config.train == "all":
            codebook.accumulate(posterior.mean, indices)
        # The gradient passes as if nothing were rounded.
        straight = posterior.mean + (entries - posterior.mean).detach()
        return (
            straight,
            losses,
            {"quantisation": losses.mean(), "deviation": posterior.mean.std(), **codebook.metrics()},
        )

    def stepped(self, team: Team) -> None:
        """Let the codebook learn from what the step's batch came to."""
        codebook, quantise = self.module.codebook, self.autoencoder.quantise
        if codebook is not None and quantise is not None and self.config.train == "all":
            codebook.learn(quantise, team)

    def notice(self, adversary: Adversary, step: int) -> Tensor:
        """Say it, once, when the adversarial training collapses, and when it comes back, as soon as the host may know;
        1 while it has, else 0."""
        self._averages = self._averages or Readback[int](adversary.averages.device)
        self._averages.send(adversary.averages.clone(), step)
        for averages, at in self._averages.read():
            before, self._collapse = self._collapse, adversary.collapse(averages)
            if (before is None) != (self._collapse is None):
                print_err(f"step {at + 1}: {self._collapse or 'the adversarial training is in balance again'}")
        return adversary.collapsed()

    @torch.no_grad()
    def validation(self, batch: dict[str, Any]) -> dict[str, float]:
        images = batch["picture"]
        rebuilt = self.rebuilt(images).clamp(-1, 1)
        if self._examples is None:
            self._examples = images[:16]
        scalars = {"l1": (rebuilt - images).abs().mean().item(), "psnr": psnr(rebuilt, images).mean().item()}
        distance = self.perceptual(images, rebuilt)
        return scalars if distance is None else {**scalars, "perceptual": distance.mean().item()}

    def rebuilt(self, images: Tensor) -> Tensor:
        """From the posterior's mean, or from the nearest entries: (B, 3, H, W)."""
        return self.autoencoder.decode(self.autoencoder.encode(images).mean)

    @torch.no_grad()
    def generated(self, batch: dict[str, Any], seeds: list[int]) -> Generated:
        """Reconstructions of a batch's images, in which nothing is random."""
        return Generated(to_images(self.rebuilt(batch["picture"])), to_images(batch["picture"]), paired=True)

    @torch.no_grad()
    def samples(self) -> Image.Image | None:
        """Originals above, reconstructions below."""
        if self._examples is None:
            return None
        return grid(to_images(self._examples) + to_images(self.rebuilt(self._examples)), columns=len(self._examples))

    def save(self, folder: Path) -> None:
        save_autoencoder(self.autoencoder, folder, self.config.save_dtype)
        if self.distance_name is not None:
            write_text(folder / "training.json", json.dumps({"perceptual": self.distance_name}, indent=2) + "\n")
        write_text(folder / "config.json", self.config.to_json())
