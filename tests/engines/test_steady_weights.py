"""Weights are looked at once while an image is sampled, unless a user's function may change them meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.steady import looks_on, steady_weights
from diptych.engines import say_once
from diptych.engines.accelerate import accelerate
from diptych.engines.weights_watch import WeightsWatch
from tests.engines.small_networks import UNET, random_weights
from tests.models.latents import CAPTIONS, arrays, system

pytest.importorskip("openvino")


def test_a_change_is_seen_when_weights_are_steady_no_more() -> None:
    unet = random_weights(UNET.build())
    watch = WeightsWatch(unet)
    before = watch.state()
    with steady_weights():
        assert watch.state() == before
        unet.conv_in.weight.data.mul_(2)
        assert watch.state() == before, "not looked for"
    assert watch.state() != before
    with steady_weights():
        assert watch.state() != before, "another period looks anew"
        with steady_weights(False):
            unet.conv_in.weight.data.mul_(3)
            within = watch.state()
        assert watch.state() == within != before


@pytest.mark.parametrize("own", [True, False], ids=["a callback that looks on", "a user's callback"])
def test_weights_that_a_callback_changes(own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    monkeypatch.delenv("DIPTYCH_ENGINE")
    say_once.told.clear()
    looked: list[int] = []
    monkeypatch.setattr(WeightsWatch, "_state", counted(looked, WeightsWatch._state))

    def images(engine: str) -> np.ndarray:
        model = system(prediction="v")
        accelerate(model, engine)

        def callback(step: int, steps: int, x0: Any) -> None:
            if not own and step == 2:
                with torch.no_grad():
                    model.unet.conv_in.weight.mul_(1.5)

        looked.clear()
        return arrays(model.generate(CAPTIONS[0], steps=6, callback=looks_on(callback) if own else callback))

    made = images("openvino")
    decodes = 1
    assert (len(looked) == 1 + decodes) == own, "once an image, or once a call"
    assert np.abs(made - images("pytorch")).max() <= 1


def counted(looked: list[int], state: Any) -> Any:
    def counting(watch: WeightsWatch) -> int:
        looked.append(1)
        return state(watch)

    return counting
