"""The plan of a training run as tables, or as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from diptych.core.terminal import console, print_out
from diptych.training.planning.plan import FRAGMENTED, RESERVED, Plan

Row = tuple[str, str, str]
OUTSIDE = "outside of these networks: losses, gradients that weigh them"


def print_plan(name: str, plan: Plan, as_json: bool = False) -> None:
    """Print the plan of the recipe of that name."""
    if as_json:
        print_out(json.dumps(as_values(name, plan), indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    cluster, training = plan.cluster, plan.recipe.training
    parts = f", {training.accumulation} parts" if training.accumulation > 1 else ""
    print_out(f"{name} on {cluster.gpus:,} x {cluster.card.title}: batch {training.batch_size:,}{parts}")
    if training.batch_size % cluster.gpus:
        most = math.ceil(training.batch_size / cluster.gpus)
        print_out(f"the batch does not divide evenly: some GPUs compute {most:,} images, and others wait for them")
    sections = (
        ("parameters", parameter_rows(plan)),
        ("FLOPs an image", flop_rows(plan)),
        ("time and price", time_rows(plan)),
        ("storage", storage_rows(plan)),
    )
    table = Table.grid(padding=(0, 2))
    for title, rows in sections:
        table.add_row(title)
        for what, value, note in rows:
            table.add_row(f"  {what}", Text(value, justify="right"), note)
    memory = Table.grid(padding=(0, 2))
    for what, *values, note in memory_rows(plan):
        memory.add_row(what, *(Text(value, justify="right") for value in values), note)
    console().print(memory, table)
    for line in verdict(plan):
        print_out(line)


def parameter_rows(plan: Plan) -> list[Row]:
    idle = "frozen, read from disk: not run"
    rows = [(part, f"{number:,}", "trained") for part, number in plan.parameters.items()]
    rows += [
        (part, f"{number:,}", idle if part in plan.idle else "frozen, runs in each step")
        for part, number in plan.frozen_parameters.items()
    ]
    return rows


def flop_rows(plan: Plan) -> list[Row]:
    images, rows = plan.step.images, list[Row]()
    for part, flops in plan.step.forward.items():
        note = "forward" if part in plan.parameters else "frozen" if part in plan.frozen_parameters else OUTSIDE
        rows.append((part, tera(flops / images), note))
    rows.append(("backward", tera(plan.step.backward / images), ""))
    return [*rows, ("total", tera(plan.flops), "")]


def memory_rows(plan: Plan) -> list[tuple[str, str, str, str]]:
    """What a GPU holds when passes take most, and when the optimizer moves the weights."""
    step, update, training = plan.memory, plan.update, plan.recipe.training
    divided = plan.cluster.gpus > 1 and training.shard != "no"
    rows = [
        ("weights", "weights", "float32" + (", this GPU's part" if divided else "")),
        ("gradients", "gradients", "of the parts before, and those made while activations are freed"),
        (f"{training.optimizer} state", "optimizer", ""),
        ("EMA", "average", "float32"),
        ("frozen networks", "frozen", ""),
        *([("gathered weights", "copies", "")] if divided else [("weights in bfloat16", "copies", "autocast")]),
        ("activations", "activations", "and temporary tensors"),
    ]
    images = "1 image" if plan.step.images == 1 else f"{plan.step.images:,} images"
    shown = [(f"memory of a GPU, {images} at once", "forward, backward", "optimizer step", "")]
    for part, name, note in rows:
        passes, moving = getattr(step, name), getattr(update, name)
        if passes or moving:
            shown.append((f"  {part}", gib(passes) if passes else "-", gib(moving) if moving else "-", note))
    shown.append(("  at the peak", gib(step.total), gib(update.total), ""))
    more = f"the larger, {FRAGMENTED:.0%} for fragmentation, {RESERVED / 2**30:g} GiB for CUDA and libraries (assumed)"
    return [*shown, ("  needed", gib(plan.needed_bytes), "", more)]


def time_rows(plan: Plan) -> list[Row]:
    cluster, card = plan.cluster, plan.cluster.card
    peak, kind = (card.peak, "bfloat16") if plan.half else (card.float32, "float32")
    rows = [
        ("utilisation", f"{cluster.utilisation:.0%}", f"assumed, of {peak:g} TFLOP/s {kind} ({card.source})"),
        ("images a second", number(plan.images_per_second), f"{number(plan.images_per_second / cluster.gpus)} a GPU"),
        ("steps", f"{plan.steps:,}", f"{plan.images:,} images, {number(plan.steps / plan.seconds)} steps a second"),
        ("days", number(plan.seconds / 86400), f"{number(plan.seconds / 3600)} hours"),
        ("GPU-hours", number(plan.gpu_hours), ""),
    ]
    if cluster.gpus > 1:
        rate = plan.sent_bytes * plan.steps / plan.seconds / 1e9
        rows.append(("gradients sent", gib(plan.sent_bytes), f"a GPU and step: {number(rate)} GB/s for these days"))
    if plan.price is not None:
        rows.append(("price", f"{plan.price:,.0f}", f"{cluster.hour_price:g} a GPU-hour"))
    return rows


def storage_rows(plan: Plan) -> list[Row]:
    rows = []
    for kind, size in plan.example_bytes.items():
        total = f"{gib(size * plan.examples)} of {plan.examples:,} examples" if plan.examples else "--examples for all"
        note = f", captions of {plan.caption_tokens} tokens" if kind == "text" else ""
        rows.append((f"{kind} of an example", f"{size / 1024:,.1f} KiB", total + note))
    keep = plan.recipe.training.keep
    rows.append(("checkpoint", gib(plan.checkpoint_bytes), f"{keep + 1} while one is written: weights, EMA, optimizer"))
    return [*rows, ("model", gib(plan.model_bytes), "")]


def verdict(plan: Plan) -> list[str]:
    """Whether it fits the card, and what would."""
    have = plan.cluster.card.memory * 1e9
    said = f"{gib(plan.needed_bytes)} of {gib(have)}"
    if plan.fits:
        return [f"fits: {said}"]
    return [f"does not fit: {said}", *(f"- {advice}" for advice in plan.advice)]


def as_values(name: str, plan: Plan) -> dict[str, Any]:
    """The plan as JSON: bytes, seconds, FLOPs."""
    cluster, images = plan.cluster, plan.step.images
    return {
        "recipe": name,
        "gpus": cluster.gpus,
        "gpu": cluster.card.title,
        "peak_tflops": cluster.card.peak if plan.half else cluster.card.float32,
        "peak_source": cluster.card.source,
        "utilisation": cluster.utilisation,
        "precision": "bf16" if plan.half else "fp32",
        "parameters": {"trained": plan.parameters, "frozen": plan.frozen_parameters, "idle": list(plan.idle)},
        "flops_an_image": {
            "forward": {part: flops / images for part, flops in plan.step.forward.items()},
            "backward": plan.step.backward / images,
            "total": plan.flops,
        },
        "memory": {
            "images_at_once": images,
            **dataclasses.asdict(plan.memory),
            "update": dataclasses.asdict(plan.update),
            "peak": plan.peak_bytes,
            "needed": round(plan.needed_bytes),
            "card": round(cluster.card.memory * 1e9),
            "fits": plan.fits,
            "advice": plan.advice,
        },
        "images": plan.images,
        "steps": plan.steps,
        "images_per_second": plan.images_per_second,
        "seconds": plan.seconds,
        "gpu_hours": plan.gpu_hours,
        "price": plan.price,
        "gradient_bytes_sent": round(plan.sent_bytes),
        "storage": {
            "bytes_an_example": plan.example_bytes,
            "examples": plan.examples,
            "checkpoint": plan.checkpoint_bytes,
            "checkpoints_kept": plan.recipe.training.keep,
            "model": plan.model_bytes,
        },
    }


def gib(size: float) -> str:
    if size >= 2**40:
        return f"{size / 2**40:,.2f} TiB"
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 / 100 else f"{size / 2**20:,.2f} MiB"


def tera(flops: float) -> str:
    if flops >= 1e11:
        return f"{flops / 1e12:,.3f} T"
    return f"{flops / 1e9:,.3f} G"


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
