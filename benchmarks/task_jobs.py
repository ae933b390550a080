"""The jobs of `make gpu` for the tasks beside text to image: what each is trained for, and its study."""

from __future__ import annotations

from benchmarks import jobs
from benchmarks.jobs import FEATURES, RUNS, script, timed
from benchmarks.loan import SHIPPED
from benchmarks.schedule import Job

TASKS, GUIDANCE = f"{RUNS}/tasks", "benchmarks/results/guidance-full"
CLASS_CACHE, LAYOUT_CACHE = f"{RUNS}/class-cache", f"{RUNS}/layout-cache"
CLASSES = f"system.precomputed={CLASS_CACHE}"


def cache(name: str, recipe: str, out: str) -> Job:
    """What a recipe's training reads, computed once."""
    return Job(name=name, minutes=1, run=("precompute", recipe, "--out", out), needs=("data",))


def study(task: str, *needs: str, more: tuple[str, ...] = (), minutes: float = 3) -> Job:
    """`diptych evaluate TASK` of every model that it needs, with `more` options; the last names it, too."""
    models = [word for name in needs for word in ("--model", f"{RUNS}/{name}")]
    name = "-".join((task, *more[-1:]))
    out = f"{TASKS}/{name}"
    run = ("evaluate", task, *models, "--data", jobs.DATA, "--out", out, "--images", "400", "--seeds", "3")
    return Job(name=f"{name}-study", minutes=minutes, run=(*run, *more), needs=needs, result=f"{out}/results.json")


DATA = ("data",)
JOBS = (
    *jobs.JOBS,
    timed("emoji-inpainting", f"{RUNS}/inpainting", 4, 128, needs=DATA),
    study("inpainting", "inpainting"),
    timed("emoji-super-resolution", f"{RUNS}/sr", 3, 128, needs=DATA),
    timed("emoji-super-resolution-pixels", f"{RUNS}/sr-pixels", 3, 128, needs=DATA),
    study("super-resolution", "sr", "sr-pixels"),
    timed("emoji-super-resolution-bsr", f"{RUNS}/sr-bsr", 3, 128, needs=DATA),
    study("super-resolution", "sr-bsr", more=("--degradation", "bsr-light")),
    cache("layout-precompute", "emoji-layout", LAYOUT_CACHE),
    timed("emoji-layout", f"{RUNS}/layout", 5, 256, f"system.precomputed={LAYOUT_CACHE}", needs=("layout-precompute",)),
    study("layout", "layout"),
    cache("class-precompute", "emoji-class", CLASS_CACHE),  # the guides learn from the same drawings
    timed("emoji-classifier", f"{RUNS}/classifier", 2, 256, CLASSES, needs=("class-precompute",)),
    timed("emoji-noisy-clip", f"{RUNS}/noisy-clip", 2, 1024, CLASSES, needs=("class-precompute",)),
    script(
        *("guidance", 6, "guidance.py", "--data", jobs.DATA, "--clip", FEATURES, "--out", GUIDANCE),
        *("--classifier", f"{RUNS}/classifier", "--noisy-clip", f"{RUNS}/noisy-clip", "--images", "200"),
        result=f"{GUIDANCE}/results.json",
        needs=("classifier", "noisy-clip", "features"),
    ),
    timed("emoji-class", f"{RUNS}/class", 3, 256, CLASSES, needs=("class-precompute",)),
    timed("emoji-free", f"{RUNS}/free", 2, 256, CLASSES, needs=("class-precompute",)),
    timed("emoji-classifier-pixels", f"{RUNS}/classifier-pixels", 2, 512, needs=DATA),
    script(
        *("guidance-pixels", 4, "guidance.py", "--data", jobs.DATA, "--model", "src/diptych/assets/cascade/stage-32"),
        *("--classifier", f"{RUNS}/classifier-pixels", "--noisy-clip", "none", "--clip", FEATURES),
        *("--images", "200", "--out", f"{GUIDANCE}-pixels"),
        result=f"{GUIDANCE}-pixels/results.json",
        needs=("classifier-pixels", "features"),
        present=SHIPPED.format("cascade"),
    ),
    timed("emoji-glide", f"{RUNS}/glide", 4, 256, needs=DATA),
)
"""All jobs: those of `jobs.py`, then repainting, super-resolution, layouts, guidance, classes, GLIDE."""
