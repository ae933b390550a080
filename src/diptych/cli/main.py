"""The command `diptych`: how its words are read, and how it ends.

Exit codes: 0 done, 1 `data check` found broken examples, 2 a mistake of the user (one line on standard error that says
what to do), 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diptych.cli.parser import build_parser
from diptych.core.errors import DiptychWarning, UserError, disk_error
from diptych.core.terminal import log_here, printable, say

TWO_WORDS = ("evaluate reconstruction", "evaluate inpainting", "evaluate super-resolution", "evaluate layout")
"""Commands beside which the first word is a command of its own."""
PATIENCE = 10.0
"""Seconds that a process under torchrun leaves the first one to say what is wrong."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        try:
            arguments = parse(argv)
            log_here()
            with plain_warnings(shown=getattr(arguments, "warns", False)):
                return arguments.command(arguments) or 0
        finally:
            sys.stdout.flush()  # here, where a closed pipe is still handled
    except UserError as error:
        return complain(str(error) + how_to_make(str(error)))
    except KeyboardInterrupt:
        return complain("interrupted", code=130)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk, a name that is too long, a file where a folder should be, ...
        return complain(str(disk_error(error)))
    except RuntimeError as error:
        if not str(error).startswith("Symlink loop"):  # what Python before 3.13 raises of links in a circle
            raise
        return complain(f"{error}: name another place")


@contextlib.contextmanager
def plain_warnings(shown: bool) -> Iterator[None]:
    """Within, a warning of diptych's is one line on standard error, each said once; or none where many images are made
    that nobody asked for by their words.
    """
    usual, seen = warnings.showwarning, set[str]()

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, DiptychWarning):
            return usual(message, category, *where, **more)
        if shown and str(message) not in seen:
            seen.add(str(message))
            say(f"diptych: warning: {message}")
        return None

    with warnings.catch_warnings():
        warnings.simplefilter("always", DiptychWarning)
        warnings.showwarning = show
        yield


def how_to_make(message: str) -> str:
    """The command that makes the run, precomputed data or emoji data which a message misses, where a recipe does."""
    for path, folder, name in re.findall(r"(?<![\w/.-])((runs|cache|data)/([\w-]+))(?![\w/-])", message):
        if Path(path).exists():
            continue
        if folder == "data" and (size := re.fullmatch(r"emoji-(\d+)", name)):
            return f"; `diptych data emoji --size {size[1]}` makes {path}"
        if folder != "data":
            from diptych.recipes import all_recipes

            if name in all_recipes():
                return f"; `diptych {'train' if folder == 'runs' else 'precompute'} {name}` makes {path}"
    return ""


def complain(message: str, code: int = 2) -> int:
    """One line on standard error, whatever the message holds; under torchrun from one process, not from each."""
    line = printable(f"diptych: {' '.join(message.split())}")
    if report := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with contextlib.suppress(OSError, KeyboardInterrupt):
            if (rank := os.environ.get("RANK", "0")) != "0":
                # Most mistakes are made in every process: the first one says it, and torchrun ends the others.
                time.sleep(PATIENCE)
                line = f"{line} (in process {rank})"
            # torchrun ends its own account of a failure with what stands in this file.
            stamp = {"py_callstack": line, "timestamp": str(int(time.time()))}
            Path(report).write_text(json.dumps({"message": {"message": line, "extraInfo": stamp}}), encoding="utf-8")
    print(line, file=sys.stderr, flush=True)
    return code


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of one command. Words may stand before or after options: argparse alone wants them together."""
    parser = build_parser()
    words = sys.argv[1:] if argv is None else argv
    for word in words:
        if "\0" in word or re.search(r"[\ud800-\udc7f\udd00-\udfff]", word):  # no system hands these on
            raise UserError(f"an argument holds a null byte or half a character: {word[:80]!r}")
    arguments, rest = parser.parse_known_args(joined(named(words)))
    more = getattr(arguments, "more", None)
    if rest and (more is None or any(word.startswith("-") for word in rest)):
        arguments.parser.strange(rest)
    if more is not None:
        getattr(arguments, more).extend(rest)
    return arguments


def named(words: Sequence[str]) -> list[str]:
    """The words with a command of two made one: argparse alone would ask for the arguments of the first, too."""
    first = " ".join(words[:2])
    return [first, *words[2:]] if first in TWO_WORDS else list(words)


def joined(words: Sequence[str]) -> list[str]:
    """`--steps -,8` as `--steps=-,8`, and `--seed -1,3` likewise, which argparse does not take for another option."""
    found: list[str] = []
    for word in words:
        if word.startswith(("-,", "-1,")) and found and found[-1].startswith("--"):
            word = f"{found.pop()}={word}"
        found.append(word)
    return found


if __name__ == "__main__":
    sys.exit(main())
