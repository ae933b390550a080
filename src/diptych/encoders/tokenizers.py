"""From prompts to token ids, and reading the tokenizers of published models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diptych.core.config import read_json
from diptych.core.devices import sent
from diptych.core.errors import UserError

TOKENIZER_CLASSES = {
    "CLIPTokenizer": "CLIPTokenizer",
    "CLIPTokenizerFast": "CLIPTokenizer",
    "BertTokenizer": "BertTokenizer",
    "BertTokenizerFast": "BertTokenizer",
    "PreTrainedTokenizerFast": "PreTrainedTokenizerFast",
    "TokenizersBackend": "PreTrainedTokenizerFast",
}
"""The classes that a tokenizer_config.json may name, and the class of transformers that reads each."""


def token_ids(tokenizer, prompts: list[str], max_tokens: int) -> list[list[int]]:
    """The ids of each prompt, opening and closing token included. A `UserError` quotes the text beyond the limit."""
    rows = []
    for prompt in prompts:
        encoding = encode_text(tokenizer, prompt)
        if len(encoding.ids) > max_tokens:
            word = encoding.token_to_word(max_tokens - 1)  # one place is the closing token's
            start = encoding.offsets[max_tokens - 1][0] if word is None else encoding.word_to_chars(word)[0]
            raise UserError(
                f"the prompt has {len(encoding.ids)} tokens and this model reads {max_tokens}: "
                f"shorten it, what does not fit begins at {prompt[start:].lstrip()[:40]!r}"
            )
        rows.append(encoding.ids)
    return rows


def encode_text(tokenizer, prompt: str) -> Any:
    """A prompt's tokens, as the tokenizers library gives them."""
    try:
        return tokenizer.encode(prompt)
    except TypeError:  # half of a surrogate pair: bytes that were no UTF-8
        raise UserError(f"the prompt {ascii(prompt)[:60]} is not valid Unicode text") from None
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exception, for a token that it has no number for
        raise UserError(f"the tokenizer cannot read the prompt {ascii(prompt)[:60]}: {first_line(error)}") from None


def chunk_ends(tokenizer, text: str, max_tokens: int) -> Iterator[int]:
    """The ends of the chunks of a text that each have at most `max_tokens`, between words where possible."""
    start = 0
    while True:
        rest = encode_text(tokenizer, text[start:])
        if len(rest.ids) <= max_tokens:
            yield len(text)
            return
        last = max_tokens - 1  # one place is the closing token's
        word = rest.token_to_word(last)
        stop = rest.offsets[last][0] if word is None else rest.word_to_chars(word)[0]
        start += stop or max(1, rest.offsets[last][0])
        yield start


def truncated(tokenizer, text: str, max_tokens: int) -> str:
    """A text cut after the last whole word within `max_tokens`, opening and closing token included; of a single word
    that is too long, its beginning."""
    while (end := next(chunk_ends(tokenizer, text, max_tokens))) < len(text):
        text = text[:end].rstrip()
    return text


def tokenize(tokenizer, prompts: list[str], max_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) and mask (B, L), padded to the longest prompt. Raises as `token_ids` does."""
    rows = [torch.tensor(row) for row in token_ids(tokenizer, prompts, max_tokens)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return sent(ids, device), sent(torch.arange(ids.shape[1]) < lengths[:, None], device)


@contextlib.contextmanager
def broken_tokenizers(message: str) -> Iterator[None]:
    """Within, whatever a tokenizers library raises is a `UserError` of this message and the reason.

    They raise errors of many kinds, and what panics in their Rust is no `Exception`.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, UserError):
        raise
    except BaseException as error:
        raise UserError(f"{message} ({first_line(error)})") from None


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}".removesuffix(": ")


def load_tokenizer(path: Path):
    """Read a tokenizer.json of the tokenizers library."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise UserError(f"no tokenizer at {path}")
    with broken_tokenizers(f"{path} is not a tokenizer.json"):
        tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def saved_tokenizer(folder: Path, *files: str, usual: Literal["CLIPTokenizer", "BertTokenizer"] = "CLIPTokenizer"):
    """The tokenizer that transformers saved in a folder, from one of `files`, and the id that it pads with.

    It is of the class that its tokenizer_config.json names, `usual` where that names none. A class that is not among
    `TOKENIZER_CLASSES`, and code that comes with the folder, raise a `UserError`: nothing in it is ever run or asked
    about.
    """
    import transformers

    if not any((folder / name).is_file() for name in files):
        raise UserError(f"no tokenizer in {folder}: it needs {' or '.join(files)}")
    path = folder / "tokenizer_config.json"
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a JSON object; get or make it again")
    require_no_code(values, path)
    class_name = usual if values.get("tokenizer_class") is None else values["tokenizer_class"]
    if not isinstance(class_name, str) or class_name not in TOKENIZER_CLASSES:
        supported = ", ".join(TOKENIZER_CLASSES)
        raise UserError(f"{path}: tokenizer_class {class_name!r} is none that diptych reads: {supported}")
    family: Any = getattr(transformers, TOKENIZER_CLASSES[class_name])
    with broken_tokenizers(f"the tokenizer in {folder} cannot be read"):
        saved = family.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer, pad = saved.backend_tokenizer, int(saved.pad_token_id)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, pad


def require_no_code(values: dict[str, Any], path: Path | str) -> None:
    """Raise a `UserError` for a config that asks for classes out of its own folder or from the hub."""
    if values.get("auto_map"):
        raise UserError(f"{path}: auto_map asks for code that comes with the model, which diptych never runs")


def require_ids(tokenizer: Any, vocabulary: int, folder: Path, pad: int = 0) -> None:
    """Raise a `UserError` where a tokenizer gives ids beyond a text model's `vocabulary` of so many tokens."""
    with broken_tokenizers(f"the tokenizer in {folder} cannot be read"):
        largest = max([*tokenizer.get_vocab().values(), *tokenizer.encode("").ids, pad])
    if largest >= vocabulary or pad < 0:
        raise UserError(
            f"the tokenizer in {folder} knows {max(largest + 1, tokenizer.get_vocab_size()):,} tokens, and its text "
            f"model {vocabulary:,}: it is another model's"
        )


def bert_tokenizer(folder: Path):
    """BERT's tokenizer in a folder with its tokenizer.json, or with the list of its tokens alone, vocab.txt."""
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder / "tokenizer.json")
    if (folder / "tokenizer_config.json").is_file():
        return saved_tokenizer(folder, "vocab.txt", usual="BertTokenizer")[0]
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    path = folder / "vocab.txt"
    if not path.is_file():
        raise UserError(f"no tokenizer in {folder}: it needs tokenizer.json or vocab.txt")
    with broken_tokenizers(f"{path} is not the vocabulary of a BERT"):
        return Tokenizer.from_str(BertWordPieceTokenizer(str(path), lowercase=True).to_str())
