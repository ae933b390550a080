"""What tasks generate to be measured: images of captions beside the real ones, or reconstructions of these."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diptych.core.images import to_images
from diptych.diffusion.schedules import ScheduleConfig
from diptych.encoders.class_configs import ClassConfig, LayoutConfig
from diptych.training.tasks.codes import CodesTask, CodesTraining
from diptych.training.tasks.diffusion import DiffusionTask, DiffusionTraining
from diptych.training.tasks.from_captions import in_words
from tests.models import codes, stages
from tests.models.latents import CAPTIONS, system, toy_batch
from tests.networks.reference import randomised
from tests.training.test_distillation import distillation
from tests.training.test_first_stage import stage

SEEDS = [3, 0]
MIDDLES = DiffusionTraining()
BEGINNINGS = DiffusionTraining(validation_times="beginnings")


def test_a_latent_model_generates_what_its_captions_and_seeds_say() -> None:
    task, batch = DiffusionTask(system(), MIDDLES), toy_batch([5, 6])
    found = task.generated(batch, SEEDS)
    assert found.images == system().generate([CAPTIONS[1], CAPTIONS[0]], seeds=SEEDS).images
    assert found.real == to_images(batch["picture"])
    assert (found.paired, found.captions, found.decoded) == (False, [CAPTIONS[1], CAPTIONS[0]], False)


@torch.no_grad()
def test_precomputed_latents_and_codes_are_decoded() -> None:
    pictures = toy_batch([5, 6])["picture"]
    model = system()
    moments = model.autoencoder.moments(pictures)
    found = DiffusionTask(model, MIDDLES).generated({"latent": moments, "caption": [*CAPTIONS]}, SEEDS)
    assert found.real == to_images(model.autoencoder.decode(moments.chunk(2, 1)[0]))
    assert found.decoded

    writer = codes.system("class")
    batch = {"codes": writer.encode(pictures).short(), "caption": ["red", "blue"]}
    found = CodesTask(writer, CodesTraining()).generated(batch, SEEDS)
    entries = writer.autoencoder.quantise.entries(batch["codes"].long())  # type: ignore[union-attr]
    assert found.real == to_images(writer.autoencoder.decode_entries(entries))
    assert found.images == codes.system("class").generate(["red", "blue"], seeds=SEEDS).images
    assert found.captions == ["red", "blue"]


def test_a_super_resolution_stage_is_measured_by_what_it_enlarges() -> None:
    task, batch = DiffusionTask(stages.stage(stages.enlarging()), MIDDLES), stages.toy_batch([5, 6])
    found = task.generated(batch, SEEDS)
    _, outputs = task.system.sample_from_images(batch["picture"], batch["caption"], SEEDS)  # type: ignore[attr-defined]
    assert found.images == to_images(outputs)
    assert found.real == to_images(batch["picture"])
    assert found.paired and found.captions is None


@pytest.mark.parametrize("make", [stage, distillation])
def test_a_decoder_is_measured_by_what_it_decodes(make: Any) -> None:
    task, batch = make(), toy_batch([5, 6])
    randomised(task.module)
    found = task.generated(batch, SEEDS)
    assert found.paired and found.captions is None
    assert found.real == to_images(batch["picture"])
    one = {key: value[:1] for key, value in batch.items()}
    assert task.generated(one, SEEDS[:1]).images == found.images[:1], "alone as in company"
    if make is stage:
        assert found.images == to_images(task.rebuilt(batch["picture"]))
    else:
        assert found.images == to_images(task.module.decode(task.targets(batch)[0]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, False),
        (LayoutConfig(), False),
        (ClassConfig(classes=2), False),
        (ClassConfig(classes=2, names=("a", "b")), True),
        (stages.base().text, True),
    ],
)
def test_captions_count_where_they_are_words(text: Any, expected: bool) -> None:
    assert in_words(text) is expected


@pytest.mark.parametrize("kind", ["flow", "linear", "cosine"])
@torch.no_grad()
def test_the_validation_loss_may_be_taken_as_mlperf_has_it(kind: Any) -> None:
    """At 0, 1/8 ... 7/8, with one noise for an image at all of them, and the same each time."""
    prediction = "flow" if kind == "flow" else "v"
    model, batch = system(schedule=ScheduleConfig(kind=kind), prediction=prediction), toy_batch([5, 6])
    task, noises = DiffusionTask(model, BEGINNINGS), []
    loss = model.denoiser.loss
    model.denoiser.loss = lambda x0, noise, *rest: (noises.append(noise), loss(x0, noise, *rest))[1]  # type: ignore[method-assign]
    found = task.validation(batch)
    assert list(found) == ["loss", *(f"loss_at_{i / 8:.4f}" for i in range(8))]
    assert len(noises) == 8 and all(torch.equal(noise, noises[0]) for noise in noises)
    assert found == task.validation(batch)
    assert found["loss"] == pytest.approx(sum(found[f"loss_at_{i / 8:.4f}"] for i in range(8)) / 8)
    assert torch.tensor(list(found.values())).isfinite().all()
    assert found["loss"] != DiffusionTask(model, MIDDLES).validation(batch)["loss"]
