"""Training what guides by its gradient: a classifier of noisy images, or a pair of noisy images and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.counter_random import Draws, draws_of
from diptych.core.devices import sent, settled
from diptych.core.errors import UserError
from diptych.core.random import NOISE, POSTERIOR, TIME
from diptych.data.dataset import DataConfig
from diptych.diffusion.losses import ObjectiveConfig, training_times
from diptych.diffusion.schedules import ScheduleConfig
from diptych.encoders.cache import CachedTexts
from diptych.encoders.class_configs import ClassConfig, normalize_name
from diptych.encoders.classes import with_names
from diptych.encoders.configs import FrozenConfig
from diptych.models.noisy_guide import NoisyGuide, NoisyGuideConfig
from diptych.networks.autoencoder import Autoencoder
from diptych.networks.noisy_classifier import NoisyClassifierConfig
from diptych.training.guided_model import Guided, guided_model
from diptych.training.read_text import FEW, Embedding
from diptych.training.system import (
    Precomputing,
    TrainingData,
    TrainingSystem,
    first_weights,
    require_multiple,
    require_side,
)
from diptych.training.tasks.contrastive import contrast, equal
from diptych.weights.fingerprint import fingerprint

VALIDATION_TIMES = 8
TOP = 5
MOST_CHOICES = 4096
"""Texts among which a pair is asked for the right one in validation, the first so many of (at most `FEW` examples of)
the training data."""


@dataclass(frozen=True, kw_only=True)
class GuideTraining(TrainingSystem):
    """A noisy classifier, or a noisy pair, to train."""

    kind: Literal["guide-training"] = "guide-training"
    """Which system this is."""
    network: NoisyClassifierConfig = NoisyClassifierConfig()
    """The encoder; its `classes` are the classes, or the dimensions of the space that images and text share."""
    classes: ClassConfig | None = ClassConfig()
    """The classes, which the captions of the data name; none for a pair."""
    text: FrozenConfig | None = None
    """The frozen text encoder of a pair, beneath a linear layer that is trained; none for a classifier."""
    guided: str | None = None
    """Latent model to be guided, by name, folder or hub id, whose latents, scale and schedule are read; or none."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The noise schedule of pixels."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Which times are trained; all count the same, and the loss is not that of a denoiser."""
    smoothing: float = 0.0
    """Label smoothing of a classifier: the share of certainty that is spread over all classes."""
    precomputed: str | None = None
    """Folder that `diptych precompute` wrote, or none to encode images and captions anew: latents where a latent model
    is guided, and the embeddings of a pair's captions."""
    embed_text: Embedding = "auto"
    """When the text encoder of a pair reads the captions: `ahead`, all before the first step, or `online`, each step
    its own; of both, `diptych precompute` keeps latents alone. auto: in `diptych precompute`, or else ahead for up to
    50,000 examples."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the finished model's matrices and kernels are stored."""

    def check(self) -> None:
        if (self.classes is None) == (self.text is None):
            raise UserError("GuideTraining: set classes or text, and the other to none")
        if self.classes is not None:
            classes, outputs = self.classes.classes, self.network.classes
            self.require(classes == outputs, "classes", f"be {outputs} in number, as network.classes says")
        if self.objective.loss != "mse" or self.objective.weighting != "none":
            raise UserError("GuideTraining.objective: a guide has no loss or weighting of a denoiser, but times alone")
        self.require(0 <= self.smoothing < 1, "smoothing", "lie between 0 and 1, 1 left out")
        if self.precomputed is not None:
            self.require(self.precomputable, "precomputed", "be none where pixels are read and no text")
            here = self.images_precomputable or self.embed_text == "auto"
            self.require(here, "embed_text", "be auto where captions are precomputed")

    @property
    def text_config(self) -> Any:
        return self.text if self.classes is None else self.classes

    @property
    def precomputable(self) -> bool:
        return self.images_precomputable or self.text is not None

    @property
    def images_precomputable(self) -> bool:
        return self.guided is not None

    @property
    def texts_precomputable(self) -> bool:
        return self.text is not None and (self.embed_text == "auto" or not self.images_precomputable)

    @property
    def store(self) -> Path | None:
        return super().store if self.images_precomputable else None

    def networks(self) -> dict[str, nn.Module]:
        return {"classifier" if self.text is None else "pictures": self.network.build()}

    def check_data(self, data: DataConfig) -> None:
        if self.guided is None:
            if self.network.size is not None:
                require_side(data, "system.network.size", self.network.size)
            require_multiple(data, 2 ** (len(self.network.encoder.multipliers) - 1))

    def precomputing(self) -> Precomputing:
        if not self.precomputable:
            return super().precomputing()
        text = CachedTexts(self.text) if self.text is not None and self.texts_precomputable else None  # built if needed
        return Precomputing(None if self.guided is None else guided_model(self.guided).autoencoder, text)

    def build(self, data: TrainingData, seed: int, resuming: bool = False) -> GuideTask:
        guided = None if self.guided is None else guided_model(self.guided)
        if guided is not None:
            data.encoded_by(guided.autoencoder)
            if self.precomputed is None and data.images.config.side % (factor := guided.autoencoder.config.factor):
                raise UserError(f"data.size must be a multiple of {factor}, not {data.images.config.side}")
        texts: Any = None
        if self.text is not None and self.guided is None and self.precomputed is not None:
            texts = data.stored_text(self.text, Path(self.precomputed))
        elif self.text is not None:
            texts = data.read_text(self.text, self.embed_text, (), "train")
        captions = data.captions("train", cut=True, examples=FEW if self.classes is None else None)
        return guide_task(self, captions, guided, seed, texts)


def guide_task(
    system: GuideTraining, captions: Sequence[str], guided: Guided | None, seed: int = 0, texts: Any = None
) -> GuideTask:
    """A guide to train, of the classes or texts that `captions` of the training data are; `seed` decides its first
    weights. texts: the text encoder of a pair, built when it is first needed where it is none."""
    config = NoisyGuideConfig(
        network=system.network,
        classes=None if system.classes is None else with_names(system.classes, captions),
        text=system.text,
        schedule=system.schedule if guided is None else guided.schedule,
        first_stage=None if guided is None else fingerprint(guided.autoencoder),
        scale=None if guided is None else guided.scale,
    )
    with first_weights(seed):
        guide = NoisyGuide(config, texts)
    return GuideTask(system, guide, None if guided is None else guided.autoencoder, captions)


class GuideTask:
    """The `Trainable` of a guide.

    loss of a classifier: the cross entropy of an image's class, from x_t at a time drawn for it.
    loss of a pair: symmetric InfoNCE over the part of the batch that is computed at once (CLIP: Radford et al. 2021,
    figure 3), between x_t and text; pairs of the same text in it are neither right nor wrong.
    """

    def __init__(
        self, config: GuideTraining, guide: NoisyGuide, autoencoder: Autoencoder | None, captions: Sequence[str]
    ) -> None:
        """autoencoder: the first stage whose latents are read; none for pixels. captions: those of the training data,
        among which a pair is asked for the right one in validation."""
        self.config, self.module = config, guide
        self.autoencoder = None if autoencoder is None else autoencoder.eval().requires_grad_(False)
        self.choices = sorted(set(captions))[:MOST_CHOICES]

    def start(self, batch: dict[str, Any]) -> None:
        """Nothing to estimate: the scale is the guided model's."""

    @torch.no_grad()
    def clean(self, batch: dict[str, Any], draws: Draws) -> Tensor:
        """x_0 (B, C, H, W): images, or scaled samples of their latents."""
        if self.autoencoder is None:
            return batch["picture"]
        if "latent" in batch:
            posterior = self.autoencoder.posterior(batch["latent"].float())
        else:
            posterior = settled(self.autoencoder, batch["picture"].device).encode(batch["picture"])
        return posterior.sample(draws.normal(posterior.mean, POSTERIOR)) * (self.module.config.scale or 1.0)

    def outputs(self, batch: dict[str, Any], draws: Draws, times: Tensor) -> Tensor:
        """The network's outputs for the batch with the noise of times (B,): logits, or unit vectors."""
        schedule = self.module.schedule
        x0 = self.clean(batch, draws)
        alpha, sigma = (level.to(x0).view(-1, 1, 1, 1) for level in schedule.alpha_sigma(times))
        x = alpha * x0 + sigma * draws.normal(x0, NOISE)
        return self.module(x, schedule.network_time(times).to(x0))

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        draws, captions = draws_of(batch), batch["caption"]
        times = training_times(draws.uniform(TIME), self.config.objective, self.module.schedule)
        outputs = self.outputs(batch, draws, times)
        if self.config.text is None:
            targets = self.module.numbers(captions)
            right = (outputs.argmax(-1) == targets).float().mean()
            return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=self.config.smoothing), {
                "top1": right
            }
        scale, same = self.module.inverse_temperature, sent(equal(captions, captions), outputs.device)
        return contrast(outputs, self.module.embed(captions), same, scale), {"scale": scale.detach()}

    @torch.no_grad()
    def validation(self, batch: dict[str, Any]) -> dict[str, float]:
        """Shares of the images whose class, or text of all choices, is named first and among five, at 8 equidistant
        times with fixed noise, and their means. A caption that is none of them counts as missed."""
        names = self.module.labels.config.names if self.module.labels is not None else ()
        numbers = {normalize_name(name): number for number, name in enumerate(names or self.choices)}
        if self.module.labels is not None and not names:
            numbers = {str(number): number for number in range(self.config.network.classes)}
        targets = torch.tensor([numbers.get(normalize_name(caption), -1) for caption in batch["caption"]])
        texts = None if self.config.text is None else self.module.embed(self.choices)
        draws, shares = draws_of(batch), dict[str, float]()
        for i in range(VALIDATION_TIMES):
            time = (i + 0.5) / VALIDATION_TIMES
            outputs = self.outputs(batch, draws, torch.full((len(targets),), time, dtype=torch.float64))
            logits = outputs if texts is None else outputs @ texts.T  # (B, choices)
            right = logits.topk(min(TOP, logits.shape[1])).indices.cpu() == targets[:, None]  # (B, TOP)
            shares[f"top1_at_{time:.4f}"] = right[:, 0].double().mean().item()
            shares[f"top5_at_{time:.4f}"] = right.any(1).double().mean().item()
        means = {
            top: sum(v for k, v in shares.items() if k.startswith(top)) / VALIDATION_TIMES for top in ("top1", "top5")
        }
        return {**means, **shares}

    def samples(self) -> None:
        """A guide generates nothing."""

    def save(self, folder: Path) -> None:
        self.module.save(folder, self.config.save_dtype)
