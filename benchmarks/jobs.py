"""The jobs of `make gpu` after those of `loan.py`: comparisons with the shipped models, benchmarks and studies."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.loan import HERE, SHIPPED, STEADY, loan, settings
from benchmarks.schedule import ROOT, Job

ASSETS = ROOT / "src" / "diptych" / "assets"

SMALL_AUTOENCODER, SMALL_LATENT = "emoji-64-autoencoder", "emoji-64-latent"
LIMIT = 90 * 2**20
"""Bytes that all the shipped weights may have together."""

# Where things lie, relative to the root.
DATA, LARGE_DATA, RUNS = HERE.data, HERE.large_data, HERE.runs
LATENT_RUN, JUDGE_RUN = f"{RUNS}/latent", f"{RUNS}/judge"
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
EFFICIENT, FULL_SIZE = "benchmarks/results/efficient-unet", "benchmarks/results/full-size.json"
SWEEPS, WORDS = f"{RUNS}/sweeps", f"{RUNS}/words"


def train(recipe: str, run: str, minutes: float, batch: int, rate: float, *more: str) -> tuple[str, ...]:
    limits = [f"training.minutes={minutes:g}", f"training.batch_size={batch}", f"training.learning_rate={rate:g}"]
    data = [f"data.path={DATA}", "data.in_memory=true"]
    return ("train", recipe, "--run-dir", run, *data, *settings("training", STEADY), *limits, *more)


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


def script(name: str, minutes: float, path: str, *arguments: str, result: str, **more: Any) -> Job:
    """A script beside this one, which leaves a JSON file."""
    return Job(name=name, minutes=minutes, run=(f"benchmarks/{path}", *arguments), result=result, **more)


def words(recipe: str) -> Job:
    """One of the two models of the study of unseen words: the recipe as it is, for equal steps."""
    run = ("train", recipe, "--run-dir", f"{WORDS}/{recipe}", "training.steps=4200", "training.sample_every=0")
    data = ("data.path=data/emoji-64", f"system.autoencoder={WORDS}/autoencoder", f"system.precomputed={WORDS}/cache")
    return Job(name=f"words-{recipe}", minutes=2, run=(*run, *data), needs=("words-precompute",), resumes=True)


THEN = (
    Job(
        name="study-shipped",
        minutes=1.5,
        run=study(LATENT_PANEL.old_study),
        needs=("judge",),
        present=SHIPPED.format("latent"),
    ),
    Job(
        name="keep-the-better",
        minutes=0.1,
        run=partial(keep_the_better, LATENT_PANEL),
        needs=("study-latent", "study-shipped"),
        gpu=0.0,
    ),
    Job(
        name="study-cascade-shipped",
        minutes=3,
        run=study(CASCADE_PANEL.old_study, "--model", "cascade", "--stop", "2"),
        needs=("judge",),
        present=SHIPPED.format("cascade"),
    ),
    Job(
        name="keep-the-better-cascade",
        minutes=0.1,
        run=partial(keep_the_better, CASCADE_PANEL),
        needs=("study-cascade", "study-cascade-shipped"),
        gpu=0.0,
    ),
    sweep("guidance", "--stop", "1"),
    sweep("augmentation", "--stop", "2"),
    script(
        *("efficient-unet-full", 1.5, "efficient_unet.py", "--size", "full", "--out", EFFICIENT),
        result=f"{EFFICIENT}/full.json",
    ),
    script("full-size", 3, "full_size.py", "--device", "cuda", "--out", FULL_SIZE, result=FULL_SIZE),
    Job(
        name="words-data",
        minutes=1,
        run=("data", "emoji", "--size", "64", "--scenes", "5000", "--out", "data/emoji-64"),
        cores=8,
        gpu=0.0,
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
"""Whether the new models are better than the shipped ones, and the studies of the cascade panel."""

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
    script(
        *("first-stages", 8, "first_stages.py", "--size", "full", "--features", FEATURES, "--out", FIRST_STAGES),
        result=f"{FIRST_STAGES}/results.json",
        needs=("features",),
    ),
    script(
        *("compression", 14, "compression.py", "--size", "full", "--out", COMPRESSION),
        result=f"{COMPRESSION}/results.json",
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

LOAN = loan()
JOBS = (*LOAN, *THEN, *FORERUNNER)
