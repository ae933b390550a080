"""The text transformer as latent-diffusion published it: BERT's tokenizer, and padding that is read along."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from diptych.core.errors import UserError
from diptych.encoders.configs import JointTransformerConfig
from diptych.encoders.joint import JointTransformer
from diptych.encoders.tokenizers import bert_tokenizer
from diptych.networks.transformer import TextTransformerConfig
from tests.encoders.tiny_encoders import PROMPTS, bert_folder
from tests.networks.reference import randomised

TOKENS = 48
SHAPE = TextTransformerConfig(vocabulary=80, max_tokens=TOKENS, width=16, layers=2, heads=2, head_width=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("bert"))


def encoder(folder: Path, padded: bool = True) -> JointTransformer:
    return randomised(JointTransformer(JointTransformerConfig(network=SHAPE, tokenizer=str(folder), padded=padded)))


@torch.no_grad()
def test_the_padding_is_read_along(folder: Path) -> None:
    from transformers import BertTokenizerFast

    padded, plain = encoder(folder), encoder(folder, padded=False)
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    ids = tokenizer(PROMPTS, padding="max_length", max_length=TOKENS, return_tensors="pt")["input_ids"]
    read = padded.encode(PROMPTS)
    assert read.sequence.shape == (len(PROMPTS), TOKENS, 16)
    assert read.mask.all()
    torch.testing.assert_close(read.sequence, padded.network(ids))
    own = plain.encode(PROMPTS)
    assert own.sequence.shape[1] < TOKENS and not own.mask.all()
    assert not torch.allclose(own.sequence[0, 0], read.sequence[0, 0])


@torch.no_grad()
def test_a_prompt_does_not_depend_on_its_neighbours(folder: Path) -> None:
    padded = encoder(folder)
    together = padded.encode(PROMPTS).sequence
    for prompt, row in zip(PROMPTS, together, strict=True):
        torch.testing.assert_close(padded.encode([prompt]).sequence[0], row)


def test_the_tokenizer_may_be_a_list_of_tokens_alone(folder: Path, tmp_path: Path) -> None:
    whole = bert_tokenizer(folder)
    (tmp_path / "configured").mkdir()
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / "configured" / name)
    shutil.copy(folder / "vocab.txt", tmp_path / "vocab.txt")
    for other in (bert_tokenizer(tmp_path), bert_tokenizer(tmp_path / "configured")):
        assert [other.encode(prompt).ids for prompt in PROMPTS] == [whole.encode(prompt).ids for prompt in PROMPTS]


def test_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it needs tokenizer.json or vocab.txt"):
        bert_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not the vocabulary of a BERT"):
        bert_tokenizer(tmp_path)
