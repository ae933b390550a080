"""float32 or bfloat16: what the processor is made for, and then always the same in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.core import devices
from diptych.core.devices import fast_bf16
from diptych.training.precision import UNRECORDED, choose
from diptych.training.trainer import train
from tests.training.toy import Toy, batch_at, settings

FACTS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def has(monkeypatch: pytest.MonkeyPatch, *facts: str) -> None:
    """Let the processor have these."""
    monkeypatch.setattr(devices, "CPU_BF16", FACTS)
    for fact in FACTS:
        monkeypatch.setattr(torch.cpu, fact, lambda fact=fact: fact in facts, raising=False)


class Seeing(Toy):
    """Notes whether its loss is taken in bfloat16."""

    bf16: bool | None = None

    def loss(self, batch: dict[str, Any]) -> Any:
        self.bf16 = torch.is_autocast_enabled("cpu")
        return super().loss(batch)


def trained(folder: Path, steps: int, **changes: Any) -> bool | None:
    toy = Seeing()
    train(toy, batch_at, settings(steps=steps, schedule="constant", **changes), folder)
    return toy.bf16


@pytest.mark.parametrize(("facts", "fast"), [((), False), (FACTS[:1], True), (FACTS[1:], True)])
def test_a_processor_is_asked_for_bf16(monkeypatch: pytest.MonkeyPatch, facts: tuple[str, ...], fast: bool) -> None:
    has(monkeypatch, *facts)
    assert fast_bf16(torch.device("cpu")) is fast
    assert not fast_bf16(torch.device("mps"))


def test_a_version_of_pytorch_that_does_not_know_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "CPU_BF16", ("_is_of_a_later_version",))
    assert not fast_bf16(torch.device("cpu"))


def test_a_run_begins_with_what_the_processor_has_and_stays_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has(monkeypatch)
    assert trained(tmp_path / "plain", 2) is False
    has(monkeypatch, FACTS[0])
    assert trained(tmp_path / "new", 2) is True
    assert "began with" not in capsys.readouterr().err
    assert trained(tmp_path / "plain", 3) is False
    assert "the run began with fp32 and stays with it" in capsys.readouterr().err
    has(monkeypatch)
    assert trained(tmp_path / "new", 3) is False
    assert "the run began with bf16, which is slow on this device" in capsys.readouterr().err
    has(monkeypatch, FACTS[1])
    assert trained(tmp_path / "new", 4) is True  # what it began with is not forgotten
    assert trained(tmp_path / "asked", 1, precision="fp32") is False
    assert "precision" not in json.loads((tmp_path / "asked" / "config.json").read_text())


def test_a_run_of_an_earlier_version_is_in_float32_on_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained(tmp_path, 2) is False
    values = json.loads((tmp_path / "config.json").read_text())
    assert values.pop("precision") == "fp32"
    (tmp_path / "config.json").write_text(json.dumps(values))
    has(monkeypatch, *FACTS)
    assert trained(tmp_path, 3) is False
    assert json.loads((tmp_path / "config.json").read_text())["precision"] == "fp32"
    assert choose(UNRECORDED, True, "cuda").bf16 and not choose(UNRECORDED, False, "cuda").bf16
