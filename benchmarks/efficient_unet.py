"""The Efficient U-Net against a plain U-Net of as many parameters, trained for as many steps on the same images.

    python -m benchmarks.efficient_unet --data data/emoji-128 --steps 400 --out benchmarks/results/efficient-unet
    python -m benchmarks.efficient_unet --size full         times the networks of the paper's size, on a GPU
    python -m benchmarks.efficient_unet --memory            adds the memory of a training step to stored results

Both are the stage 32 -> 128 without words, trained on 64-px crops by the common loop: the same data, seeds, batches,
learning rate and schedule. A rerun goes on where the last one stopped. Seconds are taken with both networks in turn, so
that whatever else the machine does slows both. Writes results.json, results.md and curves.png.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import functools
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diptych.core.devices import find_device
from diptych.core.progress import track
from diptych.diffusion.denoiser import Denoiser
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.efficient_unet import EfficientUNetConfig
from diptych.networks.unet import UNetConfig
from diptych.pretrained.load import open_model
from diptych.recipes import get
from diptych.training import experiment as run
from diptych.training.experiment_config import PixelTraining, Recipe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the next line, where this is run as a file
from benchmarks.common import axes, logged, save
from benchmarks.full_size import condition, count, stage
from benchmarks.plan_memory import resident

RECIPE = "emoji-sr-128"
NEAR = 0.02
"""How far apart the numbers of parameters may be."""
CROP, SIZE, FACTOR = 64, 128, 4
STEPS = 8
"""Sampling steps."""

Network = UNetConfig | EfficientUNetConfig


def efficient(channels: int) -> EfficientUNetConfig:
    """The paper's shape in small: blocks double from level to level, attention at the last alone."""
    return EfficientUNetConfig(
        channels=channels,
        multipliers=(1, 2, 4),
        blocks=(1, 2, 4),
        self_attention_levels=(2,),
        cross_attention_levels=(),
        head_width=2 * channels,
        feed_forward=1,
    )


@functools.lru_cache
def equal_plain(network: EfficientUNetConfig, step: int = 4) -> UNetConfig:
    """The plain U-Net with the same multipliers and concat, and within `NEAR` of the parameters.

    A search over channels, in steps of `step` and then finer, and over the blocks of a level. Attention stands in its
    middle, where every plain U-Net has one, with as many heads.
    """
    wanted, last = count(network), len(network.multipliers) - 1
    heads, _ = network.level_heads(last)

    def plain(channels: int, blocks: int) -> UNetConfig:
        return UNetConfig(
            in_channels=network.in_channels,
            concat_channels=network.concat_channels,
            out_channels=network.out_channels,
            channels=channels,
            multipliers=network.multipliers,
            blocks=blocks,
            attention_levels=(),
            feed_forward=network.feed_forward,
            heads=heads,
            context_width=network.context_width,
            pooled_width=network.pooled_width,
            context_norm=network.context_norm and network.context_width is not None,
            augmented=network.augmented,
        )

    found: dict[float, UNetConfig] = {}
    for unit in (step, max(step // 2, 1), 1):
        possible = [n for n in range(unit, 3 * network.channels, unit) if n * network.multipliers[last] % heads == 0]
        for blocks in (2, 1, 3):
            place = bisect.bisect_left(possible, wanted, key=lambda n, blocks=blocks: count(plain(n, blocks)))
            for channels in possible[max(place - 1, 0) : place + 1]:
                found.setdefault(abs(count(plain(channels, blocks)) / wanted - 1), plain(channels, blocks))
        if (nearest := min(found)) <= NEAR:
            return found[nearest]
    raise ValueError(f"no plain U-Net has {wanted:,} parameters, or nearly: the nearest is {min(found):.1%} off")


def recipe(network: Network, options: argparse.Namespace) -> Recipe:
    """`RECIPE` with that network and without words, for the steps that were asked for."""
    base = get(RECIPE)
    assert isinstance(base.system, PixelTraining)
    model = dataclasses.replace(base.system.model, network=network, text=None, size=SIZE, low_size=SIZE // FACTOR)
    steps = options.steps
    training = dataclasses.replace(
        base.training,
        steps=steps,
        batch_size=options.batch,
        warmup=min(100, max(steps // 4, 1)),
        seed=options.seed,
        device=options.device,
        validate_every=max(steps // 8, 1),
        validation_images=options.validation,
        checkpoint_every=max(steps // 8, 1),
        sample_every=0,
        log_every=max(steps // 40, 1),
    )
    data = dataclasses.replace(base.data, path=str(options.data), size=SIZE, crop=CROP)
    return dataclasses.replace(base, system=dataclasses.replace(base.system, model=model), data=data, training=training)


def learnt(folder: Path, batch: int) -> dict[str, Any]:
    """What the run in a folder told: its validation losses by step, and the median seconds of a step."""
    lines = logged(folder)
    speeds = [line["images_per_second"] for line in lines if line["kind"] == "train"]
    return {
        "validation": [[line["step"], line["loss"]] for line in lines if line["kind"] == "validation"],
        "training_step_seconds": batch / statistics.median(speeds),
    }


def in_turn(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of each call, all of them in every round after one that does not count.

    Median and least by the clock; and the median of what the processor spent, which other programs do not lengthen.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            wait()
            began, spent = time.perf_counter(), time.process_time()
            call()
            wait()
            if turn:
                taken[name].append((time.perf_counter() - began, time.process_time() - spent))
    clock = {name: [seconds for seconds, _ in times] for name, times in taken.items()}
    return {
        name: {
            "median": statistics.median(clock[name]),
            "least": min(clock[name]),
            "processor": statistics.median(spent for _, spent in times),
        }
        for name, times in taken.items()
    }


def wait() -> None:
    """Until the GPU is done, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timings(stages: dict[str, PixelDiffusion], batch: int, repeats: int) -> dict[str, Any]:
    """Forward at full size, forward and backward of a training batch, and whole images, of stages in turn."""
    some = next(iter(stages.values()))
    gen = torch.Generator().manual_seed(0)
    low = Image.effect_noise((SIZE // FACTOR, SIZE // FACTOR), 64).convert("RGB")
    cond = {
        size: {key: value.to(some.device) for key, value in condition(some.config.network, n, size).items()}
        for size, n in ((SIZE, 1), (CROP, batch))
    }
    whole, crops = (torch.randn(n, 3, s, s, generator=gen).to(some.device) for s, n in ((SIZE, 1), (CROP, batch)))

    def forward(it: PixelDiffusion) -> None:
        with torch.no_grad():
            it.network(whole, torch.full((1,), 500.0, device=it.device), **cond[SIZE])

    def both(it: PixelDiffusion) -> None:
        it.zero_grad()
        it.denoiser.loss(crops, crops, 0.5, cond[CROP]).mean().backward()

    def sample(it: PixelDiffusion) -> None:
        it.generate("a picture", seeds=[0], steps=STEPS, low_res=low)

    jobs = {f"forward_{SIZE}px": forward, f"forward_backward_{CROP}px_x{batch}": both, f"sample_{SIZE}px": sample}
    return {
        job: in_turn({name: lambda call=call, it=it: call(it) for name, it in stages.items()}, repeats)
        for job, call in track(list(jobs.items()), "timing")
    }


def memory(network: Network, batch: int, times: int = 5) -> dict[str, int]:
    """Bytes at most of a training step on the CPU, weights and gradients included: the median of processes of their
    own, as the allocator gives memory back at other moments in each."""
    taken = []
    for _ in range(times):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            taken.append(process.submit(peak_of_training_step, network, batch).result())
    return {"training": int(statistics.median(taken)), "least": min(taken), "most": max(taken)}


def peak_of_training_step(network: Network, batch: int) -> int:
    """By how many bytes the resident memory of this process has grown at most, on Linux. Crops as in training."""
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = resident("VmRSS")
    model, cond = network.build(), condition(network, batch, CROP)
    noise = torch.randn(batch, 3, CROP, CROP)
    config = dataclasses.replace(stage(RECIPE), network=network)
    Denoiser(model, config.schedule.build(), config.prediction).loss(noise, noise, 0.5, cond).mean().backward()
    return resident("VmHWM") - before


def add_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Stored results with the memory of both networks."""
    results = json.loads((options.out / "results.json").read_text())
    networks: dict[str, Network] = {"efficient": efficient(options.channels)}
    networks["plain"] = equal_plain(efficient(options.channels))
    for name, network in networks.items():
        if count(network) != (stored := results["networks"][name]["parameters"]):
            raise SystemExit(f"{options.out} has networks of {stored:,} parameters: give their --channels")
        results["networks"][name]["memory"] = memory(network, results["batch"])
    return results


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Train both, or go on, and measure."""
    networks: dict[str, Network] = {"efficient": efficient(options.channels)}
    networks["plain"] = equal_plain(efficient(options.channels))
    for name, network in networks.items():
        print(
            f"{name}: {count(network):,} parameters, {network.channels} channels, blocks {network.blocks}", flush=True
        )
    stages, results = dict[str, PixelDiffusion](), dict[str, Any]()
    for name, network in networks.items():
        folder = options.run / f"{name}-{options.channels}"
        opened = open_model(run.train(recipe(network, options), folder))
        assert isinstance(opened, PixelDiffusion)
        stages[name] = opened.to(find_device(options.device)).eval()
        results[name] = {"parameters": count(network), "network": network.to_dict(), **learnt(folder, options.batch)}
    told = {name: getattr(options, name) for name in ("steps", "batch", "seed")}
    return {
        "data": str(options.data),
        **told,
        "threads": torch.get_num_threads(),
        **({"device": torch.cuda.get_device_name()} if next(iter(stages.values())).device.type == "cuda" else {}),
        "networks": results,
        "seconds": timings(stages, options.batch, options.repeats),
    }


def full(options: argparse.Namespace) -> dict[str, Any]:
    """Forward of the paper's 64 -> 256 network and of its plain equal, one 256-px image in bfloat16."""
    config = stage("imagen-sr-256")
    assert isinstance(config.network, EfficientUNetConfig)
    networks: dict[str, Network] = {"efficient": config.network, "plain": equal_plain(config.network, step=8)}
    for name, network in networks.items():
        print(
            f"{name}: {count(network):,} parameters, {network.channels} channels, blocks {network.blocks}", flush=True
        )
    results = {name: {"parameters": count(it), "network": it.to_dict()} for name, it in networks.items()}
    if not torch.cuda.is_available():
        return {"networks": results}
    calls: dict[str, Callable[[], Any]] = {}
    x = torch.randn(1, 3, config.size, config.size, device="cuda", dtype=torch.bfloat16)
    for name, network in networks.items():
        model = network.build().to("cuda", torch.bfloat16).eval()
        cond = condition(network, 1, config.size)
        cond = {k: v.to("cuda", torch.bfloat16 if v.is_floating_point() else v.dtype) for k, v in cond.items()}
        denoiser = Denoiser(model, config.schedule.build(), config.prediction)
        calls[name] = lambda denoiser=denoiser, cond=cond: denoiser(x, 0.5, cond)
    with torch.no_grad():
        seconds = in_turn(calls, options.repeats)
    return {"networks": results, "device": torch.cuda.get_device_name(), "seconds": {"forward_256px": seconds}}


def table(results: dict[str, Any]) -> str:
    """The results in Markdown; the last column is how many times the plain one's number is larger."""
    ours, theirs = (results["networks"][name] for name in ("efficient", "plain"))
    rows = [("parameters", ours["parameters"], theirs["parameters"], ",d")]
    if "validation" in ours:
        steps = ours["validation"][-1][0]
        rows.append(
            (f"validation loss after {steps} steps", ours["validation"][-1][1], theirs["validation"][-1][1], ".4f")
        )
        rows.append(("seconds a training step", ours["training_step_seconds"], theirs["training_step_seconds"], ".3f"))
    if "memory" in ours:
        mebibytes = [one["memory"]["training"] / 2**20 for one in (ours, theirs)]
        rows.append(("MiB of memory of a training step, CPU", *mebibytes, ".0f"))
    for job, taken in results.get("seconds", {}).items():
        for kind in ("median", "least", *(["processor"] if "device" not in results else [])):
            named = f"seconds {job.replace('_', ' ')}, {kind}"
            rows.append((named, taken["efficient"][kind], taken["plain"][kind], ".4f"))
    lines = ["| | Efficient U-Net | plain U-Net | plain / efficient |", "|-|-:|-:|-:|"]
    lines += [f"| {name} | {a:{form}} | {b:{form}} | {b / a:.2f} |" for name, a, b, form in rows]
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """Validation loss by step, and by seconds of training."""
    figure, (by_step, by_time) = axes(2, figsize=(9, 3.5), sharey=True)
    for name, told in results["networks"].items():
        steps, losses = zip(*told["validation"], strict=True)
        by_step.plot(steps, losses, marker=".", label=name)
        by_time.plot([step * told["training_step_seconds"] for step in steps], losses, marker=".", label=name)
    by_step.set(xlabel="training step", ylabel="validation loss", yscale="log")
    by_time.set(xlabel="seconds of training steps")
    by_step.legend()
    save(figure, path, dpi=120)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji-128"), help="images to train on")
    parser.add_argument("--steps", type=int, default=400, help="training steps of each (400)")
    parser.add_argument("--batch", type=int, default=16, help="images a step (16)")
    parser.add_argument("--channels", type=int, default=16, help="of the Efficient U-Net's first level (16)")
    parser.add_argument("--validation", type=int, default=128, metavar="N", help="validation images (128)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of timing (9)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--run", type=Path, default=Path("runs/efficient-unet"), help="where the training goes on")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/efficient-unet"))
    parser.add_argument("--size", choices=("small", "full"), default="small", help="full: time the paper's, on a GPU")
    parser.add_argument("--memory", action="store_true", help="only measure memory, and add it to the results in --out")
    options = parser.parse_args(argv)
    if options.memory and not (options.out / "results.json").exists():
        parser.error(f"no results in {options.out}: train first, without --memory")
    results = add_memory(options) if options.memory else full(options) if options.size == "full" else compare(options)
    options.out.mkdir(parents=True, exist_ok=True)
    named = "full" if options.size == "full" else "results"
    (options.out / f"{named}.json").write_text(json.dumps(results, indent=2) + "\n")
    (options.out / f"{named}.md").write_text(table(results))
    print(table(results), end="")
    if options.size == "full" and "seconds" not in results:
        print("no GPU that PyTorch can use: counted, not timed", file=sys.stderr)
        return 2
    if options.size == "small":
        plot(results, options.out / "curves.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
