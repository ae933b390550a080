"""Which drawing shows what: one concept per code point sequence, shared by all sets.

Four sets say which code points a drawing stands for. The other two only have names, some run together
("alarmclock") or from older Unicode versions; those are matched by their letters against the CLDR names, the character
names and the names in the other sets.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from diptych.data.sources import Sources

SKIN_TONES = {f"1f3f{d}" for d in "bcdef"}
_TONE_NAME = re.compile(r"(^|-)(skin-tone|type-[1-6](-\d)?)$|^(light|medium|dark|emoji)-?(modifier|skin)")


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One icon of one set."""

    style: str
    icon: str
    """Name in the set."""
    codes: str
    """Code points ("1f34e"), or "name:..." where none is known."""
    name: str
    """CLDR short name, else the icon's name with spaces."""
    keywords: tuple[str, ...]
    group: str
    """Emoji group as the set names it, "" if unknown."""

    @property
    def key(self) -> str:
        return f"{self.style}-{self.codes.replace('name:', '')}"


def drawings(sources: Sources) -> list[Drawing]:
    """Every drawing but skin-tone variants and flags of regions, at most one per style and code points."""
    letters = _letters(sources)
    found: dict[tuple[str, str], Drawing] = {}
    for style, data in sources.icons.items():
        for icon, codes in _coded(style, data, letters):
            if codes.startswith("name:") and _unwanted(icon, data["categories"].get(icon, "")):
                continue
            if _is_tone(codes) or _is_region_flag(codes) or _TONE_NAME.search(icon):
                continue
            name, keywords = sources.names.get(codes, (icon.replace("-", " "), ()))
            group = data["categories"].get(icon, "")
            found.setdefault((style, codes), Drawing(style, icon, codes, name, keywords, group))
    return [found[key] for key in sorted(found)]


def _coded(style: str, data: dict[str, Any], letters: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(icon, code points) of a set; sets without a table are matched by name."""
    icons = data["icons"]
    if data["chars"]:
        for codes, icon in sorted(data["chars"].items()):
            codes = "-".join(part.lstrip("0") for part in codes.lower().split("-") if part != "fe0f")
            private = "e000" <= codes <= "f8ff" and len(codes) == 4
            yield icon, f"name:{icon}" if private else codes
    else:
        for icon in sorted(icons):
            yield icon, letters.get(_squash(icon), f"name:{icon}")


def _letters(sources: Sources) -> dict[str, str]:
    """Names by their letters alone -> code points. Earlier sources of names win."""
    table: dict[str, str] = {}
    for codes, (name, _) in sources.names.items():
        table.setdefault(_squash(name), codes)
    for data in sources.icons.values():
        by_icon: dict[str, str] = {}
        for codes, icon in sorted(data["chars"].items()):
            codes = "-".join(part.lstrip("0") for part in codes.lower().split("-") if part != "fe0f")
            if not ("e000" <= codes <= "f8ff" and len(codes) == 4):
                by_icon.setdefault(icon, codes)
        for icon, codes in by_icon.items():
            table.setdefault(_squash(icon), codes)
        for alias, target in data.get("aliases", {}).items():
            if target["parent"] in by_icon and not set(target) & {"hFlip", "vFlip", "rotate"}:
                table.setdefault(_squash(alias), by_icon[target["parent"]])
    for codes in list(sources.names):
        if "-" not in codes:
            table.setdefault(_squash(unicodedata.name(chr(int(codes, 16)), "")), codes)
    return table


def _squash(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]|\b(and|the|with)\b", "", plain.replace("-", " "))


def _is_tone(codes: str) -> bool:
    return any(part in SKIN_TONES for part in codes.split("-"))


def _is_region_flag(codes: str) -> bool:
    return any(re.fullmatch(r"1f1[ef][0-9a-f]|e00[0-7][0-9a-f]", part) for part in codes.split("-"))


def _unwanted(icon: str, group: str) -> bool:
    """Drawings known by name alone that are flags."""
    return group == "Flags" or icon.startswith("flag") or icon.endswith("-flag")
