"""Foils: captions like a true one, but wrong in the attribute that the scene's category tests."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from diptych.data.emoji import scene_words as words
from diptych.data.emoji.scene_sampling import COLOURS, Vocabulary, misspell, other_background
from diptych.data.emoji.scene_specs import Scene, ScenePart, background_phrase, wordings

MAX_FOILS = 6


def foils(scene: Scene, true: list[str], vocabulary: Vocabulary, rng: random.Random) -> list[str]:
    """Up to six captions worded like the first, each wrong in the tested attribute."""
    candidates: dict[str, None] = {}
    where, content = background_phrase(scene), scene.content()
    if scene.relation in ("left", "above"):
        for line in _turned(scene):
            candidates[line + where] = None
    for other in _alternatives(scene, vocabulary, rng):
        if len({part.concept for part in other.parts}) < len(other.parts):
            continue  # "a cat and a cat"
        if other.content() != content or other.background != scene.background:
            candidates[wordings(other)[0] + background_phrase(other)] = None
        if len(candidates) >= MAX_FOILS + 2:
            break
    return [foil for foil in candidates if foil not in true][:MAX_FOILS]


def _turned(scene: Scene) -> list[str]:
    """All wrong relations of the two parts."""
    a, b = (str(part) for part in scene.parts)
    left = [f"{a} to the left of {b}", f"{b} to the right of {a}"]
    right = [f"{b} to the left of {a}", f"{a} to the right of {b}"]
    above, below = [f"{a} above {b}", f"{b} below {a}"], [f"{b} above {a}", f"{a} below {b}"]
    if scene.relation == "left":
        return (
            [*right, above[0], below[1], below[0], above[1]] if scene.category == "positional" else [right[1], right[0]]
        )
    return [*below, left[0], right[1], right[0], left[1]] if scene.category == "positional" else [below[1], below[0]]


def _alternatives(scene: Scene, vocabulary: Vocabulary, rng: random.Random) -> Iterator[Scene]:
    """Endless scenes that differ in what the category tests."""
    parts, category = scene.parts, scene.category

    def changed(index: int, **changes) -> Scene:
        return replace(scene, parts=tuple(replace(p, **changes) if i == index else p for i, p in enumerate(parts)))

    if category in ("colors", "descriptions") and len(parts) == 2 and parts[0].colour != parts[1].colour:
        yield replace(
            scene, parts=(replace(parts[0], colour=parts[1].colour), replace(parts[1], colour=parts[0].colour))
        )
    if category in ("conflicting", "descriptions") and len(parts) == 2 and parts[0].size != parts[1].size:
        yield replace(scene, parts=(replace(parts[0], size=parts[1].size), replace(parts[1], size=parts[0].size)))
    if category == "counting":
        if len(parts) == 2 and parts[0].count != parts[1].count:
            yield replace(
                scene, parts=(replace(parts[0], count=parts[1].count), replace(parts[1], count=parts[0].count))
            )
        near = sorted(range(1, 7), key=lambda n: abs(n - parts[0].count))
        for n in near:
            for index in range(len(parts)):
                yield changed(index, count=n if index == 0 else rng.randint(1, 4))
    if category == "conflicting" and parts[0].colour:
        yield changed(0, colour=words.USUAL[parts[0].concept])
    for _ in range(200):
        index = rng.randrange(len(parts)) if parts else 0
        if category == "text":
            yield replace(scene, word=rng.choice(words.WRITABLE))
        elif category == "misspellings":
            other = rng.choice(vocabulary.all)
            if spelled := misspell(other, vocabulary.all, rng):
                yield replace(scene, parts=(ScenePart(other),), spelling=spelled)
        elif category == "rare-words":
            yield changed(0, concept=rng.choice(vocabulary.rare))
        elif category == "dalle" and scene.relation == "wearing":
            yield changed(1, concept=rng.choice(words.HATS)) if index else changed(0, concept=rng.choice(words.FACES))
        elif category == "dalle":
            yield changed(index, concept=rng.choice(vocabulary.all))
        elif category == "counting":
            yield changed(index, count=rng.randint(1, 6))
        elif parts[index].colour:
            if category == "descriptions" and scene.background != "white" and rng.random() < 0.3:
                yield replace(scene, background=other_background(rng, scene.background))
            yield changed(index, colour=rng.choice(COLOURS))
        elif category == "conflicting":
            pool = words.LARGE if parts[index].concept in words.LARGE else words.SMALL
            yield changed(index, concept=rng.choice(pool))
        elif category == "colors":
            yield replace(scene, background=other_background(rng, scene.background))
