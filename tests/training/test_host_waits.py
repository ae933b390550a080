"""The loss of a step never waits for a GPU: nothing is read back, and what the host makes is copied without waiting.

The meta device stands in for a GPU. Its tensors have no values, so that whatever asks for one fails by itself; what
comes to it from the CPU is watched here.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diptych.recipes import get
from diptych.training.experiment_data import open_data
from diptych.training.prefetch import Copies, to_device
from diptych.training.readback import Readback
from diptych.training.trainable import preparation
from tests.saved.trainings import TRAININGS, workshop

CPU, GPU = torch.device("cpu"), torch.device("meta")
FAST = ("latent-masked", "stage-joint-text", "stage-pixels-degraded", "codes-classes", "judge")
"""One of each kind; the others are slow tests."""


class Watch(TorchDispatchMode):
    """Within, lists the lines at which the host would wait for a GPU, or which a GPU cannot take part in."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.made = Made(self.found)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name, there = func.overloadpacket.__name__, any(on(GPU, leaf) for leaf in tree_leaves(made))
        copies = name in ("_to_copy", "copy_")  # of others, numbers without dimensions go along as arguments
        sent = name == "_to_copy" and (kwargs or {}).get("non_blocking", False)
        given = [
            leaf for leaf in tree_leaves((args, kwargs)) if on(torch.device("cpu"), leaf) and (leaf.ndim or copies)
        ]
        if there and given and not sent:
            self.found.append(f"{name}: {line()}")
        return made

    def __enter__(self) -> Self:
        self.made.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.made.__exit__(*raised)


class Made(TorchFunctionMode):
    """Lists tensors that are made of Python's numbers for a GPU, which are copied there."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.tensor, torch.as_tensor) and torch.device((kwargs or {}).get("device") or "cpu") == GPU:
            self.found.append(f"{func.__name__}: {line()}")
        return func(*args, **(kwargs or {}))


def line() -> str:
    """The innermost line of the package that runs."""
    frames = [frame for frame in traceback.extract_stack() if "/src/diptych/" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].line}" if frames else "elsewhere"


def on(device: torch.device, leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.device == device


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workshop, and what the meta device lacks of a GPU: autocast, and copies to the host beside the work."""
    folder = tmp_path_factory.mktemp("workshop")
    workshop(folder)
    autocast = torch.autocast

    def cast(device: str, *options: Any, **named: Any) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if device == GPU.type else autocast(device, *options, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DIPTYCH_CACHE", str(folder / "cache"))
        patch.setattr(torch, "autocast", cast)
        patch.setattr(Readback, "send", lambda *_: None)
        yield folder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in TRAININGS]
)
def test_a_loss_waits_for_nothing(here: Path, name: str) -> None:
    arguments = [one for one in TRAININGS[name].arguments[1:] if not one.startswith("system.precomputed=")]
    recipe = get(TRAININGS[name].recipe).override(arguments)
    if hasattr(recipe.system, "precomputed"):
        recipe = recipe.override(["system.precomputed=none"])
    data = open_data(recipe, here / f"{name}.jsonl")
    system = recipe.system.with_class_names(lambda: data.captions("train"))
    data.fit(system.caption_fit)
    task = system.build(data, 1)
    batch = Copies(CPU, "counter", preparation(task)).prepared(data.batches(1)["train"]([0, 1, 2, 3]))
    batch |= {"random": "counter", "step": 20}
    task.start(batch)
    task.module.to(GPU)
    moved = {**to_device(batch, GPU), "seed_on_host": batch["seed"].numpy()}
    task.loss(moved)[0].sum().backward()  # once: tables and frozen networks come to the device
    with Watch() as watch:
        losses, _ = task.loss(moved)
        losses.sum().backward()
    assert losses.device == GPU and watch.found == []


def test_what_would_be_waited_for_is_seen() -> None:
    there = torch.zeros(3, device=GPU)
    with Watch() as watch:
        torch.ones(3).to(GPU, non_blocking=True)  # as `sent` does
    assert not watch.found
    for waits in (
        lambda: torch.ones(3).to(GPU),
        lambda: torch.tensor([0, 1], device=GPU),
        lambda: there[torch.tensor([0, 1])],
        lambda: there.copy_(torch.ones(3)),
    ):
        with Watch() as watch:
            waits()
        assert watch.found, waits
    for reads in (lambda: there.sum().item(), lambda: there[there > 0], lambda: bool(there.any()), lambda: there.cpu()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            reads()
