"""Students of few steps: the losses are the papers', a student starts as its teacher, and what is saved opens again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import diptych
from diptych.core.counter_random import draws_of
from diptych.core.errors import UserError
from diptych.core.random import NOISE, POSTERIOR, normal
from diptych.diffusion.samplers import SAMPLERS, consistency_scalings
from diptych.diffusion.steps import NoiseSource
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.networks.lora_training import LoraConfig
from diptych.recipes import get
from diptych.training import experiment
from diptych.training.tasks.few_steps import SAMPLER, FewStepTask, FewStepTraining
from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig
from tests.models.latents import CAPTIONS, arrays, system, toy_batch, write_images
from tests.networks.reference import randomised
from tests.pretrained.sd_models import folder

LORA = LoraConfig(rank=2)
KINDS: dict[str, dict[str, Any]] = {
    "eps": {"prediction": "eps"},
    "v": {"prediction": "v"},
    "flow": {"prediction": "flow", "schedule": {"kind": "flow"}},
}


def task(teacher: LatentDiffusion | None = None, **changes: Any) -> FewStepTask:
    config = FewStepTraining(**{"steps": 2, "teacher_steps": 4, **changes})
    teacher = teacher or system()
    return FewStepTask(config, teacher, teacher.text)


def latents(it: FewStepTask, batch: dict[str, Any], row: int) -> tuple[Tensor, Tensor]:
    """The scaled latent sample of an image, and its noise."""
    mean, log_variance = it.system.autoencoder.moments(batch["picture"][row : row + 1]).chunk(2, 1)
    seed = batch["seed"][row : row + 1]
    sample = mean + (log_variance / 2).exp() * normal(seed, mean.shape[1:], stream=POSTERIOR)
    return sample * it.system.scale, normal(seed, mean.shape[1:], stream=NOISE)


def teacher_x0(it: FewStepTask, z: Tensor, t: float, caption: str) -> Tensor:
    """The guided estimate, by two calls of the network."""
    schedule, config = it.system.schedule, it.system.config
    alpha, sigma = (float(v) for v in schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64)))
    time = schedule.network_time(torch.tensor([t], dtype=torch.float64)).float()
    with_prompt, without = (it.teacher(z, time, **it.system.embed([text])) for text in (caption, ""))
    output = without + it.scale * (with_prompt - without)
    return {
        "eps": lambda: (z - sigma * output) / alpha,
        "v": lambda: alpha * z - sigma * output,
        "flow": lambda: z - sigma * output,
    }[config.prediction]()


def ddim(it: FewStepTask, z: Tensor, x0: Tensor, t: float, s: float) -> Tensor:
    (alpha, sigma), (alpha_s, sigma_s) = (
        [float(v) for v in it.system.schedule.alpha_sigma(torch.tensor(time, dtype=torch.float64))] for time in (t, s)
    )
    return alpha_s * x0 + sigma_s / sigma * (z - alpha * x0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_progressive_target_takes_one_step_to_where_the_teacher_takes_two(kind: str) -> None:
    it, batch = task(system(**KINDS[kind]), method="progressive", guidance=3.0), toy_batch([3, 1])
    none = torch.zeros(2, dtype=torch.bool)
    for place, (t, middle, end) in enumerate([(1.0, 0.75, 0.5), (0.5, 0.25, 0.0)]):
        losses = it.errors(batch, draws_of(batch), torch.full((2,), place), none)
        for row in range(2):
            x0, noise = latents(it, batch, row)
            z = it.system.denoiser.add_noise(x0, noise, t)
            half = ddim(it, z, teacher_x0(it, z, t, batch["caption"][row]), t, middle)
            then = ddim(it, half, teacher_x0(it, half, middle, batch["caption"][row]), middle, end)
            estimate = it.system.denoiser(z, t, it.system.embed([batch["caption"][row]]))
            # where the target itself would lead is `then`; the error of x_0 is that of where it leads, scaled
            (alpha, sigma), (alpha_end, sigma_end) = (
                [float(v) for v in it.system.schedule.alpha_sigma(torch.tensor(time, dtype=torch.float64))]
                for time in (t, end)
            )
            error = (ddim(it, z, estimate, t, end) - then) / (alpha_end - sigma_end / sigma * alpha)
            expected = max((alpha / sigma) ** 2, 1.0) * error.square().mean()
            assert losses[row].item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_consistency_loss_compares_neighbours_on_the_teachers_path(kind: str) -> None:
    it, batch = task(system(**KINDS[kind]), guidance=2.0, huber=0.0), toy_batch([3])
    randomised(it.system.unet, seed=7)
    times, caption = [1.0, 0.75, 0.5, 0.25, 0.0], batch["caption"][0]

    def consistent(z: Tensor, t: float) -> Tensor:
        skip, out = consistency_scalings(it.system.schedule.network_time(torch.tensor(t, dtype=torch.float64)))
        return float(skip) * z + float(out) * it.system.denoiser(z, t, it.system.embed([caption]))

    for place in range(4):
        t, s = times[place], times[place + 1]
        x0, noise = latents(it, batch, 0)
        z = it.system.denoiser.add_noise(x0, noise, t)
        earlier = ddim(it, z, teacher_x0(it, z, t, caption), t, s)
        target = consistent(earlier, s) if s > 0 else earlier
        loss = it.errors(batch, draws_of(batch), torch.tensor([place]), torch.zeros(1, dtype=torch.bool))
        assert loss.item() == pytest.approx((consistent(z, t) - target).square().mean().item(), rel=1e-3)


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_a_student_starts_as_its_teacher_and_learns_alone(lora: LoraConfig | None) -> None:
    teacher = system(prediction="v")
    it, before = task(teacher, lora=lora), {k: v.clone() for k, v in teacher.unet.state_dict().items()}
    x, time, cond = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 20.0]), it.system.embed(list(CAPTIONS))
    assert torch.equal(it.system.unet(x, time, **cond), it.teacher(x, time, **cond))
    trained = [p for p in it.module.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) < sum(p.numel() for p in it.teacher.parameters()) * (0.5 if lora else 1.1)
    optimizer = torch.optim.Adam(trained, 1e-2)
    for _ in range(2):  # B of a LoRA starts at zero, and A learns from the second step on
        optimizer.zero_grad()
        it.loss(toy_batch([0, 1, 2]))[0].sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained if lora)
    assert all(p.grad is None for p in it.teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in it.teacher.state_dict().items())
    assert not torch.allclose(it.system.unet(x, time, **cond), it.teacher(x, time, **cond), atol=1e-4)


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("method", ["consistency", "progressive"])
def test_a_run_is_saved_as_a_model_with_its_own_defaults(method: Any, lora: Any, tmp_path: Path) -> None:
    teacher = system(prediction="v")
    teacher.save(tmp_path / "teacher")
    teacher = diptych.load(tmp_path / "teacher")
    assert isinstance(teacher, LatentDiffusion)
    config = FewStepTraining(
        teacher=str(tmp_path / "teacher"), method=method, steps=2, teacher_steps=4, lora=lora, save_dtype="float32"
    )
    it = FewStepTask(config, teacher, teacher.text)
    settings = TrainingConfig(
        steps=2, batch_size=4, learning_rate=1e-2, warmup=0, validate_every=0, sample_every=0, device="cpu",
        precision="fp32", workers=0, ema=0.0,
    )  # fmt: skip
    model = train(it, toy_batch, settings, tmp_path / "run")
    opened = diptych.load(tmp_path / "run")
    assert isinstance(opened, LatentDiffusion)
    own = opened.generate(list(CAPTIONS))
    row = own.metadata[0]
    assert (row["steps"], row["guidance"], row["sampler"]) == (2, 1.0, SAMPLER[method])
    assert row["cost"]["calls"] == 2, "one call a step"
    assert np.abs(arrays(own) - arrays(it.system.generate(list(CAPTIONS)))).max() <= 1
    assert np.abs(arrays(own) - arrays(teacher.generate(list(CAPTIONS), steps=2, guidance=1.0))).max() > 1
    if lora is not None:
        stated = json.loads((model / "config.json").read_text())
        assert stated["kind"] == "latent-lora" and "lora" not in row, "it is the model's own"
        applied = diptych.load(tmp_path / "teacher", lora=model)
        assert isinstance(applied, LatentDiffusion)
        options = {"steps": 2, "guidance": 1.0, "sampler": row["sampler"], "schedule_type": "trailing"}
        same = applied.generate(list(CAPTIONS), **options)  # type: ignore[arg-type]
        assert np.abs(arrays(own) - arrays(same)).max() <= 1, "the file alone does the same"
        teacher.unet.conv_in.weight.data += 1
        teacher.save(tmp_path / "teacher")
        with pytest.raises(UserError, match="was trained for other weights than those of"):
            diptych.load(tmp_path / "run")


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4.0)], ids=["whole", "lora"])
def test_a_student_begins_as_another(lora: LoraConfig | None, tmp_path: Path) -> None:
    teacher = system(prediction="v")
    teacher.save(tmp_path / "teacher")

    def student(**changes: Any) -> FewStepTask:
        config = FewStepTraining(
            teacher=str(tmp_path / "teacher"), **{"lora": lora, "save_dtype": "float32", **changes}
        )
        opened = config.opened()
        return FewStepTask(config, opened, opened.text)

    first, second = student(steps=8), student(steps=4)
    with torch.no_grad():
        for parameter in first.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    first.save(tmp_path / "first")
    x, time, cond = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 20.0]), first.system.embed(list(CAPTIONS))
    before = second.system.unet(x, time, **cond)
    second.begin_as(str(tmp_path / "first"))
    after = second.system.unet(x, time, **cond)
    assert torch.allclose(after, first.system.unet(x, time, **cond), atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-3)
    if lora is None:
        return
    with pytest.raises(UserError, match="of other layers or another rank"):
        student(lora=LoraConfig(rank=3)).begin_as(str(tmp_path / "first"))
    with pytest.raises(UserError, match="no folder of a LoRA"):
        second.begin_as(str(tmp_path / "teacher"))
    with pytest.raises(UserError, match="nowhere"):
        second.begin_as(str(tmp_path / "nowhere"))
    teacher.unet.conv_in.weight.data += 1
    teacher.save(tmp_path / "teacher")
    with pytest.raises(UserError, match="student of another teacher"):
        student().begin_as(str(tmp_path / "first"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["system.teacher_steps=10"], r"teacher_steps must be a multiple of steps \(4\), and more"),
        (["system.teacher_steps=4"], r"teacher_steps must be a multiple of steps"),
        (["system.steps=0"], "steps must lie between 1 and"),
        (["system.lora.rank=0"], "rank must lie between 1 and"),
        (["data.size=64"], r"data.size \(64\) and the teacher's size \(128\) must be the same"),
    ],
)
def test_what_does_not_fit_is_refused(changes: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        get("emoji-lcm-lora").override(changes)


def test_a_consistency_model_knows_the_image_at_once() -> None:
    """With the exact x_0 of one image, any number of steps ends in it."""
    schedule, image = system(**KINDS["flow"]).schedule, torch.randn(1, 4, 8, 8)
    for steps in (1, 2, 4):
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        source = NoiseSource([0], (4, 8, 8))
        made = SAMPLERS["lcm"](lambda x, t: image, source.draw(), times, schedule, noise=source)
        assert torch.allclose(made, image, atol=1e-5)


@pytest.mark.parametrize("lora", ["lora.rank=2", pytest.param("lora=none", marks=pytest.mark.slow)])
def test_a_published_model_is_a_teacher_with_its_own_text_encoder(lora: str, tmp_path: Path) -> None:
    folder(tmp_path / "published", "sd2")
    write_images(tmp_path / "images", count=4, held_out=0)
    teacher = diptych.load(tmp_path / "published")
    assert isinstance(teacher, LatentDiffusion)
    for path in (tmp_path / "images").glob("*.png"):
        with Image.open(path) as image:
            image.resize((teacher.config.size,) * 2).save(path)
    recipe = get("emoji-lcm-lora").override(
        [
            *(f"system.teacher={tmp_path / 'published'}", f"data.path={tmp_path / 'images'}", f"system.{lora}"),
            *(f"data.size={teacher.config.size}", "data.held_out=0", "data.in_memory=false"),
            *("system.precomputed=none", "system.prompts=", "system.teacher_steps=8", "training.steps=1"),
            *("training.batch_size=2", "training.validate_every=0", "training.sample_every=0"),
            *("training.precision=fp32", "training.device=cpu", "training.workers=0"),
        ]
    )
    made = experiment.train(recipe, tmp_path / "run")
    row = diptych.load(made).generate("a red house").metadata[0]
    assert (row["sampler"], row["steps"], row["guidance"]) == ("lcm", 4, 1.0)
    assert (made / "text").is_dir() == (lora == "lora=none"), "a whole model brings its text encoder"
