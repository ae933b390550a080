"""Figures from benchmarks and logs: the Efficient U-Net, trainings, compression, text encoders on unseen words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from diptych.core.errors import UserError
from diptych.evaluation.curves.curve_page import BARS, Curve, bars, style_of
from diptych.evaluation.curves.stored_results import StoredResult
from diptych.evaluation.plots import label_axis, level_line, literal, page_of, spread_axis
from diptych.metrics.records import differing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATES = ("images_per_second", "pictures_per_second")
"""As logs name it; the second of older versions."""
QUALITY = ("frechet", "alignment", "clip_score")
"""Beginnings of the names of what a training measures of its samples, drawn where all logs have it."""


def efficient_unet_figure(results: Sequence[StoredResult]) -> Curve | None:
    """Validation loss by step and seconds, images a second, and memory where it was measured (Imagen, figure A.14)."""
    found = [one for one in results if one.kind == "efficient-unet"]
    if not found:
        return None
    one = _only(found)
    networks, seconds = one.values["networks"], one.values.get("seconds", {})
    names = {"efficient": "Efficient U-Net", "plain": "plain U-Net"}
    points: list[dict[str, Any]] = []
    curves: dict[str, tuple[list[float], list[float], list[float]]] = {}
    for key, name in names.items():
        steps, losses = zip(*networks[key]["validation"], strict=True)
        taken = [step * networks[key]["training_step_seconds"] for step in steps]
        curves[name] = (list(steps), taken, list(losses))
        rows = zip(steps, taken, losses, strict=True)
        points += [{"line": name, "step": a, "seconds": b, "validation_loss": c} for a, b, c in rows]
    rates = {"training": {names[key]: one.values["batch"] / networks[key]["training_step_seconds"] for key in names}}
    for job, taken in seconds.items():
        if job.startswith("sample"):
            rates["sampling"] = {names[key]: 1 / taken[key]["median"] for key in names}
    measured = {name: networks[key].get("memory") for key, name in names.items()}
    memory = {name: one["training"] / 2**20 for name, one in measured.items() if one}
    for name in names.values():
        row = {"line": name, **{f"images_per_second_{job}": rate[name] for job, rate in rates.items()}}
        points.append(row | ({"training_memory_mib": memory[name]} if name in memory else {}))

    def draw() -> Figure:
        figure, (by_step, by_time, *rest) = page_of(*[0.8] * (2 + len(rates) + bool(memory)), height=4.0)
        _losses(by_step, {name: (x, loss) for name, (x, _, loss) in curves.items()}, "training step")
        _losses(by_time, {name: (x, loss) for name, (_, x, loss) in curves.items()}, "seconds of training steps")
        for axis, (job, rate) in zip(rest, rates.items(), strict=False):
            bars(axis, list(rate), list(rate.values()), "images a second", job)
        if memory:
            bars(
                rest[-1],
                list(memory),
                list(memory.values()),
                "MiB at most",
                "memory of a training step",
            )
        return figure

    counts = " and ".join(f"{networks[key]['parameters']:,}" for key in names)
    where = one.values.get("device") or f"CPU, {one.values['threads']} threads"
    said = [f"{counts} parameters, one seed, {where}", "Speeds: medians"]
    return Curve("efficient-unet", "The Efficient U-Net and a plain one", points, [one], said, draw)


def training_figure(results: Sequence[StoredResult]) -> Curve | None:
    """Validation loss of runs by step and seconds; distance and alignment of samples where they were measured."""
    runs = [one for one in results if one.kind == "training"]
    if not runs:
        return None
    _require_comparable_runs(runs)
    names = _run_names(runs)
    validation = {name: _column(one, "validation", "loss") for name, one in names.items()}
    if empty := [one.name for name, one in names.items() if not validation[name]]:
        raise UserError(f"{empty[0]} has no validation loss: train with training.validate_every above 0")
    shared = set.intersection(*({key for line in one.values["lines"] for key in line} for one in runs))
    quality = sorted(key for key in shared if key.startswith(QUALITY) and not key.endswith("_real"))
    seconds = {name: _seconds(one) for name, one in names.items()}
    points = [
        {"line": name, "step": step, "seconds": seconds[name].get(step), "validation_loss": loss}
        for name, rows in validation.items()
        for step, loss in rows
    ]
    for key in quality:
        points += [
            {"line": name, "step": step, key: value}
            for name, one in names.items()
            for step, value in _column(one, "evaluation", key)
        ]

    def draw() -> Figure:
        figure, axes = page_of(*[1.0] * (2 + len(quality)), height=4.2)
        _losses(axes[0], {name: _two(rows) for name, rows in validation.items()}, "training step")
        timed = {name: [(seconds[name][step], loss) for step, loss in rows] for name, rows in validation.items()}
        _losses(axes[1], {name: _two(rows) for name, rows in timed.items()}, "seconds of training steps")
        for axis, key in zip(axes[2:], quality, strict=True):
            for number, (name, one) in enumerate(names.items()):
                axis.plot(*_two(_column(one, "evaluation", key)), label=literal(name), markersize=4, **style_of(number))
            label_axis(axis, "training step", key.replace("_", " "), "")
        return figure

    rates = [f"{name} {median(values):.3g}" for name, one in names.items() if (values := _rates(one))]
    said = ["One run each: no bars"] + [f"Images a second, median: {', '.join(rates)}"] * bool(rates)
    return Curve("training", "Convergence", points, runs, said, draw)


def compression_figure(results: Sequence[StoredResult]) -> Curve | None:
    """Distance by images a second for each factor of compression (Rombach et al. 2022, figure 7)."""
    found = [one for one in results if one.kind == "compression"]
    if not found:
        return None
    values = (one := _only(found)).values
    points = [
        {
            "line": f"LDM-{row['factor']}",
            "factor": row["factor"],
            "images_per_second": row["pictures_painted_a_second"],
            "frechet": row["frechet"],
            "training_steps": row["training_steps"],
            "images": values["painted"],
        }
        for row in values["models"]
    ]

    def draw() -> Figure:
        figure, (axis,) = page_of(1.3)
        for number, point in enumerate(points):
            axis.plot(
                point["images_per_second"], point["frechet"], **style_of(number), label=point["line"], markersize=8
            )
        level_line(axis, values["between_drawings"], "real images, one half against the other")
        axis.set_xscale("log")
        axis.margins(0.15)
        axis.set_ylim(bottom=0)
        label_axis(axis, f"images a second ({values['steps']} steps, {values['device']})", "Fréchet distance", "")
        return figure

    spent = sum(values["minutes"])
    said = [f"{values['painted']} images a point", f"{spent:g} minutes of training each", "one seed: no bars"]
    return Curve("compression", "Distance and speed by compression", points, [one], said, draw)


def unseen_figure(results: Sequence[StoredResult]) -> Curve | None:
    """Text encoders: how often the judge names the concept, for words of training captions and for others."""
    found = [one for one in results if one.kind == "unseen"]
    if not found:
        return None
    values = (one := _only(found)).values
    shown = {"seen": "words of training captions", "unseen": "words that are in none"}
    points = [
        {"line": model["name"], "words": words, "top5": row["value"], "top5_error": row["error"]}
        for model in values["models"]
        for key, words in shown.items()
        for row in [values["found"][model["name"]][key]["top5"]]
    ]

    def draw() -> Figure:
        figure, (axis,) = page_of(1.2)
        count = len(values["models"])
        for number, model in enumerate(values["models"]):
            rows = [point for point in points if point["line"] == model["name"]]
            places = [place + (number - (count - 1) / 2) * 0.8 / count for place in range(len(rows))]
            axis.bar(
                places,
                [100 * row["top5"] for row in rows],
                0.8 / count,
                yerr=[100 * row["top5_error"] for row in rows],
                color=style_of(number)["color"],
                label=literal(model["name"]),
                capsize=4,
            )
        axis.set_xticks(range(len(shown)), list(shown.values()))
        level_line(axis, 100 * values["chance"]["top5"]["value"], "chance")
        label_axis(axis, "", "concept among the judge's first five, %", "")
        return figure

    per = values["settings"]["pictures"]
    said = [f"{values['wordings']} wordings, {per} images of each", "Bars: one standard error over wordings"]
    return Curve("unseen", "Text encoders on unseen words", points, [one], said, draw)


def _only(found: Sequence[StoredResult]) -> StoredResult:
    """The one result of its kind: these have no seeds that could be averaged, and speeds are of one machine."""
    if len(found) > 1:
        names = " and ".join(one.name for one in found)
        raise UserError(f"{names} are of different runs or machines and may not be compared: draw each apart")
    return found[0]


def _losses(axis: Axes, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str) -> None:
    for number, (name, (steps, losses)) in enumerate(lines.items()):
        axis.plot(steps, losses, label=literal(name), markersize=BARS["markersize"] - 1, **style_of(number))
    spread_axis(axis, [loss for _, losses in lines.values() for loss in losses])
    label_axis(axis, x, "validation loss", "")


def _two(rows: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in rows], [y for _, y in rows]


def _column(one: StoredResult, kind: str, key: str) -> list[tuple[int, float]]:
    """(step, value) of the lines of a kind that have a number under that key."""
    lines = one.values["lines"]
    rows = [(line["step"], line[key]) for line in lines if line["kind"] == kind and key in line]
    return [(step, float(value)) for step, value in rows if isinstance(value, float | int)]


def _rates(one: StoredResult) -> list[float]:
    return [rate for line in one.values["lines"] for key in RATES if isinstance(rate := line.get(key), float | int)]


def _seconds(one: StoredResult) -> dict[int, float]:
    """Step -> seconds of training steps until then: each line of the log gives the images a second since the one
    before."""
    batch = one.values["config"]["training"]["batch_size"]
    times, before, total = dict[int, float](), 0, 0.0
    typical = median(_rates(one)) if _rates(one) else float("nan")
    for line in one.values["lines"]:
        rate = next((line[key] for key in RATES if isinstance(line.get(key), float | int)), None)
        if line["kind"] == "train" and rate:
            total += (line["step"] - before) * batch / rate
            before = line["step"]
        times[line["step"]] = total + (line["step"] - before) * batch / typical
    return times


def _run_names(runs: Sequence[StoredResult]) -> dict[str, StoredResult]:
    """By the names of their folders; where two are the same, by their whole paths."""
    names = [Path(one.name).parent.name or one.name for one in runs]
    return {name if names.count(name) == 1 else one.name: one for name, one in zip(names, runs, strict=True)}


def _require_comparable_runs(runs: Sequence[StoredResult]) -> None:
    """Raise a `UserError` where validation losses are of other data, another objective or another space."""
    first, *others = runs
    for other in others:
        if reasons := differing(_run_record(first), _run_record(other)):
            raise UserError(f"{first.name} and {other.name} may not be compared: {'; '.join(reasons)}. Draw them apart")


def _run_record(one: StoredResult) -> dict[str, Any]:
    config = one.values["config"]
    system, data, training = (config.get(name) or {} for name in ("system", "data", "training"))
    model = system.get("model") or {}
    keys = ("path", "size", "max_size", "crop", "split", "kinds", "styles", "caption_field", "held_out")
    objective = (system.get("diffusion") or {}).get("objective")
    settings = {"kind": system.get("kind"), "prediction": model.get("prediction"), "objective": objective}
    settings |= {"autoencoder": system.get("autoencoder"), "latents": model.get("autoencoder")}
    settings["validation images"] = training.get("validation_images", training.get("validation_pictures"))
    return {"metric": "loss", "reference": {key: data.get(key) for key in keys}, "settings": settings}
