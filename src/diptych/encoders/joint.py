"""The text encoder that learns with the U-Net (Rombach et al. 2022, equations 18-24), and how its tokenizer is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diptych.core.errors import UserError
from diptych.encoders.base import TextEmbedding
from diptych.encoders.configs import JointTransformerConfig
from diptych.encoders.tokenizers import bert_tokenizer, load_tokenizer, tokenize, truncated
from diptych.networks.transformer import TextTransformer
from diptych.weights.lazy import load_module


class JointTransformer(nn.Module):
    """A tokenizer and a transformer that the U-Net's loss trains: `encode` is differentiable."""

    def __init__(self, config: JointTransformerConfig, tokenizer=None) -> None:
        super().__init__()
        self.config = config
        self.width, self.max_tokens = config.width, config.network.max_tokens
        self.network = TextTransformer(config.network)
        self.tokenizer = tokenizer
        if tokenizer is None and config.tokenizer is not None:
            path = Path(config.tokenizer)
            self.tokenizer = bert_tokenizer(path) if path.is_dir() else load_tokenizer(path)
        if self.tokenizer is not None and self.tokenizer.get_vocab_size() > config.network.vocabulary:
            raise UserError(
                f"the tokenizer has {self.tokenizer.get_vocab_size()} tokens, "
                f"more than text.network.vocabulary ({config.network.vocabulary})"
            )

    def fit(self, prompt: str) -> str:
        """The prompt, cut after the last whole word within `max_tokens`."""
        return prompt if self.tokenizer is None else truncated(self.tokenizer, prompt, self.max_tokens)

    def encode(self, prompts: list[str]) -> TextEmbedding:
        if self.tokenizer is None:
            raise UserError("this text encoder has no tokenizer yet: train one on captions, or name a tokenizer.json")
        ids, mask = tokenize(self.tokenizer, prompts, self.max_tokens, self.network.position.device)
        if self.config.padded:
            more = (0, self.max_tokens - ids.shape[1])
            ids, real = nn.functional.pad(ids, more), nn.functional.pad(mask, more)  # [PAD] is number 0, as in BERT
            sequence = self.network(ids, real if self.config.network.padding else None)
            mask = torch.ones_like(real)
        else:
            sequence = self.network(ids, mask)
        embedding = TextEmbedding.from_sequence(sequence.float(), mask)
        if self.config.pooled == "mean":
            return embedding
        rows, last = torch.arange(len(mask), device=mask.device), mask.sum(1) - 1
        return embedding._replace(pooled=embedding.sequence[rows, last])

    @property
    def own_pooled(self) -> bool:
        """Whether the pooled embedding is not the mean of the tokens."""
        return self.config.pooled != "mean"

    def save(self, folder: Path) -> None:
        """Write the tokenizer; the weights belong to the system's own state."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))  # type: ignore[union-attr]


def load_joint(config: JointTransformerConfig, folder: Path | None) -> JointTransformer:
    """The encoder with tokenizer and weights from a folder, or with random weights where that is none."""
    if folder is None:
        return JointTransformer(config)
    encoder = JointTransformer(config, load_tokenizer(folder / "tokenizer.json"))
    load_module(encoder, folder)
    return encoder


def joint_from_captions(
    config: JointTransformerConfig, captions: Callable[..., list[str]], tokenizer: Any = None
) -> JointTransformer:
    """An encoder with random weights and the given tokenizer, the one that the config names, or one trained on the
    captions of the training split, `captions("train")`."""
    if tokenizer is None and config.tokenizer is None:
        tokenizer = train_tokenizer(captions("train"), config.network.vocabulary)
    return JointTransformer(config, tokenizer)


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


LONGEST_WORD = 100
"""Letters of a word beyond which WordPiece reads it as unknown."""


def without_endless_words(caption: str) -> str:
    """A caption without words that no WordPiece reads: the time to learn from one grows with its length squared."""
    if len(caption) <= LONGEST_WORD or all(len(word) <= LONGEST_WORD for word in caption.split()):
        return caption
    return " ".join(word for word in caption.split() if len(word) <= LONGEST_WORD)


def train_tokenizer(captions: Iterable[str], vocabulary: int):
    """A lower-casing WordPiece tokenizer (as BERT's) of at most `vocabulary` tokens, learned from captions.

    The same captions give the same tokenizer in every process: a run that goes on trains it again.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    captions = [without_endless_words(caption) for caption in captions]
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
        # number; special tokens keep their order.
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
