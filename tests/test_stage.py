"""One stage of the cascade: what `generate` promises with words and with pictures, its files, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.conditioning.low_resolution import AugmentationConfig
from diptych.diffusion.guidance import ClassifierFreeGuidance, ThresholdConfig
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedule import CosineSchedule, ScheduleConfig, timesteps
from diptych.diffusion.steps import NoiseSource
from diptych.errors import UserError
from diptych.pictures import to_images, to_tensor
from diptych.stage import Stage, stage_seed
from diptych.stage_config import StageConfig
from diptych.weights.files import load_safetensors, save_safetensors, save_weights
from tests.latents import arrays, same_picture
from tests.stages import CAPTIONS, WIDTH, Words, attentive, base, enlarging, plain, stage, unet, wordless

PROMPTS = ["red left", "a cat", "two blue cats left of a house", "red", "red left", "blue"]
SEEDS = [5, 0, 7, 7, 123_456_789, 2**63 - 1]
UNET = {"network": plain(pooled_width=WIDTH), "schedule": ScheduleConfig(kind="scaled-linear"), "prediction": "eps"}
KINDS: dict[str, StageConfig] = {
    "base": base(),
    "base, plain U-Net": base(**UNET),
    "noise": enlarging(network=attentive(), guidance=2.0),
    "noise before": enlarging(augmentation=AugmentationConfig(where="low", level=0.3)),
    "blur": enlarging(augmentation=AugmentationConfig(kind="blur", level=0.3)),
    "SR3": wordless(),
}


def drawing(width: int = 8, height: int = 8, seed: int = 0) -> Image.Image:
    """A small RGB picture of large values."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def lows(config: StageConfig, count: int) -> dict[str, Any]:
    return {} if config.low_size is None else {"low": [drawing(seed=i) for i in range(count)]}


@pytest.fixture(scope="module")
def painter() -> Stage:
    return stage(base())


@pytest.fixture(scope="module")
def enlarger() -> Stage:
    return stage(enlarging())


# Seeds


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "ddpm"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_its_picture_alone_and_in_any_company(kind: str, sampler: str) -> None:
    model = stage(KINDS[kind])
    low = lows(model.config, 6)
    together = model.generate(PROMPTS, seeds=SEEDS, sampler=sampler, **low)
    shown = arrays(together)
    assert np.mean((shown > 0) & (shown < 255)) > 0.3, "clipped pictures would agree for nothing"
    assert shown[2].std() > 1 and np.abs(shown[2] - shown[3]).max() > 1, "prompts or pictures differ"
    for i in (0, 3, 5):
        own = {key: value[i] for key, value in low.items()}
        alone = model.generate(PROMPTS[i], seeds=[SEEDS[i]], sampler=sampler, **own)
        assert same_picture(alone.images[0], together.images[i])
    turned = {key: value[::-1] for key, value in low.items()}
    again = model.generate(PROMPTS[::-1], seeds=SEEDS[::-1], sampler=sampler, **turned)
    assert all(same_picture(a, b) for a, b in zip(again.images, together.images[::-1], strict=True))


def test_the_noise_on_the_low_resolution_picture_is_the_seeds_too() -> None:
    model, seen = stage(enlarging()), []
    model.network.register_forward_pre_hook(lambda net, args, kwargs: seen.append(kwargs["concat"]), with_kwargs=True)
    low = drawing()
    model.generate(["a", "a", "b"], seeds=[1, 2, 1], low=low, augmentation=0.5, steps=1)
    model.generate("c", seeds=[2], low=low, augmentation=0.5, steps=2)
    first, alone, later = seen
    assert torch.equal(first[0], first[2]) and not torch.allclose(first[0], first[1])
    assert torch.equal(alone[0], first[1]) and torch.equal(later, alone), "drawn once for all steps"
    source = NoiseSource([stage_seed(1, model.config)], (3, 16, 16)).draw()
    assert abs(torch.corrcoef(torch.stack([source.flatten(), first[0].flatten()]))[0, 1]) < 0.15


def test_stages_and_purposes_have_streams_of_their_own() -> None:
    first, second = enlarging(8), enlarging(16)
    seeds = {stage_seed(3, one, what) for one in (first, second) for what in ("", "low")}
    assert len(seeds) == 4 and 3 not in seeds and all(0 <= seed < 2**63 for seed in seeds)
    assert stage_seed(3, base()) == 3, "a base stage's noise is that of any model"


def test_an_untouched_picture_is_shown_as_it_is() -> None:
    model, seen = stage(enlarging()), []
    model.network.register_forward_pre_hook(lambda net, args, kwargs: seen.append(kwargs), with_kwargs=True)
    low = drawing()
    model.generate("a", low=low, augmentation=0, steps=1)
    expected = torch.nn.functional.interpolate(to_tensor([low]), (16, 16), mode="bilinear")
    assert torch.equal(seen[0]["concat"], expected) and torch.equal(seen[0]["level"], torch.zeros(1))
    model.generate("a", low=low, augmentation=0.75, steps=1)
    assert torch.equal(seen[1]["level"], torch.full((1,), 0.75))


# What is told, and what is chosen


@pytest.mark.parametrize("kind", KINDS)
def test_the_metadata_is_enough_to_make_each_picture_again(kind: str) -> None:
    model = stage(KINDS[kind])
    low = lows(model.config, 2)
    options: dict[str, Any] = {"steps": np.int64(2), "guidance": np.float32(2.5), "threshold": "dynamic:0.9:1.5"}
    options |= {"seeds": np.array([3, 4]), "negative": ["", "a cat"], "sampler": "ddim"}
    result = model.generate(list(CAPTIONS), **options, **low)
    for i, told in enumerate(json.loads(json.dumps(result.metadata))):
        prompt, seed, size = told.pop("prompt"), told.pop("seed"), told.pop("size")
        assert tuple(size) == result.images[i].size
        assert told.pop("low", None) == ("given" if low else None)
        own = {"low": low["low"][i]} if low else {"size": size}
        assert same_picture(model.generate(prompt, seeds=[seed], **own, **told).images[0], result.images[i])


def test_what_is_not_said_is_the_stages_own(painter: Stage, enlarger: Stage) -> None:
    told = painter.generate("red").metadata[0]
    own = {"steps": 3, "guidance": 3.0, "sampler": "dpmpp-2m", "threshold": "dynamic:0.95", "size": [8, 8]}
    assert told == {"prompt": "red", "negative": None, "seed": 0, **own}
    told = enlarger.generate("red", low=drawing()).metadata[0]
    own = {"steps": 2, "guidance": 1.0, "sampler": "dpmpp-2m", "threshold": "static", "augmentation": 0.2}
    assert told == {"prompt": "red", "negative": None, "seed": 0, **own, "size": [16, 16], "low": "given"}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_given_noise_takes_the_place_of_the_seeds_own(painter: Stage, sampler: str) -> None:
    """Also for samplers that draw more: what they draw does not shift."""
    usual = painter.generate(list(CAPTIONS), seeds=[7, 8], sampler=sampler)
    noise = NoiseSource([7, 8], (3, 8, 8)).draw()
    given = painter.generate(list(CAPTIONS), seeds=[7, 8], noise=noise.double(), sampler=sampler)
    assert np.array_equal(arrays(usual), arrays(given))
    other = painter.generate(list(CAPTIONS), seeds=[7, 8], noise=-noise, sampler=sampler)
    assert np.abs(arrays(other) - arrays(usual)).max() > 1
    assert all(told["noise"] == "given" for told in given.metadata)


def test_given_noise_leaves_the_noise_on_the_low_resolution_picture_to_the_seeds(enlarger: Stage) -> None:
    noise, low = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), drawing()
    one, two = (enlarger.generate("red", seeds=[seed], low=low, noise=noise) for seed in (0, 1))
    assert np.abs(arrays(one) - arrays(two)).max() > 1
    clean = [enlarger.generate("red", seeds=[seed], low=low, noise=noise, augmentation=0.0) for seed in (0, 1)]
    assert np.array_equal(arrays(clean[0]), arrays(clean[1]))


def test_negative_prompts_steer(painter: Stage) -> None:
    usual = painter.generate(list(CAPTIONS))
    for nothing in ("", "  ", ["", " \n"]):
        assert np.array_equal(arrays(usual), arrays(painter.generate(list(CAPTIONS), negative=nothing)))
    steered = painter.generate(list(CAPTIONS), negative="a cat in a long sentence")
    assert np.abs(arrays(steered) - arrays(usual)).max() > 1
    one = painter.generate(list(CAPTIONS), negative=["a cat in a long sentence", ""])
    assert same_picture(one.images[0], steered.images[0]) and same_picture(one.images[1], usual.images[1])
    assert [told["negative"] for told in one.metadata] == ["a cat in a long sentence", None]
    plain = painter.generate("red", guidance=1.0)
    assert same_picture(painter.generate("red", negative="red", guidance=9.0).images[0], plain.images[0])


def test_guidance_leads_away_from_zeros(painter: Stage) -> None:
    seen: dict[float, torch.Tensor] = {}
    for weight in (0.0, 1.0, 2.5):
        options: dict[str, Any] = {"steps": 1, "guidance": weight, "threshold": "none"}
        painter.generate("red left", callback=lambda i, n, x0, w=weight: seen.update({w: x0}), **options)
    assert torch.allclose(seen[2.5], seen[0.0] + 2.5 * (seen[1.0] - seen[0.0]), atol=1e-3)
    assert (seen[1.0] - seen[0.0]).abs().max() > 1e-2
    nothing = {"context": torch.zeros(1, 1, WIDTH), "pooled": torch.zeros(1, WIDTH)}
    noise, (now, _) = NoiseSource([0], (3, 8, 8)).draw(), timesteps(painter.schedule, 1).tolist()
    with torch.no_grad():
        torch.testing.assert_close(seen[0.0], painter.denoiser(noise, now, nothing), rtol=1e-3, atol=1e-3)


def test_a_stage_without_words_reads_none_and_costs_half() -> None:
    model, low = stage(wordless(guidance=4.0)), drawing()
    first, second = (model.generate(text, seeds=[3], low=low, negative="z") for text in CAPTIONS)
    assert same_picture(first.images[0], second.images[0])
    assert first.metadata[0]["guidance"] == 1.0 and first.metadata[0]["prompt"] == CAPTIONS[0]
    before = model.denoiser.calls
    model.generate("any", low=low, guidance=7.0, steps=3)
    assert model.denoiser.calls - before == 3
    assert model.text is None
    ddpm = stage(base(text=None, network=plain(context_width=None)))
    assert same_picture(*(ddpm.generate(text, seeds=[3]).images[0] for text in CAPTIONS))


THRESHOLDS = {
    "none": ThresholdConfig(kind="none"),
    "static": ThresholdConfig(kind="static"),
    "dynamic": ThresholdConfig(),
    "dynamic:0.9": ThresholdConfig(percentile=0.9),
    "dynamic:0.95:1.5": ThresholdConfig(percentile=0.95, cap=1.5),
    "dynamic:1": ThresholdConfig(percentile=1.0),
}


@pytest.mark.parametrize("text", THRESHOLDS)
def test_a_threshold_is_read_from_text(painter: Stage, text: str) -> None:
    assert painter.settings(threshold=text).threshold == THRESHOLDS[text]
    assert ThresholdConfig.parse(str(THRESHOLDS[text])) == THRESHOLDS[text]
    assert painter.settings(threshold=THRESHOLDS[text]).threshold is THRESHOLDS[text]


def test_thresholds_bound_what_high_guidance_does(painter: Stage) -> None:
    largest: dict[str, float] = {}
    pictures = {}
    for threshold in ("none", "static", "dynamic:0.8", "dynamic:0.8:1.0"):
        seen: list[torch.Tensor] = []
        options: dict[str, Any] = {"guidance": 20.0, "steps": 4, "threshold": threshold}
        result = painter.generate("red left", callback=lambda i, n, x0, seen=seen: seen.append(x0), **options)
        largest[threshold], pictures[threshold] = max(x0.abs().max().item() for x0 in seen), arrays(result)
    assert largest["none"] > 2
    assert all(value <= 1 for name, value in largest.items() if name != "none")
    assert np.array_equal(pictures["static"], pictures["dynamic:0.8:1.0"]), "a cap of 1 is static"
    clipped = {name: np.mean((shown == 0) | (shown == 255)) for name, shown in pictures.items()}
    assert clipped["dynamic:0.8"] < clipped["static"], "what is scaled back is not clipped away"


def test_the_callback_sees_each_step_and_may_cancel(enlarger: Stage) -> None:
    steps: list[tuple[int, int, tuple[int, ...]]] = []
    enlarger.generate(["a", "b"], low=drawing(), callback=lambda i, n, x0: steps.append((i, n, tuple(x0.shape))))
    assert steps == [(i, 2, (2, 3, 16, 16)) for i in range(2)]

    def cancel(step: int, count: int, x0: torch.Tensor) -> None:
        raise KeyboardInterrupt

    before = enlarger.denoiser.calls
    with pytest.raises(KeyboardInterrupt):
        enlarger.generate("a", low=drawing(), callback=cancel)
    assert enlarger.denoiser.calls == before + 1


def test_a_base_stage_paints_other_sizes(painter: Stage) -> None:
    result = painter.generate(["a", "b"], size=(12, 16))
    assert [image.size for image in result.images] == [(12, 16)] * 2 and result.metadata[0]["size"] == [12, 16]


# The reference: DeepFloyd's loop


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_learned_variance_is_drawn_as_diffusers_draws_it(guidance: float) -> None:
    """A whole super-resolution stage with a published scheduler: cosine table, learned range, dynamic threshold."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    count, seed, level = 6, 11, 0.3
    network = attentive(out_channels=6)
    schedule = ScheduleConfig(kind="cosine-table", steps=count)
    model = stage(
        enlarging(network=network, schedule=schedule, prediction="eps", learned_variance=True, sampler="ddpm")
    )
    low = drawing()
    options: dict[str, Any] = {"threshold": "dynamic:0.95:1.5", "augmentation": level, "guidance": guidance}
    ours = model.generate("red left", seeds=[seed], low=low, steps=count, **options)

    scheduler = DDPMScheduler(
        num_train_timesteps=count,
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
        clip_sample=False,
    )
    scheduler.set_timesteps(count)
    words = model.text.encode(["red left"])
    told = {"context": words.sequence, "pooled": words.pooled}
    spoiling = torch.Generator().manual_seed(stage_seed(seed, model.config, "low"))
    large = torch.nn.functional.interpolate(to_tensor([low]), (16, 16), mode="bilinear")
    alpha, sigma = (float(x) for x in CosineSchedule().alpha_sigma(torch.tensor(level, dtype=torch.float64)))
    concat = alpha * large + sigma * torch.randn(large.shape[1:], generator=spoiling)
    generator = torch.Generator().manual_seed(stage_seed(seed, model.config))
    x = torch.randn(1, 3, 16, 16, generator=generator)
    for t in scheduler.timesteps:
        outputs = [
            model.network(x, t[None].float(), concat=concat, level=torch.tensor([level]), **half)
            for half in (told, {key: torch.zeros_like(value) for key, value in told.items()})
        ]
        (spoken, variance), (unspoken, _) = (output.detach().split(3, dim=1) for output in outputs)
        eps = unspoken + guidance * (spoken - unspoken)
        x = scheduler.step(torch.cat([eps, variance], 1), int(t), x, generator=generator)[0]
    assert same_picture(ours.images[0], to_images(x)[0])
    fixed = SAMPLERS["ddpm"](
        ClassifierFreeGuidance(model.denoiser, {**told, "concat": concat, "level": torch.tensor([level])}, {}, 1.0),
        torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(stage_seed(seed, model.config))),
        timesteps(model.schedule, count),
        model.schedule,
        noise=NoiseSource([stage_seed(seed, model.config)], (3, 16, 16)),
    )
    assert not same_picture(ours.images[0], to_images(fixed)[0]), "another variance makes another picture"


# The low-resolution picture


@pytest.mark.parametrize(("size", "made"), [((8, 8), (16, 16)), ((12, 8), (24, 16)), ((8, 24), (16, 48))])
def test_pictures_of_other_shapes_are_enlarged_whole(enlarger: Stage, size: Any, made: Any) -> None:
    low = drawing(*size)
    result = enlarger.generate(["a", "b"], low=low)
    assert [image.size for image in result.images] == [made] * 2 and result.metadata[0]["size"] == list(made)
    assert same_picture(enlarger.generate("b", seeds=[1], low=low).images[0], result.images[1])


def shown_low(model: Stage, low: Any) -> np.ndarray:
    """The picture that the stage takes a given one for, (H, W, 3)."""
    seen: list[torch.Tensor] = []
    enlarged, model.enlarged = model.enlarged, lambda low, *rest: (seen.append(low), enlarged(low, *rest))[1]  # type: ignore
    try:
        model.generate("a", low=low, steps=1)
    finally:
        model.enlarged = enlarged
    return np.asarray(to_images(seen[0])[0])


def test_whatever_picture_comes_is_made_what_the_stage_reads(enlarger: Stage, tmp_path: Path) -> None:
    picture = drawing(8, 8)
    exact = np.asarray(picture)
    picture.save(tmp_path / "low.png")
    for one in (picture, tmp_path / "low.png", str(tmp_path / "low.png"), [picture], (tmp_path / "low.png",)):
        assert np.array_equal(shown_low(enlarger, one), exact)
    blocks = picture.resize((64, 64), Image.Resampling.NEAREST)
    assert np.array_equal(shown_low(enlarger, blocks), exact), "means of whole boxes"
    grey = picture.convert("L")
    assert np.array_equal(shown_low(enlarger, grey), np.asarray(grey.convert("RGB")))
    clear = picture.copy()
    clear.putalpha(Image.fromarray(np.array([[0] * 4 + [255] * 4] * 8, dtype=np.uint8)))
    shown = shown_low(enlarger, clear)
    assert (shown[:, :4] == 255).all() and np.array_equal(shown[:, 4:], exact[:, 4:]), "on white"
    assert shown_low(enlarger, drawing(800, 600)).shape == (8, 10, 3), "the shorter side at 8, the other even"
    assert shown_low(enlarger, drawing(9, 33)).shape == (30, 8, 3)


@pytest.mark.parametrize(("factor", "unit"), [(2, 4), (3, 8), (4, 2), (6, 4)])
def test_low_resolution_pictures_fit_any_factor(factor: int, unit: int) -> None:
    model = stage(enlarging(8, size=8 * factor, network=unet(multipliers=(1, 1, 1), blocks=(1, 1, 1))))
    assert model.config.unit == unit
    result = model.generate("a", low=drawing(8, 13), steps=1)
    assert result.images[0].size[0] == 8 * factor and result.images[0].size[1] % model.config.multiple == 0


# What is refused

BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompts": ""}, "empty"),
    ({"prompts": ["a", " \n"]}, "empty"),
    ({"prompts": 5}, "prompts must be a text"),
    ({"negative": ["a", "b", "c"]}, "negative prompt for all or one for each of the 2"),
    ({"seeds": [1]}, "2 prompts, 1 seeds"),
    ({"seeds": [0, 2**63]}, "from 0 to"),
    ({"steps": 0}, "at least 1"),
    ({"steps": 10**12}, "at most 10000"),
    ({"steps": [2, 3]}, "steps must be whole"),
    ({"guidance": float("nan")}, "finite number"),
    ({"sampler": "dimm"}, "unknown sampler"),
    ({"threshold": "dynamics"}, "unknown threshold 'dynamics'.*static"),
    ({"threshold": "dynamic:"}, "cannot read the threshold 'dynamic:'"),
    ({"threshold": "dynamic:x"}, "cannot read the threshold"),
    ({"threshold": "dynamic:0.9:1.5:2"}, "cannot read the threshold"),
    ({"threshold": "static:0.9"}, "cannot read the threshold"),
    ({"threshold": "dynamic:95"}, "percentile must be a fraction"),
    ({"threshold": "dynamic:nan"}, "percentile must be a number"),
    ({"threshold": "dynamic:0.95:0.5"}, "cap must be at least 1"),
    ({"threshold": 0.95}, "unknown threshold '0.95'"),
    ({"augmentation": 1.5}, "augmentation must lie between 0 and 1, not 1.5"),
    ({"augmentation": -0.1}, "augmentation must lie between 0 and 1"),
    ({"augmentation": "much"}, "augmentation must be a finite number"),
    ({"noise": torch.zeros(2, 3, 4, 4)}, r"shape \(2, 3, (8, 8|16, 16)\), not \(2, 3, 4, 4\)"),
    ({"noise": torch.full((2, 3, 8, 8), torch.nan)}, "finite|shape"),
]
BAD_SIZES: list[tuple[dict[str, Any], str]] = [
    ({"size": (10, 8)}, "multiples of 4"),
    ({"size": (8, 2**40)}, "up to 8192"),
    ({"size": 8}, "size must be whole"),
    ({"low": drawing()}, "starts from noise: leave the low-resolution picture out"),
]
BAD_LOWS: list[tuple[dict[str, Any], str]] = [
    ({"low": None}, "8-px pictures into 16-px ones: give it the picture to enlarge as `low`"),
    ({"low": []}, "one low-resolution picture for all 2 prompts or one for each, not 0"),
    ({"low": [drawing()] * 3}, "one for each, not 3"),
    ({"low": [drawing(), drawing(8, 12)]}, "different shapes"),
    ({"low": drawing(8, 40)}, "8 x 40 pixels: crop it, its longer side may be at most 4 times the shorter"),
    ({"low": drawing(4, 4)}, "too small"),
    ({"low": Image.new("RGB", (5000, 100))}, "too large"),
    ({"low": "/nowhere/low.png"}, "/nowhere/low.png is no file"),
    ({"low": Path("/")}, "is a folder"),
    ({"low": __file__}, "not a PNG, JPEG or WebP picture"),
    ({"low": np.zeros((8, 8, 3))}, "must be a path or one of Pillow's"),
    ({"low": [drawing(), None]}, "must be a path or one of Pillow's"),
    ({"low": Image.new("F", (8, 8))}, "mode F"),
    ({"size": (16, 16)}, "size follows from the low-resolution picture"),
]
CASES = [  # of which stage, what, and what is said
    *(("base", bad, says) for bad, says in [*BAD, *BAD_SIZES]),
    *(("noise before", bad, says) for bad, says in [*BAD, *BAD_LOWS]),
]


@pytest.mark.parametrize(
    ("kind", "bad", "says"), CASES, ids=[f"{k}-{next(iter(b))}-{i}" for i, (k, b, _) in enumerate(CASES)]
)
def test_what_makes_no_sense_is_refused_in_one_line(
    painter: Stage, enlarger: Stage, kind: str, bad: dict[str, Any], says: str
) -> None:
    model = painter if kind == "base" else enlarger
    before, read = model.denoiser.calls, len(model.text.seen)
    given = {"prompts": list(CAPTIONS), **({} if kind == "base" else {"low": drawing()}), **bad}
    with pytest.raises(UserError, match=says) as caught:
        model.generate(**given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    assert model.denoiser.calls == before and len(model.text.seen) == read, "refused before any work"


def test_a_damaged_picture_is_named(enlarger: Stage, tmp_path: Path) -> None:
    drawing(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    with pytest.raises(UserError, match=r"cut\.png is damaged or cut short"):
        enlarger.generate("a", low=tmp_path / "cut.png")


def test_a_table_has_no_more_steps_than_entries() -> None:
    with pytest.raises(UserError, match="steps must lie between 1 and 1000, not 1001"):
        stage(base(**UNET)).generate("a", steps=1001)


def test_a_stage_that_was_never_trained_says_so(tmp_path: Path) -> None:
    fresh = Stage(base(), Words())
    with pytest.raises(UserError, match="stage 8 was never trained"):
        fresh.generate("a")
    assert not fresh.text.seen, "refused before any work"
    sr = Stage(enlarging(), Words())
    with pytest.raises(UserError, match="stage 8-16 was never trained"):
        sr.enlarge(torch.zeros(1, 3, 16, 16), ["a"], [0])
    sr.save(tmp_path)
    with pytest.raises(UserError, match=r"the stage in .* was never trained"):
        diptych.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"size": 18}, "size"),
        ({"size": 0}, "size"),
        ({"low_size": 12}, "low_size"),
        ({"low_size": 16}, "low_size"),
        ({"low_size": 0}, "low_size"),
        ({"steps": 0}, "steps"),
        ({"guidance": float("inf")}, "guidance"),
        ({"sampler": "magic"}, "sampler"),
        ({"low_size": None}, r"network\.concat_channels"),
        ({"low_size": None, "network": unet(concat_channels=0)}, r"network\.augmented"),
        ({"network": unet(in_channels=4)}, r"network\.in_channels"),
        ({"learned_variance": True}, r"network\.out_channels"),
        ({"network": unet(pooled_width=20)}, r"network\.pooled_width"),
        ({"network": attentive(context_width=20)}, r"network\.context_width"),
        ({"text": None}, r"network\.pooled_width"),
    ],
)
def test_a_stage_whose_parts_do_not_fit_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=rf"StageConfig\.{field} must"):
        enlarging(**{"size": 16, **changes})


# Where the parts are


def test_every_part_moves_with_the_stage() -> None:
    model = stage(base())
    expected = arrays(model.generate(list(CAPTIONS)))
    parts = [next(model.network.parameters()), model.text.model.weight]
    assert {p.dtype for p in (model.double(), *parts)[1:]} == {torch.float64}
    assert {p.dtype for p in (model.to(torch.float32), *parts)[1:]} == {torch.float32}
    assert np.array_equal(arrays(model.generate(list(CAPTIONS))), expected)
    model.to("meta")
    assert {next(part.parameters()).device.type for part in (model.network, model.text.model)} == {"meta"}
    assert model.device.type == "meta"
    model.text = Words()
    assert model.text.model.weight.device.type == "meta", "an encoder that comes later follows too"


def test_the_text_encoder_is_built_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    monkeypatch.setattr("diptych.stage.build_text_encoder", lambda config, device: (built.append(device), Words())[1])
    model = Stage(base())
    assert not model.reads and not built
    assert model.text is model.text and built == [torch.device("cpu")] and model.reads
    assert not model.train().text.model.weight.requires_grad


@pytest.mark.parametrize("kind", ["base", "blur"])
def test_under_autocast_pictures_stay_in_float32(kind: str) -> None:
    model = stage(KINDS[kind])
    low = lows(model.config, 1)
    exact = arrays(model.generate("red", **low))
    seen: list[torch.dtype] = []
    with torch.autocast("cpu", torch.bfloat16):
        close = arrays(model.generate("red", callback=lambda i, n, x0: seen.append(x0.dtype), **low))
    assert set(seen) == {torch.float32} and np.abs(close - exact).mean() < 25


# Files


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage")
    stage(enlarging(), seed=5).save(folder)
    return folder


def test_a_saved_stage_paints_the_same(saved: Path) -> None:
    model, again = stage(enlarging(), seed=5), diptych.load(saved, "cpu")
    assert isinstance(again, Stage) and again.config == model.config and not again.training
    again.text = Words()
    options: dict[str, Any] = {"low": drawing(), "sampler": "ddpm", "seeds": [3, 4]}
    assert np.array_equal(arrays(again.generate(["a", "b"], **options)), arrays(model.generate(["a", "b"], **options)))


def test_bfloat16_takes_half_the_room_and_paints_nearly_the_same(saved: Path, tmp_path: Path) -> None:
    model = stage(enlarging(), seed=5)
    model.save(tmp_path, dtype="bfloat16")
    sizes = [sum(p.stat().st_size for p in folder.rglob("*.safetensors")) for folder in (tmp_path, saved)]
    assert sizes[0] < 0.65 * sizes[1]
    close: Any = diptych.load(tmp_path, "cpu")
    close.text = Words()
    exact = arrays(model.generate("a", low=drawing()))
    assert np.abs(arrays(close.generate("a", low=drawing())) - exact).mean() < 0.1 * exact.std()
    again = close.generate("a", low=drawing())
    close.save(tmp_path / "twice", dtype="bfloat16")
    twice: Any = diptych.load(tmp_path / "twice", "cpu")
    twice.text = Words()
    assert np.array_equal(arrays(twice.generate("a", low=drawing())), arrays(again)), "rounded once"


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            *path, last = key.split("__")
            place = values
            for part in path:
                place = place[part]
            place.pop(last) if value is ... else place.update({last: value})
        (folder / "config.json").write_text(json.dumps(values))

    return change


def change_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "network" / "model.safetensors"
        tensors = load_safetensors(path)
        change(tensors)
        save_safetensors(tensors, path, {"stage": "8-16"})

    return spoil


def cut(folder: Path, left: int = -1000) -> None:
    path = folder / "network" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])


def other_stage(folder: Path) -> None:
    shutil.rmtree(folder / "network")
    stage(enlarging(16)).save(folder / "other")
    (folder / "other" / "network").rename(folder / "network")


def other_shard(folder: Path) -> None:
    """One shard of two comes from a stage with the same shapes."""
    tensors = load_safetensors(folder / "network" / "model.safetensors")
    for name, where in (("8-16", folder), ("16-32", folder / "other")):
        save_weights(tensors, where / "network", shard_bytes=20_000, metadata={"stage": name})
    last = sorted((folder / "network").glob("*-of-*"))[-1].name
    shutil.copy(folder / "other" / "network" / last, folder / "network" / last)


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("unknown field", change_config(colour=3), r"config\.json: StageConfig has no field 'colour'"),
    ("unknown inner field", change_config(network__colour=3), r"config\.json: .*network has no field 'colour'"),
    ("unknown network", change_config(network__kind="vit"), r"config\.json: .*kind must be one of"),
    ("wrong type", change_config(low_size="small"), r"config\.json: .*low_size must be a whole number"),
    ("parts that do not fit", change_config(low_size=None), r"config\.json: .*concat_channels"),
    ("too many channels", change_config(network__channels=2**40), r"config\.json: "),
    ("very many channels", change_config(network__channels=10**30), r"config\.json: "),
    ("other channels", change_config(network__channels=16), r"network: key .* has shape"),
    ("cut weights", cut, r"network/model\.safetensors is a damaged"),
    ("cut header", lambda folder: cut(folder, 30), r"network/model\.safetensors is cut short"),
    ("no weights", lambda f: shutil.rmtree(f / "network"), r"no file .*network"),
    ("a key less", change_weights(lambda t: t.pop("conv_in.bias")), r"key 'conv_in\.bias'.*missing"),
    ("NaN", change_weights(lambda t: t["conv_in.weight"].view(-1)[:1].fill_(torch.nan)), r"conv_in\.weight.*NaN"),
    ("untrained", change_weights(lambda t: t["conv_out.weight"].zero_()), "was never trained"),
    ("other stage", other_stage, "holds the weights of stage 16-32, not of stage 8-16"),
    ("other shard", other_shard, "holds the weights of stage 16-32, not of stage 8-16"),
    ("renamed", change_config(size=32, low_size=16), "holds the weights of stage 8-16, not of stage 16-32"),
]


@pytest.mark.parametrize(("spoil", "says"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_is_broken_is_refused_by_name(
    saved: Path, tmp_path: Path, spoil: Callable[[Path], Any], says: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    spoil(folder)
    with pytest.raises(UserError, match=says) as caught:
        diptych.load(folder, "cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
