"""Encoding prompts with weighted words, prompts beyond the encoder's limit, and warnings of unknown words.

Weights are written as in the web UIs of Stable Diffusion: `(word)` is 1.1 times as strong and `[word]` 1.1 times less,
nested brackets multiply, `(word:1.3)` states the factor, and a backslash makes a bracket a letter. They multiply the
encoder's tokens (`apply_weights`). A prompt beyond the limit is encoded in chunks, whose tokens are concatenated.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from diptych.core.devices import sent
from diptych.core.errors import UserError, warn
from diptych.core.values import short_repr
from diptych.encoders.base import PromptOptions, TextEmbedding
from diptych.encoders.tokenizers import chunk_ends, encode_text

if TYPE_CHECKING:
    from diptych.encoders.prompt_domain import PromptDomain

STRONGER = 1.1
"""The factor of a pair of brackets that names none."""
MOST_WEIGHT = 10.0
"""The largest weight of a word; more is taken for a typing error."""
MARK = re.compile(r"\\[()\[\]\\]|[(\[)\]]|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[^\\()\[\]:]+|.", re.DOTALL)
BREAK = re.compile(r"\s*\bBREAK\b\s*")
"""Where a prompt that is encoded in chunks begins another."""
LITERAL = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>|\bAND\b|\bBREAK\b|\[[^\[\]]*[:|][^\[\]]*\]")
"""Syntax of web UIs that diptych does not support; BREAK where prompts are not encoded in chunks."""
WEIGHING = re.compile(r"(?<!\\)\([^()]+(?<!\\)\)|(?<!\\)\[[^\[\]]+(?<!\\)\]")
SILENT = {"Mn", "Me", "Cf", "Cc", "Cn", "Zs", "Zl", "Zp"}
"""Unicode categories that may be lost without a warning: accents, joiners, spaces."""
Part = list[tuple[str, float]]
"""Consecutive texts, and the weight of each."""


class Prompts(Protocol):
    """A request with its options of encoding prompts, and notes on them for the metadata."""

    @property
    def reading(self) -> PromptOptions: ...
    @property
    def notes(self) -> dict[str, dict[str, Any]]:
        """By prompt: words unknown to the encoder, the text cut off, the likeness to training prompts."""
        ...


def encode_prompts(encoder: Any, prompts: Sequence[str], request: Prompts, domain: PromptDomain | None = None) -> Any:
    """The embeddings of prompts (B) by an encoder of text, classes or layouts, with the options of `request`.

    A prompt that occurs several times, as for several seeds, is encoded once. Warns of unknown words and of prompts far
    from the training prompts (`domain`), and records them in `request.notes`.
    Raises a `UserError` for a prompt beyond the limit where the option is "refuse".
    """
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    embedding = encode_distinct(encoder, list(places), request, domain)
    if len(places) == len(prompts):
        return embedding
    rows = torch.tensor([places[prompt] for prompt in prompts])
    repeated = (value[sent(rows, value.device)] if isinstance(value, Tensor) else value for value in embedding)
    return type(embedding)(*repeated)


def encode_distinct(encoder: Any, prompts: list[str], request: Prompts, domain: PromptDomain | None) -> Any:
    """As `encode_prompts`, of prompts that each occur once."""
    tokenizer, chosen = getattr(encoder, "tokenizer", None), request.reading
    if tokenizer is None:
        if chosen.weights or chosen.long != "refuse":
            raise UserError("weights and long_prompts are for models with a text encoder, which this model has not")
        return encoder.encode(prompts)
    parts = [list(parts_of(encoder, prompt, request)) for prompt in prompts]
    if all(len(each) == 1 and each[0][0][1] == 1 and len(each[0]) == 1 for each in parts):
        embedding = encoder.encode([each[0][0][0] for each in parts])
    else:
        embedding = pad_rows([concat_parts(encoder, each) for each in parts], has_pooled(encoder))
    if domain is not None and domain.encoder == encoder_name(encoder):
        plain = ["".join(text for part in each for text, _ in part) for each in parts]
        for prompt, likeness in zip(prompts, domain.likeness(plain, embedding.pooled).tolist(), strict=True):
            if prompt and likeness < domain.least:
                warn(f"{short_repr(prompt)} is far from all that this model was trained on: do not expect to see it")
                request.notes.setdefault(prompt, {})["likeness"] = round(likeness, 3)
    return embedding


def encoder_name(encoder: Any) -> str | None:
    """The encoder's fingerprint, if it has one."""
    return getattr(encoder, "fingerprint", None)


def pad_rows(rows: Sequence[tuple[Tensor, Tensor]], own_pooled: bool) -> TextEmbedding:
    """One embedding of each prompt's tokens (L, width) and pooled embedding (width), padded to the longest."""
    sequence = nn.utils.rnn.pad_sequence([row for row, _ in rows], batch_first=True)  # (B, L, width)
    lengths = torch.tensor([len(row) for row, _ in rows], device=sequence.device)
    mask = torch.arange(sequence.shape[1], device=sequence.device) < lengths[:, None]
    embedding = TextEmbedding.from_sequence(sequence, mask)
    return embedding._replace(pooled=torch.stack([pooled for _, pooled in rows])) if own_pooled else embedding


def parts_of(encoder: Any, prompt: str, request: Prompts) -> Iterator[Part]:
    """The chunks of a prompt, each within the encoder's limit: one unless it is too long with the option "chunks"."""
    chosen = request.reading
    runs = parse_weights(prompt) if chosen.weights else [(prompt, 1.0)]
    if marks := unsupported_syntax(prompt, request):
        warn(f"{' and '.join(map(short_repr, marks))} in a prompt is read as letters: {'; '.join(map(advice, marks))}")
    text = "".join(run for run, _ in runs)
    note = request.notes.setdefault(prompt, {})
    if unread := unknown_words(encoder.tokenizer, text):
        warn(f"the text encoder cannot read {', '.join(map(short_repr, unread[:8]))}: the image does not follow it")
        note["unread"] = unread
    sections = split_sections(runs) if chosen.long == "chunks" else [runs]
    for number, section in enumerate(sections):
        text = "".join(run for run, _ in section)
        stops = list(chunk_ends(encoder.tokenizer, text, encoder.max_tokens))
        if len(stops) > 1 and chosen.long == "refuse":
            raise too_long(encoder, text)
        if len(stops) > 1 and chosen.long == "cut":
            note["cut"] = text[stops[0] :].strip()
            lost = short_repr(note["cut"])
            warn(f"the prompt is beyond the {encoder.max_tokens} tokens that this model reads: cut off {lost}")
            stops = stops[:1]
        if text.strip() or number == 0:
            yield from (slice_part(section, start, end) for start, end in zip([0, *stops], stops, strict=False))


def too_long(encoder: Any, text: str) -> UserError:
    """What to raise for a prompt beyond the encoder's limit."""
    count = len(encode_text(encoder.tokenizer, text).ids)
    rest = text[next(chunk_ends(encoder.tokenizer, text, encoder.max_tokens)) :]
    return UserError(
        f"the prompt has {count} tokens and this model reads {encoder.max_tokens}: shorten it, or choose "
        f"--long-prompts cut or chunks; what does not fit begins at {rest.lstrip()[:40]!r}"
    )


def require_encodable(encoder: Any, prompt: str, reading: PromptOptions) -> None:
    """Raise the `UserError` that `encode_prompts` would raise for a prompt; a text encoder computes nothing."""
    if getattr(encoder, "tokenizer", None) is None:
        encoder.encode([prompt])
        return
    text = "".join(run for run, _ in parse_weights(prompt)) if reading.weights else prompt
    if len(encode_text(encoder.tokenizer, text).ids) > encoder.max_tokens and reading.long == "refuse":
        raise too_long(encoder, text)


def unsupported_syntax(prompt: str, request: Prompts) -> list[str]:
    """The first mark of each kind in a prompt that has a meaning in web UIs, but none with these options."""
    foreign = [mark for mark in LITERAL.findall(prompt) if mark != "BREAK" or request.reading.long != "chunks"]
    brackets = [] if request.reading.weights else WEIGHING.findall(LITERAL.sub("", prompt))
    return foreign[:1] + brackets[:1]


def advice(mark: str) -> str:
    """What to write instead."""
    if mark.startswith("<"):
        return "name LoRA files as --lora (lora=)"
    if mark == "BREAK":
        return "--long-prompts chunks (long_prompts=) begins another part there"
    if mark == "AND" or (re.search(r"[:|]", mark) and mark.startswith("[")):
        return "diptych has no composition or alternation of prompts"
    return "--weights (weights=True) makes brackets weights of words"


def slice_part(runs: Part, start: int, end: int) -> Part:
    """The part of runs between two places of their whole text."""
    pieces, place = [], 0
    for text, weight in runs:
        inside = text[max(start - place, 0) : max(end - place, 0)]
        place += len(text)
        if inside:
            pieces.append((inside, weight))
    return pieces or [("", 1.0)]


def split_sections(runs: Part) -> list[Part]:
    """The sections between one BREAK and the next."""
    sections: list[Part] = [[]]
    for text, weight in runs:
        first, *others = BREAK.split(text)
        sections[-1].append((first, weight))
        sections += [[(other, weight)] for other in others]
    return sections


def concat_parts(encoder: Any, parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
    """The weighted tokens (L, width) of chunks, concatenated, and the pooled embedding (width) of the first."""
    embedding = encoder.encode(["".join(run for run, _ in part) for part in parts])
    rows = []
    for part, sequence, mask in zip(parts, embedding.sequence, embedding.mask, strict=True):
        row = sequence[mask]
        factors = token_weights(encoder.tokenizer, part).to(row)
        rows.append(apply_weights(row, nn.functional.pad(factors, (0, len(row) - len(factors)), value=1.0)))
    return torch.cat(rows), embedding.pooled[0]


def token_weights(tokenizer: Any, part: Part) -> Tensor:
    """The weight of each token (L,): that of its first letter; 1 for special tokens."""
    letters = torch.tensor([weight for text, weight in part for _ in text] or [1.0])
    encoding = encode_text(tokenizer, "".join(text for text, _ in part))
    added = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    return torch.tensor([1.0 if special else float(letters[start]) for (start, _), special in added])


def apply_weights(tokens: Tensor, factors: Tensor) -> Tensor:
    """Tokens (L, width) times factors (L,), rescaled to their former mean, as web UIs do for CLIP; to their root mean
    square where the mean is too near to 0, as with other encoders."""
    if bool((factors == 1).all()):
        return tokens
    scaled = tokens * factors[:, None]
    size = tokens.square().mean().sqrt()
    before, after = tokens.mean(), scaled.mean()
    if min(abs(float(before)), abs(float(after))) < 0.01 * float(size) or float(before * after) <= 0:
        before, after = size, scaled.square().mean().sqrt().clamp(min=torch.finfo(tokens.dtype).tiny)
    return scaled * (before / after)


def has_pooled(encoder: Any) -> bool:
    """Whether the pooled embedding is not the mean of the tokens."""
    return getattr(encoder, "own_pooled", False)


def parse_weights(prompt: str) -> Part:
    """A prompt without the marks of weights, as texts with their weights."""
    runs: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []  # the bracket, and the run at which it opens

    def close(bracket: str, factor: float) -> bool:
        if not opened or opened[-1][0] != bracket:
            return False
        first = opened.pop()[1]
        runs[first:] = [(text, weight * factor) for text, weight in runs[first:]]
        return True

    for mark in MARK.finditer(prompt):
        text = mark.group()
        if text in ("(", "["):
            opened.append((text, len(runs)))
        elif mark.group(1) is not None and opened and opened[-1][0] == "(":
            close("(", parse_factor(mark.group(1)))
        elif (text == ")" and close("(", STRONGER)) or (text == "]" and close("[", 1 / STRONGER)):
            pass
        else:
            runs.append((text[1] if text[0] == "\\" and len(text) == 2 else text, 1.0))
    while opened:  # a bracket that is never closed reaches to the end
        close(opened[-1][0], STRONGER if opened[-1][0] == "(" else 1 / STRONGER)
    merged: list[tuple[str, float]] = []
    for text, weight in runs:
        if abs(weight) > MOST_WEIGHT:
            raise weight_error(f"{weight:g}, of brackets within brackets")
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged or [("", 1.0)]


def parse_factor(text: str) -> float:
    factor = float(text)
    if abs(factor) > MOST_WEIGHT:
        raise weight_error(text)
    return factor


def weight_error(weight: str) -> UserError:
    return UserError(f"the weight of a word must lie between -{MOST_WEIGHT:g} and {MOST_WEIGHT:g}, not {weight[:80]}")


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """Words of a text that become the unknown token or no token; without punctuation."""
    encoding = encode_text(tokenizer, text)
    unknown = {tokenizer.token_to_id(name) for name in ("[UNK]", "<unk>")} - {None}
    covered, lost = [False] * len(text), [False] * len(text)
    for number, (start, end), special in zip(encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True):
        if not special:
            where = lost if number in unknown else covered
            where[start:end] = [True] * (end - start)
    for place, letter in enumerate(text):
        lost[place] = not covered[place] and (lost[place] or unicodedata.category(letter) not in SILENT)
    words = re.findall(r"\S+", "".join(letter if missing else " " for letter, missing in zip(text, lost, strict=True)))
    return [word for word in dict.fromkeys(words) if any(unicodedata.category(letter)[0] != "P" for letter in word)]
