"""What trained before trains today: the same losses to the bit, and runs that an earlier version left unfinished.

`tests/saved/runs` was written by the commit that its `losses.json` names, before any file of the package moved.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import diptych
from diptych.cli import main as cli
from tests.saved.trainings import (
    COUNTER,
    GENERATOR,
    INTERRUPTED,
    INTERRUPTED_AT,
    RECORDED,
    STEPS,
    TRAININGS,
    history,
    machine,
    train,
    workshop,
)

SAVED: dict[str, Any] = json.loads((RECORDED / "losses.json").read_text())
HASHED: dict[str, Any] = json.loads((RECORDED / "counter.json").read_text())
TOLERANCE = 2e-3
"""Relative, on another machine, whose kernels add in another order. The last bits reach the sixth digit of the loss
within twenty steps (measured with AVX2 and with SSE4 alone); a change of objective, seed or weights is far outside."""
UNSTEADY = ("autoencoder-vq", "autoencoder-vq-published", "stage-adafactor", "judge")
"""Those in which last bits grow quickly: a latent's nearest code changes, the steps are large, or batch norm sees four
images. Their first five steps are compared on another machine."""
STEADY = ("loss", "learning_rate")
"""What is compared on another machine; norms and ratios of gradients differ more, and counts jump."""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("workshop")
    workshop(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DIPTYCH_CACHE", str(folder / "cache"))  # `train` sets it; afterwards it is as before
        yield folder


def compare(found: dict[str, Any], name: str, saved: dict[str, Any] = SAVED) -> None:
    """Hold a history to the recorded one."""
    wanted = {key: values for key, values in saved["trainings"][name].items() if key != "arguments"}
    assert found.keys() == wanted.keys()
    if saved["machine"] == machine():
        differing = {key: (found[key], wanted[key]) for key in wanted if found[key] != wanted[key]}
        assert not differing, f"{name}: {', '.join(differing)} differ"
        return
    steps = 5 if name in UNSTEADY else STEPS
    for key in STEADY:
        for mine, theirs in zip(found[key][:steps], wanted[key][:steps], strict=True):
            assert mine == pytest.approx(theirs, rel=TOLERANCE, abs=1e-6), (name, key)


def test_every_training_is_recorded() -> None:
    assert SAVED["trainings"].keys() == TRAININGS.keys()


TWICE = {*COUNTER, *INTERRUPTED}
"""Trainings of which the fast tests below see each step as well: with hashed numbers, or ten from a checkpoint on."""
ALIKE = {
    *("latent-masked-published", "latent-low", "stage-low-blurred", "stage-ddpm"),
    *("latent-min-snr", "latent-initial", "latent-layouts", "stage-base", "stage-low-sr3", "autoencoder-vq"),
    *("latent-unconditional", "codes-unconditional", "classifier-pixels"),
}
"""Trainings beside which another one of the fast tests differs in a setting or two."""
ONCE = "training.checkpoint_every=20"
"""Checkpoints change no number and cost as much as some steps: runs that nobody interrupts write one."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in TWICE | ALIKE else []) for n in TRAININGS]
)
def test_twenty_steps_have_the_losses_that_they_had(here: Path, name: str) -> None:
    compare(history(train(name, None, GENERATOR, ONCE)), name)


@pytest.mark.parametrize("name", COUNTER)
def test_twenty_steps_with_hashed_numbers_have_the_losses_that_they_had(here: Path, name: str) -> None:
    compare(history(train(name, f"runs/counter/{name}", ONCE)), name, HASHED)


@pytest.mark.parametrize("name", INTERRUPTED)
def test_a_run_that_an_earlier_version_began_goes_on(here: Path, name: str) -> None:
    """Steps 11 to 20 are those of the unbroken training, and the model at the end opens. It says nothing of random
    numbers, and goes on with those of its time."""
    folder = Path("interrupted", name)
    shutil.copytree(RECORDED / folder, folder)
    before = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(before) == INTERRUPTED_AT and not (folder / "model").exists()
    run = train(name, str(folder))
    assert json.loads((run / "config.json").read_text())["training"]["random"] == "generator"
    assert (run / "metrics.jsonl").read_text().splitlines()[:INTERRUPTED_AT] == before
    compare(history(run), name)
    if name.startswith("autoencoder"):  # a first stage is opened by what stands on it
        changes = [f"system.teacher={run}", "training.steps=1"]
        assert cli.main(["train", *TRAININGS["tiny-decoder"].arguments, *changes, "--run-dir", "runs/after"]) == 0
    else:
        diptych.load(str(run), "cpu")
