from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diptych.cli.generate_commands import open_guides
from diptych.cli.main import parse
from diptych.core.errors import UserError
from diptych.core.images import to_tensor
from diptych.encoders.class_configs import ClassConfig
from diptych.models.judge import Judge
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.models.noisy_guide import NoisyGuide, NoisyGuideConfig
from diptych.models.pair_guide import ClipPair, PairGuide
from diptych.networks.adm import AdmUNetConfig
from diptych.networks.noisy_classifier import NoisyClassifier, NoisyClassifierConfig
from diptych.pretrained.guided_diffusion import COSINE, LINEAR
from diptych.pretrained.load_guide import open_guide, published_guide
from diptych.weights.fingerprint import fingerprint
from tests.encoders.tiny_encoders import WORDS, clip_folder
from tests.evaluation.toys import SMALL, words
from tests.models.latents import CAPTIONS, arrays, system
from tests.models.stages import base, cascade, close, equal, stage
from tests.networks.reference import randomised


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return system()


def classifier(channels: int, seed: int = 5, **changes: Any) -> NoisyGuide:
    encoder = AdmUNetConfig(
        in_channels=channels, channels=8, multipliers=(1, 2), blocks=1, attention_levels=(), head_width=8, norm_groups=4
    )
    network = NoisyClassifierConfig(encoder=encoder, classes=2, pool="adaptive", size=None)
    config = NoisyGuideConfig(network=network, classes=ClassConfig(classes=2, names=CAPTIONS), **changes)
    return randomised(NoisyGuide(config, name="mine"), seed).eval().requires_grad_(False)


def of_latents(model: LatentDiffusion) -> NoisyGuide:
    told = {"first_stage": fingerprint(model.autoencoder), "scale": float(model.scale)}
    return classifier(4, schedule=model.config.schedule, **told)


def judge() -> PairGuide:
    return PairGuide(randomised(Judge(SMALL, words()), seed=6), "toy")


def test_classifier_guidance_of_an_unconditional_latent_model(model: LatentDiffusion) -> None:
    guide, options = of_latents(model), {"guidance": 0.0, "seeds": [3, 4], "steps": 6}
    plain = model.generate(list(CAPTIONS), **options)
    steered = model.generate(list(CAPTIONS), guides=[(guide, 5.0)], **options)
    assert np.array_equal(arrays(plain), arrays(model.generate(["a", "b"], **options))), "told nothing"
    for told in (plain.metadata[0], steered.metadata[0]):
        assert told["cost"]["calls"] == 6
    assert steered.metadata[1]["guides"] == [{"guide": "mine", "scale": 5.0}] and "guides" not in plain.metadata[0]
    assert steered.metadata[1]["cost"]["gradients"] == 6
    kept: dict[str, torch.Tensor] = {}
    for name, guides in (("plain", ()), ("steered", [(guide, 5.0)])):

        def callback(step: int, steps: int, x0: torch.Tensor, name: str = name) -> None:
            kept[name] = x0

        model.generate(list(CAPTIONS), guides=guides, callback=callback, **options)
    last = torch.full((2,), 0.02, dtype=torch.float64)
    scores = {
        name: guide(x0, model.config.schedule.build().network_time(last).float()).log_softmax(-1).diagonal()
        for name, x0 in kept.items()
    }
    assert (scores["steered"] > scores["plain"]).all()


def test_guided_images_do_not_feel_their_neighbours(model: LatentDiffusion) -> None:
    guides = [(of_latents(model), 3.0), (judge(), 0.5)]
    together = model.generate(list(CAPTIONS), seeds=[3, 4], guides=guides)
    assert together.metadata[0]["cost"] == {"calls": 6, "gradients": 6}
    for i, prompt in enumerate(CAPTIONS):
        alone = model.generate(prompt, seeds=[3 + i], guides=guides)
        assert np.abs(arrays(alone)[0] - arrays(together)[i]).max() <= 1


@pytest.mark.parametrize("throughs", [(True, True), (False, False), (True, False)])
@pytest.mark.parametrize("noisy", [False, True])
def test_several_guides_at_once_are_one_of_their_sum(
    model: LatentDiffusion, throughs: tuple[bool, bool], noisy: bool
) -> None:
    options: dict[str, Any] = {"seeds": [3, 4], "steps": 1, "sampler": "euler", "guidance": 0.0}
    guides, alone, first = list[Any](), list[list[Any]](), judge()
    for through in throughs:
        guide = PairGuide(first.pair, "toy", through)
        guides.append((guide, 1e-3))
        alone.append([(guide, 1e-3)])
    if noisy:
        guides.append((of_latents(model), 1e-3))
        alone.append(guides[-1:])

    def estimate(chosen: list[Any]) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        made = model.generate(list(CAPTIONS), guides=chosen, callback=lambda *done: kept.append(done[2]), **options)
        assert made.metadata[0]["cost"] == {"calls": 1, "gradients": len(chosen)}
        return kept[0].double()

    plain = estimate([])
    moves = [estimate(chosen) - plain for chosen in alone]
    assert all(float(move.abs().max()) > 1e-5 for move in moves)
    torch.testing.assert_close(estimate(guides) - plain, sum(moves), rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("through", [True, False])
def test_a_pair_of_images_and_words_draws_images_to_their_words(model: LatentDiffusion, through: bool) -> None:
    guide, options = judge(), {"guidance": 0.0, "seeds": [1, 2, 3, 4], "steps": 8}
    guide.through = through
    prompts = ["red disc", "blue box", "green bar", "black cross"]
    wanted = guide.pair.embed_captions(prompts)

    def alignment(**more: Any) -> float:
        images = to_tensor(model.generate(prompts, **options, **more).images)
        return float((guide.pair.embed_images(images) * wanted).sum(-1).mean())

    assert alignment(guides=[(guide, 20.0)]) > alignment() + 0.01


def test_masks_and_images_are_guided_too(model: LatentDiffusion) -> None:
    image = torch.zeros(1, 3, 16, 16)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1.0
    guides = [(of_latents(model), 8.0)]
    for options in ({"image": image}, {"image": image, "mask": mask, "paste": True}):
        one, other = (model.generate(CAPTIONS[0], guides=each, **options) for each in ((), guides))
        assert not np.array_equal(arrays(one), arrays(other))
        if "mask" in options:
            assert np.array_equal(arrays(one)[0, :, :7], arrays(other)[0, :, :7])


def test_a_stage_is_guided_on_pixels_and_its_threshold_holds() -> None:
    it, guide = stage(base(schedule=LINEAR)), classifier(3, schedule=COSINE)
    kept: list[torch.Tensor] = []
    options = {"seeds": [3, 4], "threshold": "static", "callback": lambda step, steps, x0: kept.append(x0)}
    plain = it.generate(list(CAPTIONS), **options)
    steered = it.generate(list(CAPTIONS), guides=[(guide, 50.0), (judge(), 5.0)], **options)
    assert not np.array_equal(arrays(plain), arrays(steered)) and max(float(x0.abs().max()) for x0 in kept) <= 1
    assert steered.metadata[0]["cost"] == {"calls": 6, "gradients": 6}
    with pytest.raises(UserError, match="reads noisy pixels"):
        system().generate(CAPTIONS[0], guides=[(guide, 1.0)])
    with pytest.raises(UserError, match="mine: 'dog' is no class"):
        it.generate("a dog", guides=[(guide, 1.0)])


def test_of_a_cascade_the_stage_is_guided_that_decides_what_is_shown() -> None:
    model, guides = cascade(), [(classifier(3, schedule=COSINE), 50.0)]
    options = {"seeds": [3, 4], "keep": True, "guidance": 1.0}
    plain, steered = (model.generate(list(CAPTIONS), guides=given, **options) for given in ((), guides))
    assert not any(equal(one, other) for one, other in zip(plain.stages, steered.stages, strict=True))
    told = steered.metadata[0]
    assert told["guides"] == [{"guide": "mine", "scale": 50.0}] and "guides" not in plain.metadata[0]
    assert [stage["cost"]["gradients"] > 0 for stage in told["stages"]] == [True, False, False]
    assert [stage["cost"]["calls"] for stage in told["stages"]] == [
        stage["cost"]["calls"] for stage in plain.metadata[0]["stages"]
    ]
    alone = model.stage(0).generate(list(CAPTIONS), seeds=[3, 4], guidance=1.0, guides=guides)
    assert all(close(one, other) for one, other in zip(alone.images, steered.stages[0], strict=True))


def test_a_clip_of_transformers_says_what_it_says_there(tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    guide = open_guide(clip_folder(tmp_path / "clip"))
    assert isinstance(guide, PairGuide) and isinstance(guide.pair, ClipPair) and guide.name == "clip"
    theirs, tokenizer = CLIPModel.from_pretrained(tmp_path / "clip"), CLIPTokenizer.from_pretrained(tmp_path / "clip")
    prompts = [f"a {word}" for word in WORDS[:3]]
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, deviation = (
        torch.tensor(values).view(3, 1, 1)
        for values in ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    )
    told = tokenizer(prompts, padding="max_length", max_length=24, return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(**told, pixel_values=(images / 2 + 0.5 - mean) / deviation).logits_per_image.diagonal()
    found = guide.bind(prompts, space_of_images())(images)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    larger = torch.nn.functional.interpolate(images, scale_factor=3, mode="nearest")
    assert guide.bind(prompts, space_of_images())(larger).shape == (3,)


def space_of_images() -> Any:
    from diptych.models.guides import Space

    return Space(LINEAR.build(), torch.device("cpu"), lambda x0: x0)


def test_adms_classifiers_know_the_schedule_that_they_were_trained_on() -> None:
    for size, schedule in ((64, COSINE), (256, LINEAR)):
        with torch.device("meta"):
            network = NoisyClassifier(NoisyClassifierConfig(size=size))
        guide = published_guide(network, "classifier")
        assert guide.config.schedule == schedule and guide.network is network


def test_what_does_not_guide_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of kind 'latent', which does not guide"):
        open_guide("latent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no guide"):
        open_guide(tmp_path / "empty")
    guide = open_guide("judge")
    assert isinstance(guide, PairGuide) and guide.name == "judge"


def test_the_command_line_opens_each_with_its_scale(tmp_path: Path) -> None:
    classifier(4, first_stage="a", scale=1.0).save(tmp_path / "mine")
    found = parse(
        ["generate", "a cat", "--classifier", f"{tmp_path / 'mine'}:2.5", "--clip", "judge:3", "--clip", "judge"]
    )
    guides = open_guides(found)["guides"]
    assert [(guide.name, scale) for guide, scale in guides] == [("mine", 2.5), ("judge", 3.0), ("judge", 1.0)]
    assert open_guides(parse(["generate", "a cat"])) == {}
