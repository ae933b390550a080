"""Write `runs/`: model folders, the histories of all trainings, and run folders that were interrupted.

    PYTHONPATH=src:. OMP_NUM_THREADS=1 python tests/saved/record_runs.py

Run it only when a change of what is trained is wanted: `tests/test_saved_runs.py` holds every later version to it.
With the argument `counter` it writes `counter.json` alone, the trainings whose random numbers are hashed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.saved.trainings import (
    COUNTER,
    GENERATOR,
    INTERRUPTED,
    INTERRUPTED_AT,
    MODELS,
    RECORDED,
    TRAININGS,
    history,
    machine,
    train,
    workshop,
)

STANDING_ON = {"kl": "autoencoder", "vq": "autoencoder-vq", "latent": "latent", "stage": "stage-joint-text"}
"""Model folders that other trainings read, and the trainings that make them."""


class Interrupting:
    """A standard error that interrupts the process by SIGINT when the step before the last wanted one is logged: the
    loop then finishes one step more, and saves."""

    def write(self, text: str) -> int:
        if text.startswith(f"step {INTERRUPTED_AT - 1}/"):
            signal.raise_signal(signal.SIGINT)
        return sys.__stderr__.write(text) if sys.__stderr__ else len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        return False


def interrupted(name: str) -> Path:
    """The run folder of a training that stopped after `INTERRUPTED_AT` steps."""
    folder = f"interrupted/{name}"
    with contextlib.redirect_stderr(Interrupting()), contextlib.suppress(SystemExit):  # type: ignore[type-var]
        train(name, folder, GENERATOR)
    [saved] = Path(folder, "checkpoints").iterdir()
    assert saved.name == f"step-{INTERRUPTED_AT:08d}" and not Path(folder, "model").exists()
    return Path(folder)


def main() -> None:
    if RECORDED.exists():
        shutil.rmtree(RECORDED)
    here = Path(tempfile.mkdtemp())
    os.environ["DIPTYCH_CACHE"] = str(here / "cache")
    workshop(here)
    os.chdir(here)
    found = {}
    for name, training in TRAININGS.items():
        found[name] = {"arguments": training.arguments, **history(train(name, None, GENERATOR))}
        for model in (model for model, source in STANDING_ON.items() if source == name):
            shutil.copytree(f"runs/{name}/model", f"models/{model}")
    shutil.copytree("models", MODELS)
    for name in INTERRUPTED:
        shutil.copytree(
            interrupted(name), RECORDED / "interrupted" / name, ignore=shutil.ignore_patterns("tensorboard", "*.lock")
        )
    write("losses.json", found)
    record_counter()


def record_counter() -> None:
    """Write `counter.json` alone, in a workshop."""
    write("counter.json", {name: history(train(name, f"runs/counter/{name}")) for name in COUNTER})


def write(file: str, found: dict[str, Any]) -> None:
    """Histories by name, the commit and the machine."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=RECORDED.parent
    ).stdout.strip()
    rows = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in found.items()]
    told = f'"commit": {json.dumps(commit)},\n"machine": {json.dumps(machine())},\n'
    (RECORDED / file).write_text("{\n" + told + '"trainings": {\n' + ",\n".join(rows) + "\n}}\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["counter"]:
        os.chdir(tempfile.mkdtemp())
        workshop(Path.cwd())
        record_counter()
    else:
        main()
