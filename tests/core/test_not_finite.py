"""What is not finite never becomes an image, and the message says where it came from and what to try."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from diptych.core.checks import remedy
from diptych.core.errors import UserError
from diptych.core.images import to_images
from diptych.diffusion.finite_check import FiniteCheck
from tests.models import codes, latents, stages

INFINITE, NAN = float("inf"), float("nan")


def latent() -> Any:
    return latents.system()


def pixels() -> Any:
    return stages.stage(stages.base())


def broken(system: Any, module: Any, value: float) -> Any:
    """The system, with one module whose output has one such value."""
    module.register_forward_hook(lambda _module, _inputs, output: output.index_fill(-1, torch.tensor([0]), value))
    return system


@pytest.mark.parametrize("value", [NAN, INFINITE])
def test_of_latents_the_step_is_said(value: float) -> None:
    model = latent()
    with pytest.raises(UserError, match=r"step 1 of 3 of this model is not finite .* lower the guidance of 3"):
        broken(model, model.unet.conv_out, value).generate("a red picture")


def test_of_what_a_decoder_makes() -> None:
    model = latent()
    with pytest.raises(UserError, match="what the decoder makes of the latents is not finite"):
        broken(model, model.autoencoder.decoder, INFINITE).generate("a red picture")


@pytest.mark.parametrize("threshold", ["none", "static", "dynamic"])
def test_no_threshold_clips_infinity_to_a_colour(threshold: str) -> None:
    stage = pixels()
    broken(stage, stage.network.conv_out, INFINITE)
    with pytest.raises(UserError, match=f"step 1 of 4 of the stage {stage.config.name} is not finite"):
        stage.generate("red", steps=4, threshold=threshold)


def test_of_a_cascade_the_stage_is_said() -> None:
    cascade = stages.cascade()
    broken(cascade, cascade.networks[1].conv_out, NAN)
    with pytest.raises(UserError, match=f"of the stage {cascade.configs[1].name} is not finite"):
        cascade.generate("red", steps=2)


def test_of_codes() -> None:
    model = codes.system()
    broken(model, model.transformer, NAN)
    with pytest.raises(UserError, match="what the transformer gives is not finite"):
        model.generate("a red picture")


@pytest.mark.parametrize("guidance", [1e30, -1001, 1e5])
@pytest.mark.parametrize("make", [latent, pixels, codes.system])
def test_guidance_is_bounded(make: Callable[[], Any], guidance: float) -> None:
    with pytest.raises(UserError, match="guidance must lie between -1000 and 1000"):
        make().generate("a red picture", guidance=guidance)


def test_arithmetic_without_a_result_is_said() -> None:
    denoiser: Any = None  # the sampler fails before it is asked
    check, x = FiniteCheck("this model", torch.linspace(1, 0, 5), "nothing"), torch.zeros(1, 3, 4, 4)

    def walk(error: Exception) -> Callable[..., torch.Tensor]:
        def run(*_: Any) -> torch.Tensor:
            raise error

        return run

    for error in (
        ZeroDivisionError("float division by zero"),
        OverflowError("too large"),
        ValueError("math domain error"),
    ):
        with pytest.raises(UserError, match="this model: 4 steps of this sampler have no result"):
            check.wrap_sampler(walk(error))(denoiser, x, check.times)
    with pytest.raises(ValueError, match="another"):
        check.wrap_sampler(walk(ValueError("another")))(denoiser, x, check.times)


def test_every_image_passes_the_check() -> None:
    with pytest.raises(UserError, match="what the network gives is not finite"):
        to_images(torch.full((1, 3, 4, 4), NAN))


def test_what_to_try_follows_from_the_settings() -> None:
    assert remedy(torch.float16, 7.0).startswith("open the model as float32, it computes in float16, or lower the guid")
    assert remedy(torch.float32) == "take another sampler or another number of steps"
