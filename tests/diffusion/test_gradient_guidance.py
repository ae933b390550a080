import pytest
import torch

from diptych.core.errors import UserError
from diptych.diffusion.denoiser import Denoiser, Estimate
from diptych.diffusion.gradient_guidance import GradientGuidance, WeightedScore, score_gradient
from diptych.diffusion.guidance import ClassifierFreeGuidance, Wrapper
from diptych.diffusion.inpainting import RePaint
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.steps import NoiseSource
from diptych.diffusion.thresholding import StaticThreshold
from diptych.diffusion.times import timesteps
from diptych.models.guides import Space, guided_by
from diptych.models.sampling import Cost
from tests.diffusion.oracles import Gaussian, Net

SCHEDULES = {kind: ScheduleConfig(kind=kind).build() for kind in ("scaled-linear", "cosine", "flow")}  # type: ignore[arg-type]
Y, ERROR = 1.4, 0.5
"""The observation of each coordinate, and the deviation of its noise."""


class Known:
    """A Gaussian's best denoiser as a `Denoising`."""

    def __init__(self, data: Gaussian) -> None:
        self.data, self.calls, self.gradients = data, 0, 0

    def estimate(self, x, t, cond=None) -> Estimate:
        self.calls += len(x)
        return Estimate(self.data(x, t), None)

    def __call__(self, x, t, cond=None):
        return self.estimate(x, t).x0


def log_likelihood(data: Gaussian):
    """Exact log p(y | x_t): y is the data with noise, and of the data x_t leaves a Gaussian."""

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = data.levels(x, t)
        left = data.std**2 * sigma**2 / ((alpha * data.std) ** 2 + sigma**2)
        return (-((Y - data(x, t)) ** 2) / (2 * (left + ERROR**2))).flatten(1).sum(1)

    return score


def conditional(data: Gaussian) -> Gaussian:
    """The data, y known."""
    precision = data.std**-2 + ERROR**-2
    return Gaussian(data.schedule, (data.mean / data.std**2 + Y / ERROR**2) / precision, precision**-0.5)


def noisy(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("time", [0.05, 0.5, 0.97])
def test_gradient_guidance_with_the_exact_classifier_is_the_conditional_denoiser(kind: str, time: float) -> None:
    data = Gaussian(SCHEDULES[kind])
    guided = GradientGuidance(Known(data), data.schedule, [WeightedScore(log_likelihood(data), 1.0)])
    x = noisy()
    with torch.no_grad():  # as `generate` runs
        got = guided(x, time)
    assert torch.allclose(got, conditional(data)(x, time), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(got, data(x, time), atol=1e-3), "the observation changes the estimate"


def test_gradient_guidance_takes_a_time_per_image() -> None:
    data, x, times = Gaussian(SCHEDULES["cosine"]), noisy(), torch.tensor([0.2, 0.6, 0.9])
    guided = GradientGuidance(Known(data), data.schedule, [WeightedScore(log_likelihood(data), 1.0)])
    assert torch.allclose(guided(x, times), conditional(data)(x, times), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m", "heun"])
def test_gradient_guidance_samples_the_conditional_distribution(sampler: str) -> None:
    data, x = Gaussian(SCHEDULES["scaled-linear"]), noisy(2)
    guided = GradientGuidance(Known(data), data.schedule, [WeightedScore(log_likelihood(data), 1.0)])
    times = timesteps(data.schedule, 20)
    got, want, other = (
        SAMPLERS[sampler](denoise, x, times, data.schedule) for denoise in (guided, conditional(data), data)
    )
    assert torch.allclose(got, want, rtol=1e-8, atol=1e-8) and (want - other).abs().min() > 0.05


def test_gradient_guidance_moves_the_ddpm_mean_as_algorithm_1() -> None:
    schedule = ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02).build()
    denoiser, x, scale, index = Denoiser(Net(), schedule), noisy(), 3.0, 600
    beta = float(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[index])
    times = torch.tensor([index + 1, index]).double() / 1000

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (x**3).flatten(1).sum(1)

    def step(denoise):
        return SAMPLERS["ddpm"](denoise, x, times, schedule, noise=NoiseSource([1, 2, 3], x.shape[1:], dtype=x.dtype))

    moved = step(GradientGuidance(denoiser, schedule, [WeightedScore(score, scale)])) - step(denoiser)
    assert torch.allclose(moved, scale * beta / (1 - beta) ** 0.5 * 3 * x**2, rtol=1e-6)


@pytest.mark.parametrize("through", [True, False])
def test_gradient_guidance_of_an_estimate_through_the_denoiser_or_with_fixed_noise(through: bool) -> None:
    data, x, time, scale = Gaussian(SCHEDULES["cosine"]), noisy(), 0.6, 2.0
    alpha, sigma = data.levels(x, time)
    guided = GradientGuidance(
        Known(data),
        data.schedule,
        [WeightedScore(lambda x0: -((x0 - Y) ** 2).flatten(1).sum(1), scale, "estimate", through)],
    )
    slope = alpha * data.std**2 / ((alpha * data.std) ** 2 + sigma**2) if through else 1 / alpha
    x0 = data(x, time)
    with torch.no_grad():
        got = guided.estimate(x, time).x0
    assert torch.allclose(got, x0 + scale * sigma**2 / alpha * slope * 2 * (Y - x0), rtol=1e-9)
    assert not got.requires_grad


def test_gradient_guidance_of_an_image_is_independent_of_its_batch() -> None:
    data, x = Gaussian(SCHEDULES["flow"]), noisy()

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(x).flatten(1).sum(1) * t

    guided = GradientGuidance(Known(data), data.schedule, [WeightedScore(score, 5.0)], limit=0.5)
    together = guided(x, 0.4)
    for i in range(len(x)):
        assert torch.allclose(guided(x[i : i + 1], 0.4), together[i : i + 1])


def test_gradient_guidance_limit() -> None:
    data, x = Gaussian(SCHEDULES["flow"]), noisy()
    scores = torch.tensor([0.001, 1.0, 1000.0]).double()

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return scores * x.flatten(1).sum(1)

    free, held = (
        GradientGuidance(Known(data), data.schedule, [WeightedScore(score, 1.0)], limit=limit) for limit in (None, 0.5)
    )
    moves = [(guided(x, 0.7) - data(x, 0.7)).flatten(1).square().mean(1).sqrt() for guided in (free, held)]
    assert torch.allclose(moves[0], scores * 0.7**2 / 0.3)
    assert torch.allclose(moves[1], moves[0].clamp(max=0.5))


def test_gradient_guidance_interval_and_alpha_0() -> None:
    data, x = Gaussian(SCHEDULES["flow"]), noisy()
    guided = GradientGuidance(
        Known(data), data.schedule, [WeightedScore(log_likelihood(data), 1.0)], interval=(0.3, 1.0)
    )
    for time, guides in ((0.2, False), (1.0, False), (0.3, True), (0.9, True)):
        before = guided.gradients
        assert torch.equal(guided(x, time), data(x, time)) != guides
        assert guided.gradients - before == guides * len(x)
    for wrong in ({"interval": (0.5, 0.2)}, {"limit": 0.0}):
        with pytest.raises(UserError, match="must"):
            GradientGuidance(Known(data), data.schedule, [WeightedScore(log_likelihood(data), 1.0)], **wrong)


def test_gradient_guidance_stacks_and_counts_calls() -> None:
    schedule, x = SCHEDULES["scaled-linear"], noisy()
    generator = torch.Generator().manual_seed(2)
    cond, uncond = {"pooled": torch.randn(3, 5, generator=generator)}, {"pooled": torch.zeros(1, 5)}
    denoiser = Denoiser(Net(), schedule)
    free = ClassifierFreeGuidance(denoiser, cond, uncond, 3.0)

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (x * t.view(-1, 1, 1, 1)).flatten(1).sum(1)

    cost = Cost(denoiser)
    guided = GradientGuidance(free, schedule, [WeightedScore(score, 0.5)])
    mask = torch.arange(4) < 2
    inpainting = RePaint(StaticThreshold(guided), torch.zeros_like(x), lambda t: x, mask, first=0.8)
    got = inpainting(x, 0.4)
    assert cost.metadata(3) == {"cost": {"calls": 2, "gradients": 1}} and inpainting.gradients == 3
    alpha, sigma = schedule.alpha_sigma(torch.tensor(0.4))
    want = (free(x, 0.4) + 0.5 * 0.4 * sigma**2 / alpha).clamp(-1, 1)
    assert torch.allclose(got[..., :2], want[..., :2]) and not got[..., 2:].any()


def test_guides_are_bound_to_their_prompts() -> None:
    data, x = Gaussian(SCHEDULES["cosine"]), noisy()
    seen: list[str] = []

    class Towards:
        name, through = "towards", True

        def __init__(self, reads: str) -> None:
            self.input_kind = reads

        def bind(self, prompts, space):
            want = torch.tensor([float(prompt) for prompt in prompts]).double().view(-1, 1, 1, 1)

            def score(x0, t=None):
                seen.append(self.input_kind)
                return -((x0 - want) ** 2).flatten(1).sum(1) / 2

            return score

    space = Space(data.schedule, torch.device("cpu"), lambda x0: 2 * x0)
    guides = [(Towards("noisy"), 0.1), (Towards("images"), 0.01)]
    got = guided_by(Known(data), guides, ["1", "2", "3"], space)  # type: ignore[arg-type]
    assert isinstance(got, Wrapper)
    alpha, sigma = data.levels(x, 0.5)
    want, pull = torch.tensor([1.0, 2.0, 3.0]).view(-1, 1, 1, 1), sigma**2 / alpha
    slope = alpha * data.std**2 / ((alpha * data.std) ** 2 + sigma**2)
    x0 = data(x, 0.5)
    moved = x0 + pull * 0.01 * slope * 2 * (want - 2 * x0) + pull * 0.1 * (want - x)
    assert torch.allclose(got(x, 0.5), moved, rtol=1e-9) and seen == ["images", "noisy"]


@pytest.mark.parametrize("throughs", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("nested", [False, True])
def test_several_scores_move_by_the_sum_of_their_gradients(throughs: tuple[bool, bool], nested: bool) -> None:
    """Nested, the outer score is taken at the estimate that the inner ones have moved, which counts as constant."""
    data, x, time, scales = Gaussian(SCHEDULES["cosine"]), noisy(), 0.6, (2.0, 0.7)
    alpha, sigma = data.levels(x, time)
    through_slope = alpha * data.std**2 / ((alpha * data.std) ** 2 + sigma**2)

    def score(x0: torch.Tensor) -> torch.Tensor:
        return -((x0 - Y) ** 2).flatten(1).sum(1)

    scores = [WeightedScore(score, scale, "estimate", through) for scale, through in zip(scales, throughs, strict=True)]
    scores.append(WeightedScore(lambda x, t: (x**3).flatten(1).sum(1), 0.01))
    denoiser = Known(data)
    if nested:
        guided = GradientGuidance(GradientGuidance(denoiser, data.schedule, scores[1:]), data.schedule, scores[:1])
    else:
        guided = GradientGuidance(denoiser, data.schedule, scores)
    x0 = data(x, time)
    moves = [
        scale * sigma**2 / alpha * (through_slope if through else 1 / alpha) * 2 * (Y - x0)
        for scale, through in zip(scales, throughs, strict=True)
    ]
    moves.append(0.01 * sigma**2 / alpha * 3 * x**2)
    if nested:
        moves[0] = moves[0] / (Y - x0) * (Y - x0 - moves[1] - moves[2])
    with torch.no_grad():
        got = guided(x, time)
    assert torch.allclose(got, x0 + sum(moves), rtol=1e-9) and not got.requires_grad
    assert (denoiser.calls, guided.gradients) == (len(x), 3 * len(x))


def test_score_gradient_leaves_no_trace() -> None:
    x = noisy()
    with torch.no_grad():
        gradient = score_gradient(lambda x: (x**2).flatten(1).sum(1), x)
    assert torch.allclose(gradient, 2 * x) and not x.requires_grad and x.grad is None
