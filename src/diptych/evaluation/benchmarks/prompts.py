"""The default study: images of seen prompts, held-out pairs of concept and style, and scenes, named by the judge.

Real renderings of the same prompts go before the same judge. Those that were held out of all training are the ceiling:
the score of a perfect model of unseen drawings. Generated images scored against each other's prompts, and plain chance,
are the floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from diptych.data.dataset import ImageDataset
from diptych.evaluation.prompt_sets import PromptGroup, choose_prompts
from diptych.evaluation.report import SheetCell, contact_sheet, percent, plain
from diptych.evaluation.runner import (
    ImageStudy,
    StudyCell,
    by_model,
    describe_data,
    describe_judge,
    model_fingerprint,
    open_data,
    open_judge,
    open_model,
    prompts_hash,
    run_study,
    settings_used,
)
from diptych.evaluation.scores import ROWS, pooled, real_images, score_pairs, score_scenes, share_of
from diptych.metrics.frechet import frechet_distance
from diptych.models.judge import Judge
from diptych.models.retrieval import concept_vectors


def evaluate(
    model: Any,
    data: Path | str,
    out: Path | str,
    *,
    images: int = 400,
    scenes: int = 25,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    stop: int | None = None,
    seed: int = 0,
    batch: int = 16,
    judge: Judge | Path | str | None = None,
    sheet: int = 48,
    name: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Score a model, print a table, and write results.json, results.md, pictures.jsonl and contact sheets into `out`.

    Args:
        model: anything with `generate`, or what `diptych.load` takes.
        data: the data set, with its held-out part.
        images: how many seen and how many held-out (concept, style) pairs, drawn by `seed`.
        scenes: how many held-out scenes of each category.
        steps, guidance, sampler: for `generate`; the model's own defaults if none.
        stop: for a cascade, how many of its stages to run; all if none.
        batch: images generated at a time; they do not depend on it.
        seed: fixes the prompts and the seed of each image.
        judge: another judge than the one that ships with diptych, or its folder.
        sheet: images on each contact sheet, the first ones.
        name: the model's name in the report; its path or class if none.

    Returns:
        The content of results.json: all that is needed to repeat the study, and the scores as shares with standard
        errors.

    Raises:
        UserError: the data has no drawings of one of the two splits, or there is no judge.
    """
    judge = open_judge(judge)
    model, name = open_model(model, name)
    dataset, metas, concepts = open_data(data, judge)
    pairs, scene_groups = choose_prompts(metas, images, scenes, seed, classes=getattr(model, "classes", ()))
    options = {"steps": steps, "guidance": guidance, "sampler": sampler, "stop": stop}
    settings = {"pictures": images, "scenes": scenes, "seed": seed}
    study = PromptStudy(
        head={
            "evaluation": "prompts",
            "model": {"name": name, "fingerprint": model_fingerprint(model)},
            "judge": describe_judge(judge),
            "data": describe_data(data, prompts=prompts_hash(pairs)),
            "settings": {**settings, **options},
        },
        batch=batch,
        model=model,
        judge=judge,
        dataset=dataset,
        concepts=concepts,
        pairs=pairs,
        scenes=scene_groups,
        sheet=sheet,
        options=options,
    )
    return run_study(study, out, console)


@dataclass(kw_only=True, eq=False)
class PromptStudy(ImageStudy):
    """A cell for each group of prompts: seen and held-out pairs, and the categories of scenes."""

    writes = ("results.json", "results.md", "pictures.jsonl", "seen.png", "held-out.png", "scenes.png")
    closing = "contact sheets, tables and every image's score are in {out}"
    model: Any
    judge: Judge
    dataset: ImageDataset
    concepts: list[str]
    pairs: Sequence[PromptGroup]
    scenes: Sequence[PromptGroup]
    sheet: int
    options: dict[str, Any]
    """For `generate`."""
    scored: list[dict[str, Any]] = field(default_factory=list)
    """A line of pictures.jsonl for each image."""

    def cells(self) -> list[StudyCell]:
        return [
            StudyCell(
                name=f"{kind}-{group.name}",
                count=len(group.seeds),
                generate=by_model(self.model, group.prompts, group.seeds, **self.options),
            )
            for kind, groups in (("pairs", self.pairs), ("scenes", self.scenes))
            for group in groups
        ]

    def results(self, images: dict[str, list[Image.Image]], metadata: dict[str, dict[str, Any]]) -> dict[str, Any]:
        everything = [*self.pairs, *self.scenes]
        for group, generated in zip(everything, images.values(), strict=True):
            group.generated = generated
        for group in everything:
            group.real = real_images(self.dataset, group.indices, everything[0].generated[0].width)
        vectors = concept_vectors(self.judge, self.concepts)
        groups = {g.name: score_pairs(self.judge, g, self.concepts, vectors, self.scored) for g in self.pairs}
        ceiling = groups["held-out"]["real"]
        for scores in groups.values():
            scores["of_ceiling"] = share_of(scores["generated"], ceiling)
            scores["of_real"] = share_of(scores["generated"], scores["real"])
        drawn = [self.judge.features(group.real).numpy() for group in self.pairs]
        scenes = {group.name: score_scenes(self.judge, group, self.scored) for group in self.scenes}
        if scenes:
            scenes["all"] = pooled(scenes)
        settings = {key: value for key, value in self.head["settings"].items() if key not in self.options}
        return {
            "model": self.head["model"],
            "judge": self.head["judge"],
            "data": {key: value for key, value in self.head["data"].items() if key != "prompts"},
            "settings": {**settings, **settings_used(self.options, metadata.values())},
            "concepts": len(self.concepts),
            "ceiling": "real held-out drawings, which neither the judge nor the model was trained on",
            "groups": groups,
            "frechet_between_real": frechet_distance(*drawn) if min(map(len, drawn)) > 1 else None,
            "scenes": scenes,
        }

    def records(self) -> list[dict[str, Any]]:
        return self.scored

    def sheets(self, results: dict[str, Any]) -> dict[str, Image.Image]:
        """A contact sheet for each group of pairs, the generated image left and the real one right; one for scenes."""
        rows, pages = iter(self.scored), {}
        for group in self.pairs:
            generated = [next(rows) for _ in group.seeds]
            pages[f"{group.name}.png"] = contact_sheet(
                [
                    SheetCell(
                        prompt=row["prompt"],
                        images=(group.generated[i], group.real[i]),
                        correct=(row["rank"] == 0, row["real_rank"] == 0),
                        notes=(row["guesses"][0], row["real_guesses"][0]),
                    )
                    for i, row in enumerate(generated[: self.sheet])
                ]
            )
        cells = []
        for group in self.scenes:
            generated = [next(rows) for _ in group.seeds]
            cells += [
                SheetCell(
                    prompt=row["prompt"],
                    images=(group.generated[i], group.real[i]),
                    correct=(row["right"], row["real_right"]),
                    notes=(group.name, "real"),
                )
                for i, row in enumerate(generated[: max(1, self.sheet // len(self.scenes))])
            ]
        return pages | ({"scenes.png": contact_sheet(cells)} if cells else {})

    def tables(self, results: dict[str, Any]) -> list[Table | str]:
        return [retrieval_table(results), *([scene_table(results["scenes"])] if results["scenes"] else [])]


def retrieval_table(results: dict[str, Any]) -> Table:
    """Generated, real, shuffled and chance rows of each group of pairs; Markdown, to be pasted into a page."""
    table = Table(title=f"Named among {results['concepts']} concepts by the judge, %", box=box.MARKDOWN)
    left = ("prompts", "pictures")
    for name in (*left, "top-1", "top-5", "top-5 of ceiling", "top-5 of own real", "mean place", "Fréchet"):
        table.add_column(name, justify="left" if name in left else "right")
    for group, scores in results["groups"].items():
        titles = (group, f"n = {scores['pictures']}", "", "")
        for title, row in zip(titles, ROWS, strict=True):
            shares = [scores[name]["top5"] if row == "generated" else None for name in ("of_ceiling", "of_real")]
            distance = {"generated": scores["frechet"], "real": results["frechet_between_real"]}.get(row)
            table.add_row(
                title,
                row,
                percent(scores[row]["top1"]),
                percent(scores[row]["top5"]),
                *("" if share is None else f"{100 * share:.0f}" for share in shares),
                percent(scores[row]["place"]) if "place" in scores[row] else "",
                plain(distance, 2),
            )
    return table


def scene_table(scenes: dict[str, Any]) -> Table:
    """A row for each category of scenes."""
    table = Table(title="Held-out scenes: the true caption before all its foils, %", box=box.MARKDOWN)
    for name in ("category", "n", *ROWS):
        table.add_column(name, justify="left" if name == "category" else "right")
    for category, scores in scenes.items():
        table.add_row(category, str(scores["pictures"]), *(percent(scores[row]) for row in ROWS))
    return table
