"""What guides by its gradient and was trained on noise: a classifier (Dhariwal & Nichol 2021, section 4), or a
contrastive pair of images and text (the noised CLIP of GLIDE: Nichol et al. 2021, section 2.4).
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.config import Config
from diptych.core.devices import sent
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.diffusion.gradient_guidance import Score
from diptych.diffusion.schedules import Schedule, ScheduleConfig
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.classes import ClassLabels
from diptych.encoders.configs import FrozenConfig, build_encoder
from diptych.models.frozen_parts import FrozenModules
from diptych.models.guides import Space
from diptych.networks.noisy_classifier import NoisyClassifier, NoisyClassifierConfig
from diptych.weights.lazy import load_module, on_meta
from diptych.weights.model_folder import model_place
from diptych.weights.save import save_weights

WARMEST = 100.0
"""The inverse temperature stays at or below this, so that training is stable (CLIP, section 2.5)."""
ARTICLE = re.compile(r"^(an?|the)\s+", re.IGNORECASE)
SCALES_AGREE = 0.1
"""Two models over the same latents estimate their scale from different images; so far apart it is another's."""


@dataclass(frozen=True, kw_only=True)
class NoisyGuideConfig(Config):
    """A noisy classifier, or a noisy pair, and the noise that it was trained on."""

    kind: Literal["guide"] = "guide"
    """Which system this is."""
    network: NoisyClassifierConfig = NoisyClassifierConfig()
    """The encoder; its `classes` are the classes, or the dimensions of the space that images and text share."""
    classes: ClassConfig | None = ClassConfig()
    """The classes of a classifier; none for a CLIP pair."""
    text: FrozenConfig | None = None
    """The frozen text encoder of a pair; none for a classifier."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The noise schedule of its time input."""
    first_stage: str | None = None
    """Fingerprint of the autoencoder whose latents it reads; none for pixels."""
    scale: float | None = None
    """What those latents were multiplied by; none for pixels."""

    def check(self) -> None:
        if (self.classes is None) == (self.text is None):
            raise UserError("NoisyGuideConfig: set classes or text, and the other to none")
        if self.classes is not None:
            classes, outputs = self.classes.classes, self.network.classes
            self.require(classes == outputs, "classes", f"be {outputs} in number, as network.classes says")
        self.require((self.first_stage is None) == (self.scale is None), "scale", "be given with first_stage alone")

    def networks(self) -> dict[str, nn.Module]:
        """Each network by its name, to be counted: call it on the meta device."""
        return {"classifier" if self.text is None else "pictures": self.network.build()}


class NoisyGuide(FrozenModules):
    """forward(x (B, C, H, W), time (B,) in network units) -> logits (B, classes), or unit vectors (B, D) of a pair.

    The text encoder of a pair is frozen, not saved, and built when it is first needed.
    """

    input_kind: Literal["noisy"] = "noisy"
    through = False

    def __init__(self, config: NoisyGuideConfig, text: Any = None, name: str = "guide") -> None:
        super().__init__()
        self.config, self.name = config, name
        self.set_frozen(text=text)
        self.network = NoisyClassifier(config.network)
        self.labels = None if config.classes is None else ClassLabels(config.classes)
        if config.text is not None:
            self.words = nn.Linear(config.text.width, config.network.classes, bias=False)
            if config.network.pool == "adaptive" and isinstance(self.network.out, nn.Linear):
                nn.Linear.reset_parameters(self.network.out)  # zeros, as a classifier starts with, have no direction
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @functools.cached_property
    def schedule(self) -> Schedule:
        return self.config.schedule.build()

    @property
    def text(self) -> Any:
        """The text encoder of a pair."""
        if self._frozen["text"] is None and self.config.text is not None:
            self.set_frozen(text=build_encoder(self.config.text, device=self.device))
        return self._frozen["text"]

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        outputs = self.network(x, time)
        return outputs if self.config.text is None else F.normalize(outputs, dim=-1)

    @property
    def inverse_temperature(self) -> Tensor:
        return self.log_scale.exp().clamp(max=WARMEST)

    def embed(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) of texts, of a pair."""
        return F.normalize(self.words(sent(self.text.encode(list(captions)).pooled, self.device)), dim=-1)

    def numbers(self, prompts: Sequence[str]) -> Tensor:
        """The classes (B,) that prompts name, by name or number, with an article before it or not."""
        return sent(torch.tensor([self.number(prompt) for prompt in prompts]), self.device)

    def number(self, prompt: str) -> int:
        """The class that a prompt names; a `UserError` names those that are near."""
        assert self.labels is not None
        with contextlib.suppress(UserError):
            return self.labels.number(prompt)
        try:
            return self.labels.number(ARTICLE.sub("", prompt.strip()))
        except UserError as error:
            raise UserError(f"the classifier {self.name}: {error}") from None

    # As a guide (`diptych.models.guides.Guide`).

    def bind(self, prompts: Sequence[str], space: Space) -> Score:
        """log p(class | x_t) of each prompt's class, or the similarity of x_t to its text over the temperature (B,)."""
        self.require_fits(space)
        self.to(space.device)
        with torch.no_grad():
            targets = self.embed(prompts) if self.config.text is not None else self.numbers(prompts)

        same = alike(space.schedule, self.schedule)

        def score(x: Tensor, t: Tensor) -> Tensor:
            self.require_size(x)
            if not same:
                x, t = translated(x, t, space.schedule, self.schedule)
            outputs = self(x, self.schedule.network_time(t).to(x))
            if self.config.text is not None:
                return self.inverse_temperature.detach() * (outputs * targets).sum(-1)
            return outputs.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)

        return score

    def require_fits(self, space: Space) -> None:
        """Raise a `UserError` unless a system's x_t is what this guide was trained on, as far as can be checked."""
        ours, theirs = self.config, (space.first_stage, space.scale)
        if (ours.scale is None) != (theirs[1] is None):
            what = "latents" if ours.scale is not None else "pixels"
            raise UserError(
                f"the guide {self.name} reads noisy {what}, which this model does not generate: train another"
            )
        same = None in (ours.first_stage, theirs[0]) or ours.first_stage == theirs[0]
        if ours.scale is not None and space.scale is not None:
            same = same and abs(math.log(ours.scale / space.scale)) < SCALES_AGREE
        if not same:
            raise UserError(
                f"the guide {self.name} reads latents of another first stage than the model's: train another"
            )

    def require_size(self, x: Tensor) -> None:
        size, channels = self.config.network.size, self.config.network.encoder.in_channels
        if x.shape[1] != channels or (size is not None and x.shape[-2:] != (size, size)):
            expected = f"{channels} x {size or 'any'} x {size or 'any'}"
            raise UserError(
                f"the guide {self.name} reads {expected}, and this model generates {' x '.join(map(str, x.shape[1:]))}"
            )

    # Files: config.json and network/.

    def save(self, folder: Path, dtype: str = "float32") -> None:
        """Write a folder that `NoisyGuide.load` opens."""
        folder = model_place(folder)
        save_weights(self.state_dict(), folder / "network", dtype=getattr(torch, dtype))
        write_text(folder / "config.json", self.config.to_json())

    @classmethod
    def load(cls, values: dict[str, Any], folder: Path, name: str | None = None) -> NoisyGuide:
        """Open a folder that `save` wrote, `values` being its config.json. A `UserError` names what is wrong there."""
        try:
            config = NoisyGuideConfig.from_dict(values)
        except UserError as error:
            raise UserError(f"{folder / 'config.json'}: {error}") from None
        with on_meta():  # shapes alone, until the files are known to have them
            module = cls(config, name=name or folder.name)
        load_module(module, folder / "network")
        return module.eval().requires_grad_(False)


def translated(x: Tensor, t: Tensor, schedule: Schedule, target: Schedule) -> tuple[Tensor, Tensor]:
    """x_t of one schedule as another has it at the same signal-to-noise ratio, and its time there."""
    alpha, sigma = schedule.alpha_sigma(t)
    t = target.inverse_log_snr(schedule.log_snr(t))
    norm = torch.stack(target.alpha_sigma(t)).square().sum(0).sqrt()  # (B,)
    factor = norm / (alpha**2 + sigma**2).sqrt()
    return x * factor.to(x).view(-1, *[1] * (x.ndim - 1)), t


def alike(one: Schedule, other: Schedule) -> bool:
    """Whether two schedules have the same noise at the same times, and the same time input of the network."""
    t = torch.linspace(0.02, 1, 50, dtype=torch.float64)
    same = [torch.allclose(a, b) for a, b in zip(one.alpha_sigma(t), other.alpha_sigma(t), strict=True)]
    return all(same) and torch.allclose(one.network_time(t), other.network_time(t))
