"""One stage of the cascade: what `generate` promises with words and with images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diptych
from diptych.core.errors import DiptychWarning, UserError
from diptych.core.images import to_images, to_tensor
from diptych.diffusion.guidance import ClassifierFreeGuidance
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedules import CosineSchedule, ScheduleConfig
from diptych.diffusion.steps import NoiseSource
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.diffusion.times import timesteps
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.classes import ClassLabels
from diptych.models.cascade import Cascade
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.models.pixel_diffusion import PixelDiffusion, stage_seed
from diptych.models.request import Request
from diptych.networks.adm import AdmUNetConfig
from tests.models.latents import arrays, same_image
from tests.models.stages import (
    CAPTIONS,
    KINDS,
    WIDTH,
    attentive,
    base,
    drawing,
    enlarging,
    equal,
    fused,
    lows,
    plain,
    stage,
    wordless,
)

PROMPTS = ["red left", "a cat", "two blue cats left of a house", "red", "red left", "blue"]
SEEDS = [5, 0, 7, 7, 123_456_789, 2**63 - 1]


@pytest.fixture(scope="module")
def painter() -> PixelDiffusion:
    return stage(base())


@pytest.fixture(scope="module")
def enlarger() -> PixelDiffusion:
    return stage(enlarging())


# Seeds


@pytest.mark.every(3)
@pytest.mark.parametrize("sampler", ["dpmpp-2m", "ddpm"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_its_image_alone_and_in_any_company(kind: str, sampler: str) -> None:
    model = stage(KINDS[kind])
    low = lows(model.config, 6)
    together = model.generate(PROMPTS, seeds=SEEDS, sampler=sampler, **low)
    shown = arrays(together)
    assert np.mean((shown > 0) & (shown < 255)) > 0.3, "clipped images would agree for nothing"
    assert shown[2].std() > 1 and np.abs(shown[2] - shown[3]).max() > 1, "prompts or images differ"
    for i in (0, 3, 5):
        own = {key: value[i] for key, value in low.items()}
        alone = model.generate(PROMPTS[i], seeds=[SEEDS[i]], sampler=sampler, **own)
        assert same_image(alone.images[0], together.images[i])
    turned = {key: value[::-1] for key, value in low.items()}
    again = model.generate(PROMPTS[::-1], seeds=SEEDS[::-1], sampler=sampler, **turned)
    assert all(same_image(a, b) for a, b in zip(again.images, together.images[::-1], strict=True))


def test_the_null_text_weighs_the_same_however_long_the_other_prompts_are() -> None:
    """Where pixels and words share one attention, each token of zeros would take from the pixels."""
    masks: list[torch.Tensor] = []
    for network in (fused(), attentive(concat_channels=0, augmented=False)):
        model = stage(base(network=network))
        model.network.register_forward_pre_hook(
            lambda net, args, kwargs: masks.append(kwargs["context_mask"]), with_kwargs=True
        )
        model.generate(["red", "a prompt of some more words"], steps=1)
    assert [mask.sum(1).tolist() for mask in masks] == [[2, 7, 1, 1], [2, 7, 7, 7]], "prompts, nulls"


def test_ddpm_draws_the_variance_that_the_stage_says() -> None:
    small, large = (stage(wordless(variance=variance)) for variance in ("fixed-small", "fixed-large"))
    options: dict[str, Any] = {"low": drawing(), "seeds": [3]}
    once, twice = ([arrays(m.generate("a", steps=n, **options)) for m in (small, large)] for n in (1, 3))
    assert np.array_equal(*once), "the last step draws nothing"
    assert not np.array_equal(*twice)
    other = [arrays(m.generate("a", steps=3, sampler="ddim", **options)) for m in (small, large)]
    assert np.array_equal(*other), "of the ddpm sampler alone"


def test_the_noise_on_the_low_resolution_image_is_the_seeds_too() -> None:
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


def test_an_untouched_image_is_shown_as_it_is() -> None:
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
def test_the_metadata_is_enough_to_make_each_image_again(kind: str) -> None:
    model = stage(KINDS[kind])
    low = lows(model.config, 2)
    options: dict[str, Any] = {"steps": np.int64(2), "guidance": np.float32(2.5), "threshold": "dynamic:0.9:1.5"}
    options |= {"seeds": np.array([3, 4]), "negative": ["", "a cat"], "sampler": "ddim"}
    result = model.generate(list(CAPTIONS), **options, **low)
    for i, told in enumerate(json.loads(json.dumps(result.metadata))):
        prompt, seed, size, _ = told.pop("prompt"), told.pop("seed"), told.pop("size"), told.pop("cost")
        assert tuple(size) == result.images[i].size
        assert ("low" in told) == bool(low) and told.pop("low", {"in_memory": [8, 8]})["in_memory"] == [8, 8]
        own = {"low": low["low"][i]} if low else {"size": size}
        assert same_image(model.generate(prompt, seeds=[seed], **own, **told).images[0], result.images[i])


def test_what_is_not_said_is_the_stages_own(painter: PixelDiffusion, enlarger: PixelDiffusion) -> None:
    told = painter.generate("red").metadata[0]
    own = {"steps": 3, "guidance": 3.0, "sampler": "dpmpp-2m", "threshold": "dynamic:0.95", "size": [8, 8]}
    own["cost"] = {"calls": 6, "gradients": 0}
    assert told == {"prompt": "red", "negative": None, "seed": 0, **own}
    told = enlarger.generate("red", low=drawing()).metadata[0]
    own = {"steps": 2, "guidance": 1.0, "sampler": "dpmpp-2m", "threshold": "static", "augmentation": 0.2}
    own["cost"] = {"calls": 2, "gradients": 0}
    assert told.pop("low")["in_memory"] == [8, 8]
    assert told == {"prompt": "red", "negative": None, "seed": 0, **own, "size": [16, 16]}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_given_noise_takes_the_place_of_the_seeds_own(painter: PixelDiffusion, sampler: str) -> None:
    """Also for samplers that draw more: what they draw does not shift."""
    usual = painter.generate(list(CAPTIONS), seeds=[7, 8], sampler=sampler)
    noise = NoiseSource([7, 8], (3, 8, 8)).draw()
    given = painter.generate(list(CAPTIONS), seeds=[7, 8], noise=noise.double(), sampler=sampler)
    assert np.array_equal(arrays(usual), arrays(given))
    other = painter.generate(list(CAPTIONS), seeds=[7, 8], noise=-noise, sampler=sampler)
    assert np.abs(arrays(other) - arrays(usual)).max() > 1
    assert [told["noise"]["in_memory"] for told in given.metadata] == [[3, 8, 8]] * 2


def test_given_noise_leaves_the_noise_on_the_low_resolution_image_to_the_seeds(enlarger: PixelDiffusion) -> None:
    noise, low = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), drawing()
    one, two = (enlarger.generate("red", seeds=[seed], low=low, noise=noise) for seed in (0, 1))
    assert np.abs(arrays(one) - arrays(two)).max() > 1
    clean = [enlarger.generate("red", seeds=[seed], low=low, noise=noise, augmentation=0.0) for seed in (0, 1)]
    assert np.array_equal(arrays(clean[0]), arrays(clean[1]))


def test_negative_prompts_steer(painter: PixelDiffusion) -> None:
    usual = painter.generate(list(CAPTIONS))
    for nothing in ("", "  ", ["", " \n"]):
        assert np.array_equal(arrays(usual), arrays(painter.generate(list(CAPTIONS), negative=nothing)))
    steered = painter.generate(list(CAPTIONS), negative="a cat in a long sentence")
    assert np.abs(arrays(steered) - arrays(usual)).max() > 1
    one = painter.generate(list(CAPTIONS), negative=["a cat in a long sentence", ""])
    assert same_image(one.images[0], steered.images[0]) and same_image(one.images[1], usual.images[1])
    assert [told["negative"] for told in one.metadata] == ["a cat in a long sentence", None]
    with pytest.warns(DiptychWarning, match="the negative prompt has no effect"):
        plain = painter.generate("red", guidance=1.0, negative="blue")
    assert same_image(painter.generate("red", negative="red", guidance=9.0).images[0], plain.images[0])


def test_guidance_leads_away_from_zeros(painter: PixelDiffusion) -> None:
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


def test_no_words_are_the_empty_prompt_where_the_stage_says_so() -> None:
    """To steer away from, and in training."""
    zeros, empty = stage(base()), stage(base(null_text="empty"))
    away = empty.embed(Request.of(["red", "red"], {"seeds": [1, 2], "negative": ["", "a cat"]}))
    assert away is not None
    assert all(torch.equal(a, b) for a, b in zip(away[1], empty.text.encode(["", "a cat"]), strict=True))
    images = [model.generate("red", seeds=[1], steps=2).images[0] for model in (empty, zeros)]
    assert not same_image(*images)
    captions, dropped = ["red left", "a cat"], torch.tensor([True, False])
    read, wanted = empty.read(captions, dropped), empty.text.encode(["", "a cat"])
    assert all(torch.equal(a, b) for a, b in zip(read, wanted, strict=True))
    assert not torch.equal(read.sequence, zeros.read(captions, dropped).sequence)


def test_a_stage_without_words_reads_none_and_costs_half() -> None:
    model, low = stage(wordless(guidance=4.0)), drawing()
    first, second = (model.generate(text, seeds=[3], low=low, negative="z") for text in CAPTIONS)
    assert same_image(first.images[0], second.images[0])
    assert first.metadata[0]["guidance"] == 1.0 and first.metadata[0]["prompt"] == CAPTIONS[0]
    assert same_image(model.generate("", seeds=[3], low=low).images[0], first.images[0]), "nothing need be said"
    with pytest.raises(UserError, match="a prompt is empty"):
        stage(enlarging()).generate("", seeds=[3], low=low)
    before = model.denoiser.calls
    model.generate("any", low=low, guidance=7.0, steps=3)
    assert model.denoiser.calls - before == 3
    assert model.text is None
    ddpm = stage(base(text=None, network=plain(context_width=None)))
    assert same_image(*(ddpm.generate(text, seeds=[3]).images[0] for text in CAPTIONS))


THRESHOLDS = {
    "none": ThresholdConfig(kind="none"),
    "static": ThresholdConfig(kind="static"),
    "dynamic": ThresholdConfig(),
    "dynamic:0.9": ThresholdConfig(percentile=0.9),
    "dynamic:0.95:1.5": ThresholdConfig(percentile=0.95, cap=1.5),
    "dynamic:1": ThresholdConfig(percentile=1.0),
}


@pytest.mark.parametrize("text", THRESHOLDS)
def test_a_threshold_is_read_from_text(painter: PixelDiffusion, text: str) -> None:
    assert painter.settings(threshold=text).threshold == THRESHOLDS[text]
    assert ThresholdConfig.parse(str(THRESHOLDS[text])) == THRESHOLDS[text]
    assert painter.settings(threshold=THRESHOLDS[text]).threshold is THRESHOLDS[text]


def test_thresholds_bound_what_high_guidance_does(painter: PixelDiffusion) -> None:
    largest: dict[str, float] = {}
    images = {}
    for threshold in ("none", "static", "dynamic:0.8", "dynamic:0.8:1.0"):
        seen: list[torch.Tensor] = []
        options: dict[str, Any] = {"guidance": 20.0, "steps": 4, "threshold": threshold}
        result = painter.generate("red left", callback=lambda i, n, x0, seen=seen: seen.append(x0), **options)
        largest[threshold], images[threshold] = max(x0.abs().max().item() for x0 in seen), arrays(result)
    assert largest["none"] > 2
    assert all(value <= 1 for name, value in largest.items() if name != "none")
    assert np.array_equal(images["static"], images["dynamic:0.8:1.0"]), "a cap of 1 is static"
    clipped = {name: np.mean((shown == 0) | (shown == 255)) for name, shown in images.items()}
    assert clipped["dynamic:0.8"] < clipped["static"], "what is scaled back is not clipped away"


def test_the_callback_sees_each_step_and_may_cancel(enlarger: PixelDiffusion) -> None:
    steps: list[tuple[int, int, tuple[int, ...]]] = []
    enlarger.generate(["a", "b"], low=drawing(), callback=lambda i, n, x0: steps.append((i, n, tuple(x0.shape))))
    assert steps == [(i, 2, (2, 3, 16, 16)) for i in range(2)]

    def cancel(step: int, count: int, x0: torch.Tensor) -> None:
        raise KeyboardInterrupt

    before = enlarger.denoiser.calls
    with pytest.raises(KeyboardInterrupt):
        enlarger.generate("a", low=drawing(), callback=cancel)
    assert enlarger.denoiser.calls == before + 1


def test_a_base_stage_paints_other_sizes(painter: PixelDiffusion) -> None:
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
        (prompt_ensemble, variance), (unspoken, _) = (output.detach().split(3, dim=1) for output in outputs)
        eps = unspoken + guidance * (prompt_ensemble - unspoken)
        x = scheduler.step(torch.cat([eps, variance], 1), int(t), x, generator=generator)[0]
    assert same_image(ours.images[0], to_images(x)[0])
    fixed = SAMPLERS["ddpm"](
        ClassifierFreeGuidance(model.denoiser, {**told, "concat": concat, "level": torch.tensor([level])}, {}, 1.0),
        torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(stage_seed(seed, model.config))),
        timesteps(model.schedule, count),
        model.schedule,
        noise=NoiseSource([stage_seed(seed, model.config)], (3, 16, 16)),
    )
    assert not same_image(ours.images[0], to_images(fixed)[0]), "another variance makes another image"


# Classes


def classes(null: int | None, **changes: Any) -> PixelDiffusion:
    text = ClassConfig(classes=4, null=null, names=("cat", "dog", "red apple", "blue"))
    network = AdmUNetConfig(
        channels=8, multipliers=(1, 2), blocks=1, attention_levels=(), head_width=8, norm_groups=4, classes=text.entries
    )
    config = base(network=network, text=text, null_text="empty", learned_variance=True, **changes)
    return stage(config, text=ClassLabels(text))


def test_a_stage_of_classes_reads_their_numbers_and_names(tmp_path: Path) -> None:
    model = classes(null=4)
    by_name = model.generate(["Red  apple", "dog"], seeds=[1, 1], guidance=3.0)
    by_number = model.generate(["2", "1"], seeds=[1, 1], guidance=3.0)
    assert np.array_equal(arrays(by_name), arrays(by_number)) and by_name.metadata[0]["guidance"] == 3.0
    assert np.abs(arrays(by_name)[0] - arrays(by_name)[1]).max() > 1
    steered = model.generate("2", seeds=[1], guidance=3.0, negative="1")
    assert not same_image(steered.images[0], by_number.images[0])
    with pytest.raises(UserError, match=r"'hat' is no class of this model: give a number from 0 to 3 or a name"):
        model.generate("hat")
    model.save(tmp_path)
    again: Any = diptych.load(tmp_path, "cpu")
    assert np.array_equal(arrays(again.generate(["2", "1"], seeds=[1, 1], guidance=3.0)), arrays(by_number))
    joined = Cascade.of([model, stage(enlarging())])
    both = joined.generate("red apple", seeds=[1], guidance=[3.0, None], keep=True)
    assert same_image(both.stages[0][0], by_number.images[0])


def test_without_a_class_for_none_nothing_is_guided() -> None:
    model = classes(null=None)
    result = model.generate("2", guidance=7.0)
    assert result.metadata[0]["guidance"] == 1.0
    assert same_image(result.images[0], model.generate("red apple", guidance=1.0).images[0])
    with pytest.raises(UserError, match=r"network\.classes must be 5 to fit its neighbours, not 4"):
        PixelDiffusionConfig.from_dict({**model.config.to_dict(), "text": {"kind": "class", "classes": 4, "null": 4}})


def test_a_low_resolution_tensor_is_the_image_of_its_values(enlarger: PixelDiffusion) -> None:
    image = drawing()
    expected = enlarger.generate(["a", "b"], seeds=[1, 2], low_res=image).images
    for low_res in (to_tensor([image]), to_tensor([image, image])):
        assert equal(enlarger.generate(["a", "b"], seeds=[1, 2], low_res=low_res).images, expected)
