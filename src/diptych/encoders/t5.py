"""The encoder half of T5 (Raffel et al. 2020), v1.1 or of its shape: Imagen's reader of prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from diptych.core.errors import UserError, pick
from diptych.encoders.base import TextEmbedding
from diptych.encoders.frozen import FrozenText, FrozenTextConfig, frozen, named_folder, pretrained_config
from diptych.encoders.tokenizers import broken_tokenizers, load_tokenizer, require_ids, tokenize

T5_SHAPES = {
    "small": (512, 8, 6, 1024),
    "base": (768, 12, 12, 2048),
    "large": (1024, 24, 16, 2816),
    "xl": (2048, 24, 32, 5120),
    "xxl": (4096, 24, 64, 10240),
}
"""T5 v1.1 as published: width, layers, heads (of 64 each), width of the gated feed-forward."""


@dataclass(frozen=True, kw_only=True)
class T5Config(FrozenTextConfig):
    """A frozen T5 encoder; XXL in Imagen and DeepFloyd IF: 24 layers, 4,762,310,656 parameters."""

    kind: Literal["t5"] = "t5"
    """Which text encoder this is."""
    path: str | None = None
    """A folder with the model and its tokenizer, as transformers saves them; a whole T5 will do."""
    tokenizer: str | None = None
    """A folder with the tokenizer where it lies apart from the model (diffusers), or none."""
    width: int = 4096
    """Width of its tokens: v1.1 small 512, base 768, large 1024, XL 2048, XXL 4096."""
    max_tokens: int = 128
    """Longest prompt, in tokens, its closing token included."""
    padded: bool = False
    """Pad every prompt to `max_tokens` and let the network read the padding too (DeepFloyd IF); T5 itself masks it."""
    cleaning: Literal["lower"] | None = None
    """What is done to a prompt first. lower: lower case, ends stripped (DeepFloyd IF, but for what it strikes out of
    captions from the web: addresses, markup, file names, CJK characters, most brackets and signs); or nothing."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """In what it computes; auto: float32 on the CPU, bfloat16 on a GPU. float16 overflows in T5."""

    def check(self) -> None:
        self.require(self.width >= 1, "width", "be at least 1")
        self.require(self.max_tokens >= 2, "max_tokens", "be at least 2")

    def located(self) -> Path:
        """Where its files lie. A `UserError` where there are none."""
        return named_folder(self.path, "T5")

    def load_tokenizer(self):
        """As `FrozenTextConfig.load_tokenizer`."""
        return t5_tokenizer(self.located() if self.tokenizer is None else Path(self.tokenizer))

    def fitting(self) -> Callable[[str], str]:
        """As `FrozenTextConfig.fitting`; a prompt that is cut is cleaned before."""
        fit = super().fitting()

        def fit_cleaned(prompt: str) -> str:
            shorter = fit(cleaned := self.cleaned(prompt))
            return prompt if shorter == cleaned else shorter

        return fit_cleaned

    def cleaned(self, prompt: str) -> str:
        """What is done to a prompt first."""
        return prompt.lower().strip() if self.cleaning == "lower" else prompt

    def reader(self, folder: Path | None = None, device: str | torch.device = "cpu") -> T5:
        """As `build_reader`."""
        return T5(self, device)

    def counted(self) -> nn.Module:
        """As `text_network`; without a folder that of the published v1.1 of its width."""
        from transformers import T5Config as Shape
        from transformers import T5EncoderModel

        if self.path is not None:
            return T5EncoderModel(pretrained_config(Shape, self.located(), self.width))
        sizes = {width: size for size, (width, *_) in T5_SHAPES.items()}
        if self.width not in sizes:
            raise UserError(
                f"no published T5 v1.1 is {self.width} wide: set text.path, or one of {', '.join(map(str, sizes))}"
            )
        return T5EncoderModel(t5_shape(sizes[self.width]))


class T5(FrozenText):
    """The last layer's tokens of a T5 encoder; `pooled` is their mean."""

    def __init__(self, config: T5Config, device: str | torch.device = "cpu") -> None:
        from transformers import T5Config as Shape
        from transformers import T5EncoderModel

        folder = config.located()
        tokenizer = config.load_tokenizer()
        shape = pretrained_config(Shape, folder, config.width)
        require_ids(tokenizer, shape.vocab_size, folder if config.tokenizer is None else Path(config.tokenizer))

        def build() -> nn.Module:
            with torch.device("meta"):  # an XXL twice would not fit
                return T5EncoderModel(shape)

        dtype = compute_dtype(config, torch.device(device))
        model: Any = frozen(build, folder, dtype, tied=("shared.weight", "encoder.embed_tokens.weight"))
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
        with torch.autocast(self.device.type, enabled=False):
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
