"""A limit on the tensors that a config may build: about as many as its files hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.nn.modules.module import register_module_parameter_registration_hook

from diptych.core.errors import UserError
from diptych.weights.tensors import read_entries

SPARE_TENSORS = 4096
"""Allowance for text encoders in other folders, and for networks that are built more than once."""
BUILD_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    MemoryError,
)
"""Errors of Python and torch on building a network from an invalid config."""


@contextlib.contextmanager
def bounded(tensors: int, where: Path | str) -> Iterator[None]:
    """Within, networks of at most 3 `tensors` + `SPARE_TENSORS` tensors may be built.

    So a config of a billion blocks raises a `UserError` after the first few thousand. Any other error of building
    becomes a `UserError` with its cause.
    """
    built = 0

    def count(module: Any, name: str, parameter: Any) -> None:
        nonlocal built
        built += 1
        if built > 3 * tensors + SPARE_TENSORS:
            raise UserError(f"{where}: its configs describe more tensors than the {tensors:,} that its files hold")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    except BUILD_ERRORS as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}".removesuffix(": ")
        raise UserError(f"{where}: no model can be made of its configs ({reason})") from error
    finally:
        handle.remove()


def stored_tensors(folder: Path) -> int:
    """Number of tensors in the safetensors files below a folder; damaged files count as 0."""
    count = 0
    for path in folder.rglob("*.safetensors"):
        with contextlib.suppress(UserError):
            count += len(read_entries(path))
    return count
