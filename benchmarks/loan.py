"""The jobs of a GPU that is lent for minutes: the two default models, everything side by side.

Of a budget of 13 minutes, roughly: the GPU measures alone for five, sampling first, while all cores draw the data; then
autoencoder, judge and the cascade's stages train at once, each a process of its own; the latent model follows the
autoencoder; the last tenth is for the studies. Nothing is installed or compiled before it starts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from benchmarks.schedule import Job
from diptych.recipes import get
from diptych.training.training_config import TrainingConfig

AUTOENCODER, LATENT, JUDGE = "emoji-autoencoder", "emoji-latent", "judge"
CASCADE = ("emoji-base", "emoji-sr-128", "emoji-sr-512")
SCENES, LARGE_SCENES = 20_000, 1_000
SHIPPED = "src/diptych/assets/{}/**/*.safetensors"
"""The weights that a study of a shipped model needs, which need not travel."""

# A time limit ends the training, and the learning rate cools down by the clock.
STEADY = {"steps": "1000000", "schedule": "constant", "cooldown": "0.4", "ema": "0.999", "checkpoint_every": "1000"}
QUICK = {"sample_every": "0", "validate_every": "0", "cuda_graphs": "true", "channels_last": "true"}
"""Settings for speed; those that this version does not have are left out."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where everything lies, relative to the root unless absolute."""

    data: str = "data/emoji-128"
    large_data: str = "data/emoji-512"
    cache: str = "cache/gpu"
    runs: str = "runs/gpu"
    sampling: str = "benchmarks/results/gpu-sampling"

    @classmethod
    def within(cls, folder: Path) -> Places:
        """All in one folder."""
        return cls(**{one.name: str(folder / one.name) for one in dataclasses.fields(cls)})

    def models(self) -> tuple[str, ...]:
        """Models that are brought back, the most important first."""
        latent = (f"{self.runs}/{name}/model" for name in ("latent", "judge"))
        return (*latent, f"{self.runs}/cascade", f"{self.runs}/autoencoder/model")

    def studies(self) -> tuple[str, ...]:
        """Studies that are brought back."""
        return (self.sampling, *(f"{self.runs}/study-{name}" for name in ("latent-new", "cascade-new")))


HERE = Places()


def settings(prefix: str, values: dict[str, str]) -> list[str]:
    return [f"{prefix}.{name}={value}" for name, value in values.items()]


def quick(*left_out: str) -> list[str]:
    """`QUICK` as far as `TrainingConfig` has it."""
    fields = {one.name for one in dataclasses.fields(TrainingConfig)} - set(left_out)
    return settings("training", {name: value for name, value in QUICK.items() if name in fields})


def loan(places: Places = HERE, toy: bool = False) -> tuple[Job, ...]:
    """The jobs, the most important first; `toy`: at a size that a CPU can do in minutes, to try the whole."""
    p = places

    def train(recipe: str, run: str, batch: int, rate: float, data: str, *more: str) -> tuple[str, ...]:
        limits = ["training.minutes={minutes}", f"training.batch_size={batch}", f"training.learning_rate={rate:g}"]
        common = [f"data.path={data}", *settings("training", STEADY), *limits, *quick()]
        return ("train", recipe, "--run-dir", f"{p.runs}/{run}", *common, *more, *(small(recipe) if toy else ()))

    def stage(name: str, data: str, gpu: float, batch: int, *more: str) -> Job:
        run, needs = train(name, name, batch, 1e-3, data, *more), ("data" if data == p.data else "large-data",)
        return Job(name=name, minutes=1, run=run, needs=needs, resumes=True, cores=3, gpu=gpu, by=0.86)

    def study(name: str, *model: str) -> tuple[str, ...]:
        out = ("--out", f"{p.runs}/study-{name}", "--batch", "200" if not toy else "4")
        few = ("--images", "2", "--steps", "2") if toy else ()
        return ("evaluate", *model, "--data", p.data, "--judge", f"{p.runs}/judge/model", *out, *few)

    def data(name: str, size: int, scenes: int, out: str, cores: int, by: float) -> Job:
        size, scenes = (size // 4, 18) if toy else (size, scenes)
        made = ("--size", str(size), "--scenes", str(scenes), "--workers", "{cores}", "--out", out)
        return Job(name=name, minutes=0.3, run=("data", "emoji", *made), cores=cores, gpu=0.0, by=by, resumes=True)

    latent = (f"system.autoencoder={p.runs}/autoencoder", f"system.precomputed={p.cache}")
    tiny = small(LATENT) if toy else ()
    measured = ("-m", "benchmarks.gpu_training", "--out", f"{p.runs}/training.json", "--seconds", "6" if toy else "60")
    sampled = ("-m", "benchmarks.gpu_sampling", "--out", p.sampling, "--seconds", "200")
    return (
        Job(
            name="measure-sampling",
            minutes=0.5,
            run=(*sampled, *(("--toy",) if toy else ())),
            result=f"{p.sampling}/results.json",
            by=0.28,
            resumes=True,
        ),
        Job(
            name="measure-training",
            minutes=0.5,
            run=(*measured, *(("--toy",) if toy else ())),
            result=f"{p.runs}/training.json",
            by=0.4,
            resumes=True,
        ),
        data("data", 128, SCENES, p.data, 14, 0.3),
        data("large-data", 512, LARGE_SCENES, p.large_data, 10, 0.5),
        Job(
            name="autoencoder",
            minutes=1,
            run=train(AUTOENCODER, "autoencoder", 64, 1e-3, p.data, "training.workers=3"),
            needs=("data",),
            resumes=True,
            cores=3,
            gpu=0.5,
            by=0.54,
        ),
        Job(
            name="precompute",
            minutes=0.3,
            run=(
                "precompute",
                LATENT,
                "--out",
                p.cache,
                f"data.path={p.data}",
                *latent,
                *tiny,
            ),
            needs=("autoencoder",),
            cores=3,
            gpu=0.5,
            by=0.63,
        ),
        Job(
            name="latent",
            minutes=1,
            run=train(LATENT, "latent", 512, 1e-3, p.data, *latent),
            needs=("precompute",),
            resumes=True,
            cores=3,
            gpu=0.5,
            by=0.87,
        ),
        Job(
            name="judge",
            minutes=1,
            run=train(JUDGE, "judge", 256, 1e-3, p.data),
            needs=("data",),
            resumes=True,
            cores=2,
            gpu=0.15,
            by=0.52,
        ),
        stage("emoji-base", p.data, 0.2, 512),
        stage("emoji-sr-128", p.large_data, 0.15, 256, "training.workers=3"),
        stage("emoji-sr-512", p.large_data, 0.15, 256, "training.workers=3"),
        Job(
            name="study-latent",
            minutes=0.5,
            run=study("latent-new", "--model", f"{p.runs}/latent/model"),
            needs=("latent", "judge"),
            result=f"{p.runs}/study-latent-new/results.json",
            gpu=0.5,
        ),
        Job(
            name="assemble",
            minutes=0.1,
            run=("assemble", *(f"{p.runs}/{name}" for name in CASCADE), "--out", f"{p.runs}/cascade"),
            needs=CASCADE,
            gpu=0.0,
        ),
        Job(
            name="study-cascade",
            minutes=0.5,
            run=study("cascade-new", "--model", f"{p.runs}/cascade", "--stop", "2"),
            needs=("assemble", "judge"),
            result=f"{p.runs}/study-cascade-new/results.json",
            gpu=0.5,
        ),
    )


def small(recipe: str) -> tuple[str, ...]:
    """Settings that shrink a recipe, so that a CPU does a step of it in a moment."""
    few = ("training.steps=2", "training.batch_size=4", "training.device=cpu", "training.precision=fp32")
    few = (*few, "training.cuda_graphs=false")
    if recipe == AUTOENCODER:
        return (*few, "data.size=32", "system.network.channels=8")
    if recipe == LATENT:
        sizes = ("data.size=32", "system.model.size=32", "system.model.autoencoder.channels=8")
        return (*few, *sizes, "system.model.unet.channels=32", "system.model.unet.blocks=1")
    return few


def captions() -> list[str]:
    """What the recipes' texts say besides captions."""
    systems = (get(name).system for name in (LATENT, *CASCADE))
    return [text for system in systems for text in system.diffusion.prompts]  # type: ignore[union-attr]
