"""Gradients that several processes sum during the backward pass are those of one process with everything."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.training import gradients
from diptych.training.distributed import Team, team
from diptych.training.gradients import GradientSum
from tests.training.processes import two_processes

BUCKETS = (1, 40)
SHARES = {"whole": ([0, 1, 2], [3, 4, 5]), "uneven": ([0], [1, 2, 3, 4, 5]), "none": ([], [0, 1, 2, 3, 4, 5])}


class Branches(nn.Module):
    """Layers of which one is read for even examples alone, and one never."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.even, self.never = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.last, self.scale = nn.Linear(5, 1), nn.Parameter(torch.ones(()))

    def forward(self, examples: list[int]) -> Tensor:
        torch.manual_seed(1)
        x = self.first(torch.randn(6, 3)[examples]).tanh()
        if any(number % 2 == 0 for number in examples):
            x = torch.where((torch.tensor(examples) % 2 == 0)[:, None], self.even(x), x)
        return self.scale * self.last(x).square().sum()


def found(module: nn.Module, extras: Tensor) -> dict[str, Any]:
    grads = {name: None if p.grad is None else p.grad.flatten().tolist() for name, p in module.named_parameters()}
    return {"grads": grads, "extras": extras.tolist()}


def sums(folder: str, environment: dict[str, str]) -> None:
    """What one process finds, with buckets of several sizes."""
    os.environ |= environment
    with team("cpu") as here:
        for bucket in BUCKETS:
            gradients.BUCKET = bucket
            Path(folder, f"{bucket}-{here.rank}.json").write_text(json.dumps(sums_of(here)))


def sums_of(here: Team) -> dict[str, Any]:
    """Of steps with several shares; the second step of each adds up two parts."""
    module, rows, sent_early = Branches(), {}, {}
    gradient_sum = GradientSum(list(module.parameters()), here.device)
    for name, shares in SHARES.items():
        mine = shares[here.rank]
        for parts in (1, 2):
            module.zero_grad(set_to_none=True)
            pieces = [piece for piece in (mine[: len(mine) // parts], mine[len(mine) // parts :]) if piece]
            for piece in pieces:
                if piece is pieces[-1]:
                    gradient_sum.begin()
                module(piece).backward()
                sent_early[f"{name}-{parts}"] = len(gradient_sum._sent)
            rows[f"{name}-{parts}"] = found(module, gradient_sum.finish(torch.tensor([float(len(mine)), 1.0])))
    rows["early"], rows["buckets"] = sent_early, len(gradient_sum.buckets)
    rows["idle"] = len({gradient_sum._bucket_of[id(p)] for p in module.never.parameters()})
    return rows


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    assert two_processes(sums, str(folder)) == [0, 0]
    return folder


@pytest.mark.parametrize("bucket", BUCKETS)
def test_sums_are_the_gradients_of_one_process(of_two: Path, bucket: int) -> None:
    module = Branches()
    module(list(range(6))).backward()
    wanted = found(module, torch.tensor([6.0, 2.0]))
    assert wanted["grads"]["never.weight"] is None
    for rank in range(2):
        rows = json.loads((of_two / f"{bucket}-{rank}.json").read_text())
        for name in (f"{share}-{parts}" for share in SHARES for parts in (1, 2)):
            assert rows[name]["extras"] == wanted["extras"]
            for key, grad in wanted["grads"].items():
                assert rows[name]["grads"][key] == (None if grad is None else pytest.approx(grad, rel=1e-5, abs=1e-6))
    rows = json.loads((of_two / f"{bucket}-1.json").read_text())
    assert rows["early"]["none-1"] == rows["buckets"] - rows["idle"]  # all within the backward pass
