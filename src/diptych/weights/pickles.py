"""Tensors out of .ckpt, .pt and .bin files, which are pickles: with the user's leave, and never with code in them."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.errors import UserError

ENDINGS = (".ckpt", ".pt", ".pth", ".bin")
MAGIC = (b"PK\x03\x04", b"\x80")
"""How pickles begin: torch's zip archives, and its older files."""


def is_pickle(path: Path) -> bool:
    """Whether a file begins as pickles do and does not claim to be safetensors."""
    with path.open("rb") as file:
        head = file.read(9)
    header = head[8:9] == b"{"  # a safetensors header, whose length may begin with any byte
    return path.suffix != ".safetensors" and head.startswith(MAGIC) and not header


def read_pickle(path: Path, allowed: bool = False) -> dict[str, Tensor]:
    """The tensors of a pickle by name, those of its "state_dict" where it has one; what is no tensor is left out.

    torch's reader for weights alone does the work: it makes tensors and plain values, and refuses everything else.
    Raises a `UserError` without the user's leave, and for a file that is damaged or holds other objects.
    """
    if not allowed:
        raise UserError(
            f"{path} is a pickle, which diptych reads only with --allow-pickle (allow_pickle=True), its tensors alone; "
            "better is the model's .safetensors file, or this one made into one by `diptych convert`"
        )
    values = _load(path)
    if isinstance(values, Mapping) and isinstance(values.get("state_dict"), Mapping):
        values = values["state_dict"]
    if not isinstance(values, Mapping):
        raise UserError(f"{path} holds no named tensors but a {type(values).__name__}")
    tensors = {key: tensor.detach() for key, tensor in values.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no named tensors")
    return tensors


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        mapped = file.read(4) == MAGIC[0]  # only archives can be mapped, and then only what is asked for is read
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch has doubts about newer protocols; what it cannot read, it refuses
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if refused := re.search(r"GLOBAL (\S+)|class (\S+)|[Cc]annot use (\S+)", str(error)):
            name = next(filter(None, refused.groups()))
            raise UserError(
                f"{path} holds an object of {name!r} beside its tensors, and is refused: diptych unpickles tensors and "
                "plain values only; get the model's .safetensors file"
            ) from None
        raise UserError(f"{path} is a damaged or refused pickle; get the model's .safetensors file") from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path} is a damaged PyTorch file ({first}); get or make it again") from error
