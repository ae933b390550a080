"""`make gpu BUDGET=25`: everything that wants a GPU, best value first, within so many minutes.

Each job is done once: its result is a JSON file in `benchmarks/results/gpu`, its output a log beside it. A rerun goes
on where the last one stopped, with a job that was cut too, if that job saves checkpoints. The jobs, and the place to
add one, are in `jobs.py` and `task_jobs.py`. Nothing is downloaded when $DIPTYCH_CACHE holds the emoji packages.
`--pack FOLDER` leaves there a tar archive of the results and models in pieces: `cat FOLDER/gpu.tar.* | tar x` unpacks
it elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.jobs import COMPRESSION, FIRST_STAGES, MODELS, ROOT, RUNS, STUDIES, SWEEPS, WORDS, Job
from benchmarks.task_jobs import GUIDANCE, JOBS, TASKS

RESULTS = ROOT / "benchmarks" / "results" / "gpu"
GRACE = 60.0
"""Seconds that a job has to save its checkpoint after the budget is spent."""


class Bench:
    """Does jobs one after another until the budget is spent."""

    def __init__(
        self, jobs: Sequence[Job], minutes: float, results: Path = RESULTS, about: dict[str, Any] | None = None
    ):
        self.jobs, self.results, self.about = jobs, results, about or {}
        self.began, self.budget = time.monotonic(), minutes * 60

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (time.monotonic() - self.began)

    def record(self, job: Job) -> dict[str, Any]:
        """What is known of a job; nothing when it is another job now than it was then."""
        try:
            record = json.loads((self.results / f"{job.name}.json").read_text())
        except (OSError, ValueError):
            return {}
        return record if record.get("command") == job.identity else {}

    def state(self, job: Job) -> str:
        return self.record(job).get("status", "to do")

    def run(self) -> bool:
        """Do what can be done; True when no job is left."""
        self.results.mkdir(parents=True, exist_ok=True)
        for job in self.jobs:
            if self.state(job) == "done":
                self.say(f"{job.name}: done before")
                continue
            waits = [other.name for other in self.jobs if other.name in job.needs and self.state(other) != "done"]
            if waits:
                self.say(f"{job.name}: waits for {', '.join(waits)}")
            elif self.left < 60 * min(job.minutes, 1.0 if job.resumes else job.minutes):
                self.say(f"{job.name}: takes about {job.minutes:g} minutes, {max(self.left, 0) / 60:.1f} are left")
            else:
                self.do(job)
        return all(self.state(job) == "done" for job in self.jobs)

    def do(self, job: Job) -> None:
        log = self.results / f"{job.name}.log"
        self.say(f"{job.name}: started, about {job.minutes:g} minutes, log in {log}")
        began, before = time.monotonic(), self.record(job).get("minutes", 0.0)
        record: dict[str, Any] = {"job": job.name, "status": "failed", "command": job.identity, **self.about}
        try:
            with log.open("a") as file:
                if isinstance(job.run, tuple):
                    record["status"] = run_command((sys.executable, "-m", "diptych", *job.run), file, self.left)
                else:
                    record |= {"result": job.run(), "status": "done"}
            if record["status"] == "done" and job.result:
                record["result"] = json.loads((ROOT / job.result).read_text())
        except Exception as error:
            record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        except KeyboardInterrupt:
            record["status"] = "stopped"
            raise
        finally:
            record["minutes"] = round(before + (time.monotonic() - began) / 60, 2)
            partial = self.results / f".{job.name}.partial"
            partial.write_text(json.dumps(record, indent=2) + "\n")
            os.replace(partial, self.results / f"{job.name}.json")
            lines = log.read_text().strip().splitlines() if log.exists() else []
            told = record.get("error") or (lines[-1] if lines else "no output")
            self.say(f"{job.name}: {record['status']}" + (f": {told}" if record["status"] == "failed" else ""))

    def say(self, line: str) -> None:
        spent = (time.monotonic() - self.began) / 60
        print(f"[{spent:5.1f} of {self.budget / 60:g} min] {line}", flush=True)


def run_command(command: Sequence[str], log: Any, seconds: float) -> str:
    """`done`, `failed`, or `stopped` when the time was over; a stopped one gets `GRACE` seconds to save its state."""
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
    try:
        return "failed" if process.wait(timeout=max(seconds, 0)) else "done"
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
        if isinstance(reason, KeyboardInterrupt):
            raise
        return "stopped"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # whatever it has left behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Pieces:
    """A file for writing that is cut into `FOLDER/gpu.tar.000`, `.001`, ... of at most `size` bytes."""

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.size, self.count, self.room = folder, size, 0, 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            if not self.room:
                self.count, self.room = self.count + 1, self.size
            part = view[: self.room]
            with (self.folder / f"gpu.tar.{self.count - 1:03d}").open("wb" if self.room == self.size else "ab") as file:
                file.write(part)
            view, self.room = view[len(part) :], self.room - len(part)
        return len(data)


def pack(folder: Path, paths: Sequence[Path], root: Path, piece: int = 15 * 2**20) -> int:
    """Archive those of the paths that exist; returns the number of pieces."""
    pieces = Pieces(folder, piece)
    with tarfile.open(fileobj=pieces, mode="w|") as tar:  # type: ignore[call-overload]
        for path in paths:
            if path.exists():
                tar.add(path, arcname=str(path.relative_to(root)))
    return pieces.count


def main(argv: Sequence[str] | None = None, jobs: Sequence[Job] = JOBS, results: Path = RESULTS) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", type=float, default=25.0, metavar="MINUTES")
    parser.add_argument("--list", action="store_true", help="say what is done and what is not")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="archive results and models there in the end")
    options = parser.parse_args(argv)
    if options.list:
        bench = Bench(jobs, options.budget, results)
        for job in jobs:
            print(f"{job.name:<16} {bench.state(job):<8} about {job.minutes:g} min")
        return 0
    about = device()
    if isinstance(about, str):
        print(f"gpu: {about}", file=sys.stderr)
        return 2
    bench = Bench(jobs, options.budget, results, about)
    try:
        finished = bench.run()
    except KeyboardInterrupt:
        print("gpu: interrupted; the same command goes on", file=sys.stderr)
        return 130
    finally:
        if options.pack:
            studies = (*STUDIES, SWEEPS, f"{WORDS}/unseen", f"{RUNS}/study-codes", FIRST_STAGES, COMPRESSION)
            studies += (TASKS, GUIDANCE)
            paths = [ROOT / path for path in (*MODELS, *studies)]
            count = pack(options.pack, [results, *paths], ROOT)
            print(f"packed into {count} pieces: cat {options.pack}/gpu.tar.* | tar x")
    print("all jobs are done" if finished else "not all jobs are done: the same command goes on with them")
    return 1 if any(bench.state(job) == "failed" for job in jobs) else 0


def device() -> dict[str, Any] | str:
    """The GPU and what drives it, or why nothing can run here."""
    try:
        import torch

        import diptych  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed for {sys.executable}: run `make demo` first, or name another Python"
    if not torch.cuda.is_available():
        return "no GPU that PyTorch can use: these jobs are for a machine with one (on a CPU see `make default-model`)"
    return {"device": torch.cuda.get_device_name(), "torch": torch.__version__}


if __name__ == "__main__":
    sys.exit(main())
