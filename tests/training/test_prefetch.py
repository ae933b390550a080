"""Batches that are prepared ahead: by threads or processes, the same to the bit, nothing lost, and no process left."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.core.hashing import mix, mix_all
from diptych.data import DataConfig, ImageDataset, Quarantine, collate, open_dataset
from diptych.data.stream import ImageBatches
from diptych.data.worker import accept, packed, read_row
from diptych.data.worker_pool import Order, WorkerPool
from diptych.training.prefetch import prefetched
from tests.data.fragile import Fragile
from tests.data.tiny import image_dataset
from tests.training.toy import settings

CPU = torch.device("cpu")
CONFIG = DataConfig(path="x", size=12, crop=8, flip=0.5, max_size=14, max_failure_rate=0.3, quarantine="left-out.jsonl")


def short(caption: str) -> str:
    """Fits captions as a text encoder does: 7 is cut, 11 cannot be read."""
    if caption == "picture 11":
        raise UserError("it names no class")
    return "picture" if caption == "picture 7" else caption


def opened(folder: Path) -> ImageDataset:
    dataset = open_dataset(dataclasses.replace(CONFIG, path=str(folder), quarantine=str(folder / "left-out.jsonl")))
    dataset.fit = short
    return dataset


def taken(folder: Path, pieces: list[list[int]], **how: Any) -> tuple[list[dict[str, Any]], Quarantine]:
    batches = ImageBatches(opened(folder), seed=3)
    with contextlib.closing(prefetched(batches, iter(pieces), settings(**how), CPU)) as found:
        return list(found), batches.dataset.quarantine


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two batches are the same to the bit."""
    return one.keys() == other.keys() and all(
        np.array_equal(value, other[key]) if isinstance(value, (Tensor, np.ndarray)) else value == other[key]
        for key, value in one.items()
    )


def test_threads_and_processes_give_the_batches_of_neither(tmp_path: Path) -> None:
    """With broken images, captions that are cut or cannot be read, crops, flips, and parts of unequal length."""
    image_dataset(tmp_path / "a.tar", 26, {4: b"nothing", 19: b"\xff\xd8\xff"})
    parts = [range(9), range(9, 17), range(17, 26), range(26, 34), range(34, 43), range(43, 51), range(51, 60)]
    pieces = [list(part) for part in parts]
    wanted, counted = taken(tmp_path, pieces, workers=0)
    record = (tmp_path / "left-out.jsonl").read_text()
    assert len(counted.broken) == 3 and len(counted.changed) == 1 and record.count("\n") == 4
    (tmp_path / "left-out.jsonl").unlink()
    for how in ({"workers": 3, "worker_kind": "threads"}, {"workers": 3}):
        found, quarantine = taken(tmp_path, pieces, **how)
        assert len(found) == len(wanted) and all(map(same, found, wanted)), how
        assert quarantine.broken == counted.broken and quarantine.changed == counted.changed
        assert quarantine.seen == counted.seen
    assert sorted((tmp_path / "left-out.jsonl").read_text().splitlines()) == sorted(record.splitlines())
    picture = wanted[0]["picture"]
    assert picture.shape == (9, 3, 8, 8) and picture.dtype == torch.float32 and picture.is_contiguous()
    dataset, stream = opened(tmp_path), ImageBatches(opened(tmp_path), 3).stream
    pairs = [stream[position] for position in pieces[0]]
    made = collate([dataset[index] for index, _ in pairs], [seed for _, seed in pairs], dataset.config)
    assert same(made, {key: wanted[0][key] for key in made})


def test_a_worker_passes_over_what_was_broken_before_it_began(tmp_path: Path) -> None:
    image_dataset(tmp_path / "a.tar", 8, {2: b"nothing"})
    dataset = opened(tmp_path)
    wanted = dataset[2]  # another, in its place
    worker_has, _ = pickle.loads(packed(dataset))
    row = np.empty((8, 8, 3), np.uint8)
    read = read_row(worker_has, 2, 0, row)
    assert read.key == wanted.key
    accept(dataset, 2, 0, read, row)
    assert list(dataset.quarantine.broken.values()) == [dataset.left_out[0][2]]


def fragile(folder: Path, **traps: int) -> ImageDataset:
    dataset = copy.copy(open_dataset(DataConfig(path=str(folder), size=8)))
    dataset.source = Fragile(dataset.source, **traps)  # type: ignore[assignment]
    return dataset


def orders(count: int, length: int = 8) -> list[Order]:
    return [Order([((n * length + i) % 28, 0) for i in range(length)], (8, 8)) for n in range(count)]


@pytest.mark.slow
def test_a_worker_that_ends_is_replaced_and_what_kills_each_is_named(tmp_path: Path, caplog: Any) -> None:
    image_dataset(tmp_path / "a.tar", 30)
    with WorkerPool(fragile(tmp_path, large=29), 2, 8 * 192) as pool:
        processes = [worker.process for worker in pool._workers]
        found = []
        for number, filled in enumerate(pool.batches(orders(12))):
            found.append((filled.pixels.copy(), filled.captions, filled.keys))
            if number == 3:  # of 12, of which not all are begun
                processes[0].send_signal(signal.SIGTERM)  # the trainer's to act on
                processes[1].kill()
        assert processes[0].poll() is None and processes[1].poll() == -signal.SIGKILL
        with pytest.raises(UserError, match="out of memory while 000000029 in"):
            next(pool.batches([Order([(29, 0)], (8, 8))]))
        processes = [worker.process for worker in pool._workers]
    assert all(process.poll() == 0 for process in processes)
    assert "ended by signal SIGKILL, another takes its place" in caplog.text
    dataset = open_dataset(DataConfig(path=str(tmp_path), size=8))
    for order, (pixels, _, keys) in zip(orders(12), found, strict=True):
        assert keys == [dataset[index].key for index, _ in order.examples]
        assert all(
            np.array_equal(row, dataset[index].image) for row, (index, _) in zip(pixels, order.examples, strict=True)
        )
    said = {caption for _, captions, _ in found for (caption,) in captions}
    assert all(caption.startswith("torch False in ") for caption in said) and len(said) == 3  # two, and one in place
    named = pytest.raises(UserError, match=r"SIGKILL twice at the same examples, one of .*13.*memory")
    with named, WorkerPool(fragile(tmp_path, deadly=13), 1, 8 * 192) as pool:
        list(pool.batches(orders(2)))


PARENT = """
import sys, time
from diptych.data.dataset import DataConfig, open_dataset
from diptych.data.worker_pool import Order, WorkerPool
with WorkerPool(open_dataset(DataConfig(path=sys.argv[1], size=8)), 1, 192) as pool:
    next(pool.batches([Order([(0, 0)], (8, 8))]))
    print(pool._workers[0].process.pid, flush=True)
    time.sleep(600)
"""


def test_workers_end_when_the_process_is_killed(tmp_path: Path) -> None:
    image_dataset(tmp_path / "a.tar", 2)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 60
    while running(worker):
        assert time.monotonic() < until
        time.sleep(0.02)


def running(number: int) -> bool:
    """Whether a process runs; one that has ended, and that nobody has waited for, does not."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(number, 0)
        status = Path(f"/proc/{number}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_mixing_arrays_is_mixing_numbers() -> None:
    at = np.array([0, 1, 5, 2**62 + 3, -1])
    assert mix_all(7, at, 1).tolist() == [mix(7, int(a), 1) for a in at]
    assert mix_all(-3, at, at).tolist() == [mix(-3, int(a), int(a)) for a in at]
