"""Lines on standard error about what is not run as asked."""

from __future__ import annotations

from diptych.core.terminal import print_err

told: set[str] = set()


def tell(text: str) -> None:
    """A line on standard error, once."""
    if text not in told:
        told.add(text)
        print_err(f"diptych: {text}")


def short(error: Exception) -> str:
    """The first line of what an error says, after those of OpenVINO about where it was."""
    lines = [line.strip() for line in str(error).splitlines() if not line.startswith("Exception from ")]
    return next(filter(None, lines), type(error).__name__)[:100]
