"""Some prompts and their embeddings, in memory and as two files: `text.safetensors` (the tokens of all, end to end) and
`captions.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diptych.core.config import read_json
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.encoders.base import TextEmbedding
from diptych.weights.files import load_metadata, load_safetensors
from diptych.weights.save import save_safetensors


def read_precomputed(path: Path) -> Any:
    """What a JSON file of the folder holds; a `UserError` that says how to make it again where it is damaged."""
    again = f"{path} is missing or damaged: make it again with `diptych precompute`"
    return read_json(path, again, again)


class CachePart(NamedTuple):
    """Some prompts and their embeddings, in half precision where they fit and on the CPU."""

    prompts: list[str]
    tokens: Tensor  # (tokens of all prompts, width)
    ends: list[int]  # where each prompt's tokens end
    pooled: Tensor | None  # (prompts, width), or none where it is the tokens' mean

    def row(self, index: int) -> Tensor:
        """The tokens (L, width) of one prompt."""
        return self.tokens[self.ends[index - 1] if index else 0 : self.ends[index]]

    @classmethod
    def of(cls, prompts: list[str], embedding: TextEmbedding) -> CachePart:
        """Round an embedding of these prompts."""
        mean = TextEmbedding.from_sequence(embedding.sequence, embedding.mask).pooled
        tokens, pooled = half(embedding.sequence[embedding.mask]), half(embedding.pooled)
        return cls(
            prompts, tokens, ends(embedding.mask.sum(1)), None if torch.equal(mean, embedding.pooled) else pooled
        )

    @classmethod
    @torch.autocast("cpu", enabled=False)  # which joins no tensors in float16
    def join(cls, parts: Iterable[CachePart]) -> CachePart:
        """All their prompts, in order."""
        parts = list(parts)
        lengths = torch.tensor([len(part.row(i)) for part in parts for i in range(len(part.prompts))])
        has_pooled = any(part.pooled is not None for part in parts)
        pooled = (
            torch.cat([part.means() if part.pooled is None else part.pooled for part in parts]) if has_pooled else None
        )
        prompts = [prompt for part in parts for prompt in part.prompts]
        return cls(prompts, torch.cat([part.tokens for part in parts]), ends(lengths), pooled)

    @torch.autocast("cpu", enabled=False)
    def means(self) -> Tensor:
        return half(torch.stack([self.row(i).float().mean(0) for i in range(len(self.prompts))]))

    def save(self, folder: Path, encoder: str) -> None:
        """Write the two files; `encoder` is the fingerprint of the encoder."""
        tensors = {"tokens": self.tokens, "lengths": torch.tensor(self.ends).diff(prepend=torch.tensor([0]))}
        if self.pooled is not None:
            tensors["pooled"] = self.pooled
        stated = {"encoder": encoder, "content": digest(self.prompts, tensors)}
        save_safetensors(tensors, folder / "text.safetensors", stated)
        write_text(folder / "captions.json", json.dumps(self.prompts))

    @classmethod
    def load(cls, folder: Path, width: int) -> CachePart:
        """Read what `save` wrote, or raise a `UserError` where it is not that any more. The tokens stay on disk until
        they are asked for."""
        path = folder / "text.safetensors"
        tensors, prompts = load_safetensors(path, check_finite=False), read_precomputed(folder / "captions.json")
        tokens, lengths, pooled = (tensors.get(key) for key in ("tokens", "lengths", "pooled"))
        fits = tokens is not None and lengths is not None and tokens.ndim == 2 and tokens.shape[1] == width
        fits = fits and len(prompts) == len(lengths) and int(lengths.sum()) == len(tokens)  # type: ignore[arg-type]
        if not fits or (pooled is not None and pooled.shape != (len(prompts), width)):
            raise UserError(f"{path} does not fit captions or text encoder: make it again with `diptych precompute`")
        if load_metadata(path).get("content", expected := digest(prompts, tensors)) != expected:
            raise UserError(f"{path} does not hold what was written: make it again with `diptych precompute`")
        return cls(prompts, tokens, ends(lengths), pooled)  # type: ignore[arg-type]


def digest(prompts: list[str], tensors: Mapping[str, Tensor]) -> str:
    """A hash of prompts, tensors and their names."""
    made = hashlib.sha256(json.dumps(prompts).encode())
    for name, tensor in sorted(tensors.items()):
        made.update(name.encode())
        made.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return made.hexdigest()


def half(tensor: Tensor) -> Tensor:
    """On the CPU in float16, or as it is where that would overflow."""
    tensor = tensor.detach().cpu()
    if not torch.isfinite(tensor).all():
        raise UserError("the text encoder gives NaN or Inf: its weights are not usable")
    rounded = tensor.half()
    return rounded if torch.isfinite(rounded).all() else tensor.float()


def ends(lengths: Tensor) -> list[int]:
    return lengths.cumsum(0).tolist()
