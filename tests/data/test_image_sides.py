"""The sides of images from their headers: the same as of whole images, from few bytes, once."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.core.caches import short_hash
from diptych.core.image_files import opened, orientation
from diptych.data import DataConfig, open_dataset, remote
from diptych.data import stored_sides as stored
from diptych.data.decode import decode
from diptych.data.image_sides import FIRST, image_size, sides_of
from diptych.data.quarantine import BrokenExample
from diptych.data.selection import Rules
from diptych.data.shards import write_shard
from diptych.data.stored_sides import read_sides, stored_sides
from tests.data.test_remote import Store

NOISE = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)


def encoded(format: str, turn: int = 1, alpha: bool = False, **options: object) -> bytes:
    image, file = Image.fromarray(NOISE), io.BytesIO()
    exif = image.getexif()
    if turn != 1:
        exif[0x0112] = turn
        options["exif"] = exif
    image.convert("RGBA" if alpha else "RGB").save(file, format, **options)
    return file.getvalue()


IMAGES = {
    "plain.jpg": encoded("JPEG"),
    "turned.jpg": encoded("JPEG", turn=6),
    "upside-down.jpg": encoded("JPEG", turn=3),
    "long-header.jpg": encoded("JPEG", turn=8, icc_profile=bytes(200_000)),
    "progressive.jpg": encoded("JPEG", progressive=True),
    "plain.png": encoded("PNG"),
    "turned.png": encoded("PNG", turn=5),
    "lossy.webp": encoded("WEBP", quality=95),
    "lossless.webp": encoded("WEBP", lossless=True),
    "alpha.webp": encoded("WEBP", alpha=True),
    "turned.webp": encoded("WEBP", turn=6, quality=95),
    "empty.png": b"",
    "broken.jpg": b"\xff\xd8\xff" + bytes(50_000),
    "cut.png": encoded("PNG")[:20],
    "text.png": b"no image" * 9000,
}
READ = {"long-header.jpg": (FIRST, 8 * FIRST, 64 * FIRST), "turned.webp": (FIRST, 8 * FIRST)}
"""What is read of those whose header is not within the first bytes."""


def whole(data: bytes) -> tuple[int, int]:
    try:
        with opened(data) as image:
            return image.size[::-1] if orientation(image) >= 5 else image.size
    except Exception:
        return 0, 0


@pytest.mark.parametrize("name", IMAGES)
def test_headers_say_what_images_say(name: str) -> None:
    data, asked = IMAGES[name], []

    def start(size: int) -> bytes:
        asked.append(size)
        return data[:size]

    found = sides_of(start)
    assert found == whole(data) and (found != (0, 0)) == (name[:3] not in ("emp", "bro", "cut", "tex"))
    if found != (0, 0):
        assert tuple(asked) == READ.get(name, (FIRST,)) and len(data) > FIRST


def test_too_many_pixels_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name in ("plain.jpg", "plain.png", "lossy.webp"):
        assert sides_of(lambda size, name=name: IMAGES[name][:size]) == (0, 0)


def put(folder: Path, shards: int) -> list[tuple[int, int]]:
    """Shards of the images, the text before or behind them, one without an image."""
    folder.mkdir(exist_ok=True)
    wanted = []
    for shard in range(shards):
        samples = [("0", {"txt": b"none"})]
        for name, data in list(IMAGES.items())[shard:]:
            stem, _, extension = name.partition(".")
            members = {"json": b'{"width": 1, "height": 2}', extension: data, "txt": b"text"}
            samples.append((f"{stem}-{extension}", members))
        if not (folder / f"{shard}.tar").exists():
            write_shard(folder / f"{shard}.tar", samples)
        wanted += [(0, 0), *(whole(data) for data in list(IMAGES.values())[shard:])]
    return wanted


BROKEN = {name for name, data in IMAGES.items() if whole(data) == (0, 0)}


@pytest.mark.parametrize("place", ["folder", "shard", "store"])
def test_rules_see_images_turned_as_training_does_and_read_headers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "data").mkdir()
    samples, path, store = [], str(tmp_path / "data"), None
    for name, data in IMAGES.items():
        stem, _, extension = name.partition(".")
        samples.append((f"{stem}-{extension}", {extension: data, "txt": b"text"}))
        if place == "folder":
            (tmp_path / "data" / f"{stem}-{extension}.{extension}").write_bytes(data)
            (tmp_path / "data" / f"{stem}-{extension}.txt").write_text("text")
    if place != "folder":
        write_shard(tmp_path / "data" / "0.tar", samples)
    if place == "store":
        pytest.importorskip("obstore")
        store = Store(tmp_path / "data")
        threading.Thread(target=store.serve_forever, daemon=True).start()
        path = f"{store.address}/0.tar"
    for source in ("folders.FolderSource.image_bytes", "shard_scan.Entry.image"):
        monkeypatch.setattr(f"diptych.data.{source}", lambda *_: pytest.fail("a whole image was read"))
    try:
        for rule, kept in (("width>=250", {300}), ("height>=250", {200}), ("side>=200", {200, 300})):
            dataset = open_dataset(DataConfig(path=path, keep=(rule,), max_failure_rate=1.0))
            wanted = {name: whole(data) for name, data in IMAGES.items() if whole(data)[0] in kept}
            names = [Path(dataset.key(index)[1]).stem.replace("-", ".") for index in range(len(dataset))]
            assert sorted(names) == sorted(name.replace("-", ".") for name in wanted) and len(wanted) > 3
            sides = {name.replace("-", "."): size for name, size in wanted.items()}
            assert [dataset.sides(index) for index in range(len(dataset))] == [sides[name] for name in names]
            reasons = {Path(key).stem.replace("-", "."): reason for _, key, reason in dataset.left_out}
            assert set(reasons) == {name.replace("-", ".") for name in BROKEN}
            assert all(reason.startswith(("not a PNG", "a damaged image (")) for reason in reasons.values())
    finally:
        if store is not None:
            store.shutdown()
            store.server_close()


def test_what_earlier_versions_found_by_other_sides_is_not_used_again() -> None:
    names = {rule: Rules(filters=(rule,)).name for rule in ("width>1", "height>1", "side>1")}
    for rule, name in names.items():
        assert (name == short_hash(Rules(filters=(rule,)).to_json())) == (rule == "side>1")


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_image_is_called_the_same_by_its_header_and_by_its_pixels(name: str) -> None:
    with pytest.raises(BrokenExample) as by_pixels:
        decode(IMAGES[name], 8)
    with pytest.raises(BrokenExample) as by_header:
        image_size(lambda size: IMAGES[name][:size])
    assert str(by_header.value) == str(by_pixels.value)


def test_shards_on_a_disk_and_in_a_store_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    wanted, asked = put(tmp_path / "data", 2), list[int]()
    monkeypatch.setattr("diptych.data.shard_index.settled", lambda *_: True)  # files that were just written
    monkeypatch.setattr(stored, "sides_of", lambda start: asked.append(1) or sides_of(start))
    store = Store(tmp_path / "data")
    threading.Thread(target=store.serve_forever, daemon=True).start()
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    try:
        for path in (str(tmp_path / "data"), f"{store.address}/{{0..2}}.tar"):
            config = DataConfig(path=path, max_failure_rate=1.0)
            (tmp_path / "data" / "2.tar").unlink(missing_ok=True)
            dataset = open_dataset(config)
            requests = len(store.requests)
            assert stored_sides(dataset).tolist() == list(map(list, wanted))
            assert len(store.requests) - requests == (2 if "http" in path else 0)  # each shard from first to last
            asked.clear()
            assert stored_sides(open_dataset(config)).tolist() == list(map(list, wanted)) and not asked
            more = put(tmp_path / "data", 3)
            assert stored_sides(open_dataset(config)).tolist() == list(map(list, more))
            assert len(asked) == len(more) - len(wanted)  # of the new shard alone
    finally:
        store.shutdown()
        store.server_close()


def test_images_of_a_folder(tmp_path: Path) -> None:
    for name, data in IMAGES.items():
        (tmp_path / name).write_bytes(data)
    dataset = open_dataset(DataConfig(path=str(tmp_path)), captions=False)
    names = [dataset.source.key(number)[1] for number in range(len(dataset.source))]
    assert names == sorted(IMAGES)
    assert read_sides(dataset, None).tolist() == [list(whole(IMAGES[name])) for name in names]
