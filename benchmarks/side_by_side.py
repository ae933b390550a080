"""Ways to do the same work, timed beside one another in one process, after their outputs were compared.

    python -m benchmarks.side_by_side benchmarks/results/cpu-diffusers      prints the stored results as a table

A script describes jobs: a reference, challengers, and the floating-point operations of the work. Each challenger meets
the reference in rounds of its own: both do the work in every round, who begins changes, and the limit of the machine
(a large matrix product) is measured in the same round. A ratio is the median of the rounds' ratios, which what else the
machine does disturbs little; how much that was is recorded, and beside it the ratio of processor seconds. Nothing is
reported where outputs differ by more than a challenger's tolerance: `OutputsDiffer` is raised instead.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import processor
from diptych.core.errors import UserError
from diptych.core.processors import cores

FLOAT32, BF16 = 1e-5, 2e-2
"""How far apart outputs may be, in units of the largest value."""
LIMIT_SIDE = 2048
"""Rows and columns of the matrices whose product is the limit."""
FAST = 1.2
"""bfloat16 counts as fast where its product takes so many times less."""
PACKAGES = ("torch", "diffusers", "transformers", "openvino", "nncf", "imagen-pytorch")
Work = Callable[[], Tensor]


class OutputsDiffer(Exception):
    """Two contestants do not do the same work: there is nothing to time."""


class NotHere(Exception):
    """A contestant cannot take part on this machine; the message says why."""


def relative(output: Tensor, reference: Tensor) -> float:
    """Largest difference, in units of the largest value."""
    return ((output.float() - reference.float()).abs().max() / reference.float().abs().max()).item()


def levels(output: Tensor, reference: Tensor) -> float:
    """Largest difference of images of 8 bits, in units of 1 of 255."""
    return (output.float() - reference.float()).abs().max().item()


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A way to do the work of a job."""

    name: str
    prepare: Callable[[], Work]
    """Builds, loads or compiles, which is not part of the work, and gives the work. Raises `NotHere` if it cannot."""
    tolerance: float = FLOAT32
    """How far its output may be from the reference's, in the job's measure."""
    about: dict[str, Any] = field(default_factory=dict)
    """What the result should say of it: parameters, operations of its own."""
    fault: Callable[[], str | None] = lambda: None
    """Why what it did since the last call was not what its name says, if so: a compiled network that fell back."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work that contestants do."""

    name: str
    """A word: it names the file of the result."""
    what: str
    """One line for the table."""
    reference: Contestant
    challengers: Sequence[Contestant]
    flop: float
    """Floating-point operations of the reference's work, 2 for each multiply-add."""
    measure: Callable[[Tensor, Tensor], float] = relative
    different: str | None = None
    """Where outputs cannot be compared: why, and what was made equal instead."""
    items: int = 1
    """Images or samples that the work makes."""
    grad: bool = False
    """Whether the work needs gradients."""


def flops(work: Callable[[], object]) -> float:
    """Floating-point operations of PyTorch's work, 2 for each multiply-add, of convolutions, products and attention.
    Attention is computed as two products, as the fused one is not counted on CPUs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        work()
    return float(counter.get_total_flops())


def product(dtype: torch.dtype, side: int = LIMIT_SIDE) -> Callable[[], float]:
    """A function that measures FLOP/s of a large matrix product."""
    a, b = (torch.randn(side, side, generator=torch.Generator().manual_seed(i)).to(dtype) for i in (0, 1))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)

    def measure() -> float:
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        return 2 * side**3 / (time.perf_counter() - began)

    return measure


def limits(side: int = LIMIT_SIDE) -> dict[str, Callable[[], float]]:
    """The products that are the limit here: of float32, and of bfloat16 where that is fast."""
    found = {"float32": product(torch.float32, side)}
    small = {dtype: product(dtype, 256) for dtype in (torch.float32, torch.bfloat16)}
    speed = {dtype: max(measure() for _ in range(5)) for dtype, measure in small.items()}
    if speed[torch.bfloat16] > FAST * speed[torch.float32]:
        found["bf16"] = product(torch.bfloat16, side)
    return found


def processor_time() -> tuple[float, float]:
    """Seconds that all processes of the machine have computed so far, and this one; the first is 0 off Linux."""
    own = time.process_time()
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0, own
    user, nice, system, _, _, *rest = (int(word) for word in words[:8])  # idle and waiting left out
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK"), own


def versions() -> dict[str, str]:
    """Of the packages that take part."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": sys.version.split()[0], **found}


def compare(job: Job, challenger: Contestant, output: Tensor, reference: Tensor) -> float | None:
    """How far an output is from the reference's, or none where they cannot be compared."""
    if output.shape != reference.shape:
        raise OutputsDiffer(f"{job.name}: {challenger.name} makes {tuple(output.shape)}, not {tuple(reference.shape)}")
    if not (output.isfinite().all() and reference.isfinite().all()):
        raise OutputsDiffer(f"{job.name}: outputs are not finite")
    if job.different is not None:
        return None
    if reference.float().std() == 0:
        raise OutputsDiffer(f"{job.name}: the output is the same everywhere, and a comparison says nothing")
    apart = job.measure(output, reference)
    if not apart <= challenger.tolerance:
        raise OutputsDiffer(
            f"{job.name}: {challenger.name} is {apart:.2g} from {job.reference.name}, and {challenger.tolerance:g} is "
            "allowed: nothing is reported"
        )
    return apart


def timed(work: Work) -> tuple[float, float]:
    """Seconds by the clock, and seconds that the processor spent in all threads of this process."""
    began, spent = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - spent


def heat(job: Job, reference: Work, expected: Tensor, challenger: Contestant, rounds: int, side: int) -> dict[str, Any]:
    """A challenger beside the reference: how far apart, seconds of both, the limit, and what others computed."""
    began = time.perf_counter()
    try:
        work = challenger.prepare()
    except (NotHere, UserError) as reason:
        return {"name": challenger.name, "absent": str(reason)}
    prepared = time.perf_counter() - began
    apart = compare(job, challenger, work(), expected)
    challenger.fault()  # until here it was compiled, which calls the network itself
    taken: dict[str, list[tuple[float, float]]] = {"reference": [], "challenger": []}
    works = {"reference": reference, "challenger": work}
    measures = limits(side)
    speeds: dict[str, list[float]] = {name: [] for name in measures}
    begun, (all_before, own_before) = time.perf_counter(), processor_time()
    for turn in range(rounds):
        for name in list(works) if turn % 2 else list(works)[::-1]:
            time.sleep(0.02)  # threads of the other that still spin come to rest
            taken[name].append(timed(works[name]))
        for name, measure in measures.items():
            speeds[name].append(measure())
    all_after, own_after = processor_time()
    if (fault := challenger.fault()) is not None:
        return {"name": challenger.name, "absent": fault}
    others = max((all_after - all_before) - (own_after - own_before), 0) / (time.perf_counter() - begun) / cores()
    limit = {name: max(values) for name, values in speeds.items()}
    ratios = [[theirs / ours for theirs, ours in zip(*pair, strict=True)] for pair in zip(*taken.values(), strict=True)]

    def told(times: list[tuple[float, float]], flop: float) -> dict[str, Any]:
        clock = [seconds for seconds, _ in times]
        return {
            "median": statistics.median(clock),
            "least": min(clock),
            "all": clock,
            "processor": statistics.median(spent for _, spent in times),
            "percent_of_limit": 100 * flop / min(clock) / limit["float32"],
        }

    own_flop = challenger.about.get("flop", job.flop)
    return {
        "name": challenger.name,
        **challenger.about,
        "apart": apart,
        "tolerance": None if job.different is not None else challenger.tolerance,
        "prepare_seconds": prepared,
        "rounds": rounds,
        "seconds": told(taken["challenger"], own_flop),
        "reference_seconds": told(taken["reference"], job.flop),
        "ratio": statistics.median(clock for clock, _ in ratios),
        "ratio_processor": statistics.median(spent for _, spent in ratios),
        "limit_gflops": {name: value / 1e9 for name, value in limit.items()},
        "others_percent": 100 * others,
    }


def run(job: Job, rounds: int, side: int = LIMIT_SIDE) -> dict[str, Any]:
    """The result of a job. Raises `OutputsDiffer` where two do not do the same work."""
    with torch.set_grad_enabled(job.grad):
        reference = job.reference.prepare()
        expected = reference()
        results = []
        for challenger in job.challengers:
            results.append(heat(job, reference, expected, challenger, rounds, side))
            gc.collect()  # compiled networks are as large as the memory allows
    return {
        "job": job.name,
        "what": job.what,
        "machine": {
            "processor": processor(),
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "time": time.strftime("%Y-%m-%d %H:%M"),
        },
        "items": job.items,
        "flop": job.flop,
        "measure": job.measure.__name__,
        "different": job.different,
        "reference": {"name": job.reference.name, **job.reference.about},
        "challengers": results,
    }


def merged(result: dict[str, Any], path: Path) -> dict[str, Any]:
    """A result with the stored one's challengers that did not run this time, if it is of the same machine and work.
    Compiled networks may be too large to be measured in one process."""
    if not path.is_file():
        return result
    before = json.loads(path.read_text())
    machines = [{**one["machine"], "time": None} for one in (before, result)]
    if machines[0] != machines[1] or any(before[key] != result[key] for key in ("what", "flop", "reference")):
        return result
    ran = {one["name"] for one in result["challengers"]}
    kept = [one for one in before["challengers"] if one["name"] not in ran]
    return {**result, "challengers": [*kept, *result["challengers"]]}


def rows(result: dict[str, Any]) -> Iterator[list[str]]:
    """The lines of a result in the table."""
    unit = " of 255" if result["measure"] == "levels" else ""
    for one in result["challengers"]:
        name = f"{one['name']} / {result['reference']['name']}"
        if "absent" in one:
            yield [result["what"], name, *[""] * 6, one["absent"]]
            continue
        apart = "different networks" if one["apart"] is None else f"{one['apart']:.2g}{unit}"
        yield [
            result["what"],
            name,
            apart,
            *(f"{one[side]['median']:.3g} ({one[side]['least']:.3g})" for side in ("reference_seconds", "seconds")),
            f"**{one['ratio']:.2f}**",
            f"{one['ratio_processor']:.2f}",
            f"{one['seconds']['percent_of_limit']:.0f} % of {one['limit_gflops']['float32']:.0f} GFLOP/s",
            f"{one['others_percent']:.0f} %",
        ]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Results in Markdown, a table for each machine."""
    lines, head = list[str](), ""
    titles = ["work", "challenger / reference", "apart", "reference, s", "challenger, s", "times as fast"]
    titles += ["by processor time", "of the float32 limit", "others' load"]
    for result in results:
        machine = result["machine"]
        packages = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        title = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads; {packages}"
        if title != head:
            head = title
            lines += ["", title, "", f"| {' | '.join(titles)} |", f"|{'-|' * len(titles)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows(result)]
    notes = dict.fromkeys(f"{result['what']}: {result['different']}" for result in results if result["different"])
    return "\n".join([*lines[1:], "", "Seconds are medians, with the least in brackets.", *notes]) + "\n"


def read(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The stored results in folders, or of single files."""
    files = [file for place in folders for file in ([place] if place.is_file() else sorted(place.glob("*.json")))]
    return [json.loads(file.read_text()) for file in files]


def positive(text: str) -> int:
    """A count of a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, not {text!r}")
    return int(text)


def parser(doc: str | None, folder: str) -> argparse.ArgumentParser:
    """The options of every script of jobs."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--jobs", type=lambda text: text.split(","), help="of them, with commas between; all if none")
    made.add_argument("--engines", type=lambda text: text.split(","), help="of the challengers; all if none")
    made.add_argument("--rounds", type=positive, help="how often each does the work (a number for each job)")
    made.add_argument("--threads", type=positive, default=cores(), help="of PyTorch and the engines (all cores)")
    made.add_argument("--quick", action="store_true", help="toys instead of networks, which tries the script alone")
    made.add_argument("--out", type=Path, help=f"folder of the results ({folder}; with --quick nowhere)")
    made.set_defaults(folder=Path(folder), parser=made)
    return made


def run_all(jobs: dict[str, tuple[int, Callable[[], Job]]], given: argparse.Namespace) -> int:
    """Run the chosen jobs, each built when its turn comes; write and print each result. Exit code: 1 if any differs,
    2 where what a reference needs is missing."""
    if unknown := set(given.jobs or ()) - set(jobs):
        given.parser.error(f"no job {', '.join(sorted(unknown))}: the jobs are {', '.join(jobs)}")
    torch.set_num_threads(given.threads)
    out, code, said = given.out or (None if given.quick else given.folder), 0, set[str]()
    for name in given.jobs or list(jobs):
        rounds, build = jobs[name]
        try:
            result = run(build(), given.rounds or (2 if given.quick else rounds), 128 if given.quick else LIMIT_SIDE)
        except (OutputsDiffer, NotHere) as reason:
            if str(reason) not in said:  # what is not installed misses in every job
                print(reason, file=sys.stderr)
            said.add(str(reason))
            code = max(code, 2 if isinstance(reason, NotHere) else 1)
            continue
        print(table([result]), flush=True)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            path = out / f"{name}.json"
            path.write_text(json.dumps(merged(result, path), indent=1) + "\n")
        gc.collect()
    return code


def main(argv: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description="Print stored results as a table.")
    made.add_argument("folders", nargs="+", type=Path, help="with results, or single files")
    folders = made.parse_args(argv).folders
    if not (results := read(folders)):
        made.error(f"there are no results in {', '.join(map(str, folders))}")
    print(table(results), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
