"""The index of a data set: made once, shared by processes, small in memory, and never of what was changed."""

import json
import os
import pickle
import threading
import time
import tracemalloc

import numpy as np
import pytest

from diptych.core.errors import UserError
from diptych.data import DataConfig, SampleStream, folder_scan, open_dataset, shard_index
from diptych.data.openfiles import FILES
from diptych.data.selection import CHOSEN, HELD_OUT, TRAIN, Verdict, choose
from diptych.data.shard_pieces import ShardPiece
from diptych.data.shard_scan import ROW
from tests.data.tiny import foreign_shard, png


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def aged(folder, seconds=60):
    """Let files and folders seem as old as data usually are: of younger ones no index is kept."""
    then = time.time_ns() - seconds * 10**9
    for place, folders, files in os.walk(folder, topdown=False):
        for name in (*files, *folders, "."):
            os.utime(os.path.join(place, name), ns=(then, then))


def shards(folder, count=4, each=5):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        members = []
        for i in range(each):
            meta = {"caption": f"{number}-{i}", "split": "held-out" if i == 0 else "train"}
            members += [(f"{number}-{i}.png", png()), (f"{number}-{i}.json", json.dumps(meta).encode())]
        foreign_shard(folder / f"{number}.tar", members)
    aged(folder)
    return folder


def keys(folder, **options):
    data = open_dataset(DataConfig(path=str(folder), size=8, **options))
    return [data.source.key(int(index))[1] for index in data._indices]


@pytest.fixture
def read(monkeypatch):
    """The names of the shards that are read to be indexed."""
    names, whole = [], shard_index.index_piece

    def index_piece(file, *arguments):
        names.append(file.name)
        return whole(file, *arguments)

    monkeypatch.setattr(shard_index, "index_piece", index_piece)
    return names


def test_shards_are_read_once_and_a_changed_one_alone(tmp_path, read):
    folder = shards(tmp_path / "data")
    first = keys(folder)
    assert first == [f"{n}-{i}" for n in range(4) for i in range(1, 5)] and len(read) == 4
    assert keys(folder) == first and len(read) == 4
    assert keys(folder, split="held-out") == [f"{n}-0" for n in range(4)] and len(read) == 4
    foreign_shard(folder / "2.tar", [("new.png", png()), ("new.json", b'{"caption": "x", "split": "train"}')])
    foreign_shard(folder / "4.tar", [("last.png", png()), ("last.txt", b"y")])
    for name in ("2.tar", "4.tar"):
        os.utime(folder / name, (1, 1))
    changed = [*first[:8], "new", *first[12:], "last"]
    assert keys(folder) == keys(folder) == changed and read[4:] == ["2.tar", "4.tar"]


def test_a_shard_that_was_just_written_is_read_again(tmp_path, read):
    """A file may be written twice within the resolution of its time."""
    folder = shards(tmp_path / "data", 1)
    foreign_shard(folder / "0.tar", [("a.png", png()), ("a.txt", b"x")])
    assert keys(folder) == keys(folder) == ["a"] and len(read) == 2


def test_a_killed_indexing_goes_on_where_it_was(tmp_path, read, monkeypatch):
    folder = shards(tmp_path / "data")
    counted = shard_index.index_piece

    def killed(file, *arguments):
        if file.name == "2.tar":
            raise KeyboardInterrupt
        return counted(file, *arguments)

    monkeypatch.setattr(shard_index, "index_piece", killed)
    with pytest.raises(KeyboardInterrupt):
        keys(folder)
    monkeypatch.setattr(shard_index, "index_piece", counted)
    assert len(keys(folder)) == 16 and sorted(read) == ["0.tar", "1.tar", "2.tar", "3.tar"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_index_is_made_again(tmp_path, cache, damage, monkeypatch):
    folder = shards(tmp_path / "data")
    first = keys(folder)
    for path in cache.rglob("*.npz"):
        data = bytearray(path.read_bytes())
        if damage == "gone":
            path.unlink()
            continue
        data[len(data) // 2] ^= 255
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    for path in cache.rglob("notes.json"):
        path.write_text(path.read_text()[:-5])
    assert keys(folder) == first


def test_processes_wait_for_each_other(tmp_path, read):
    """As ranks of torchrun: each shard is read once, by whichever is first."""
    folder, found = shards(tmp_path / "data"), []
    threads = [threading.Thread(target=lambda: found.append(keys(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(one == found[0] for one in found) and len(read) == 4


def test_other_processes_read_the_same(tmp_path, monkeypatch, read):
    """What cannot be read there is named here."""
    folder = shards(tmp_path / "data", 5)
    (folder / "3.tar").write_bytes((folder / "3.tar").read_bytes()[:5000])
    aged(folder)
    config = DataConfig(path=str(folder), size=8, max_failure_rate=0.5)
    expected = open_dataset(config)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(shard_index, "ALONE", 0.0)
    monkeypatch.setattr(shard_index, "cores", lambda: 2)
    before = len(read)
    data = open_dataset(config)
    assert read[before:] == ["0.tar"]  # the others elsewhere
    assert [data[i].key for i in range(len(data))] == [expected[i].key for i in range(len(expected))]
    assert data.quarantine.broken == expected.quarantine.broken and data.quarantine.broken
    again = pickle.dumps(data)  # as a process that reads batches gets it
    assert len(again) < 20_000 and pickle.loads(again)[3].key == data[3].key


def test_a_data_set_of_many_examples_takes_few_bytes_of_each(tmp_path, monkeypatch, count=200_000):
    """At most 16, with everything that is held: here 0.25 for marks, and what a stream holds of its order."""
    folder = shards(tmp_path / "data", 4, 1)

    def many(file, *_):
        rows = np.zeros(count // 4, ROW)
        rows["hash"] = np.random.default_rng(int(file.name[0])).integers(0, 2**64, len(rows), np.uint64)
        verdict = Verdict(
            np.full(len(rows), CHOSEN, np.uint8), np.zeros(0, np.uint64), {"seen": 0, "broken": [], "filtered": {}}
        )
        return ShardPiece(rows, {"problem": None, "skipped": {}}, verdict)

    monkeypatch.setattr(shard_index, "index_piece", many)
    tracemalloc.start()
    try:
        data = open_dataset(DataConfig(path=str(folder), size=8, held_out=0.1))
        held_out = data.split("held-out")
        streams = [SampleStream(len(split), 3) for split in (data, held_out)]
        assert [stream[5][0] < len(data) for stream in streams]
        bytes_each = tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()
    assert abs(len(held_out) / count - 0.1) < 0.01 and len(data) + len(held_out) == count
    assert bytes_each < 16


@pytest.mark.slow
def test_a_million_examples_take_few_bytes_of_each_and_open_at_once(tmp_path, monkeypatch):
    test_a_data_set_of_many_examples_takes_few_bytes_of_each(tmp_path, monkeypatch, 1_000_000)
    began = time.process_time()
    open_dataset(DataConfig(path=str(tmp_path / "data"), size=8, held_out=0.1))
    assert time.process_time() - began < 0.5


def test_the_share_that_is_held_out_leaves_stated_splits():
    states = np.array([CHOSEN, CHOSEN | TRAIN, CHOSEN | HELD_OUT, 0, CHOSEN, CHOSEN], np.uint8)
    hashes = np.array([0, 0, 2**64 - 1, 0, 2**63 - 1, 2**63], np.uint64)
    verdict = Verdict(states, np.array([1, 1, 1, 1, 2, 1], np.uint64), {})
    assert {name: found.tolist() for name, found in choose(verdict, hashes, 0.5, 1).items()} == {
        "train": [1, 5],
        "held-out": [0, 2, 4],
    }
    assert {name: found.tolist() for name, found in choose(verdict, hashes, 0.0, 2).items()} == {
        "train": [0, 1, 5],
        "held-out": [2],
    }


def test_a_fork_reads_although_a_thread_held_the_files(tmp_path):
    data = open_dataset(DataConfig(path=str(shards(tmp_path / "data")), size=8))
    expected = data[0].key
    with FILES._lock:
        child = os.fork()
        if not child:
            os._exit(0 if data[0].key == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Folders


def images(folder):
    for name, text in (("a.png", "one"), ("sub/b.png", "two"), ("sub/c.png", None)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png())
        if text:
            (folder / name).with_suffix(".txt").write_text(text)
    (folder / "sub" / "metadata.csv").write_text("file_name,text,split\nc.png,three,train\n")
    aged(folder)
    return folder


def captions(folder, **options):
    data = open_dataset(DataConfig(path=str(folder), size=8, max_failure_rate=1.0, **options))
    return {data[i].key: data[i].captions for i in range(len(data))}


CHANGES = {
    "an image": lambda folder: (folder / "sub" / "d.png").write_bytes(png()),
    "a caption": lambda folder: (folder / "a.txt").write_text("uno"),
    "a table": lambda folder: (folder / "sub" / "metadata.csv").write_text("file_name,text\nc.png,tres\n"),
    "a name": lambda folder: (folder / "a.txt").rename(folder / "a.caption"),
    "nothing left": lambda folder: (folder / "sub" / "b.txt").unlink(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_folder_is_looked_through_once_until_it_changes(tmp_path, monkeypatch, what):
    folder = images(tmp_path / "data")
    first = captions(folder)
    assert first == {"a.png": ("one",), "sub/b.png": ("two",), "sub/c.png": ("three",)}
    with monkeypatch.context() as patch:
        patch.setattr(folder_scan, "FolderScan", lambda *_: pytest.fail("looked through again"))
        assert captions(folder) == first
        data = pickle.loads(pickle.dumps(open_dataset(DataConfig(path=str(folder), size=8))))
        assert data[2].captions == ("three",)
    CHANGES[what](folder)
    now = captions(folder)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "another"))
    assert now == captions(folder) and (now != first or what in ("an image", "a name"))


def test_no_cache_that_may_be_written_is_no_reason_to_stop(tmp_path, monkeypatch):
    folder = shards(tmp_path / "data")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "file"))
    assert len(keys(folder)) == 16
    assert len(captions(images(tmp_path / "images"))) == 3


def test_a_shard_that_is_replaced_is_an_error(tmp_path):
    folder = shards(tmp_path / "data")
    keys(folder)
    data = open_dataset(DataConfig(path=str(folder), size=8))
    FILES._close_idle(0)
    foreign_shard(tmp_path / "x.tar", [("new.png", png()), ("new.txt", b"x")])
    os.replace(tmp_path / "x.tar", folder / "0.tar")
    with pytest.raises(UserError, match=r"0\.tar was replaced while it was read: start again"):
        data[0]


def test_a_folder_named_from_here_is_read_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def names():
        return open_dataset(DataConfig(path="d", split="all"), captions=False).source

    os.mkdir("d")
    for name in ("a.png", "b.png"):
        (tmp_path / "d" / name).write_bytes(png())
    aged("d")
    assert len(names()) == len(names()) == 2
    (tmp_path / "d" / "c.gif").write_bytes(b"GIF89a")
    os.remove("d/a.png")
    assert len(names()) == 1 and list(names().skipped) == ["c.gif"]
    monkeypatch.chdir(tmp_path / "d")
    assert len(open_dataset(DataConfig(path="../d", split="all"), captions=False)) == 1
