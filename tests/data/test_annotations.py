"""Layouts of images: ours, and what COCO's and OpenImages' boxes become."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.cli import main as cli
from diptych.core.errors import UserError
from diptych.data.annotations import crop_boxes, read_coco, write_layouts
from diptych.data.box_layouts import bounding_box, format_layout, layout_of
from diptych.data.dataset import DataConfig, open_dataset
from diptych.encoders.layout import parse_layout


def no_image() -> np.ndarray:
    raise AssertionError("nobody needs the picture")


def test_layout_text_round_trip() -> None:
    text = format_layout([("a;b  c", (-0.5, 0.123456, 0.5, 2)), ("gone", (1.2, 0, 1.5, 1)), ("dog", (0, 0, 1e-5, 1))])
    assert [tuple(box) for box in parse_layout(text)] == [("a,b c", 0, 0.1235, 0.5, 1)]


def test_the_layout_of_a_scene_is_its_objects_and_its_word() -> None:
    dog = {"concept": "dog face", "box": [0.1, 0.2, 0.5, 0.9], "style": "noto"}
    scene = {"objects": [dog, dog], "text": {"word": "fish", "box": [0.2, 0, 0.8, 0.1]}}
    assert layout_of(scene, no_image) == "; ".join(["dog face 0.1 0.2 0.5 0.9"] * 2 + ["written word 0.2 0 0.8 0.1"])
    assert layout_of({"objects": [], "text": None}, no_image) == ""
    assert layout_of({**scene, "layout": "cat 0 0 1 1"}, no_image) == "cat 0 0 1 1"
    with pytest.raises(ValueError, match="neither a layout"):
        layout_of({"captions": ["a dog"]}, no_image)


def test_bounding_box_of_a_drawing() -> None:
    image = np.full((10, 20, 3), 255, np.uint8)
    assert bounding_box(image) == (0, 0, 1, 1)
    image[2:5, 4:10, 1] = 0
    image[9, 19] = 252  # as good as white
    assert bounding_box(image) == (0.2, 0.2, 0.5, 0.5)
    assert layout_of({"concept": "bar"}, lambda: image) == "bar 0.2 0.2 0.5 0.5"


def test_a_data_set_gives_layouts_for_captions(tmp_path: Path) -> None:
    page = Image.new("RGB", (8, 8), "white")
    page.paste("red", (2, 2, 6, 8))
    page.save(tmp_path / "one.png")
    (tmp_path / "one.json").write_text(json.dumps({"caption": "a post", "concept": "post"}))
    page.save(tmp_path / "two.png")
    (tmp_path / "two.json").write_text(json.dumps({"caption": "nothing", "layout": ""}))
    data = open_dataset(DataConfig(path=str(tmp_path), size=8, caption_field="layout"))
    assert [data[i].captions for i in range(2)] == [("post 0.25 0.25 0.75 1",), ("",)]
    assert [data.meta(i)["captions"] for i in range(2)] == [["post 0.25 0.25 0.75 1"], [""]]


def test_boxes_in_the_square_from_the_middle() -> None:
    # Of an image twice as wide as high the middle half is seen: x becomes 2 x - 1/2.
    boxes = [("in", (0.25, 0, 0.75, 1)), ("half", (0.125, 0.25, 0.375, 0.5)), ("out", (0, 0, 0.25, 1))]
    assert crop_boxes(boxes, (200, 100)) == [("in", (0, 0, 1, 1)), ("half", (0, 0.25, 0.25, 0.5))]
    assert crop_boxes([("sliver", (0, 0, 0.3, 1))], (200, 100)) == []  # a sixth of it is seen
    assert crop_boxes([("inverted", (0.5, 0, 0.4, 1))], (100, 100)) == []
    assert crop_boxes([("tall", (0, 0.25, 1, 0.5))], (100, 200)) == [("tall", (0, 0, 1, 0.5))]


def coco(tmp_path: Path) -> tuple[Path, Path]:
    """Two images of 40 x 20, one annotated with three boxes, of which one is around a crowd."""
    folder, path = tmp_path / "pictures", tmp_path / "instances_toy.json"
    folder.mkdir()
    for name in ("a.jpg", "b.png", "unknown.png"):
        Image.new("RGB", (40, 20), "green").save(folder / name)
    images = [{"id": n, "file_name": name, "width": 40, "height": 20} for n, name in enumerate(("a.jpg", "b.png"))]
    boxes = [([10, 0, 10, 20], 7, 0), ([15, 5, 15, 10], 7, 0), ([10, 0, 20, 20], 7, 1), ([20, 0, 5, 5], 9, 0)]
    annotations = [
        {"image_id": 0, "category_id": category, "bbox": box, "iscrowd": crowd} for box, category, crowd in boxes
    ]
    categories = [{"id": 7, "name": "traffic light"}, {"id": 9, "name": "dog"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path, folder


def test_coco(tmp_path: Path) -> None:
    path, folder = coco(tmp_path)
    found = write_layouts(path, folder, most=2)
    assert found == {"pictures": 2, "boxes": 2, "classes": {"traffic light": 2}}
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert rows == [
        {"file_name": "a.jpg", "text": "traffic light", "layout": rows[0]["layout"]},
        {"file_name": "b.png", "text": "a picture", "layout": ""},
    ]
    # In the square from 10 to 30 pixels; the larger of the two first, the dog is the third and left out.
    assert rows[0]["layout"] == "traffic light 0 0 0.5 1; traffic light 0.25 0.25 1 0.75"
    data = open_dataset(DataConfig(path=str(folder), size=20, caption_field="layout", max_failure_rate=0.9))
    assert {data.meta(i)["captions"][0] for i in range(len(data))} == {rows[0]["layout"], ""}
    with pytest.raises(UserError, match="is there already"):
        write_layouts(path, folder)


def test_openimages_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = coco(tmp_path)
    boxes, classes = tmp_path / "train-annotations-bbox.csv", tmp_path / "class-descriptions-boxable.csv"
    columns = "ImageID Source LabelName Confidence XMin XMax YMin YMax IsOccluded IsTruncated IsGroupOf".split()
    with boxes.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerow(["a", "x", "/m/1", 1, 0.25, 0.5, 0.5, 1, 0, 0, 0])
        writer.writerow(["a", "x", "/m/1", 1, 0.25, 0.5, 0, 1, 0, 0, 1])  # a group
        writer.writerow(["elsewhere", "x", "/m/unknown", 1, 0, 1, 0, 1, 0, 0, 0])
    classes.write_text('/m/1,"Dog, wet"\n')
    command = ["data", "layouts", str(boxes), "--pictures", str(folder)]
    assert cli.main(command) == 2
    assert "--classes" in capsys.readouterr().err
    assert cli.main([*command, "--classes", str(classes)]) == 0
    assert "1 boxes of 1 classes in 1 images" in capsys.readouterr().out
    assert json.loads((folder / "metadata.jsonl").read_text())["layout"] == "Dog, wet 0 0.5 0.5 1"


def test_files_that_are_no_annotations_are_refused(tmp_path: Path) -> None:
    path, folder = coco(tmp_path)
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "categories": []}))
    with pytest.raises(UserError, match="not as COCO writes its instances: KeyError 7"):
        read_coco(path)
    with pytest.raises(UserError, match="there is no file"):
        write_layouts(tmp_path / "none.json", folder)
    with pytest.raises(UserError, match="there is no folder"):
        write_layouts(path, tmp_path / "none")
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(UserError, match="has no boxes of the images"):
        write_layouts(path, folder)
    wrong, classes = tmp_path / "wrong.csv", tmp_path / "classes.csv"
    classes.write_text("/m/1,Dog\n")
    wrong.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not as OpenImages writes its boxes"):
        write_layouts(wrong, folder, classes)
    wrong.write_text("ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,/m/2,0,1,0,1,0\n")
    with pytest.raises(UserError, match="has no name for the label '/m/2'"):
        write_layouts(wrong, folder, classes)
    assert not (folder / "metadata.jsonl").exists()


HOSTILE = {
    "half a character": ({"caption": "\ud800"}, "captions"),
    "no text": ({"caption": 5}, "captions"),
    "nothing to see": ({"caption": " "}, "captions"),
    "no number": ({"category_id": 1, "bbox": [math.nan] * 4}, "layouts"),
    "no end": ({"category_id": 1, "bbox": [math.inf] * 4}, "layouts"),
    "too many digits": ({"category_id": 1, "bbox": [10**400, 1, 1, 1]}, "layouts"),
    "half a name": ({"category_id": 2, "bbox": [1, 1, 9, 9]}, "layouts"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_annotations_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    annotation, command = HOSTILE[what]
    (tmp_path / "p").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "p" / "a.png")
    image = {"id": 1, "file_name": "a.png", "width": 16, "height": 16}
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "\ud800"}]
    values = {"images": [image], "categories": names, "annotations": [{"image_id": 1, **annotation}]}
    file = tmp_path / "annotations.json"
    file.write_text("\ufeff" + json.dumps(values))
    assert cli.main(["data", command, str(file), "--pictures", str(tmp_path / "p")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["a.png"]
