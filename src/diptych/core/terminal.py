"""Printing with control characters escaped: a file name or a caption may hold codes that a terminal obeys."""

from __future__ import annotations

import logging
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


WIDE = 10_000
"""Characters in a line of a file or pipe."""


def print_out(text: str) -> None:
    """A line on standard output."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def print_err(text: str) -> None:
    """A line on standard error (above a progress bar, where there is one)."""
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()


def console(**options: Any) -> Console:
    """A Rich console for tables: text is printed literally, and lines are broken on terminals only."""
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **how: Any) -> Any:
            return super().render_str(printable(text), **how)

    made = Plain(**dict[str, Any](markup=False, emoji=False) | options)
    if "width" not in options and not made.is_terminal:
        made.width = WIDE
    return made


def log_here() -> None:
    """Warnings of diptych's own log as lines on standard error."""
    log = logging.getLogger("diptych")
    if not log.handlers:
        handler = _Lines()
        handler.setLevel(logging.WARNING)
        log.addHandler(handler)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_err(record.getMessage())


def printable(text: str) -> str:
    """The text with what a terminal would obey, not show, written out: escape codes, other control characters, marks
    that turn the direction of writing, and bytes of file names that are no text. Line breaks and tabs stay."""
    return "".join(letter if _shown(letter) else _written_out(letter) for letter in text)


def _shown(letter: str) -> bool:
    """Whether a character may be printed. Joiners within words and emoji are format characters (Cf) too, and stay."""
    if letter in "\n\t" or letter.isprintable():
        return True
    kind = unicodedata.category(letter)
    turning = "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069"
    return kind not in ("Cc", "Cs", "Zl", "Zp") and not turning


def _written_out(letter: str) -> str:
    number = ord(letter)
    if 0xDC80 <= number <= 0xDCFF:  # a byte of a file name, as Python keeps what is no UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
