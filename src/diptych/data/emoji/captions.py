"""Captions of single drawings, composed by rules from name, style and keywords."""

from __future__ import annotations

import re
import zlib

from diptych.data.emoji.name_fixes import CONCEPTS, WITH_ARTICLES
from diptych.data.emoji.wordlists import listed

_MASS = frozenset(
    listed("""
    bacon, broccoli, garlic, ginger, honey, cheese, bread, rice, sushi, salt, butter, ice, water, fire, snow,
    fog, rain, wind, lightning, money, luggage, clothing, music, hair, spaghetti, sake, seaweed, corn, soup,
    tea, milk, popcorn, food, cloth, thread, yarn, wood, paper, soap, toothpaste
    """)
)
_NOT_PLURAL = frozenset(
    listed("""
    bus, fleur-de-lis, glass, cross, cactus, octopus, lotus, hibiscus, compass, dress, mattress, abacus,
    cutlass, princess, boss, christmas, kiss, walrus, platypus, rhinoceros, hippopotamus, apparatus, bikini,
    tennis, us, pancreas, canvas, dais, chess, lens, mess, mass, caduceus, virus, gas, bass, swiss, goddess,
    stress, business, express, address, hostess, actress, process, access, abyss, albatross, less, harness,
    loss, toss, moss, grass, brass, plus, minus
    """)
)


_DETAILS = "|".join(
    listed("""
    haircut, massage, hand, boat, ball, bath, veil, headscarf, white cane, manual wheelchair, motorized wheelchair,
    tuxedo, baby, skullcap, steamy room, turban, crown
    """)
)
_ZODIAC = frozenset(
    listed("""
    aries, taurus, gemini, cancer, leo, virgo, libra, scorpio, sagittarius, capricorn, aquarius, pisces, ophiuchus
    """)
)
_SPELT = frozenset(listed("AB, ATM, CL, CT, DJ, DNA, ECG, GPS, ID, LED, NG, OK, QR, SOS, VR, VS, WC, HAL"))
_LIKE_YOU = ("uni", "use", "eu", "one", "once", "ewe", "ut", "ura")
_PREPOSITIONS = frozenset(
    listed("""
    with, of, in, on, for, from, at, without, who, showing, facing, holding, behind, over, between, wearing,
    made, pointing, pointed, curving, shaking, blowing, savoring, screaming, rolling, getting, under, up
    """)
)


def clean_name(name: str) -> str:
    """A CLDR short name as plain English: no parentheses, curly quotes or colons, exceptions from `CONCEPTS`."""
    name = name.replace("’", "'").replace("“", '"').replace("”", '"').replace("⊛", "").strip()
    name = re.sub(r"\s*\([^)]*\)", "", name).replace(": facing right", " facing right")
    if name in CONCEPTS:
        return CONCEPTS[name]
    if match := re.fullmatch(r"(man|woman|person|men|women|people): (.+)", name):
        who, what = match.groups()
        return f"bald {who}" if what == "bald" else f"{who} with {'a ' if what == 'beard' else ''}{what}"
    if match := re.fullmatch(r"(family|couple with heart|kiss): (.+)", name):
        joint = {"family": "family of", "kiss": "kiss between", "couple with heart": "couple with a heart,"}[match[1]]
        return f"{joint} {_listed(match[2].split(', '))}"
    if name.startswith("keycap: "):
        return f"keycap {name[8:]}"
    name = re.sub(r"^(.+-thirty|.+ o'clock)$", r"clock face showing \1", name)
    if name.endswith("suit levitating"):
        name = name.replace("in suit levitating", "levitating in a suit")
    if re.match(r"(man|woman|person|men|women|people) ", name):
        name = re.sub(rf" ({_DETAILS})(?= facing right$|$)", lambda m: f" a {m[1]}", name)
    if name.lower() in _ZODIAC:
        name = f"{name} zodiac sign"
    return re.sub(r"\s+", " ", name.replace(":", "")).strip()


def _listed(items: list[str]) -> str:
    items = [article(item) for item in items]
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def article(name: str) -> str:
    """The name with "a" or "an" where English wants one."""
    if name in WITH_ARTICLES:
        return WITH_ARTICLES[name]
    words = name.lower().split()
    if words[0] in {"man", "woman", "person", "boy", "girl", "child"}:
        return f"a {name}"
    head = []
    for word in words:  # the noun stands before the first preposition
        if word.strip(",") in _PREPOSITIONS and head:
            break
        head.append(word)
    if name.split()[0] in {"the", "a", "an", "two", "three", "no", "men", "women", "people"} or head[-1] in _MASS:
        return name
    if is_plural(head[-1]):
        return name
    return f"{'an' if _vowel_sound(name) else 'a'} {name}"


def is_plural(word: str) -> bool:
    if word in {"people", "men", "women", "children", "feet", "teeth", "dice", "mice", "geese"}:
        return True
    return word.endswith("s") and word not in _NOT_PLURAL and not word.endswith(("ss", "'s", "us")) and len(word) > 3


def _vowel_sound(name: str) -> bool:
    """Whether the name is pronounced with an initial vowel."""
    first = name.split()[0].strip("\"'")
    low = first.lower()
    if first in _SPELT or len(first) == 1:  # letter by letter: an SOS button, a VS button
        return low[0] in "aefhilmnorsx8"
    return (low[0] in "aeiou" and not low.startswith(_LIKE_YOU)) or low.startswith(("hour", "honor", "honest"))


_EXCLUDED_KEYWORDS = frozenset(
    listed("""
    face, emoji, bestest, ily, ilysm, fam, dope, dude, bruh, yolo, lol, rofl, lmao, omg, wtf, smh, tfw, tbh,
    idk, ngl, ttyl, ttfn, brb, cya, gtg, outtie, yas, yass, slay, sus, lit, fomo, ikr, bff, bffs, bae, ugh, meh,
    yum, yuck, nom, boo, yay, yeah, duh, ish, oops
    """)
)


def keyword_list(name: str, keywords: tuple[str, ...]) -> list[str]:
    """Keywords for captions: common words that are not in the name."""
    name_words = set(re.findall(r"[a-z]+", name.lower()))
    selected = []
    for keyword in keywords:
        words = re.findall(r"[a-z]+", keyword.lower())
        if (
            not re.fullmatch(r"[a-z][a-z \-]{2,18}", keyword)
            or set(words) <= name_words
            or keyword in _EXCLUDED_KEYWORDS
        ):
            continue
        selected.append(keyword)
    return selected


def captions(name: str, style_name: str, keywords: tuple[str, ...], key: str) -> list[str]:
    """Seven or eight captions; the first is plain, the second names the style. `key` seeds the random choices."""
    pick = zlib.crc32(key.encode())
    full = article(name)
    words = keyword_list(name, keywords)
    prefix = ("a drawing of", "a picture of", "a simple drawing of", "an illustration of")[pick % 4]
    lines = [
        full,
        f"{full}, in the style of {style_name}",
        name,
        f"an emoji of {full}",
        f"{prefix} {full}",
        f"{name}, {style_name} style",
        f"{style_name} emoji of {full}",
    ]
    if words:
        start = (pick >> 4) % len(words)
        selected = (words[start:] + words[:start])[:2]
        lines.append(", ".join([name, *selected]))
    return list(dict.fromkeys(lines))
