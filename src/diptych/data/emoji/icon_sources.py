"""The six open emoji sets and the Unicode names, fetched through `npm pack` at pinned versions.

Each package is one `.tgz` in a cache folder: downloaded under a temporary name, then renamed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.core.caches import cache_folder
from diptych.core.errors import UserError
from diptych.core.progress import track


@dataclasses.dataclass(frozen=True)
class IconSet:
    """One emoji set as Iconify publishes it."""

    style: str
    """Short name in keys and metadata, for example `noto`."""
    caption_name: str
    """Name in captions, for example `Noto`."""
    package: str
    version: str
    margin: float = 0.04
    """White border as a share of the image; negative where the set's own border is wide."""

    @property
    def file(self) -> str:
        return f"{self.package.strip('@').replace('/', '-')}-{self.version}.tgz"


@dataclasses.dataclass(frozen=True)
class Sources:
    """The parsed sources of a build."""

    icons: Mapping[str, dict[str, Any]]
    """style -> {"icons", "aliases", "chars", "info", "categories", "width", "height"}"""
    names: Mapping[str, tuple[str, tuple[str, ...]]]
    """code points ("1f34e") -> (CLDR short name, keywords)"""
    packages: tuple[dict[str, str], ...]
    """The packages: package, version, file, sha256."""


SETS = (
    IconSet("noto", "Noto", "@iconify-json/noto", "1.2.9", 0.03),
    IconSet("twemoji", "Twemoji", "@iconify-json/twemoji", "1.2.5", 0.06),
    IconSet("openmoji", "OpenMoji", "@iconify-json/openmoji", "1.2.29", -0.03),
    IconSet("fluent", "Fluent", "@iconify-json/fluent-emoji-flat", "1.2.6", 0.03),
    IconSet("emojione", "EmojiOne", "@iconify-json/emojione", "1.2.3", 0.05),
    IconSet("fxemoji", "FxEmoji", "@iconify-json/fxemoji", "1.2.2", 0.05),
)
CLDR = (
    ("cldr-annotations-full", "48.2.0", "annotations"),
    ("cldr-annotations-derived-full", "48.2.0", "annotationsDerived"),
)


def npm_folder(cache: Path | None = None) -> Path:
    """The folder of downloads: the argument, else $DIPTYCH_CACHE/npm, else ~/.cache/diptych/npm."""
    return cache_folder("npm") if cache is None else cache


def fetch(package: str, version: str, cache: Path) -> Path:
    """The package's tarball in `cache`, downloaded with `npm pack` unless cached."""
    target = cache / f"{package.strip('@').replace('/', '-')}-{version}.tgz"
    if target.exists():
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"npm is needed to download {package}: install Node.js, or put {target.name} into {cache}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        command = [npm, "pack", "--silent", f"{package}@{version}", "--pack-destination", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        except subprocess.TimeoutExpired:
            raise UserError(f"npm took over 10 minutes to download {package}@{version}: check the network") from None
        files = list(Path(folder).glob("*.tgz"))
        if done.returncode != 0 or len(files) != 1:
            reason = next((line for line in done.stderr.splitlines() if "error" in line.lower()), "no file came")
            raise UserError(f"npm could not download {package}@{version}: {reason.strip()}")
        os.replace(files[0], target)
    return target


def load_sources(cache: Path | None = None) -> Sources:
    """Fetch and parse all packages. Raises `UserError` when one cannot be downloaded or read."""
    folder = npm_folder(cache)
    icons: dict[str, dict[str, Any]] = {}
    packages: list[dict[str, str]] = []

    def members(package: str, version: str, wanted: list[str]) -> list[Any]:
        path = fetch(package, version, folder)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        packages.append({"package": package, "version": version, "file": path.name, "sha256": digest})
        try:
            with tarfile.open(path) as tar:
                return [json.load(_member(tar, f"package/{name}")) for name in wanted]
        except (tarfile.TarError, KeyError, OSError, EOFError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} is damaged ({reason}): delete it and run again") from None

    for one in track(SETS, "reading emoji sets"):
        files = ["icons.json", "chars.json", "info.json", "metadata.json"]
        body, chars, info, metadata = members(one.package, one.version, files)
        categories = {name: group for group, names in metadata.get("categories", {}).items() for name in names}
        icons[one.style] = {**body, "chars": chars, "info": info, "categories": categories}
    names: dict[str, tuple[str, tuple[str, ...]]] = {}
    for package, version, kind in CLDR:
        (table,) = members(package, version, [f"{kind}/en/annotations.json"])
        for text, entry in table[kind]["annotations"].items():
            if "tts" in entry:
                names[code_points(text)] = (entry["tts"][0], tuple(entry.get("default", ())))
    return Sources(icons=icons, names=names, packages=tuple(packages))


def code_points(text: str) -> str:
    """`"1f468-200d-1f373"`: hexadecimal code points without the emoji variation selector."""
    return "-".join(f"{ord(c):x}" for c in text if c != "\ufe0f")


def _member(tar: tarfile.TarFile, name: str):
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file
