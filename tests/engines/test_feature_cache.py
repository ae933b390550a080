"""Cached features with an engine in the place of the network's forward: it runs both halves; images are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diptych.engines.accelerate import accelerate
from diptych.engines.replace import Part, restore
from diptych.networks.feature_cache import halves_of
from diptych.studio.step_measures import StepMeasures
from tests.models.latents import CAPTIONS, arrays, system

pytest.importorskip("openvino")


def test_an_engine_runs_the_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    model = system()
    plain = halves_of(model.unet)
    options = {"steps": 4, "cache_interval": 2}
    expected = model.generate(list(CAPTIONS), **options)  # type: ignore[arg-type]
    accelerate(model, engine="openvino")
    made = model.generate(list(CAPTIONS), **options)  # type: ignore[arg-type]
    assert np.abs(arrays(made) - arrays(expected)).max() <= 1
    halves = halves_of(model.unet)
    assert halves is not plain and halves_of(model.unet) is halves, "made once for an engine"
    for method in ("full", "shallow"):
        assert len(vars(halves)[method]._compiled) == 1, f"the {method} pass was compiled"
    assert not vars(model.unet)["forward"]._compiled, "the whole network was not asked"
    capsys.readouterr()
    with StepMeasures(model, len(CAPTIONS)):  # whose hooks are on the network, as the studio's
        seen = model.generate(list(CAPTIONS), **options)  # type: ignore[arg-type]
    assert np.array_equal(arrays(seen), arrays(made)) and not capsys.readouterr().err
    restore(Part(model.unet, "forward", "U-Net"))
    assert halves_of(model.unet) is not halves
