"""The latent panel: what `generate` promises, for every sampler, and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychWarning, UserError
from diptych.diffusion.samplers import SAMPLERS, read_sampler
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.steps import NoiseSource
from diptych.models.latent_diffusion import LatentDiffusion
from tests.models.latents import CAPTIONS, arrays, autoencoder, config, joint, same_image, system, toy_batch

FLOW = {"schedule": ScheduleConfig(kind="flow"), "prediction": "flow"}
PROMPTS = [CAPTIONS[i % 2] + " with a cat" * (i % 3) for i in range(8)]
SEEDS = [5, 0, 7, 7, 123_456_789, 2**63 - 1, 1, 2]


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return system()


def sampled() -> list[Any]:
    """Every sampler with both kinds of model; each other sampler is fast, with one of them, and `test_samplers.py` has
    all on numbers alone."""
    pairs = itertools.product(enumerate(SAMPLERS), enumerate([{}, FLOW]))
    slow = pytest.mark.slow
    return [
        pytest.param(s, kind, id=f"{s}-{'flow' if j else 'eps'}", marks=[] if divmod(i % 4, 2) == (j, 0) else [slow])
        for (i, s), (j, kind) in pairs
    ]


@pytest.mark.parametrize(("sampler", "kind"), sampled())
def test_a_seed_gives_its_image_alone_and_in_any_company(sampler: str, kind: dict[str, Any]) -> None:
    model = system(**kind)
    together = model.generate(PROMPTS, seeds=SEEDS, sampler=sampler)
    shown = arrays(together)
    assert np.mean((shown > 0) & (shown < 255)) > 0.5, "clipped images would agree for nothing"
    assert shown[2].std() > 1 and np.abs(shown[2] - shown[3]).max() > 1, "prompts differ, so images do"
    for i in (0, 3, 7):
        alone = model.generate(PROMPTS[i], seeds=[SEEDS[i]], sampler=sampler)
        assert same_image(alone.images[0], together.images[i])
    turned = model.generate(PROMPTS[::-1], seeds=SEEDS[::-1], sampler=sampler)
    assert all(same_image(a, b) for a, b in zip(turned.images, together.images[::-1], strict=True))


def test_minilm_prompts_keep_their_image_in_company() -> None:
    model = system("minilm")
    together = model.generate(PROMPTS, seeds=SEEDS)
    for i in (1, 6):
        assert same_image(model.generate([PROMPTS[i]], seeds=[SEEDS[i]]).images[0], together.images[i])


@pytest.mark.every(3)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_metadata_is_enough_to_make_each_image_again(model: LatentDiffusion, sampler: str) -> None:
    options: dict[str, Any] = {"steps": np.int64(4), "guidance": np.float32(2.5), "size": (np.int32(24), 16)}
    result = model.generate(list(CAPTIONS), seeds=np.array([3, 4]), sampler=sampler, negative=["", "grey"], **options)
    assert [image.size for image in result.images] == [(24, 16)] * 2
    for image, told in zip(result.images, json.loads(json.dumps(result.metadata)), strict=True):
        prompt, seed = told.pop("prompt"), told.pop("seed")
        told = {key: value for key, value in told.items() if key not in ("cost", "notes")}
        assert same_image(model.generate(prompt, seeds=[seed], **told).images[0], image)


def test_what_is_not_said_is_the_models_own(model: LatentDiffusion) -> None:
    result = model.generate(list(CAPTIONS))
    own = {"steps": 3, "guidance": 3.0, "sampler": "ddim", "size": [16, 16], "negative": None}
    own |= {"cost": {"calls": 6, "gradients": 0}}
    assert result.metadata == [{"prompt": p, "seed": i, **own} for i, p in enumerate(CAPTIONS)]


def test_a_schedule_type_is_followed_and_kept(model: LatentDiffusion) -> None:
    usual = model.generate("a", steps=4, sampler="euler")
    curved = model.generate("a", steps=4, sampler="euler", schedule_type="karras")
    assert curved.metadata[0]["schedule_type"] == "karras" and "schedule_type" not in usual.metadata[0]
    assert np.abs(arrays(curved) - arrays(usual)).max() > 1
    with pytest.raises(UserError, match="unknown schedule type 'simple'"):
        model.generate("a", schedule_type="simple")


def test_a_default_that_stands_in_is_said_where_it_is_used(model: LatentDiffusion) -> None:
    plain = dataclasses.replace(model.config, sampler="ddim")
    standing = dataclasses.replace(plain, published_scheduler="PNDMScheduler")
    with pytest.warns(DiptychWarning, match="PNDMScheduler is not among the samplers: ddim is used instead"):
        assert read_sampler(None, standing) == "ddim"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_sampler("euler", standing) == "euler" and read_sampler(None, plain) == "ddim"


def test_given_noise_takes_the_place_of_the_seeds(model: LatentDiffusion) -> None:
    noise = NoiseSource([7, 8], (4, 8, 8)).draw()
    usual = model.generate(list(CAPTIONS), seeds=[7, 8])
    given = model.generate(list(CAPTIONS), seeds=[0, 0], noise=noise.double())
    assert np.array_equal(arrays(usual), arrays(given))
    assert np.abs(arrays(model.generate(list(CAPTIONS), seeds=[0, 0])) - arrays(usual)).max() > 1
    assert [told["noise"]["in_memory"] for told in given.metadata] == [[4, 8, 8]] * 2, "no seed makes it again"


@pytest.mark.parametrize("sampler", ["ddpm", "euler-ancestral", "dpmpp-2m-sde"])
def test_what_a_sampler_draws_does_not_shift_when_noise_is_given(model: LatentDiffusion, sampler: str) -> None:
    noise = NoiseSource([7, 8], (4, 8, 8)).draw()
    usual = model.generate(list(CAPTIONS), seeds=[7, 8], sampler=sampler)
    given = model.generate(list(CAPTIONS), seeds=[7, 8], sampler=sampler, noise=noise)
    assert np.array_equal(arrays(usual), arrays(given))


def test_negative_prompts_steer(model: LatentDiffusion) -> None:
    usual = model.generate(list(CAPTIONS))
    assert np.array_equal(arrays(usual), arrays(model.generate(list(CAPTIONS), negative="")))
    steered = model.generate(list(CAPTIONS), negative="a cat")
    assert np.abs(arrays(steered) - arrays(usual)).max() > 1
    one = model.generate(list(CAPTIONS), negative=["a cat", ""])
    assert same_image(one.images[0], steered.images[0]) and same_image(one.images[1], usual.images[1])
    assert [told["negative"] for told in one.metadata] == ["a cat", None]
    plain = model.generate(CAPTIONS[0], guidance=1.0)
    with pytest.warns(DiptychWarning, match="the negative prompt has no effect"):
        unread = model.generate(CAPTIONS[0], guidance=1.0, negative="a cat")
    assert same_image(unread.images[0], plain.images[0])
    assert same_image(model.generate(CAPTIONS[0], negative=CAPTIONS[0], guidance=9.0).images[0], plain.images[0])


def test_guidance_is_linear_in_the_estimate(model: LatentDiffusion) -> None:
    """One step: the x0 that the callback sees is uncond + g (cond - uncond)."""
    seen: dict[float, torch.Tensor] = {}
    for weight in (0.0, 1.0, 2.5):
        model.generate(CAPTIONS[0], steps=1, guidance=weight, callback=lambda i, n, x0, w=weight: seen.update({w: x0}))
    assert torch.allclose(seen[2.5], seen[0.0] + 2.5 * (seen[1.0] - seen[0.0]), atol=1e-3)
    assert (seen[1.0] - seen[0.0]).abs().max() > 1e-2


def calls(model: LatentDiffusion, **options: Any) -> int:
    before = model.denoiser.calls
    model.generate(list(CAPTIONS), steps=4, sampler="euler", **options)
    return model.denoiser.calls - before


def test_guidance_of_1_costs_half() -> None:
    model = system(interval=(0.3, 0.8), **FLOW)
    assert calls(system(), guidance=3.0) == 2 * calls(system(), guidance=1.0) == 16
    assert calls(model, guidance=1.0) == 8
    assert calls(model, guidance=3.0) == 8 + 2 * 2, "two of the times 1, .75, .5, .25 lie in the interval"


class Cancelled(Exception):
    pass


def test_the_callback_sees_each_step_and_may_cancel(model: LatentDiffusion) -> None:
    steps: list[tuple[int, int, tuple[int, ...]]] = []
    model.generate(list(CAPTIONS), callback=lambda step, count, x0: steps.append((step, count, tuple(x0.shape))))
    assert steps == [(i, 3, (2, 4, 8, 8)) for i in range(3)]

    def cancel(step: int, count: int, x0: torch.Tensor) -> None:
        if step == 1:
            raise Cancelled

    before = model.denoiser.calls
    with pytest.raises(Cancelled):
        model.generate(CAPTIONS[0], callback=cancel)
    assert model.denoiser.calls - before == 2 * 2
    model.generate(CAPTIONS[0])


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompts": ""}, "empty"),
    ({"prompts": []}, "empty"),
    ({"prompts": ["a cat", " \n"]}, "empty"),
    ({"prompts": 5}, "prompts must be a text"),
    ({"prompts": None}, "prompts must be a text"),
    ({"prompts": ["a cat", 5]}, "prompts must be a text"),
    ({"prompts": b"a cat"}, "prompts must be a text"),
    (
        {"prompts": "cat " * 100},
        "shorten it, or choose .*; what does not fit begins at 'cat cat",
    ),
    ({"prompts": "a \ud800 cat"}, "not valid Unicode"),
    ({"negative": "cat " * 100}, "shorten it"),
    ({"negative": ["a", "b", "c"]}, "negative prompt for all or one for each of the 2"),
    ({"negative": ["a", None]}, "negative must be a text"),
    ({"negative": 3}, "negative must be a text"),
    ({"seeds": [1]}, "2 prompts, 1 seeds"),
    ({"seeds": []}, "2 prompts, 0 seeds"),
    ({"seeds": 1}, "seeds must be a list of whole numbers, not 1"),
    ({"seeds": [0, 1.5]}, "seeds must be whole numbers"),
    ({"seeds": [0, "x"]}, "seeds must be whole numbers"),
    ({"seeds": torch.tensor([[0.5], [1.5]])}, "seeds must be whole numbers"),
    ({"seeds": [0, -1]}, "from 0 to"),
    ({"seeds": [0, 2**63]}, "from 0 to"),
    ({"steps": 0}, "at least 1"),
    ({"steps": -3}, "at least 1"),
    ({"steps": 2.5}, "steps must be a whole number"),
    ({"steps": "5"}, "steps must be a whole number"),
    ({"steps": 1001}, "steps must lie between 1 and 1000"),
    ({"guidance": float("nan")}, "finite number"),
    ({"guidance": float("inf")}, "finite number"),
    ({"guidance": "7"}, "finite number"),
    ({"guidance": [1.0, 2.0]}, "finite number"),
    ({"sampler": "dimm"}, "unknown sampler 'dimm'.*dpmpp-2m"),
    ({"sampler": 3}, "unknown sampler"),
    ({"sampler": ["ddim"]}, "unknown sampler"),
    ({"size": (17, 16)}, "multiples of 2"),
    ({"size": (0, 16)}, "multiples of 2"),
    ({"size": (-16, 16)}, "multiples of 2"),
    ({"size": (16,)}, "width and height"),
    ({"size": 16}, "size must be a list of whole"),
    ({"size": (16.0, 16.0)}, "size must be whole"),
    ({"size": "16x16"}, "size must be a list of whole"),
    ({"noise": torch.zeros(2, 4, 8, 4)}, r"shape \(2, 4, 8, 8\), not \(2, 4, 8, 4\)"),
    ({"noise": torch.zeros(1, 4, 8, 8)}, "shape"),
    ({"noise": np.zeros((2, 4, 8, 8))}, "must be a tensor"),
    ({"noise": torch.full((2, 4, 8, 8), torch.nan)}, "finite"),
]


@pytest.mark.parametrize(("bad", "says"), BAD, ids=[f"{next(iter(bad))}-{i}" for i, (bad, _) in enumerate(BAD)])
def test_what_makes_no_sense_is_refused_in_one_line(model: LatentDiffusion, bad: dict[str, Any], says: str) -> None:
    before = model.denoiser.calls
    with pytest.raises(UserError, match=says) as caught:
        model.generate(**{"prompts": list(CAPTIONS), **bad})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 260
    assert model.denoiser.calls == before, "refused before any work"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"size": 17}, "size"),
        ({"size": 0}, "size"),
        ({"steps": 0}, "steps"),
        ({"guidance": float("inf")}, "guidance"),
        ({"interval": (0.8, 0.3)}, "interval"),
        ({"sampler": "magic"}, "sampler"),
        ({"unet": config().unet.override(["in_channels=3"])}, "in_channels"),
        ({"unet": config().unet.override(["out_channels=8"])}, "out_channels"),
        ({"unet": config().unet.override(["concat_channels=4"])}, "concat_channels"),
        ({"unet": config().unet.override(["context_width=20"])}, "context_width"),
        ({"unet": config().unet.override(["pooled_width=20"])}, "pooled_width"),
    ],
)
def test_a_model_whose_parts_do_not_fit_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=rf"LatentConfig\.(unet\.)?{field} must"):
        config(**changes)


def test_a_model_without_words_paints() -> None:
    model = system(unet=config().unet.override(["context_width=none", "pooled_width=none"]))
    assert same_image(*(model.generate(caption, seeds=[3]).images[0] for caption in CAPTIONS))


# Where the parts are, and what training may touch.


def test_the_state_is_what_training_changes() -> None:
    joint, frozen = system(), system("minilm")
    assert {key.split(".")[0] for key in joint.state_dict()} == {"unet", "joint_text", "scale"}
    assert {key.split(".")[0] for key in frozen.state_dict()} == {"unet", "scale"}
    names = {name.split(".")[0] for name, _ in frozen.named_parameters()}
    assert names == {"unet"}


@pytest.mark.parametrize("text", ["joint", "minilm"])
def test_frozen_parts_stay_frozen_in_training(text: str) -> None:
    model = system(text).train()
    assert model.unet.training
    assert not any(module.training for module in model.autoencoder.modules())
    assert not any(p.requires_grad for p in model.autoencoder.parameters())
    if text == "minilm":
        assert not any(module.training for module in model.text.model.modules())
        assert not any(p.requires_grad for p in model.text.model.parameters())
    else:
        assert model.text.training and all(p.requires_grad for p in model.text.parameters())


def parts(model: LatentDiffusion) -> list[torch.Tensor]:
    text = getattr(model.text, "model", model.text)
    return [next(part.parameters()) for part in (model.unet, model.autoencoder, text)] + [model.scale]


@pytest.mark.parametrize("text", ["joint", "minilm"])
def test_every_part_moves_with_the_system(text: str) -> None:
    if text == "minilm":
        from diptych.encoders.bert import MiniLM
        from diptych.encoders.configs import MiniLMConfig

        model = LatentDiffusion(config(MiniLMConfig()), system().autoencoder, MiniLM())  # its own, to be moved away
    else:
        model = system(text)
    expected = arrays(model.generate(list(CAPTIONS), guidance=1.0))
    assert {p.dtype for p in parts(model.double())} == {torch.float64}
    assert {p.dtype for p in parts(model.to(torch.float32))} == {torch.float32}
    assert np.array_equal(arrays(model.generate(list(CAPTIONS), guidance=1.0)), expected)
    assert {p.device.type for p in parts(model.to("meta"))} == {"meta"}
    assert model.device.type == "meta"


class Fixed:
    """Random numbers that are none."""

    def __init__(self, numbers) -> None:
        self.numbers = numbers

    def normal(self, like: torch.Tensor, stream: int) -> torch.Tensor:
        return self.numbers(like)


@pytest.mark.parametrize("text", ["joint", "minilm"])
def test_under_autocast_latents_and_losses_stay_in_float32(text: str) -> None:
    model, batch = system(text), toy_batch([0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        x0, cond = model.prepare(batch, Fixed(torch.zeros_like), torch.tensor([False, True, False]))
        loss = model.denoiser.loss(x0, torch.randn_like(x0), torch.full((3,), 0.5), cond)
        image = model.generate(CAPTIONS[0]).images[0]
    assert x0.dtype == loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    exact = model.generate(CAPTIONS[0]).images[0]
    assert np.abs(np.asarray(image, dtype=int) - np.asarray(exact, dtype=int)).mean() < 25


def test_the_scale_brings_the_first_latents_to_unit_deviation() -> None:
    model, batch = system(), toy_batch(list(range(70)))  # more than are encoded at once
    model.start(batch)
    noise = torch.randn(70, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x0, _ = model.prepare(batch, Fixed(lambda like: noise), torch.zeros(70, dtype=torch.bool))
    assert x0.std().item() == pytest.approx(1.0, abs=0.02)
    assert model.posterior(batch).log_variance.exp().mean() > 0.1, "samples deviate, not only their means"


def test_a_scale_that_the_config_states_stays() -> None:
    model = LatentDiffusion(config(latent_scale=0.25), autoencoder(), joint())
    model.start(toy_batch([0, 1]))
    assert model.scale == 0.25


def test_prepare_scales_samples_and_drops_captions() -> None:
    model, batch = system(), toy_batch([0, 1])
    x0, cond = model.prepare(batch, Fixed(torch.ones_like), torch.tensor([False, True]))
    posterior = model.autoencoder.encode(batch["picture"])
    assert torch.allclose(x0, 0.5 * (posterior.mean + (0.5 * posterior.log_variance).exp()), atol=1e-5)
    expected = model.embed([CAPTIONS[0], ""])
    assert all(torch.equal(cond[key], expected[key]) for key in ("context", "context_mask", "pooled"))
