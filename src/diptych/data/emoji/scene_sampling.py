"""Random scenes: the vocabulary of a style, a sampler per category, misspelt names."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from diptych.data.emoji import scene_words as words
from diptych.data.emoji.scene_specs import Scene, ScenePart

COLOURS = tuple(words.COLOURS)


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
        picked: list[str] = []
        groups = list(self.groups)
        while len(picked) < count and groups:
            group = rng.choices(groups, [len(self.groups[g]) ** 0.5 for g in groups])[0]
            name = rng.choice(self.groups[group])
            if name not in picked:
                picked.append(name)
            if apart:
                groups.remove(group)
        return picked

    def coloured(
        self, rng: random.Random, concept: str, background: str, avoid: tuple[str, ...] = ()
    ) -> ScenePart | None:
        """The concept in a colour other than the background, unless that is the name of another drawing."""
        colours = [c for c in COLOURS if c not in (background, *avoid) and f"{c} {concept}" not in self.taken]
        colours = [c for c in colours if not any(word in COLOURS for word in concept.split())]
        return ScenePart(concept, colour=rng.choice(colours)) if colours else None


def sample_scene(category: str, vocabulary: Vocabulary, rng: random.Random) -> Scene | None:
    """A scene of the category, or None where the vocabulary has no such scene; sample again."""
    background = "white" if rng.random() < 0.5 else other_background(rng, "white")
    return _SAMPLERS[category](vocabulary, rng, background)


def _colors(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    if rng.random() < 0.2:
        return Scene("colors", (ScenePart(v.pick(rng, 1)[0]),), background=other_background(rng, "white"))
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
    parts = (ScenePart(rng.choice(v.large), size="small"), ScenePart(rng.choice(v.small), size="big"))
    return Scene("conflicting", parts, background=background)


def _counting(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    if rng.random() < 0.6:
        return Scene("counting", (ScenePart(v.pick(rng, 1)[0], count=rng.choice((2, 3, 4))),), background=background)
    first, second = v.pick(rng, 2)
    counts = rng.choice(((1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (1, 1)))
    return Scene("counting", (ScenePart(first, counts[0]), ScenePart(second, counts[1])), background=background)


def _dalle(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    if rng.random() < 0.35 and v.faces and v.hats:
        parts = (ScenePart(rng.choice(v.faces)), ScenePart(rng.choice(v.hats)))
        return Scene("dalle", parts, relation="wearing", background=background)
    names = v.pick(rng, rng.choice((2, 2, 3)), apart=True)
    return Scene("dalle", tuple(map(ScenePart, names)), background=background) if len(names) > 1 else None


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
    return Scene("misspellings", (ScenePart(concept),), background=background, spelling=spelled) if spelled else None


def _positional(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    first, second = v.pick(rng, 2)
    return Scene(
        "positional",
        (ScenePart(first), ScenePart(second)),
        relation=rng.choice(("left", "above")),
        background=background,
    )


def _rare(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    return (
        Scene("rare-words", (ScenePart(rng.choice(v.rare)),), background=other_background(rng, "white"))
        if v.rare
        else None
    )


def _text(v: Vocabulary, rng: random.Random, background: str) -> Scene | None:
    background = rng.choice(("white", "white", "white", "yellow", "pink", "grey"))
    parts = () if rng.random() < 0.35 else (ScenePart(v.pick(rng, 1)[0]),)
    ink = "black" if rng.random() < 0.5 else rng.choice(words.INK)
    return Scene(
        "text",
        parts,
        word=rng.choice(words.WRITABLE),
        ink=ink,
        place=rng.choice(("above", "below")),
        background=background,
    )


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


def other_background(rng: random.Random, background: str) -> str:
    """A coloured background that is not this one."""
    return rng.choice([name for name in words.BACKGROUNDS if name not in ("white", background)])


def misspell(name: str, names: list[str], rng: random.Random) -> str | None:
    """The name with one slip in its longest word, or None; never as near to another name as to its own."""
    longest = max(name.split(), key=len)
    if len(longest) < 5 or not longest.isalpha():
        return None
    others = {word for other in names if other != name for word in other.split()} - set(name.split())
    for _ in range(8):
        at = rng.randrange(1, len(longest) - 1)
        a, b, rest = longest[:at], longest[at], longest[at + 1 :]
        slip = rng.choice((a + rest, a + b + b + rest, a + rest[0] + b + rest[1:], a + rng.choice("aeiou") + rest))
        if slip != longest and not any(abs(len(slip) - len(other)) < 2 and _near(slip, other) for other in others):
            return name.replace(longest, slip)
    return None


def _near(one: str, two: str) -> bool:
    """Whether one slip (a letter more, less, other, or two swapped) turns one into two."""
    if one == two or abs(len(one) - len(two)) > 1:
        return one == two
    start = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    x, y = one[start:], two[start:]
    return x[1:] == y[1:] or x[1:] == y or x == y[1:] or (x[:2] == y[1::-1] and x[2:] == y[2:])
