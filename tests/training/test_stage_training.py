"""Training one stage: its loss written out, its null text, its levels, and that it learns to enlarge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diptych.conditioning.lowres_augmentation import AugmentationConfig, augment
from diptych.core.counter_random import Draws
from diptych.core.errors import UserError
from diptych.core.random import AUGMENTATION, DROP, LEVEL, NOISE, TIME, GeneratorDraws, normal, uniform
from diptych.diffusion.schedules import ScheduleConfig
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.models.request import Request
from diptych.pretrained.load import open_model
from diptych.training.tasks.diffusion import DiffusionTask, DiffusionTraining
from diptych.training.trainer import train
from diptych.weights.lazy import load_weights
from tests.models.stages import (
    CAPTIONS,
    WIDTH,
    Words,
    attentive,
    base,
    enlarging,
    fused,
    plain,
    run,
    settings,
    stage,
    toy_batch,
    unet,
    wordless,
)
from tests.training.processes import finish, start
from tests.training.test_distributed import free_port
from tests.training.test_trainer import metrics

LEVELS: dict[str, Any] = {"lowest": 0.1, "highest": 0.6}
KINDS: dict[str, PixelDiffusionConfig] = {
    "base": base(),
    "base, plain U-Net": base(network=plain(pooled_width=WIDTH)),
    "base, fused attention": base(network=fused(context_projection=12)),
    "noise": enlarging(augmentation=AugmentationConfig(**LEVELS)),
    "noise before": enlarging(network=attentive(), augmentation=AugmentationConfig(where="low", **LEVELS)),
    "blur": enlarging(network=attentive(pooled_width=None), augmentation=AugmentationConfig(kind="blur", **LEVELS)),
    "level untold": enlarging(network=unet(augmented=False)),
    "SR3": wordless(),
    "DDPM": base(text=None, network=plain(context_width=None), prediction="eps"),
}


def closed_form(time: float) -> tuple[float, float]:
    """alpha and sigma of the cosine schedule, whose log-SNR ends at -20."""
    alpha = math.cos((time + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    alpha = max(alpha, (1 / (1 + math.exp(20))) ** 0.5)
    return alpha, max(1 - alpha**2, 0.0) ** 0.5


def plain_loss(model: PixelDiffusion, batch: dict[str, Any], i: int, dropout: float) -> Tensor:
    """The loss of image i, written out: its own random numbers, one image at a time."""
    config, seed, x0 = model.config, batch["seed"][i : i + 1], batch["picture"][i : i + 1]
    told: dict[str, Any] = {}
    if config.text is not None:
        if uniform(seed, stream=DROP).item() < dropout:  # zeros, however many
            words = {"context": torch.zeros(1, 1, WIDTH), "pooled": torch.zeros(1, WIDTH)}
        else:
            read = model.text.encode([batch["caption"][i]])
            words = {"context": read.sequence, "pooled": read.pooled}
        widths = {"context": config.network.context_width, "pooled": config.network.pooled_width}
        told |= {key: value for key, value in words.items() if widths[key] is not None}
    if config.low_size is not None:
        how = config.augmentation
        low = x0.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).mean((-3, -1))  # means of 2 x 2 boxes
        large = F.interpolate(low, scale_factor=2, mode="bilinear")
        level = how.lowest + (how.highest - how.lowest) * uniform(seed, stream=LEVEL).double().item()
        if how.kind == "none":
            told["concat"], level = large, 0.0
        elif how.kind == "blur":
            told["concat"] = augment(low, (16, 16), level, None, how)
        else:
            alpha, sigma = closed_form(level)
            if how.where == "high":
                told["concat"] = alpha * large + sigma * normal(seed, large.shape[1:], stream=AUGMENTATION)
            else:
                spoiled = alpha * low + sigma * normal(seed, low.shape[1:], stream=AUGMENTATION)
                told["concat"] = F.interpolate(spoiled, scale_factor=2, mode="bilinear")
        if config.network.augmented:
            told["level"] = torch.tensor([level], dtype=torch.float32)
    noise, draw = normal(seed, x0.shape[1:], stream=NOISE), uniform(seed, stream=TIME).double().item()
    if config.schedule.kind == "cosine":
        time = 1000 * (1 - draw) - 1
        alpha, sigma = closed_form(1 - draw)
    else:
        time = int(draw * 1000)
        betas = torch.linspace(config.schedule.beta_start, config.schedule.beta_end, 1000, dtype=torch.float64)
        alpha = float(torch.prod(1 - betas[: time + 1])) ** 0.5
        sigma = (1 - alpha**2) ** 0.5
    target = alpha * noise - sigma * x0 if config.prediction == "v" else noise
    answer = model.network(alpha * x0 + sigma * noise, torch.tensor([float(time)]), **told)
    return (answer - target).square().mean()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_loss_is_the_plain_one_and_does_not_depend_on_company(kind: str) -> None:
    model, seeds = stage(KINDS[kind]), [3, 1, 4, 15, 9, 2**62]
    it = DiffusionTask(model, DiffusionTraining(caption_dropout=0.4))
    dropped = (uniform(torch.tensor(seeds), stream=DROP) < 0.4).tolist()
    assert any(dropped) and not all(dropped)
    batch = toy_batch(seeds, model.config.size)
    together, _ = it.loss(batch)
    assert together.shape == (6,)
    for i, seed in enumerate(seeds):
        expected = plain_loss(model, batch, i, 0.4).item()
        assert together[i].item() == pytest.approx(expected, rel=1e-4)
        assert it.loss(toy_batch([seed], model.config.size))[0].item() == pytest.approx(expected, rel=1e-4)
    assert together.std() > 0.01 * together.mean()


@torch.no_grad()
def test_a_crop_of_any_size_is_trained_as_a_whole_image_is() -> None:
    model, batch = stage(enlarging(16)), toy_batch([3, 4, 5], size=32)
    batch["picture"] = batch["picture"][..., 4:20, 8:32].contiguous()  # 24 x 16
    losses, _ = DiffusionTask(model, DiffusionTraining(caption_dropout=0.0)).loss(batch)
    for i in range(3):
        assert losses[i].item() == pytest.approx(plain_loss(model, batch, i, 0.0).item(), rel=1e-4)
    batch["picture"] = batch["picture"][..., :15]
    with pytest.raises(UserError, match="factor 2"):
        DiffusionTask(model, DiffusionTraining()).loss(batch)


def draws(seeds: list[int]) -> Draws:
    return GeneratorDraws(torch.tensor(seeds))


@pytest.mark.parametrize("config", [base(), base(network=plain(pooled_width=WIDTH)), enlarging(network=attentive())])
@torch.no_grad()
def test_a_dropped_caption_is_what_guidance_leads_away_from(config: PixelDiffusionConfig) -> None:
    """In training beside a longer caption, in sampling beside a shorter prompt: the network answers alike."""
    model, batch = stage(config), toy_batch([2, 3], config.size)
    _, cond = model.prepare(batch, draws([2, 3]), torch.tensor([True, False]))
    extra = {key: cond[key][:1] for key in ("concat", "level") if key in cond}
    _, uncond = model.embed(Request(["red"], [""], [0]))  # type: ignore[misc]
    null = model.cond(uncond)
    assert cond["context"].shape[1] > null["context"].shape[1]
    assert not any(value[0].any() for value in (cond["context"], cond["pooled"], null["context"], null["pooled"]))
    assert cond["context_mask"][0].all() and null["context_mask"].all()
    x, time = torch.randn(1, 3, config.size, config.size), torch.tensor([500.0])
    trained = model.network(x, time, **{key: value[:1] for key, value in cond.items()})
    torch.testing.assert_close(trained, model.network(x, time, **null, **extra), rtol=1e-4, atol=1e-4)
    prompt_ensemble = model.network(x, time, **{key: value[1:] for key, value in cond.items()})
    assert (trained - prompt_ensemble).abs().max() > 0.01


def test_augmentation_levels_are_drawn_for_each_image_and_reach_the_network() -> None:
    seeds = list(range(400))
    batch = toy_batch(seeds, 16)
    model = stage(enlarging(augmentation=AugmentationConfig(lowest=0.2, highest=0.6)))
    _, cond = model.prepare(batch, draws(seeds), torch.zeros(400, dtype=torch.bool))
    level = cond["level"].double()
    assert 0.2 <= level.min() < 0.21 and 0.59 < level.max() <= 0.6
    assert level.mean().item() == pytest.approx(0.4, abs=3.5 * 0.4 / (12 * 400) ** 0.5)
    noise = GeneratorDraws(torch.tensor(seeds)).normal(cond["concat"], AUGMENTATION)
    clean = F.interpolate(F.interpolate(batch["picture"], (8, 8), mode="area"), (16, 16), mode="bilinear")
    alpha, sigma = zip(*(closed_form(value) for value in level.tolist()), strict=True)
    expected = torch.tensor(alpha).view(-1, 1, 1, 1) * clean + torch.tensor(sigma).view(-1, 1, 1, 1) * noise
    torch.testing.assert_close(cond["concat"], expected, rtol=1e-4, atol=1e-4)
    for config, listens in ((enlarging(network=unet(augmented=False)), False), (base(), False)):
        _, cond = stage(config).prepare(batch, draws(seeds), torch.zeros(400, dtype=torch.bool))
        assert ("level" in cond) == listens


def test_a_stage_without_augmentation_gets_level_0_in_training_and_sampling() -> None:
    model = stage(enlarging(augmentation=AugmentationConfig(kind="none")))
    _, cond = model.prepare(toy_batch([1, 2]), draws([1, 2]), torch.zeros(2, dtype=torch.bool))
    assert torch.equal(cond["level"], torch.zeros(2))
    assert model.settings().augmentation == model.settings(augmentation=0.7).augmentation == 0.0


@pytest.mark.parametrize("kind", ["base", "blur", "SR3"])
def test_the_loss_reaches_all_of_the_network_and_nothing_else(kind: str) -> None:
    model = stage(KINDS[kind])
    DiffusionTask(model, DiffusionTraining()).loss(toy_batch([1, 2], model.config.size))[0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.network.parameters())
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"network"}
    assert {key.split(".")[0] for key in model.state_dict()} == {"network"}
    if model.config.text is not None:
        assert model.text.model.weight.grad is None


@pytest.mark.parametrize("kind", ["noise", "blur"])
@torch.no_grad()
def test_under_autocast_images_levels_and_losses_stay_in_float32(kind: str) -> None:
    model, batch = stage(KINDS[kind]), toy_batch([0, 1, 2])
    none = torch.zeros(3, dtype=torch.bool)
    _, exact = model.prepare(batch, draws([0, 1, 2]), none)
    with torch.autocast("cpu", torch.bfloat16):
        x0, cond = model.prepare(batch, draws([0, 1, 2]), none)
        loss = DiffusionTask(model, DiffusionTraining()).loss(batch)[0]
    assert x0.dtype == loss.dtype == torch.float32 and torch.isfinite(loss).all()
    assert all(torch.equal(value, exact[key]) and value.dtype == exact[key].dtype for key, value in cond.items())


def test_a_learned_variance_is_trained_beside_the_estimate() -> None:
    network = attentive(concat_channels=0, augmented=False, out_channels=6)
    model = stage(base(network=network, schedule=ScheduleConfig(kind="cosine-table"), learned_variance=True))
    DiffusionTask(model, DiffusionTraining()).loss(toy_batch([1, 2], 8))[0].sum().backward()
    grad = dict(model.network.named_parameters())["conv_out.weight"].grad
    assert grad is not None and grad[:3].any() and grad[3:].any()


# The loop


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(str(folder), {})
    return folder


def same(folder: Path, alone: Path) -> None:
    for name in ("loss", "grad_norm"):
        assert metrics(folder, name) == pytest.approx(metrics(alone, name), rel=1e-4)
    assert metrics(folder, kind="validation") == pytest.approx(metrics(alone, kind="validation"), rel=1e-4)
    for key, tensor in load_weights(folder / "model" / "network").items():
        torch.testing.assert_close(tensor, load_weights(alone / "model" / "network")[key], rtol=1e-3, atol=1e-4)


def test_accumulated_parts_make_the_same_stage(tmp_path: Path, alone: Path) -> None:
    run(str(tmp_path), {"accumulation": 3})
    same(tmp_path, alone)


@pytest.mark.slow
def test_two_processes_make_the_same_stage(tmp_path: Path, alone: Path) -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    assert [finish(one) for one in [start(run, str(tmp_path), {}, rank) for rank in ranks]] == [0, 0]
    same(tmp_path, alone)


def test_a_run_shows_what_is_enlarged_what_it_makes_and_the_truth(alone: Path) -> None:
    with Image.open(next((alone / "samples").iterdir())) as sheet:
        assert sheet.size == (4 * 18 - 2, 3 * 18 - 2)
        low, _, truth = (sheet.crop((0, 18 * row, 16, 18 * row + 16)) for row in range(3))
    image = toy_batch([10_000])["picture"]
    assert torch.equal(F.interpolate(as_tensor(low), (8, 8)), as_tensor(low)[..., ::2, ::2])
    assert (as_tensor(truth) - image).abs().max() < 0.01
    reduced = F.interpolate(image, (8, 8), mode="area")
    assert (as_tensor(low)[..., ::2, ::2] - reduced).abs().max() < 0.01


def as_tensor(image: Image.Image) -> Tensor:
    from diptych.core.images import to_tensor

    return to_tensor([image])


def psnr(made: Tensor, truth: Tensor) -> float:
    return -10 * math.log10((made - truth).square().mean().item() / 4)


@pytest.mark.slow
def test_a_stage_learns_to_enlarge_better_than_interpolation_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    augmentation = AugmentationConfig(highest=0.3, level=0.0)
    model = PixelDiffusion(enlarging(4, size=16, prediction="x0", steps=8, augmentation=augmentation), Words())
    it = DiffusionTask(model, DiffusionTraining())
    validation = toy_batch(list(range(10_000, 10_016)))
    before = it.validation(validation)["loss"]
    values = {"steps": 250, "batch_size": 16, "ema": 0.95, "log_every": 250, "validate_every": 0, "sample_every": 0}
    values |= {"schedule": "cosine", "checkpoint_every": 250}
    folder = train(it, toy_batch, settings(**values), tmp_path)
    opened: Any = open_model(folder)
    opened.text = Words()
    assert DiffusionTask(opened, it.config).validation(validation)["loss"] < 0.25 * before
    low, made = opened.sample_from_images(validation["picture"], validation["caption"], validation["seed"].tolist())
    truth, blurred = validation["picture"], F.interpolate(low, (16, 16), mode="bilinear")
    assert psnr(made, truth) > psnr(blurred, truth) + 3


def test_a_base_stage_learns_what_words_mean(tmp_path: Path) -> None:
    torch.manual_seed(0)
    it = DiffusionTask(PixelDiffusion(base(), Words()), DiffusionTraining(prompts=CAPTIONS))
    validation = toy_batch(list(range(10_000, 10_016)), 8)
    before = it.validation(validation)["loss"]
    values = {"steps": 60, "batch_size": 16, "log_every": 60, "validate_every": 0, "sample_every": 60}
    train(it, lambda p: toy_batch(p, 8), settings(**values, checkpoint_every=60), tmp_path)
    it.module.eval()
    right = it.validation(validation)["loss"]
    assert right < 0.7 * before
    swapped = validation | {"caption": validation["caption"][1:] + validation["caption"][:1]}
    assert it.validation(swapped)["loss"] > 1.1 * right, "the words are read"
    with Image.open(next((tmp_path / "samples").iterdir())) as sheet:
        assert sheet.size == (2 * 8 + 2, 8)
