"""Small sources of icons, drawn here: nothing is fetched."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.data.emoji import scene_words
from diptych.data.emoji.icon_sources import Sources, code_points

SHAPES = (
    '<circle cx="16" cy="16" r="{r}" fill="{c}"/>',
    '<rect x="6" y="8" width="{r}" height="14" fill="{c}"/>',
    '<path d="M16 3 L29 28 L{r} 28 Z" fill="{c}"/>',
)
INFO = {
    "name": "Toy",
    "author": {"name": "Somebody"},
    "license": {"title": "MIT", "spdx": "MIT", "url": "https://example.org"},
}
CAT, DOG, THUMB, TONED, FLAG = "\U0001f408", "\U0001f415", "\U0001f44d", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea"


def tiny_sources(styles: tuple[str, ...] = ("noto", "twemoji", "openmoji", "fluent"), count: int = 40) -> Sources:
    """Sets that draw the same things, each in its own way, with an alias, a skin tone, a flag and a broken icon."""
    things = {CAT: "cat", DOG: "dog"}
    wanted = list(
        dict.fromkeys([*scene_words.FACES[:3], *scene_words.HATS[:2], *scene_words.RARE[:8], *scene_words.USUAL])
    )
    wanted += [
        *scene_words.LARGE[:6],
        *scene_words.SMALL[:6],
        *scene_words.GROUPS["food"][:6],
        *scene_words.GROUPS["plant"][:4],
    ]
    for number, name in enumerate(dict.fromkeys(wanted)):
        things.setdefault(chr(0x2000 + number), name)
    names: dict[str, tuple[str, tuple[str, ...]]] = {
        code_points(char): (name, ("thing", name)) for char, name in list(things.items())[: count + 2]
    }
    names[code_points(TONED)] = ("thumbs up: medium skin tone", ())
    names[code_points(FLAG)] = ("flag: Germany", ())
    icons = {}
    for number, style in enumerate(styles):
        bodies = {
            name.replace(" ", "-"): {
                "body": SHAPES[(number + i) % 3].format(r=9 + (i * 7 + number) % 5, c=f"#{colour:06x}")
            }
            for i, (codes, (name, _)) in enumerate(names.items())
            for colour in [(i * 977 + number * 31337 + 4000) % 0xD0D0D0]
        }
        chars = {codes: name.replace(" ", "-") for codes, (name, _) in names.items()}
        bodies["broken"] = {"body": "<circle"}
        icons[style] = {
            "icons": bodies,
            "aliases": {"kitty": {"parent": "cat", "hFlip": True}},
            "chars": {**chars, "1f63a": "kitty", "1f4a3": "broken"},
            "info": INFO,
            "categories": {},
            "width": 32,
            "height": 32,
        }
    names["1f63a"] = ("grinning cat", ("laugh",))
    names["1f4a3"] = ("bomb", ())
    return Sources(
        icons=icons, names=names, packages=({"package": "toy", "version": "1", "file": "toy.tgz", "sha256": "0"},)
    )


def png(
    size: tuple[int, int] = (20, 20), colour: tuple[int, ...] = (200, 30, 30), mode: str = "RGB", **options
) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def noise_png(size: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def foreign_shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar with these members, as anybody might write it."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def image_dataset(path: Path, count: int, broken: dict[int, bytes] | None = None) -> Path:
    """A shard as img2dataset writes it, with some images replaced."""
    members: list[tuple[str, bytes]] = []
    for i in range(count):
        data = (broken or {}).get(i, png((24, 20), (i % 256, 99, 0), format="JPEG"))
        told = {"caption": f"picture {i}", "url": "https://example.org", "status": "success"}
        members += [
            (f"{i:09d}.jpg", data),
            (f"{i:09d}.json", json.dumps(told).encode()),
            (f"{i:09d}.txt", b"picture %d" % i),
        ]
    return foreign_shard(path, members)
