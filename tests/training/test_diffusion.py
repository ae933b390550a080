"""The diffusion objective on the latent panel: its number, its independence of company, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.core.errors import UserError
from diptych.core.hashing import mix
from diptych.core.random import DROP, NOISE, POSTERIOR, TIME, normal, uniform
from diptych.diffusion.losses import ObjectiveConfig
from diptych.diffusion.schedules import ScheduleConfig
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.pretrained.load import open_model
from diptych.training.tasks.diffusion import DiffusionTask, DiffusionTraining
from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig
from tests.models.latents import CAPTIONS, config, joint, system, toy_batch

FLOW = {"schedule": ScheduleConfig(kind="flow"), "prediction": "flow"}


def task(text: str = "joint", training: DiffusionTraining | None = None, **changes: Any) -> DiffusionTask:
    return DiffusionTask(system(text, **changes), training or DiffusionTraining())


def plain_loss(model: LatentDiffusion, batch: dict[str, Any], i: int, dropout: float) -> Tensor:
    """The loss of image i, written out: its own random numbers, one image at a time."""
    seed, image = batch["seed"][i : i + 1], batch["picture"][i : i + 1]
    mean, log_variance = model.autoencoder.moments(image).chunk(2, dim=1)
    shape = mean.shape[1:]
    x0 = 0.5 * (mean + (log_variance / 2).exp() * normal(seed, shape, stream=POSTERIOR))
    noise, draw = normal(seed, shape, stream=NOISE), uniform(seed, stream=TIME).double().item()
    caption = "" if uniform(seed, stream=DROP).item() < dropout else batch["caption"][i]
    words = model.text.encode([caption])
    if model.config.prediction == "flow":
        time = 1 - draw
        x, told, target = (1 - time) * x0 + time * noise, 1000 * time, noise - x0
    else:
        index = int(draw * 1000)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        alpha_squared = float(torch.prod(1 - betas[: index + 1]))
        x, told, target = alpha_squared**0.5 * x0 + (1 - alpha_squared) ** 0.5 * noise, float(index), noise
    answer = model.unet(x, torch.tensor([told]), context=words.sequence, pooled=words.pooled)
    return (answer - target).square().mean()


@pytest.mark.parametrize("text", ["joint", "minilm"])
@pytest.mark.parametrize("kind", [{}, FLOW], ids=["eps", "flow"])
@torch.no_grad()
def test_the_loss_is_the_plain_one_and_does_not_depend_on_company(text: str, kind: dict[str, Any]) -> None:
    it, seeds = task(text, DiffusionTraining(caption_dropout=0.4), **kind), [3, 1, 4, 15, 9, 2**62]
    batch = toy_batch(seeds)
    together, _ = it.loss(batch)
    assert together.shape == (6,)
    for i, seed in enumerate(seeds):
        expected = plain_loss(it.system, batch, i, 0.4).item()  # type: ignore[arg-type]
        assert together[i].item() == pytest.approx(expected, rel=1e-4)
        assert it.loss(toy_batch([seed]))[0].item() == pytest.approx(expected, rel=1e-4)
    assert together.std() > 0.01 * together.mean()


@torch.no_grad()
def test_min_snr_weighs_the_plain_loss_at_each_time() -> None:
    batch = toy_batch([3, 1, 4])
    weighted = task(training=DiffusionTraining(objective=ObjectiveConfig(weighting="min-snr"))).loss(batch)[0]
    it = task()
    index = (uniform(batch["seed"], stream=TIME).double() * 1000).floor()
    alpha, sigma = it.system.denoiser.schedule.alpha_sigma((index + 1) / 1000)
    snr = alpha**2 / sigma**2
    assert torch.allclose(weighted, it.loss(batch)[0] * (snr.clamp(max=5.0) / snr).float(), rtol=1e-4)


def test_an_l1_objective_is_trained_and_validated_by(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, seen = toy_batch([3, 1, 4]), []
    it = task(training=DiffusionTraining(objective=ObjectiveConfig(loss="l1")))
    target = it.system.denoiser.target
    monkeypatch.setattr(it.system.denoiser, "target", lambda *args: seen.append(target(*args)) or seen[-1])
    monkeypatch.setattr(it.system.denoiser, "_run", lambda x, times, cond: (torch.zeros_like(x), None))
    assert torch.equal(it.loss(batch)[0], seen[0].abs().flatten(1).mean(1))
    assert it.validation(batch)["loss_at_0.0625"] == pytest.approx(seen[1].abs().mean().item())
    with pytest.raises(UserError, match="loss must be mse: min-snr weighs a squared error"):
        ObjectiveConfig(loss="l1", weighting="min-snr")


def test_the_random_numbers_of_an_example_are_spread_and_independent() -> None:
    seeds = torch.tensor([mix(0, position, 1) for position in range(4000)])
    drop, time = uniform(seeds, stream=DROP).double(), uniform(seeds, stream=TIME).double()
    assert (drop < 0.1).double().mean().item() == pytest.approx(0.1, abs=3.5 * (0.09 / 4000) ** 0.5)
    for draw in (drop, time):
        assert draw.mean().item() == pytest.approx(0.5, abs=3.5 / (12 * 4000) ** 0.5)
        assert torch.histc(draw, 10, 0, 1).min() > 320
    assert abs(torch.corrcoef(torch.stack([drop, time]))[0, 1].item()) < 3.5 / 4000**0.5
    noise, posterior = (normal(seeds[:300], (64,), stream=stream).double() for stream in (NOISE, POSTERIOR))
    assert abs((noise * posterior).mean().item()) < 3.5 / (300 * 64) ** 0.5
    assert abs((noise[:-1] * noise[1:]).mean().item()) < 3.5 / (300 * 64) ** 0.5


@torch.no_grad()
def test_captions_are_dropped_in_the_share_asked_for() -> None:
    seen: list[str] = []
    it = task(training=DiffusionTraining(caption_dropout=0.25))
    encoder = it.system.text  # type: ignore[attr-defined]
    encode = encoder.encode
    encoder.encode = lambda prompts: (seen.extend(prompts), encode(prompts))[1]
    seeds = [mix(1, position, 1) for position in range(400)]
    batch = toy_batch(seeds)
    it.loss(batch)
    kept = [caption for caption in seen if caption]
    assert len(seen) == 400
    assert 1 - len(kept) / 400 == pytest.approx(0.25, abs=3.5 * (0.1875 / 400) ** 0.5)
    assert all(mine in (own, "") for mine, own in zip(seen, batch["caption"], strict=True))
    seen.clear()
    it.validation(batch)
    assert set(seen) == set(CAPTIONS), "validation drops none"
    with pytest.raises(UserError, match="caption_dropout"):
        DiffusionTraining(caption_dropout=1.0)


def test_validation_is_the_same_each_time() -> None:
    it, batch = task(), toy_batch([1, 2, 3])
    first = it.validation(batch)
    torch.manual_seed(5)
    torch.randn(3)
    assert it.validation(batch) == first
    times = [key for key in first if key.startswith("loss_at_")]
    assert len(times) == 8 and times[0] == "loss_at_0.0625"
    assert first["loss"] == pytest.approx(sum(first[key] for key in times) / 8)
    parts = [it.validation(toy_batch([seed]))["loss"] for seed in (1, 2, 3)]
    assert first["loss"] == pytest.approx(sum(parts) / 3, rel=1e-4)


@pytest.mark.parametrize("text", ["joint", "minilm"])
def test_the_loss_reaches_what_is_trained_and_nothing_else(text: str) -> None:
    it = task(text)
    model: Any = it.system
    it.loss(toy_batch([1, 2]))[0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.unet.parameters())
    if text == "joint":
        read = [p for name, p in model.joint_text.named_parameters() if "position" not in name]
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in read)
    else:
        assert all(p.grad is None for p in model.text.model.parameters())
    assert all(p.grad is None for p in model.autoencoder.parameters())


def fresh(**changes: Any) -> LatentDiffusion:
    """As training finds it: the U-Net's own first weights, and a first stage that is sure of its latents."""
    torch.manual_seed(0)
    model = LatentDiffusion(config(**{**FLOW, **changes}), system().autoencoder, joint())
    with torch.no_grad():
        model.autoencoder.quant_conv.weight[4:] = 0.0
        model.autoencoder.quant_conv.bias[4:] = -8.0
    return model


def settings(**changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {"steps": 60, "batch_size": 16, "learning_rate": 1e-2, "warmup": 5, "ema": 0.9}
    quiet = {"log_every": 20, "validate_every": 60, "sample_every": 60, "checkpoint_every": 60}
    return TrainingConfig(**{**values, **quiet, "validation_images": 8, "threads": 1, "device": "cpu", **changes})


@pytest.mark.slow
def test_two_captions_are_learnt_in_seconds(tmp_path: Path) -> None:
    it = DiffusionTask(fresh(), DiffusionTraining(prompts=CAPTIONS))
    validation = toy_batch(list(range(10_000, 10_016)))
    it.system.start(validation)
    before = it.validation(validation)["loss"]
    folder = train(it, toy_batch, settings(), tmp_path, lambda positions: toy_batch([10_000 + p for p in positions]))
    it.module.eval()
    assert it.validation(validation)["loss"] < 0.6 * before
    with Image.open(next((tmp_path / "samples").iterdir())) as sheet:
        assert sheet.size == (2 * 16 + 2, 16)
    opened = open_model(folder)
    assert opened.scale == it.system.scale  # type: ignore[attr-defined]
    swapped = validation | {"caption": validation["caption"][1:] + validation["caption"][:1]}
    right = DiffusionTask(opened, it.config).validation(validation)["loss"]
    wrong = DiffusionTask(opened, it.config).validation(swapped)["loss"]
    assert wrong > 1.5 * right, "the words are read"


def test_samples_leave_training_as_it_was() -> None:
    it = task(training=DiffusionTraining(prompts=CAPTIONS))
    it.module.train()
    first = it.samples()
    assert it.module.training and first is not None
    it.module.eval()
    second = it.samples()
    assert not it.module.training and second is not None
    assert first.tobytes() == second.tobytes()
    assert task().samples() is None
