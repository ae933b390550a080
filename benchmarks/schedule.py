"""Jobs of one machine side by side: each starts when what it needs is done and its cores and share of the GPU are free.

What is done is on disk, so a rerun goes on after any cut, a kill -9 of this process too: jobs left running by it are
stopped first. A failure holds up only what needs the failed job. In a limited time a job must be over at its own
deadline; a training that ends by the clock is told how many minutes it has.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ".lock"
"""A file beside the records, locked while a schedule runs."""
GRACE = 30.0
"""Seconds that a job has to save its checkpoint when it is stopped."""
RESERVE = 0.4
"""Minutes of a training by the clock that are not training: imports, the first step, the last checkpoint."""
LEAST = 0.3
"""A training of fewer minutes is not started."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One thing to do."""

    name: str
    minutes: float
    """About how long it takes; of one with `{minutes}` in its command, the least that is worth starting."""
    run: tuple[str, ...] | Callable[[], dict[str, Any]]
    """Arguments of `diptych`, a script (`benchmarks/x.py`) with its arguments, or a function that gives a result.
    `{minutes}` becomes the minutes of training that are left to it, `{cores}` the cores it may use."""
    needs: tuple[str, ...] = ()
    """Jobs that must be done before."""
    resumes: bool = False
    """Saves its state when stopped, so it is worth starting with less time than it takes."""
    result: str | None = None
    """A JSON file that it leaves, kept in its result."""
    cores: int = 2
    """Processor cores that it takes, or all where there are fewer."""
    gpu: float = 1.0
    """Its share of the GPU; 1 has it alone."""
    by: float = 1.0
    """When it must be over, as a share of the budget."""
    present: str | None = None
    """A glob of files, of which one must be there: weights do not travel everywhere."""

    @property
    def identity(self) -> list[str]:
        """What was done, so that a changed job is done again."""
        if isinstance(self.run, tuple):
            return list(self.run)
        if isinstance(self.run, partial):
            return [self.run.func.__name__, *map(str, self.run.args)]
        return [self.run.__name__]

    @property
    def timed(self) -> bool:
        """Whether it trains for as long as there is time."""
        return isinstance(self.run, tuple) and any("{minutes}" in word for word in self.run)

    def arguments(self, minutes: float, cores: int) -> tuple[str, ...]:
        """Its command's words with these minutes and cores."""
        assert isinstance(self.run, tuple)
        return tuple(w.replace("{minutes}", f"{minutes:.3g}").replace("{cores}", str(cores)) for w in self.run)


@dataclass
class Running:
    """A job that runs: as a process, or as a thread of this one."""

    job: Job
    cores: int
    began: float
    before: float
    """Minutes of earlier attempts."""
    process: subprocess.Popen[bytes] | None = None
    thread: threading.Thread | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    """What the thread gave."""
    stopped: float | None = None
    """When it was asked to stop."""


class Schedule:
    """Runs jobs within so many minutes; the first of the list is the most important."""

    def __init__(
        self,
        jobs: Sequence[Job],
        minutes: float,
        results: Path,
        about: dict[str, Any] | None = None,
        cores: int | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """about: what each record says besides. changed: called after each job, and must not block."""
        self.jobs, self.results, self.about, self.changed = jobs, results, about or {}, changed
        self.began, self.budget = time.monotonic(), minutes * 60
        self.cores = cores or (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
        self.running: dict[str, Running] = {}
        self.tried: set[str] = set()
        self.told: set[str] = set()

    # What is known.

    def record(self, job: Job) -> dict[str, Any]:
        """What is known of a job; nothing when it is another job now than it was then."""
        try:
            record = json.loads((self.results / f"{job.name}.json").read_text())
        except (OSError, ValueError):
            return {}
        return record if record.get("command") == job.identity else {}

    def state(self, job: Job) -> str:
        """`done`, `failed`, `stopped`, `running` (also of one that was cut) or `to do`."""
        return self.record(job).get("status", "to do")

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def left(self, job: Job) -> float:
        """Seconds until its deadline."""
        return job.by * self.budget - self.spent

    # The loop.

    def run(self) -> bool:
        """Do what can be done; True when no job is left. One schedule at a time: raises `BlockingIOError`."""
        self.results.mkdir(parents=True, exist_ok=True)
        with (self.results / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.end_leftovers()
            try:
                with stopped_by_signals():
                    while self.turn():
                        time.sleep(0.05)
            finally:
                self.stop_all()
        return all(self.state(job) == "done" for job in self.jobs)

    def turn(self) -> bool:
        """Take in what has ended, stop what is late, start what can start; False when nothing runs any more."""
        for one in list(self.running.values()):
            if (status := self.ended(one)) is not None:
                self.finish(one, status)
            elif one.stopped is None and self.left(one.job) <= 0:
                self.say(f"{one.job.name}: its time is over")
                self.stop(one)
            elif one.stopped is not None and time.monotonic() - one.stopped > GRACE:
                self.kill(one)
        for job in self.jobs:
            if job.name not in self.tried and job.name not in self.running:
                self.consider(job)
        return bool(self.running)

    def consider(self, job: Job) -> None:
        """Start a job, unless something speaks against it; what will not change is said once."""
        if self.state(job) == "done":
            self.tried.add(job.name)
            return self.say(f"{job.name}: done before")
        if job.present and not any(ROOT.glob(job.present)):
            self.tried.add(job.name)
            return self.say(f"{job.name}: left out, {job.present} is not here")
        waits = [other for other in self.jobs if other.name in job.needs and self.state(other) != "done"]
        if waits:
            if all(other.name in self.tried and other.name not in self.running for other in waits):
                self.tried.add(job.name)
                self.say(f"{job.name}: waits for {', '.join(other.name for other in waits)}")
            return None
        least = 60 * min(job.minutes, 1.0 if job.resumes else job.minutes)
        if self.left(job) < least:
            self.tried.add(job.name)
            left = max(self.left(job), 0) / 60
            return self.say(f"{job.name}: takes about {job.minutes:g} minutes, {left:.1f} are left")
        cores = min(job.cores, self.cores)
        free = self.cores - sum(one.cores for one in self.running.values())
        share = 1.0 - sum(one.job.gpu for one in self.running.values())
        if cores <= free and job.gpu <= share + 1e-9:
            self.start(job, cores)
        return None

    def start(self, job: Job, cores: int) -> None:
        self.tried.add(job.name)
        before = self.record(job).get("minutes", 0.0)
        one = Running(job, cores, time.monotonic(), before)
        log = self.results / f"{job.name}.log"
        minutes = before + self.left(job) / 60 - RESERVE
        if job.timed and self.left(job) / 60 - RESERVE < LEAST:
            return self.say(f"{job.name}: too little time is left to train")
        with log.open("a") as file:
            if isinstance(job.run, tuple):
                command = command_of(job.arguments(max(minutes, LEAST), cores))
                one.process = subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    start_new_session=True,
                    env={**os.environ, "OMP_NUM_THREADS": str(cores)},
                )
                about = {"pid": one.process.pid, "since": start_time(one.process.pid)}
            else:
                one.thread = threading.Thread(target=answer, args=(job.run, one.answer), daemon=True)
                one.thread.start()
                about = {}
        self.running[job.name] = one
        self.write(one, {"status": "running", **about})
        told = f" for {minutes - before:.1f} minutes" if job.timed else f", about {job.minutes:g} minutes"
        return self.say(f"{job.name}: started{told}, log in {log}")

    def ended(self, one: Running) -> str | None:
        """The status of a job that has ended, else None."""
        if one.process is not None:
            code = one.process.poll()
            if code is None:
                return None
            return "stopped" if one.stopped is not None and code else "failed" if code else "done"
        assert one.thread is not None
        if one.thread.is_alive():
            return "stopped" if one.stopped is not None else None  # left to itself
        return "failed" if "error" in one.answer else "done"

    def finish(self, one: Running, status: str) -> None:
        job, record = one.job, {"status": status, **one.answer}
        if one.process is not None:
            self.kill(one)  # whatever it has left behind
        if status == "done" and job.result:
            try:
                record["result"] = json.loads((ROOT / job.result).read_text())
            except (OSError, ValueError) as error:
                record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        del self.running[job.name]
        self.write(one, record)
        told = record.get("error") or last_line(self.results / f"{job.name}.log")
        self.say(f"{job.name}: {record['status']}" + (f": {told}" if record["status"] == "failed" else ""))
        self.changed()

    def write(self, one: Running, values: dict[str, Any]) -> None:
        minutes = round(one.before + (time.monotonic() - one.began) / 60, 2)
        record = {"job": one.job.name, "command": one.job.identity, **self.about, **values, "minutes": minutes}
        unfinished = self.results / f".{one.job.name}.partial"
        unfinished.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(unfinished, self.results / f"{one.job.name}.json")

    # Stopping.

    def stop(self, one: Running) -> None:
        one.stopped = time.monotonic()
        if one.process is not None:
            with contextlib.suppress(ProcessLookupError):
                one.process.send_signal(signal.SIGTERM)

    def kill(self, one: Running) -> None:
        assert one.process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()

    def stop_all(self) -> None:
        """Stop what still runs, all at once, and record it."""
        for one in self.running.values():
            self.stop(one)
        limit = time.monotonic() + GRACE
        for one in list(self.running.values()):
            if one.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    one.process.wait(timeout=max(limit - time.monotonic(), 0))
                self.kill(one)
            self.finish(one, self.ended(one) or "stopped")

    def end_leftovers(self) -> None:
        """Stop the processes of jobs that an earlier schedule left running when it was killed."""
        records = [record for job in self.jobs if (record := self.record(job)).get("status") == "running"]
        pids = [r["pid"] for r in records if "pid" in r and r["since"] and start_time(r["pid"]) == r["since"]]
        for how in (signal.SIGTERM, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, how)
            limit = time.monotonic() + GRACE
            while pids := [pid for pid in pids if start_time(pid)]:
                if time.monotonic() > limit:
                    break
                time.sleep(0.1)

    def say(self, line: str) -> None:
        print(f"[{self.spent / 60:5.2f} of {self.budget / 60:g} min] {line}", flush=True)


def machine_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command_of(words: tuple[str, ...]) -> tuple[str, ...]:
    """The command line of a job's words."""
    if words[0].endswith(".py") or words[0] == "-m":
        return (sys.executable, *words)
    return (sys.executable, "-m", "diptych", *words)


def answer(run: Callable[[], dict[str, Any]], result: dict[str, Any]) -> None:
    """Put what a function gives, or its error, into `result`."""
    try:
        result["result"] = run()
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"


def start_time(pid: int) -> str:
    """When a process began, which tells it from a later one of the same number; "" when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "no output"


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP are a `KeyboardInterrupt`, as Ctrl-C is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
