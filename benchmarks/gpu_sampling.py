"""Speed of sampling on a GPU: Stable Diffusion 1.x at 512 px, 50 steps with guidance, beside diffusers.

    python -m benchmarks.gpu_sampling --out benchmarks/results/gpu-sampling
    python -m benchmarks.gpu_sampling --toy --out /tmp/toy         the same on a CPU, with tiny networks

Random weights, of both from one state dict, in bfloat16, in one process. Outputs are compared before anything is timed
(in float32, at toy size, whole images too: they are equal); then the sides take turns. What is timed is a guided step
of the U-Net, decoding, and whole images: from embedded text to 8-bit images on the host. The quick measurements come
first, what is compiled later, the longest compilation last; each is in `results.json` as soon as it is over, and none
is begun for which the seconds do not suffice.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_memory import MEMORY, peak_of
from benchmarks.gpu_training import matmul_tflops, synchronize
from benchmarks.sampling_sides import Case, Ours, Side, Theirs, cases
from diptych.core.errors import UserError
from diptych.engines.cuda_capture import Graph
from diptych.engines.cuda_method import CudaMethod
from diptych.engines.replace import Part
from diptych.networks.compiled_blocks import reason, relative
from diptych.training.planning.cards import CARDS, Card

AGREE = 2e-2
"""Largest relative difference of outputs; or twice what rounding to the type amounts to, where that is more: two that
are each so far from float32 may be so far from each other."""
GUIDANCE, BATCHES = 7.5, (1, 8)
AIMS = {"over diffusers, eager": 2.5, "over diffusers, compiled": 1.1, "H100 images/s": 4.3, "H200 images/s": 5.2}
"""What the compiled engine is to reach: twice of times, the others of the larger batch."""
ROUNDS = 30
"""Turns of each side at most, with a step; whole images take fewer."""
SECONDS = 4.0
"""After which no more turns are taken, beyond the second."""
Run = Callable[[Sequence[str], int], dict[str, Any]]
"""(sides, batch) -> what was measured."""


class Clock:
    """How many seconds are left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


def take_turns(
    sides: dict[str, Callable[[], Any]],
    seconds: float,
    images: int,
    tflop: float,
    about: dict[str, Any],
    most: int = ROUNDS,
) -> dict[str, Any]:
    """Median and least seconds of each side, called in turns for so long: once without counting, twice at least."""
    device, times = torch.device(about["kind"]), {name: list[float]() for name in sides}
    peaks, end = dict[str, int](), time.monotonic() + seconds
    for turn in range(most + 1):
        if turn > 2 and time.monotonic() > end:
            break
        for name, run in sides.items():
            if turn == 0 and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            before = allocated(device)
            synchronize(device)
            began = time.perf_counter()
            run()
            synchronize(device)
            if turn:
                times[name].append(time.perf_counter() - began)
            elif device.type == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated(device) - before
    found = {}
    for name, each in times.items():
        median = statistics.median(each)
        rate = images * tflop / median
        shares = {f"share_of_{peak}": rate / about[peak] for peak in ("nominal", "matmul") if about.get(peak)}
        found[name] = {
            "seconds": median, "least": min(each), "times": len(each), "images_per_second": images / median,
            "tflops": rate, **shares, **({"peak_bytes_beyond_weights": peaks[name]} if name in peaks else {}),
        }  # fmt: skip
    return found


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def card_of(name: str) -> Card | None:
    """The card of a device's name, if it is known: of several that fit the one of the longest name."""
    words = name.lower().replace("-", " ").split()
    fitting = [key for key in CARDS if set(key.split("-")) <= set(words)]
    return CARDS[max(fitting, key=len)] if fitting else None


class Study:
    """The measurements, in their order, as far as the seconds reach. What was measured before in `out`, on this device
    with this PyTorch, is not measured again."""

    def __init__(self, case: Case, clock: Clock, out: Path, toy: bool) -> None:
        self.case, self.clock, self.path, self.toy = case, clock, out / "results.json", toy
        name = torch.cuda.get_device_name(case.device) if case.device.type == "cuda" else "CPU"
        found = card_of(name)
        self.about: dict[str, Any] = {"device": name, "torch": torch.__version__, "toy": toy, "kind": case.device.type}
        self.done: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        if {key: self.done.get("about", {}).get(key) for key in self.about} != self.about:
            self.done = {}
        self.tflop = case.tflop()
        self.about |= {"nominal": found.peak if found else None, "dtype": str(case.dtype), "steps": case.steps}
        self.about |= {
            "matmul": matmul_tflops(case.device, 64 if case.device.type == "cpu" else 8192),
            "tflop": self.tflop,
        }
        self.done["about"] = self.about
        self.makers: dict[str, Callable[[], Side]] = {}
        self.sides: dict[str, Side] = {}

    def write(self) -> None:
        self.done["ratios"] = ratios(self.done, self.case.batches)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.done, indent=1) + "\n")

    def part(self, name: str, run: Callable[[], dict[str, Any]], seconds: float = 0.0) -> bool:
        """Measure, unless that is done or takes more seconds than are left; whether there is a result. A failure is
        told, and the next is done."""
        if not failed(self.done.get(name, {"error": ""})):
            return True
        if not self.toy and self.clock.left < seconds:
            self.done[name] = {"skipped": f"takes about {seconds:.0f} s, and {max(self.clock.left, 0):.0f} are left"}
        else:
            try:
                self.done[name] = run()
            except Exception as error:  # out of memory, a kernel that this card has not
                self.done[name] = {"error": f"{type(error).__name__}: {reason(error)}"}
        self.write()
        print(name, json.dumps(self.done[name]), flush=True)
        return not failed(self.done[name])

    def compare(self, name: str, seconds: float = 0.0) -> None:
        """Make a side and compare its outputs with the first one's; only then it is one of those that are timed."""

        def run() -> dict[str, Any]:
            try:
                side = self.makers[name]()
            except ImportError as error:
                return {"skipped": f"{error.name} is not installed"}
            if not self.sides:
                self.about["rounding"] = rounding(side, self.case)
            device = self.case.device
            before, began = allocated(device), time.monotonic()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            found = errors(side, self.sides.get(EAGER[0], side), self.case, self.about["rounding"])
            found["seconds"] = time.monotonic() - began  # of compiling above all
            if device.type == "cuda":
                found["peak_bytes_beyond_weights"] = torch.cuda.max_memory_allocated(device) - before
                found["kept_bytes"] = allocated(device) - before
            self.sides[name] = side
            return found

        self.done.pop(f"agree, {name}", None)  # a rerun makes it again
        self.part(f"agree, {name}", run, seconds)

    def measure(self, name: str, run: Run, wanted: Sequence[str], batch: int, seconds: float = 0.0) -> None:
        """Time those of these sides that agree."""
        there = [name for name in wanted if name in self.sides]
        if there:
            self.part(f"{name}, batch {batch}", lambda: run(there, batch), max(seconds, 5.0))

    def step(self, names: Sequence[str], batch: int) -> dict[str, Any]:
        inputs = self.case.step_inputs(batch)
        return self.turns(names, lambda side: side.step(*inputs), batch, 2 * self.tflop["unet"])

    def decode(self, names: Sequence[str], batch: int) -> dict[str, Any]:
        latents = self.case.step_inputs(batch)[0][:batch]
        return self.turns(names, lambda side: side.decode(latents), batch, self.tflop["decode"])

    def images(self, names: Sequence[str], batch: int) -> dict[str, Any]:
        return self.turns(names, lambda side: side.images(batch), batch, self.tflop["image"], most=4)

    def turns(
        self, names: Sequence[str], run: Callable[[Side], Any], batch: int, tflop: float, most: int = ROUNDS
    ) -> dict[str, Any]:
        calls = {name: lambda side=self.sides[name]: run(side) for name in names}
        return take_turns(calls, 0.0 if self.toy else SECONDS, batch, tflop, self.about, most)


def failed(part: dict[str, Any]) -> bool:
    return bool({"error", "skipped"} & set(part))


def rounding(side: Any, case: Case) -> dict[str, float]:
    """How far the outputs are from those in float32 with the same weights, relatively."""
    x, times, context = case.step_inputs(1)
    unet, autoencoder = (copy.deepcopy(network).float() for network in (side.model.unet, side.model.autoencoder))
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        step = unet(x.float(), times, context=context.float())
        decoded = autoencoder.decode(x[:1].float())
    return {
        "step": relative(step, side.step(x, times, context)),
        "decode": relative(decoded, side.decode(x[:1])),
    }


def errors(side: Side, against: Side, case: Case, rounded: dict[str, float]) -> dict[str, Any]:
    """The relative differences of the outputs of two sides. Raises a `UserError` where one is too large, or where the
    side did not run as its name says."""
    x, times, context = case.step_inputs(1)
    found: dict[str, Any] = {}
    for what, run in (("step", lambda one: one.step(x, times, context)), ("decode", lambda one: one.decode(x[:1]))):
        right = run(against).float()
        if not right.isfinite().all():
            raise UserError(f"the {what} of {against.name} is not finite: nothing can be compared")
        found[what] = relative(right, run(side).float())
        if not found[what] <= max(AGREE, 2 * rounded[what]):
            raise UserError(f"the {what} differs by {found[what]:.1e} from that of {against.name}: it is not timed")
    if case.dtype == torch.float32 or side.name == EAGER[2]:  # of a large network, rounding adds up over the steps
        levels = images_apart(side, against)
        found |= levels
        if case.dtype == torch.float32 and levels["images, largest of 255"] > 1:
            raise UserError(
                f"the images differ from those of {against.name} by {levels['images, largest of 255']} of 255"
            )
    side.check()
    return found


def images_apart(side: Side, against: Side) -> dict[str, float]:
    """How far an image of both is apart: the same seed, steps and guidance."""
    own, right = (np.asarray(one.images(1)[0], dtype=float) for one in (side, against))
    apart = np.abs(own - right)
    return {"images, mean of 255": float(apart.mean()), "images, largest of 255": float(apart.max())}


EAGER = ("diptych", "diptych channels_last", "diffusers", "diffusers channels_last")
COMPILING = {
    "diptych graphs": 10,
    "diptych compiled": 50,
    "diptych tuned": 20,
    "diffusers compiled": 60,
    "diptych compiled whole": 60,
}
"""About how many seconds it takes to compile a side for one batch."""
TUNING = 300
"""The same for diffusers with max-autotune."""


def sides(case: Case, toy: bool) -> dict[str, Callable[[], Side]]:
    """Makes of what is compared, by its name."""
    model, last = case.model(), case.model()
    last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def ours(name: str, regions: Any, tuned: bool = False) -> Callable[[], Side]:
        return lambda: Ours(name, case, last, engine("none" if toy else regions, toy, tuned))

    def theirs(name: str, channels_last: bool = True, mode: str = "") -> Callable[[], Side]:
        return lambda: Theirs(name, case, model, channels_last, mode)

    return {
        "diptych": lambda: Ours("diptych", case, model, None),
        "diptych channels_last": lambda: Ours("diptych channels_last", case, last, None),
        "diffusers": theirs("diffusers", channels_last=False),
        "diffusers channels_last": theirs("diffusers channels_last"),
        "diptych graphs": ours("diptych graphs", "none"),
        "diptych compiled": ours("diptych compiled", "blocks"),
        "diptych tuned": ours("diptych tuned", "blocks", tuned=True),
        "diptych compiled whole": ours("diptych compiled whole", "whole"),
        "diffusers compiled": theirs("diffusers compiled", mode="reduce-overhead"),
        "diffusers tuned": theirs("diffusers tuned", mode="max-autotune-no-cudagraphs" if toy else "max-autotune"),
    }


def study(case: Case, seconds: float, out: Path, toy: bool) -> dict[str, Any]:
    """Measure all of it, within so many seconds."""
    it = Study(case, Clock(seconds), out, toy)
    it.makers = sides(case, toy)
    one, many = case.batches
    graphs, ours, whole, theirs, tuned = (
        *("diptych graphs", "diptych compiled", "diptych compiled whole"),
        *("diffusers compiled", "diffusers tuned"),
    )
    with torch.no_grad():
        for name in EAGER:
            it.compare(name)
        it.measure("step, eager", it.step, EAGER, one)
        it.measure("images, eager", it.images, EAGER, one)
        it.compare(graphs, COMPILING[graphs])
        it.compare(ours, COMPILING[ours])
        it.measure("step, compiled", it.step, (ours, graphs, *EAGER[2:]), one)
        it.measure("images, compiled", it.images, (ours, graphs, *EAGER[2:]), one)
        it.compare(theirs, COMPILING[theirs])
        for what, run in (("images", it.images), ("step", it.step), ("decode", it.decode)):
            it.measure(f"{what}, both compiled", run, (ours, theirs), one)
        it.measure("images, compiled", it.images, (ours,), many, COMPILING[ours])
        it.measure("images, both compiled", it.images, (ours, theirs), many, COMPILING[theirs])
        it.measure("images, eager", it.images, EAGER[1:], many)
        it.compare("diptych tuned", COMPILING["diptych tuned"])
        it.measure("images, tuned convolutions", it.images, (ours, "diptych tuned"), one)
        it.compare(whole, COMPILING[whole])
        it.measure("images, whole", it.images, (ours, whole), one)
        it.compare(tuned, TUNING)
        it.measure("images, tuned", it.images, (ours, tuned), one)
        it.sides, it.makers = {}, {}
        gc.collect()
        if case.device.type == "cuda":
            torch.cuda.empty_cache()
        for options in MEMORY:
            name = ", ".join(f"{key} {value}" for key, value in options.items()) or "as it is"
            it.part(f"memory, {name}", lambda o=options: peak_of(case.model, o, case.device), 8)
    return it.done


def engine(regions: Any, toy: bool, tuned: bool = False) -> Callable[[Part], CudaMethod]:
    """Makes what runs a part; on a CPU a graph is the call itself."""

    def plain(call: Callable[..., Tensor], given: Any, pool: Any) -> Callable[[Any], Tensor]:
        return lambda given: call(**given)

    return lambda part: CudaMethod(part, regions, tuned=tuned, capture=plain if toy else Graph)


def ratios(done: dict[str, Any], batches: tuple[int, ...]) -> dict[str, Any]:
    """How many times as many images a second the compiled engine makes, where both sides were measured in one part, and
    what it is to reach."""
    found: dict[str, Any] = {"aims": AIMS}
    for part, sides in done.items():
        if not part.startswith("images") or "diptych compiled" not in sides:
            continue
        ours = sides["diptych compiled"]["images_per_second"]
        for name, one in sides.items():
            if name != "diptych compiled":
                found[f"{part}: diptych compiled over {name}"] = ours / one["images_per_second"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu-sampling"), metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=170, help="after which nothing more is begun")
    parser.add_argument("--toy", action="store_true", help="tiny networks on the CPU, to try the script")
    options = parser.parse_args()
    if not options.toy and not torch.cuda.is_available():
        print("gpu_sampling: no GPU that PyTorch can use; --toy tries the script on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.toy else "cuda")
    done = study(cases(options.toy, device), options.seconds, options.out, options.toy)
    return 1 if any("error" in part for part in done.values() if isinstance(part, dict)) else 0


if __name__ == "__main__":
    sys.exit(main())
