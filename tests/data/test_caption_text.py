"""One reader of captions behind every door; odd fields, names and encodings are read or named, never passed over."""

import json

import pytest

from diptych.core.errors import UserError
from diptych.data import DataConfig, open_dataset
from diptych.data.caption_text import with_captions
from diptych.data.check import check_dataset
from diptych.data.quarantine import BrokenExample
from tests.data.tiny import foreign_shard, png


def in_folder(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def in_shard(folder, files):
    foreign_shard(folder / "a.tar", list(files.items()))


def opened(folder, **options):
    return open_dataset(DataConfig(path=str(folder), size=8, **options))


TEXTS = {
    "utf-8": "a café".encode(),
    "utf-8 with a mark": "a café".encode("utf-8-sig"),
    "utf-16": "a café".encode("utf-16"),
    "utf-16 big": b"\xfe\xff" + "a café".encode("utf-16-be"),
    "utf-32": "a café".encode("utf-32"),
}
PLACES = {
    "0.txt": lambda text: text,
    "0.TXT": lambda text: text,
    "0.caption": lambda text: text,
    "0.json": lambda text: again('{"caption": "%s"}', text),
    "0.json, a list": lambda text: again('{"caption": ["%s"]}', text),
    "0.json, only a list": lambda text: again('["%s"]', text),
}


def again(form, text):
    """A caption put into JSON in the encoding that it has."""
    encoding = {b"\xef": "utf-8-sig", b"\xfe": "utf-16", b"\xff": "utf-32" if text[2:4] == b"\0\0" else "utf-16"}
    encoding = encoding.get(text[:1], "utf-8")
    return (form % text.decode(encoding)).encode(encoding)


@pytest.mark.parametrize("put", [in_folder, in_shard])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_caption_reads_the_same_from_every_source(tmp_path, put, place, text):
    put(tmp_path, {"0.png": png(), place.split(",")[0]: PLACES[place](TEXTS[text])})
    assert opened(tmp_path)[0].captions == ("a café",)


@pytest.mark.parametrize("name", ["0.png.txt", "0.PNG.TXT", "0.png.caption", "0.png.json"])
def test_a_caption_named_after_the_whole_file(tmp_path, name):
    in_folder(tmp_path, {"0.png": png(), name: b'"x"' if name.endswith("json") else b"x"})
    assert opened(tmp_path)[0].captions == ("x",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["metadata.jsonl", "captions.csv", "METADATA.CSV"])
def test_tables_in_every_format_read_the_same(tmp_path, name, encoding):
    in_folder(tmp_path, {"a/0.png": png()})
    row = '{"Image": "a\\\\0.png", "Prompt": "a café\u2028"}' if name.endswith("l") else "Image,Prompt\na/0.png,a café"
    (tmp_path / name).write_text(row, encoding=encoding)
    assert opened(tmp_path)[0].captions == ("a café",)


def test_several_rows_of_an_image_are_several_captions(tmp_path):
    in_folder(tmp_path, {"0.png": png(), "captions.csv": b"image,caption\n0.png,one\n0.png,two\n"})
    assert opened(tmp_path)[0].captions == ("one", "two")


@pytest.mark.parametrize("put", [in_folder, in_shard])
@pytest.mark.parametrize("name", ["0.txt", "0.json"])
@pytest.mark.parametrize("text", [b'"caf\xe9"', b"\xff\xfe\x00", b"\xfe\xff\xd8\x00"])
def test_another_encoding_is_named_with_the_file(tmp_path, put, name, text):
    put(tmp_path, {"0.png": png(), name: text})
    with pytest.raises(UserError, match=rf"{name} (is not UTF-8 \(byte 0xe9 in line 1|begins as UTF-16 and is not)"):
        opened(tmp_path)[0]


@pytest.mark.parametrize("put", [in_folder, in_shard])
def test_utf16_without_a_mark_is_no_caption(tmp_path, put):
    put(tmp_path, {"0.png": png(), "0.txt": "a cat".encode("utf-16-le")})
    with pytest.raises(UserError, match=r"0\.txt holds NUL bytes"):
        opened(tmp_path)[0]


def test_the_caption_of_a_skipped_image_is_not_reported(tmp_path):
    in_folder(tmp_path, {"0.png": png(), "0.txt": b"x", "1.gif": b"GIF89a", "1.txt": b"y", "2.txt": b"z"})
    assert [one["name"] for one in check_dataset(opened(tmp_path)).left_out] == ["1.gif", "2.txt"]


@pytest.mark.parametrize("value", [["x"], {"a": 1}, 5, True, None, "", "train", "Validation", "third"])
@pytest.mark.parametrize("field", ["split", "kind", "style", "category"])
def test_labels_may_be_of_any_type(tmp_path, field, value):
    rows = {"0.png": png(), "0.json": json.dumps({"caption": "x", field: value}).encode()}
    in_folder(tmp_path, {**rows, "1.png": png(), "1.txt": b"y"})
    report = check_dataset(opened(tmp_path, split="all", max_failure_rate=1.0, kinds=(), styles=()))
    odd = isinstance(value, (list, dict)) or (field == "split" and value in (5, True, "third"))
    assert (report.readable, len(report.broken)) == ((1, 1) if odd else (2, 0))
    if odd:
        assert f"its {field} " in report.broken[0]["reason"]
    json.dumps(report._asdict())


def test_any_field_of_any_type_has_a_caption_or_a_reason():
    for value in ([], {}, [1], [["x"]], {"a": "x"}, 3, None, True, "\ud800"):
        for field in ("captions", "caption", "text", "tags"):
            try:
                assert all(isinstance(one, str) for one in with_captions({field: value})["captions"])
            except BrokenExample as error:
                assert str(error)
    assert with_captions({"text": {"box": 1}, "PROMPT": "x"})["captions"] == ["x"]
    assert with_captions({"captions": [], "caption": "y"}, "x")["captions"] == ["x"]


def test_a_field_in_the_place_of_captions_must_say_something(tmp_path):
    for number, value in enumerate(["one", ["a", "b"], 7, None, {"a": 1}, [{}]]):
        in_folder(tmp_path, {f"{number}.png": png(), f"{number}.json": json.dumps({"word": value}).encode()})
    report = check_dataset(opened(tmp_path, caption_field="word", max_failure_rate=1.0))
    assert report.readable == 3
    assert [one["reason"].split(",")[0] for one in report.broken] == [
        "no field 'word'",
        "its 'word' is an object",
        "its 'word' is a list",
    ]


def test_class_folders(tmp_path):
    names = ("train/n01/a.JPEG", "train/n02/b.jpg", "val/n01/c.png")
    in_folder(tmp_path, {name: png(format="PNG") for name in names})
    train = opened(tmp_path, caption_field="folder")
    assert [train[i].captions for i in range(2)] == [("n01",), ("n02",)]
    assert len(train) == 2 and train.split("held-out")[0].captions == ("n01",)
    in_shard(tmp_path / "val", {"n03/x.png": png()})
    assert opened(tmp_path / "val", caption_field="folder")[0].captions == ("n03",)


@pytest.mark.parametrize("put", [in_folder, in_shard])
def test_images_need_captions_only_where_captions_are_used(tmp_path, put):
    put(tmp_path, {"0.png": png(), "1.png": png()})
    data = open_dataset(DataConfig(path=str(tmp_path), size=8), captions=False)
    assert [data[i].captions for i in range(2)] == [("",), ("",)]
    with pytest.raises(UserError, match="no caption"):
        opened(tmp_path)[0]


def test_the_folder_itself_by_any_name(tmp_path, monkeypatch):
    in_folder(
        tmp_path / "d", {"0.png": png(), "0.txt": b"x", "e/1.png": png(), "metadata.csv": b"image,text\ne/1.png,y\n"}
    )
    monkeypatch.chdir(tmp_path / "d")
    for name in (".", "./", "../d", "e/..", str(tmp_path / "d") + "/"):
        data = opened(name)
        assert [(data[i].key, data[i].captions) for i in range(2)] == [("0.png", ("x",)), ("e/1.png", ("y",))]
        assert not data.left_out
