"""The study runner: opens judge and models, generates missing cells, and writes the report.

A study in `benchmarks/` declares its cells (a model under one condition, over its prompts and seeds), what it measures,
its tables and its sheets. Results are written as they come; the same call again resumes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from diptych.core import terminal
from diptych.core.config_compare import under_first_names
from diptych.core.disk import write_text
from diptych.core.progress import bar
from diptych.data.caption_text import concept_of, is_scene
from diptych.data.dataset import DataConfig, ImageDataset, open_dataset
from diptych.evaluation.folder import claimed, write_tables
from diptych.evaluation.image_store import ImageFolder, ImageSheet
from diptych.evaluation.measured_cells import MeasuredCells
from diptych.evaluation.prompt_sets import PromptGroup
from diptych.models.judge import Judge, load_judge
from diptych.models.provenance import save_generated
from diptych.models.retrieval import TEMPLATES
from diptych.pretrained.load import load
from diptych.weights.fingerprint import fingerprint

Generate = Callable[[Sequence[int]], tuple[list[Image.Image], dict[str, Any]]]
"""Numbers of images in a cell -> these images, and the model's metadata of the first."""
REPORTED = ("steps", "guidance", "sampler", "stop", "stages", "size", "temperature", "top_k", "top_p")
"""Entries of a model's metadata that are settings of a study, not of one image."""


@dataclass(frozen=True, kw_only=True)
class StudyCell:
    """The images of one model under one condition, all prompts and seeds."""

    name: str
    """For its files."""
    count: int
    """Images."""
    generate: Generate
    key: dict[str, Any] = field(default_factory=dict)
    """The condition: {"guidance": 7.0, "threshold": "static"}. In results.json it identifies a measured cell."""
    strip: str | None = None
    """The file in which the first images of a measured cell stay, for the contact sheet."""


@dataclass(kw_only=True, eq=False)
class Study(ABC):
    """The declaration of a study, run by `run_study`."""

    writes: ClassVar[tuple[str, ...]]
    """Globs of all that it writes: a folder that holds any of them belongs to a study."""
    description: ClassVar[str] = "generating"
    """Of the progress bar."""
    width: ClassVar[int] = 160
    """Letters in a line of results.md."""
    closing: ClassVar[str]
    """The last line on the console, which says where the results are."""
    head: dict[str, Any]
    """All settings that change the results."""
    batch: int
    """Images generated at a time; they do not depend on it."""

    @abstractmethod
    def cells(self) -> Sequence[StudyCell]:
        """The cells to generate."""

    @abstractmethod
    def tables(self, results: dict[str, Any]) -> list[Table | str]:
        """The report: tables, and text between them."""

    def printed(self, results: dict[str, Any]) -> list[Table | str]:
        """The part of the report that goes to the console."""
        return self.tables(results)

    @abstractmethod
    def compute(self, out: Path) -> dict[str, Any]:
        """Generate and measure what is missing; write results.json and the sheets. Returns the results."""

    def finished(self, out: Path) -> dict[str, Any]:
        """Make `out` this study's folder; the results where nothing is left to do, else empty."""
        return {}


@dataclass(kw_only=True, eq=False)
class ImageStudy(Study):
    """A study whose cells are measured together once all images are there."""

    saves_images: ClassVar[bool] = False
    """Whether images are kept as results; else they lie in cells/ until the study ends."""
    grows: ClassVar[str | None] = None
    """An entry of `head` that may gain members from one run to the next."""

    @abstractmethod
    def results(self, images: dict[str, list[Image.Image]], metadata: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Measure the images of all cells, by cell name. metadata: `REPORTED` entries of each cell that has any."""

    @abstractmethod
    def sheets(self, results: dict[str, Any]) -> dict[str, Image.Image]:
        """Contact sheets by file name, after `results`."""

    def files(self, results: dict[str, Any]) -> dict[str, str]:
        """More files of text by name, after `results`."""
        return {}

    def records(self) -> Iterable[dict[str, Any]] | None:
        """A line of pictures.jsonl for each image, after `results`; none for no such file."""
        return None

    def store(self, out: Path, cell: StudyCell) -> ImageFolder | ImageSheet | None:
        """The files of a cell's images; none where none are written."""
        names = [f"{number:04d}.png" for number in range(cell.count)]
        return ImageFolder(out / "cells" / file_name(cell.name), names, REPORTED)

    def finished(self, out: Path) -> dict[str, Any]:
        done = claimed(out, self.head, (*self.writes, "cells"), self.grows)
        return {} if self.saves_images else done

    def compute(self, out: Path) -> dict[str, Any]:
        cells = self.cells()
        stores = [self.store(out, cell) for cell in cells]
        images: dict[str, list[Image.Image]] = {}
        metadata: dict[str, dict[str, Any]] = {}
        with bar() as progress:
            task = progress.add_task(self.description, total=sum(cell.count for cell in cells))
            for cell, store in zip(cells, stores, strict=True):
                images[cell.name], metadata[cell.name] = fill(
                    cell, store, self.batch, lambda count: progress.advance(task, count)
                )
        results = self.results(images, metadata)
        if (records := self.records()) is not None:
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            write_text(out / "pictures.jsonl", "".join(lines))
        for name, text in self.files(results).items():
            write_text(out / name, text)
        for name, sheet in self.sheets(results).items():
            save_generated(sheet, out / name, optimize=sheet.mode == "P")
        write_text(out / "results.json", json.dumps(results, indent=2) + "\n")  # last: it says that the rest is there
        if not self.saves_images:
            for store in stores:
                if isinstance(store, ImageFolder):
                    store.remove()
            with contextlib.suppress(OSError):  # there is no such folder, or it holds something else
                (out / "cells").rmdir()
        return results


@dataclass(kw_only=True, eq=False)
class MeasuredStudy(Study):
    """A study of many cells, each measured as soon as it is generated and stored in results.json."""

    strips: ClassVar[str] = "cells"
    """The folder of the first images of cells."""
    grows: ClassVar[tuple[str, ...]] = ()
    """Entries of `head`, dictionaries, that gain members from one run to the next."""
    sheet: int
    """Images on the contact sheet, the first of each cell."""

    @abstractmethod
    def measure(self, cell: StudyCell, images: list[Image.Image], metadata: dict[str, Any]) -> dict[str, Any]:
        """The numbers of a cell."""

    @abstractmethod
    def report(self, cells: MeasuredCells) -> None:
        """Write plots and sheets from all cells that there are."""

    def prepare(self, cells: MeasuredCells) -> None:
        """What is needed once before a missing cell is generated."""

    def summary(self, results: dict[str, Any]) -> dict[str, Any]:
        """Entries of the results that follow from all cells."""
        return {}

    def identity(self, results: dict[str, Any]) -> dict[str, Any]:
        """The part of the results that must be equal for cells to be comparable."""
        return {name: results[name] for name in self.head}

    def order(self, record: dict[str, Any]) -> Any:
        """Sorts the cells in results.json; those of one order stay as they were added."""
        return 0

    def compute(self, out: Path) -> dict[str, Any]:
        stored = MeasuredCells(self, out)
        todo = [cell for cell in self.cells() if not stored.has(cell)]
        if todo:
            self.prepare(stored)
        with bar() as progress:
            task = progress.add_task(self.description, total=sum(cell.count for cell in todo))
            for cell in todo:
                images, metadata = fill(cell, None, self.batch, lambda count: progress.advance(task, count))
                if cell.strip is not None:
                    stored.save_strip(cell.strip, images)
                stored.add(cell, self.measure(cell, images, metadata))
        results = stored.complete()
        self.report(stored)
        return results


def run_study(study: Study, out: Path | str, console: Console | None = None) -> dict[str, Any]:
    """Bring a study to its end in the folder `out`, print its report, and write results.json and results.md.

    The report of a study that is complete there is printed again. Raises a `UserError` where `out` holds anything else.
    """
    out, console = Path(out), console or terminal.console()
    results = study.finished(out) or study.compute(out)
    if tables := study.tables(results):
        write_tables(out / "results.md", study.width, *tables)
    for part in study.printed(results):
        console.print(part, highlight=not isinstance(part, str))
    console.print(study.closing.format(out=out))
    return results


def fill(
    cell: StudyCell, store: ImageFolder | ImageSheet | None, batch: int, advance: Callable[[int], Any]
) -> tuple[list[Image.Image], dict[str, Any]]:
    """The images of a cell, generated where the store lacks them, and the metadata of the first batch."""
    images: list[Image.Image | None] = [None] * cell.count if store is None else store.load()
    metadata: dict[str, Any] = {} if store is None else store.metadata()
    missing = [number for number, image in enumerate(images) if image is None]
    advance(cell.count - len(missing))
    for start in range(0, len(missing), batch):
        part = missing[start : start + batch]
        made, about = cell.generate(part)
        metadata = metadata or about
        for number, image in zip(part, made, strict=True):
            images[number] = image
        if store is not None:
            store.save(part, made, metadata)
        advance(len(part))
    return [image for image in images if image is not None], metadata


def by_model(
    model: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    each: Mapping[str, Sequence] | None = None,
    **options: Any,
) -> Generate:
    """The `generate` function of a cell, by `model.generate`.

    Args:
        each: arguments of `generate` with one value for each image.
        options: those for all images; one that is none is left to the model.
    """
    common = {name: value for name, value in options.items() if value is not None}

    def generate(part: Sequence[int]) -> tuple[list[Image.Image], dict[str, Any]]:
        per_image = {name: [values[i] for i in part] for name, values in (each or {}).items()}
        result = model.generate([prompts[i] for i in part], seeds=[seeds[i] for i in part], **per_image, **common)
        metadata = getattr(result, "metadata", None) or {}
        return result.images, metadata[0] if isinstance(metadata, list) else metadata

    return generate


def generate_group(model: Any, group: PromptGroup, batch: int, **options: Any) -> dict[str, Any]:
    """Generate the images of a group, with a progress bar; returns the settings that the model reports.

    options: for `generate`; one that is none is left to the model.
    """
    cell = StudyCell(
        name=group.name, count=len(group.seeds), generate=by_model(model, group.prompts, group.seeds, **options)
    )
    with bar() as progress:
        task = progress.add_task("generating", total=cell.count)
        group.generated, metadata = fill(cell, None, batch, lambda count: progress.advance(task, count))
    return settings_used(options, [metadata])


def settings_used(options: Mapping[str, Any], metadata: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that were given, and those that models report about their images."""
    used = {name: value for name, value in options.items() if value is not None}
    for one in metadata:
        used |= {name: one[name] for name in REPORTED if name in one}
    return used


def open_judge(judge: Judge | Path | str | None) -> Judge:
    """A judge, that in a folder, or the one that ships with diptych."""
    return judge if isinstance(judge, Judge) else load_judge(Path(judge) if judge else None)


def open_model(model: Any, name: str | None = None) -> tuple[Any, str]:
    """A model, or what `diptych.load` takes, opened; and its name in a report: its path or class if none is given."""
    if not isinstance(model, (str, Path)):
        return model, name or type(model).__name__
    return load(str(model)), name or str(model)


def open_data(data: Path | str, judge: Judge) -> tuple[ImageDataset, list[dict[str, Any]], list[str]]:
    """A data set at the judge's size, the metadata of its examples, and the concepts of its drawings."""
    dataset = open_dataset(DataConfig(path=str(data), size=judge.config.size, split="all"))
    metas = [dataset.meta(index) for index in range(len(dataset))]
    return dataset, metas, sorted({concept_of(meta) for meta in metas if not is_scene(meta)})


def model_fingerprint(model: Any) -> str | None:
    """Of all its weights, a frozen first stage and every stage of a cascade included; none where there are none."""
    parts = (model, getattr(model, "autoencoder", None), *getattr(model, "networks", ()))
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return fingerprint(*modules) if modules else None


def config_hash(model: Any) -> str | None:
    """Of the model's config, whose defaults hold where a study sets nothing; none where it has none."""
    configs: list[Any] = getattr(model, "configs", None) or [getattr(model, "config", None)]
    if not all(hasattr(config, "to_dict") for config in configs):
        return None
    return hashlib.sha256(json.dumps(under_first_names(configs)).encode()).hexdigest()[:16]


def model_sizes(model: Any) -> dict[str, Any]:
    """What an ablation varies: the parameters of each network, the kind of text encoder, and whether super-resolution
    was trained with noise augmentation. Empty where a model has no config that says it."""
    configs: list[Any] = getattr(model, "configs", None) or [getattr(model, "config", None)]
    if not all(hasattr(config, "networks") for config in configs):
        return {}
    sizes: dict[str, int] = {}
    for config in configs:
        with torch.device("meta"):
            networks = config.networks()
        for part, network in networks.items():
            of_stage = len(configs) > 1 and part != "text"
            sizes[f"stage {config.name}" if of_stage else part] = parameter_count(network)
    augmentations = [
        config.augmentation.kind != "none"
        for config in configs
        if getattr(config, "low_size", None) is not None and hasattr(config, "augmentation")
    ]
    trained = {"augmented": any(augmentations)} if augmentations else {}
    return {"networks": sizes, "text": getattr(getattr(configs[0], "text", None), "kind", None), **trained}


def describe_model(model: nn.Module) -> dict[str, Any]:
    return {"fingerprint": model_fingerprint(model), "parameters": parameter_count(model)}


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def describe_judge(judge: Judge) -> dict[str, Any]:
    return {"fingerprint": judge.fingerprint(), "templates": list(TEMPLATES), "resize": "antialiased bilinear"}


def describe_data(data: Path | str, **more: Any) -> dict[str, Any]:
    """The data's name, and the hash in its manifest, none where it has none."""
    try:
        manifest = json.loads((Path(data) / "manifest.json").read_text()).get("sha256")
    except (OSError, ValueError):
        manifest = None
    return {"name": Path(data).name, "manifest": manifest, **more}


def prompts_hash(groups: Sequence[PromptGroup]) -> str:
    """Of all prompts: it distinguishes data that have no manifest."""
    return hashlib.sha256("\n".join(prompt for group in groups for prompt in group.prompts).encode()).hexdigest()[:16]


def file_name(name: str) -> str:
    """The name of a cell as that of a file; those of two cells differ."""
    short = safe_letters(name)
    return short if short == name else f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def safe_letters(name: str) -> str:
    """A name with all but letters, digits, and "-_." replaced."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-.") or "model"
