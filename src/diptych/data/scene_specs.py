"""What a scene shows, in words: sampling, captions, and foils that are wrong in exactly the tested attribute.

The categories are DrawBench's (Saharia et al. 2022, Imagen, section 3.3 and appendix C) as far as drawings can show them.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from diptych.data import scene_words as words
from diptych.data.captions import article
from diptych.data.hashing import stable_hash

HELD_OUT_SHARE = 0.04
CATEGORIES = (
    "colors", "conflicting", "counting", "dalle", "descriptions", "misspellings", "positional", "rare-words", "text",
)  # fmt: skip
COLOURS = tuple(words.COLOURS)
MAX_FOILS = 6


@dataclasses.dataclass(frozen=True)
class Part:
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
    """Everything that a scene's captions may speak of."""

    category: str
    parts: tuple[Part, ...] = ()
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
        """What is shown, the same for equal scenes whatever their category, style and (mostly) background."""
        if self.category == "misspellings":
            return ("spelling", self.parts[0].concept)
        parts = [dataclasses.astuple(part) for part in self.parts]
        if self.relation is None:
            parts.sort(key=str)
        plain = len(parts) == 1 and not self.word and self.parts[0] == Part(self.parts[0].concept)
        text = (self.word, self.ink, self.place if parts else "") if self.word else ()
        return (*parts, self.relation, text, self.background if plain else "")

    @property
    def split(self) -> str:
        """A fixed share of all contents is never trained on."""
        return "held-out" if stable_hash("scene", repr(self.content())) < HELD_OUT_SHARE * 2**64 else "train"


def captions(scene: Scene, spoken: str, rng: random.Random) -> list[str]:
    """Three or four wordings, each of which says all that is in the scene; the last names the style."""
    ground = _ground(scene)
    plain = wordings(scene)
    opening = rng.choice(("a drawing of", "a picture of", "an illustration of", "a simple picture of"))
    lines = [plain[0] + ground, f"{opening} {rng.choice(plain[:2])}{ground}"]
    lines += [line + ground for line in plain[1:3]]
    lines.append(f"{rng.choice(plain)}{ground}, in the style of {spoken}")
    return list(dict.fromkeys(lines[:3] + lines[-1:]))


def wordings(scene: Scene) -> list[str]:
    """The scene without its background in different words, the plainest first."""
    names = [str(part) for part in scene.parts]
    if scene.spelling:
        return [article(scene.spelling)]
    if scene.word:
        inked = f' in {scene.ink} letters' if scene.ink != "black" else ""
        if not names:
            return [f'the word "{scene.word}"{inked}', f'"{scene.word}" written{inked}', f'text that says "{scene.word}"{inked}']
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


def foils(scene: Scene, true: list[str], vocabulary: Vocabulary, rng: random.Random) -> list[str]:
    """Up to six captions in the words of the first, each wrong in the tested attribute."""
    found: dict[str, None] = {}
    ground = _ground(scene)
    if scene.relation in ("left", "above"):
        for line in _turned(scene):
            found[line + ground] = None
    for other in _alternatives(scene, vocabulary, rng):
        if other.content() != scene.content() or other.background != scene.background:
            found[wordings(other)[0] + _ground(other)] = None
        if len(found) >= MAX_FOILS + 2:
            break
    return [foil for foil in found if foil not in true][:MAX_FOILS]


def _turned(scene: Scene) -> list[str]:
    """All wrong places of the two parts."""
    a, b = (str(part) for part in scene.parts)
    left = [f"{a} to the left of {b}", f"{b} to the right of {a}"]
    right = [f"{b} to the left of {a}", f"{a} to the right of {b}"]
    above, below = [f"{a} above {b}", f"{b} below {a}"], [f"{b} above {a}", f"{a} below {b}"]
    if scene.relation == "left":
        return [*right, above[0], below[1], below[0], above[1]] if scene.category == "positional" else [right[1], right[0]]
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
            yield replace(scene, word=rng.choice(words.WRITTEN))
        elif category == "misspellings":
            other = rng.choice(vocabulary.all)
            if spelled := misspell(other, vocabulary.all, rng):
                yield replace(scene, parts=(Part(other),), spelling=spelled)
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
                yield replace(scene, background=_other(rng, scene.background))
            yield changed(index, colour=rng.choice(COLOURS))
        elif category == "conflicting":
            pool = words.LARGE if parts[index].concept in words.LARGE else words.SMALL
            yield changed(index, concept=rng.choice(pool))
        elif category == "colors":
            yield replace(scene, background=_other(rng, scene.background))


def _other(rng: random.Random, background: str) -> str:
    return rng.choice([name for name in words.BACKGROUNDS if name not in ("white", background)])


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _ground(scene: Scene) -> str:
    return "" if scene.background == "white" else f" on {article(scene.background)} background"


class Vocabulary:
    """The concepts that one style can draw."""

    def __init__(self, drawn: set[str], taken: set[str]) -> None:
        """`drawn`: concepts with a drawing; `taken`: names of single drawings, which no coloured thing may repeat."""
        self.groups = {group: [w for w in names if w in drawn] for group, names in words.GROUPS.items()}
        self.groups = {group: names for group, names in self.groups.items() if names}
        self.all = [name for names in self.groups.values() for name in names]
        self.usual = [name for name in words.USUAL if name in drawn]
        self.large, self.small = ([n for n in names if n in drawn] for names in (words.LARGE, words.SMALL))
        self.rare, self.faces, self.hats = (
            [n for n in names if n in drawn] for names in (words.RARE, words.FACES, words.HATS)
        )
        self.taken = taken

    def pick(self, rng: random.Random, count: int, apart: bool = False) -> list[str]:
        """Different concepts, `apart`: from different groups. Groups are as likely as the root of their size."""
        chosen: list[str] = []
        groups = list(self.groups)
        while len(chosen) < count and groups:
            group = rng.choices(groups, [len(self.groups[g]) ** 0.5 for g in groups])[0]
            name = rng.choice(self.groups[group])
            if name not in chosen:
                chosen.append(name)
            if apart:
                groups.remove(group)
        return chosen

    def coloured(self, rng: random.Random, concept: str, background: str, avoid: tuple[str, ...] = ()) -> Part | None:
        """The concept in a colour that shows on the background, unless that is the name of another drawing."""
        fit = [c for c in COLOURS if c not in (background, *avoid) and f"{c} {concept}" not in self.taken]
        fit = [c for c in fit if not any(word in COLOURS for word in concept.split())]
        return Part(concept, colour=rng.choice(fit)) if fit else None


def sample_scene(category: str, vocabulary: Vocabulary, rng: random.Random) -> Scene | None:
    """A scene of the category, or None where the dice fell badly (draw again)."""
    background = "white" if rng.random() < 0.5 else _other(rng, "white")
    scene = _SAMPLERS[category](vocabulary, rng, background)
    return scene


def _colors(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    if rng.random() < 0.2:
        return Scene("colors", (Part(v.pick(rng, 1)[0]),), background=_other(rng, "white"))
    first, second = v.pick(rng, 2)
    a = v.coloured(rng, first, background)
    if rng.random() < 0.4:
        return a and Scene("colors", (a,), background=background)
    b = a and v.coloured(rng, second, background, (a.colour or "",))
    return Scene("colors", (a, b), background=background) if a and b else None


def _conflicting(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    if rng.random() < 0.5 and v.usual:
        concept = rng.choice(v.usual)
        part = v.coloured(rng, concept, background, (words.USUAL[concept],))
        return part and Scene("conflicting", (part,), background=background)
    if not v.large or not v.small:
        return None
    parts = (Part(rng.choice(v.large), size="small"), Part(rng.choice(v.small), size="big"))
    return Scene("conflicting", parts, background=background)


def _counting(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    if rng.random() < 0.6:
        return Scene("counting", (Part(v.pick(rng, 1)[0], count=rng.choice((2, 3, 4))),), background=background)
    first, second = v.pick(rng, 2)
    counts = rng.choice(((1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (1, 1)))
    return Scene("counting", (Part(first, counts[0]), Part(second, counts[1])), background=background)


def _dalle(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    if rng.random() < 0.35 and v.faces and v.hats:
        parts = (Part(rng.choice(v.faces)), Part(rng.choice(v.hats)))
        return Scene("dalle", parts, relation="wearing", background=background)
    names = v.pick(rng, rng.choice((2, 2, 3)), apart=True)
    return Scene("dalle", tuple(map(Part, names)), background=background) if len(names) > 1 else None


def _descriptions(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    first, second = v.pick(rng, 2)
    a = v.coloured(rng, first, background)
    b = a and v.coloured(rng, second, background, (a.colour or "",))
    if not a or not b:
        return None
    if rng.random() < 0.6:
        sizes = rng.choice((("big", "small"), ("small", "big")))
        a, b = replace(a, size=sizes[0]), replace(b, size=sizes[1])
    relation = rng.choice(("left", "above", None))
    return Scene("descriptions", (a, b), relation=relation, background=background)


def _misspellings(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    concept = v.pick(rng, 1)[0]
    spelled = misspell(concept, v.all, rng)
    return Scene("misspellings", (Part(concept),), background=background, spelling=spelled) if spelled else None


def _positional(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    first, second = v.pick(rng, 2)
    return Scene("positional", (Part(first), Part(second)), relation=rng.choice(("left", "above")), background=background)


def _rare(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    return Scene("rare-words", (Part(rng.choice(v.rare)),), background=_other(rng, "white")) if v.rare else None


def _text(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    background = rng.choice(("white", "white", "white", "yellow", "pink", "grey"))
    parts = () if rng.random() < 0.35 else (Part(v.pick(rng, 1)[0]),)
    ink = "black" if rng.random() < 0.5 else rng.choice(words.INK)
    return Scene("text", parts, word=rng.choice(words.WRITTEN), ink=ink, place=rng.choice(("above", "below")), background=background)


_SAMPLERS: dict[str, Callable[[Vocabulary, random.Random, str], Scene | None]] = {
    "colors": _colors,
    "conflicting": _conflicting,
    "counting": _counting,
    "dalle": _dalle,
    "descriptions": _descriptions,
    "misspellings": _misspellings,
    "positional": _positional,
    "rare-words": _rare,
    "text": _text,
}


def misspell(name: str, names: list[str], rng: random.Random) -> str | None:
    """The name with one slip in its longest word, or None; never as near to another name as to its own."""
    longest = max(name.split(), key=len)
    if len(longest) < 5 or not longest.isalpha():
        return None
    for _ in range(8):
        at = rng.randrange(1, len(longest) - 1)
        a, b, rest = longest[:at], longest[at], longest[at + 1 :]
        slip = rng.choice((a + rest, a + b + b + rest, a + rest[0] + b + rest[1:], a + rng.choice("aeiou") + rest))
        others = {word for other in names if other != name for word in other.split()} - set(name.split())
        if slip != longest and not any(_near(slip, other) for other in others):
            return name.replace(longest, slip)
    return None


def _near(one: str, two: str) -> bool:
    """Whether one slip (a letter more, less, other, or two swapped) turns one into two."""
    if one == two or abs(len(one) - len(two)) > 1:
        return one == two
    start = next((i for i, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))
    x, y = one[start:], two[start:]
    return x[1:] == y[1:] or x[1:] == y or x == y[1:] or (x[:2] == y[1::-1] and x[2:] == y[2:])
