"""A process that indexes shards: it gets one job a line on standard input, and answers each with a line.

Started with the interpreter's own command, so that a script that trains without a main guard is not run again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from diptych.core.errors import UserError
from diptych.data.selection import Rules
from diptych.data.shard_files import LocalShard
from diptych.data.shard_pieces import PiecePlace, index_piece


class ScanProcess:
    """Such a process, from outside."""

    def __init__(self) -> None:
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "diptych.data.scan_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        )

    def index(self, file: LocalShard, rules: Rules, place: PiecePlace) -> None:
        """Let it index a shard. Raises its `UserError`, or an `OSError` where the piece cannot be written or the
        process has ended."""
        job = {
            "path": os.fsdecode(file.path),
            "name": file.name,
            "identity": file.identity,
            "rules": rules.to_json(),
            "place": [os.fsdecode(path) for path in place],
        }
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"a process that indexes shards ended ({self.process.wait()})")
        answer = json.loads(line)
        if answer["kind"] == "UserError":
            raise UserError(answer["text"])
        if answer["kind"] != "done":
            raise ChildProcessError(f"{answer['kind']}: {answer['text']}")

    def end(self) -> None:
        """End it: it does so when its input is closed."""
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def perform(job: dict[str, Any]) -> None:
    file, rules = LocalShard(Path(job["path"]), job["name"]), Rules.from_json(job["rules"])
    if file.identity is None or file.identity != job["identity"]:
        raise UserError(f"{file.path} was replaced while it was read: start again")
    place = PiecePlace(*map(Path, job["place"]))
    place.save(file.identity, index_piece(file, rules, place))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent closes the input
    for line in sys.stdin:
        answer = {"kind": "done", "text": ""}
        try:
            perform(json.loads(line))
        except Exception as error:  # the parent decides
            answer = {"kind": type(error).__name__, "text": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
