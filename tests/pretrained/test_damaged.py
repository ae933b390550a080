"""Files of every family, damaged in every way: refused with the reason, and with the published name of the key.

Each family's own tests know further ways of its own. None of these files is ever unpickled.
"""

from __future__ import annotations

import itertools
import math
import os
import pickle
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.cli.describe import describe
from diptych.core.errors import UserError
from diptych.weights.files import load_safetensors
from diptych.weights.save import save_safetensors
from tests.pretrained.every_family import KINDS, Kind, opened, place, tokenizer

pytest.importorskip("diffusers")

Tensors = dict[str, Tensor]


FAST = {"sd1-folder-text", "sd1-file", "if-base", "ldm-text-kl", "first-stage-vq", "adm-classifier"}
"""One of each family; the others are read by the same code, and run with the slow tests."""


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in KINDS]
)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kind, Path]:
    """A model of each kind, and the folder that it lies in."""
    kind, folder = KINDS[request.param], tmp_path_factory.mktemp(request.param)
    kind.write(folder)
    return kind, folder


@lru_cache
def tensors_of(file: Path) -> Tensors:
    return load_safetensors(file)


def part_keys(file: Path) -> list[str]:
    """A few keys that are read, of every network in a file: matrices and vectors."""
    prefixes = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
    unread = ("position_ids", "loss.", "to_logits", "resblocks.2.", "text_projection", "logit_scale", "model_ema")
    keys = [key for key in sorted(tensors_of(file)) if not any(part in key for part in unread)]
    groups = [group for prefix in prefixes if (group := [key for key in keys if key.startswith(prefix)])] or [keys]
    return [group[at * (len(group) - 1) // 4] for group in groups for at in (0, 3)]


def copied(kind: Kind, folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target, dirs_exist_ok=True)
    return target / kind.file


def refusal(kind: Kind, folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(kind, folder, **options)
    said = str(caught.value)
    assert str(folder) in said and "\n" not in said
    return said


def test_info_counts_what_is_read(whole: tuple[Kind, Path]) -> None:
    """Each network by itself, without reading it: as many as are there once it is read."""
    kind, folder = whole
    described = describe(place(kind, folder), tokenizer=tokenizer(folder))
    assert tuple(sorted(described["networks"])) == kind.networks
    model = opened(kind, folder)
    read = (model, getattr(model, "autoencoder", None), getattr(getattr(model, "text", None), "model", None))
    counted = {id(p): p.numel() for one in read if isinstance(one, torch.nn.Module) for p in one.parameters()}
    assert sum(described["networks"].values()) == described["total"] == sum(counted.values())


def test_a_key_that_is_missing_is_named(whole: tuple[Kind, Path], tmp_path: Path) -> None:
    kind, folder = whole
    file = copied(kind, folder, tmp_path)
    for key in part_keys(folder / kind.file):
        save_safetensors({name: tensor for name, tensor in tensors_of(folder / kind.file).items() if name != key}, file)
        assert key in refusal(kind, tmp_path)


def test_a_shape_that_is_wrong_is_named(whole: tuple[Kind, Path], tmp_path: Path) -> None:
    """A row too many or an axis too many. Sizes are told by shapes: what is named may be the key beside it."""
    kind, folder = whole
    file, stored = copied(kind, folder, tmp_path), tensors_of(folder / kind.file)
    exact = 0
    keys = part_keys(folder / kind.file)
    for number, key in enumerate(keys):
        tensor = stored[key]
        longer = number % 2 == 0 and "emb" not in key  # of an embedding, the rows may be as many as they are
        wrong = torch.cat([tensor, tensor[:1]]) if longer else tensor[None]
        save_safetensors({**stored, key: wrong.contiguous()}, file)
        exact += key in (said := refusal(kind, tmp_path))
        assert any(name in said for name in stored)
    assert exact >= len(keys) / 2


def test_a_key_too_many_is_named(whole: tuple[Kind, Path], tmp_path: Path) -> None:
    kind, folder = whole
    file, stored = copied(kind, folder, tmp_path), tensors_of(folder / kind.file)
    beside = next(key for key in sorted(stored) if key.count(".") > 2).rpartition(".")[0]
    for extra in ("more.weight", f"{beside}.more"):
        save_safetensors({**stored, extra: torch.zeros(2)}, file)
        assert f"unexpected key '{extra}'" in refusal(kind, tmp_path)


def test_what_is_not_finite_is_named(whole: tuple[Kind, Path], tmp_path: Path) -> None:
    """One number among many is enough."""
    kind, folder = whole
    file, stored = copied(kind, folder, tmp_path), tensors_of(folder / kind.file)
    for key, value in zip(part_keys(folder / kind.file)[::2], itertools.cycle([math.nan, -math.inf])):
        spoilt = stored[key].clone()
        spoilt.view(-1)[-1] = value
        save_safetensors({**stored, key: spoilt}, file)
        assert f"tensor '{key}' holds NaN or Inf" in refusal(kind, tmp_path)


def test_a_file_that_is_cut_short_is_refused(whole: tuple[Kind, Path], tmp_path: Path) -> None:
    kind, folder = whole
    file = copied(kind, folder, tmp_path)
    all_of_it = file.read_bytes()
    for left in (-1, 100, 5, 0):
        file.write_bytes(all_of_it[:left])
        said = refusal(kind, tmp_path)
        assert str(file) in said and any(word in said for word in ("damaged", "cut short", "empty"))


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_by_the_name_of_safetensors_never_runs(whole: tuple[Kind, Path], tmp_path: Path) -> None:
    kind, folder = whole
    file, trace = copied(kind, folder, tmp_path), tmp_path / "ran"
    values = {**tensors_of(folder / kind.file), "more": Malicious(trace)}
    for bare, allowed in itertools.product((False, True), repeat=2):
        file.write_bytes(pickle.dumps(values)) if bare else torch.save(values, file)
        said = refusal(kind, tmp_path, allow_pickle=allowed)
        assert str(file) in said and "is not a safetensors file but a" in said
        assert not trace.exists()


def test_a_pickle_needs_leave_and_its_code_never_runs(whole: tuple[Kind, Path], tmp_path: Path) -> None:
    """By its own name: refused without --allow-pickle; with it, tensors are read and code is refused."""
    kind, folder = whole
    stored, trace = tensors_of(folder / kind.file), tmp_path / "ran"
    file = copied(kind, folder, tmp_path)
    file.unlink()
    named = file.with_suffix(".bin" if kind.opened else ".ckpt")
    torch.save({**stored, "more": Malicious(trace)}, named)
    kind = kind._replace(file=named.name) if not kind.opened else kind
    assert "allow-pickle" in refusal(kind, tmp_path)
    assert "mkdir" in refusal(kind, tmp_path, allow_pickle=True)
    assert not trace.exists()
