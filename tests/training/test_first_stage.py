"""Training the autoencoder: the loss is the stated one, images are independent, and it learns and opens again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.core.errors import UserError
from diptych.core.random import normal
from diptych.models.first_stage import load_autoencoder
from diptych.pretrained.load import read_config
from diptych.training.tasks.autoencoding import FirstStage, FirstStageConfig
from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig
from tests.models.latents import AUTOENCODER, toy_batch
from tests.networks.reference import randomised


def stage(**changes: object) -> FirstStage:
    torch.manual_seed(0)
    return FirstStage(FirstStageConfig.from_dict({"network": AUTOENCODER.to_dict(), **changes}))


@torch.no_grad()
def test_the_loss_is_the_stated_one_for_each_image_by_itself() -> None:
    it, batch = stage(l1=0.7, l2=0.3, kl=0.01), toy_batch([3, 1, 4])
    randomised(it.module)
    losses, scalars = it.loss(batch)
    for i in range(3):
        image = batch["picture"][i : i + 1]
        mean, log_variance = it.autoencoder.moments(image).chunk(2, 1)
        latent = mean + (log_variance / 2).exp() * normal(batch["seed"][i : i + 1], mean.shape[1:])
        error = it.autoencoder.decode(latent) - image
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        expected = 0.7 * error.abs().mean() + 0.3 * error.square().mean() + 0.01 * kl / (3 * 16 * 16)
        assert losses[i].item() == pytest.approx(expected.item(), rel=1e-4)
        assert it.loss(toy_batch([int(batch["seed"][i])]))[0].item() == pytest.approx(expected.item(), rel=1e-4)
    assert set(scalars) == {"l1", "l2", "kl", "deviation"}


@torch.no_grad()
def test_validation_measures_in_eight_bit_terms() -> None:
    it, batch = stage(), toy_batch([0, 1])
    randomised(it.module)
    told = it.validation(batch)
    rebuilt = it.autoencoder.decode(it.autoencoder.encode(batch["picture"]).mean).clamp(-1, 1)
    mse = ((rebuilt - batch["picture"]) * 127.5).square().flatten(1).mean(1)
    assert told["psnr"] == pytest.approx((10 * torch.log10(255**2 / mse)).mean().item(), rel=1e-4)
    assert told == it.validation(batch)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_it_learns_and_opens_again(tmp_path: Path, dtype: str) -> None:
    it, validation = stage(l2=1.0, save_dtype=dtype), toy_batch(list(range(1000, 1008)))
    assert it.samples() is None, "nothing to show before a validation"
    before = it.validation(validation)
    config = TrainingConfig(
        steps=40, batch_size=8, learning_rate=5e-3, warmup=5, ema=0.9, threads=1, device="cpu", validate_every=40,
        sample_every=40, validation_images=8,
    )  # fmt: skip
    folder = train(it, toy_batch, config, tmp_path, lambda positions: toy_batch([1000 + p for p in positions]))
    it.module.eval()
    after = it.validation(validation)
    assert after["psnr"] > before["psnr"] + 3
    sheet = it.samples()
    assert sheet is not None and sheet.size == (8 * 18 - 2, 2 * 18 - 2)
    assert (tmp_path / "samples").is_dir()

    values = read_config(folder)
    assert values == {**it.config.to_dict(), "network": values["network"]} and values["kind"] == "autoencoder"
    opened = load_autoencoder(it.config.network, folder)
    assert not opened.training
    again = FirstStage(it.config, opened)
    assert again.validation(validation)["psnr"] > before["psnr"] + 3


def test_the_perceptual_distance_counts_and_is_recorded(tmp_path: Path) -> None:
    class Distance(torch.nn.Module):
        name = "means apart"

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return (first - second).flatten(1).mean(1).square()

    it, batch, distance = stage(), toy_batch([3, 1]), Distance()
    randomised(it.module)
    told = {"perceptual": {"features": "judge", "weight": 2.0}}
    other = FirstStage(FirstStageConfig.from_dict({**it.config.to_dict(), **told}), it.autoencoder, distance)
    latents = it.regularised(batch)[0]
    expected = it.loss(batch)[0] + 2.0 * distance(batch["picture"], it.autoencoder.decode(latents))
    torch.testing.assert_close(other.loss(batch)[0], expected)
    assert "perceptual" in other.validation(batch) and not any("distance" in key for key in other.module.state_dict())
    other.save(tmp_path / "model")
    assert "means apart" in (tmp_path / "model" / "training.json").read_text()
    with pytest.raises(ValueError, match="perceptual"):
        FirstStage(other.config)


def test_a_learned_variance_divides_the_error() -> None:
    """At its best for a given error: the variance is the error itself (the loss's derivative by it is zero)."""
    it, batch = stage(kl=0.0, learned_variance=True), toy_batch([3])
    randomised(it.module)
    assert it.module.log_variance is not None
    plain = stage(kl=0.0)
    plain.module.autoencoder.load_state_dict(it.autoencoder.state_dict())
    error = plain.loss(batch)[0]
    with torch.no_grad():
        it.module.log_variance.copy_(error[0].log())
    losses, _ = it.loss(batch)
    assert losses.item() == pytest.approx(1 + error.log().item(), rel=1e-5)
    (slope,) = torch.autograd.grad(losses.sum(), it.module.log_variance)
    assert slope.item() == pytest.approx(0.0, abs=1e-5)


def test_a_decoder_alone_leaves_the_latents(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="init_from"):
        stage(train="decoder")
    first = stage()
    before = {name: value.clone() for name, value in first.autoencoder.state_dict().items()}
    it = FirstStage(
        FirstStageConfig.from_dict({**first.config.to_dict(), "train": "decoder", "init_from": "x"}), first.autoencoder
    )
    config = TrainingConfig(steps=3, batch_size=4, warmup=0, threads=1, device="cpu", validate_every=0, sample_every=0)
    train(it, toy_batch, config, tmp_path)
    after = it.autoencoder.state_dict()
    moved = {name.partition(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"decoder", "post_quant_conv"}
