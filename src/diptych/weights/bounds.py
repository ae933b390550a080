"""What a config may have built before its files are read: no more tensors than the files hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.nn.modules.module import register_module_parameter_registration_hook

from diptych.core.errors import UserError
from diptych.weights.tensors import entries

SPARE = 4096
"""Tensors of text encoders that lie elsewhere, and of what is built more than once."""
BROKEN = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    MemoryError,
)
"""What Python and torch raise where networks are to be built from values that make no sense."""


@contextlib.contextmanager
def bounded(tensors: int, where: Path | str) -> Iterator[None]:
    """Within, networks of at most so many tensors (and `SPARE`) are built; what else fails there is the configs' fault.

    A config of a billion blocks is answered when the first few thousand are there. Whatever configs lead to that is no
    `UserError` becomes one; its cause stays with it.
    """
    built = 0

    def count(module: Any, name: str, parameter: Any) -> None:
        nonlocal built
        built += 1
        if built > 3 * tensors + SPARE:
            raise UserError(f"{where}: its configs describe more tensors than the {tensors:,} that its files hold")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    except BROKEN as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}".removesuffix(": ")
        raise UserError(f"{where}: no model can be made of its configs ({reason})") from error
    finally:
        handle.remove()


def stored_tensors(folder: Path) -> int:
    """How many tensors the safetensors files of a folder hold, in all its parts; damaged ones count as none."""
    count = 0
    for path in folder.rglob("*.safetensors"):
        with contextlib.suppress(UserError):
            count += len(entries(path))
    return count
