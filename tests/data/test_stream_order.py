"""Orders that are computed: every example once an epoch, as likely in every place, whoever asks for which places."""

from collections import Counter

import numpy as np
import pytest

from diptych.core.errors import UserError
from diptych.data import DataConfig, SampleStream, open_dataset
from diptych.data.stream import ImageBatches
from diptych.data.stream_order import KeyedOrder, WindowedOrder, permuted
from tests.data.tiny import foreign_shard, png


@pytest.mark.parametrize("count", [*range(1, 40), 997, 65_536, 100_003])
def test_every_example_comes_once_an_epoch(count):
    order = KeyedOrder(count, 3)
    epochs = [order.at(np.full(count, epoch), np.arange(count)) for epoch in range(2)]
    assert all(np.array_equal(np.sort(epoch), np.arange(count)) for epoch in epochs)
    if count > 20:
        assert not np.array_equal(*epochs) and not np.array_equal(epochs[0], np.arange(count))


def test_places_are_computed_alone():
    order = KeyedOrder(1000, 5)
    whole = order.at(np.full(1000, 2), np.arange(1000))
    assert [int(order.at(np.array([2]), np.array([p]))[0]) for p in (999, 0, 517)] == whole[[999, 0, 517]].tolist()


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_every_order_is_as_likely(count):
    """Each example in each place, and each pair of neighbours, in 20,000 epochs."""
    epochs = 20_000
    places = np.tile(np.arange(count), epochs)
    keys = np.random.default_rng(0).integers(0, 2**62, epochs).repeat(count)
    found = permuted(places, np.full(len(places), count), keys).reshape(epochs, count)
    for pairs, expected in (
        (zip(places, found.ravel(), strict=True), epochs / count),
        (zip(found[:, 0], found[:, 1], strict=True), epochs / (count * (count - 1))),
    ):
        counts = Counter((int(a), int(b)) for a, b in pairs)
        assert all(abs(number - expected) < 6 * expected**0.5 for number in counts.values())
        assert len(counts) >= count * (count - 1)


def test_an_order_of_many_takes_no_memory():
    order = KeyedOrder(10**12, 1)
    found = order.at(np.zeros(10_000, np.int64), np.arange(10_000))
    assert len(set(found.tolist())) == 10_000 and abs(found.mean() / 10**12 - 0.5) < 0.02


SIZES = [5, 0, 3, 9, 1, 1, 7, 4]


@pytest.mark.parametrize("window", [1, 2, 3, 8, 100])
def test_shards_are_read_within_stretches(window):
    bounds = np.cumsum([0, *SIZES])
    total, order = bounds[-1], WindowedOrder(bounds, 7, window)
    epochs = [order.at(np.full(total, epoch), np.arange(total)) for epoch in range(3)]
    assert all(sorted(epoch.tolist()) == list(range(total)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    shards = np.searchsorted(bounds, epochs[0], side="right") - 1
    order_of = list(dict.fromkeys(shards.tolist()))
    windows = [set(shards[places].tolist()) for places in stretches(epochs[0], window, shards)]
    assert all(len(one) <= window for one in windows) and sum(map(len, windows)) == len(order_of) == 7
    backwards = [int(order.at(np.array([1]), np.array([place]))[0]) for place in range(total)[::-1]]
    assert backwards[::-1] == epochs[1].tolist()


def stretches(epoch, window, shards):
    """Places of windows: each ends where so many shards are complete."""
    start, sizes = 0, Counter(shards.tolist())
    while start < len(epoch):
        end, seen = start, set()
        while end < len(epoch) and (len(seen) < window or sum(sizes[s] for s in seen) > end - start):
            seen.add(int(shards[end]))
            end += 1
            if len(seen) > window:
                raise AssertionError("more shards than a window has")
        yield list(range(start, end))
        start = end


def shards(folder):
    folder.mkdir()
    for number, size in enumerate((4, 3, 5)):
        members = [
            (f"{number}-{i}.{end}", png() if end == "png" else b"x") for i in range(size) for end in ("png", "txt")
        ]
        foreign_shard(folder / f"{number}.tar", members)
    return folder


@pytest.mark.parametrize("options", [{}, {"shuffle": "shards", "shuffle_window": 2}])
def test_any_number_of_workers_reads_every_example_once(tmp_path, options):
    folder = shards(tmp_path / "data")
    keys = sorted(f"{number}-{i}" for number, size in enumerate((4, 3, 5)) for i in range(size))
    for ranks, batch in ((1, 4), (2, 3), (3, 2), (4, 1)):
        seen = []
        for rank in range(ranks):  # each opens the data for itself, and resumes in the middle of each epoch
            for part in (range(8), range(8, 24)):
                data = open_dataset(DataConfig(path=str(folder), size=8, **options))
                order = ImageBatches(data, 3, "counter").order
                for position in part:
                    if position // batch % ranks == rank:
                        seen.append((position, data.key(order([position]).examples[0][0])[1]))
        epochs = [[key for position, key in sorted(seen) if position // 12 == epoch] for epoch in range(2)]
        assert [sorted(epoch) for epoch in epochs] == [keys, keys]
        assert epochs[0] != epochs[1]


def test_the_order_of_runs_of_earlier_versions(tmp_path):
    data = open_dataset(DataConfig(path=str(shards(tmp_path / "data")), size=8))
    earlier = [index for index, _ in ImageBatches(data, 3).order(range(30)).examples]
    assert earlier == [SampleStream(12, 3)[p][0] for p in range(30)]
    assert earlier[:12] == [int(i) for i in np.random.Generator(np.random.PCG64(FIRST_KEY)).permutation(12)]
    now = [index for index, _ in ImageBatches(data, 3, "counter").order(range(30)).examples]
    assert now != earlier and sorted(now[:12]) == sorted(earlier[:12])


FIRST_KEY = 4_307_004_014_346_495_028
"""`mix(3, 0)`, from which earlier versions drew the order of the first epoch of seed 3."""


def test_a_folder_has_no_shards_to_mix(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.txt").write_text("x")
    data = open_dataset(DataConfig(path=str(tmp_path), size=8, shuffle="shards"))
    with pytest.raises(UserError, match=r"holds no shards: set data\.shuffle=all"):
        ImageBatches(data, 0)
