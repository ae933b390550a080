import io
import json
import pickle
import random
import tarfile

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import UserError
from diptych.data import DataConfig, open_dataset, shard_files
from diptych.data.shards import Shard, write_shard
from tests.data.tiny import foreign_shard, image_dataset, noise_png, png


def samples(count=5):
    for i in range(count):
        meta = {"captions": [f"caption {i}", f"other {i}"], "kind": "single", "split": "train"}
        yield f"key-{i}", {"png": noise_png(16, i), "json": json.dumps(meta).encode(), "txt": f"caption {i}".encode()}


def test_the_same_samples_give_the_same_bytes(tmp_path):
    first = write_shard(tmp_path / "a.tar", samples())
    second = write_shard(tmp_path / "b.tar", samples())
    assert first["sha256"] == second["sha256"]
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert first["samples"] == 5
    assert first["bytes"] == (tmp_path / "a.tar").stat().st_size


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield from samples(2)
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "a.tar", broken())
    assert list(tmp_path.iterdir()) == []


def test_members_are_read_back_by_index(tmp_path):
    write_shard(tmp_path / "a.tar", samples())
    shard = Shard(tmp_path / "a.tar")
    for i, (key, members) in reversed(list(enumerate(samples()))):
        assert shard.entries[i].key == key
        assert {e: shard.read(i, e) for e in members} == members
    again = pickle.loads(pickle.dumps(shard))  # as a data loader's worker gets it
    assert again.read(2, "txt") == b"caption 2"


def test_the_webdataset_library_reads_our_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    write_shard(tmp_path / "a.tar", samples())
    read = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode("rgb8"))
    assert [one["__key__"] for one in read] == [f"key-{i}" for i in range(5)]
    assert [one["txt"] for one in read] == [f"caption {i}" for i in range(5)]
    ours = open_dataset(DataConfig(path=str(tmp_path), size=16))
    for i, one in enumerate(read):
        np.testing.assert_array_equal(one["png"], ours[i].image)
        assert one["json"]["captions"] == list(ours[i].captions)


def test_we_read_shards_of_the_webdataset_library(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(4):
            pixels = np.full((16, 16, 3), 40 * i, dtype=np.uint8)
            writer.write({"__key__": f"folder/sample{i}", "png": pixels, "json": {"caption": f"grey {i}"}, "cls": i})
    data = open_dataset(DataConfig(path=str(tmp_path), size=16))
    assert [data[i].captions for i in range(4)] == [(f"grey {i}",) for i in range(4)]
    assert [int(data[i].image.mean()) for i in range(4)] == [0, 40, 80, 120]
    assert data[1].key == "folder/sample1"


def test_shards_as_img2dataset_writes_them(tmp_path):
    image_dataset(tmp_path / "00000.tar", 4)
    image_dataset(tmp_path / "00001.tar", 3)
    data = open_dataset(DataConfig(path=str(tmp_path), size=16))
    assert len(data) == 7
    assert data[5].captions == ("picture 1",)
    assert data[5].image.shape == (16, 16, 3)
    assert data[5].meta["url"]


def test_the_text_serves_where_the_json_has_no_caption(tmp_path):
    foreign_shard(tmp_path / "a.tar", [("0.png", png()), ("0.json", b'{"width": 20}'), ("0.txt", b" a red square\n")])
    assert open_dataset(DataConfig(path=str(tmp_path), size=8))[0].captions == ("a red square",)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a member was unpickled",))


def test_nothing_is_ever_unpickled(tmp_path):
    trap = pickle.dumps(Trap())
    members = [("0.png", png()), ("0.txt", b"fine"), ("0.pyd", trap), ("0.pkl", trap), ("0.cls", trap), ("0.pth", trap)]
    foreign_shard(tmp_path / "a.tar", [*members, ("1.png", trap), ("1.txt", b"a pickle that says it is a PNG")])
    data = open_dataset(DataConfig(path=str(tmp_path), size=8))
    assert data[0].captions == data[1].captions == ("fine",)
    assert set(data[0].meta) == {"captions"}
    assert [key for _, key in data.quarantine.broken] == ["1"]


def test_a_truncated_shard_yields_its_complete_examples(tmp_path):
    path = image_dataset(tmp_path / "a.tar", 30)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 + 700])
    data = open_dataset(DataConfig(path=str(tmp_path), size=8, max_failure_rate=0.2))
    assert 10 <= len(data) <= 20
    assert all(data[i].captions for i in range(len(data)))
    assert data.quarantine.broken


def test_a_broken_header_is_not_passed_over_in_silence(tmp_path):
    path = image_dataset(tmp_path / "a.tar", 10)
    offset = Shard(path).entries[6].members["jpg"][0] - 512
    data = bytearray(path.read_bytes())
    data[offset : offset + 512] = b"?" * 512
    path.write_bytes(data)
    shard = Shard(path)
    assert len(shard) == 6
    assert shard.problem


def test_random_bytes_in_a_shard_do_not_raise(tmp_path):
    """Fuzz: flipped bytes anywhere give quarantined examples or one clear error, nothing else."""
    path = image_dataset(tmp_path / "a.tar", 12)
    whole = path.read_bytes()
    rng = random.Random(7)
    read = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 20, 400))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(len(data) // 2, len(data) + 1)])
        config = DataConfig(path=str(tmp_path), size=8, max_failure_rate=1.0, quarantine=str(tmp_path / "q.jsonl"))
        try:
            dataset = open_dataset(config)
            images = [dataset[i].image for i in range(len(dataset))]
        except UserError:
            continue
        read += len(images)
        assert all(image.shape == (8, 8, 3) for image in images)
    assert read > 100


def test_a_folder_swapped_under_an_open_dataset_does_not_mix(tmp_path):
    write_shard(tmp_path / "a.tar", samples(3))
    data = open_dataset(DataConfig(path=str(tmp_path), size=16))
    before = data[2].image
    write_shard(tmp_path / "a.tar", [("x", {"png": png(), "txt": b"other"})])
    np.testing.assert_array_equal(data[2].image, before)
    assert data[1].captions[0] == "caption 1"


def test_a_file_that_is_no_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"hello" * 400)
    with pytest.raises(UserError, match=r"a\.tar|no pictures"):
        open_dataset(DataConfig(path=str(tmp_path), size=8))


def test_a_tar_of_odd_things(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        long = "deep/" * 30 + "name.png"
        for name, data in ((long, png()), (long.replace("png", "txt"), b"a long way down")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = open_dataset(DataConfig(path=str(tmp_path), size=8))
    assert len(data) == 1
    assert data[0].captions == ("a long way down",)
    Image.fromarray(data[0].image)


def test_an_example_is_read_ahead_by_one_read_and_a_broken_one_fails_in_its_place(tmp_path, monkeypatch):
    members = [(f"{n}", {"png": noise_png(16, n), "txt": f"caption {n}".encode()}) for n in range(4)]
    members[2] = ("2", {"png": noise_png(16, 2), "json": b"{"})
    write_shard(tmp_path / "a.tar", members)
    config, reads = DataConfig(path=str(tmp_path), size=16, max_failure_rate=1.0), []
    plain, data = open_dataset(config), open_dataset(config)
    expected = [next(plain.tries(index))[1] for index in range(4)]
    read = shard_files.FILES.read
    monkeypatch.setattr(shard_files.FILES, "read", lambda *place: reads.append(place[2:]) or read(*place))
    data.fetch(range(4), images=True)
    assert len(reads) == 4 and not data.quarantine.broken
    for index, example in enumerate(expected):
        found = next(data.tries(index))[1]
        assert (found is None) == (example is None) == (index == 2)
        if found is not None and example is not None:
            assert (found.captions, found.key) == (example.captions, example.key)
            np.testing.assert_array_equal(found.image, example.image)
        if index == 1:
            assert len(reads) == 4
    assert data.quarantine.broken == plain.quarantine.broken and len(data.quarantine.broken) == 1
    reads.clear()
    data.fetch(range(4))  # metadata alone are wanted: an image need not be read for them
    assert not reads
