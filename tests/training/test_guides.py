from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from diptych.core.errors import UserError
from diptych.core.random import NOISE, POSTERIOR, TIME, GeneratorDraws
from diptych.diffusion.denoiser import Denoiser
from diptych.diffusion.losses import training_times
from diptych.diffusion.schedules import ScheduleConfig
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import MiniLMConfig
from diptych.models.guides import Space
from diptych.models.noisy_guide import NoisyGuide, NoisyGuideConfig, alike, translated
from diptych.networks.adm import AdmUNetConfig
from diptych.networks.noisy_classifier import NoisyClassifierConfig
from diptych.pretrained.load_guide import open_guide
from diptych.recipes import get
from diptych.training.guided_model import guided_model
from diptych.training.tasks.contrastive import contrast, equal
from diptych.training.tasks.guide_training import GuideTask, GuideTraining, guide_task
from diptych.weights.fingerprint import fingerprint
from tests.models.latents import CAPTIONS, SIZE, autoencoder, system, toy_batch
from tests.models.stages import Words
from tests.networks.reference import randomised

CLASSES = ClassConfig(classes=2, names=("a blue picture", "a red picture"))
SPOKEN = {"a red picture": "cat", "a blue picture": "dog"}
"""Words to which `Words` has different answers."""
WORDS = MiniLMConfig()
"""Of a pair; `Words` stand in for it."""


def network(outputs: int = 2, channels: int = 3) -> NoisyClassifierConfig:
    encoder = AdmUNetConfig(
        in_channels=channels, channels=8, multipliers=(1, 2), blocks=1, attention_levels=(), head_width=8, norm_groups=4
    )
    return NoisyClassifierConfig(encoder=encoder, classes=outputs, pool="adaptive", size=None)


class Sentences(Words):
    """Words whose sum is as wide as MiniLM's."""

    def encode(self, prompts: list[str]):
        found = super().encode([SPOKEN.get(prompt, prompt) for prompt in prompts])
        wide = torch.nn.functional.pad(found.sequence, (0, WORDS.width - self.width))
        return type(found).from_sequence(wide, found.mask)


def task(**changes) -> GuideTask:
    config = GuideTraining(**{"network": network(), "classes": CLASSES, **changes})
    return guide_task(config, CAPTIONS, None)


def pair() -> GuideTask:
    config = GuideTraining(network=network(6), classes=None, text=WORDS)
    guide = NoisyGuide(NoisyGuideConfig(network=network(6), classes=None, text=WORDS), Sentences())
    return GuideTask(config, guide, None, CAPTIONS)


def space(**changes) -> Space:
    return Space(**{"schedule": ScheduleConfig().build(), "device": torch.device("cpu"), "images": id, **changes})


def test_the_loss_of_a_classifier_is_the_cross_entropy_of_the_noisy_image() -> None:
    it, batch = task(schedule=ScheduleConfig(kind="flow")), toy_batch([3, 4, 5, 8])
    randomised(it.module.network, 1)
    schedule, draws = ScheduleConfig(kind="flow").build(), GeneratorDraws(batch["seed"])
    times = training_times(draws.uniform(TIME), it.config.objective, schedule)
    x = Denoiser(lambda x, t: x, schedule).add_noise(batch["picture"], draws.normal(batch["picture"], NOISE), times)
    chances = it.module.network(x, (1000 * times).float()).softmax(-1).tolist()
    wanted = [
        -math.log(chances[i][0 if caption == "a blue picture" else 1]) for i, caption in enumerate(batch["caption"])
    ]
    assert torch.allclose(it.loss(batch)[0], torch.tensor(wanted), rtol=1e-4)


def test_latents_are_those_of_the_model_that_it_guides(tmp_path: Path) -> None:
    system().save(tmp_path / "latent")
    guided = guided_model(str(tmp_path / "latent"))
    config = GuideTraining(network=network(channels=4), classes=CLASSES, guided=str(tmp_path / "latent"))
    it, batch = guide_task(config, CAPTIONS, guided), toy_batch([3, 4])
    told = it.module.config
    assert (told.scale, told.first_stage) == (
        0.5,
        fingerprint(autoencoder()),
    ) and told.schedule == system().config.schedule
    posterior = autoencoder().encode(batch["picture"])
    draws = GeneratorDraws(batch["seed"])
    sample = 0.5 * posterior.sample(draws.normal(posterior.mean, POSTERIOR))
    stored = {**batch, "latent": autoencoder().moments(batch["picture"])}
    for one in (batch, stored):
        assert torch.allclose(it.clean(one, draws), sample, atol=1e-5)
    with pytest.raises(UserError, match="is no latent model"):
        guided_model("cascade")


def test_the_contrast_is_infonce_without_pairs_of_the_same_text() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(4, 5, generator=generator), dim=-1) for _ in range(2))
    captions = ["cat", "dog", "cat", "cow"]
    found = contrast(images, texts, equal(captions, captions), torch.tensor(7.0))
    for i in range(4):
        others = [j for j in range(4) if j == i or captions[j] != captions[i]]
        row = sum(math.exp(7 * float(images[i] @ texts[j])) for j in others)
        column = sum(math.exp(7 * float(images[j] @ texts[i])) for j in others)
        own = 7 * float(images[i] @ texts[i])
        assert math.isclose(float(found[i]), (math.log(row) + math.log(column)) / 2 - own, rel_tol=1e-4)


@pytest.mark.every(2)
@pytest.mark.parametrize("kind", ["classifier", "pair"])
def test_it_learns_to_tell_classes_and_texts_apart_where_noise_lets_it(kind: str) -> None:
    torch.manual_seed(0)
    it = task() if kind == "classifier" else pair()
    held = toy_batch(list(range(1000, 1064)))
    before = it.validation(held)
    optimizer = torch.optim.Adam(it.module.parameters(), 3e-3)
    for step in range(40):
        optimizer.zero_grad()
        it.loss(toy_batch(list(range(16 * step, 16 * step + 16))))[0].mean().backward()
        optimizer.step()
    it.module.eval()
    after = it.validation(held)
    assert after["top1_at_0.1875"] > 0.95 > before["top1_at_0.1875"]
    assert after["top5"] == 1.0, "there are but two"
    assert after["top1"] == pytest.approx(sum(after[f"top1_at_{(i + 0.5) / 8:.4f}"] for i in range(8)) / 8)
    unknown = it.validation({**held, "caption": ["a green picture"] * len(held["seed"])})
    assert unknown["top5"] == 0


@pytest.mark.parametrize("kind", ["classifier", "pair"])
def test_what_is_saved_is_what_guides(kind: str, tmp_path: Path) -> None:
    it = task() if kind == "classifier" else pair()
    randomised(it.module, 4)
    it.save(tmp_path / "run" / "model")
    found = open_guide(tmp_path / "run")
    assert isinstance(found, NoisyGuide) and found.config == it.module.config
    if kind == "pair":
        found.set_frozen(text=Sentences())
    x, times = torch.randn(2, 3, SIZE, SIZE), torch.tensor([0.3, 0.7]).double()
    one, other = (guide.eval().bind(["a red picture", "a blue picture"], space()) for guide in (found, it.module))
    assert torch.equal(one(x, times), other(x, times))
    logits = it.module(x, times.float() * 1000 - 1)
    if kind == "classifier":
        wanted = logits.softmax(-1)[[0, 1], [1, 0]].log()
    else:
        wanted = it.module.log_scale.exp() * (logits * it.module.embed(["a red picture", "a blue picture"])).sum(-1)
    assert torch.allclose(one(x, times), wanted, atol=1e-5)


def test_a_guide_of_another_schedule_sees_the_image_with_its_own_noise() -> None:
    flow, table = ScheduleConfig(kind="flow").build(), ScheduleConfig().build()
    assert alike(flow, ScheduleConfig(kind="flow").build()) and not alike(flow, table)
    assert not alike(table, ScheduleConfig(beta_end=0.02).build())
    t, x0, noise = torch.tensor([0.2, 0.5, 0.9]).double(), torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    seen, then = translated(Denoiser(id, flow).add_noise(x0, noise, t), t, flow, table)
    assert torch.allclose(table.log_snr(then), flow.log_snr(t), atol=1e-6)
    assert torch.allclose(seen, Denoiser(id, table).add_noise(x0, noise, then), atol=1e-5)


def test_what_a_guide_cannot_read_is_said() -> None:
    names = ("red apple", "green apple", "dog")
    guide = NoisyGuide(NoisyGuideConfig(network=network(3), classes=ClassConfig(classes=3, names=names)), name="mine")
    assert [guide.number(text) for text in ("a red apple", "Dog", "the dog", "1")] == [0, 2, 2, 1]
    with pytest.raises(UserError, match=r"mine: 'red aple' is no class .* such as 'red apple'"):
        guide.bind(["red aple"], space())
    with pytest.raises(UserError, match="empty prompt"):
        guide.bind([""], space())
    score = guide.bind(["dog"], space())
    with pytest.raises(UserError, match="mine reads 3 x any x any, and this model generates 4 x 8 x 8"):
        score(torch.zeros(1, 4, 8, 8), torch.tensor([0.5]))
    with pytest.raises(UserError, match="reads noisy pixels"):
        guide.bind(["dog"], space(first_stage="a", scale=0.5))
    config = dataclasses.replace(guide.config, first_stage="a", scale=0.5)
    latents = NoisyGuide(config, name="mine")
    for other in ({"first_stage": "b", "scale": 0.5}, {"first_stage": "a", "scale": 0.7}):
        with pytest.raises(UserError, match="another first stage"):
            latents.bind(["dog"], space(**other))
    latents.bind(["dog"], space(first_stage="a", scale=0.51))
    latents.bind(["dog"], space(first_stage=None, scale=0.5))


def test_configs_that_contradict_themselves_are_refused() -> None:
    for wrong, said in (
        ({"text": WORDS}, "set classes or text"),
        ({"classes": None}, "set classes or text"),
        ({"network": network(3)}, "classes must be 3 in number"),
        ({"precomputed": "cache/x"}, "precomputed must"),
        ({"smoothing": 1.0}, "smoothing must"),
    ):
        with pytest.raises(UserError, match=said):
            GuideTraining(**{"network": network(), "classes": CLASSES, **wrong})


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_the_published_classifiers_have_the_model_that_they_guide_beside_them(size: int) -> None:
    guide, model = get(f"adm-{size}-classifier").system, get(f"adm-{size}").system
    assert isinstance(guide, GuideTraining)
    assert guide.schedule == model.model.schedule and guide.network.size == model.model.size  # type: ignore[union-attr]
    assert guide.network.encoder.multipliers == model.model.network.multipliers  # type: ignore[union-attr]


def test_names_come_from_the_data_into_the_model(tmp_path: Path) -> None:
    it = task(classes=ClassConfig(classes=2, names_from_captions=True))
    assert it.module.config.classes is not None and it.module.config.classes.names == tuple(sorted(CAPTIONS))
    it.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["classes"]["names"] == sorted(CAPTIONS)
    with pytest.raises(UserError, match="2 classes"):
        task(network=network(3), classes=ClassConfig(classes=3, names_from_captions=True))


@pytest.mark.parametrize("objective", [{"loss": "l1"}, {"weighting": "min-snr"}])
def test_a_guide_has_no_loss_of_a_denoiser(objective: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"GuideTraining\.objective: a guide has no loss or weighting"):
        GuideTraining.from_dict({"objective": objective})
