"""Where a teacher's sampling leads, kept on disk: noise, guided steps and result for captions of a data set.

A student is then trained on the very inputs that it meets in sampling, with one call a step and none of the teacher
(knowledge distillation, Luhman & Luhman 2021, section 3, of each of the student's steps instead of all at once).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.core.hashing import stable_hash
from diptych.data.dataset import ImageDataset
from diptych.diffusion.denoiser import Cond, Denoising, Estimate, Time
from diptych.diffusion.guidance import Wrapper
from diptych.diffusion.steps import NoiseSource
from diptych.diffusion.times import TimesConfig, timesteps
from diptych.encoders.base import TextEncoder
from diptych.encoders.cache import encoder_fingerprint
from diptych.engines.accelerate import accelerate
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.models.sampling import read_settings, sample
from diptych.training.distributed import Team
from diptych.training.precision import autocast
from diptych.training.precompute import PRECOMPUTED, parts_stated, save_examples, showing
from diptych.training.precompute_folder import agreed, contents_of, made_once, missing_parts
from diptych.training.precomputed import spaced
from diptych.weights.fingerprint import fingerprint
from diptych.weights.part_files import part_name

BATCH = 32
PART = 4 * BATCH
"""Trajectories of a part: what an interruption of a process loses at most."""
TRAILING = TimesConfig(spacing="trailing")
HELD_OUT = 16
"""Held-out trajectories are one to so many for training."""


class Recording(Wrapper):
    """A denoiser that keeps its inputs."""

    def __init__(self, denoiser: Denoising) -> None:
        super().__init__(denoiser)
        self.inputs: list[Tensor] = []

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        self.inputs.append(x.detach().clone())
        return super().estimate(x, t, cond)


class CountedNoise(NoiseSource):
    """The initial noise, and how often any was drawn."""

    drawn = 0

    def draw(self) -> Tensor:
        self.drawn += 1
        return super().draw()


class Teacher(nn.Module):
    """A latent model with all that says where its sampling leads. Its fingerprint changes with any of these."""

    def __init__(self, model: LatentDiffusion, steps: int, sampler: str | None, guidance: float | None) -> None:
        """sampler, guidance: the model's own where none is given."""
        super().__init__()
        self.unet = model.unet
        given = {"steps": steps, "sampler": sampler, "guidance": guidance, "schedule_type": "trailing"}
        self.settings = read_settings(model.config, given)
        self.model = [model]  # no submodule: its first stage and text encoder decide nothing else
        self.steps = steps
        self.register_buffer("said", torch.tensor(list(str(self.settings.metadata()).encode()), dtype=torch.uint8))
        self.register_buffer("scale", model.scale)
        plan = TRAILING.plan(model.schedule, steps, self.settings.sampler, "trailing")
        self.plain = torch.equal(plan.times, timesteps(model.schedule, steps, "trailing"))

    def move(self, device: torch.device, bf16: bool) -> None:
        """To a device, where on a CPU the engine of generating runs the network, in bfloat16 if so asked."""
        self.to(device)
        accelerate(self.model[0].to(device), precision="bf16" if bf16 and device.type == "cpu" else "float32")

    @torch.no_grad()
    def trajectories(self, captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """(B, steps + 1, C, h, w), float16: the inputs of the network, from noise on, and the latents that come out.
        A `UserError` where the sampler takes other times than trailing ones or more calls than steps, or draws noise.
        """
        model, recordings = self.model[0], list[Recording]()

        def recorded(denoiser: Denoising) -> Denoising:
            recordings.append(Recording(denoiser))
            return recordings[-1]

        size = model.config.latent_size
        source = CountedNoise(list(seeds), (model.config.autoencoder.latent_channels, size, size), device=model.device)
        cond, uncond = model.embed(list(captions)), model.embed([""])
        result, _ = sample(model.denoiser, TRAILING, self.settings, cond, uncond, source, guide=recorded)
        inputs = recordings[0].inputs
        if len(inputs) != self.steps or source.drawn != 1 or not self.plain:
            must = "must call the network once a step at the times that it is given, and draw no noise"
            raise UserError(f"FewStepTraining.teacher_sampler {must}: not {self.settings.sampler}")
        return torch.stack([*inputs, result], 1).half()


def keep_trajectories(
    datasets: dict[str, ImageDataset],
    teacher: Teacher,
    text: TextEncoder | None,
    out: Path,
    count: int,
    team: Team,
    bf16: bool = False,
) -> Path:
    """Write at most `count` trajectories for captions of evenly spaced training examples, and a sixteenth of that for
    held-out ones, into the folder `out`, with embeddings of the captions; resumes as `precompute` does."""
    chosen = {
        split: list(spaced(range(len(dataset)), count if split == "train" else -(-count // HELD_OUT)))
        for split, dataset in datasets.items()
    }

    def asked() -> dict[str, Any]:
        return {
            "precompute": "trajectories",
            "part": PART,
            "autoencoder": fingerprint(teacher),
            "precision": "bf16" if bf16 else "fp32",
            "text": None if text is None else encoder_fingerprint(text),
            "data": {split: f"{len(chosen[split])} of {contents_of(dataset)}" for split, dataset in datasets.items()},
        }

    def make(work: Path, asked: dict[str, Any]) -> dict[str, Any]:
        teacher.move(team.device, bf16)
        for split, dataset in datasets.items():
            with autocast(bf16 and team.device.type != "cpu", team.device)():
                write_split(dataset, chosen[split], teacher, work, split, team)
        agreed(team)  # all parts are there
        counts = {split: len(rows) for split, rows in chosen.items()}
        stated = {"autoencoder": asked["autoencoder"]}
        return stated | parts_stated("trajectories", counts, PART, text, out, work, team)

    return made_once(out, PRECOMPUTED, team, asked, make)


def write_split(
    dataset: ImageDataset, rows: Sequence[int], teacher: Teacher, work: Path, split: str, team: Team
) -> None:
    """The trajectories of a split, in parts. Of each example one caption is taken, and a seed, both from its key."""
    stem = f"trajectories-{split}"
    parts = [rows[start : start + PART] for start in range(0, len(rows), PART)]
    mine = team.share(missing_parts(work, stem, len(parts), team))
    with showing(team) as progress:
        task = progress.add_task(f"sampling the teacher ({split})", total=len(rows))
        progress.reached(task, max(0, len(rows) - team.size * sum(len(parts[number]) for number in mine)))
        for number in mine:
            captions = [caption_of(dataset, row) for row in parts[number]]
            keys = [dataset.key(row)[1] for row in parts[number]]
            seeds = [seed_of(key) for key in keys]
            kept = list[Tensor]()
            for start in range(0, len(keys), BATCH):
                piece = slice(start, start + BATCH)
                kept.append(teacher.trajectories(captions[piece], seeds[piece]).cpu())
                progress.advance(task, len(kept[-1]) * team.size)
            each = [[caption] for caption in captions]
            save_examples({"trajectory": torch.cat(kept)}, each, keys, work / part_name(stem, number))


def seed_of(key: str) -> int:
    """The seed of the trajectory of an example."""
    return stable_hash("trajectory", key) % 2**31


def caption_of(dataset: ImageDataset, row: int) -> str:
    """One of the captions of an example, by its key; of the next one that has any, where it is broken."""
    for tried in range(row, row + 64):
        if every := list(dataset.all_captions([tried % len(dataset)])):
            return every[stable_hash("caption", dataset.key(row)[1]) % len(every)]
    raise UserError(f"{dataset.config.path}: no readable caption found in 64 tries")
