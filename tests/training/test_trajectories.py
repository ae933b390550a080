"""Trajectories are where the teacher's sampling leads, and a student that is trained on them learns to follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diptych
from diptych.core.counter_random import draws_of
from diptych.core.errors import UserError
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.recipes import get
from diptych.training import experiment
from diptych.training.experiment_config import Recipe
from diptych.training.precomputed import Examples
from diptych.training.tasks.few_steps import FewStepTask, FewStepTraining
from diptych.training.trajectories import Teacher, seed_of
from tests.models.latents import CAPTIONS, arrays, system, write_images

KINDS: dict[str, dict[str, Any]] = {
    "eps": {"prediction": "eps"},
    "v": {"prediction": "v"},
    "flow": {"prediction": "flow", "schedule": {"kind": "flow"}},
}


def levels(model: LatentDiffusion, t: float) -> tuple[float, float]:
    alpha, sigma = model.schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_trajectory_is_that_of_the_teachers_own_sampling(kind: str) -> None:
    model = system(**KINDS[kind])
    kept = Teacher(model, 4, "ddim", 3.0).trajectories(list(CAPTIONS), [5, 6]).float()
    own = model.generate(list(CAPTIONS), seeds=[5, 6], steps=4, sampler="ddim", guidance=3.0, schedule_type="trailing")
    decoded = model.decode(kept[:, -1]).clamp(-1, 1)
    there = torch.from_numpy(arrays(own)).permute(0, 3, 1, 2) / 127.5 - 1
    assert (decoded - there).abs().max() < 0.02, "its end is the image"
    cond, none = model.embed(list(CAPTIONS)), model.embed([""])
    for place, (t, s) in enumerate([(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]):
        z = kept[:, place]
        x0 = model.denoiser(z, t, cond)
        nothing = model.denoiser(z, t, {key: value.expand(2, *value.shape[1:]) for key, value in none.items()})
        x0 = nothing + 3.0 * (x0 - nothing)
        (alpha, sigma), (alpha_s, sigma_s) = levels(model, t), levels(model, s)
        then = alpha_s * x0 + sigma_s / sigma * (z - alpha * x0)
        assert torch.allclose(then, kept[:, place + 1], atol=0.02, rtol=0.02), "DDIM's step"


@torch.no_grad()
def test_the_loss_is_how_far_a_step_misses_the_trajectory() -> None:
    model = system(**KINDS["v"])
    config = FewStepTraining(method="distillation", steps=2, teacher_steps=4)
    it = FewStepTask(config, model, model.text)
    trajectory = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    batch = {"trajectory": trajectory, "caption": list(CAPTIONS), "seed": torch.tensor([1, 2]), "key": ["a", "b"]}
    cond = it.system.embed(list(CAPTIONS))
    for place, (t, s) in enumerate([(1.0, 0.5), (0.5, 0.0)]):
        z, then = trajectory[:, 2 * place].float(), trajectory[:, 2 * place + 2].float()
        (alpha, sigma), (alpha_s, sigma_s) = levels(model, t), levels(model, s)

        def step(x0: Tensor, z: Tensor = z, at: tuple[float, ...] = (alpha, sigma, alpha_s, sigma_s)) -> Tensor:
            return at[2] * x0 + at[3] / at[1] * (z - at[0] * x0)

        missed = (step(it.system.denoiser(z, t, cond)) - then) / (alpha_s - sigma_s / sigma * alpha)
        expected = max((alpha / sigma) ** 2, 1.0) * missed.square().flatten(1).mean(1)
        none = torch.zeros(2, dtype=torch.bool)
        losses = it.errors(batch, draws_of(batch), torch.full((2,), place), none)
        assert torch.allclose(losses, expected, rtol=1e-3)
    assert set(it.validation(batch)) == {"loss", "loss_at_1.0000", "loss_at_0.5000"}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    system(prediction="v").save(tmp_path / "teacher")
    write_images(tmp_path / "images", count=8, held_out=2)
    return get("emoji-4-steps").override(
        [
            *(f"system.teacher={tmp_path / 'teacher'}", f"data.path={tmp_path / 'images'}", "system.lora=none"),
            *(f"data.size={system().config.size}", "data.in_memory=false", f"system.precomputed={tmp_path / 'kept'}"),
            *("system.prompts=", "system.steps=1", "system.teacher_steps=2", "system.teacher_sampler=ddim"),
            *("training.steps=40", "training.batch_size=6", "training.validate_every=40", "training.sample_every=0"),
            *("training.precision=fp32", "training.device=cpu", "training.workers=0", "training.warmup=0"),
        ]
    )


def test_a_student_comes_nearer_to_its_teacher(recipe: Recipe, tmp_path: Path) -> None:
    kept = experiment.precompute(recipe, tmp_path / "kept")
    rows = Examples(kept, "train", "trajectories")
    assert (len(rows), rows.shape) == (6, (3, 4, 8, 8))
    assert len(Examples(kept, "held-out", "trajectories")) == 2
    made = experiment.train(recipe, tmp_path / "run")
    teacher, student = diptych.load(tmp_path / "teacher"), diptych.load(made)
    assert isinstance(teacher, LatentDiffusion) and isinstance(student, LatentDiffusion)
    prompts = [rows.captions(row)[0] for row in range(6)]
    seeds = [seed_of(rows.key(row)) for row in range(6)]
    full = arrays(teacher.generate(prompts, seeds=seeds, steps=2, sampler="ddim", schedule_type="trailing"))
    plain = arrays(
        teacher.generate(prompts, seeds=seeds, steps=1, guidance=1.0, sampler="ddim", schedule_type="trailing")
    )
    own = arrays(student.generate(prompts, seeds=seeds))
    assert np.abs(own - full).mean() < 0.5 * np.abs(plain - full).mean()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["system.guidance=2"], "made with another teacher, or its other sampling"),
        (["system.teacher_sampler=unipc"], "made with another teacher, or its other sampling"),
        (["system.teacher_steps=4"], "made with another teacher, or its other sampling"),
        (["system.precomputed=none"], "precomputed must name the folder that `diptych precompute` wrote"),
    ],
)
def test_trajectories_of_another_sampling_are_refused(
    recipe: Recipe, changes: list[str], says: str, tmp_path: Path
) -> None:
    experiment.precompute(recipe, tmp_path / "kept")
    with pytest.raises(UserError, match=says):
        experiment.train(recipe.override(changes), tmp_path / "run")


@pytest.mark.parametrize("sampler", ["heun", "ddpm", "euler-ancestral", "lcm"])
def test_samplers_that_draw_or_look_twice_have_no_trajectories(recipe: Recipe, sampler: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher_sampler must call the network once a step .* and draw no noise"):
        experiment.precompute(recipe.override([f"system.teacher_sampler={sampler}"]), tmp_path / "kept")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["system.teacher_sampler=magic"], "teacher_sampler must be one of ddpm"),
        (["system.caption_dropout=0.1"], "caption_dropout must be 0"),
        (["system.method=progressive"], "teacher_sampler must be none but for method=distillation"),
        (["system.trajectories=0"], "trajectories must lie between 1 and"),
        (["system.steps=32"], r"teacher_steps must be a multiple of steps \(32\), not"),
    ],
)
def test_settings_without_sense_are_refused(changes: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        get("emoji-4-steps").override(changes)
