import pytest
import torch

from diptych.core.errors import UserError
from diptych.diffusion import conditions
from diptych.diffusion.conditions import cat_conditions, expand_condition
from diptych.diffusion.denoiser import Denoiser
from diptych.diffusion.guidance import ClassifierFreeGuidance
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.steps import NoiseSource
from diptych.diffusion.thresholding import DynamicThreshold, StaticThreshold, quantile
from diptych.diffusion.times import timesteps
from tests.diffusion.oracles import Net

SCHEDULE = ScheduleConfig().build()


def image(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def conds(batch: int = 3) -> tuple[dict, dict]:
    generator = torch.Generator().manual_seed(2)
    return ({"pooled": torch.randn(batch, 5, generator=generator)}, {"pooled": torch.zeros(1, 5)})


class Fixed:
    """A denoiser whose answer is given."""

    calls = 0

    def __init__(self, x0: torch.Tensor):
        self.x0 = x0

    def estimate(self, x, t, cond=None):
        from diptych.diffusion.denoiser import Estimate

        return Estimate(self.x0, None)

    def __call__(self, x, t, cond=None):
        return self.x0


def test_cfg_extrapolates_in_one_call():
    cond, uncond = conds()
    net = Net()
    denoiser = Denoiser(net, SCHEDULE)
    x = image()
    one, two = denoiser(x, 0.4, cond), denoiser(x, 0.4, expand_condition(uncond, 3))
    calls, images = net.calls, denoiser.calls
    guided = ClassifierFreeGuidance(denoiser, cond, uncond, 7.5)
    assert torch.allclose(guided(x, 0.4), two + 7.5 * (one - two), rtol=1e-4, atol=1e-5)
    assert net.calls == calls + 1 and guided.calls == images + 6


def test_cfg_of_x0_is_cfg_of_eps():
    cond, uncond = conds()
    x = image()
    eps_cond, eps_uncond = (Net()(x, torch.full((3,), 399.0), **c) for c in (cond, {"pooled": torch.zeros(3, 5)}))
    alpha, sigma = (value.float().item() for value in SCHEDULE.alpha_sigma(torch.tensor(0.4, dtype=torch.float64)))
    want = (x - sigma * (eps_uncond + 5 * (eps_cond - eps_uncond))) / alpha
    got = ClassifierFreeGuidance(Denoiser(Net(), SCHEDULE), cond, uncond, 5.0)(x, 0.4)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)


def test_cfg_scale_1_is_the_conditional_alone():
    cond, uncond = conds()
    denoiser = Denoiser(Net(), SCHEDULE)
    guided = ClassifierFreeGuidance(denoiser, cond, uncond, 1.0)
    assert torch.equal(guided(image(), 0.4), denoiser(image(), 0.4, cond))
    assert guided.calls == 6


def test_cfg_interval():
    cond, uncond = conds()
    denoiser = Denoiser(Net(), SCHEDULE)
    guided = ClassifierFreeGuidance(denoiser, cond, uncond, 4.0, interval=(0.2, 0.6))
    for t, images in ((0.7, 3), (0.6, 6), (0.2, 6), (0.1, 3)):
        before = guided.calls
        got = guided(image(), t)
        assert guided.calls - before == images
        if images == 3:
            assert torch.equal(got, denoiser(image(), t, cond))
    mixed = guided(image(), torch.tensor([0.7, 0.5, 0.1], dtype=torch.float64))
    assert torch.allclose(mixed[1:2], guided(image(), 0.5)[1:2], atol=1e-5)
    assert torch.allclose(mixed[2:], guided(image(), 0.1)[2:], atol=1e-5)


def test_cfg_scale_per_image():
    cond, uncond = conds()
    denoiser = Denoiser(Net(), SCHEDULE)
    got = ClassifierFreeGuidance(denoiser, cond, uncond, torch.tensor([1.0, 3.0, 8.0]))(image(), 0.5)
    for i, scale in enumerate((1.0, 3.0, 8.0)):
        assert torch.allclose(got[i], ClassifierFreeGuidance(denoiser, cond, uncond, scale)(image(), 0.5)[i], atol=1e-5)


def test_cfg_takes_the_conditional_variance():
    cond, uncond = conds()
    denoiser = Denoiser(Net(2), SCHEDULE, learned_variance=True)
    got = ClassifierFreeGuidance(denoiser, cond, uncond, 3.0).estimate(image(), 0.5).variance
    want = denoiser.estimate(image(), 0.5, cond).variance
    assert got is not None and want is not None and torch.allclose(got, want)


def test_cat_conditions_pads_contexts_and_masks_the_padding():
    long, short = torch.randn(2, 5, 3), torch.randn(1, 2, 3)
    both = cat_conditions({"context": long}, {"context": short, "context_mask": torch.tensor([[True, False]])}, 2)
    assert both["context"].shape == (4, 5, 3) and torch.equal(both["context"][:2], long)
    assert torch.equal(both["context"][2, :2], short[0]) and both["context"][2:, 2:].eq(0).all()
    assert both["context_mask"].tolist() == [[True] * 5] * 2 + [[True, False, False, False, False]] * 2
    swapped = cat_conditions({"context": short}, {"context": long}, 2)
    assert swapped["context_mask"].tolist() == [[True, True, False, False, False]] * 2 + [[True] * 5] * 2


def test_cat_conditions_fills_missing_keys():
    context, pooled, concat = torch.randn(2, 5, 3), torch.randn(2, 4), torch.randn(2, 1, 8, 8)
    for first, second in (({"context": context}, {"pooled": pooled}), ({}, {"context": context, "concat": concat})):
        for one, two in ((first, second), (second, first)):
            both = cat_conditions(one, two, 2)
            assert set(both) - {"context_mask"} == set(first) | set(second)
            assert all(len(value) == 4 for value in both.values())
            assert both["context"].abs().sum(dim=(1, 2)).eq(0).sum() == 2
            if "context_mask" in both:
                assert both["context_mask"].any(1).all()  # attention is never left without a token
    alike = cat_conditions({"context": context}, {"context": context * 0}, 2)
    assert set(alike) == {"context"}  # no mask is invented where none is needed
    masked = cat_conditions(
        {"context": context, "context_mask": torch.zeros(2, 5, dtype=torch.bool)}, {"context": context}, 2
    )
    assert masked["context_mask"].tolist() == [[False] * 5] * 2 + [[True] * 5] * 2


def test_conditions_of_the_wrong_batch_size_are_refused():
    with pytest.raises(UserError, match="'pooled' has 2 rows for 3 images"):
        ClassifierFreeGuidance(Denoiser(Net(), SCHEDULE), {"pooled": torch.zeros(2, 5)}, {}, 2.0)(image(), 0.5)
    with pytest.raises(UserError, match="interval"):
        ClassifierFreeGuidance(Denoiser(Net(), SCHEDULE), {}, {}, 2.0, interval=(0.6, 0.2))
    with pytest.raises(UserError, match="percentile"):
        DynamicThreshold(Denoiser(Net(), SCHEDULE), percentile=95)
    with pytest.raises(UserError, match="cap"):
        DynamicThreshold(Denoiser(Net(), SCHEDULE), cap=0.5)


def test_static_threshold_clips():
    x0 = torch.tensor([[-3.0, -0.5, 0.2, 1.7]])
    assert torch.equal(StaticThreshold(Fixed(x0))(x0, 0.5), torch.tensor([[-1.0, -0.5, 0.2, 1.0]]))
    assert torch.equal(StaticThreshold(Fixed(x0), limit=2.0)(x0, 0.5), torch.tensor([[-2.0, -0.5, 0.2, 1.7]]))


def test_dynamic_threshold_clips_to_the_percentile_and_rescales():
    quiet = torch.linspace(-0.9, 0.9, 64).view(1, 1, 8, 8)
    loud = torch.linspace(-4, 4, 64).view(1, 1, 8, 8)
    x0 = torch.cat([quiet, loud])
    free = DynamicThreshold(Fixed(x0), percentile=0.9)(x0, 0.5)
    assert torch.equal(free[:1], quiet)  # s is at least 1: nothing is stretched
    s = torch.quantile(loud.abs(), 0.9)
    assert torch.allclose(free[1:], loud.clamp(-s, s) / s) and free.abs().max() <= 1
    capped = DynamicThreshold(Fixed(x0), percentile=0.9, cap=1.5)(x0, 0.5)
    assert torch.allclose(capped[1:], loud.clamp(-1.5, 1.5) / 1.5)
    static = DynamicThreshold(Fixed(x0), percentile=0.9, cap=1.0)(x0, 0.5)
    assert torch.equal(static, x0.clamp(-1, 1))


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.95, 0.995, 1.0])
def test_quantile_is_torch_quantile(fraction):
    values = torch.randn(3, 777, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(quantile(values, fraction), values.quantile(fraction, dim=1))


def test_wrappers_stack_and_sample():
    cond, uncond = conds()
    denoiser = Denoiser(Net(2), SCHEDULE, learned_variance=True)
    stacked = DynamicThreshold(ClassifierFreeGuidance(denoiser, cond, uncond, 6.0, interval=(0.25, 0.75)))
    noise = NoiseSource([1, 2, 3], (3, 4, 4))
    times = timesteps(SCHEDULE, 8)
    got = SAMPLERS["ddpm"](stacked, noise.draw(), times, SCHEDULE, noise=noise, variance="learned-range")
    assert got.shape == (3, 3, 4, 4) and got.abs().max() <= 1
    guided = int(((times[:-1] >= 0.25) & (times[:-1] <= 0.75)).sum())
    assert stacked.calls == denoiser.calls == 3 * (8 + guided)


class Reads:
    """A network that notes which conditions it got."""

    def __init__(self) -> None:
        self.given = list[dict[str, torch.Tensor]]()

    def __call__(self, x, time, **cond):
        self.given.append(cond)
        mask = cond.get("context_mask", torch.ones(cond["context"].shape[:2], dtype=torch.bool))
        return x * (cond["context"] * mask[..., None]).sum((1, 2))[:, None, None, None]


@pytest.mark.parametrize("lengths", [(3, 3), (3, 2)])
@pytest.mark.parametrize("full", [True, False])
def test_a_mask_that_leaves_nothing_out_does_not_go_to_a_gpu(full: bool, lengths: tuple[int, int], monkeypatch) -> None:
    made = torch.Generator().manual_seed(3)
    cond, uncond = (
        {"context": torch.randn(2, each, 4, generator=made), "context_mask": torch.ones(2, each, dtype=torch.bool)}
        for each in lengths
    )
    cond["context_mask"][1, -1] = full
    answers = list[torch.Tensor]()
    for gpus in (("cuda",), ("cpu",)):
        monkeypatch.setattr(conditions, "GPUS", gpus)
        net = Reads()
        answers.append(ClassifierFreeGuidance(Denoiser(net, SCHEDULE), cond, uncond, 7.5)(image(2), 0.4))
        dropped = full and gpus == ("cpu",) and lengths[0] == lengths[1]  # else what pads the shorter is masked
        assert ("context_mask" in net.given[0]) is not dropped
    assert torch.equal(*answers)
