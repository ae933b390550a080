"""Boxes that others drew around the things in pictures, COCO's and OpenImages', as layouts beside the pictures."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from diptych.core.disk import replacing
from diptych.core.errors import UserError
from diptych.core.image_files import opened, orientation
from diptych.core.progress import track
from diptych.data.box_layouts import FIELD, Sides, written
from diptych.data.caption_text import decoded, one_line, parsed, texts_of
from diptych.data.paths import no_data
from diptych.data.quarantine import Broken
from diptych.data.shards import PICTURES

TABLE = "metadata.jsonl"
MOST = 30
"""Boxes of a picture that are kept, the largest: as many as the paper's models read."""
LEAST_SHOWN = 0.25
"""A box of which the square cut from the picture shows a smaller part is left out."""
Found = dict[str, list[tuple[str, Sides]]]
"""Of each picture, by its file name without what stands behind the last dot: names and boxes."""


def write_layouts(annotations: Path, pictures: Path, classes: Path | None = None, most: int = MOST) -> dict[str, Any]:
    """Write `metadata.jsonl` into a folder of pictures: of each its layout, and the names in it as text.

    Boxes are told for the square from the middle of a picture that training reads. Those around crowds are left out.

    Args:
        annotations: COCO's `instances_*.json`, or OpenImages' `*-bbox.csv`.
        pictures: the folder that they are of. Pictures that the annotations do not know stay without a layout.
        classes: for OpenImages, `class-descriptions-boxable.csv`: what its labels mean.
        most: boxes of a picture that are kept, the largest.

    Returns:
        {"pictures": how many have a row, "boxes": how many, "classes": how many of each}.

    Raises:
        UserError: a file is missing or cannot be read, none of the pictures is known, or there is such a file already.
    """
    paths = paths_of(pictures)
    found = read_openimages(annotations, classes, paths) if annotations.suffix == ".csv" else read_coco(annotations)
    known = [stem for stem in paths if stem in found]
    if not known:
        raise UserError(f"{annotations} has no boxes of the pictures in {pictures}")
    counts: Counter[str] = Counter()

    def row(stem: str) -> dict[str, Any]:
        boxes = in_square(found[stem], size_of(paths[stem]))
        boxes = sorted(boxes, key=lambda box: area(box[1]), reverse=True)[:most]
        names = [name for name, _ in boxes]
        counts.update(names)
        return {"text": ", ".join(dict.fromkeys(names)) or "a picture", FIELD: written(boxes)}

    write_table(pictures, ((paths[stem], row(stem)) for stem in track(known, "writing layouts")))
    return {"pictures": len(known), "boxes": sum(counts.values()), "classes": dict(counts.most_common())}


def write_captions(annotations: Path, pictures: Path) -> dict[str, int]:
    """Write `metadata.jsonl` into a folder of pictures: of each the captions that COCO's `captions_*.json` has.

    Returns {"pictures": how many have a row, "captions": how many}. Raises a `UserError` as `write_layouts` does.
    """
    paths = paths_of(pictures)
    values = values_of(annotations)
    captions: dict[str, list[str]] = {}
    try:
        names = {one["id"]: Path(one["file_name"]).stem for one in values["images"]}
        for one in values["annotations"]:
            said = texts_of(" ".join(one["caption"].split()))
            captions.setdefault(names[one["image_id"]], []).extend(said)
    except (KeyError, TypeError, AttributeError, Broken) as error:
        raise UserError(f"{annotations} is not as COCO writes its captions: {type(error).__name__} {error}") from None
    known = [stem for stem in paths if captions.get(stem)]
    if not known:
        raise UserError(f"{annotations} has no captions of the pictures in {pictures}")
    write_table(pictures, ((paths[stem], {"captions": captions[stem]}) for stem in known))
    return {"pictures": len(known), "captions": sum(len(captions[stem]) for stem in known)}


def paths_of(pictures: Path) -> dict[str, Path]:
    """The pictures of a folder by their names without what stands behind the last dot. A `UserError` where there is no
    such folder, or a table in it already."""
    if not pictures.is_dir():
        raise UserError(f"there is no folder {pictures}")
    if (pictures / TABLE).exists():
        raise UserError(f"{pictures / TABLE} is there already: delete it to have it made again")
    kept = (path for path in sorted(pictures.iterdir()) if not no_data(path.name))
    return {path.stem: path for path in kept if path.suffix.lower().lstrip(".") in PICTURES}


def write_table(pictures: Path, rows: Iterable[tuple[Path, dict[str, Any]]]) -> None:
    """Write a row for each picture, whole or not at all."""
    with replacing(pictures / TABLE) as partial, partial.open("w", encoding="utf-8") as file:
        for path, row in rows:
            try:
                file.write(json.dumps({"file_name": path.name, **row}, ensure_ascii=False) + "\n")
            except UnicodeEncodeError:  # half a character
                raise UserError(f"what is said of {one_line(path.name)}, or its name, is no valid text") from None


def read_coco(path: Path) -> Found:
    """COCO's boxes: [x, y, width, height] in pixels of pictures whose sizes the file has. Crowds are left out."""
    values = values_of(path)
    try:
        names = {one["id"]: str(one["name"]) for one in values["categories"]}
        images = {one["id"]: one for one in values["images"]}
        found: Found = {Path(one["file_name"]).stem: [] for one in images.values()}
        for one in values["annotations"]:
            if one.get("iscrowd"):
                continue
            image, (x, y, width, height) = images[one["image_id"]], one["bbox"]
            wide, high = image["width"], image["height"]
            sides = x / wide, y / high, (x + width) / wide, (y + height) / high
            if not all(map(math.isfinite, sides)):
                raise ValueError(f"a box of {one['bbox']}")
            found[Path(image["file_name"]).stem].append((names[one["category_id"]], sides))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path} is not as COCO writes its instances: {type(error).__name__} {error}") from None
    return found


def read_openimages(path: Path, classes: Path | None, wanted: Any) -> Found:
    """OpenImages' boxes of the wanted pictures, in fractions; those around groups are left out."""
    if classes is None:
        raise UserError("OpenImages' labels need their names: give class-descriptions-boxable.csv as --classes")
    names = {row[0]: row[1] for row in rows_of(classes) if len(row) >= 2}
    found: Found = {}
    try:
        header = next(rows := rows_of(path), [])
        places = [header.index(name) for name in ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax", "IsGroupOf")]
        for row in rows:
            image, label, *sides, group = (row[place] for place in places)
            if image in wanted:
                boxes = found.setdefault(image, [])
                if group != "1":
                    left, top, right, bottom = map(float, sides)
                    if not all(map(math.isfinite, (left, top, right, bottom))):
                        raise ValueError(f"a box of {sides}")
                    boxes.append((names[label], (left, top, right, bottom)))
    except KeyError as error:
        raise UserError(f"{classes} has no name for the label {error.args[0]!r} of {path}") from None
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is not as OpenImages writes its boxes: {error}") from None
    return found


def values_of(path: Path) -> Any:
    """What a JSON file holds, read as the captions beside pictures are. A `UserError` where it cannot be."""
    try:
        return parsed(decoded(path.read_bytes(), str(path)), str(path))
    except Broken as error:
        raise UserError(str(error)) from None
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None


def rows_of(path: Path) -> Iterator[list[str]]:
    """The rows of a table. A `UserError` where there is none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.reader(file)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a picture as it is seen, EXIF turned. A `UserError` where it cannot be read."""
    try:
        with opened(path.read_bytes()) as picture:
            width, height = picture.size
            return (height, width) if orientation(picture) >= 5 else (width, height)  # turned by a quarter
    except Exception as error:  # whatever a decoder raises on a broken file
        raise UserError(f"cannot read {path} ({type(error).__name__}): take it out of the folder") from None


def in_square(boxes: list[tuple[str, Sides]], size: tuple[int, int]) -> list[tuple[str, Sides]]:
    """Boxes of a picture of this width and height as they lie in the square from its middle, clipped to it."""
    side = min(size)
    (left, top), (wide, high) = ((length - side) / 2 / side for length in size), (length / side for length in size)
    kept = []
    for name, (x0, y0, x1, y1) in boxes:
        moved = x0 * wide - left, y0 * high - top, x1 * wide - left, y1 * high - top
        x0, y0, x1, y1 = (min(max(place, 0.0), 1.0) for place in moved)
        if area(moved) > 0 and area((x0, y0, x1, y1)) >= LEAST_SHOWN * area(moved):
            kept.append((name, (x0, y0, x1, y1)))
    return kept


def area(sides: Sides) -> float:
    """Of a box, 0 for an inverted one."""
    left, top, right, bottom = sides
    return max(right - left, 0) * max(bottom - top, 0)
