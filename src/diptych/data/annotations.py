"""Object annotations of COCO and OpenImages, written as layouts or captions into `metadata.jsonl` beside the images."""

from __future__ import annotations

import csv
import functools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from diptych.core.disk import replacing
from diptych.core.errors import UserError
from diptych.core.progress import track
from diptych.data.box_layouts import LAYOUT_FIELD, Sides, format_layout
from diptych.data.caption_text import decode_text, one_line, parse_json, texts_of
from diptych.data.image_sides import image_size
from diptych.data.paths import is_system_file, read_start
from diptych.data.quarantine import BrokenExample
from diptych.data.shard_scan import IMAGE_EXTENSIONS

METADATA_FILE = "metadata.jsonl"
MAX_BOXES = 30
"""Boxes of an image that are written, the largest first: the limit of the paper's models."""
MIN_VISIBLE = 0.25
"""A box is dropped where less than this share of its area lies in the centre crop."""
Annotations = dict[str, list[tuple[str, Sides]]]
"""File stem of an image -> (class name, box) pairs."""


def write_layouts(
    annotations: Path, images: Path, classes: Path | None = None, most: int = MAX_BOXES
) -> dict[str, Any]:
    """Write `metadata.jsonl` into a folder of images: a layout for each, and its class names as text.

    Boxes are relative to the centre crop that training uses. Boxes around crowds are dropped.

    Args:
        annotations: COCO's `instances_*.json`, or OpenImages' `*-bbox.csv`.
        images: the folder that they are of. Pictures that the annotations do not know stay without a layout.
        classes: for OpenImages, `class-descriptions-boxable.csv`, the names of its labels.
        most: the largest number of boxes of an image; larger boxes first.

    Returns:
        {"pictures": how many have a row, "boxes": how many, "classes": how many of each}.

    Raises:
        UserError: a file is missing or unreadable, no image is annotated, or `metadata.jsonl` exists already.
    """
    paths = image_paths(images)
    annotated = read_openimages(annotations, classes, paths) if annotations.suffix == ".csv" else read_coco(annotations)
    stems = [stem for stem in paths if stem in annotated]
    if not stems:
        raise UserError(f"{annotations} has no boxes of the images in {images}")
    counts: Counter[str] = Counter()

    def row(stem: str) -> dict[str, Any]:
        boxes = crop_boxes(annotated[stem], sides_in_file(paths[stem]))
        boxes = sorted(boxes, key=lambda box: area(box[1]), reverse=True)[:most]
        names = [name for name, _ in boxes]
        counts.update(names)
        return {"text": ", ".join(dict.fromkeys(names)) or "a picture", LAYOUT_FIELD: format_layout(boxes)}

    write_table(images, ((paths[stem], row(stem)) for stem in track(stems, "writing layouts")))
    return {"pictures": len(stems), "boxes": sum(counts.values()), "classes": dict(counts.most_common())}


def write_captions(annotations: Path, images: Path) -> dict[str, int]:
    """Write `metadata.jsonl` into a folder of images: the captions of each in COCO's `captions_*.json`.

    Returns {"pictures": how many have a row, "captions": how many}. Raises a `UserError` as `write_layouts` does.
    """
    paths = image_paths(images)
    values = read_json_annotations(annotations)
    captions: dict[str, list[str]] = {}
    try:
        names = {entry["id"]: Path(entry["file_name"]).stem for entry in values["images"]}
        for entry in values["annotations"]:
            texts = texts_of(" ".join(entry["caption"].split()))
            captions.setdefault(names[entry["image_id"]], []).extend(texts)
    except (KeyError, TypeError, AttributeError, BrokenExample) as error:
        raise UserError(f"{annotations} is not as COCO writes its captions: {type(error).__name__} {error}") from None
    stems = [stem for stem in paths if captions.get(stem)]
    if not stems:
        raise UserError(f"{annotations} has no captions of the images in {images}")
    write_table(images, ((paths[stem], {"captions": captions[stem]}) for stem in stems))
    return {"pictures": len(stems), "captions": sum(len(captions[stem]) for stem in stems)}


def image_paths(images: Path) -> dict[str, Path]:
    """File stem -> path of the images in a folder. A `UserError` where there is no such folder, or where it has a
    `metadata.jsonl` already."""
    if not images.is_dir():
        raise UserError(f"there is no folder {images}")
    if (images / METADATA_FILE).exists():
        raise UserError(f"{images / METADATA_FILE} is there already: delete it to have it made again")
    paths = (path for path in sorted(images.iterdir()) if not is_system_file(path.name))
    return {path.stem: path for path in paths if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS}


def write_table(images: Path, rows: Iterable[tuple[Path, dict[str, Any]]]) -> None:
    """Write a JSON line for each image, all or none."""
    with replacing(images / METADATA_FILE) as partial, partial.open("w", encoding="utf-8") as file:
        for path, row in rows:
            try:
                file.write(json.dumps({"file_name": path.name, **row}, ensure_ascii=False) + "\n")
            except UnicodeEncodeError:  # half a character
                raise UserError(
                    f"the caption of {one_line(path.name)}, or its name, is no valid Unicode text"
                ) from None


def read_coco(path: Path) -> Annotations:
    """COCO's boxes: [x, y, width, height] in pixels of images whose sizes the file states. Crowds are dropped."""
    values = read_json_annotations(path)
    try:
        names = {entry["id"]: str(entry["name"]) for entry in values["categories"]}
        images = {entry["id"]: entry for entry in values["images"]}
        boxes: Annotations = {Path(entry["file_name"]).stem: [] for entry in images.values()}
        for entry in values["annotations"]:
            if entry.get("iscrowd"):
                continue
            image, (x, y, width, height) = images[entry["image_id"]], entry["bbox"]
            wide, high = image["width"], image["height"]
            sides = x / wide, y / high, (x + width) / wide, (y + height) / high
            if not all(map(math.isfinite, sides)):
                raise ValueError(f"a box of {entry['bbox']}")
            boxes[Path(image["file_name"]).stem].append((names[entry["category_id"]], sides))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path} is not as COCO writes its instances: {type(error).__name__} {error}") from None
    return boxes


def read_openimages(path: Path, classes: Path | None, wanted: Any) -> Annotations:
    """OpenImages' boxes of the `wanted` image ids, as fractions; boxes around groups are dropped."""
    if classes is None:
        raise UserError("OpenImages' labels need their names: give class-descriptions-boxable.csv as --classes")
    names = {row[0]: row[1] for row in csv_rows(classes) if len(row) >= 2}
    annotated: Annotations = {}
    try:
        header = next(rows := csv_rows(path), [])
        places = [header.index(name) for name in ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax", "IsGroupOf")]
        for row in rows:
            image, label, *sides, group = (row[place] for place in places)
            if image in wanted:
                boxes = annotated.setdefault(image, [])
                if group != "1":
                    left, top, right, bottom = map(float, sides)
                    if not all(map(math.isfinite, (left, top, right, bottom))):
                        raise ValueError(f"a box of {sides}")
                    boxes.append((names[label], (left, top, right, bottom)))
    except KeyError as error:
        raise UserError(f"{classes} has no name for the label {error.args[0]!r} of {path}") from None
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is not as OpenImages writes its boxes: {error}") from None
    return annotated


def read_json_annotations(path: Path) -> Any:
    """The value in a JSON file. A `UserError` where it cannot be read."""
    try:
        return parse_json(decode_text(path.read_bytes(), str(path)), str(path))
    except BrokenExample as error:
        raise UserError(str(error)) from None
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None


def csv_rows(path: Path) -> Iterator[list[str]]:
    """The rows of a CSV file. A `UserError` where it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.reader(file)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def sides_in_file(path: Path) -> tuple[int, int]:
    """Width and height of an image, turned as its EXIF says. A `UserError` where it cannot be read."""
    try:
        return image_size(functools.partial(read_start, path))
    except Exception as error:
        reason = str(error) if isinstance(error, BrokenExample) else type(error).__name__
        raise UserError(f"cannot read {path} ({reason}): take it out of the folder") from None


def crop_boxes(boxes: list[tuple[str, Sides]], size: tuple[int, int]) -> list[tuple[str, Sides]]:
    """Boxes of an image of this (width, height), relative to its centre crop and clipped to it."""
    side = min(size)
    (left, top), (wide, high) = ((length - side) / 2 / side for length in size), (length / side for length in size)
    cropped = []
    for name, (x0, y0, x1, y1) in boxes:
        moved = x0 * wide - left, y0 * high - top, x1 * wide - left, y1 * high - top
        x0, y0, x1, y1 = (min(max(place, 0.0), 1.0) for place in moved)
        if area(moved) > 0 and area((x0, y0, x1, y1)) >= MIN_VISIBLE * area(moved):
            cropped.append((name, (x0, y0, x1, y1)))
    return cropped


def area(sides: Sides) -> float:
    """The area of a box; 0 for an inverted one."""
    left, top, right, bottom = sides
    return max(right - left, 0) * max(bottom - top, 0)
