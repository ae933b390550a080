"""How well an image fits a text: the cosine of both in the space of the judge, or of a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diptych.core.devices import find_device
from diptych.core.errors import UserError
from diptych.core.images import to_tensor
from diptych.models.judge import Judge
from diptych.models.pair_guide import ClipPair, PairGuide
from diptych.pretrained.load_guide import JUDGE, open_guide


@dataclass(frozen=True)
class TextImageScorer:
    """An opened pair of encoders and what it is."""

    pair: Judge | ClipPair
    facts: dict[str, Any]
    """Source, hash and how images are resized, for reports: scores are comparable only where these are equal."""

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str], batch: int = 64) -> Tensor:
        """Unit vectors (P, D) of prompts, on the CPU. What is beyond CLIP's limit is cut, as CLIP itself does."""
        prompts = [self.readable(prompt) for prompt in prompts]
        parts = [self.pair.embed_captions(prompts[i : i + batch]).float().cpu() for i in range(0, len(prompts), batch)]
        return torch.cat(parts)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors (N, D) of images of one size, on the CPU."""
        return self.pair.embed_images(to_tensor(images).to(self.pair.scale.device)).float().cpu()

    def readable(self, prompt: str) -> str:
        """A prompt as the pair reads it: cut where it is beyond its limit."""
        if not isinstance(self.pair, ClipPair):
            return prompt
        from diptych.encoders.tokenizers import truncated

        return truncated(self.pair.tokenizer, prompt, self.pair.longest)


def open_scorer(source: str = JUDGE, device: str = "auto", **opening: Any) -> TextImageScorer:
    """The judge of the package ("judge"), another one's folder, or a CLIP: a folder of transformers, or its hub id.

    Raises a `UserError` for what is none of these.
    """
    try:
        guide = open_guide(source, **opening)
    except UserError as error:
        raise UserError(f"the scorer: {error}") from None
    if not isinstance(guide, PairGuide):
        raise UserError(f"{source} does not compare images and texts: name judge, a judge's folder, or a CLIP")
    pair = guide.pair.to(find_device(device)).eval()
    origin: Any = getattr(guide, "origin", None)
    facts: dict[str, Any] = {"source": source if source == JUDGE else Path(source).name, "sha256": origin.sha256}
    if isinstance(pair, ClipPair):
        resize = f"antialiased bicubic to {pair.side} x {pair.side}"
    else:
        resize = f"antialiased bilinear to {pair.config.size} x {pair.config.size}"
    return TextImageScorer(pair, facts | {"resize": resize, "score": "100 x cosine"})
