"""Scene descriptions and their captions.

The categories are DrawBench's (Saharia et al. 2022, Imagen, section 3.3 and appendix C) as far as drawings can show
them.
"""

from __future__ import annotations

import dataclasses
import random

from diptych.core.hashing import stable_hash
from diptych.data.emoji import scene_words as words
from diptych.data.emoji.captions import article

HELD_OUT_SHARE = 0.04
CATEGORIES = (
    "colors", "conflicting", "counting", "dalle", "descriptions", "misspellings", "positional", "rare-words", "text",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ScenePart:
    """Some equal drawings."""

    concept: str
    count: int = 1
    colour: str | None = None
    """Tint; None for the drawing's own colours."""
    size: str | None = None
    """"big", "small" or None."""

    def __str__(self) -> str:
        adjectives = [word for word in (self.size, self.colour) if word]
        if self.count == 1:
            return article(" ".join([*adjectives, self.concept]))
        return " ".join([words.NUMBERS[self.count], *adjectives, words.plural(self.concept)])


@dataclasses.dataclass(frozen=True)
class Scene:
    """The content of a scene: all that its captions describe."""

    category: str
    parts: tuple[ScenePart, ...] = ()
    relation: str | None = None
    """How the first part stands to the second: "left", "above", "wearing" (face, hat) or None."""
    word: str | None = None
    ink: str = "black"
    place: str = "below"
    """Where the word stands: "above" or "below" the drawing."""
    background: str = "white"
    spelling: str | None = None
    """The misspelled name that captions use."""

    def content(self) -> tuple:
        """The content as a tuple, equal for equal scenes of any category, style and (mostly) background."""
        if self.category == "misspellings":
            return ("spelling", self.parts[0].concept)
        parts = [(part.concept, part.count, part.colour, part.size) for part in self.parts]
        if self.relation is None:
            parts.sort(key=str)
        plain = len(parts) == 1 and not self.word and self.parts[0] == ScenePart(self.parts[0].concept)
        text = (self.word, self.ink, self.place if parts else "") if self.word else ()
        return (*parts, self.relation, text, self.background if plain else "")

    @property
    def split(self) -> str:
        """The split, by a hash of the content: a fixed share is held out."""
        return "held-out" if stable_hash("scene", repr(self.content())) < HELD_OUT_SHARE * 2**64 else "train"


def captions(scene: Scene, style_name: str, rng: random.Random) -> list[str]:
    """Three or four captions, each of the whole scene; the last names the style."""
    where = background_phrase(scene)
    plain = wordings(scene)
    opening = rng.choice(("a drawing of", "a picture of", "an illustration of", "a simple picture of"))
    lines = [plain[0] + where, f"{opening} {rng.choice(plain[:2])}{where}"]
    lines += [line + where for line in plain[1:3]]
    lines.append(f"{rng.choice(plain)}{where}, in the style of {style_name}")
    return list(dict.fromkeys(lines[:3] + lines[-1:]))


def wordings(scene: Scene) -> list[str]:
    """The scene without its background in different words, the plainest first."""
    names = [str(part) for part in scene.parts]
    if scene.spelling:
        return [article(scene.spelling)]
    if scene.word:
        inked = f" in {scene.ink} letters" if scene.ink != "black" else ""
        if not names:
            return [
                f'the word "{scene.word}"{inked}',
                f'"{scene.word}" written{inked}',
                f'text that says "{scene.word}"{inked}',
            ]
        what, word, place = names[0], scene.word, scene.place
        return [
            f'{what} with the word "{word}"{inked} {place} it',
            f'the word "{word}"{inked} {place} {what}',
            f'"{word}" written{inked} {place} {what}',
        ]
    if scene.relation == "left":
        a, b = names
        return [f"{a} to the left of {b}", f"{b} to the right of {a}", f"{a} left of {b}"]
    if scene.relation == "above":
        a, b = names
        return [f"{a} above {b}", f"{b} below {a}", f"{b} with {a} above it"]
    if scene.relation == "wearing":
        a, b = names
        return [f"{a} wearing {b}", f"{a} with {b} on its head", f"{b} on {a}"]
    if len(names) == 1:
        if scene.parts[0].count > 1:
            return [names[0], f"exactly {names[0]}", f"a group of {names[0]}"]
        return [names[0], f"one {names[0].split(' ', 1)[1]}"]
    turned = names[::-1]
    lines = [_and(names), _and(turned)]
    if scene.category == "conflicting" and {part.size for part in scene.parts} == {"big", "small"}:
        small, big = sorted(scene.parts, key=lambda part: part.size != "small")
        thin, thick = article(small.concept), article(big.concept)
        return [lines[0], f"{thick} bigger than {thin}", f"{thin} smaller than {thick}"]
    return [*lines, f"{names[0]} together with {_and(names[1:])}"]


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def background_phrase(scene: Scene) -> str:
    """The end of a caption, which names the background; empty for white."""
    return "" if scene.background == "white" else f" on {article(scene.background)} background"
