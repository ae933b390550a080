"""Aspect buckets: their shapes, which image is of which, and that a stream in buckets loses and repeats nothing."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.core.errors import UserError
from diptych.data import DataConfig, open_dataset
from diptych.data.buckets import BucketStream, bucket_shapes, nearest
from diptych.data.shards import write_shard
from diptych.data.stored_sides import stored_sides
from diptych.data.stream import ImageBatches
from diptych.recipes import get
from diptych.training.distributed import Team
from diptych.training.prefetch import prefetched
from tests.training.toy import settings

CPU = torch.device("cpu")


def test_buckets_have_about_the_area_of_the_square() -> None:
    shapes = bucket_shapes(512, 64, 2.0)
    assert (512, 512) in shapes and (384, 640) in shapes and (640, 384) in shapes
    assert all(side % 64 == 0 for shape in shapes for side in shape) and len(set(shapes)) == len(shapes)
    assert all(0.8 * 512**2 < height * width <= 512**2 for height, width in shapes)
    assert max(height / width for height, width in shapes) <= 2
    assert bucket_shapes(64, 64, 16.0) == [(64, 64)]
    sides = np.array([[1000, 1000], [1666, 1000], [1000, 1666], [0, 0], [9000, 1000]])
    assert [shapes[number] for number in nearest(sides, shapes)][:4] == [(512, 512), (384, 640), (640, 384), (512, 512)]
    assert shapes[nearest(sides, shapes)[4]] == max(shapes, key=lambda shape: shape[1] / shape[0])


@pytest.mark.parametrize("size", [1, 4, 7])
def test_every_example_comes_once_a_round_of_its_bucket_and_few_wait_for_the_next_epoch(size: int) -> None:
    buckets = np.repeat([2, 5, 6], [17, 30, 3])
    np.random.default_rng(0).shuffle(buckets)
    stream = BucketStream(buckets, size, seed=3)
    shown: dict[int, list[int]] = {2: [], 5: [], 6: []}
    epochs, step, orders = 12, 0, []
    for epoch in range(epochs):
        while step < sum(stream.begun(epoch + 1)):
            indices, seeds, bucket = stream.at(np.arange(step * size, (step + 1) * size))
            assert (buckets[indices] == bucket).all() and len(set(seeds.tolist())) == size
            shown[bucket] += indices.tolist()
            orders.append(bucket)
            step += 1
        for bucket, row in shown.items():
            members = sorted(np.flatnonzero(buckets == bucket).tolist())
            waiting = (epoch + 1) * len(members) - len(row)
            assert 0 <= waiting < size  # of an epoch's examples, less than a batch of each bucket comes in the next
            for start in range(0, len(row) - len(members) + 1, len(members)):
                assert sorted(row[start : start + len(members)]) == members  # each once
    assert len({tuple(orders[start : start + 8]) for start in range(0, len(orders) - 8, 8)}) > 1
    later = BucketStream(buckets, size, seed=3)  # a run that goes on: any step, in any order
    for at in (step - 1, 3, 0, step // 2):
        again, whole = later.at(np.arange(at * size, (at + 1) * size)), stream.at(np.arange(at * size, (at + 1) * size))
        assert all(np.array_equal(one, other) for one, other in zip(again, whole, strict=True))
    if size > 1:
        with pytest.raises(ValueError, match="one step"):
            stream.at(np.arange(1, size + 1))


@pytest.mark.parametrize("window", [1, 3])
def test_buckets_go_through_the_shards_in_one_order(window: int) -> None:
    """Every example once a round; at any time the examples of a few neighbouring shards are read."""
    rng, sizes = np.random.default_rng(1), [40, 0, 25, 60, 5, 44, 30, 51, 20, 33]
    bounds = np.cumsum([0, *sizes])
    total, size, seed = int(bounds[-1]), 4, 5
    buckets = rng.choice([0, 3, 7], total, p=[0.6, 0.35, 0.05])
    stream = BucketStream(buckets, size, seed, bounds, window)
    shown: dict[int, list[int]] = {0: [], 3: [], 7: []}
    for step in range(sum(stream.begun(6))):
        indices, _, bucket = stream.at(np.arange(step * size, (step + 1) * size))
        shown[bucket] += indices.tolist()
    rounds = []
    for bucket, row in shown.items():
        members = np.flatnonzero(buckets == bucket).tolist()
        whole = [row[start : start + len(members)] for start in range(0, len(row) - len(members) + 1, len(members))]
        assert len(whole) >= 4 and all(sorted(part) == members for part in whole)
        rounds.append([[int(np.searchsorted(bounds, i, "right")) - 1 for i in part] for part in whole])
        assert whole[0] != whole[1]
    for together in zip(*rounds, strict=False):  # a round of each bucket: the same windows of shards, one after another
        windows: list[set[int]] = []
        for shards in together:
            firsts = list(dict.fromkeys(shards))
            for shard in firsts:
                span = [at for at, other in enumerate(shards) if other == shard]
                between = set(shards[span[0] : span[-1] + 1])
                assert len(between) <= window
            windows.append(set(firsts))
        if window == 1:
            first = list(dict.fromkeys(together[0]))
            for shards in together[1:]:
                assert list(dict.fromkeys(shards)) == [shard for shard in first if shard in shards]


def test_a_stream_in_buckets_holds_few_bytes_an_example() -> None:
    count, base = 2**20, 2**19
    sides = np.tile(np.array([[4, 3], [3, 4], [1, 1], [2, 1]], np.uint32), (count // 4, 1))
    shapes = bucket_shapes(512, 64, 2.0)

    def most(bounds: np.ndarray | None) -> int:
        tracemalloc.start()
        try:
            stream = BucketStream(nearest(sides, shapes), 8, 0, bounds, 4)
            for step in range(0, count // 8, count // 80):
                stream.at(np.arange(step * 8, step * 8 + 8))
            return tracemalloc.get_traced_memory()[0] - base
        finally:
            tracemalloc.stop()

    assert most(None) <= 8 * count and most(np.arange(0, count + 1, 4096)) <= 4 * count


def put(folder: Path) -> None:
    folder.mkdir()
    for number in range(20):
        width, height = [(60, 40), (40, 60), (50, 48), (90, 30)][number % 4]
        column = np.arange(width, dtype=np.uint8) * 2
        pixels = np.stack([np.tile(column, (height, 1)), np.full((height, width), number * 10)] * 2, -1)[..., :3]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"picture {number}")
    turned = Image.new("RGB", (60, 40))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "20.jpg", exif=exif)
    (folder / "20.txt").write_text("on its side")
    (folder / "21.png").write_bytes(b"no image")
    (folder / "21.txt").write_text("broken")


def test_batches_in_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On any number of ranks, parts and workers; the sides are read once."""
    put(tmp_path / "images")
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    config = DataConfig(path=str(tmp_path / "images"), size=32, bucket_step=8, flip=0.5, max_failure_rate=0.5)
    dataset = open_dataset(config)
    sides = stored_sides(dataset)
    assert sides[[0, 1, 2, 20, 21]].tolist() == [[60, 40], [40, 60], [50, 48], [40, 60], [0, 0]]
    if dataset.source.index.folder is not None:  # files that are just written may not be known by their time
        monkeypatch.setattr("diptych.data.stored_sides.read_sides", lambda *_: pytest.fail("read twice"))
        assert np.array_equal(stored_sides(open_dataset(config)), sides)
    batches = ImageBatches(dataset, seed=1, batch_size=6)
    pieces = [list(range(step * 6, step * 6 + 6)) for step in range(12)]
    wanted = [batches(piece) for piece in pieces]
    shapes = Counter(tuple(batch["pixels"].shape[1:3]) for batch in wanted)
    assert {(24, 40), (40, 24), (32, 32)} <= shapes.keys() and all(h * w <= 32**2 for h, w in shapes)
    for batch, piece in zip(wanted, pieces, strict=True):
        for rank in range(3):
            part = ImageBatches(open_dataset(config), 1, batch_size=6)(Team(rank, 3, CPU).share(piece))
            assert torch.equal(part["pixels"], batch["pixels"][rank * 2 : rank * 2 + 2])
            assert part["key"] == batch["key"][rank * 2 : rank * 2 + 2]
    for how in ({"workers": 3, "worker_kind": "threads"}, {"workers": 2}):
        fresh = ImageBatches(open_dataset(config), 1, batch_size=6)
        found = list(prefetched(fresh, iter(pieces), settings(**how), CPU))
        assert [batch["key"] for batch in found] == [batch["key"] for batch in wanted]
        for batch, other in zip(found, wanted, strict=True):
            bytes_again = ((batch["picture"] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
            assert torch.equal(bytes_again, other["pixels"])
    validation = dataset.split("all").config.unchanged
    assert validation.bucket_step == 0


@pytest.mark.parametrize(
    ("recipe", "changes", "what"),
    [
        ("judge", {}, "square"),
        ("emoji-autoencoder", {"data.crop": 32}, "crop"),
        ("emoji-autoencoder", {"data.bucket_step": 4}, "multiple of 8"),
        ("emoji-autoencoder", {"data.bucket_step": 24}, "divide size"),
        ("emoji-autoencoder", {"training.evaluation": {"images": 2}}, "evaluation.images must be 0"),
    ],
)
def test_what_takes_no_buckets_says_so(recipe: str, changes: dict[str, Any], what: str) -> None:
    base = get(recipe).to_dict()
    for field, value in {"data.bucket_step": 8, **changes}.items():
        part, _, name = field.partition(".")
        base[part][name] = value
    with pytest.raises(UserError, match=what):
        type(get(recipe)).from_dict(base)


def test_filters_held_out_examples_and_buckets_together_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """Counted over epochs: of the examples that are kept each as often as the others of its bucket, and no other."""
    samples, kept = [], set[str]()
    for number in range(60):
        file = io.BytesIO()
        Image.new("RGB", [(60, 40), (40, 60), (50, 50)][number % 3]).save(file, "PNG")
        kind = "single" if number % 4 else "scene"
        meta = {"kind": kind, "caption": f"picture {number}"}
        samples.append((f"{number:03d}", {"png": file.getvalue(), "json": json.dumps(meta).encode()}))
        kept |= {f"{number:03d}"} if kind == "single" else set()
    for shard in range(3):
        write_shard(tmp_path / f"{shard}.tar", samples[shard * 20 : shard * 20 + 20])
    config = DataConfig(path=str(tmp_path), size=32, bucket_step=8, kinds=("single",), held_out=0.2)
    train = open_dataset(config)
    held = {example.key for example in train.split("held-out").readable()}
    assert held and held < kept
    batches = ImageBatches(train, seed=1, batch_size=5)
    stream = batches.stream
    assert isinstance(stream, BucketStream) and stream.n_examples == len(kept) - len(held)
    shown, epochs = Counter[str](), 5
    for step in range(sum(stream.begun(epochs))):
        batch = batches(list(range(step * 5, step * 5 + 5)))
        shapes = {(60, 40): (24, 40), (40, 60): (40, 24), (50, 50): (32, 32)}
        sides = {[(60, 40), (40, 60), (50, 50)][int(key) % 3] for key in batch["key"]}
        assert len(sides) == 1 and tuple(batch["pixels"].shape[1:3]) == shapes[sides.pop()]
        shown.update(batch["key"])
    assert shown.keys() == kept - held
    assert set(shown.values()) <= {epochs - 1, epochs} and sum(shown.values()) > epochs * (len(kept - held)) - 15
