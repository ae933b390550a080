"""Tiny pretrained text encoders with random weights, in folders as transformers saves them."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch

WORDS = ("cat", "dog", "red", "blue", "two", "house", "apple")
PROMPTS = ["a red apple", "", "two cats left of a house, and a dog", "Ein Bär — größer!"]


def shaken(kind: Any, shape: Any, seed: int = 0) -> Any:
    """Random numbers in every weight, norms and biases too, so that no key can be mixed up unseen."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = kind(shape)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def t5_pieces() -> list[tuple[str, float]]:
    """A Unigram vocabulary as SentencePiece has it: three special pieces, words, letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -4.0) for word in WORDS] + [(word, -5.0) for word in WORDS]
    return pieces + [(letter, -6.0) for letter in string.ascii_letters + ",.!äö"]


def t5_model(seed: int = 0, **changes: Any) -> Any:
    """A whole T5 v1.1 in miniature: gated gelu, untied head, decoder and all."""
    from transformers import T5Config, T5ForConditionalGeneration

    values = {"d_model": 24, "d_kv": 4, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 3}
    values |= {"vocab_size": 200, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8}
    return shaken(T5ForConditionalGeneration, T5Config(**{**values, **changes}), seed)


def t5_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    from transformers import T5Tokenizer

    t5_model(seed, **changes).save_pretrained(folder)
    T5Tokenizer(t5_pieces()).save_pretrained(folder)
    return folder


def write_spiece(path: Path) -> None:
    """The same vocabulary as a SentencePiece model."""
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

    model = sentencepiece.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    for piece, score in t5_pieces():
        model.pieces.add(piece=piece, score=score)
    path.write_bytes(model.SerializeToString())


def bert_folder(folder: Path) -> Path:
    """A BERT with a head for masked words, so that its file has more than the encoder and names it `bert.`"""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [*string.ascii_lowercase, *",.!—", *(f"##{letter}" for letter in string.ascii_lowercase)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters]
    shape = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=40,
    )
    shaken(BertForMaskedLM, shape).save_pretrained(folder)
    BertTokenizer({token: i for i, token in enumerate(vocabulary)}).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return folder


def clip_folder(folder: Path) -> Path:
    """A whole CLIP in miniature, as transformers saves it."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = [letter for one in "abcdefghijklmnopqrstuvwxyz" for letter in (one, one + "</w>")]
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate([*letters, *special])}
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **small,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 24,
        "bos_token_id": 52,
        "eos_token_id": 53,
    }
    vision = {**small, "image_size": 16, "patch_size": 4}
    shape = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    shaken(CLIPModel, shape).save_pretrained(folder)
    CLIPTokenizer(vocabulary, []).save_pretrained(folder)
    return folder
