"""Figures from sweeps and measured sets: guidance, thresholding, sizes of text encoder and U-Net, noise augmentation.

Saharia et al. 2022 (Imagen), figures 4 and A.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from diptych.core.errors import UserError
from diptych.evaluation.curves.curve_lines import ALIGNMENTS, DISTANCES, NAMES, WITH, Line, lines_of, require_comparable
from diptych.evaluation.curves.curve_page import (
    Curve,
    by_setting,
    notes_of,
    pareto,
    points_of,
    reference_levels,
    said_of,
    sources_of,
    style_of,
)
from diptych.evaluation.curves.stored_results import StoredResult
from diptych.evaluation.plots import GREY, label_axis, level_line, mark_weights, page_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALIKE = 0.1
"""How far apart the parameters of networks may be that count as of one size: a wider text encoder needs wider
projections in the U-Net."""
FIRST_STAGE = "stage "


def guidance_figure(results: Sequence[StoredResult]) -> Curve | None:
    """Alignment against distance over guidance weights, a line for each model (Imagen, figure 4)."""
    lines = lines_of(results, "guidance")
    if not lines:
        return None
    chosen, notes = _one_threshold(lines)
    return _pareto("Alignment and distance over the guidance weight", chosen, _labels(chosen), notes)


def guides_figure(results: Sequence[StoredResult]) -> Curve | None:
    """Alignment against distance over the scales of classifier, CLIP and classifier-free guidance."""
    lines = lines_of(results, "scale")
    if not lines:
        return None
    if len({line.model["name"] for line in lines}) > 1:
        lines = [replace(line, condition=f"{line.label}: {line.condition}") for line in lines]
    lines = sorted(lines, key=lambda line: (WITH in line.condition, line.condition))
    labels = [line.condition for line in lines]
    x, y = _axes_of(lines)
    require_comparable(lines, (x, y))

    def draw() -> Figure:
        parts = [[line for line in lines if (WITH in line.condition) == base] for base in (False, True)]
        parts = [part for part in parts if part]
        figure, axes = page_of(*[1.2] * len(parts))
        guides = list(dict.fromkeys(label.partition(WITH)[0] for label in labels))
        for axis, part in zip(axes, parts, strict=True):
            names = [line.condition for line in part]
            styles = [guides.index(name.partition(WITH)[0]) for name in names]  # one of each guide in both panels
            pareto(axis, part, names, x, y, "points: scale; right and down is better", styles)
        return figure

    points = points_of(lines, labels, "scale")
    said = said_of(lines, (x, y))
    return Curve("guides", "Guides, over their scales", points, sources_of(lines), said, draw, notes_of(lines))


def thresholding_figure(results: Sequence[StoredResult]) -> Curve | None:
    """The thresholds of a model over guidance weights, and the share of saturated values (Imagen, figure 4c)."""
    every = lines_of(results, "guidance")
    models = {name: [one for one in every if _model(one) == name] for name in dict.fromkeys(map(_model, every))}
    lines = [line for own in models.values() if len(own) > 1 for line in own]
    if not lines:
        return None
    x, y = _axes_of(lines)
    require_comparable(lines, (x, y))
    several = len({_model(line) for line in lines}) > 1
    labels = [f"{line.label}, {line.condition}" if several else line.condition for line in lines]

    def draw() -> Figure:
        figure, (trade, ends) = page_of(1.4, 1)
        pareto(trade, lines, labels, x, y, "points: guidance weight")
        by_setting(ends, lines, labels, "saturated", "guidance weight")
        if (real := lines[0].references.get("real", {}).get("saturated")) is not None:
            level_line(ends, real["value"], "real images")
            ends.legend(fontsize=8)
        mark_weights(ends, sorted({weight for line in lines for weight in line.points}))
        return figure

    name = lines[0].label
    title = "Thresholding over the guidance weight" + ("" if several else f": {name}")
    points = points_of(lines, labels, "guidance")
    return Curve("thresholding", title, points, sources_of(lines), said_of(lines, (x, y)), draw, notes_of(lines))


def text_encoder_figure(results: Sequence[StoredResult]) -> Curve | None:
    """The same as `guidance_figure` for models that differ in the text encoder (Imagen, figure 4a)."""
    return _size_figure(results, "text-encoder", "Text encoder size", _text_size, _denoiser_size, "U-Nets")


def unet_figure(results: Sequence[StoredResult]) -> Curve | None:
    """The same as `guidance_figure` for models that differ in the U-Net (Imagen, figure 4b)."""
    return _size_figure(results, "unet", "U-Net size", _denoiser_size, _text_size, "text encoders")


def augmentation_figure(results: Sequence[StoredResult]) -> Curve | None:
    """Alignment, distance and PSNR over augmentation levels, of stages trained with augmentation and without."""
    lines = lines_of(results, "level")
    if not lines:
        return None
    measures = [name for name in ("alignment", "frechet", "psnr") if all(name in line.measures for line in lines)]
    require_comparable(lines, measures)
    trained = {True: "trained with augmentation", False: "trained without"}
    labels = []
    for line, name in zip(lines, _labels(lines), strict=True):
        how = trained.get(line.model.get("augmented", ...))
        labels.append(f"{name}, {how}" if how else name)

    def draw() -> Figure:
        figure, axes = page_of(*[1.0] * len(measures))
        for axis, measure in zip(axes, measures, strict=True):
            by_setting(axis, lines, labels, measure, "augmentation level")
            reference_levels(axis, lines[0].references, measure)
        return figure

    points = points_of(lines, labels, "level")
    said = said_of(lines, measures)
    if not any(line.model.get("augmented") is False for line in lines):
        said.append("no stage that was trained without augmentation is among these results")
    return Curve("augmentation", "Noise augmentation levels", points, sources_of(lines), said, draw, notes_of(lines))


def _pareto(title: str, lines: Sequence[Line], labels: Sequence[str], notes: Sequence[str]) -> Curve:
    x, y = _axes_of(lines)
    require_comparable(lines, (x, y))

    def draw() -> Figure:
        figure, (axis,) = page_of(1.5, height=5.0)
        pareto(axis, lines, labels, x, y, "points: guidance weight; right and down is better")
        return figure

    points, said = points_of(lines, labels, "guidance"), said_of(lines, (x, y))
    return Curve("guidance", title, points, sources_of(lines), said, draw, [*notes, *notes_of(lines)])


def _axes_of(lines: Sequence[Line]) -> tuple[str, str]:
    """The measures of alignment and of distance that the first line has."""
    has = lines[0].measures
    x = next((name for name in ("alignment", *ALIGNMENTS) if name in has), None)
    y = next((name for name in ("frechet", *DISTANCES) if name in has), None)
    if x is None or y is None:
        raise UserError(f"{lines[0].sources[0].name} has no alignment and distance to draw: measure both")
    return x, y


def _model(line: Line) -> str:
    return replace(line, condition="").identity


def _one_threshold(lines: Sequence[Line]) -> tuple[list[Line], list[str]]:
    """Of each model the line with static thresholding where it has several: pixel models' own. And what is left out."""
    chosen, notes = [], []
    for model in dict.fromkeys(map(_model, lines)):
        own = [line for line in lines if _model(line) == model]
        best = next((line for line in own if line.condition == "static"), own[0])
        chosen.append(best)
        if len(own) > 1:
            others = ", ".join(line.condition for line in own if line is not best)
            notes.append(f"thresholds {others} of {best.label} (figure thresholding)")
    return chosen, notes


def _labels(lines: Sequence[Line]) -> list[str]:
    """The models' names; where two have the same one, with the beginning of their weights' hash."""
    names = [line.label for line in lines]
    hashes = [str(line.model.get("fingerprint") or line.model.get("state") or "") for line in lines]
    return [
        f"{name} ({hash_[:6]})" if names.count(name) > 1 else name for name, hash_ in zip(names, hashes, strict=True)
    ]


def _text_size(line: Line) -> int | None:
    return (line.model.get("networks") or {}).get("text")


def _denoiser(line: Line) -> str | None:
    """The name of the network whose guidance was swept: a cascade's first stage, a U-Net, a transformer."""
    networks = line.model.get("networks") or {}
    names = (*(name for name in networks if name.startswith(FIRST_STAGE)), "unet", "network", "transformer")
    return next((name for name in names if name in networks), None)


def _denoiser_size(line: Line) -> int | None:
    return (line.model.get("networks") or {}).get(_denoiser(line))


def _others(line: Line, figure: str) -> dict[str, int]:
    """The sizes of all networks but the one that a figure is about."""
    varied = "text" if figure == "text-encoder" else _denoiser(line)
    return {name: size for name, size in (line.model.get("networks") or {}).items() if name != varied}


def _alike(lines: Sequence[Line], figure: str) -> bool:
    """Whether all other networks are of one size, and the models of one kind."""
    first, *rest = (_others(line, figure) for line in lines)
    return all(
        other.keys() == first.keys()
        and all(abs(other[name] - size) <= ALIKE * min(other[name], size) for name, size in first.items())
        for other in rest
    )


Size = Callable[[Line], int | None]


def _size_figure(
    results: Sequence[StoredResult], name: str, title: str, size: Size, other: Size, what: str
) -> Curve | None:
    """Pareto curves, and the least distance by size. None where no two models of the results differ in this size.

    None too where they differ in another network: the plot would not say which of them matters.
    """
    every, notes = _one_threshold(lines_of(results, "guidance"))
    lines = sorted((line for line in every if size(line) is not None), key=lambda line: size(line) or 0)
    if len({size(line) for line in lines}) < 2:
        return None
    if not _alike(lines, name):
        return None
    if unsized := [line.label for line in every if size(line) is None]:
        notes += [f"{', '.join(unsized)}, stored before sizes were: run the sweep in its folder again"]
    x, y = _axes_of(lines)
    require_comparable(lines, (x, y))
    kinds = [line.model.get("text") if name == "text-encoder" else None for line in lines]
    labels = [f"{kind or line.label}, {(size(line) or 0) / 1e6:.3g} M" for line, kind in zip(lines, kinds, strict=True)]
    labels = [
        f"{one} ({line.label})" if labels.count(one) > 1 else one for one, line in zip(labels, lines, strict=True)
    ]
    least = [min(line.points.items(), key=lambda item: item[1][y]["value"]) for line in lines]

    def draw() -> Figure:
        figure, (trade, sizes) = page_of(1.4, 1)
        pareto(trade, lines, labels, x, y, "points: guidance weight; right and down is better")
        counts = [size(line) or 0 for line in lines]
        sizes.plot(counts, [row[y]["value"] for _, row in least], color=GREY, linewidth=1)
        for number, (count, (weight, row)) in enumerate(zip(counts, least, strict=True)):
            style = style_of(number)
            error = row[y].get("error")
            sizes.errorbar(
                count, row[y]["value"], yerr=error, label=f"weight {weight:g}", capsize=3, markersize=7, **style
            )
        sizes.set_xscale("log")
        label_axis(sizes, "parameters", f"least {NAMES[y]}", "")
        return figure

    points = [
        {**row, "parameters": size(line), f"parameters of {what}": other(line)}
        for line, label in zip(lines, labels, strict=True)
        for row in points_of([line], [label], "guidance")
    ]
    said = [*said_of(lines, (x, y)), f"the other networks are of one size, but for {ALIKE:.0%}"]
    return Curve(name, title, points, sources_of(lines), said, draw, [*notes, *notes_of(lines)])


def size_refusal(results: Sequence[StoredResult], name: str) -> str:
    """Why a figure of sizes cannot be drawn, in words; empty where nothing is known but that results are missing."""
    size = _text_size if name == "text-encoder" else _denoiser_size
    lines = lines_of(results, "guidance")
    sized: list[Line] = [line for line in lines if size(line) is not None]
    if lines and not sized:
        names = ", ".join(dict.fromkeys(source.name for line in lines for source in line.sources))
        return f"{names}: stored before the sizes of networks were; run the sweep in its folder again, which adds them"
    if len({size(line) for line in sized}) < 2:
        return "all models of these results have one size" if sized else ""
    sizes = " and ".join(", ".join(f"{part} {n:,}" for part, n in _others(line, name).items()) for line in sized)
    return f"the models differ in other networks too: {sizes} parameters"
