"""The names and hashes of LoRA files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diptych.core.errors import UserError
from diptych.weights.file_hash import named_file
from diptych.weights.lora_hash import named_lora


def test_the_hash_of_the_tensors_stays_where_texts_are_edited(tmp_path: Path) -> None:
    tensor = torch.arange(6.0)
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_file({"a": tensor}, one)
    save_file({"a": tensor}, two, metadata={"title": "a style"})
    assert named_lora(one)["sha256"] != named_lora(two)["sha256"]
    expected = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    assert named_lora(one)["tensors_sha256"] == named_lora(two)["tensors_sha256"] == expected


def test_a_file_that_changed_is_hashed_again(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2)}, file)
    before = named_lora(file)["tensors_sha256"]
    save_file({"a": torch.zeros(3)}, file)
    assert named_lora(file)["tensors_sha256"] != before


def test_other_files_have_a_hash_of_the_file_alone(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"x")
    assert named_lora(tmp_path / "a.pt") == named_file(tmp_path / "a.pt")
    with pytest.raises(UserError, match="cannot be read"):
        named_lora(tmp_path / "missing.safetensors")
