"""The command `diptych`: its arguments, warnings, errors and exit codes.

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
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from diptych.cli.parser import build_parser
from diptych.core.errors import DiptychWarning, UserError, disk_error
from diptych.core.memory_use import lacks_memory, memory_error
from diptych.core.terminal import log_here, print_err, printable

PATIENCE = 10.0
"""Seconds that a process under torchrun waits for the first one to report the same mistake."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        try:
            arguments = parse(argv)
            require_shared(arguments)
            log_here()
            with warnings_in_one_line(shown=getattr(arguments, "warns", False)):
                return arguments.command(arguments) or 0
        finally:
            sys.stdout.flush()  # here, where a closed pipe is still handled
    except UserError as error:
        return report(str(error) + how_to_make(str(error)))
    except KeyboardInterrupt:
        return report("interrupted", code=130)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk, a name that is too long, a file where a folder should be, ...
        return report(str(disk_error(error)))
    except (MemoryError, RuntimeError) as error:
        if lacks_memory(error):
            return report(str(memory_error(error)))
        if not str(error).startswith("Symlink loop"):  # what Python before 3.13 raises of links in a circle
            raise
        return report(f"{error}: name another place")


def require_shared(arguments: argparse.Namespace) -> None:
    """Raise a `UserError` for a command that does not share its work, in several processes that torchrun started: all
    would do the same in the same places."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if several and not getattr(arguments, "shared", False):
        name = arguments.parser.prog.partition(" ")[2]
        raise UserError(f"{name} is for one process: start it without torchrun")


@contextlib.contextmanager
def warnings_in_one_line(shown: bool) -> Iterator[None]:
    """Within, each warning of diptych is one line on standard error, once. Evaluations print none:
    nobody wrote their prompts by hand.
    """
    usual, printed = warnings.showwarning, set[str]()

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, DiptychWarning):
            return usual(message, category, *where, **more)
        if shown and str(message) not in printed:
            printed.add(str(message))
            print_err(f"diptych: warning: {message}")
        return None

    with warnings.catch_warnings():
        warnings.simplefilter("always", DiptychWarning)
        warnings.showwarning = show
        yield


def how_to_make(message: str) -> str:
    """The command that makes the run, precomputed data or emoji data that a message names and that is missing."""
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


def report(message: str, code: int = 2) -> int:
    """One line on standard error, whatever the message holds; under torchrun from one process, not from each."""
    line = printable(f"diptych: {' '.join(message.split())}")
    if error_file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with contextlib.suppress(OSError, KeyboardInterrupt):
            if (rank := os.environ.get("RANK", "0")) != "0":
                # Most mistakes are made in every process: the first one reports it, and torchrun ends the others.
                time.sleep(PATIENCE)
                line = f"{line} (in process {rank})"
            # torchrun prints this file at the end of its own report.
            extra = {"py_callstack": line, "timestamp": str(int(time.time()))}
            failure = json.dumps({"message": {"message": line, "extraInfo": extra}})
            Path(error_file).write_text(failure, encoding="utf-8")
    print(line, file=sys.stderr, flush=True)
    return code


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of one command. Prompts may stand before and after options, which argparse does not allow."""
    parser = build_parser()
    words = sys.argv[1:] if argv is None else argv
    for word in words:
        if "\0" in word or re.search(r"[\ud800-\udc7f\udd00-\udfff]", word):  # no system hands these on
            raise UserError(f"an argument holds a null byte or half a character: {word[:80]!r}")
    arguments, rest = parser.parse_known_args(join_values(join_commands(words, parser.commands)))
    more = getattr(arguments, "more", None)
    if rest and (more is None or any(word.startswith("-") for word in rest)):
        arguments.parser.refuse(rest)
    if more is not None:
        getattr(arguments, more).extend(rest)
    return arguments


def join_commands(words: Sequence[str], commands: Collection[str]) -> list[str]:
    """`evaluate layout` as one word, where it is a command: argparse would require the arguments of `evaluate` too."""
    command = " ".join(words[:2])
    return [command, *words[2:]] if command in commands else list(words)


def join_values(words: Sequence[str]) -> list[str]:
    """`--steps -,8` as `--steps=-,8`, and `--guidance -2,3` or `-1e1` likewise: argparse would read the value as an
    option."""
    joined: list[str] = []
    for word in words:
        if re.match(r"-(,|\.?\d.|inf|nan)", word) and joined and joined[-1].startswith("--"):
            word = f"{joined.pop()}={word}"
        joined.append(word)
    return joined


if __name__ == "__main__":
    sys.exit(main())
