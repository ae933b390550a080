"""Concepts of the drawings: one per code point sequence, shared by all sets.

Four sets state the code points of a drawing. The other two only have names, some run together
("alarmclock") or from older Unicode versions; those are matched by their letters against the CLDR names, the character
names and the names in the other sets.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from diptych.data.emoji.icon_sources import Sources
from diptych.data.emoji.name_fixes import FXEMOJI, OPENMOJI_OUT

SKIN_TONES = {f"1f3f{d}" for d in "bcdef"}
_TONE_NAME = re.compile(r"(^|-)(skin-tone|type-[1-6](-\d)?)$|^(light|medium|dark|emoji)-?(modifier|skin)")


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One icon of one set."""

    style: str
    icon: str
    """Name in the set."""
    codes: str
    """Code points ("1f34e"), or "name:..." without any."""
    name: str
    """CLDR short name, else the icon's name with spaces."""
    keywords: tuple[str, ...]
    group: str
    """Emoji group as the set names it, "" if unknown."""
    by_hand: bool = False
    """Whether the name comes from a table that may still change; such a drawing is never held out."""

    @property
    def key(self) -> str:
        return f"{self.style}-{self.codes.replace('name:', '')}"


def drawings(sources: Sources) -> list[Drawing]:
    """Every drawing but skin-tone variants and flags of regions, at most one per style and code points."""
    codes_by_name = _letters(sources)
    by_style: dict[tuple[str, str], Drawing] = {}
    for style, data in sources.icons.items():
        for icon, codes, by_hand in _coded(style, data, codes_by_name):
            group = data["categories"].get(icon, "")
            unnamed = codes not in sources.names
            if unnamed and (icon.startswith("flag-for-") or codes in {"20e3", "fe82b"}):
                continue
            if _is_tone(codes) or _is_region_flag(codes) or _TONE_NAME.search(icon):
                continue
            plain = FXEMOJI.get(icon, icon) if by_hand else icon
            name, keywords = sources.names.get(codes, (plain.replace("-", " ").removeprefix("name:"), ()))
            by_style.setdefault((style, codes), Drawing(style, icon, codes, name, keywords, group, by_hand))
    return [by_style[key] for key in sorted(by_style)]


def _coded(style: str, data: dict[str, Any], codes_by_name: dict[str, str]) -> Iterator[tuple[str, str, bool]]:
    """(icon, code points, named by hand) of a set; sets without a table are matched by name."""
    for codes, icon in sorted(data["chars"].items()):
        codes = normal(codes)
        if not _is_private(codes):
            yield icon, codes, False
        elif icon not in OPENMOJI_OUT:  # drawings beyond Unicode; some show what has a code point as well
            yield icon, codes_by_name.get(squash(icon), f"name:{icon}"), True
    if not data["chars"]:
        for icon in sorted(data["icons"]):
            if squash(icon) in codes_by_name:
                yield icon, codes_by_name[squash(icon)], False
            elif style != "fxemoji":
                yield icon, f"name:{icon}", False
        for icon in sorted(set(data["icons"]) & set(FXEMOJI)) if style == "fxemoji" else ():
            if squash(icon) not in codes_by_name:
                yield icon, codes_by_name.get(squash(FXEMOJI[icon]), f"name:{icon}"), True


def normal(codes: str) -> str:
    """Code points without the variation selector and leading zeros."""
    return "-".join(part.lstrip("0") for part in codes.lower().split("-") if part != "fe0f")


def _is_private(codes: str) -> bool:
    return len(codes) == 4 and "e000" <= codes <= "f8ff"


def _letters(sources: Sources) -> dict[str, str]:
    """Names by their letters alone -> code points. Earlier sources of names win."""
    table: dict[str, str] = {}
    for codes, (name, _) in sources.names.items():
        table.setdefault(squash(name), codes)
    for data in sources.icons.values():
        by_icon: dict[str, str] = {}
        for codes, icon in sorted(data["chars"].items()):
            if not _is_private(normal(codes)):
                by_icon.setdefault(icon, normal(codes))
        for icon, codes in by_icon.items():
            table.setdefault(squash(icon), codes)
        for alias, target in data.get("aliases", {}).items():
            if target["parent"] in by_icon and not set(target) & {"hFlip", "vFlip", "rotate"}:
                table.setdefault(squash(alias), by_icon[target["parent"]])
    for codes in list(sources.names):
        if "-" not in codes:
            table.setdefault(squash(unicodedata.name(chr(int(codes, 16)), "")), codes)
    return table


def squash(name: str) -> str:
    """A name by its letters and digits alone."""
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]|\b(and|the|with)\b", "", plain.replace("-", " "))


def _is_tone(codes: str) -> bool:
    return any(part in SKIN_TONES for part in codes.split("-"))


def _is_region_flag(codes: str) -> bool:
    return any(re.fullmatch(r"1f1[ef][0-9a-f]|e00[0-7][0-9a-f]", part) for part in codes.split("-"))
