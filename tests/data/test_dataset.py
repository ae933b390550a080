import io
import json
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import UserError
from diptych.data import DataConfig, open_dataset
from diptych.data.decode import decode
from tests.data.tiny import foreign_shard, image_dataset, png


def gradient(width, height):
    """Red grows to the right, green grows downwards."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None, :]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_the_centre_is_cropped_and_the_shorter_side_resized():
    image = decode(encoded(gradient(300, 100)), 50)
    assert image.shape == (50, 50, 3)
    assert abs(int(image[0, 0, 0]) - 85) < 6  # a third of the width cut on each side
    assert abs(int(image[0, -1, 0]) - 170) < 6
    assert image[0, 0, 1] < 8
    assert image[-1, 0, 1] > 247


def test_an_image_of_the_target_size_is_unchanged():
    image = gradient(32, 32)
    np.testing.assert_array_equal(decode(encoded(image), 32), np.asarray(image))


def test_small_images_are_enlarged():
    assert decode(png((3, 7)), 16).shape == (16, 16, 3)


def test_alpha_is_composited_on_white():
    assert decode(png((8, 8), (255, 0, 0, 0), "RGBA"), 8)[4, 4].tolist() == [255, 255, 255]
    half = decode(png((8, 8), (255, 0, 0, 128), "RGBA"), 8)[4, 4]
    assert half[0] == 255
    assert abs(int(half[1]) - 127) <= 1
    palette = Image.new("P", (8, 8), 0)
    assert decode(encoded(palette, transparency=0), 8)[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "CMYK", "I;16"])
def test_other_modes_become_rgb(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    source = gradient(16, 16).convert("L")
    image = Image.fromarray(np.asarray(source).astype(np.uint16) * 257) if mode == "I;16" else source.convert(mode)
    decoded = decode(encoded(image, kind), 16)
    assert decoded.shape == (16, 16, 3)
    assert decoded.dtype == np.uint8
    assert decoded[-1].mean() > decoded[0].mean() + 60  # it still grows lighter downwards


def test_exif_orientation_is_followed():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise
    image = decode(encoded(gradient(40, 40), "JPEG", exif=exif, quality=95), 40)
    assert image[0, :, 1].mean() > image[0, :, 0].mean() or image[0, 0, 1] > 200
    assert image[0, 0, 1] > 240  # what was at the bottom left is now at the top left
    assert image[-1, 0, 1] > 240
    assert image[-1, 0, 0] > 240


def bomb():
    """A PNG whose header claims 40,000 x 40,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


BROKEN = {
    "empty": b"",
    "text": b"<html>404</html>",
    "cut short": png((64, 64), format="JPEG")[:-200],
    "bomb": bomb(),
    "a GIF": encoded(gradient(8, 8), "GIF"),  # not on the list of formats
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_images_are_quarantined_and_replaced(tmp_path, what, caplog):
    image_dataset(tmp_path / "a.tar", 30, {7: BROKEN[what]})
    record = tmp_path / "run" / "quarantine.jsonl"
    data = open_dataset(DataConfig(path=str(tmp_path), size=8), record=record)
    with caplog.at_level(logging.WARNING):
        instead = data[7]
    assert instead.key != "000000007"
    assert data[7].key == instead.key
    assert list(data.quarantine.broken) == [("a.tar", "000000007")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]  # nothing is written beside the images
    record.parent.mkdir()
    data.quarantine.flush()
    again = open_dataset(DataConfig(path=str(tmp_path), size=8), record=record)
    assert again[7].key == instead.key
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(line["shard"], line["key"]) for line in lines] == [("a.tar", "000000007")]  # once, though opened twice
    assert lines[0]["reason"]
    assert "000000007" in caplog.text


def test_too_many_broken_images_raise_with_the_counts(tmp_path):
    image_dataset(tmp_path / "a.tar", 40, dict.fromkeys(range(0, 40, 4), b"broken"))
    data = open_dataset(DataConfig(path=str(tmp_path), size=8, max_failure_rate=0.1))
    with pytest.raises(UserError, match=r"\d+ of 2\d examples are broken, above the limit of 10\.0%"):
        for i in range(40):
            data[i]
    patient = open_dataset(DataConfig(path=str(tmp_path), size=8, max_failure_rate=0.5))
    assert len([patient[i] for i in range(40)]) == 40
    assert len(patient.quarantine.broken) == 10


def test_a_few_of_few_do_not_stop(tmp_path):
    image_dataset(tmp_path / "a.tar", 10, {1: b"", 2: b""})
    data = open_dataset(DataConfig(path=str(tmp_path), size=8))
    assert len([data[i] for i in range(10)]) == 10


def test_no_readable_example(tmp_path):
    image_dataset(tmp_path / "a.tar", 3, {0: b"", 1: b"", 2: b""})
    with pytest.raises(UserError, match="no readable example"):
        open_dataset(DataConfig(path=str(tmp_path), size=8))[0]


def test_an_example_without_caption_is_set_aside(tmp_path):
    foreign_shard(tmp_path / "a.tar", [("0.png", png()), ("0.txt", b"red"), ("1.png", png()), ("1.txt", b"  ")])
    data = open_dataset(DataConfig(path=str(tmp_path), size=8))
    assert data[0].captions == data[1].captions == ("red",)
    assert "no caption" in next(iter(data.quarantine.broken.values()))


def test_a_quarantine_that_cannot_be_written_is_no_reason_to_stop(tmp_path):
    image_dataset(tmp_path / "a.tar", 5, {0: b""})
    (tmp_path / "file").write_text("")
    data = open_dataset(DataConfig(path=str(tmp_path), size=8, quarantine=str(tmp_path / "file" / "q.jsonl")))
    assert data[0].captions
    assert len(data.quarantine.broken) == 1


def test_images_in_memory_are_decoded_once(tmp_path, monkeypatch):
    image_dataset(tmp_path / "a.tar", 3)
    data = open_dataset(DataConfig(path=str(tmp_path), size=8, in_memory=True))
    first = [data[i] for i in range(3)]
    monkeypatch.setattr("diptych.data.dataset.decode_image", lambda *_: pytest.fail("decoded again"))
    for one, again in zip(first, (data[i] for i in range(3)), strict=True):
        np.testing.assert_array_equal(one.image, again.image)


def entry(key, **meta):
    return [(f"{key}.png", png()), (f"{key}.json", json.dumps({"captions": [key], **meta}).encode())]


def test_split_kind_and_style_choose(tmp_path):
    members = [
        *entry("a", kind="single", style="noto", split="train"),
        *entry("b", kind="single", style="fluent", split="train"),
        *entry("c", kind="single", style="noto", split="held-out"),
        *entry("d", kind="scene", style="fluent", split="train"),
    ]
    foreign_shard(tmp_path / "a.tar", members)

    def keys(**options):
        data = open_dataset(DataConfig(path=str(tmp_path), size=8, **options))
        return "".join(data[i].key for i in range(len(data)))

    assert keys() == "abd"
    assert keys(split="held-out") == "c"
    assert keys(split="all") == "abcd"
    assert keys(kinds=("single",)) == "ab"
    assert keys(styles=("noto",), split="all") == "acd"  # styles choose among the single drawings
    assert keys(styles=("noto",), kinds=("single",)) == "a"
    with pytest.raises(UserError, match="no example of split"):
        keys(kinds=("video",))


def test_a_share_of_foreign_data_can_be_held_out(tmp_path):
    image_dataset(tmp_path / "a.tar", 60)

    def keys(split):
        data = open_dataset(DataConfig(path=str(tmp_path), size=8, split=split, held_out=0.3))
        return {data[i].key for i in range(len(data))}

    assert keys("train") | keys("held-out") == keys("all")
    assert not keys("train") & keys("held-out")
    assert 5 < len(keys("held-out")) < 30


# Folders


def put(folder, name, text=None, colour=(10, 20, 30)):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(colour=colour))
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")


def read(folder, **options):
    data = open_dataset(DataConfig(path=str(folder), size=8, **options))
    return {data[i].key: data[i].captions for i in range(len(data))}


def test_captions_in_text_files_in_nested_folders(tmp_path):
    put(tmp_path, "a.png", "one café\n")
    put(tmp_path, "deep/er/b.PNG", "two")
    assert read(tmp_path) == {"a.png": ("one café",), "deep/er/b.PNG": ("two",)}


@pytest.mark.parametrize("name", ["metadata.jsonl", "captions.jsonl"])
def test_captions_in_a_jsonl_table(tmp_path, name):
    put(tmp_path, "train/a.png")
    put(tmp_path, "train/sub/b.png")
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "sub/b.png", "captions": ["two", "zwei"]}]
    (tmp_path / "train" / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    assert read(tmp_path) == {"train/a.png": ("one",), "train/sub/b.png": ("two", "zwei")}


def test_captions_in_a_csv_table(tmp_path):
    put(tmp_path, "a.png")
    put(tmp_path, "b.png")
    (tmp_path / "metadata.csv").write_text(
        'file_name,text\na.png,"one, with a comma"\nb.png,two\n', encoding="utf-8-sig"
    )
    assert read(tmp_path) == {"a.png": ("one, with a comma",), "b.png": ("two",)}


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "x"}\n\n{"file_name"\n',
            "line 3: metadata.jsonl is not JSON",
        ),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n[1]\n', "line 2: no object but a list"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n' + "[" * 10**5, "line 2: metadata.jsonl is nested"),
        ("captions.csv", 'file_name,text\n\na.png,"x\ny"\n\nb.png,z\n', "line 6: its image b.png is not there"),
        ("captions.csv", "file_name,text\na.png,x\n,y\n", "line 3: no file_name"),
    ],
)
def test_a_row_of_a_table_that_cannot_be_used_is_left_out_with_its_line(tmp_path, name, content, line):
    put(tmp_path, "a.png")
    (tmp_path / name).write_text(content)
    data = open_dataset(DataConfig(path=str(tmp_path), size=8))
    assert len(data) == 1 and data[0].captions[0].startswith("x")
    (left,) = (f"{key}: {why}" for _, key, why in data.left_out)
    assert line in left


def test_an_unreadable_table_is_named_in_the_error(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"name": "a.png", "text": "x"}\n')
    with pytest.raises(UserError, match=r"a.png in .*: no caption; metadata.jsonl, line 1: no file_name"):
        read(tmp_path)


def test_images_without_caption_in_a_folder(tmp_path):
    for i in range(30):
        put(tmp_path, f"{i:02d}.png", None if i == 3 else f"number {i}")
    assert "03.png" not in read(tmp_path)
    for i in range(0, 30, 3):
        (tmp_path / f"{i:02d}.txt").unlink(missing_ok=True)
    with pytest.raises(UserError, match="10 of 30 examples are broken"):
        read(tmp_path)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="no data at"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no \.tar shards and no images"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("crop", 0),
        ("crop", 65),
        ("held_out", 1.0),
        ("flip", 1.5),
        ("center_shift", -0.1),
        ("max_failure_rate", 2.0),
        ("split", "test"),
    ],
)
def test_wrong_settings_name_the_field(field, value):
    with pytest.raises(UserError, match=field):
        DataConfig(**{field: value})


@pytest.mark.parametrize(
    "values",
    [
        {"max_size": 80},
        {"max_size": 60, "crop": 32},
        {"center_shift": 0.1, "crop": 32},
        {"caption_field": "layout", "flip": 0.5},
        {"caption_field": "layout", "crop": 32},
    ],
)
def test_settings_that_do_not_go_together_name_the_first(values):
    with pytest.raises(UserError, match=next(iter(values))):
        DataConfig(**values)


def test_a_crop_may_be_as_large_as_the_image():
    assert DataConfig(size=32, crop=32).crop == 32
    assert DataConfig(size=32, crop=1).crop == 1
    with pytest.raises(UserError, match="crop must lie between 1 and size 32, not 33"):
        DataConfig(size=32, crop=33)
