"""The tiny decoder learns after its teacher: the loss is the stated one, and what is saved knows whose it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.core.random import normal
from diptych.models.first_stage import load_tiny_decoder, require_fits
from diptych.networks.tiny_decoder import TinyDecoder, TinyDecoderConfig
from diptych.training.tasks.distillation import Distillation, DistillationConfig
from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig
from diptych.weights.fingerprint import fingerprint
from tests.models.latents import autoencoder, toy_batch
from tests.networks.reference import randomised

NETWORK = TinyDecoderConfig(channels=(12, 16), blocks=1)


class Squares(nn.Module):
    """A distance that can be written down."""

    name = "squares"

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).square().flatten(1).sum(1)


def distillation(distance: nn.Module | None = None, **changes: object) -> Distillation:
    torch.manual_seed(0)
    config = DistillationConfig.from_dict({"network": NETWORK.to_dict(), **changes})
    return Distillation(config, autoencoder(), distance)


@torch.no_grad()
def test_the_loss_is_the_stated_one_for_each_image_by_itself() -> None:
    it = distillation(Squares(), l1_teacher=0.7, l1_image=0.3, perceptual={"weight": 0.01})
    batch = toy_batch([3, 1, 4])
    randomised(it.module)
    losses, scalars = it.loss(batch)
    for i in range(3):
        image = batch["picture"][i : i + 1]
        mean, log_variance = it.teacher.moments(image).chunk(2, 1)
        latent = mean + (log_variance / 2).exp() * normal(batch["seed"][i : i + 1], mean.shape[1:])
        wanted, painted = it.teacher.decode(latent).clamp(-1, 1), it.module(latent)
        expected = 0.7 * (painted - wanted).abs().mean() + 0.3 * (painted - image).abs().mean()
        expected += 0.01 * (painted - wanted).square().sum()
        assert losses[i].item() == pytest.approx(expected.item(), rel=1e-4)
        assert it.loss(toy_batch([int(batch["seed"][i])]))[0].item() == pytest.approx(expected.item(), rel=1e-4)
    assert set(scalars) == {"after_teacher", "after_truth", "perceptual"}
    assert set(distillation().loss(batch)[1]) == {"after_teacher", "after_truth"}


def test_only_the_tiny_decoder_learns() -> None:
    it = distillation(Squares())
    randomised(it.module)
    it.loss(toy_batch([0, 1]))[0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in it.module.parameters())
    assert all(p.grad is None for p in it.teacher.parameters())


@torch.no_grad()
def test_the_first_batch_sets_the_scale_of_latents() -> None:
    it, batch = distillation(), toy_batch(list(range(32)))
    it.start(batch)
    latents, _ = it.targets(batch)
    assert (latents * it.module.scale).std().item() == pytest.approx(1, abs=1e-5)


def test_it_learns_opens_again_and_knows_its_teacher(tmp_path: Path) -> None:
    it, validation = distillation(l1_image=0.0), toy_batch(list(range(1000, 1008)))
    assert it.samples() is None, "nothing to show before a validation"
    before = it.validation(validation)
    config = TrainingConfig(
        steps=80, batch_size=8, learning_rate=1e-2, warmup=5, ema=0.0, threads=1, device="cpu", validate_every=80,
        sample_every=80, validation_images=8,
    )  # fmt: skip
    folder = train(it, toy_batch, config, tmp_path, lambda positions: toy_batch([1000 + p for p in positions]))
    it.module.eval()
    after = it.validation(validation)
    assert after["psnr_teacher"] > before["psnr_teacher"] + 2
    assert after["teacher_psnr"] == before["teacher_psnr"], "the teacher stays as it is"
    sheet = it.samples()
    assert sheet is not None and sheet.size == (8 * 18 - 2, 3 * 18 - 2)

    for source in (folder, folder.parent):
        opened = load_tiny_decoder(source)
        assert opened.config.teacher == fingerprint(it.teacher) and not opened.training
        latents = torch.randn(1, 4, 8, 8)
        assert torch.allclose(opened.scale, it.module.scale)
        assert (opened.decode(latents) - it.module.decode(latents)).abs().max() < 0.1, "bfloat16"
    require_fits(opened, it.teacher)
    require_fits(TinyDecoder(NETWORK), it.teacher)  # says nothing of a teacher
    require_fits(opened, autoencoder(seed=7).half())  # of which only the shape can be told
    with pytest.raises(UserError, match="after another first stage"):
        require_fits(opened, autoencoder(seed=7))
    with pytest.raises(UserError, match="after another first stage"):
        require_fits(TinyDecoder(TinyDecoderConfig()), it.teacher)


def test_what_is_no_tiny_decoder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tiny decoder in .*nothing"):
        load_tiny_decoder(tmp_path / "nothing")
    (tmp_path / "config.json").write_text(json.dumps({"kind": "judge"}))
    with pytest.raises(UserError, match="another kind of model, not a tiny decoder"):
        load_tiny_decoder(tmp_path)


@pytest.mark.parametrize("change", [{"latent_channels": 5}, {"channels": [8, 8, 8]}, {"image_channels": 1}])
def test_a_network_that_does_not_fit_its_teacher_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"network.* must be .*, as the teacher's"):
        distillation(network={**NETWORK.to_dict(), **change})
