"""The transformer over codes: the logits are GPT-2's, attention is causal, and a cache changes only the time."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from diptych.core.errors import UserError
from diptych.networks.code_transformer import CodeTransformer, CodeTransformerConfig, attention_mask
from tests.models.codes import SHAPE, VOCABULARY
from tests.networks.reference import noise, randomised, relative_error

TEXT = dataclasses.replace(SHAPE, context_width=10)
CLASS = dataclasses.replace(SHAPE, classes=5)
SHARED = dataclasses.replace(SHAPE, classes=5, shared_start=True)
KINDS = {"free": SHAPE, "text": TEXT, "class": CLASS, "shared": SHARED}


def cond(kind: str, seed: int = 3) -> dict[str, Tensor]:
    if kind == "text":
        mask = torch.arange(6) < torch.tensor([6, 3])[:, None]
        return {"context": noise(2, 6, 10, seed=seed), "context_mask": mask}
    return {} if kind == "free" else {"label": torch.tensor([seed % 5, 1])}


def codes(seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (2, SHAPE.length - 1), generator=torch.Generator().manual_seed(seed))


def network(kind: str) -> CodeTransformer:
    return randomised(CodeTransformer(KINDS[kind]), seed=5)


def gpt2(ours: CodeTransformer) -> GPT2LMHeadModel:
    """The reference implementation with our weights."""
    c, state = ours.config, ours.state_dict()
    shape = GPT2Config(
        vocab_size=c.vocabulary,
        n_positions=c.length,
        n_embd=c.width,
        n_layer=c.layers,
        n_head=c.heads,
        activation_function="gelu",
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    names = {"attn.c_attn": "attention.query_key_value", "attn.c_proj": "attention.out"}
    names |= {"ln_1": "norm1", "ln_2": "norm2", "mlp.c_fc": "mlp.0", "mlp.c_proj": "mlp.2"}
    theirs = {"transformer.wte.weight": state["code.weight"], "transformer.wpe.weight": state["position"]}
    theirs |= {f"transformer.ln_f.{part}": state[f"norm.{part}"] for part in ("weight", "bias")}
    theirs["lm_head.weight"] = state["head.weight"]
    for layer in range(c.layers):
        for name, key in names.items():
            for part in ("weight", "bias"):
                value = state[f"blocks.{layer}.{key}.{part}"]
                theirs[f"transformer.h.{layer}.{name}.{part}"] = value.T if value.ndim == 2 else value
    model = GPT2LMHeadModel(shape).eval()
    assert not model.load_state_dict(theirs, strict=False).unexpected_keys
    return model


@torch.no_grad()
@pytest.mark.parametrize("kind", ["free", "class", "shared"])
def test_code_transformer_matches_gpt2(kind: str) -> None:
    ours, given = network(kind), codes()
    label = cond(kind).get("label", torch.zeros(2, dtype=torch.int64))
    first = (ours.start or ours.code).weight[label]
    embedded = torch.cat([first[:, None], ours.code.weight[given]], 1)
    reference = gpt2(ours)(inputs_embeds=embedded).logits
    assert relative_error(ours(given, **cond(kind)), reference) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_code_transformer_is_causal(kind: str) -> None:
    net, before = network(kind), codes()
    logits = net(before, **cond(kind))
    assert logits.shape == (2, SHAPE.length, VOCABULARY)
    for place in (0, 7, SHAPE.length - 2):
        after = before.clone()
        after[:, place] = (after[:, place] + 1) % VOCABULARY
        changed = (net(after, **cond(kind)) - logits).abs().amax(dim=(0, 2))
        assert changed[: place + 1].max() < 1e-6, "logits of this code and those before it"
        assert changed[place + 1 :].min() > 1e-4, "logits of all behind it"


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces", [[1] * SHAPE.length, [5, 1, 6, 4], [SHAPE.length]])
def test_kv_cache_gives_the_same_logits(kind: str, pieces: list[int]) -> None:
    """Read code by code, or in pieces of several; the start counts as the first token of the first piece."""
    net, given = network(kind), codes()
    whole, cache, read, got = net(given, **cond(kind)), net.new_cache(), 0, []
    for piece in pieces:
        part = given[:, max(read - 1, 0) : read + piece - 1]
        got.append(net(part, **cond(kind), cache=cache))
        assert got[-1].shape[1] == piece
        read += piece
        assert cache.length == read
    assert (torch.cat(got, 1) - whole).abs().max() < 1e-5


@torch.no_grad()
def test_code_transformer_prefix_is_bidirectional_and_padding_masked() -> None:
    """The context has no causal mask: the order of its tokens makes no difference."""
    net, given, text = network("text"), codes(), cond("text")
    logits = net(given, **text)
    order = torch.tensor([2, 0, 1, 5, 4, 3])
    turned = {key: value[:, order] for key, value in text.items()}
    assert (net(given, **turned) - logits).abs().max() < 1e-5
    padded = {"context": text["context"].clone(), "context_mask": text["context_mask"]}
    padded["context"][1, 3:] = 100.0
    assert (net(given, **padded) - logits).abs().max() < 1e-6
    short = {"context": text["context"][1:, :3], "context_mask": text["context_mask"][1:, :3]}
    assert (net(given[1:], **short) - logits[1:]).abs().max() < 1e-5
    for token in range(3):
        other = text["context"].clone()
        other[:, token] *= -1
        changed = (net(given, context=other, context_mask=text["context_mask"]) - logits).abs().amax(2)
        assert changed.min() > 1e-4, "every code attends to every token of the context"


def test_attention_mask_of_prefix_and_codes() -> None:
    prefix = torch.tensor([[True, True, False]])
    for queries, read in ((3 + 4, 4), (2, 4), (1, 4)):
        got = attention_mask(prefix, queries, read)
        assert got is not None and got.shape == (1, 1, queries, 3 + read)
        for i in range(queries):
            query = 3 + read - queries + i
            for key in range(3 + read):
                sees = bool(prefix[0, key]) if key < 3 else key <= query
                assert got[0, 0, i, key] == sees, (queries, query, key)
    assert attention_mask(None, 4, 4) is None and attention_mask(None, 1, 4) is None
    assert torch.equal(attention_mask(None, 2, 4)[0, 0], torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool())  # type: ignore[index]


def test_code_transformer_dropout_in_training_only() -> None:
    net = randomised(CodeTransformer(dataclasses.replace(SHAPE, dropout=0.5)))
    assert torch.equal(net(codes()), net(codes()))
    net.train()
    assert not torch.equal(net(codes()), net(codes()))


def test_code_transformer_starts_near_uniform() -> None:
    torch.manual_seed(0)
    net = CodeTransformer(SHAPE)
    entropy = -(net(codes()).log_softmax(2).exp() * net(codes()).log_softmax(2)).sum(2)
    assert entropy.min() > torch.tensor(float(VOCABULARY)).log() - 0.02


def formula(c: CodeTransformerConfig) -> int:
    """Codes in and out, positions, the condition; in each layer four square matrices and the MLP's eight."""
    front = 0 if c.shared_start else (c.classes or 1) * c.width
    words = 0 if c.context_width is None else c.context_width * (c.width + 2) + c.width
    layer = 12 * c.width**2 + (4 + 5 + 4) * c.width
    return 2 * c.vocabulary * c.width + c.length * c.width + front + words + c.layers * layer + 2 * c.width


@pytest.mark.parametrize("shape", [*KINDS.values(), CodeTransformerConfig()], ids=[*KINDS, "published"])
def test_code_transformer_parameter_count(shape: CodeTransformerConfig) -> None:
    with torch.device("meta"):
        net = CodeTransformer(shape)
    assert sum(parameter.numel() for parameter in net.parameters()) == formula(shape)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"heads": 5}, r"heads must divide the width \(32\), not 5"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"dropout": 1.0}, "dropout must lie between 0 and 1"),
        ({"context_width": 0}, "context_width must be at least 1, or none"),
        ({"context_width": 8, "classes": 3}, "classes must be none where there is text"),
        ({"classes": 25, "shared_start": True}, r"classes must be at most vocabulary \(24\)"),
    ],
)
def test_code_transformer_config_errors_name_the_field(changes: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        dataclasses.replace(SHAPE, **changes)


def test_code_transformer_refuses_other_conditions() -> None:
    with pytest.raises(ValueError, match="context_width is none"):
        network("free")(codes(), **cond("text"))
    with pytest.raises(ValueError, match="classes is none"):
        network("free")(codes(), **cond("class"))
    with pytest.raises(ValueError, match="network with text"):
        network("text")(codes())
    with pytest.raises(ValueError, match="network of classes"):
        network("class")(codes())
