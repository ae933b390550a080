"""Prompts embedded once: the encoder's own answers, in any mixture, from any process, and it need not be in memory."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diptych.core import progress
from diptych.core.errors import UserError
from diptych.encoders import cache as module
from diptych.encoders import cache_part as parts
from diptych.encoders.base import TextEmbedding
from diptych.encoders.cache import CachedTexts, EmbeddedTexts, encoder_fingerprint, text_cache
from diptych.encoders.configs import JointTransformerConfig, T5Config
from diptych.weights.files import load_safetensors
from diptych.weights.fingerprint import fingerprint
from diptych.weights.save import save_safetensors
from tests.encoders.tiny_encoders import PROMPTS, t5_folder


class Letters:
    """A frozen encoder with a token a letter; `padded` ones read all prompts at one length and mask nothing."""

    def __init__(self, seed: int = 0, padded: bool = False, scale: float = 1.0) -> None:
        self.width, self.max_tokens, self.padded = 6, 40, padded
        table = scale * torch.randn(128, 6, generator=torch.Generator().manual_seed(seed))
        self.model = nn.Embedding.from_pretrained(table)
        self.asked: list[list[str]] = []

    def encode(self, prompts: list[str]) -> TextEmbedding:
        self.asked.append(list(prompts))
        if any(len(prompt) >= self.max_tokens for prompt in prompts):
            raise UserError("the prompt is too long: shorten it")
        longest = self.max_tokens if self.padded else 1 + max(map(len, prompts))
        ids = torch.tensor([[1, *map(ord, p)] + [0] * (longest - 1 - len(p)) for p in prompts])
        mask = torch.ones_like(ids, dtype=torch.bool) if self.padded else ids > 0
        embedding = TextEmbedding.from_sequence(self.model(ids) * mask[..., None], mask)
        last = self.model(torch.tensor([ord((p or "x")[-1]) for p in prompts]))
        return embedding._replace(pooled=last) if self.padded else embedding

    @property
    def read(self) -> list[str]:
        return [prompt for prompts in self.asked for prompt in prompts]


WORDS = ["a cat", "", "a much longer dog", "two"]


def close(ours: TextEmbedding, exact: TextEmbedding) -> None:
    """The same but for half precision."""
    assert torch.equal(ours.mask, exact.mask)
    for mine, wanted in zip(ours, exact, strict=True):
        assert mine.shape == wanted.shape and mine.dtype == wanted.dtype
        assert (mine.float() - wanted.float()).abs().max() <= 2**-11 * wanted.float().abs().max()


def same(a: TextEmbedding, b: TextEmbedding) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("padded", [False, True])
def test_what_was_read_once_is_not_read_again(tmp_path: Path, padded: bool) -> None:
    first, second = Letters(padded=padded), Letters(padded=padded)
    fresh = CachedTexts(first, tmp_path).encode(WORDS)
    close(fresh, Letters(padded=padded).encode(WORDS))
    again = CachedTexts(second, tmp_path).encode(WORDS)
    same(again, fresh)
    assert sorted(first.read) == sorted(WORDS) and not second.read


@pytest.mark.parametrize("padded", [False, True])
def test_a_mixed_batch_reads_only_what_is_new(tmp_path: Path, padded: bool) -> None:
    CachedTexts(Letters(padded=padded), tmp_path).encode(["two", "a cat"])
    encoder = Letters(padded=padded)
    cached = CachedTexts(encoder, tmp_path)
    batch = ["new", "two", "something new", "two", "a cat", "new", ""]
    close(cached.encode(batch), Letters(padded=padded).encode(batch))
    assert sorted(encoder.read) == ["", "new", "something new"]
    close(cached.encode(["two"]), Letters(padded=padded).encode(["two"]))  # no padding for those that are not there
    assert len(encoder.read) == 3


def test_without_a_folder_prompts_are_remembered() -> None:
    encoder = Letters()
    cached = CachedTexts(encoder)
    same(cached.encode(WORDS), cached.encode(WORDS))
    assert sorted(encoder.read) == sorted(WORDS)


def test_encoders_do_not_read_each_other(tmp_path: Path) -> None:
    CachedTexts(Letters(seed=0), tmp_path).encode(WORDS)
    other = Letters(seed=1)
    close(CachedTexts(other, tmp_path).encode(WORDS), Letters(seed=1).encode(WORDS))
    assert sorted(other.read) == sorted(WORDS)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_another_process_adds_meanwhile_is_seen(tmp_path: Path) -> None:
    encoder = Letters()
    mine = CachedTexts(encoder, tmp_path)
    mine.encode(["one"])
    CachedTexts(Letters(), tmp_path).encode(["two", "three"])
    mine.encode(["one", "two", "four"])
    assert encoder.asked == [["one"], ["four"]]


def test_many_prompts_are_kept_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle, what was written is whole, and the rest is all that is left to do."""
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "BATCHES_PER_PART", 2)
    many = [f"prompt {i}" for i in range(30)]

    class Stopped(Letters):
        def encode(self, prompts: list[str]) -> TextEmbedding:
            if len(self.asked) == 5:
                raise KeyboardInterrupt
            return super().encode(prompts)

    with pytest.raises(KeyboardInterrupt):
        CachedTexts(Stopped(), tmp_path).encode(many)
    encoder = Letters()
    close(CachedTexts(encoder, tmp_path).encode(many), Letters().encode(many))
    assert len(encoder.read) == 30 - 4 * 4, "two parts of two batches of four were written"


def test_a_process_that_is_killed_while_it_writes_leaves_a_valid_cache(tmp_path: Path) -> None:
    CachedTexts(Letters(), tmp_path).encode(["before"])

    def killed() -> None:
        parts.write_text = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # one of two files is written
        CachedTexts(Letters(), tmp_path).encode(["before", "killed"])

    process = multiprocessing.get_context("fork").Process(target=killed)  # which need not import everything
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.rglob(".diptych-partial-*/new/*/text.safetensors")), "it had begun"
    encoder = Letters()
    close(CachedTexts(encoder, tmp_path).encode(["killed", "before"]), Letters().encode(["killed", "before"]))
    assert encoder.read == ["killed"]


@pytest.mark.parametrize("name", ["text.safetensors", "captions.json"])
@pytest.mark.parametrize("content", [None, b"", b'["only one"]', b"\x80\x04" + bytes(50)])
def test_a_damaged_part_is_made_again(tmp_path: Path, name: str, content: bytes | None) -> None:
    CachedTexts(Letters(), tmp_path).encode(["kept"])
    parts = set(tmp_path.rglob(name))
    CachedTexts(Letters(), tmp_path).encode(["spoilt", "too"])
    (damaged,) = set(tmp_path.rglob(name)) - parts
    damaged.unlink() if content is None else damaged.write_bytes(content)
    for expected in (["too", "spoilt"], []):
        encoder = Letters()
        close(
            CachedTexts(encoder, tmp_path).encode(["kept", "spoilt", "too"]),
            Letters().encode(["kept", "spoilt", "too"]),
        )
        assert encoder.read == expected


@pytest.mark.parametrize(("name", "old", "new"), [("text.safetensors", -1, 1), ("captions.json", 2, 2)])
def test_a_flipped_bit_is_seen_and_the_part_made_again(tmp_path: Path, name: str, old: int, new: int) -> None:
    CachedTexts(Letters(), tmp_path).encode(WORDS)
    (path,) = tmp_path.rglob(name)
    content = bytearray(path.read_bytes())
    content[old] ^= new  # a number that is as finite as before, or another letter
    path.write_bytes(content)
    encoder = Letters()
    close(CachedTexts(encoder, tmp_path).encode(WORDS), Letters().encode(WORDS))
    assert sorted(encoder.read) == sorted(WORDS)


def test_a_cut_file_is_made_again_and_nan_is_never_handed_out(tmp_path: Path) -> None:
    CachedTexts(Letters(), tmp_path).encode(WORDS)
    (path,) = tmp_path.rglob("text.safetensors")
    whole = load_safetensors(path)
    content = path.read_bytes()
    save_safetensors({**whole, "tokens": whole["tokens"] * float("nan")}, path)
    with pytest.raises(UserError, match="NaN or Inf: delete"):
        CachedTexts(Letters(), tmp_path).encode(WORDS)
    path.write_bytes(content[:-7])
    encoder = Letters()
    close(CachedTexts(encoder, tmp_path).encode(WORDS), Letters().encode(WORDS))
    assert sorted(encoder.read) == sorted(WORDS)


def test_what_does_not_fit_half_precision_is_kept_exactly(tmp_path: Path) -> None:
    exact = Letters(scale=1e6).encode(WORDS)
    for _ in range(2):
        ours = CachedTexts(Letters(scale=1e6), tmp_path).encode(WORDS)
        assert torch.equal(ours.sequence, exact.sequence)
    with pytest.raises(UserError, match="its weights are not usable"):
        CachedTexts(Letters(scale=float("inf")), tmp_path).encode(WORDS)


def test_a_prompt_that_is_refused_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    encoder = Letters()
    cached = CachedTexts(encoder, tmp_path)
    for _ in range(2):
        with pytest.raises(UserError, match="shorten it"):
            cached.encode(["x" * 99])
    close(cached.encode(WORDS), Letters().encode(WORDS))


def test_processes_that_read_the_same_prompts_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two here, as threads: a claim is one of an open file. What a dead one claimed is nobody's."""
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "QUIET", 4)
    monkeypatch.setattr(module, "BATCHES_PER_PART", 2)
    monkeypatch.setattr(module, "POLL", 0.01)
    many = [f"prompt {i}" for i in range(60)]
    both = threading.Barrier(2)

    class Slow(Letters):
        def encode(self, prompts: list[str]) -> TextEmbedding:
            if not self.asked:
                both.wait()  # both have begun
            return super().encode(prompts)

    encoders = [Slow(), Slow()]
    cached = [CachedTexts(encoder, tmp_path) for encoder in encoders]
    assert cached[0].folder is not None
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CachedTexts, "embed", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # killed
        cached[0].read(many)
    assert len(list(cached[0].folder.glob(".claim-*"))) == 1
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: one.read(list(many)), cached))
    assert sorted(encoders[0].read + encoders[1].read) == sorted(many), "each once, by one of them"
    assert encoders[0].read and encoders[1].read
    for one in cached:
        close(one.encode(many), Letters().encode(many))
    assert sorted(encoders[0].read + encoders[1].read) == sorted(many) and not list(cached[0].folder.glob(".claim-*"))


# The real encoder, built late and freed early


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5_folder(tmp_path_factory.mktemp("t5"))


def small(folder: Path, **changes: Any) -> T5Config:
    return T5Config.from_dict({"path": str(folder), "width": 24, "max_tokens": 64, **changes})


def test_the_encoder_is_built_when_it_is_needed_and_freed(t5: Path, tmp_path: Path) -> None:
    cached = CachedTexts(small(t5), tmp_path)
    assert not cached.loaded and cached.width == 24 and cached.max_tokens == 64
    fresh = cached.encode(PROMPTS)
    assert cached.loaded
    close(fresh, small(t5).build().encode(PROMPTS))
    network = weakref.ref(cached.encoder.model)  # type: ignore[attr-defined]
    cached.unload()
    gc.collect()
    assert network() is None and not cached.loaded and not list(cached.model.parameters())
    same(cached.encode(PROMPTS), fresh)
    second = CachedTexts(small(t5), tmp_path)
    second.read(PROMPTS)
    same(second.encode(PROMPTS), fresh)
    assert not cached.loaded and not second.loaded, "all was known"
    second.encode(["a dog"])
    assert second.loaded
    same(cached.encode(["a dog"]), second.encode(["a dog"]))
    assert not cached.loaded


def test_an_encoder_that_was_handed_over_is_not_freed(t5: Path) -> None:
    """It could not come back."""
    encoder = small(t5).build()
    cached = CachedTexts(encoder)
    cached.unload()
    close(cached.encode(["a cat"]), encoder.encode(["a cat"]))


def test_the_network_goes_where_the_system_goes(t5: Path) -> None:
    """A system moves `text.model`: what is loaded moves along, what is loaded later is built there."""
    cached = CachedTexts(small(t5))
    assert isinstance(cached.model, nn.Module) and not cached.model.state_dict()
    cached.encode(["a cat"])
    assert {p.device.type for p in cached.model.to("meta").parameters()} == {"meta"}
    cached.unload()
    assert next(cached.encoder.model.parameters()).device.type == "meta"  # type: ignore[attr-defined]


def test_a_fingerprint_is_of_the_content_not_the_path(t5: Path, tmp_path: Path) -> None:
    mine = CachedTexts(small(t5)).fingerprint
    assert mine == encoder_fingerprint(small(t5).build())
    assert mine == CachedTexts(small(t5_folder(tmp_path / "copy"))).fingerprint
    others = [small(t5_folder(tmp_path / "other", seed=1)), small(t5, max_tokens=32), small(t5, dtype="bfloat16")]
    weights = load_safetensors(tmp_path / "copy" / "model.safetensors")
    weights["encoder.final_layer_norm.weight"][0] += 1e-6
    save_safetensors(weights, tmp_path / "copy" / "model.safetensors")
    others.append(small(tmp_path / "copy"))
    assert len({mine, *(CachedTexts(other).fingerprint for other in others)}) == 5
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"{" * 50)
    with pytest.raises(UserError, match="damaged safetensors"):
        CachedTexts(small(tmp_path / "copy"), tmp_path).encode(["a"])
    with pytest.raises(UserError, match=r"set text\.path"):
        CachedTexts(small(tmp_path / "nowhere"), tmp_path)


def test_an_encoder_that_learns_is_not_cached(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cache a frozen one"):
        CachedTexts(JointTransformerConfig(), tmp_path)  # type: ignore[arg-type]


# Training's folders


def test_texts_of_a_folder_stand_before_the_cache_and_the_encoder(t5: Path, tmp_path: Path) -> None:
    EmbeddedTexts.compute(small(t5).build(), PROMPTS).save(tmp_path / "store")
    cached = CachedTexts(small(t5), tmp_path / "cache")
    texts = EmbeddedTexts.load(cached, tmp_path / "store")
    texts.read(PROMPTS)
    texts.encode(PROMPTS)
    assert not cached.loaded, "neither the check nor the answers need it"
    mixed = [PROMPTS[0], "a dog"]
    close(texts.encode(mixed), small(t5).build().encode(mixed))
    assert cached.loaded and list(cached.index) == ["a dog"]
    texts.unload()
    assert not cached.loaded
    with pytest.raises(UserError, match="another text encoder"):
        EmbeddedTexts.load(CachedTexts(small(t5, max_tokens=9)), tmp_path / "store")


def test_folders_that_name_their_encoder_by_its_weights_open(t5: Path, tmp_path: Path) -> None:
    """As they were written before encoders had fingerprints of their own."""
    encoder = small(t5).build()
    EmbeddedTexts.compute(encoder, PROMPTS).save(tmp_path)
    tensors = load_safetensors(tmp_path / "text.safetensors")
    for mark, opens in ((fingerprint(encoder.model), True), ("0123456789abcdef", False), (None, True)):
        save_safetensors(tensors, tmp_path / "text.safetensors", {} if mark is None else {"encoder": mark})
        for source in (encoder, CachedTexts(small(t5))):
            if opens:
                close(EmbeddedTexts.load(source, tmp_path).encode(PROMPTS), encoder.encode(PROMPTS))
            else:
                with pytest.raises(UserError, match="made with another text encoder"):
                    EmbeddedTexts.load(source, tmp_path)


def test_text_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    assert text_cache() == tmp_path / "text"
    monkeypatch.delenv("DIPTYCH_CACHE")
    assert text_cache() == Path.home() / ".cache" / "diptych" / "text"


def test_many_prompts_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.0)
    CachedTexts(Letters()).encode([f"{i}" for i in range(module.QUIET)])
    assert not capsys.readouterr().err
    CachedTexts(Letters()).encode([f"{i}" for i in range(2 * module.BATCH)])
    assert capsys.readouterr().err.startswith("embedding captions: 64 of 128, ")


def test_means_are_those_of_any_embedding_and_a_prompt_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = EmbeddedTexts.compute(Letters(), WORDS)
    looked, isfinite = [], torch.Tensor.isfinite
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda tensor: looked.append(1) or isfinite(tensor))
    for _ in range(3):
        found = texts.encode(WORDS)
        assert torch.equal(found.pooled, TextEmbedding.from_sequence(found.sequence, found.mask).pooled)
    assert len(looked) == 2, "tokens and means, the first time"


@pytest.mark.parametrize("padded", [False, True])
def test_prompts_are_embedded_alike_under_autocast(padded: bool) -> None:
    """As those of sample grids are, which no caption of the data asked for."""
    many = [f"a picture number {number}" for number in range(3 * module.BATCH)]
    plain = CachedTexts(Letters(padded=padded)).encode(many)
    with torch.autocast("cpu", torch.bfloat16):
        within = EmbeddedTexts(CachedTexts(Letters(padded=padded))).encode(many)
    assert torch.equal(within.sequence, plain.sequence) and torch.equal(within.pooled, plain.pooled)
