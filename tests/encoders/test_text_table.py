"""Embeddings that are gathered on a device are those that the cache gives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from diptych.core.errors import UserError
from diptych.encoders import text_table
from diptych.encoders.base import TextEmbedding
from diptych.encoders.cache import CachePart, EmbeddedTexts, padded
from diptych.encoders.text_table import TextTable

WIDTH = 6


class Letters:
    """As many tokens as a prompt has letters; `own` pooled embeddings, or the mean; `large` where half is too small."""

    width, max_tokens = WIDTH, 99

    def __init__(self, own: bool = False, large: bool = False) -> None:
        self.own, self.large = own, large

    def encode(self, prompts: list[str]) -> TextEmbedding:
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        values = torch.randn(*mask.shape, WIDTH, generator=torch.Generator().manual_seed(len(prompts)))
        sequence = torch.where(mask[..., None], values * (1e6 if self.large else 1), 0.0)
        embedding = TextEmbedding.from_sequence(sequence, mask)
        return embedding._replace(pooled=embedding.sequence[:, 0] + 1) if self.own else embedding


def texts(*kinds: Letters) -> EmbeddedTexts:
    """A part of prompts for each kind."""
    named = [(kind, [f"{'abcdef'[n]}{'x' * i}" for i in range(1, 9)]) for n, kind in enumerate(kinds)]
    parts = [CachePart.of(prompts, kind.encode(prompts)) for kind, prompts in named]
    return EmbeddedTexts(Letters(), *parts)


@pytest.mark.parametrize(
    "kinds", [(Letters(),), (Letters(own=True),), (Letters(), Letters(own=True)), (Letters(), Letters(large=True))]
)
def test_what_is_gathered_is_what_is_kept(kinds: Sequence[Letters]) -> None:
    kept = texts(*kinds)
    table = TextTable.of(kept.index, torch.device("cpu"))
    assert table is not None and table.finite()
    for prompts in (list(kept.index), ["axx", "axxxxxxxx", "axx"], ["ax"]):
        found, wanted = table.encode(prompts), padded([kept.index[prompt] for prompt in prompts])
        assert found is not None
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    assert table.encode(["ax", "unknown"]) is None


def test_embeddings_come_from_the_device_where_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, gpu = texts(Letters()), torch.device("meta")
    kept.keep_on(torch.device("cpu"))
    assert kept.table is None
    kept.keep_on(gpu, ["ax", "axx", "nowhere"])
    assert {part.device for part in kept.encode(["axx", "ax"])} == {gpu}
    assert kept.encode(["axx", "axxx"]).sequence.device.type == "cpu"  # not all of them are there
    assert "new" in kept.missing(["new"]) and len(kept.encode(["new"]).sequence) == 1
    monkeypatch.setattr(text_table, "LARGEST", 100)
    kept.keep_on(gpu)
    assert kept.table is None


def test_a_table_is_looked_at_once() -> None:
    kept = texts(Letters())
    kept.parts[0].tokens[3] = torch.inf
    table = TextTable.of(kept.index, torch.device("cpu"))
    assert table is not None and not table.finite()
    with pytest.raises(UserError, match="holds NaN"):
        kept.encode(list(kept.index))
