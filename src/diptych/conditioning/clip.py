"""CLIP's text transformer as Stable Diffusion reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from diptych.conditioning.embedding import TextEmbedding
from diptych.conditioning.frozen import FrozenText, frozen, named_folder, pretrained_config
from diptych.conditioning.tokens import saved_tokenizer, token_ids
from diptych.config import Config
from diptych.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig(Config):
    """CLIP's text transformer, frozen; ViT-L/14 in Stable Diffusion 1.x: 12 layers, 123,060,480 parameters."""

    kind: Literal["clip"] = "clip"
    """Which text encoder this is."""
    path: str | None = None
    """A folder with the model and its tokenizer, as transformers saves them."""
    width: int = 768
    """Width of its tokens."""
    max_tokens: int = 77
    """Longest prompt; every prompt is padded to it, and the padding is read as well, as in Stable Diffusion."""

    def check(self) -> None:
        self.require(self.width >= 1, "width", "be at least 1")
        self.require(self.max_tokens >= 3, "max_tokens", "be at least 3")


class ClipText(FrozenText):
    """`last_hidden_state` of a CLIP text model over prompts padded to the maximum; nothing is masked."""

    def __init__(self, config: ClipTextConfig, device: str | torch.device = "cpu") -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        folder = named_folder(config.path, "CLIP text model")
        tokenizer, self.pad = saved_tokenizer(folder, "tokenizer.json", "vocab.json")
        shape = pretrained_config(CLIPTextConfig, folder, config.width)
        if shape.max_position_embeddings < config.max_tokens:
            raise UserError(f"{folder} reads {shape.max_position_embeddings} tokens: lower text.max_tokens")
        super().__init__(config, folder, frozen(CLIPTextModel(shape), folder).to(device), tokenizer)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        rows = token_ids(self.tokenizer, prompts, self.max_tokens)
        ids = torch.tensor([row + [self.pad] * (self.max_tokens - len(row)) for row in rows])  # (B, 77)
        with torch.autocast(self.device.type, enabled=False):
            output = self.model(input_ids=ids.to(self.device))
        sequence = output.last_hidden_state.float()  # (B, 77, 768)
        mask = torch.ones(sequence.shape[:2], dtype=torch.bool, device=sequence.device)
        return TextEmbedding(sequence, mask, output.pooler_output.float())
