"""One toy judge for all tests of this folder: it takes a few seconds to train."""

from __future__ import annotations

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
def trained(toy_data: Path) -> JudgeTrainable:
    torch.manual_seed(0)
    dataset = open_dataset(DataConfig(path=str(toy_data), size=16, in_memory=True))
    trainable = JudgeTrainable(toys.TRAINING, dataset, words=toys.words())
    stream = SampleStream(len(dataset), 0)
    trainable.start(make_batch(dataset, stream, range(8)))
    optimizer = torch.optim.AdamW(trainable.module.parameters(), lr=3e-3)
    trainable.module.train()
    for step in range(150):
        losses, _ = trainable.loss(make_batch(dataset, stream, range(step * 48, step * 48 + 48)))
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    trainable.module.eval()
    return trainable


@pytest.fixture(scope="session")
def judge(trained: JudgeTrainable) -> Judge:
    return trained.judge
