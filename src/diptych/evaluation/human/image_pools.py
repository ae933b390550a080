"""Folders of images with their prompts: what a study is made from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych.core.errors import UserError, warn
from diptych.data.dataset_config import DataConfig
from diptych.data.folder_scan import Listing, index_folder
from diptych.data.folders import FolderSource
from diptych.data.quarantine import BrokenExample
from diptych.evaluation.set_files import SUFFIXES, stored_row


@dataclass(frozen=True)
class ImagePool:
    """The images of one model, or the reference images, by prompt."""

    name: str
    folder: Path
    prompts: Mapping[str, str]
    """`key_of` a prompt -> the prompt as it is written."""
    images: Mapping[str, Sequence[Path]]
    """`key_of` a prompt -> its images, by seed and name."""
    without: int
    """Images without a prompt, which are left out."""


def key_of(prompt: str) -> str:
    """The same for prompts that differ in blanks and in upper and lower case alone."""
    return " ".join(prompt.split()).casefold()


def read_pool(name: str, folder: Path, like: ImagePool | None = None) -> ImagePool:
    """The images in a folder with their prompts: those of captions beside them or in a table (`data.folders`), else the
    prompt in the metadata that diptych writes into PNG and JPEG files.

    like: an image without either has the first prompt of the image of the same name in this pool.

    Raises a `UserError` where no image has a prompt; those that have none are counted, and a warning says how many.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name a folder of images as {name}={folder}")
    place = Path(os.path.abspath(folder))
    index = index_folder(place, Listing.of(place))
    source = FolderSource(folder, index, DataConfig(path=str(folder), split="all"), captions=False)
    named = {} if like is None else _prompts_by_name(like)
    found: list[tuple[str, int, Path]] = []
    without: list[str] = []
    for index in range(len(source)):
        path = source.path(index)
        prompts, seed = _prompts_of(source, index, path)
        prompts = prompts or named.get(path.stem, [])[:1]
        found += [(prompt, seed, path) for prompt in prompts]
        without += [] if prompts else [path.name]
    if not found:
        how = "captions.jsonl, a .txt beside each image, or images as diptych writes them"
        raise UserError(f"{folder} has no image with a prompt ({len(without)} without): give {how}")
    if source.skipped:
        first, reason = next(iter(source.skipped.items()))
        warn(f"{folder}: {len(source.skipped)} files or rows are not read, such as {first}: {reason}")
    if without:
        warn(f"{folder}: {len(without)} images have no prompt and are left out, such as {without[0]}")
    prompts, images = dict[str, str](), dict[str, list[Path]]()
    for prompt, _, path in sorted(found, key=lambda one: (one[1], str(one[2]))):
        prompts.setdefault(key_of(prompt), " ".join(prompt.split()))
        images.setdefault(key_of(prompt), []).append(path)
    return ImagePool(name, folder, prompts, images, len(without))


def _prompts_of(source: FolderSource, index: int, path: Path) -> tuple[list[str], int]:
    """The prompts of an image, none or several, and its seed."""
    try:
        meta = source.meta(index)
    except BrokenExample as error:
        raise UserError(f"{path}: {error}") from None
    seed = meta.get("seed")
    prompts = meta["captions"]
    if not prompts and path.suffix in SUFFIXES:
        row = stored_row(path) or {}  # none of another program, nor of a sheet of several images
        prompt, seed = row.get("prompt"), row.get("seed")
        prompts = [prompt] if isinstance(prompt, str) and prompt.strip() else []
    return prompts, seed if isinstance(seed, int) else 0


def _prompts_by_name(pool: ImagePool) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, paths in pool.images.items():
        for path in paths:
            found.setdefault(path.stem, []).append(pool.prompts[key])
    return found
