"""From prompts to token ids, and the tokenizers that models come with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.errors import UserError


def token_ids(tokenizer, prompts: list[str], max_tokens: int) -> list[list[int]]:
    """The ids of each prompt, opening and closing token included. A `UserError` shows what does not fit."""
    rows = []
    for prompt in prompts:
        encoding = encoded(tokenizer, prompt)
        if len(encoding.ids) > max_tokens:
            word = encoding.token_to_word(max_tokens - 1)  # one place is the closing token's
            start = encoding.offsets[max_tokens - 1][0] if word is None else encoding.word_to_chars(word)[0]
            raise UserError(
                f"the prompt has {len(encoding.ids)} tokens and this model reads {max_tokens}: "
                f"shorten it, what does not fit begins at {prompt[start:].lstrip()[:40]!r}"
            )
        rows.append(encoding.ids)
    return rows


def encoded(tokenizer, prompt: str) -> Any:
    """A prompt's tokens, as the tokenizers library gives them."""
    try:
        return tokenizer.encode(prompt)
    except TypeError:  # half of a surrogate pair: bytes that were no UTF-8
        raise UserError(f"the prompt {ascii(prompt)[:60]} is not valid Unicode text") from None


def tokenize(tokenizer, prompts: list[str], max_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) and mask (B, L), padded to the longest prompt. Raises as `token_ids` does."""
    rows = [torch.tensor(row) for row in token_ids(tokenizer, prompts, max_tokens)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)


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


def saved_tokenizer(folder: Path, *files: str):
    """The tokenizer that transformers saved in a folder, from one of `files`, and the id that it pads with."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in files):
        raise UserError(f"no tokenizer in {folder}: it needs {' or '.join(files)}")
    try:
        saved = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer, pad = saved.backend_tokenizer, int(saved.pad_token_id)
    except Exception as error:  # of many kinds: whatever a broken vocabulary leads to
        raise UserError(f"the tokenizer in {folder} cannot be read ({type(error).__name__})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, pad


def bert_tokenizer(folder: Path):
    """BERT's tokenizer in a folder with its tokenizer.json, or with the list of its tokens alone, vocab.txt."""
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder / "tokenizer.json")
    if (folder / "tokenizer_config.json").is_file():
        return saved_tokenizer(folder, "vocab.txt")[0]
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    path = folder / "vocab.txt"
    if not path.is_file():
        raise UserError(f"no tokenizer in {folder}: it needs tokenizer.json or vocab.txt")
    try:
        return Tokenizer.from_str(BertWordPieceTokenizer(str(path), lowercase=True).to_str())
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is not the vocabulary of a BERT: {error}") from None
