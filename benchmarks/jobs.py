"""The jobs of `make gpu`: the models that diptych ships, then the benchmarks and studies, best value first."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "src" / "diptych" / "assets"

# The recipes and what is other on a GPU: a time limit ends the training, and the learning rate cools down by the clock.
# The networks stay small, because all the shipped weights together stay below 90 MiB.
AUTOENCODER, LATENT, JUDGE = "emoji-autoencoder", "emoji-latent", "judge"
SMALL_AUTOENCODER, SMALL_LATENT = "emoji-64-autoencoder", "emoji-64-latent"
LIMIT = 90 * 2**20
"""Bytes that all the shipped weights may have together."""
STEADY = {"steps": "1000000", "schedule": "constant", "cooldown": "0.4", "ema": "0.999", "checkpoint_every": "1000"}

# Where things lie, relative to the root.
DATA, LARGE_DATA, CACHE, RUNS = "data/emoji-128", "data/emoji-512", "cache/gpu", "runs/gpu"
AUTOENCODER_RUN, LATENT_RUN, JUDGE_RUN = f"{RUNS}/autoencoder", f"{RUNS}/latent", f"{RUNS}/judge"
CASCADE = ("emoji-base", "emoji-sr-128", "emoji-sr-512")
CASCADE_RUNS = tuple(f"{RUNS}/{name}" for name in CASCADE)
SHIPPED_JUDGE, CARD = "judge", "MODEL_CARD.md"


@dataclass(frozen=True)
class Panel:
    """A model that is shipped, and where a new one and the studies of both lie."""

    name: str
    """Its folder in the package's assets."""
    model: str
    """The folder of the new one."""

    @property
    def new_study(self) -> str:
        return f"{RUNS}/study-{self.name}-new"

    @property
    def old_study(self) -> str:
        return f"{RUNS}/study-{self.name}-shipped"


LATENT_PANEL, CASCADE_PANEL = Panel("latent", f"{LATENT_RUN}/model"), Panel("cascade", f"{RUNS}/cascade")
MODELS = (f"{AUTOENCODER_RUN}/model", f"{LATENT_RUN}/model", f"{JUDGE_RUN}/model", f"{RUNS}/cascade")
"""Models that are brought back."""
STUDIES = tuple(study for panel in (LATENT_PANEL, CASCADE_PANEL) for study in (panel.new_study, panel.old_study))
EFFICIENT, FULL_SIZE = "benchmarks/results/efficient-unet", "benchmarks/results/full-size.json"
SWEEPS, WORDS = f"{RUNS}/sweeps", f"{RUNS}/words"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One thing to do."""

    name: str
    minutes: float
    """About how long it takes."""
    run: tuple[str, ...] | Callable[[], dict[str, Any]]
    """Arguments of `diptych`, or a function that gives a result."""
    needs: tuple[str, ...] = ()
    """Jobs that must be done before."""
    resumes: bool = False
    """Saves its state when stopped, so it is worth starting with less time than it takes."""
    result: str | None = None
    """A JSON file that it leaves, kept in its result."""

    @property
    def identity(self) -> list[str]:
        """What was done, so that a changed job is done again."""
        if isinstance(self.run, tuple):
            return list(self.run)
        if isinstance(self.run, partial):
            return [self.run.func.__name__, *map(str, self.run.args)]
        return [self.run.__name__]


def settings(prefix: str, values: dict[str, str]) -> list[str]:
    return [f"{prefix}.{name}={value}" for name, value in values.items()]


def train(recipe: str, run: str, minutes: float, batch: int, rate: float, *more: str) -> tuple[str, ...]:
    limits = [f"training.minutes={minutes:g}", f"training.batch_size={batch}", f"training.learning_rate={rate:g}"]
    data = [f"data.path={DATA}", "data.in_memory=true"]
    return ("train", recipe, "--run-dir", run, *data, *settings("training", STEADY), *limits, *more)


LATENT_SETTINGS = (*(f"data.path={DATA}", f"system.autoencoder={AUTOENCODER_RUN}", f"system.precomputed={CACHE}"),)


def study(out: str, *model: str) -> tuple[str, ...]:
    return ("evaluate", *model, "--data", DATA, "--judge", f"{JUDGE_RUN}/model", "--out", out, "--batch", "200")


def keep_the_better(panel: Panel) -> dict[str, Any]:
    """Ship the new model, if it scores higher than the shipped one before the same judge, and that judge."""
    scores = {"new": score(ROOT / panel.new_study / "results.json")}
    if (ASSETS / panel.name).exists():
        scores["shipped"] = score(ROOT / panel.old_study / "results.json")
    better = scores["new"] > scores.get("shipped", float("-inf"))
    if better:
        new = {panel.name: ROOT / panel.model, SHIPPED_JUDGE: ROOT / JUDGE_RUN / "model"}
        kept = [folder for folder in ASSETS.iterdir() if folder.is_dir() and folder.name not in new]
        total = sum(weights.stat().st_size for one in (*new.values(), *kept) for weights in one.rglob("*.safetensors"))
        if total > LIMIT:
            raise ValueError(
                f"with these the shipped weights have {total / 2**20:.1f} MiB, more than {LIMIT / 2**20:.0f}: "
                "train smaller networks"
            )
        for name, folder in new.items():
            replace(folder, ASSETS / name)
    return {"scores": scores, "kept": "new" if better else "shipped"}


def score(results: Path) -> float:
    """Top-5 retrieval as a share, seen and held-out prompts alike."""
    groups = json.loads(results.read_text())["groups"].values()
    return sum(group["generated"]["top5"]["value"] for group in groups) / len(groups)


def replace(source: Path, target: Path) -> None:
    """Put a copy of one folder in the place of another, which is there until the copy is whole."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    if (target / CARD).is_file():
        shutil.copy(target / CARD, partial)  # people bring it up to date
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def sweep(what: str, *more: str) -> Job:
    """A sweep of the new cascade."""
    out = f"{SWEEPS}/{what}"
    run = ("sweep", what, "--model", CASCADE_PANEL.model, "--data", DATA, "--judge", f"{JUDGE_RUN}/model", "--out", out)
    need = ("assemble", "judge")
    return Job(name=f"sweep-{what}", minutes=3, run=(*run, *more), needs=need, result=f"{out}/results.json")


def script(name: str, *arguments: str, result: str) -> dict[str, Any]:
    """What a script beside this one leaves as JSON."""
    subprocess.run((sys.executable, f"benchmarks/{name}", *arguments), cwd=ROOT, check=True)
    return json.loads((ROOT / result).read_text())


def stage(name: str, data: str, minutes: float, batch: int, *needs: str) -> Job:
    """A stage of the cascade, trained for so many minutes."""
    run = train(name, f"{RUNS}/{name}", minutes, batch, 1e-3, f"data.path={data}")
    return Job(name=name, minutes=minutes + 0.5, run=run, needs=needs, resumes=True)


def words(recipe: str) -> Job:
    """One of the two models of the study of unseen words: the recipe as it is, for equal steps."""
    run = ("train", recipe, "--run-dir", f"{WORDS}/{recipe}", "training.steps=4200", "training.sample_every=0")
    data = ("data.path=data/emoji-64", f"system.autoencoder={WORDS}/autoencoder", f"system.precomputed={WORDS}/cache")
    return Job(name=f"words-{recipe}", minutes=2, run=(*run, *data), needs=("words-precompute",), resumes=True)


FIRST = (
    Job(name="data", minutes=4, run=("data", "emoji", "--size", "128", "--scenes", "20000", "--out", DATA)),
    Job(
        name="autoencoder",
        minutes=5,
        run=train(AUTOENCODER, AUTOENCODER_RUN, 4.5, 64, 1e-3),
        needs=("data",),
        resumes=True,
    ),
    Job(
        name="precompute",
        minutes=1.5,
        run=("precompute", LATENT, "--out", CACHE, *LATENT_SETTINGS),
        needs=("autoencoder",),
    ),
    Job(
        name="latent",
        minutes=9,
        run=train(LATENT, LATENT_RUN, 8.5, 512, 1e-3, *LATENT_SETTINGS),
        needs=("precompute",),
        resumes=True,
    ),
    Job(name="judge", minutes=2, run=train(JUDGE, JUDGE_RUN, 1.5, 256, 1e-3), needs=("data",), resumes=True),
    Job(
        name="study-new",
        minutes=1.5,
        run=study(LATENT_PANEL.new_study, "--model", LATENT_PANEL.model),
        needs=("latent", "judge"),
        result=f"{LATENT_PANEL.new_study}/results.json",
    ),
    Job(name="study-shipped", minutes=1.5, run=study(LATENT_PANEL.old_study), needs=("judge",)),
    Job(name="keep-the-better", minutes=0.1, run=partial(keep_the_better, LATENT_PANEL), needs=("study-new",)),
)
"""The latent default: what a first loan of 25 minutes is for."""

THEN = (
    Job(name="large-data", minutes=4, run=("data", "emoji", "--size", "512", "--scenes", "1000", "--out", LARGE_DATA)),
    stage("emoji-base", DATA, 4, 512, "data"),
    stage("emoji-sr-128", LARGE_DATA, 2, 256, "large-data"),
    stage("emoji-sr-512", LARGE_DATA, 2, 256, "large-data"),
    Job(name="assemble", minutes=0.2, run=("assemble", *CASCADE_RUNS, "--out", CASCADE_PANEL.model), needs=CASCADE),
    Job(
        name="study-cascade",
        minutes=3,
        run=study(CASCADE_PANEL.new_study, "--model", CASCADE_PANEL.model, "--stop", "2"),
        needs=("assemble", "judge"),
        result=f"{CASCADE_PANEL.new_study}/results.json",
    ),
    Job(
        name="study-cascade-shipped",
        minutes=3,
        run=study(CASCADE_PANEL.old_study, "--model", "cascade", "--stop", "2"),
        needs=("judge",),
    ),
    Job(
        name="keep-the-better-cascade",
        minutes=0.1,
        run=partial(keep_the_better, CASCADE_PANEL),
        needs=("study-cascade", "study-cascade-shipped"),
    ),
    sweep("guidance", "--stop", "1"),
    sweep("augmentation", "--stop", "2"),
    Job(
        name="efficient-unet-full",
        minutes=1.5,
        run=partial(script, "efficient_unet.py", "--size", "full", "--out", EFFICIENT, result=f"{EFFICIENT}/full.json"),
    ),
    Job(
        name="full-size",
        minutes=3,
        run=partial(script, "full_size.py", "--device", "cuda", "--out", FULL_SIZE, result=FULL_SIZE),
    ),
    Job(
        name="words-data",
        minutes=1,
        run=("data", "emoji", "--size", "64", "--scenes", "5000", "--out", "data/emoji-64"),
    ),
    Job(
        name="words-autoencoder",
        minutes=2,
        run=("train", SMALL_AUTOENCODER, "--run-dir", f"{WORDS}/autoencoder", "data.path=data/emoji-64"),
        needs=("words-data",),
        resumes=True,
    ),
    Job(
        name="words-precompute",
        minutes=1,
        run=("precompute", SMALL_LATENT, "--out", f"{WORDS}/cache", f"system.autoencoder={WORDS}/autoencoder"),
        needs=("words-autoencoder",),
    ),
    words(SMALL_LATENT),
    words("emoji-latent-joint"),
    Job(
        name="unseen-words",
        minutes=1,
        run=(
            *("unseen", "--model", f"{WORDS}/{SMALL_LATENT}", "--model", f"{WORDS}/emoji-latent-joint"),
            *("--data", "data/emoji-64", "--out", f"{WORDS}/unseen"),
        ),
        needs=(f"words-{SMALL_LATENT}", "words-emoji-latent-joint"),
        result=f"{WORDS}/unseen/results.json",
    ),
)
"""The cascade default, and the studies of the cascade panel."""

FIRST_STAGES, COMPRESSION = "benchmarks/results/first-stages-full", "benchmarks/results/compression-full"
FEATURES, VQ_RUN, CODES_RUN = f"{RUNS}/features", f"{RUNS}/vq", f"{RUNS}/codes"
SMALL_DATA = "data.path=data/emoji-64"
CODES = (SMALL_DATA, f"system.autoencoder={VQ_RUN}", f"system.precomputed={RUNS}/codes-cache")


def timed(name: str, run: str, minutes: float, batch: int, *more: str, needs: tuple[str, ...]) -> Job:
    """A model trained for so many minutes."""
    command = train(name, run, minutes, batch, 1e-3, *more)
    return Job(name=run.rpartition("/")[2], minutes=minutes + 0.5, run=command, needs=needs, resumes=True)


FORERUNNER = (
    timed("emoji-features", FEATURES, 1, 256, SMALL_DATA, needs=("words-data",)),
    Job(
        name="first-stages",
        minutes=8,
        run=partial(
            script,
            *("first_stages.py", "--size", "full", "--features", FEATURES, "--out", FIRST_STAGES),
            result=f"{FIRST_STAGES}/results.json",
        ),
        needs=("features",),
    ),
    Job(
        name="compression",
        minutes=14,
        run=partial(
            script,
            *("compression.py", "--size", "full", "--out", COMPRESSION),
            result=f"{COMPRESSION}/results.json",
        ),
        needs=("words-data",),
    ),
    timed("emoji-vq", VQ_RUN, 3, 64, SMALL_DATA, f"system.perceptual.path={FEATURES}", needs=("features",)),
    Job(
        name="codes-precompute",
        minutes=0.5,
        run=("precompute", "emoji-codes", "--out", f"{RUNS}/codes-cache", *CODES[:2]),
        needs=("vq",),
    ),
    timed("emoji-codes", CODES_RUN, 3, 256, *CODES, needs=("codes-precompute",)),
    Job(
        name="codes-study",
        minutes=2,
        run=("evaluate", "--model", CODES_RUN, "--data", "data/emoji-64", "--out", f"{RUNS}/study-codes"),
        needs=("codes",),
        result=f"{RUNS}/study-codes/results.json",
    ),
)
"""First stages by the whole objective, how much to compress, and the forerunner."""

JOBS = (*FIRST, *THEN, *FORERUNNER)
