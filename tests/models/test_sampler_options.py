"""Options of samplers reach them through `generate`, and the metadata."""

from __future__ import annotations

from typing import Any

import pytest

from diptych.core.errors import UserError
from tests.models.latents import arrays, system
from tests.models.stages import CAPTIONS, base, cascade, stage


@pytest.mark.parametrize("model", [system(), stage(base())], ids=["latent", "pixel"])
def test_eta_reaches_the_sampler_and_the_metadata(model: Any) -> None:
    options: dict[str, Any] = {"seeds": [3, 4], "steps": 4}
    ddim = model.generate(list(CAPTIONS), sampler="ddim", **options)
    deterministic, stochastic = (
        model.generate(list(CAPTIONS), sampler="ddim", eta=eta, **options) for eta in (0.0, 0.5)
    )
    assert (arrays(deterministic) == arrays(ddim)).all() and (arrays(stochastic) != arrays(ddim)).any()
    row = stochastic.metadata[0]
    assert row["eta"] == 0.5 and "eta" not in ddim.metadata[0]
    again = model.generate(CAPTIONS[0], seeds=[3], **{key: row[key] for key in ("steps", "sampler", "guidance", "eta")})
    assert abs(arrays(again)[0].astype(int) - arrays(stochastic)[0]).max() <= 1
    with pytest.raises(UserError, match="the sampler ddim has no s_churn"):
        model.generate(CAPTIONS[0], sampler="ddim", s_churn=5.0)


def test_each_stage_of_a_cascade_has_its_own() -> None:
    model = cascade()
    result = model.generate(CAPTIONS[0], sampler="ddim", eta=[0.5, None, 1.0])
    assert [row.get("eta") for row in result.metadata[0]["stages"]] == [0.5, None, 1.0]
    with pytest.raises(UserError, match="threshold is for pixel models"):
        system().generate(CAPTIONS[0], threshold="static")  # type: ignore[call-arg]
