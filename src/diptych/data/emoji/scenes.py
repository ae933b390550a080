"""Scenes composed from single drawings, with captions, foils and ground truth."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diptych.core.errors import UserError
from diptych.core.hashing import mix
from diptych.data.emoji import scene_words as words
from diptych.data.emoji.scene_foils import foils
from diptych.data.emoji.scene_sampling import Vocabulary, sample_scene
from diptych.data.emoji.scene_specs import CATEGORIES, Scene, captions

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as shares of the side."""


CACHE_BYTES = 64 * 2**20
"""Size of the cache of decoded drawings."""


class SceneRenderer:
    """Renders scenes from drawings of several styles, with a bounded cache of decoded drawings."""

    def __init__(self, drawings: Mapping[str, Mapping[str, Image.Image]], size: int) -> None:
        """`drawings`: style -> concept -> RGBA image; the mapping may read lazily."""
        self.size = size
        self.drawings = drawings
        concepts = {concept for by_concept in drawings.values() for concept in by_concept}
        self.names = {
            style: {concept: concept for concept in concepts}
            | {plain: long for plain, long in words.DRAWING_NAMES.items() if long in concepts}
            for style, concepts in drawings.items()
        }
        self.vocabularies = {style: Vocabulary(set(names), concepts) for style, names in self.names.items()}
        cached = max(32, CACHE_BYTES // (4 * size * size))
        self._trimmed = functools.lru_cache(cached)(self._trimmed)
        self._drawing = functools.lru_cache(cached)(self._drawing)

    def scenes(
        self, count: int, seed: int, caption_names: dict[str, str]
    ) -> Iterator[tuple[str, Image.Image, dict[str, Any]]]:
        """(key, image, metadata) of `count` scenes; number i depends on the seed and i alone."""
        for number in range(count):
            if (scene := self.scene(number, seed, caption_names)) is not None:
                yield scene

    def scene(
        self, number: int, seed: int, caption_names: dict[str, str]
    ) -> tuple[str, Image.Image, dict[str, Any]] | None:
        """(key, image, metadata) of one scene; None where no attempt had enough foils."""
        styles = [style for style, v in self.vocabularies.items() if len(v.all) >= 2]
        if not styles:
            raise UserError("no style has two drawings that scenes can be made of: build with scenes=0")
        rng = random.Random(mix(seed, number, 3))
        category = CATEGORIES[number % len(CATEGORIES)]
        for _ in range(100):
            style = rng.choice(styles)
            scene = sample_scene(category, self.vocabularies[style], rng)
            if scene is None:
                continue
            true = captions(scene, caption_names.get(style, style), rng)
            false = foils(scene, true, self.vocabularies[style], rng)
            if len(false) >= 5:
                image, truth = self.render(scene, style, rng)
                meta = {"kind": "scene", "category": category, "captions": true, "foils": false, "style": style}
                return f"scene-{number:06d}", image, {**meta, **truth, "split": scene.split}
        return None

    def render(self, scene: Scene, style: str, rng: random.Random) -> tuple[Image.Image, dict[str, Any]]:
        """The image (RGB), and its ground truth: objects with boxes, background, text, relation."""
        ground = words.BACKGROUNDS[scene.background]
        canvas = Image.new("RGB", (self.size, self.size), ground)
        parts = [part for part in scene.parts for _ in range(part.count)]
        objects: list[dict[str, Any]] = []
        for part, cell in zip(parts, layout(scene, rng), strict=True):
            if scene.relation == "wearing" and objects:
                cell = _on_head(objects[0]["box"])
            box = self._paste(
                canvas,
                self._drawing(style, part.concept, part.colour),
                cell,
                bottom=scene.relation == "wearing" and bool(objects),
            )
            objects.append(
                {"concept": part.concept, "style": style, "colour": part.colour, "size": part.size, "box": box}
            )
        text = None
        if scene.word:
            cell = (
                (0.04, 0.3, 0.96, 0.7) if not parts else (0.04, *_STRIP[scene.place][0], 0.96, *_STRIP[scene.place][1])
            )
            text = {"word": scene.word, "colour": scene.ink, "box": self._write(canvas, scene.word, scene.ink, cell)}
        truth = {"objects": objects, "background": scene.background, "text": text, "relation": scene.relation}
        return canvas, truth

    def _trimmed(self, style: str, name: str) -> Image.Image:
        return _trim(self.drawings[style][self.names[style][name]])

    def _drawing(self, style: str, name: str, colour: str | None) -> Image.Image:
        image = self._trimmed(style, name)
        return image if colour is None else tint(image, words.COLOURS[colour])

    def _paste(self, canvas: Image.Image, drawing: Image.Image, cell: Box, bottom: bool = False) -> Box:
        """Fit the drawing into the cell, centred (or standing on its bottom); returns its bounding box."""
        size = self.size
        scale = min((cell[2] - cell[0]) * size / drawing.width, (cell[3] - cell[1]) * size / drawing.height)
        wide, high = max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale))
        small = drawing.resize((wide, high), Image.Resampling.LANCZOS)
        left = round((cell[0] + cell[2]) / 2 * size - wide / 2)
        top = round(cell[3] * size - high if bottom else (cell[1] + cell[3]) / 2 * size - high / 2)
        left, top = max(0, min(size - wide, left)), max(0, min(size - high, top))
        canvas.paste(small, (left, top), small)
        return _fractions((left, top, left + wide, top + high), size)

    def _write(self, canvas: Image.Image, word: str, ink: str, cell: Box) -> Box:
        """Write the word as large as the cell allows; drawn four times as large and reduced, for smooth edges."""
        large, size = 4 * self.size, self.size
        mask = Image.new("L", (large, large))
        try:
            font = ImageFont.load_default(large / 4)
            stroke = max(1, large // 100)
            x0, y0, x1, y1 = font.getbbox(word, stroke_width=stroke)  # type: ignore[union-attr]
            scale = min((cell[2] - cell[0]) * large / (x1 - x0), (cell[3] - cell[1]) * large / (y1 - y0), 1.6)
            font = ImageFont.load_default(large / 4 * scale)
            x0, y0, x1, y1 = font.getbbox(word, stroke_width=stroke)  # type: ignore[union-attr]
        except (ImportError, TypeError):
            raise UserError("this Pillow has no FreeType and cannot write words: install one that has") from None
        at = ((cell[0] + cell[2]) / 2 * large - (x0 + x1) / 2, (cell[1] + cell[3]) / 2 * large - (y0 + y1) / 2)
        ImageDraw.Draw(mask).text(at, word, fill=255, font=font, stroke_width=stroke)
        mask = mask.resize((size, size), Image.Resampling.BOX)
        canvas.paste(words.COLOURS[ink], (0, 0), mask)
        return _fractions(mask.getbbox() or (0, 0, 0, 0), size)


_STRIP = {"above": ((0.05,), (0.3,)), "below": ((0.7,), (0.95,))}


def layout(scene: Scene, rng: random.Random) -> list[Box]:
    """A cell for each drawing; cells do not overlap."""
    number = sum(part.count for part in scene.parts)
    if scene.word:
        low = 0.34 if scene.place == "above" else 0.03
        side = rng.uniform(0.5, 0.62)
        left = rng.uniform(0.05, 0.95 - side)
        return [(left, low + (0.63 - side) / 2, left + side, low + (0.63 + side) / 2)] * number
    if scene.relation == "wearing":
        side = rng.uniform(0.56, 0.64)
        left = 0.5 - side / 2 + rng.uniform(-0.08, 0.08)
        return [(left, 0.97 - side, left + side, 0.97), (0, 0, 1, 1)]
    if number == 1:
        low, high = {None: (0.6, 0.88), "big": (0.85, 0.94), "small": (0.3, 0.42)}[scene.parts[0].size]
        side = rng.uniform(low, high)
        left, top = rng.uniform(0.03, 0.97 - side), rng.uniform(0.03, 0.97 - side)
        return [(left, top, left + side, top + side)]
    if number == 2:
        return _pair(scene, rng)
    if number == 3 and rng.random() < 0.4:
        cells = [(x, 0.5, 0.31) for x in (0.175, 0.5, 0.825)]
    elif number == 3:
        cells = [(0.27, 0.27, 0.45), (0.73, 0.27, 0.45), (0.5, 0.74, 0.45)]
        if rng.random() < 0.5:
            cells = [(x, 1 - y, side) for x, y, side in cells]
    else:
        cells = [(x, y, 0.45) for y in (0.26, 0.74) for x in (0.26, 0.74)]
    rng.shuffle(cells)
    return [_jittered(x, y, side, 0.48 if side > 0.4 else 0.32, rng) for x, y, side in cells]


def _pair(scene: Scene, rng: random.Random) -> list[Box]:
    """Two cells, side by side or one above the other; in the order of the relation, else in random order."""
    parts = [part for part in scene.parts for _ in range(part.count)]
    widths = [{"big": 0.6, "small": 0.3, None: 0.46}[part.size] for part in parts]
    across = scene.relation == "left" if scene.relation else rng.random() < 0.6
    swapped = scene.relation is None and rng.random() < 0.5
    if swapped:
        widths.reverse()
    gap = (1 - sum(widths)) / 3
    starts, cells = (gap, 2 * gap + widths[0]), []
    for start, width in zip(starts, widths, strict=True):
        side = width * rng.uniform(0.88, 1.0)
        along = start + (width - side) / 2
        drift = (1 - side) / 2 + rng.uniform(-1, 1) * min(0.15, (1 - side) / 2 - 0.03)
        cells.append(
            (along, drift, along + side, drift + side) if across else (drift, along, drift + side, along + side)
        )
    return cells[::-1] if swapped else cells


def _jittered(x: float, y: float, side: float, room: float, rng: random.Random) -> Box:
    side *= rng.uniform(0.85, 1.0)
    free = (room - side) / 2
    x, y = x + rng.uniform(-free, free), y + rng.uniform(-free, free)
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


def _on_head(face: Box) -> Box:
    """The box of a hat: over the upper edge of the face."""
    width, height = face[2] - face[0], face[3] - face[1]
    middle, brim = (face[0] + face[2]) / 2, face[1] + 0.2 * height
    return middle - 0.36 * width, max(0.0, brim - 0.6 * width), middle + 0.36 * width, brim


def _fractions(box: tuple[int, int, int, int], size: int) -> Box:
    x0, y0, x1, y1 = (round(value / size, 4) for value in box)
    return x0, y0, x1, y1


def _trim(image: Image.Image) -> Image.Image:
    """Without its empty border."""
    return image.crop(image.getchannel("A").point([0] * 16 + [255] * 240).getbbox())


def tint(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The drawing, RGBA, in one colour with its own shading relative to its median lightness."""
    pixels = np.asarray(image.convert("RGBA"), dtype=np.float64)  # (H, W, 4)
    light = pixels[..., :3] @ (0.299, 0.587, 0.114) / 255  # (H, W)
    solid = light[pixels[..., 3] > 128]
    body = solid[solid > 0.2]  # not the outline, unless the whole thing is dark
    body = body if body.size > 0.25 * solid.size else solid
    middle = float(np.clip(np.median(body), 0.1, 1.0)) if body.size else 0.5
    target = np.array(colour, dtype=np.float64)
    shade = np.minimum(light / middle, 1.0)[..., None]
    if min(colour) > 200:
        shade = 0.4 + 0.6 * shade  # a white thing has light shadows
    gleam = np.clip((light - middle) / max(1 - middle, 1e-6), 0, 1)[..., None] * (0.35 if max(colour) < 90 else 0.6)
    tinted = target * shade * (1 - gleam) + 255 * gleam
    return Image.fromarray(np.dstack([tinted, pixels[..., 3]]).round().astype(np.uint8))
