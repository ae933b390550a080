"""Weights of words, prompts beyond the limit, and what a text encoder cannot read."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from diptych.core.errors import DiptychWarning, UserError
from diptych.encoders.base import PromptOptions, TextEmbedding
from diptych.encoders.bert import MiniLM
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import MiniLMConfig
from diptych.encoders.joint import JointTransformer
from diptych.encoders.prompt_weights import (
    apply_weights,
    encode_prompts,
    parse_weights,
    split_sections,
    token_weights,
    unknown_words,
)
from diptych.models.request import Request
from tests.models.latents import joint, minilm

LIMIT = 12
LONG = "one two three four five six seven eight nine ten eleven"
"""One token a word: 11, and 10 have room."""


@pytest.fixture(scope="module")
def short() -> MiniLM:
    encoder = MiniLM.__new__(MiniLM)
    encoder.__dict__.update(minilm().__dict__, config=MiniLMConfig(max_tokens=LIMIT), max_tokens=LIMIT)
    return encoder


def order(**reading: object) -> Request:
    return Request(["x"], [""], [0], PromptOptions(**reading))  # type: ignore[arg-type]


def read(encoder: object, *prompts: str, **reading: object) -> tuple[TextEmbedding, Request]:
    made = order(**reading)
    return encode_prompts(encoder, prompts, made), made


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a red cat", [("a red cat", 1.0)]),
        ("a (red:1.4) cat", [("a ", 1.0), ("red", 1.4), (" cat", 1.0)]),
        ("[cat]", [("cat", 1 / 1.1)]),
        ("((very)) big", [("very", 1.1 * 1.1), (" big", 1.0)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        (r"\(a\) \[b\]", [("(a) [b]", 1.0)]),
        ("(open", [("open", 1.1)]),
        ("a) b] 10:30 c: d", [("a) b] 10:30 c: d", 1.0)]),
        ("(x:-.5)", [("x", -0.5)]),
        ("", [("", 1.0)]),
    ],
)
def test_the_marks_of_weights(prompt: str, wanted: list[tuple[str, float]]) -> None:
    found = parse_weights(prompt)
    assert [text for text, _ in found] == [text for text, _ in wanted]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in wanted])


def test_a_weight_beyond_all_bounds_is_refused() -> None:
    with pytest.raises(UserError, match="weight of a word must lie between -10 and 10, not 11"):
        parse_weights("(a:11)")
    with pytest.raises(UserError, match="of brackets within brackets"):
        parse_weights("((cat:10):1.21)")


def test_a_weight_is_that_of_the_tokens_of_its_word() -> None:
    weights = token_weights(minilm().tokenizer, parse_weights("a (red:1.4) cat"))
    assert weights.tolist() == pytest.approx([1, 1, 1.4, 1, 1])


def test_weighted_tokens_keep_their_mean_or_else_their_size() -> None:
    factors = torch.tensor([1.0, 2.0, 1.0])
    shifted = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) + 0.5
    assert close(
        apply_weights(shifted, factors),
        shifted * factors[:, None] * shifted.mean() / (shifted * factors[:, None]).mean(),
    )
    centred = shifted - shifted.mean()
    assert apply_weights(centred, factors).square().mean() == pytest.approx(float(centred.square().mean()), rel=1e-5)
    assert apply_weights(shifted, torch.ones(3)) is shifted


def test_weights_change_the_words_and_nothing_where_there_are_none() -> None:
    plain, _ = read(minilm(), "a red cat", "a dog")
    asked, _ = read(minilm(), "a red cat", "a dog", weights=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, asked, strict=True))
    mixed, _ = read(minilm(), "a (red:1.4) cat", "a dog", weights=True)
    assert mixed.sequence.shape == plain.sequence.shape and torch.equal(mixed.mask, plain.mask)
    assert close(mixed.sequence[1], plain.sequence[1]), "a neighbour's weights are its own"
    ratio = (mixed.sequence[0] / plain.sequence[0]).median(1).values  # one factor for each token
    assert ratio[2] / ratio[1] == pytest.approx(1.4, rel=1e-4) and ratio[3] == pytest.approx(float(ratio[1]), rel=1e-4)


def test_a_prompt_beyond_the_limit_is_refused_cut_or_read_in_parts(short: MiniLM) -> None:
    with pytest.raises(UserError, match=r"13 tokens and this model reads 12.*long-prompts.*begins at 'eleven'"):
        read(short, LONG)
    with pytest.warns(DiptychWarning, match="cut off 'eleven'"):
        cut, made = read(short, LONG, long="cut")
    kept = LONG.removesuffix(" eleven")
    assert made.notes[LONG] == {"cut": "eleven"} and close(cut.sequence, short.encode([kept]).sequence)
    parts, _ = read(short, LONG, "one", long="chunks")
    wanted = torch.cat([short.encode([kept]).sequence, short.encode(["eleven"]).sequence], 1)
    assert close(parts.sequence[0], wanted[0]) and parts.mask.sum(1).tolist() == [LIMIT + 3, 3]
    assert close(parts.sequence[1, :3], short.encode(["one"]).sequence[0])


def test_a_word_beyond_the_limit_is_read_in_parts_too(short: MiniLM) -> None:
    parts, _ = read(short, "xqz" * 30, long="chunks")
    assert parts.mask.sum() > LIMIT


def test_break_begins_another_part() -> None:
    assert split_sections([("a BREAK b ", 1.0), ("c BREAK", 2.0)]) == [
        [("a", 1.0)],
        [("b ", 1.0), ("c", 2.0)],
        [("", 2.0)],
    ]
    parts, _ = read(minilm(), "a red cat BREAK a dog", long="chunks")
    wanted = torch.cat([minilm().encode([text]).sequence for text in ("a red cat", "a dog")], 1)
    assert close(parts.sequence, wanted)


def test_what_the_tokenizer_does_not_know_is_named() -> None:
    tokenizer = minilm().tokenizer
    assert unknown_words(tokenizer, "a 🦄 unicorn, crème e\u0301, ok\u200d") == ["🦄"]
    with pytest.warns(DiptychWarning, match="cannot read '🦄', '猫'"):
        _, made = read(minilm(), "a 🦄 and a 猫 and a 🦄")
    assert list(made.notes.values()) == [{"unread": ["🦄", "猫"]}]
    small = joint()
    assert isinstance(small, JointTransformer) and unknown_words(small.tokenizer, "a red ж") == ["ж"]


@pytest.mark.parametrize(
    ("prompt", "advice"),
    [
        ("a (red:1.4) cat", "--weights"),
        ("a [cat]", "--weights"),
        ("((very)) big", "--weights"),
        ("a cat <lora:x:0.8>", "--lora"),
        ("a cat BREAK a dog", "chunks"),
        ("a cat AND a dog", "no composition"),
        ("[a:b:0.5]", "no composition"),
    ],
)
def test_weight_marks_read_as_letters_warn(prompt: str, advice: str) -> None:
    with pytest.warns(DiptychWarning, match=f"is read as letters.*{advice}") as told:
        plain, _ = read(minilm(), prompt)
    assert len(told) == 1 and torch.equal(plain.sequence, minilm().encode([prompt]).sequence)


@pytest.mark.parametrize(
    ("prompt", "reading"), [("a cat, 3:1 (", {}), (r"a \(cat\)", {}), ("a (cat:1)", {"weights": True})]
)
def test_nothing_is_said_where_nothing_is_misread(prompt: str, reading: dict[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(minilm(), prompt, **reading)


def test_a_model_of_classes_has_no_use_for_them() -> None:
    labels = ClassConfig(classes=3).build()
    embedding: Any = read(labels, "2")[0]
    assert embedding.label.tolist() == [2]
    with pytest.raises(UserError, match="for models with a text encoder"):
        read(labels, "2", weights=True)


@pytest.mark.parametrize(("weights", "long"), [(1, "cut"), (True, "all"), ("yes", "cut")])
def test_only_what_is_known_is_taken(weights: object, long: str) -> None:
    with pytest.raises(UserError, match=r"weights must be true or false|unknown long_prompts 'all'"):
        PromptOptions.read(weights, long)


class Counted:
    """An encoder that notes what it is asked for."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.asked = encoder, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, prompts: list[str]) -> Any:
        self.asked += prompts
        return self.encoder.encode(prompts)


@pytest.mark.parametrize("reading", [{}, {"weights": True}])
def test_a_prompt_of_several_seeds_is_encoded_once(reading: dict[str, Any]) -> None:
    encoder = Counted(minilm())
    prompts = ["a (cat:1.2)", "a red apple", "a (cat:1.2)", "a (cat:1.2)", "a red apple"]
    together = encode_prompts(encoder, prompts, order(**reading))
    assert len(encoder.asked) == 2
    once = encode_prompts(minilm(), prompts[:2], order(**reading))
    for whole, row in zip(together, once, strict=True):
        assert torch.equal(whole, row[[0, 1, 0, 0, 1]])


def test_a_class_of_several_seeds_has_a_row_for_each() -> None:
    embedding = encode_prompts(ClassConfig(classes=9, null=8).build(), ["3", "", "3"], order())
    assert embedding.label.tolist() == [3, 8, 3] and embedding.nothing == 8
