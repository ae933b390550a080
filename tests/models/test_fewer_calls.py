"""What saves calls of the network: guidance within an interval alone, and features that are cached."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.errors import UserError
from diptych.models.cascade import Cascade
from tests.models.latents import CAPTIONS, arrays, same_image, system
from tests.models.stages import base, drawing, enlarging, plain, stage


def calls(model: Any, **options: Any) -> int:
    """Images that the network processes on the way to two."""
    before = model.denoiser.calls
    model.generate(list(CAPTIONS), steps=4, sampler="euler", **options)
    return model.denoiser.calls - before


def cascade() -> Cascade:
    return Cascade.of([stage(base(network=plain(), sampler="ddim")), stage(enlarging(guidance=2.0))])


# Guidance within an interval.


def test_guidance_outside_of_its_interval_costs_half_and_is_that_of_the_config() -> None:
    model = system(schedule={"kind": "flow"}, prediction="flow")
    assert calls(model, guidance_interval="0:1") == calls(model) == 16
    assert calls(model, guidance_interval=(0.3, 0.8)) == 8 + 2 * 2, "two of the times 1, .75, .5, .25 lie within"
    given = model.generate(list(CAPTIONS), guidance_interval="0.3:0.8")
    stated = system(schedule={"kind": "flow"}, prediction="flow", interval=(0.3, 0.8)).generate(list(CAPTIONS))
    assert np.array_equal(arrays(given), arrays(stated))
    assert not np.array_equal(arrays(given), arrays(model.generate(list(CAPTIONS))))
    assert given.metadata[0]["guidance_interval"] == "0.3:0.8"
    assert "guidance_interval" not in model.generate(CAPTIONS[0]).metadata[0]
    row = json.loads(json.dumps(given.metadata[1]))
    again = model.generate(row["prompt"], seeds=[row["seed"]], guidance_interval=row["guidance_interval"])
    assert same_image(again.images[0], given.images[1])


def test_pixel_models_and_stages_of_cascades_have_an_interval_each() -> None:
    one = stage(base())
    assert calls(one, guidance_interval="0:0.6") == 8 + 2 * 2
    model = cascade()
    each = model.generate("red left", guidance_interval=["0.1:0.5", None]).metadata[0]["stages"]
    assert [row.get("guidance_interval") for row in each] == ["0.1:0.5", None]
    both = model.generate("red left", guidance_interval="0:0.5").metadata[0]["stages"]
    assert [row["guidance_interval"] for row in both] == ["0.0:0.5"] * 2


@pytest.mark.parametrize("wrong", ["0.8:0.3", "0.5", "a:b", (0.1, 0.2, 0.3), (-1, 1), "0:nan", 3])
def test_an_interval_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"guidance_interval must .*, not "):
        system().generate(CAPTIONS[0], guidance_interval=wrong)


def test_a_cascade_wants_intervals_as_texts() -> None:
    with pytest.raises(UserError, match=r"guidance_interval must be LOW:HIGH, as 0.2:0.9, not 0.1"):
        cascade().generate("red left", guidance_interval=(0.1, 0.5))  # type: ignore[arg-type]


# Cached features.


def test_cached_features_are_off_unless_asked_for_and_recorded_where_they_are() -> None:
    model = system()
    usual = model.generate(list(CAPTIONS), steps=5)
    assert "cache_interval" not in usual.metadata[0]
    assert np.array_equal(arrays(model.generate(list(CAPTIONS), steps=5, cache_interval=1)), arrays(usual))
    cached = model.generate(list(CAPTIONS), steps=5, cache_interval=3)
    assert cached.metadata[0]["cache_interval"] == 3 and not np.array_equal(arrays(cached), arrays(usual))
    assert np.array_equal(arrays(model.generate(list(CAPTIONS), steps=5)), arrays(usual)), "nothing stays behind"
    row = json.loads(json.dumps(cached.metadata[1]))
    again = model.generate(row["prompt"], seeds=[row["seed"]], steps=5, cache_interval=row["cache_interval"])
    assert same_image(again.images[0], cached.images[1]), "it does not depend on the batch"


@pytest.mark.parametrize(
    "options",
    [{"sampler": "heun"}, {"sampler": "ddpm"}, {"guidance_interval": "0.2:0.7"}, {"guidance": 1.0}, {"strength": 0.6}],
    ids=str,
)
def test_cached_features_go_with_what_else_is_asked_for(options: dict[str, Any]) -> None:
    """An image is the same alone and in company, whatever else is asked for, and each step is shown."""
    model, shown = system(), list[int]()
    image = {"image": drawing(16, 16)} if "strength" in options else {}
    given = {**options, **image, "steps": 5, "cache_interval": 2}
    both = model.generate(list(CAPTIONS), callback=lambda step, steps, x0: shown.append(step), **given)
    alone = model.generate(CAPTIONS[1], seeds=[1], **given)
    assert same_image(both.images[1], alone.images[0]) and shown == list(range(len(shown))) and len(shown) >= 3


def test_stages_of_cascades_cache_each_for_itself() -> None:
    rows = cascade().generate("red left", cache_interval=[2, None]).metadata[0]["stages"]
    assert [row.get("cache_interval") for row in rows] == [2, None]


def test_a_network_that_cannot_be_cut_is_refused() -> None:
    one = stage(base(network=base().network.override(["skips=level"])))
    with pytest.raises(UserError, match="cache_interval has no effect on a EfficientUNet with one skip connection"):
        one.generate("red left", cache_interval=2)
    with pytest.raises(UserError, match="cache_interval must be at least 1, not 0"):
        one.generate("red left", cache_interval=0)


def test_cached_features_are_those_of_the_last_full_call() -> None:
    model = system()
    network, seen = model.unet, list[tuple[str, int]]()
    network.middle[0].register_forward_hook(lambda *_: seen.append(("middle", 0)))
    network.conv_out.register_forward_hook(lambda *_: seen.append(("out", 0)))
    with torch.no_grad():
        model.generate(CAPTIONS[0], steps=6, sampler="euler", cache_interval=3)
    assert [name for name, _ in seen] == ["middle", "out", "out", "out", "middle", "out", "out", "out"]
