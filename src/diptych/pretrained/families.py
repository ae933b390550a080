"""Published models -> ours, one file a family."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diptych.core.errors import UserError
from diptych.pretrained.source import Family, Options, Source
from diptych.pretrained.unsupported import foreign_file, foreign_folder
from diptych.weights.bounds import bounded, stored_tensors

FAMILIES = (
    *("stable_diffusion.diffusers_folder", "deepfloyd", "stable_diffusion.single_file"),
    *("compvis", "guided_diffusion", "autoencoder_folder"),
)
"""The modules of this package that have a `FAMILY`, in the order in which they are tried."""


def families() -> Iterator[Family]:
    """Each family, its module imported when its turn comes."""
    for name in FAMILIES:
        yield importlib.import_module(f"{__package__}.{name}").FAMILY


def open_published(path: Path, options: Options | None = None) -> Any:
    """The system in a published folder or file, on the CPU, ready to generate.

    Raises a `UserError` for a file that is damaged or not allowed, and for a model of no family that we know.
    """
    source = Source(path, options)
    with named(source):
        family = family_of(source)
        source.options.without_effect(family.takes, f"{path} ({family.name})")
        return family.read(source)


def open_published_first_stage(path: Path, options: Options | None = None) -> Any:
    """The autoencoder in a published folder or file, and nothing else that is there; none where there is none.

    Raises a `UserError` as `open_published` does.
    """
    source = Source(path, options)
    with named(source):
        read = family_of(source).first_stage
        source.options.without_effect((), f"the autoencoder in {path}")
        return None if read is None else read(source)


@contextlib.contextmanager
def named(source: Source) -> Iterator[None]:
    """Within, every `UserError` says which source it is of: one of a config that shapes led to has its field alone.

    No more is built than the files hold, and what their configs break is a `UserError` too.
    """
    pickled = source.folder and source.options.allow_pickle
    try:
        tensors = stored_tensors(source.path) if source.folder else len(source.checkpoint)
        with bounded(tensors + (100_000 if pickled else 0), source.path):
            yield
    except UserError as error:
        raise error if str(source.path) in str(error) else UserError(f"{source.path}: {error}") from None


def family_of(source: Source) -> Family:
    """The first family that a source is one of; a `UserError` where there is none."""
    if not source.folder:  # what is no file of weights says so before any family is asked
        foreign = foreign_file(source.checkpoint.shapes, source.options.ema)
    else:
        foreign = foreign_folder(source)
    if foreign is not None:
        raise UserError(f"{source.path} is {foreign}")
    for family in families():
        if family.fits(source):
            return family
    raise UserError(f"{source.path} is a published model of no kind that diptych knows: {found(source)}")


def found(source: Source) -> str:
    """What is there, in a few words: classes, files or keys."""
    if source.index is not None:
        return f"its model_index.json says {source.index.get('_class_name')!r}"
    if source.folder:
        names = sorted(path.name for path in source.path.iterdir())
        return "it holds " + (", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "nothing")
    keys = sorted(source.checkpoint)
    return f"it holds {len(keys)} tensors" + (f", such as {keys[0]!r} and {keys[-1]!r}" if keys else "")
