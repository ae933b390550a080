"""`make gpu BUDGET=13`: everything that wants a GPU, most important first, within so many minutes.

The jobs, and the places to add one, are in `loan.py` (the models that diptych ships, all at once), `jobs.py` and
`task_jobs.py`; the latter two are for budgets of `LONG` minutes or more. Each job is done once: its result is a JSON
file in `benchmarks/results/gpu`, its output a log beside it. A rerun goes on where the last one stopped, or was cut.

    make gpu-check                        before: gather what travels, say how large it is and what is missing
    make gpu BUDGET=13 PACK=out           the whole, in the foreground
    python -m benchmarks.gpu --budget 13 --pack out --start
                                          the same detached, for machines whose calls end before it does
    python -m benchmarks.gpu --pack out --collect FOLDER --wait 560
                                          wait until it is over or so many seconds, then copy what is packed to FOLDER
    cat FOLDER/gpu.tar.* | tar x          after: unpack at home; `make gpu` there compares with the shipped models

`--toy FOLDER` does all of it on a CPU, at toy size, within FOLDER.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import loan
from benchmarks.jobs import CASCADE_PANEL, COMPRESSION, FIRST_STAGES, LATENT_PANEL, LOAN, RUNS, SWEEPS, WORDS
from benchmarks.parcel import Parcel, collect
from benchmarks.schedule import LOCK, ROOT, Job, Schedule, last_line, start_time
from benchmarks.task_jobs import GUIDANCE, JOBS, TASKS

RESULTS = ROOT / "benchmarks" / "results" / "gpu"
LONG = 20.0
"""Minutes from which on there is time for more than the loan's jobs."""
LOG = "schedule.txt"
"""What a detached schedule prints, beside the records."""
PROCESS = ".schedule.process"
"""Its process, and when that began."""


def bench(
    jobs: Sequence[Job],
    budget: float,
    results: Path,
    about: dict[str, Any],
    pack: Path | None = None,
    paths: Sequence[Path] = (),
    root: Path = ROOT,
    cores: int | None = None,
) -> int:
    """Run the jobs and keep the results packed; the exit code."""
    parcel = None if pack is None else Parcel(pack, [results, *paths], root)
    schedule = Schedule(jobs, budget, results, about, cores, (lambda: None) if parcel is None else parcel.changed)
    try:
        if parcel is None:
            finished = schedule.run()
        else:
            with parcel:
                finished = schedule.run()
    except BlockingIOError:
        print(f"gpu: another schedule runs in {results}: wait for it, or stop it", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpu: interrupted; the same command goes on", file=sys.stderr)
        return 130
    if parcel is not None:
        print(f"packed: cat {pack}/gpu.tar.* | tar x")
    print("all jobs are done" if finished else "not all jobs are done: the same command goes on with them")
    return 1 if any(schedule.state(job) == "failed" for job in jobs) else 0


def main(argv: Sequence[str] | None = None, jobs: Sequence[Job] | None = None, results: Path = RESULTS) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", type=float, default=13.0, metavar="MINUTES")
    parser.add_argument("--list", action="store_true", help="say what is done and what is not")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="keep results and models packed there, in pieces")
    parser.add_argument("--start", action="store_true", help="run detached, and return at once")
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="copy what is packed there")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="with --collect: for the end, at most")
    parser.add_argument("--toy", type=Path, metavar="FOLDER", help="try it on a CPU at toy size, all within FOLDER")
    options = parser.parse_args(argv)
    root, places = ROOT, loan.HERE
    if options.toy:
        root = options.toy.absolute()
        places, results = loan.Places.within(root), root / "results"
        jobs = loan.loan(places, toy=True) if jobs is None else jobs
    if jobs is None:
        jobs = JOBS if options.budget >= LONG or options.list else LOAN
    if options.list:
        schedule = Schedule(jobs, options.budget, results)
        for job in jobs:
            print(f"{job.name:<24} {schedule.state(job):<8} about {job.minutes:g} min")
        return 0
    if options.collect:
        if options.pack is None:
            parser.error("--collect needs --pack, the folder where it is packed")
        return fetch(options.pack, options.collect, results, options.wait)
    about = {"device": "toy"} if options.toy else device()
    if isinstance(about, str):
        print(f"gpu: {about}", file=sys.stderr)
        return 2
    if options.start:
        return start(list(sys.argv[1:] if argv is None else argv), results)
    shipped = (LATENT_PANEL.old_study, CASCADE_PANEL.old_study)
    studies = (*shipped, SWEEPS, f"{WORDS}/unseen", f"{RUNS}/study-codes", FIRST_STAGES, COMPRESSION, TASKS, GUIDANCE)
    more = () if options.toy else studies
    paths = [root / path for path in (*places.studies(), *places.models(), *more)]
    return bench(jobs, options.budget, results, about, options.pack, paths, root, 1 if options.toy else None)


def start(words: list[str], results: Path) -> int:
    """Run the same command without `--start`, in a session of its own."""
    results.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", *(word for word in words if word != "--start")]
    with (results / LOG).open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
    (results / PROCESS).write_text(f"{process.pid} {start_time(process.pid)}\n")
    print(f"started as process {process.pid}, log in {results / LOG}")
    return 0


def fetch(pack: Path, out: Path, results: Path, wait: float) -> int:
    """Wait for the end of a detached schedule, at most so many seconds, and copy what is packed; 3: it still runs."""
    limit = time.monotonic() + wait
    while running(results) and time.monotonic() < limit:
        time.sleep(0.5)
    copied = collect(pack, out)
    if (results / LOG).is_file():
        copied.append(Path(shutil.copy(results / LOG, out)))
        print(last_line(results / LOG))
    print(f"{len(copied)} files, {sum(path.stat().st_size for path in copied) / 2**20:.1f} MiB, in {out}")
    return 3 if running(results) else 0


def running(results: Path) -> bool:
    """Whether a schedule runs there: it was just started, or holds the lock of these results."""
    with contextlib.suppress(OSError, ValueError):
        pid, since = (results / PROCESS).read_text().split()
        if start_time(int(pid)) == since:
            return True
    try:
        with (results / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


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
