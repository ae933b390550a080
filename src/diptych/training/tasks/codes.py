"""Training a transformer over the codes of a first stage: the likelihood of each code after those before it (Esser et
al. 2021, equation 9)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.config import Config
from diptych.core.counter_random import draws_of
from diptych.core.images import grid
from diptych.core.random import DROP
from diptych.networks.code_transformer import CodeTransformer
from diptych.training.tasks.from_captions import generated_from_captions
from diptych.training.trainable import Generated


class Writing(Protocol):
    """A system that can be trained by `CodesTask`."""

    transformer: CodeTransformer
    config: Any

    def prepare(self, batch: dict[str, Any], dropped: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Codes (B, length) and the transformer's other arguments; dropped (B,) bool marks captions to leave out."""
        ...

    def generate(self, prompts: list[str], *, seeds: list[int]) -> Any: ...

    def save(self, folder: Path, dtype: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class CodesTraining(Config):
    """What is particular to training a transformer over codes."""

    caption_dropout: float = 0.1
    """Share of the captions replaced by the empty one, for classifier-free guidance (Ho & Salimans 2022)."""
    prompts: tuple[str, ...] = ()
    """Fixed prompts of the sample grid; none for no grid."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the finished model's matrices are stored."""

    def check(self) -> None:
        self.require(0 <= self.caption_dropout < 1, "caption_dropout", "lie between 0 and 1, 1 left out")


class CodesTask:
    """The `Trainable` of a transformer over codes. The loss of an image is the mean over its codes, in nats."""

    def __init__(self, system: Writing, config: CodesTraining) -> None:
        assert isinstance(system, nn.Module)
        self.system, self.config, self.module = system, config, system

    def start(self, batch: dict[str, Any]) -> None:
        """Nothing to prepare."""

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        losses, right = self._losses(batch, draws_of(batch).host.uniform(DROP) < self.config.caption_dropout)
        return losses, {"accuracy": right.mean()}

    def _losses(self, batch: dict[str, Any], dropped: Tensor) -> tuple[Tensor, Tensor]:
        """Nats per code (B,), and the share of the codes that were held most likely (B,)."""
        codes, cond = self.system.prepare(batch, dropped)
        logits = self.system.transformer(codes[:, :-1], **cond)  # (B, length, V): the last code predicts nothing
        losses = F.cross_entropy(logits.float().transpose(1, 2), codes, reduction="none").mean(1)
        return losses, (logits.detach().argmax(2) == codes).float().mean(1)

    @torch.no_grad()
    def validation(self, batch: dict[str, Any]) -> dict[str, float]:
        """Nats per code, and the share of the codes that were held most likely, no caption left out."""
        losses, right = self._losses(batch, torch.zeros(len(batch["seed"]), dtype=torch.bool))
        return {"nats_per_code": losses.mean().item(), "accuracy": right.mean().item()}

    def samples(self) -> Image.Image | None:
        """Images of the fixed prompts."""
        if not self.config.prompts:
            return None
        was_training, prompts = self.module.training, list(self.config.prompts)
        self.module.eval()
        try:
            images = self.system.generate(prompts, seeds=list(range(len(prompts)))).images
        finally:
            self.module.train(was_training)
        return grid(images, columns=min(len(images), 8))

    @torch.no_grad()
    def generated(self, batch: dict[str, Any], seeds: list[int]) -> Generated:
        """Images of the captions of a batch, beside its own."""
        return generated_from_captions(self.system, batch, seeds)

    def save(self, folder: Path) -> None:
        self.system.save(folder, self.config.save_dtype)
