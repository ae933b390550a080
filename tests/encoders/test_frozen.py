"""T5 and BERT: the reference's numbers on random weights, and a clear word about each thing that is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.core.errors import UserError
from diptych.encoders import t5 as module
from diptych.encoders.base import TextEmbedding
from diptych.encoders.bert import Bert
from diptych.encoders.configs import BertTextConfig, ClipTextConfig, MiniLMConfig, T5Config
from diptych.encoders.t5 import T5_SHAPES, compute_dtype, t5_shape
from diptych.encoders.tokenizers import tokenize
from diptych.weights.files import load_safetensors
from diptych.weights.lazy import load_weights
from diptych.weights.save import save_safetensors, save_weights
from tests.encoders.tiny_encoders import PROMPTS, bert_folder, t5_folder, write_spiece
from tests.networks.reference import relative_error


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5_folder(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("bert"))


def small_t5(folder: Path, **changes: Any) -> T5Config:
    return T5Config.from_dict({"path": str(folder), "width": 24, "max_tokens": 64, **changes})


def small_bert(folder: Path, **changes: Any) -> BertTextConfig:
    return BertTextConfig.from_dict({"path": str(folder), "width": 24, "max_tokens": 40, **changes})


def agrees(ours: TextEmbedding, theirs: torch.Tensor, mask: torch.Tensor) -> None:
    assert torch.equal(ours.mask, mask) and mask.sum(1).unique().numel() > 2, "lengths differ"
    for row, wanted, real, pooled in zip(ours.sequence, theirs, mask, ours.pooled, strict=True):
        assert relative_error(row[real], wanted[real]) <= 1e-5
        assert relative_error(pooled, wanted[real].mean(0)) <= 1e-5


def test_t5_gives_the_reference_tokens(t5: Path) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    inputs = AutoTokenizer.from_pretrained(t5)(PROMPTS, padding=True, return_tensors="pt")
    model = T5EncoderModel.from_pretrained(t5).eval()
    with torch.no_grad():
        expected = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    encoder = small_t5(t5).build()
    ours = encoder.encode(PROMPTS)
    agrees(ours, expected, inputs["attention_mask"].bool())
    assert ours.mask[1].sum() == 1, "the empty prompt is its closing token"
    assert not ours.sequence[~ours.mask].any(), "padding is zero, as it is from a cache"
    assert ours.sequence.dtype == torch.float32 and not ours.sequence.requires_grad
    count = sum(p.numel() for p in encoder.model.parameters())
    assert count == sum(p.numel() for p in model.parameters()), "the shared embedding is one tensor"
    for i, prompt in enumerate(PROMPTS):
        alone = encoder.encode([prompt])
        assert relative_error(ours.sequence[i, ours.mask[i]], alone.sequence[0]) <= 1e-5


def test_padded_t5_embeddings_keep_padding_and_obey_the_config(t5: Path, tmp_path: Path) -> None:
    """As DeepFloyd IF: the padding is masked in T5, and what comes out at its places is given along."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer, model = tmp_path / "tokenizer", tmp_path / "text_encoder"
    AutoTokenizer.from_pretrained(t5).save_pretrained(tokenizer)
    shutil.copytree(t5, model, ignore=shutil.ignore_patterns("*token*"))
    lowered = [prompt.lower().strip() for prompt in PROMPTS]
    inputs = AutoTokenizer.from_pretrained(tokenizer)(
        lowered, padding="max_length", max_length=64, return_tensors="pt", truncation=True
    )
    with torch.no_grad():
        theirs = T5EncoderModel.from_pretrained(model).eval()(inputs["input_ids"], inputs["attention_mask"])[0]
    shape = small_t5(model, tokenizer=str(tokenizer), padded=True, cleaning="lower")
    encoder = shape.build()
    ours = encoder.encode([f" {prompt.replace('a', 'A')} " for prompt in lowered])
    assert relative_error(ours.sequence, theirs) <= 1e-5 and ours.sequence.shape == (4, 64, 24)
    assert ours.mask.all() and theirs[1, 1:].abs().min() > 0, "the places of the padding speak"
    assert relative_error(ours.pooled, theirs.mean(1)) <= 1e-5
    with pytest.raises(UserError, match="the prompt has 65 tokens"):
        encoder.encode(["z" * 63])
    with pytest.raises(UserError, match=r"no tokenizer in .*text_encoder"):
        small_t5(model).build()


def test_bert_gives_the_reference_tokens(bert: Path) -> None:
    from transformers import AutoTokenizer, BertModel

    inputs = AutoTokenizer.from_pretrained(bert)(PROMPTS, padding=True, return_tensors="pt")
    model = BertModel.from_pretrained(bert, add_pooling_layer=False).eval()
    with torch.no_grad():
        expected = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    agrees(small_bert(bert).build().encode(PROMPTS), expected, inputs["attention_mask"].bool())


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_no_weights_are_drawn_for_what_a_file_fills(kind: str, request: pytest.FixtureRequest) -> None:
    config = {"t5": small_t5, "bert": small_bert}[kind](request.getfixturevalue(kind))
    before = torch.get_rng_state()
    model = config._build(None, "cpu").model  # `build` puts the generator back
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_a_prompt_gives_the_same_bits_among_any_others(kind: str, request: pytest.FixtureRequest) -> None:
    small = {"t5": small_t5, "bert": small_bert}[kind]
    encoder = small(request.getfixturevalue(kind)).build()
    among = encoder.encode(PROMPTS)
    assert len(among.mask.sum(1).unique()) > 2
    for index, prompt in enumerate(PROMPTS):
        alone = encoder.encode([prompt])
        assert torch.equal(alone.sequence[0], among.sequence[index, : alone.sequence.shape[1]])


def test_old_berts_open_too(bert: Path, tmp_path: Path) -> None:
    """Old releases call a norm's weights gamma and beta, and have no tokenizer.json."""
    shutil.copytree(bert, tmp_path / "old")
    tensors = load_safetensors(bert / "model.safetensors")
    renamed = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for key, tensor in tensors.items()
    }
    assert set(renamed) != set(tensors)
    save_weights(renamed, tmp_path / "old")
    (tmp_path / "old" / "tokenizer.json").unlink()
    ours, plain = Bert(small_bert(tmp_path / "old")), Bert(small_bert(bert))
    assert torch.equal(ours.encode(PROMPTS).sequence, plain.encode(PROMPTS).sequence)


@pytest.mark.parametrize("kept", ["shared.weight", "encoder.embed_tokens.weight", "both"])
@pytest.mark.parametrize("shards", [False, True])
def test_t5_opens_whichever_way_it_was_saved(t5: Path, tmp_path: Path, kept: str, shards: bool) -> None:
    """The shared embedding under either name; without the decoder; in shards; in half precision."""
    shutil.copytree(t5, tmp_path / "t5")
    tensors = {k: v.half() for k, v in load_weights(t5).items() if k.startswith(("shared", "encoder"))}
    embedding = tensors.pop("shared.weight")
    tensors.pop("encoder.embed_tokens.weight", None)
    names = ("shared.weight", "encoder.embed_tokens.weight") if kept == "both" else (kept,)
    save_weights({**tensors, **dict.fromkeys(names, embedding)}, tmp_path / "t5", shard_bytes=4000 if shards else 10**9)
    assert (tmp_path / "t5" / "model.safetensors.index.json").is_file() == shards
    encoder: Any = small_t5(tmp_path / "t5").build()
    assert encoder.model.shared.weight is encoder.model.encoder.embed_tokens.weight
    ours, exact = encoder.encode(PROMPTS), small_t5(t5).build().encode(PROMPTS)
    assert relative_error(ours.sequence, exact.sequence) < 0.02


def test_t5_opens_as_the_half_precision_that_lies_alone(t5: Path, tmp_path: Path) -> None:
    """As `variant="fp16"` of transformers writes it."""
    folder = tmp_path / "half"
    shutil.copytree(t5, folder)
    halves = load_weights(t5, dtype=torch.float16)
    (folder / "model.safetensors").unlink()
    save_safetensors(halves, folder / "model.fp16.safetensors")
    rounded, exact = (small_t5(one).build().encode(PROMPTS).sequence for one in (folder, t5))
    assert 0 < relative_error(rounded, exact) < 0.01


def test_t5_reads_a_sentencepiece_model(t5: Path, tmp_path: Path) -> None:
    shutil.copytree(t5, tmp_path / "t5")
    (tmp_path / "t5" / "tokenizer.json").unlink()
    write_spiece(tmp_path / "t5" / "spiece.model")
    ours, exact = small_t5(tmp_path / "t5").build(), small_t5(t5).build()
    assert torch.equal(ours.encode(PROMPTS).sequence, exact.encode(PROMPTS).sequence)


def test_t5_computes_in_the_dtype_of_its_config(t5: Path) -> None:
    from transformers import T5EncoderModel

    exact = small_t5(t5).build().encode(PROMPTS).sequence
    coarse = small_t5(t5, dtype="bfloat16").build()
    assert {p.dtype for p in coarse.model.parameters()} == {torch.bfloat16}
    ours = coarse.encode(PROMPTS)
    theirs: Any = T5EncoderModel.from_pretrained(t5).to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    assert ours.sequence.dtype == torch.float32
    for prompt, sequence in zip(PROMPTS, ours.sequence, strict=True):
        ids, mask = tokenize(coarse.tokenizer, [prompt], 64, torch.device("cpu"))
        with torch.no_grad():
            expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state[0].float()
        assert torch.equal(sequence[: len(expected)], expected)
    assert not torch.allclose(ours.sequence, exact, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = small_t5(t5, dtype="float32").build().encode(PROMPTS).sequence
    assert torch.equal(inside, exact)


def test_t5_on_a_gpu_defaults_to_bfloat16(t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    chosen = [compute_dtype(small_t5(t5, dtype=d), device) for d in ("auto", "float32") for device in (cpu, gpu)]
    assert chosen == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
    encoder, told = small_t5(t5).build(), small_t5(t5, dtype="bfloat16").build()
    monkeypatch.setattr(module, "compute_dtype", lambda config, device: compute_dtype(config, gpu))  # it is moved there
    assert torch.equal(encoder.encode(PROMPTS).sequence, told.encode(PROMPTS).sequence)


@pytest.mark.parametrize(
    ("prompt", "rest"), [("red " * 4 + "house", "house"), ("red cat dog apple two", "two"), ("a b c d e f", "e f")]
)
def test_t5_refuses_what_is_too_long_with_what_does_not_fit(t5: Path, prompt: str, rest: str) -> None:
    encoder = small_t5(t5, max_tokens=5).build()
    if prompt.startswith("a"):  # a letter is two pieces: a word's start, and itself
        encoder = small_t5(t5, max_tokens=9).build()
    encoder.encode([prompt.removesuffix(rest).rstrip()])
    with pytest.raises(UserError, match="shorten it") as caught:
        encoder.encode(["a", prompt])
    assert str(caught.value).endswith(f"begins at {rest!r}")


def edit(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def without(folder: Path, key: str) -> None:
    tensors = load_safetensors(folder / "model.safetensors")
    del tensors[key]
    save_safetensors(tensors, folder / "model.safetensors")


def drop_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


COMMON = [
    (shutil.rmtree, {}, "set text.path"),
    (lambda folder: None, {"width": 32}, r"24 wide, but text\.width is 32"),
    (drop_tokenizer, {}, "no tokenizer in"),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), {}, "tokenizer.json"),
    (lambda folder: (folder / "config.json").unlink(), {}, "config.json is missing"),
    (lambda folder: (folder / "config.json").write_text("[]"), {}, "config.json is missing"),
    (lambda folder: edit(folder, model_type="gpt2"), {}, "of a model of type 'gpt2'"),
    (cut, {}, "damaged"),
    (pickled, {}, "no file .*model.safetensors.*pickles such as pytorch_model.bin"),
]


@pytest.mark.parametrize(
    ("spoil", "changes", "says"),
    [
        *COMMON,
        (lambda folder: without(folder, "encoder.final_layer_norm.weight"), {}, "final_layer_norm.weight' .* missing"),
        (lambda folder: without(folder, "shared.weight"), {}, "shared.weight' .* missing"),
        (lambda folder: edit(folder, d_ff=48), {}, r"has shape \(40, 24\)"),
        (lambda folder: edit(folder, d_model="many"), {}, "config.json"),
    ],
)
def test_a_broken_t5_is_refused_by_name(t5: Path, tmp_path: Path, spoil: Any, changes: Any, says: str) -> None:
    folder = tmp_path / "t5"
    shutil.copytree(t5, folder)
    spoil(folder)
    with pytest.raises(UserError, match=says) as caught:
        small_t5(folder, **changes).build()
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "changes", "says"),
    [
        *COMMON,
        (lambda folder: None, {"max_tokens": 41}, r"reads 40 tokens: lower text\.max_tokens"),
        (lambda folder: without(folder, "bert.embeddings.LayerNorm.bias"), {}, "embeddings.LayerNorm.bias' .* missing"),
        (
            lambda folder: edit(folder, num_attention_heads=5),
            {},
            "hidden_size must be a multiple of num_attention_heads",
        ),
        (lambda folder: edit(folder, hidden_act="nothing"), {}, "no text model can be built from its config.json"),
        (lambda folder: edit(folder, hidden_act=7), {}, "hidden_act"),
    ],
)
def test_a_broken_bert_is_refused_by_name(bert: Path, tmp_path: Path, spoil: Any, changes: Any, says: str) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(bert, folder)
    spoil(folder)
    with pytest.raises(UserError, match=says) as caught:
        small_bert(folder, **changes).build()
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_sentencepiece_model_is_refused(t5: Path, tmp_path: Path) -> None:
    shutil.copytree(t5, tmp_path / "t5")
    (tmp_path / "t5" / "tokenizer.json").unlink()
    (tmp_path / "t5" / "spiece.model").write_bytes(b"\x80\x04 not one")
    with pytest.raises(UserError, match=r"spiece\.model is not a SentencePiece model"):
        small_t5(tmp_path / "t5").build()


@pytest.mark.parametrize("config", [T5Config(), BertTextConfig(), T5Config(path="nowhere")])
def test_an_encoder_without_a_folder_says_what_to_set(config: Any) -> None:
    with pytest.raises(UserError, match=r"set text\.path"):
        config.build()


def parameters(config: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build_network().parameters())


@pytest.mark.parametrize("size", list(T5_SHAPES))
def test_published_t5s_are_counted_without_a_folder(size: str) -> None:
    width, layers, heads, feed_forward = T5_SHAPES[size]
    attention, gated = 4 * width * 64 * heads, 3 * width * feed_forward
    by_hand = 32128 * width + layers * (attention + gated + 2 * width) + 32 * heads + width
    assert parameters(T5Config(width=width)) == by_hand
    assert t5_shape(size).dense_act_fn == "gelu_new" and t5_shape(size).is_gated_act


def test_what_is_counted_is_what_is_built(t5: Path, bert: Path) -> None:
    for config in (small_t5(t5), small_bert(bert), MiniLMConfig()):
        built = config.build().model
        assert parameters(config) == sum(p.numel() for p in built.parameters())
    assert f"{parameters(T5Config()):,}" in (T5Config.__doc__ or "")
    assert parameters(ClipTextConfig()) == 123_060_480, "Stable Diffusion 1.x"
    with pytest.raises(UserError, match=r"no published T5 v1\.1 is 100 wide: set text\.path, or one of 512, 768"):
        parameters(T5Config(width=100))
    with pytest.raises(UserError, match="unknown size of T5 'huge'"):
        t5_shape("huge")


def test_null_text_is_zeroed_and_nothing_is_masked() -> None:
    mask = torch.tensor([[True, False], [True, True], [True, False]])
    embedding = TextEmbedding.from_sequence(torch.randn(3, 2, 4).requires_grad_(), mask)
    dropped = torch.tensor([True, False, True])
    zeroed = embedding.zeroed(dropped)
    assert not zeroed.sequence[dropped].any() and not zeroed.pooled[dropped].any() and zeroed.mask[dropped].all()
    for before, after in zip(embedding, zeroed, strict=True):
        assert torch.equal(after[~dropped], before[~dropped])
    null = embedding.null()
    assert not null.sequence.any() and not null.pooled.any() and null.mask.all()
    assert [part.shape for part in null] == [part.shape for part in embedding]
    zeroed.pooled.sum().backward()  # those that are kept still learn
    one = embedding.zeroed(dropped, "one")
    assert one.mask.tolist() == [[True, False], [True, True], [True, False]] and not one.sequence[dropped].any()
    assert embedding.null("one").mask.sum(1).tolist() == [1, 1, 1]
