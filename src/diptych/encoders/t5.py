"""The encoder half of T5 (Raffel et al. 2020), v1.1: the text encoder of Imagen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from diptych.core.errors import UserError, pick
from diptych.encoders.base import TextEmbedding
from diptych.encoders.configs import T5Config
from diptych.encoders.frozen import FrozenText, load_frozen, pretrained_config
from diptych.encoders.tokenizers import broken_tokenizers, load_tokenizer, require_ids, tokenize

T5_SHAPES = {
    "small": (512, 8, 6, 1024),
    "base": (768, 12, 12, 2048),
    "large": (1024, 24, 16, 2816),
    "xl": (2048, 24, 32, 5120),
    "xxl": (4096, 24, 64, 10240),
}
"""T5 v1.1 as published: width, layers, heads (of 64 each), width of the gated feed-forward."""


class T5(FrozenText):
    """The last layer's tokens of a T5 encoder; `pooled` is their mean."""

    def __init__(self, config: T5Config, device: str | torch.device = "cpu") -> None:
        from transformers import T5Config as Shape
        from transformers import T5EncoderModel

        folder = config.folder()
        tokenizer = config.load_tokenizer()
        shape = pretrained_config(Shape, folder, config.width)
        require_ids(tokenizer, shape.vocab_size, folder if config.tokenizer is None else Path(config.tokenizer))
        dtype, tied = compute_dtype(config, torch.device(device)), ("shared.weight", "encoder.embed_tokens.weight")
        model: Any = load_frozen(lambda: T5EncoderModel(shape), folder, dtype, tied)
        model.set_input_embeddings(model.shared)  # one tensor again, wherever it moves
        super().__init__(config, folder, model.to(device), tokenizer)

    def encode(self, prompts: list[str]) -> TextEmbedding:
        if compute_dtype(self.config, self.device) == torch.bfloat16:  # moved to a GPU since it was built
            self.model.to(torch.bfloat16)
        prompts = [self.config.cleaned(prompt) for prompt in prompts]
        return self.encode_padded(prompts) if self.config.padded else super().encode(prompts)

    @torch.no_grad()
    def encode_padded(self, prompts: list[str]) -> TextEmbedding:
        """As many tokens for every prompt, (B, max_tokens, width), none of them masked; padding is not zero."""
        ids, mask = tokenize(self.tokenizer, prompts, self.max_tokens, self.device)
        behind = (0, self.max_tokens - ids.shape[1])
        ids, mask = F.pad(ids, behind), F.pad(mask, behind)  # 0 is the padding of every T5
        with self.precision():
            hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return TextEmbedding.from_sequence(hidden.float(), torch.ones_like(mask))


def compute_dtype(config: T5Config, device: torch.device) -> torch.dtype:
    """In what the encoder computes on a device."""
    name = {"cuda": "bfloat16"}.get(device.type, "float32") if config.dtype == "auto" else config.dtype
    return getattr(torch, name)


def t5_shape(size: str):
    """The transformers config of a published T5 v1.1, by its name in `T5_SHAPES`."""
    from transformers import T5Config as Shape

    width, layers, heads, feed_forward = T5_SHAPES[pick("size of T5", size, T5_SHAPES)]
    return Shape(
        vocab_size=32128,
        d_model=width,
        d_kv=64,
        d_ff=feed_forward,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
    )


def t5_network(folder: Path | None, width: int) -> nn.Module:
    """A T5 encoder in the shapes of the config.json in a folder, or of the published v1.1 of this width, with random
    weights."""
    from transformers import T5Config as Shape
    from transformers import T5EncoderModel

    if folder is not None:
        return T5EncoderModel(pretrained_config(Shape, folder, width))
    sizes = {width: size for size, (width, *_) in T5_SHAPES.items()}
    if width not in sizes:
        raise UserError(f"no published T5 v1.1 is {width} wide: set text.path, or one of {', '.join(map(str, sizes))}")
    return T5EncoderModel(t5_shape(sizes[width]))


def t5_tokenizer(folder: Path):
    """The tokenizer in a folder, of the tokenizers library: from tokenizer.json, or else from spiece.model."""
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder / "tokenizer.json")
    path = folder / "spiece.model"
    if not path.is_file():
        raise UserError(f"no tokenizer in {folder}: it needs tokenizer.json or spiece.model")
    from transformers import T5Tokenizer
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

    model = sentencepiece.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    with broken_tokenizers(f"{path} is not a SentencePiece model"):
        model.ParseFromString(path.read_bytes())
        pieces = [(piece.piece, piece.score) for piece in model.pieces]
        normalizer = model.normalizer_spec.precompiled_charsmap or None
        return T5Tokenizer(pieces, _spm_precompiled_charsmap=normalizer).backend_tokenizer
