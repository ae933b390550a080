"""Protocols of papers: images are generated, or taken as they are, measured, and placed beside published results.

A run that is interrupted goes on: images and features that are there are not made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from diptych.core import terminal
from diptych.core.disk import values_of, write_text
from diptych.core.errors import UserError, pick
from diptych.core.progress import waiting
from diptych.data.prompt_files import PromptRow, read_prompts
from diptych.evaluation.folder import claimed, failures_of, require_apart, write_tables
from diptych.evaluation.generated_set import generate_set
from diptych.evaluation.prompt_draws import draw_captions, draw_record, require_own_files, write_prompts
from diptych.evaluation.protocol_choices import PRESETS, CaptionChoices, ClassChoices, ProtocolChoices, SampleChoices
from diptych.evaluation.published_results import CHOICES, comparison, datasets, differences, published
from diptych.evaluation.set_files import MANIFEST, MARK, made_with, present, require_whole
from diptych.metrics.feature_networks import open_features
from diptych.metrics.image_set import ImageSet
from diptych.metrics.measure import METRICS, OWN_NETWORK, PAIRED, MeasureConfig, Measurement, open_reference

IMAGES, PROMPTS = "images", "prompts.jsonl"
WRITES = ("results.json", "results.md", IMAGES, PROMPTS)
NOTHING = "unconditional"
"""The prompt of samples without prompts, which the model does not read."""
Opened = tuple[Any, dict[str, Any]]
"""A model, and options for its `generate`."""


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """With what is measured; nothing of it decides which images there are."""

    features: str = "inception"
    metrics: Sequence[str] | None = None
    """Those of the preset if none."""
    weights: Mapping[str, str | Path] = field(default_factory=dict)
    """Kind of network -> where its weights lie."""
    bootstrap: int = 0
    """Resamples of FID's standard error; 0 for none."""
    splits: int = 10
    k: int = 3
    batch: int = 32
    device: Any = "cpu"
    allow_pickle: bool = False
    offline: bool = False

    def names(self, preset: Sequence[str]) -> list[str]:
        """The metrics. The judge has no Inception Score, which is left out unless it is asked for."""
        names = list(self.metrics or preset)
        if self.metrics is None and self.features != "inception" and "inception" not in self.weights:
            names = [name for name in names if OWN_NETWORK.get(name) != "inception"]
        for name in names:
            if pick("metric", name, METRICS) in PAIRED:
                raise UserError(f"{name} compares pairs of images, and this protocol has none")
        return names

    def check(self, names: Sequence[str]) -> None:
        """Open every network once: a weight that is missing or damaged shows before anything is generated."""
        for kind in dict.fromkeys(OWN_NETWORK.get(name, self.features) for name in names):
            open_features(kind, self.weights.get(kind), None, "cpu", self.allow_pickle, self.offline)

    def measurement(
        self, made: ImageSet, real: ImageSet | None, choices: ProtocolChoices, statistics: Path | None = None
    ) -> Measurement:
        config = MeasureConfig.from_dict(
            {
                "features": self.features,
                "resize": choices.network_resize if self.features == "inception" else None,
                "bootstrap": self.bootstrap,
                "splits": self.splits,
                "k": self.k,
                "batch": self.batch,
            }
        )
        how = (self.weights, self.device, self.allow_pickle, self.offline)
        return Measurement(made, real, statistics, config, *how)


@dataclass(kw_only=True)
class ProtocolRun:
    """One run: whose images, against what, and where the results go."""

    protocol: str
    out: Path
    choices: ProtocolChoices
    preset: dict[str, Any]
    """What `choose` says of it."""
    measuring: Measuring
    model: Callable[[], Opened] | None = None
    """Opens the model; none where `generated` holds the images."""
    generated: Path | None = None
    name: str = "ours"
    """Of the model in the table."""
    dataset: str | None = None
    """Whose published results stand below ours."""
    batch: int | None = None
    """Images generated at a time."""
    share: tuple[int, int] = (0, 1)
    """(k, n): which share of the images, from 0, this process generates. The first process measures them all."""
    done: Callable[[Callable[[], Any]], bool] = lambda progress: True
    """Called once this share is there, with what changes while others work. Returns, in the first process once all
    shares are there, whether this is the first."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.generated is None):
            raise UserError("give a model, or a folder of generated images as --generated, not both")
        if self.dataset is not None and self.protocol != "fid-30k":
            pick("data set with published results", self.dataset, tuple(datasets(self.protocol)))
        self.metrics = self.measuring.names(PRESETS[self.protocol][self.preset["name"]].metrics)
        if self.share[0] == 0:
            self.measuring.check(self.metrics)

    def claim(self, drawn: Mapping[str, Any], reference: Path | str) -> None:
        """Make `out` the folder of this run against `reference`."""
        require_apart(self.out, self.generated, reference)
        head = {
            "evaluation": self.protocol,
            "settings": {**self.choices.to_dict(), "preset": self.preset["name"], "features": self.measuring.features},
            "drawn": dict(drawn),
            "generated": None if self.generated is None else str(self.generated.absolute()),
        }
        claimed(self.out, head, WRITES)

    def images(self, rows: Sequence[PromptRow], drawn: Mapping[str, Any]) -> ImageSet | None:
        """The generated images: those in `generated`, or the set of these prompts, made as far as it is not there. None
        in a process that only made a share of them."""
        if self.model is not None:
            place, shares = self.share
            model, options = self.model()
            generate_set(
                model,
                rows,
                self.out / IMAGES,
                seed=self.choices.seed,
                batch=self.batch,
                drawn=drawn,
                source=PROMPTS,
                shard=self.share,
                counted=shares > 1,
                quiet=place > 0,
                **options,
            )
            with waiting(f"waiting for the images of {shares - 1} other processes") if shares > 1 else nullcontext():
                if not self.done(lambda: len(present(self.out / IMAGES))):
                    return None
                if shares > 1:
                    require_whole(self.out / IMAGES, len(rows))
            return ImageSet(self.out / IMAGES, self.choices.processing())
        assert self.generated is not None
        made = ImageSet(self.generated, self.choices.processing())
        if len(made) != len(rows):
            raise UserError(
                f"{self.generated} has {len(made):,} images, and the protocol asks for {len(rows):,}: give --number "
                f"{len(made)} if that is meant, or generate the others"
            )
        return made

    def finish(
        self,
        results: list[dict[str, Any]],
        protocol: Mapping[str, Any],
        ours: Mapping[str, Any],
        unknown: Sequence[str] = (),
        console: Console | None = None,
    ) -> list[dict[str, Any]]:
        """Write the results with all they depend on, and print them beside published ones."""
        results = [{**one, "protocol": {"name": self.protocol, **protocol}, "preset": self.preset} for one in results]
        made = made_with(self.generated or self.out / IMAGES)
        for one in results:
            one["model"] = self.name
            if made:
                one["made_with"] = made
            if unknown:
                one["unknown"] = [*one.get("unknown", ()), *unknown]
                one["protocol"]["unknown"] = list(unknown)
        groups = published(self.protocol, self.dataset)
        judged = self.measuring.features != "inception"
        ours = {**self.choices.described(), **ours}
        ours["network"] = "InceptionV3" if not judged else self.measuring.features
        if judged:
            ours.pop("network resize")
        values = {one["metric"]: one for one in results}
        apart = f"{self.measuring.features} features" if judged else None
        title = f"{self.protocol}, preset {self.preset['name']}"
        parts: list[Any] = [comparison(title, {self.name: values}, groups, apart), *self.notes(ours, unknown)]
        parts += differences(ours, groups, ("network resize",) if judged else ())
        text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
        failed = failures_of(
            lambda: write_text(self.out / "results.json", text),
            lambda: write_tables(self.out / "results.md", 200, *parts),
        )
        console = console or terminal.console()
        for part in parts:
            console.print(part, highlight=not isinstance(part, str), soft_wrap=isinstance(part, str))
        if failed:
            raise UserError(f"the results are above, but not all was written: {'; '.join(failed)}")
        return results

    def notes(self, ours: Mapping[str, Any], unknown: Sequence[str]) -> list[str]:
        """Lines on how ours were measured."""
        lines = [f"Measured here with: {'; '.join(f'{CHOICES[key]} {_said(value)}' for key, value in ours.items())}."]
        if "not_stated" in self.preset:
            open_choices = ", ".join(_words(self.preset["not_stated"]))
            lines.append(f"Preset {self.preset['name']} ({self.preset['source']}): not stated there: {open_choices}.")
        if self.preset["changed"]:
            lines.append(f"Changed from the preset: {', '.join(_words(self.preset['changed']))}.")
        if unknown:
            lines.append(f"Not known of the generated images: {', '.join(unknown)}.")
        if self.measuring.features != "inception":
            lines.append(f"Features of {self.measuring.features} compare with no published figure.")
        if self.dataset is None:
            names = ", ".join(datasets(self.protocol))
            lines.append(f"No published rows: name the data set as --dataset, of {names}, where it is one of them.")
        return lines


def evaluate_captions(
    run: ProtocolRun,
    annotations: Path,
    images: Path | str,
    *,
    prompts: Path | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """FID of images of COCO's captions, as `diptych evaluate fid-30k` measures it. Returns the results.

    A process that only makes a share of the images returns none.

    Args:
        annotations: COCO's captions_*.json. images: the folder of its images.
        prompts: a file of captions that were drawn before, as `diptych prompts coco` writes it; none to draw them.

    Raises:
        UserError: files that are missing or broken, fewer captions than asked for, images that are not there, a folder
            of other results, or a set of generated images that were drawn otherwise.
    """
    choices = run.choices
    assert isinstance(choices, CaptionChoices)
    drawing = (choices.number, choices.per_image, choices.caption, choices.seed)
    if prompts is None:
        rows, drawn = draw_captions(annotations, *drawing)
    else:
        rows, drawn = read_prompts(prompts), draw_record(prompts)
        require_own_files(rows, prompts)
        rows = rows if choices.number is None else rows[: choices.number]
        if choices.number is not None and len(rows) < choices.number:
            raise UserError(f"{prompts} has {len(rows):,} prompts, fewer than {choices.number:,}: give --number")
    drawn = {**drawn, "number": len(rows)} if "sha256" in drawn else {}
    unknown = [] if drawn else [f"how the prompts of {prompts} were drawn"]
    if run.generated is not None:
        unsaid = _drawn_otherwise(run.generated, drawn)
        if unsaid and prompts is None:
            unknown += unsaid
            if choices.reference == "subset":
                raise UserError(
                    f"nothing in {run.generated} says which captions its images are of, which --reference subset "
                    "needs: give their file as --prompts"
                )
    every = rows if choices.reference == "subset" else draw_captions(annotations, None, None)[0]
    real = ImageSet(images, choices.processing(reference=True), only=_file_names(every, annotations))
    if run.model is not None:
        opened = run.model()
        run.model = lambda: opened
        if getattr(opened[0], "text", ...) is None:
            raise UserError("this protocol is for text-conditional models, and the model reads no prompts")
    run.claim(drawn, images)
    if run.model is not None:
        write_prompts(rows, run.out / PROMPTS, drawn)
    if (made := run.images(rows, drawn)) is None:
        return []
    results = run.measuring.measurement(made, real, choices).measure(run.metrics)
    protocol = {"reference": choices.reference, "number": len(rows)}
    ours: dict[str, Any] = {"number": len(rows)}
    for key in ("per_image", "caption", "seed"):
        ours[key] = "not known" if unknown else drawn[key] if drawn[key] is not None else "any"
    if not unknown:
        protocol |= {key: drawn[key] for key in ("sha256", "per_image", "caption", "seed")}
    return run.finish(results, protocol, ours, unknown, console)


def evaluate_samples(run: ProtocolRun, reference: Path | str, console: Console | None = None) -> list[dict[str, Any]]:
    """FID, Inception Score, precision and recall of samples, without prompts or of classes. Returns the results.

    Args:
        reference: images of the data set, or an .npz of their statistics, of which FID alone can be measured.

    Raises:
        UserError: as `evaluate_captions`, and for a model that does not fit the protocol.
    """
    choices = run.choices
    assert isinstance(choices, SampleChoices)
    if choices.number is None:
        raise UserError("number of samples: give --number")
    real, statistics = open_reference(reference, choices.processing(reference=True))
    if real is not None:
        if run.share[0] == 0:
            real.warn_of_left_out()
    elif "precision-recall" in run.metrics:
        if run.measuring.metrics is not None:
            raise UserError(f"precision and recall need images: {reference} holds statistics alone")
        run.metrics.remove("precision-recall")
    rows = [PromptRow(NOTHING)] * choices.number
    if run.model is not None:
        opened = run.model()
        run.model = lambda: opened
        rows = _class_rows(opened[0], choices) if isinstance(choices, ClassChoices) else _no_prompts(opened[0], rows)
    run.claim({}, reference)
    if (made := run.images(rows, {})) is None:
        return []
    results = run.measuring.measurement(made, real, choices, statistics).measure(
        [name for name in run.metrics if name != "precision-recall"]
    )
    of = Path(str(reference)).name
    by_images = statistics is None or (real is not None and run.measuring.features != "inception")
    ours: dict[str, Any] = {"number": len(rows), "reference": f"statistics in {of}"}
    if by_images and real is not None:
        ours["reference"] = f"{len(real):,} images of {of}"
    if "precision-recall" in run.metrics:
        assert real is not None
        part = real.drawn(choices.manifold_reference, choices.seed)
        results += run.measuring.measurement(made, part, choices).measure(["precision-recall"])
        ours["manifold_reference"] = len(part)
    else:
        ours["manifold_reference"] = "not measured"
    protocol: dict[str, Any] = {"number": len(rows), "seed": choices.seed}
    unknown: list[str] = []
    if isinstance(choices, ClassChoices) and run.model is None:
        unknown, ours["classes"] = ["how classes were drawn"], "not known"
    elif isinstance(choices, ClassChoices):
        protocol["classes"] = choices.classes
    return run.finish(results, protocol, ours, unknown, console)


def _text_config(model: Any) -> Any:
    """What the prompts of a model's first stage are; none of one that takes none."""
    configs = getattr(model, "configs", None) or [getattr(model, "config", None)]
    return getattr(configs[0], "text", None)


def _class_rows(model: Any, choices: ClassChoices) -> list[PromptRow]:
    classes = getattr(_text_config(model), "classes", None)
    if not isinstance(classes, int):
        raise UserError("this protocol is for class-conditional models, and the model is none")
    assert choices.number is not None
    if choices.classes == "balanced":
        labels = np.arange(choices.number) % classes
    else:
        labels = np.random.Generator(np.random.PCG64(choices.seed)).integers(0, classes, choices.number)
    return [PromptRow(str(label), fields={"class": int(label)}) for label in labels]


def _no_prompts(model: Any, rows: list[PromptRow]) -> list[PromptRow]:
    if _text_config(model) is not None:
        raise UserError("this protocol is for unconditional models, and the model takes prompts")
    return rows


def _file_names(rows: Sequence[PromptRow], annotations: Path) -> Collection[str]:
    """Of the images that captions are of."""
    names = {row.fields.get("file_name") for row in rows}
    if None in names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{annotations} does not say the file names of its images: give COCO's captions_*.json whole")
    return {str(name) for name in names}


def _drawn_otherwise(generated: Path, drawn: Mapping[str, Any]) -> list[str]:
    """What is not known of a folder of generated images; a `UserError` where its captions were drawn otherwise."""
    stated = values_of(generated / MARK).get("drawn")
    if not stated or not drawn or not (generated / MANIFEST).exists():
        return ["how the captions were drawn"]
    compared = ("sha256", "number", "per_image", "caption", "seed")
    if other := [name for name in compared if stated.get(name) != drawn.get(name)]:
        values = ", ".join(f"{name} {stated.get(name)}, not {drawn.get(name)}" for name in other)
        raise UserError(f"{generated} is of captions drawn otherwise ({values}): give the same choices")
    return []


def _words(names: Sequence[str]) -> list[str]:
    """Names of choices in words."""
    other = {"jpeg": "format", "reference_jpeg": "reference_format", "network_resize": "network resize"}
    return [CHOICES[other.get(name, name)] for name in names]


def _said(value: Any) -> str:
    return "all" if value is None else str(value)
