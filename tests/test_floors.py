"""What pyproject.toml asks for at least, and the versions that constraints.txt pins, agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}
MENDED = {"torch": "2.10", "transformers": "5.9.9", "pillow": "12.9.9"}
"""Releases with known holes."""
ASKED = {
    canonicalize_name(asked.name): asked
    for text in [
        *PROJECT["dependencies"],
        *(each for part in PROJECT["optional-dependencies"].values() for each in part),
    ]
    if (asked := Requirement(text)).name != "diptych"
}


@pytest.mark.parametrize("name", sorted(ASKED))
def test_what_is_pinned_is_what_is_asked_for(name: str) -> None:
    assert name in PINNED and ASKED[name].specifier.contains(PINNED[name])


@pytest.mark.parametrize("name", MENDED)
def test_releases_with_known_holes_are_refused(name: str) -> None:
    assert not ASKED[name].specifier.contains(MENDED[name])
