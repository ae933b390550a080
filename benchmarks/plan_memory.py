"""Memory that `diptych plan` foresees beside what a training run takes, of different kinds of recipes.

    python benchmarks/plan_memory.py --out benchmarks/results/plan

Each is trained for two steps and a half in processes of its own by the training loop itself, with random weights and
images of zeros. Measured is the second step: the most bytes that PyTorch's allocator has given out at a time. On a GPU
that is `torch.cuda.max_memory_allocated`; on the CPU the running sum of allocations that PyTorch's profiler follows,
which has tensors and the buffers of kernels, as a GPU's allocator does; the copies that gloo makes of what it sends are
left out, since NCCL makes none. Beside that, from another run, the peak of the process's resident memory less what it
had before the networks were built: with pages that were freed and are kept, code that was loaded meanwhile, and what
libraries take by themselves. Writes memory-cpu.md, or memory-cuda.md, and .json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LATENT = ("emoji-64-latent", "training.batch_size=32", "system.precomputed=cache/any")
FIRST_STAGE = (
    *("kl-f8", "training.batch_size=1", "system.network.channels=32", "system.adversarial.start=0"),
    *("data.size=128", "data.crop=128"),
)
UPSAMPLER = ("emoji-sr-128", "training.batch_size=4")
BLOCKS, SHARDED, BF16 = "training.activation_checkpointing=blocks", "training.shard=fsdp", "training.precision=bf16"
CASES: dict[str, tuple[tuple[str, ...], ...]] = {
    "cpu": (
        LATENT,
        (*LATENT, BF16),
        (*LATENT, BLOCKS),
        (*LATENT, SHARDED),
        FIRST_STAGE,
        (*FIRST_STAGE, BLOCKS),
        UPSAMPLER,
        (*UPSAMPLER, SHARDED, BLOCKS),
    ),
    "cuda": (
        ("sd1", "training.batch_size=16", "system.precomputed=cache/any", BF16),
        ("sd1", "training.batch_size=16", "system.precomputed=cache/any", BF16, BLOCKS),
        ("imagen-base", "training.batch_size=32", "system.embed_text=ahead", BF16),
        ("adm-256", "training.batch_size=16", BF16),
        ("kl-f8", "training.batch_size=8", BF16),
    ),
}
"""Recipes, and what is changed of them so that they fit the machine. Sharded runs have two processes."""
COMMON = ("training.steps=3", "training.accumulation=1", "training.workers=0", "training.warmup=0")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""glibc returns the memory of each tensor when it is freed."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/plan"), metavar="FOLDER")
    parser.add_argument("--only", metavar="WORD", help="the cases with that word alone; others stay")
    parser.add_argument("--one", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        print(json.dumps(compared(*arguments.one)))
        return 0
    import torch

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name() if kind == "cuda" else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    machine, kept = f"{where}, PyTorch {torch.__version__}", arguments.out / f"memory-{kind}.json"
    before = json.loads(kept.read_text()) if arguments.only and kept.is_file() else {}
    rows = before["rows"] if before.get("machine") == machine else []
    for name, *changes in CASES[kind]:
        if arguments.only in (None, name, *changes):
            precision = [] if BF16 in changes else ["training.precision=fp32"]
            words = [name, *COMMON, *changes, *precision, f"training.device={kind}"]
            found = run(2 if SHARDED in changes else 1, "allocator", kind, words)
            if kind == "cpu" and not {SHARDED, BLOCKS, BF16} & {*changes}:
                found["resident"] = run(1, "resident", kind, words)["measured"]
            row = {**found, "changes": [*changes, *precision]}
            rows = [*(one for one in rows if (one["recipe"], one["changes"]) != (name, row["changes"])), row]
            print(line(row), flush=True)
            write(arguments.out, kind, machine, rows)
    return int(any(abs(row["planned"] / row["measured"] - 1) > 0.1 for row in rows))


def write(out: Path, kind: str, machine: str, rows: list[dict[str, Any]]) -> None:
    """Keep what was measured so far."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"memory-{kind}.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    (out / f"memory-{kind}.md").write_text("\n".join([f"Measured on {machine}.", "", *HEAD, *map(line, rows), ""]))


def run(processes: int, how: str, kind: str, words: list[str]) -> dict[str, Any]:
    """What the first of so many processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, **ALLOCATOR, "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, __file__, "--one", str(processes), how, kind, *words]
    started = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    printed = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"failed: {' '.join(words)}")
    return json.loads(printed[0].splitlines()[-1])


HEAD = (
    "| recipe | changed | planned MiB | allocated MiB | planned / allocated | resident MiB |",
    "|-|-|-:|-:|-:|-:|",
)


def line(row: dict[str, Any]) -> str:
    changes = ", ".join(change.replace("training.", "").replace("system.", "") for change in row["changes"])
    resident = f"{row['resident'] / 2**20:,.0f}" if "resident" in row else ""
    planned, measured = row["planned"] / 2**20, row["measured"] / 2**20
    return f"| {row['recipe']} | {changes} | {planned:,.0f} | {measured:,.0f} | {planned / measured:.3f} | {resident} |"


def compared(processes: str, how: str, kind: str, name: str, *assignments: str) -> dict[str, Any]:
    """Bytes as planned and as measured, in this process."""
    import torch

    from diptych.recipes import get
    from diptych.training.planning.outline import outlined
    from diptych.training.planning.plan import measure, memory_of, share
    from diptych.training.trainer import train

    recipe, gpus = get(name).override(assignments), int(processes)
    outline = outlined(recipe, device=kind)
    half = recipe.training.precision == "bf16"
    step = measure(outline, recipe, share(recipe, gpus), half, kind, gpus)  # type: ignore[arg-type]
    planned = max(memory.total for memory in memory_of(outline, recipe, step, gpus))
    del outline
    torch.manual_seed(0)
    before = resident("VmRSS")
    if kind == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        follow = stack.enter_context(allocations()) if (how, kind) == ("allocator", "cpu") else None
        real = outlined(recipe, device=kind, place=kind)
        real.idle.clear()  # a run does not have them on its device
        calls, loss = [0], real.task.loss

        def counted(batch: dict[str, Any]) -> Any:
            calls[0] += 1
            step, part = divmod(calls[0] - 1, recipe.training.accumulation)
            if follow is not None and step > 0 and part == 0:
                follow(f"{MARK} {step}")
            if kind == "cuda" and (step, part) == (1, 0):
                torch.cuda.reset_peak_memory_stats()
            if step == 2:  # two whole steps are behind, and no checkpoint is written yet
                raise Measured
            return loss(batch)

        real.task.loss = counted  # type: ignore[method-assign]
        with contextlib.suppress(Measured):
            train(
                real.task, lambda positions: real.batch(recipe, len(positions)), recipe.training, Path(folder) / "run"
            )
        peak = torch.cuda.max_memory_allocated() if kind == "cuda" else resident("VmHWM") - before
    return {"recipe": name, "planned": planned, "measured": peak if follow is None else follow.peak}


MARK = "step begins"


class Allocations:
    """Marks moments among the profiler's events; `peak` are the most bytes allocated at a time between the marks."""

    peak = 0

    def __call__(self, name: str) -> None:
        import torch

        with torch.profiler.record_function(name):
            pass


@contextlib.contextmanager
def allocations() -> Iterator[Allocations]:
    """Within, PyTorch's allocations on the CPU are followed; afterwards the peak is known."""
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    follow = Allocations()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield follow
    assert profiler.profiler is not None
    events, marks, found = list(profiler.profiler.kineto_results.experimental_event_tree()), list[int](), []
    while events:
        event = events.pop()
        events.extend(event.children)
        if event.tag == _EventType.Allocation:
            what, parent = event.extra_fields, event.parent
            while parent is not None and not parent.name.startswith("c10d::"):
                parent = parent.parent
            found.append((event.start_time_ns, what.total_allocated, what.alloc_size, what.ptr, parent is not None))
        elif event.name.startswith(MARK):
            marks.append(event.start_time_ns)
    copies, lost, sizes = dict[int, int](), 0, list[tuple[int, int]]()
    for time, total, size, place, copy in sorted(found):
        if size > 0:  # what was freed in a thread of gloo's is still in the total, and its place taken again
            lost += copies.pop(place, 0)
            if copy:
                copies[place] = size
        else:
            copies.pop(place, None)
        sizes.append((time, total - lost - sum(copies.values())))
    follow.peak = max(size for time, size in sizes if min(marks) <= time <= max(marks))


class Measured(Exception):
    """The run has gone far enough."""


def resident(field: str) -> int:
    """A size in bytes of /proc/self/status."""
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith(f"{field}:"):
            return int(row.split()[1]) * 1024
    raise SystemExit(f"{field} is missing: this measures on Linux")


if __name__ == "__main__":
    sys.exit(main())
