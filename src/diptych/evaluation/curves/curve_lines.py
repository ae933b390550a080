"""Lines of a plot from stored results: points with errors, over seeds where there are several, and what they depend on.

Two lines share a plot only where `metrics.records.differing` finds nothing between them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev
from typing import Any

from diptych.core.errors import UserError
from diptych.evaluation.curves.stored_results import StoredResult
from diptych.metrics.records import differing

Value = dict[str, Any]
"""`value` and `error`, its standard error, none where nothing is known of it."""
OVER_SEEDS, OVER_IMAGES, BOOTSTRAP = "over seeds", "over images", "bootstrap over images"
DISTANCES, ALIGNMENTS = ("fid", "kid", "cmmd"), ("clip-score",)
"""Of `diptych evaluate images`; the first one that is there is drawn."""
WITH = ", with classifier-free "
"""Of a guide that acts on top of classifier-free guidance."""
NAMES = {
    "alignment": "alignment: cosine of image and concept",
    "frechet": "Fréchet distance on the judge's features",
    "saturated": "values at 0 or 255, %",
    "psnr": "PSNR against the original, dB",
    "clip-score": "CLIP score",
    "fid": "FID",
    "kid": "KID",
    "cmmd": "CMMD",
}
"""Measure -> its axis."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """The points of one model under one condition."""

    label: str
    condition: str = ""
    """What distinguishes it from other lines of the same model: a threshold, a guide."""
    points: Mapping[float, Mapping[str, Value]]
    """Guidance weight or augmentation level -> measures."""
    model: Mapping[str, Any]
    """Its `name`, hashes, and where they were stored `networks`, `text` and `augmented`."""
    depends: Mapping[str, Any]
    """As a result of `metrics.records` has it: features, settings, reference, and numbers of images."""
    draw: str | tuple[str, ...]
    """Which prompts and seeds: lines of one model that differ here alone are repeats."""
    images: int
    """Of each point."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Measure -> what its error is over."""
    references: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    """`real` or `bicubic` -> measures."""
    sources: tuple[StoredResult, ...] = ()
    repeats: int = 1
    left_out: tuple[str, ...] = ()
    """What the results have and the line has not, in words."""

    @property
    def identity(self) -> str:
        """Of the model and condition."""
        hashes = {name: self.model.get(name) for name in ("fingerprint", "config", "state")}
        return json.dumps([hashes, self.condition], sort_keys=True, default=str)

    @property
    def measures(self) -> list[str]:
        """Those of its points."""
        return list(dict.fromkeys(name for point in self.points.values() for name in point))


def lines_of(results: Iterable[StoredResult], axis: str) -> list[Line]:
    """The lines over `axis`, `guidance` or `level`, of all results that have such; seeds of one model are one line.

    Raises a `UserError` for a damaged file, one result twice, repeats that may not be compared, or a set of images
    that does not say its guidance weight.
    """
    lines: list[Line] = []
    for one in results:
        read = READERS.get((one.kind, axis))
        if read is None:
            continue
        try:
            lines += read(one)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{one.name} lacks what its kind ({one.kind}) has ({error}): make it again, or leave it out"
            ) from None
    return merged(lines)


def merged(lines: Sequence[Line]) -> list[Line]:
    """Lines of one model and condition as one: points of the same draw side by side, those of several as means."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.identity, []).append(line)
    return [_over_seeds(_joined(group)) for group in groups.values()]


def require_comparable(lines: Sequence[Line], measures: Sequence[str] = ()) -> None:
    """Raise a `UserError` that says what differs where two lines may not share a plot of these measures."""
    first, *others = lines
    for other in others:
        if reasons := differing(*(_record(line, measures) for line in (first, other))):
            raise UserError(
                f"{_files(first)} and {_files(other)} may not be compared: {'; '.join(reasons)}. Draw them apart, or "
                "make one of them again with the choices of the other"
            )


def _record(line: Line, measures: Sequence[str]) -> dict[str, Any]:
    """What a line depends on; with the draws of all its seeds."""
    reference = {**line.depends.get("reference", {}), "drawn by": _drawn(line)}
    return {**line.depends, "metric": [name for name in measures if name in line.measures], "reference": reference}


def _drawn(line: Line) -> str:
    return line.draw if isinstance(line.draw, str) else " and ".join(line.draw)


def _joined(lines: Sequence[Line]) -> list[Line]:
    """Lines of one draw as one, which has the points of all."""
    by_draw: dict[str, Line] = {}
    for line in lines:
        key = str(line.draw)
        if (before := by_draw.get(key)) is None:
            by_draw[key] = line
            continue
        require_comparable([replace(before, points={}), replace(line, points={})])
        if twice := sorted(before.points.keys() & line.points.keys()):
            raise UserError(
                f"{_files(before)} and {_files(line)} hold the same point ({line.label} at {twice[0]:g}) of the same "
                "seed: give one of them"
            )
        by_draw[key] = replace(
            before, points={**before.points, **line.points}, sources=(*before.sources, *line.sources)
        )
    return list(by_draw.values())


def _over_seeds(lines: Sequence[Line]) -> Line:
    """The mean over draws, with the standard error of that mean."""
    first, *others = lines
    if not others:
        return replace(first, points=dict(sorted(first.points.items())), draw=(str(first.draw),))
    for other in others:
        require_comparable([replace(first, points={}, draw=""), replace(other, points={}, draw="")])
    every = sorted(set().union(*(line.points for line in lines)))
    shared = [x for x in every if all(x in line.points for line in lines)]
    points = {
        x: {name: _mean([line.points[x].get(name) for line in lines]) for name in first.points[x]} for x in shared
    }
    if not points:
        raise UserError(f"{', '.join(map(_files, lines))} have no point in common: measure all seeds at the same ones")
    left_out = [f"{first.label} at {x:g}, which not all seeds have" for x in every if x not in shared]
    return replace(
        first,
        points={x: {name: value for name, value in row.items() if value} for x, row in points.items()},
        draw=tuple(sorted(str(line.draw) for line in lines)),
        errors=dict.fromkeys(first.measures, OVER_SEEDS),
        references=_reference_means([line.references for line in lines]),
        sources=tuple(source for line in lines for source in line.sources),
        repeats=len(lines),
        left_out=tuple(left_out),
    )


def _reference_means(references: Sequence[Mapping[str, Mapping[str, Value]]]) -> dict[str, dict[str, Value]]:
    first = references[0]
    means = {
        name: {key: _mean([one.get(name, {}).get(key) for one in references]) for key in values}
        for name, values in first.items()
    }
    return {name: {key: value for key, value in row.items() if value} for name, row in means.items()}


def _mean(values: Sequence[Value | None]) -> Value:
    """Of all seeds; empty where one of them lacks it."""
    numbers = [value["value"] for value in values if value is not None]
    if len(numbers) < len(values):
        return {}
    return {"value": mean(numbers), "error": stdev(numbers) / math.sqrt(len(numbers))}


def _files(line: Line) -> str:
    return " and ".join(source.name for source in line.sources[:3]) + (" and others" if len(line.sources) > 3 else "")


# Readers: one for each kind of results.


def _numbers(cell: Mapping[str, Any]) -> dict[str, Value]:
    """The measures of a sweep's cell."""
    found: dict[str, Value] = {}
    for name in ("alignment", "psnr"):
        if cell.get(name) is not None:
            found[name] = {"value": float(cell[name]["value"]), "error": cell[name].get("error")}
    if cell.get("frechet") is not None:
        found["frechet"] = {"value": float(cell["frechet"]), "error": cell.get("frechet_error")}
    if cell.get("saturated") is not None:
        found["saturated"] = {"value": 100 * float(cell["saturated"]), "error": None}
    return found


def _sweep_line(one: StoredResult, cells: Sequence[Mapping[str, Any]], axis: str, **more: Any) -> Line:
    values, settings = one.values, one.values["settings"]
    stored = any(cell.get("frechet_error") is not None for cell in cells)
    free = {"pictures", "painted", "seed", "steps", "stop", "stage"}  # of the model, or said elsewhere
    return Line(
        label=str(values["model"]["name"]),
        points={float(cell[axis]): _numbers(cell) for cell in cells},
        model=values["model"],
        depends={
            "features": values["judge"],
            "settings": {name: value for name, value in settings.items() if name not in free},
            "reference": {
                "data": values["data"].get("manifest"),
                "concepts": values["concepts"],
                "size": cells[0]["told"].get("size"),  # the real images are brought to that of the generated ones
            },
            "generated": {"images": int(cells[0]["pictures"])},
        },
        draw=_words(seed=settings["seed"], prompts=values["data"].get("prompts")),
        images=int(cells[0]["pictures"]),
        errors={
            "alignment": OVER_IMAGES,
            "psnr": OVER_IMAGES,
            **({"frechet": BOOTSTRAP} if stored else {}),
        },
        references={name: _numbers(row) for name, row in values["references"].items() if name in ("real", "bicubic")},
        sources=(one,),
        **more,
    )


def _guidance_sweep(one: StoredResult) -> list[Line]:
    """A line for each threshold; none for latents."""
    cells = one.values["cells"]
    bounds = dict.fromkeys(cell.get("threshold", "none") for cell in cells)
    return [
        _sweep_line(one, [c for c in cells if c.get("threshold", "none") == bound], "guidance", condition=bound)
        for bound in bounds
    ]


def _guides(one: StoredResult) -> list[Line]:
    """A line for each guide, by itself and with classifier-free guidance."""
    cells = one.values["cells"]
    keys = dict.fromkeys((cell["way"], cell["free"]) for cell in cells)
    return [
        _sweep_line(
            one,
            [cell for cell in cells if (cell["way"], cell["free"]) == (way, free)],
            "scale",
            condition=way + (f"{WITH}{free:g}" if free else ""),
        )
        for way, free in keys
    ]


def _augmentation_sweep(one: StoredResult) -> list[Line]:
    return [_sweep_line(one, one.values["cells"], "level")] if one.values["cells"] else []


def _measured_set(one: StoredResult) -> list[Line]:
    """A point: the alignment and the distance of a set of images, at the guidance weight that it was made with."""
    by_metric = {result["metric"]: result for result in one.values}
    chosen = [next((name for name in names if name in by_metric), None) for names in (ALIGNMENTS, DISTANCES)]
    if None in chosen:
        raise UserError(
            f"{one.name} has no clip-score, or no {' or '.join(DISTANCES)}: measure both, by "
            "`diptych evaluate images REAL GENERATED --metrics fid,clip-score --out JSON`"
        )
    results = {str(name): by_metric[name] for name in chosen}
    made_with = next((result["made_with"] for result in one.values if result.get("made_with")), None)
    settings = (made_with or {}).get("settings") or {}
    weight = settings.get("guidance")
    if isinstance(weight, list) and weight:  # of the stages of a cascade
        weight = weight[0]
    if isinstance(weight, bool) or not isinstance(weight, float | int):
        raise UserError(
            f"{one.name} does not say the guidance weight of its images: generate the set with --guidance, and measure "
            "the folder that has its set.json"
        )
    model = (made_with or {}).get("model") or {}
    state = {name: value for name, value in model.items() if name != "device"}
    free = ("seed", "guidance")
    state["settings"] = {name: value for name, value in settings.items() if name not in free}
    label = next((str(result["model"]) for result in one.values if result.get("model")), None)
    label = label or (made_with or {}).get("model_source") or one.values[0].get("generated", {}).get("name")
    label = str(label or one.name)
    entries = ("features", "settings", "reference", "generated", "protocol")
    depends = {
        entry: {name: _without_draw(result.get(entry) or {}) for name, result in results.items()} for entry in entries
    }
    first = next(iter(results.values()))
    points = {name: {"value": float(it["value"]), "error": it.get("error")} for name, it in results.items()}
    return [
        Line(
            label=label,
            points={float(weight): points},
            model={"name": label, "state": state},
            depends={
                **depends,
                "generated": {
                    "images": first.get("generated", {}).get("images"),
                    "processing": first.get("generated", {}).get("processing"),
                },
            },
            draw=_words(
                seed=settings.get("seed"),
                captions=by_metric[str(chosen[0])].get("settings", {}).get("captions_sha256"),
                prompts=(one.values[0].get("protocol") or {}).get("sha256"),
            ),
            images=int(first.get("generated", {}).get("images") or 0),
            errors={
                name: BOOTSTRAP if name == "fid" else OVER_IMAGES for name, it in results.items() if it.get("error")
            },
            sources=(one,),
        )
    ]


def _without_draw(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Without what another seed changes: repeats are compared by what is left."""
    free = ("captions_sha256", "cut_captions", "name", *(("seed", "sha256") if "per_image" in entry else ()))
    return {name: value for name, value in entry.items() if name not in free}


def _words(**draw: Any) -> str:
    """Which images were drawn, in words."""
    return ", ".join(f"{name} {str(value)[:16]}" for name, value in draw.items() if value is not None)


READERS: dict[tuple[str, str], Callable[[StoredResult], list[Line]]] = {
    ("guidance", "guidance"): _guidance_sweep,
    ("guides", "scale"): _guides,
    ("augmentation", "level"): _augmentation_sweep,
    ("measured", "guidance"): _measured_set,
}
"""(kind, axis) -> what reads its lines."""
