"""Learning a codebook: the loss, moving averages, entries that start again, and what is logged."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from diptych.models.first_stage import load_autoencoder
from diptych.networks.quantizer import VectorQuantizer
from diptych.training.distributed import Team
from diptych.training.tasks.autoencoding import FirstStage, FirstStageConfig
from diptych.training.tasks.codebook import Codebook, CodebookConfig
from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig
from diptych.weights.lazy import load_weights
from tests.models.latents import AUTOENCODER, toy_batch
from tests.networks.reference import noise, randomised
from tests.training import toy_vq
from tests.training.processes import two_processes

ALONE = Team(0, 1, torch.device("cpu"))
VQ = dataclasses.replace(AUTOENCODER, codebook=8)


def made(**changes: object) -> tuple[Codebook, VectorQuantizer]:
    torch.manual_seed(0)
    quantiser = randomised(VectorQuantizer(8, 3))
    return Codebook(CodebookConfig(**changes), quantiser), quantiser  # type: ignore[arg-type]


@pytest.mark.parametrize(("legacy", "of_latents", "of_entries"), [(False, 0.25, 1.0), (True, 1.0, 0.25)])
def test_the_gradients_go_where_equation_four_sends_them(legacy: bool, of_latents: float, of_entries: float) -> None:
    """With the paper's weight, or that which the published codebooks were trained with."""
    codebook, quantiser = made(weight=2.0, commitment=0.25, legacy=legacy)
    latents = noise(2, 3, 4, 4).requires_grad_(True)
    entries = quantiser.entries(quantiser.indices(latents))
    losses = codebook.losses(latents, entries)
    expected = 2.0 * 1.25 * (latents - entries).square().flatten(1).mean(1)
    torch.testing.assert_close(losses, expected)
    to_latents, to_entries = torch.autograd.grad(losses.sum(), [latents, quantiser.embedding.weight])
    each = 2.0 * 2 * (latents - entries).detach() / latents[0].numel()
    torch.testing.assert_close(to_latents, of_latents * each)
    torch.testing.assert_close(
        to_entries,
        torch.zeros(8, 3).index_add_(
            0, quantiser.indices(latents).flatten(), -of_entries * each.movedim(1, -1).flatten(0, 2)
        ),
    )


def test_the_gradient_passes_the_rounding_as_if_it_were_not_there() -> None:
    it = FirstStage(FirstStageConfig(network=VQ, codebook=CodebookConfig(weight=0.0)))
    randomised(it.module)
    batch = toy_batch([3, 1])
    latents, _, _ = it.regularised(batch)
    quantise = it.autoencoder.quantise
    assert quantise is not None
    before = it.autoencoder.encode(batch["picture"]).mean
    torch.testing.assert_close(latents, quantise(before))
    weights = it.autoencoder.quant_conv.weight
    (passed,) = torch.autograd.grad((latents * noise(*latents.shape)).sum(), weights)
    (plain,) = torch.autograd.grad((before * noise(*latents.shape)).sum(), weights)
    torch.testing.assert_close(passed, plain)


def test_moving_averages_come_to_the_means_of_what_is_nearest() -> None:
    """k-means' fixed point: with the latents always the same, each used entry becomes the mean of its own."""
    codebook, quantiser = made(update="ema", decay=0.5)
    assert not quantiser.embedding.weight.requires_grad
    latents = noise(4, 3, 8, 8)
    for _ in range(200):
        codebook.accumulate(latents, quantiser.indices(latents))
        codebook.learn(quantiser, ALONE)
    indices, points = quantiser.indices(latents).flatten(), latents.movedim(1, -1).flatten(0, 2)
    for number in indices.unique():
        mine = points[indices == number]
        torch.testing.assert_close(quantiser.embedding.weight[number], mine.mean(0), rtol=1e-3, atol=1e-3)
        assert codebook.use[number].item() == pytest.approx(len(mine) / len(points), rel=1e-3)


@pytest.mark.parametrize("update", ["loss", "ema"])
def test_entries_that_nothing_comes_to_start_again_among_the_latents(update: str) -> None:
    codebook, quantiser = made(update=update, decay=0.5, restart=0.1)
    with torch.no_grad():
        quantiser.embedding.weight[5:] = 1000.0
        if update == "ema":
            codebook.sums.copy_(quantiser.embedding.weight / 8)
    latents = noise(4, 3, 8, 8)
    for _ in range(12):
        codebook.accumulate(latents, quantiser.indices(latents))
        codebook.learn(quantiser, ALONE)
    assert codebook.restarts >= 3 and quantiser.embedding.weight.abs().max() < 10
    assert codebook.metrics()["codes_used"] == 1.0
    still, far = made(update=update, decay=0.5)
    for _ in range(12):
        still.accumulate(latents + 100, far.indices(latents + 100))
        still.learn(far, ALONE)
    assert still.restarts == 0


def test_entries_may_begin_at_the_data() -> None:
    codebook, quantiser = made(from_data=True)
    latents = noise(2, 3, 4, 4)
    codebook.start(quantiser, latents)
    points = {tuple(point) for point in latents.movedim(1, -1).flatten(0, 2).tolist()}
    assert {tuple(entry) for entry in quantiser.embedding.weight.tolist()} <= points
    unmoved, other = made()
    before = other.embedding.weight.clone()
    unmoved.start(other, latents)
    assert torch.equal(other.embedding.weight, before)


def test_perplexity_counts_the_entries_that_are_used() -> None:
    codebook, _ = made()
    codebook.use.copy_(torch.tensor([0.25, 0.25, 0.25, 0.25, 0, 0, 0, 0]))
    told = codebook.metrics()
    assert told["perplexity"].item() == pytest.approx(4.0) and told["codes_used"].item() == 0.5
    codebook.use.copy_(torch.tensor([0.5, 0.25, 0.25, 0, 0, 0, 0, 0]))
    assert told["perplexity"].item() > codebook.metrics()["perplexity"].item() == pytest.approx(2 * math.sqrt(2))


@pytest.mark.parametrize("update", [pytest.param("loss", marks=pytest.mark.slow), "ema"])
def test_it_learns_and_opens_again(tmp_path: Path, update: str) -> None:
    torch.manual_seed(0)
    codebook = CodebookConfig(update=update, from_data=True, restart=0.1)  # type: ignore[arg-type]
    it = FirstStage(FirstStageConfig(network=VQ, l2=1.0, codebook=codebook))
    validation = toy_batch(list(range(1000, 1008)))
    before = it.validation(validation)["psnr"]
    config = TrainingConfig(
        steps=60, batch_size=8, learning_rate=5e-3, warmup=5, ema=0.8, threads=1, device="cpu", validate_every=0,
        sample_every=0,
    )  # fmt: skip
    folder = train(it, toy_batch, config, tmp_path)
    it.module.eval()
    assert it.validation(validation)["psnr"] > before + 2
    opened = load_autoencoder(VQ, folder)
    indices = opened.quantise.indices(opened.encode(validation["picture"]).mean)  # type: ignore[union-attr]
    assert len(indices.unique()) > 2


@pytest.mark.slow
def test_two_processes_learn_the_codebook_of_one(tmp_path: Path) -> None:
    """However the batch of five is split, and into parts of how many."""
    toy_vq.run(str(tmp_path / "alone"), 1)
    alone = load_weights(tmp_path / "alone" / "model" / "autoencoder")
    assert two_processes(toy_vq.run, str(tmp_path / "together"), 3) == [0, 0]
    together = load_weights(tmp_path / "together" / "model" / "autoencoder")
    for key, tensor in alone.items():
        torch.testing.assert_close(together[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
