import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diptych.core.errors import UserError
from diptych.diffusion.denoiser import Denoiser
from diptych.diffusion.losses import ObjectiveConfig, training_times, variance_bound
from diptych.diffusion.schedules import ScheduleConfig
from tests.diffusion.oracles import Net

KINDS = ("linear", "scaled-linear", "cosine", "cosine-table", "flow")
PREDICTIONS = ("eps", "v", "x0", "flow")


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoiser_recovers_x0_from_the_target(kind, prediction):
    x0, noise = pair(5, 3, 2, 2)
    t = torch.tensor([1e-3, 0.2, 0.5, 0.8, 0.95])
    denoiser = Denoiser(lambda x, time: denoiser.target(x0, noise, t), ScheduleConfig(kind=kind).build(), prediction)
    x = denoiser.add_noise(x0, noise, t)
    assert torch.allclose(denoiser(x, t), x0, atol=1e-5)
    assert denoiser.loss(x0, noise, t).max() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 5), (4, 3, 5, 6), (4, 3, 2, 5, 6)])
def test_denoiser_is_finite_for_any_shape_at_both_ends(kind, prediction, shape):
    x0, noise = pair(*shape)
    denoiser = Denoiser(lambda x, time: torch.tanh(x), ScheduleConfig(kind=kind).build(), prediction)
    t = torch.tensor([0.0, 1e-9, 0.5, 1.0])
    assert denoiser(denoiser.add_noise(x0, noise, t), t).isfinite().all()
    for weighting in ("none", "min-snr", "truncated-snr"):
        loss = denoiser.loss(x0, noise, t, weighting=weighting)
        assert loss.shape == (4,) and loss.isfinite().all()


def test_prediction_formulas():
    """Against the definitions, at alpha = 0.6 and sigma = 0.8."""
    schedule = ScheduleConfig(kind="cosine").build()
    t = schedule.inverse_log_snr(torch.tensor([math.log(0.36 / 0.64)], dtype=torch.float64))
    x0, noise = torch.tensor([[2.0]]), torch.tensor([[-1.0]])
    targets = {p: Denoiser(Net(), schedule, p).target(x0, noise, t).item() for p in PREDICTIONS}
    assert targets == pytest.approx({"eps": -1.0, "v": 0.6 * -1 - 0.8 * 2, "x0": 2.0, "flow": -3.0}, rel=1e-6)
    assert Denoiser(Net(), schedule).add_noise(x0, noise, t).item() == pytest.approx(0.6 * 2 - 0.8, rel=1e-6)


def test_denoiser_takes_a_time_per_image_and_counts_calls():
    x, _ = pair(3, 3, 4)
    network_times = []
    net = Net()
    denoiser = Denoiser(lambda x, time: network_times.append(time) or net(x, time), ScheduleConfig().build())
    t = torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)
    together = denoiser(x, t)
    assert torch.equal(network_times[0], torch.tensor([0.0, 499.0, 999.0])) and network_times[0].dtype == torch.float32
    alone = torch.cat([denoiser(x[i : i + 1], t[i].item()) for i in range(3)])
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-5)
    assert denoiser.calls == 6 and net.calls == 4


def test_denoiser_output_is_float32_at_least():
    x, _ = pair(2, 3)
    denoiser = Denoiser(lambda x, time: x.bfloat16(), ScheduleConfig().build())
    assert denoiser(x.bfloat16(), 0.3).dtype == torch.float32
    assert denoiser(x, 0.3).dtype == torch.float32
    assert denoiser(x.double(), 0.3).dtype == torch.float64


def test_denoiser_passes_the_condition_to_the_network():
    seen = {}
    denoiser = Denoiser(lambda x, time, **cond: seen.update(cond) or x, ScheduleConfig().build())
    pooled = torch.ones(2, 5)
    denoiser(torch.zeros(2, 3), 0.5, {"pooled": pooled})
    assert seen["pooled"] is pooled


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", ["scaled-linear", "flow"])
@pytest.mark.parametrize(("weighting", "least"), [("min-snr", 0.0), ("truncated-snr", 1.0)])
def test_snr_weighting_is_the_bounded_error_of_x0(prediction, kind, weighting, least):
    """Whatever the network predicts, the weighted error is min(SNR, gamma) times that of x_0 (Hang et al. 2023)."""
    x0, noise = pair(6, 3, 4)
    schedule = ScheduleConfig(kind=kind).build()
    t = torch.tensor([0.01, 0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    denoiser = Denoiser(Net(), schedule, prediction)
    loss = denoiser.loss(x0.double(), noise.double(), t, weighting=weighting, gamma=3.0)
    error = (denoiser(denoiser.add_noise(x0.double(), noise.double(), t), t) - x0).square().flatten(1).mean(1)
    alpha, sigma = schedule.alpha_sigma(t)
    assert torch.allclose(loss, (alpha / sigma).square().clamp(least, 3.0) * error, rtol=1e-9)


def test_loss_is_the_mean_error_per_image():
    x0, noise = pair(2, 3, 4)
    denoiser = Denoiser(lambda x, time: torch.zeros_like(x), ScheduleConfig().build())
    t = torch.tensor([0.2, 0.7])
    assert torch.allclose(denoiser.loss(x0, noise, t), noise.square().mean((1, 2)))
    assert torch.allclose(denoiser.loss(x0, noise, t, loss_type="l1"), noise.abs().mean((1, 2)))
    with pytest.raises(UserError, match="min-snr weighs a squared error"):
        denoiser.loss(x0, noise, t, weighting="min-snr", loss_type="l1")


def test_learned_variance_is_the_second_half_of_the_output():
    x, _ = pair(2, 3, 4)
    estimate = Denoiser(Net(2), ScheduleConfig().build(), learned_variance=True).estimate(x, 0.5)
    plain = Denoiser(Net(1), ScheduleConfig().build()).estimate(x, 0.5)
    assert torch.equal(estimate.x0, plain.x0) and plain.variance is None
    assert estimate.variance is not None and estimate.variance.shape == x.shape
    with pytest.raises(UserError, match="6 output channels, not 3"):
        Denoiser(Net(1), ScheduleConfig().build(), learned_variance=True)(x, 0.5)
    with pytest.raises(UserError, match="unknown prediction 'noise'"):
        Denoiser(Net(), ScheduleConfig().build(), "noise")  # type: ignore[arg-type]


def test_variance_bound_is_the_kl_divergence_of_the_two_steps():
    schedule = ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02).build()
    x0, guess = (value.double() for value in pair(3, 2, 4))
    fraction = torch.rand(3, 2, 4, dtype=torch.float64) * 2 - 1
    index = torch.tensor([5, 400, 999])
    bound = variance_bound(x0, guess, fraction, (index + 1) / 1000, schedule)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    products = torch.cumprod(1 - betas, 0)
    for row, i in enumerate(index.tolist()):  # DDPM, Eq. 6 and 7, in betas
        small = (1 - products[i - 1]) / (1 - products[i]) * betas[i]
        pull = products[i - 1].sqrt() * betas[i] / (1 - products[i])
        between = (fraction[row] + 1) / 2
        variance = (between * betas[i].log() + (1 - between) * small.log()).exp()
        kl = kl_divergence(Normal(pull * x0[row], small.sqrt()), Normal(pull * guess[row], variance.sqrt()))
        assert bound[row].item() == pytest.approx(kl.mean().item() / math.log(2), rel=1e-6)


@pytest.mark.parametrize("steps", [50, 1000, 4000])
def test_hybrid_loss_adds_a_thousandth_of_the_bound_summed_over_all_steps(steps):
    """L_hybrid = L_simple + 0.001 L_vlb (Nichol & Dhariwal 2021, Eq. 16), whatever the number of steps T."""
    schedule = ScheduleConfig(kind="cosine-table", steps=steps).build()
    net = Net(2)
    hybrid, simple = Denoiser(net, schedule, learned_variance=True), Denoiser(lambda x, t: net(x, t)[:, :1], schedule)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    x0, noise = (value.double() for value in pair(steps, 1, 4))
    x0_hat, fraction = hybrid.estimate(hybrid.add_noise(x0, noise, t), t)
    assert fraction is not None
    vlb = variance_bound(x0, x0_hat, fraction, t, schedule).sum()
    added = (hybrid.loss(x0, noise, t) - simple.loss(x0, noise, t)).mean()  # t uniform: the expectation over training
    assert added.item() == pytest.approx(0.001 * vlb.item(), rel=1e-9)


def test_variance_bound_has_a_gradient_for_the_variance_only():
    weight = torch.nn.Parameter(torch.tensor([0.3, 0.1]))
    denoiser = Denoiser(
        lambda x, time: torch.cat([weight[0] * x, weight[1] * x], 1),
        ScheduleConfig().build(),
        learned_variance=True,
    )
    x0, noise = pair(3, 2, 4)
    t = torch.tensor([0.001, 0.4, 1.0])  # the first step draws nothing: no bound, and a finite gradient
    plain = Denoiser(lambda x, time: weight[0] * x, denoiser.schedule)
    (with_bound,) = torch.autograd.grad(denoiser.loss(x0, noise, t).sum(), weight)
    (without,) = torch.autograd.grad(plain.loss(x0, noise, t).sum(), weight)
    assert with_bound.isfinite().all() and with_bound[1] != 0
    assert with_bound[0].item() == pytest.approx(without[0].item(), rel=1e-5)
    assert denoiser.loss(x0, noise, t)[0] == plain.loss(x0, noise, t)[0]


def test_training_times():
    uniform = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    table, flow = ScheduleConfig(steps=100).build(), ScheduleConfig(kind="flow").build()
    times = training_times(uniform, ObjectiveConfig(), table)
    values, counts = times.unique(return_counts=True)
    assert torch.allclose(values, torch.arange(1, 101, dtype=torch.float64) / 100) and (counts == 200).all()
    ends = training_times(torch.tensor([0.0, 1 - 1e-16]), ObjectiveConfig(), table)
    assert ends.tolist() == [0.01, 1.0]
    assert training_times(uniform, ObjectiveConfig(), flow).mean().item() == pytest.approx(0.5)
    assert training_times(torch.zeros(1), ObjectiveConfig(), flow).item() == 1
    config = ObjectiveConfig(times="logit-normal", mean=0.5, std=1.2)
    logits = training_times(uniform, config, flow).logit()
    assert logits.mean().item() == pytest.approx(0.5, abs=1e-3) and logits.std().item() == pytest.approx(1.2, rel=1e-3)
    edges = training_times(torch.tensor([0.0, 1.0]), config, flow)
    assert (edges > 0).all() and (edges < 1).all()
