"""One toy judge for all tests: it takes a few seconds to train."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
import torch

from diptych.data import DataConfig, SampleStream, make_batch, open_dataset
from diptych.models.judge import Judge
from diptych.training.tasks.contrastive import JudgeTrainable
from tests.evaluation import toys


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_shard(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="session")
def trained(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> JudgeTrainable:
    """Trained by whichever process and folder of tests asks first; the others read its weights."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # its own folder lies in the one of all
        folder = folder.parent
    with (folder / "toy-judge.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return once(toy_data, folder / "toy-judge.pt")


def once(toy_data: Path, kept: Path) -> JudgeTrainable:
    torch.manual_seed(0)
    dataset = open_dataset(DataConfig(path=str(toy_data), size=16, in_memory=True))
    trainable = JudgeTrainable(toys.TRAINING, dataset, words=toys.words())
    stream = SampleStream(len(dataset), 0)
    trainable.start(make_batch(dataset, stream, range(8)))
    if kept.exists():
        trainable.module.load_state_dict(torch.load(kept, weights_only=True))
        trainable.module.eval()
        return trainable
    optimizer = torch.optim.AdamW(trainable.module.parameters(), lr=3e-3)
    trainable.module.train()
    for step in range(150):
        losses, _ = trainable.loss(make_batch(dataset, stream, range(step * 48, step * 48 + 48)))
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    trainable.module.eval()
    torch.save(trainable.module.state_dict(), kept)
    return trainable


@pytest.fixture(scope="session")
def judge(trained: JudgeTrainable) -> Judge:
    return trained.judge
