"""The adversarial part of a first stage: who learns from what, how the two are balanced, and what a collapse is."""

from __future__ import annotations

import pytest
import torch

from diptych.networks.discriminator import DiscriminatorConfig
from diptych.training import readback
from diptych.training.tasks.adversarial import EPS, MEMORY, MOST, AdversarialConfig, Adversary, adaptive_weight
from diptych.training.tasks.autoencoding import FirstStage, FirstStageConfig
from tests.models.latents import AUTOENCODER, toy_batch
from tests.networks.reference import noise, randomised

SMALL = DiscriminatorConfig(channels=8, layers=1, norm="group", norm_groups=4)


def stage(start: int = 0, kl: float = 1e-3, **changes: object) -> FirstStage:
    torch.manual_seed(0)
    adversarial = AdversarialConfig(discriminator=SMALL, start=start, **changes)  # type: ignore[arg-type]
    it = FirstStage(FirstStageConfig(network=AUTOENCODER, kl=kl, adversarial=adversarial))
    randomised(it.module).train()
    return it


def gradients(it: FirstStage, losses: torch.Tensor) -> dict[str, torch.Tensor]:
    found = torch.autograd.grad(losses.sum(), list(it.module.parameters()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(it.module.named_parameters(), found, strict=True)
    }


def test_each_side_learns_from_its_own_loss_alone() -> None:
    """The gradients of the one backward pass are those of two separate losses, written out here."""
    it, batch = stage(), {**toy_batch([3, 1]), "step": 0}
    adversary = it.module.adversary
    assert adversary is not None
    together = gradients(it, it.loss(batch)[0])
    plain = FirstStage(FirstStageConfig(network=AUTOENCODER, kl=1e-3))
    plain.module.autoencoder.load_state_dict(it.module.autoencoder.state_dict())
    base = plain.loss(batch)[0]
    images, seen = batch["picture"], {}
    latents, _, _ = it.regularised(batch)
    rebuilt = it.autoencoder.decode(latents)
    real, fake = adversary.discriminator(images), adversary.discriminator(rebuilt.detach())
    hinge = 0.5 * (torch.relu(1 - real).mean((1, 2, 3)) + torch.relu(1 + fake).mean((1, 2, 3)))
    reward = adversary.discriminator(rebuilt).mean((1, 2, 3))
    last = it.autoencoder.decoder.conv_out.weight
    error = (rebuilt - images).abs().flatten(1).mean(1)
    units = images[0].numel()
    (one,) = torch.autograd.grad((units * error).mean(), last, retain_graph=True)
    (other,) = torch.autograd.grad(-reward.mean(), last, retain_graph=True)
    balance = min((one.norm() / (other.norm() + EPS)).item(), MOST)
    for name, gradient in gradients(plain, base).items():
        seen[name] = gradient
    for name, gradient in gradients(it, -0.5 * balance / units * reward).items():
        if name.startswith("autoencoder."):
            seen[name] = seen[name] + gradient
    for name, gradient in gradients(it, hinge).items():
        if name.startswith("adversary."):
            seen[name] = gradient
    assert seen.keys() == together.keys()
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, seen[name], rtol=1e-3, atol=1e-6, msg=name)


def test_nothing_adversarial_happens_before_its_start() -> None:
    it, batch = stage(start=10), toy_batch([3, 1])
    plain = FirstStage(FirstStageConfig(network=AUTOENCODER, kl=1e-3))
    plain.module.autoencoder.load_state_dict(it.module.autoencoder.state_dict())
    losses, told = it.loss({**batch, "step": 9})
    assert torch.equal(losses, plain.loss(batch)[0]) and "discriminator" not in told
    assert all(not g.any() for name, g in gradients(it, losses).items() if name.startswith("adversary.")), (
        "the discriminator does not learn yet"
    )
    losses, told = it.loss({**batch, "step": 10})
    assert not torch.equal(losses, plain.loss(batch)[0]) and told["discriminator"] > 0


def test_the_reward_sets_in_over_the_warm_up() -> None:
    it = Adversary(AdversarialConfig(discriminator=SMALL, start=10, warmup=4, weight=0.8))
    assert [it.strength(step) for step in (0, 9, 10, 11, 13, 14, 1000)] == pytest.approx(
        [0, 0, 0.2, 0.4, 0.8, 0.8, 0.8]
    )
    assert Adversary(AdversarialConfig(discriminator=SMALL, start=0, weight=0.8)).strength(0) == 0.8
    late = Adversary(AdversarialConfig(discriminator=SMALL, start=10, lead=20, warmup=4, weight=0.8))
    assert [late.strength(step) for step in (10, 29, 30, 31, 33, 34)] == pytest.approx([0, 0, 0.2, 0.4, 0.8, 0.8])


def test_the_adaptive_weight_is_the_ratio_of_the_gradients_and_bounded() -> None:
    last = noise(4, 3).requires_grad_(True)
    nll, reward = (2 * last).sum(), (last**2).sum() / 2
    expected = (2 * 12**0.5) / (last.norm().item() + 1e-4)
    assert adaptive_weight(nll, reward, last).item() == pytest.approx(expected, rel=1e-5)
    assert adaptive_weight(1e9 * nll, reward, last).item() == 1e4
    assert not adaptive_weight(nll, reward, last).requires_grad


@pytest.mark.parametrize(
    ("hinge", "real", "fake", "word"),
    [(0.001, 3.0, -3.0, "all reconstructions"), (1.0, 0.1, 0.1, "separates nothing"), (0.6, 0.5, -0.3, None)],
)
def test_discriminator_collapse_warns_once_it_lasts(
    hinge: float, real: float, fake: float, word: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    it = stage()
    adversary = it.module.adversary
    assert adversary is not None
    logits = torch.full((2, 1, 3, 3), real), torch.full((2, 1, 3, 3), fake)
    adversary.update_averages(torch.full((2,), hinge), *logits)
    assert adversary.collapse() is None, "one step says nothing"
    for _ in range(200):
        adversary.update_averages(torch.full((2,), hinge), *logits)
    for step in (200, 201):
        it.notice(adversary, step)
    said, told = adversary.collapse(), capsys.readouterr().err
    assert (said is None) == (word is None) and (word or "") in (said or "")
    assert it.notice(adversary, 202) == (word is not None)
    assert told.count("step 201") == (word is not None) and "step 202" not in told
    assert adversary.averages[0].item() == pytest.approx(hinge * (1 - MEMORY**201), rel=1e-6)


def test_discriminator_collapse_warns_later_where_the_host_runs_ahead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(readback.LAG, "cpu", 2)
    it = stage()
    adversary = it.module.adversary
    assert adversary is not None
    adversary.averages.copy_(torch.tensor([0.0, 3.0, -3.0, 1.0]))
    for step, told in ((4, False), (5, False), (6, True), (7, False)):
        assert it.notice(adversary, step) == 1
        assert ("step 5: the discriminator separates all" in capsys.readouterr().err) == told


def test_what_is_remembered_is_not_changed_by_looking() -> None:
    it = stage()
    assert it.module.adversary is not None
    it.module.eval()
    it.loss({**toy_batch([3, 1]), "step": 0})
    assert not it.module.adversary.averages.any()
