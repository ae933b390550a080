"""The cells of a sweep: painted, measured and written one by one, so that a sweep broken off can be gone on with."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import diptych
from diptych.conditioning.classes import ClassConfig
from diptych.data.dataset import DataConfig, PictureDataset, open_dataset
from diptych.disk import write_text
from diptych.errors import UserError
from diptych.evaluation.folder import MARK, require_folder, require_free
from diptych.evaluation.judge import Judge, load_judge
from diptych.evaluation.metrics import psnr
from diptych.evaluation.prompt_sets import Group, choose, concept_of, is_scene
from diptych.evaluation.retrieval import TEMPLATES, Mean, concept_vectors
from diptych.evaluation.scores import measure
from diptych.pictures import grid, save_png, square
from diptych.progress import bar
from diptych.weights.fingerprint import fingerprint

Key = dict[str, Any]
"""What was swept: {"guidance": 7.0, "threshold": "static"} or {"level": 0.1}."""


class Cells:
    """What all cells share (the prompts, the judge, the real pictures), and the folder that keeps what was measured."""

    def __init__(
        self,
        sweep: str,
        model: Any,
        data: Path | str,
        out: Path | str,
        *,
        judge: Judge,
        name: str,
        pictures: int,
        seed: int,
        sheet: int,
        size: int | None,
        settings: dict[str, Any],
    ) -> None:
        """Choose the prompts, and read what `out` has already.

        size: side of the painted pictures; the judge's if none. The real ones are brought to it, so that the judge
            resizes both alike.

        Raises:
            UserError: `out` holds other results, or the data has fewer than two seen drawings.
        """
        if pictures < 2:
            raise UserError(f"pictures must be at least 2, not {pictures}: a Fréchet distance needs two")
        self.out, self.judge, self.size = Path(out), judge, size or judge.config.size
        self.dataset = open_dataset(DataConfig(path=str(data), size=judge.config.size, split="all"))
        metas = [self.dataset.meta(i) for i in range(len(self.dataset))]
        self.concepts = sorted({concept_of(meta) for meta in metas if not is_scene(meta)})
        ((self.group,), _) = choose(metas, pictures, 0, seed, splits=("seen",))
        if len(self.group.seeds) < 2:
            raise UserError(f"{data} has a single seen drawing: a sweep needs at least two")
        self.sheet = min(max(1, sheet), len(self.group.seeds))
        head = {
            "sweep": sweep,
            "model": {"name": name, "fingerprint": model_fingerprint(model), "config": _config_hash(model)},
            "judge": described(judge),
            "data": {
                "name": Path(data).name,
                "manifest": manifest_hash(Path(data)),
                "prompts": prompts_hash([self.group]),
            },
            "settings": {"pictures": len(self.group.seeds), "seed": seed, **settings},
            "concepts": len(self.concepts),
        }
        self.results: dict[str, Any] = json.loads(json.dumps(head))  # as it will be read again: lists, no tuples
        self.results |= {"references": {}, "cells": []}
        require_folder(self.out)
        if (before := _read(self.out / "results.json")) is None:
            require_free(self.out, ("results.md", "cells", "plot.png", "sheet.png", MARK))
        else:
            _require_same(before, self.results, self.out)
            self.results |= {key: before[key] for key in ("references", "cells")}

    def missing(self, keys: Sequence[Key]) -> list[Key]:
        """Those that were not measured yet, or whose pictures are gone."""
        have = [{name: cell[name] for name in keys[0]} for cell in self.results["cells"]]
        return [key for key in keys if key not in have or not self.strip(strip_name(key))]

    def paint(
        self,
        todo: Sequence[Key],
        model: Any,
        batch: int,
        options: Callable[[Key], dict[str, Any]],
        low: Sequence[Image.Image] | None,
        truth: bool,
    ) -> None:
        """Paint and measure cells, one after the other.

        options: arguments of `generate` for a cell.
        low: pictures to enlarge, the same in each cell.
        truth: whether the real pictures show how the painted ones should look.
        """
        each = {} if low is None else {"low": low}
        with bar() as progress:
            task = progress.add_task("painting", total=len(todo) * len(self.group.seeds))
            for key in todo:
                parts = []
                for part in batches(model, self.group, batch, each, **options(key)):
                    parts.append(part)
                    progress.advance(task, len(part[0]))
                self.add(key, [picture for pictures, _ in parts for picture in pictures], parts[0][1], truth)

    def add(self, key: Key, pictures: list[Image.Image], told: dict[str, Any], truth: bool) -> None:
        """Measure a cell's pictures, and write it down. told: what the model says about them."""
        name, own = strip_name(key), ("prompt", "negative", "seed")
        self.keep_strip(name, pictures)
        told = {k: v for k, v in told.items() if k not in own}
        cell = {**key, **self._measured(pictures, truth), "told": told, "strip": name}
        others = [one for one in self.results["cells"] if any(one[name] != key[name] for name in key)]
        self.results["cells"] = sorted([*others, cell], key=lambda one: [_rank(one[name]) for name in key])
        write_text(self.out / "results.json", json.dumps(self.results, indent=2) + "\n")

    def refer(self, name: str, pictures: list[Image.Image], truth: bool = False) -> None:
        """Measure pictures that no cell painted, to compare with."""
        self.results["references"][name] = self._measured(pictures, truth)
        self.keep_strip(name, pictures)

    def refer_to_real(self) -> None:
        """The real pictures, and chance."""
        self.refer("real", self.real)
        self.results["references"]["real"]["frechet"] = None  # from themselves: nothing
        chance = {f"top{k}": {"value": min(k / len(self.concepts), 1.0)} for k in (1, 5)}
        self.results["references"]["chance"] = chance

    def keep_strip(self, name: str, pictures: list[Image.Image]) -> None:
        """The first pictures side by side, for the contact sheet."""
        save_png(grid(pictures[: self.sheet], self.sheet, gap=0), self.out / "cells" / f"{name}.png")

    def strip(self, name: str) -> list[Image.Image]:
        """The pictures of a strip; none where there is no such file."""
        try:
            with Image.open(self.out / "cells" / f"{name}.png") as strip:
                side = strip.height  # its pictures are square
                return [strip.crop((x, 0, x + side, side)) for x in range(0, strip.width, side)][: self.sheet]
        except OSError:
            return []

    @cached_property
    def real(self) -> list[Image.Image]:
        """The real rendering of each prompt."""
        add_real([self.group], self.dataset, self.size)
        return self.group.real

    def reduced(self, side: int) -> list[Image.Image]:
        """The real pictures made small, by averages over boxes: the truth is then known at the size of the real ones.

        Raises `UserError` where those are smaller in the data than what is painted.
        """
        sides = []
        for index in self.group.indices:
            with contextlib.suppress(Exception):  # a broken one is set aside when it is read
                sides += self.dataset.sides(index)
        if sides and min(sides) < self.size:
            raise UserError(
                f"the data's pictures have {min(sides)} pixels, too few to tell how {self.size} should look: "
                "give larger ones, or stop after an earlier stage"
            )
        return [square(picture, side) for picture in self.real]

    @cached_property
    def _real_features(self) -> Tensor:
        return self.judge.features(self.real)  # (N, F)

    @cached_property
    def _truth(self) -> tuple[Tensor, Tensor]:
        """The index (N,) of each prompt's concept, and all concepts' unit vectors (C, D)."""
        place = {concept: i for i, concept in enumerate(self.concepts)}
        truth = torch.tensor([place[concept_of(meta)] for meta in self.group.metas])
        return truth, concept_vectors(self.judge, self.concepts)

    def _measured(self, pictures: list[Image.Image], truth: bool) -> dict[str, Any]:
        found = measure(self.judge, pictures, *self._truth, self._real_features)
        if truth:
            ratios = [psnr(one, real) for one, real in zip(pictures, self.real, strict=True)]
            found["psnr"] = Mean.of(torch.tensor(ratios))._asdict()
        return found


def strip_name(key: Key) -> str:
    """Of the file with a cell's first pictures."""
    words = [f"{name}-{value!r}" if isinstance(value, float) else str(value) for name, value in key.items()]
    return "-".join(words).replace(":", "-")


def _read(path: Path) -> dict[str, Any] | None:
    """An earlier sweep's results, if there are any."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        raise UserError(f"{path} is not readable JSON: delete it, or name another folder") from None
    whole = {"sweep", "settings", "model", "judge", "data", "references", "cells"}
    if not isinstance(found, dict) or not whole <= found.keys():
        raise UserError(f"{path} holds the results of something else: name another folder for the sweep")
    return found


def _require_same(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """Cells are comparable only when all else was equal: raise a `UserError` that says what was not."""
    asked = "name another folder for this one, or delete that one"
    if before["sweep"] != now["sweep"]:
        raise UserError(f"{out} holds a sweep of another kind ({before['sweep']}): {asked}")
    for key, value in now["settings"].items():
        if (old := before["settings"].get(key)) != value:
            raise UserError(f"{out} holds a sweep with {key} {old}, not {value}: {asked}")
    for part, keys, words in (
        ("model", ("fingerprint", "config"), "of another model"),
        ("judge", ("fingerprint",), "with another judge"),
        ("data", ("prompts",), "on other data"),
    ):
        if any(before[part].get(key) != now[part][key] for key in keys):
            raise UserError(f"{out} holds a sweep {words}: {asked}")


def _config_hash(model: Any) -> str | None:
    """Of the model's config, whose defaults hold where the sweep sets nothing."""
    configs: list[Any] = getattr(model, "configs", None) or [getattr(model, "config", None)]
    if not all(hasattr(config, "to_dict") for config in configs):
        return None
    return hashlib.sha256(json.dumps([config.to_dict() for config in configs]).encode()).hexdigest()[:16]


def _rank(value: Any) -> tuple[int, Any]:
    """Thresholds from none to dynamic, other words behind them by the alphabet, numbers by their size."""
    if isinstance(value, str):
        known, kind = ("none", "static", "dynamic"), value.split(":")[0]
        return known.index(kind) if kind in known else len(known), value
    return 0, value


def opened(model: Any, judge: Judge | Path | str | None, name: str | None) -> tuple[Any, Judge, str]:
    """The model, the judge, and what a report calls the model."""
    judge = judge if isinstance(judge, Judge) else load_judge(Path(judge) if judge else None)
    name = name or (str(model) if isinstance(model, (str, Path)) else type(model).__name__)
    return (diptych.load(str(model)) if isinstance(model, (str, Path)) else model), judge, name


def classes_of(model: Any) -> Sequence[str]:
    """The names of the classes that a model is told; none of one that reads words, or nothing."""
    text = getattr(getattr(model, "config", None), "text", None)
    return text.names if isinstance(text, ClassConfig) else ()


def described(judge: Judge) -> dict[str, Any]:
    """The judge in a report."""
    return {"fingerprint": judge.fingerprint(), "templates": list(TEMPLATES), "resize": "antialiased bilinear"}


def paint(model: Any, groups: Sequence[Group], batch: int, **options: Any) -> dict[str, Any]:
    """Generate every picture, with a progress bar; returns the settings that the model says it used.

    options: for `generate`; those that are None are left to the model.
    """
    given = {k: v for k, v in options.items() if v is not None}
    used: dict[str, Any] = dict(given)
    with bar() as progress:
        task = progress.add_task("painting", total=sum(len(g.seeds) for g in groups))
        for group in groups:
            for images, told in batches(model, group, batch, **given):
                group.generated += images
                known = (*options, "stages", "size", "temperature", "top_k", "top_p")
                used |= {k: told[k] for k in known if k in told}
                progress.advance(task, len(images))
    return used


def batches(
    model: Any, group: Group, batch: int, each: Mapping[str, Sequence] | None = None, **options: Any
) -> Iterator[tuple[list[Image.Image], dict[str, Any]]]:
    """The pictures of a group, a batch at a time, with what the model says about the first of them.

    each: arguments of `generate` with one value for each picture; `options` are those for all.
    """
    for start in range(0, len(group.seeds), batch):
        part = slice(start, start + batch)
        own = {name: list(values[part]) for name, values in (each or {}).items()}
        result = model.generate(group.prompts[part], seeds=group.seeds[part], **own, **options)
        yield result.images, result.metadata[0] if isinstance(result.metadata, list) else result.metadata


def model_fingerprint(model: Any) -> str | None:
    """Of all its weights, a frozen first stage and every stage of a cascade included; none where there are none."""
    found = (model, getattr(model, "autoencoder", None), *getattr(model, "networks", ()))
    parts = [part for part in found if isinstance(part, nn.Module)]
    return fingerprint(*parts) if parts else None


def add_real(groups: Sequence[Group], dataset: PictureDataset, size: int | None = None) -> None:
    """The real rendering of each prompt, at `size`, or at that of the generated ones: both are then resized alike."""
    size = size or groups[0].generated[0].width
    if size != dataset.config.size:
        dataset = open_dataset(DataConfig.from_dict({**dataset.config.to_dict(), "size": size}))
    for group in groups:
        group.real = [Image.fromarray(dataset[i].picture) for i in group.indices]


def prompts_hash(groups: Sequence[Group]) -> str:
    """Of what is painted: data without a manifest is told apart by it."""
    return hashlib.sha256("\n".join(prompt for group in groups for prompt in group.prompts).encode()).hexdigest()[:16]


def manifest_hash(data: Path) -> str | None:
    """What the data says it holds, as a hash; none where it says nothing."""
    try:
        return json.loads((data / "manifest.json").read_text()).get("sha256")
    except (OSError, ValueError):
        return None
