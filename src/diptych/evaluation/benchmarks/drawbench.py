"""Prompts by category, as in DrawBench (Saharia et al. 2022, section 4): several images of each by one or two models,
scores of each category, and a page to look at.

A score is 100 times the cosine between image and prompt. Controls: the same images with the other prompts, and how
often an image's own prompt is the nearest of all. Standard errors are over prompts. A score replaces no rater.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich import box
from rich.table import Table
from torch import Tensor

from diptych.core.disk import values_of, write_text
from diptych.core.errors import UserError
from diptych.core.progress import bar
from diptych.data.prompt_files import PromptRow, read_prompts
from diptych.evaluation.folder import claimed
from diptych.evaluation.gallery import Gallery, GalleryImage, GalleryPrompt
from diptych.evaluation.generated_set import MANIFEST, generate_set
from diptych.evaluation.prompt_draws import OWN_PROMPTS, against_drawbench, category_counts
from diptych.evaluation.report import number, signed
from diptych.evaluation.runner import Study, StudyCell, file_name, run_study
from diptych.evaluation.set_files import MARK
from diptych.evaluation.text_image_scorer import TextImageScorer
from diptych.evaluation.written_text import Reader, quoted_text, text_scores

IMAGES, SCORED = 8, 32
"""Images of each prompt, and images scored at a time."""
TEXT = "Text"
"""The category whose prompts ask for words to be written."""
ALL = "all prompts"
Opened = tuple[Any, dict[str, Any]]
"""A model and the options of `generate` that it takes."""


@dataclass
class ModelScores:
    """One model's images of all prompts: P prompts with N images each."""

    score: np.ndarray
    """(P, N): 100 times the cosine with the own prompt."""
    others: np.ndarray
    """(P, N): the mean over the other prompts."""
    first: np.ndarray
    """(P, N): whether the own prompt is the nearest."""
    written: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """Prompt -> for each image what was read, and the scores of that."""
    files: list[list[str]] = field(default_factory=list)
    seeds: list[list[int]] = field(default_factory=list)
    size: tuple[int, int] = (1, 1)


@dataclass(kw_only=True, eq=False)
class DrawBenchStudy(Study):
    """Models over prompts by category. Images are those of `generate_set`, in images/MODEL."""

    writes = ("results.md", "scores.jsonl", "index.html")  # each folder in images/ guards itself
    width = 260
    closing = "the images by prompt are in {out}/index.html, the numbers in {out}/results.json"
    models: Mapping[str, Callable[[], Opened]]
    """Name -> opens it. One at a time is in memory."""
    rows: Sequence[PromptRow]
    images: int
    seed: int
    scorer: TextImageScorer
    reader: Reader | None = None

    def cells(self) -> Sequence[StudyCell]:
        return []

    def finished(self, out: Path) -> dict[str, Any]:
        claimed(out, self.head, self.writes)
        return {}  # models are compared with those of the images when these are looked for

    def compute(self, out: Path) -> dict[str, Any]:
        sets: dict[str, Path] = {}
        for name, opened in self.models.items():
            sets[name] = out / "images" / file_name(name)
            model, options = opened()
            generate_set(
                model, self.rows, sets[name], images_per_prompt=self.images, seed=self.seed, batch=self.batch, **options
            )
            del model
        texts = self.scorer.texts([row.prompt for row in self.rows])  # (P, D)
        with bar(rate=True) as progress:
            task = progress.add_task("scoring", total=len(sets) * len(self.rows) * self.images)
            scores = {
                name: self.scored(folder, texts, lambda n: progress.advance(task, n)) for name, folder in sets.items()
            }
        results = self.summary(scores)
        for name, folder in sets.items():
            about = values_of(folder / MARK)
            results["models"][name]["made"] = {key: about.get(key) for key in ("model", "settings", "batch")}
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines(scores, sets, out))
        write_text(out / "scores.jsonl", "".join(lines))
        write_text(out / "index.html", self.gallery(scores, sets, results, out).html())
        write_text(out / "results.json", json.dumps({**self.head, **results}, indent=2) + "\n")
        return results

    def scored(self, folder: Path, texts: Tensor, advance: Callable[[int], Any]) -> ModelScores:
        """The scores of a set's images, read a few at a time."""
        lines = [json.loads(line) for line in (folder / MANIFEST).read_text(encoding="utf-8").splitlines()]
        shape = (len(self.rows), self.images)
        made = ModelScores(np.zeros(shape), np.zeros(shape), np.zeros(shape))
        groups = [lines[place : place + self.images] for place in range(0, len(lines), self.images)]
        made.files = [[line["file"] for line in group] for group in groups]
        made.seeds = [[line["seed"] for line in group] for group in groups]
        for start in range(0, len(lines), SCORED):
            part = lines[start : start + SCORED]
            images = [opened_image(folder / line["file"]) for line in part]
            made.size = images[0].size
            near = 100 * (self.scorer.images(images) @ texts.T).numpy()  # (N, P)
            for line, image, row in zip(part, images, near, strict=True):
                place = line["row"], line["copy"]
                own = row[line["row"]]
                made.score[place] = own
                made.others[place] = (row.sum() - own) / max(len(row) - 1, 1)
                made.first[place] = own >= row.max()
                if self.reader is not None and (wanted := self.wanted(line["row"])):
                    read = self.reader(image)
                    made.written.setdefault(line["row"], []).append({"read": read, **text_scores(wanted, read)})
            advance(len(part))
        return made

    def wanted(self, row: int) -> str | None:
        """The text that a prompt of the category Text asks for."""
        one = self.rows[row]
        return quoted_text(one.prompt) if one.fields["category"] == TEXT else None

    def summary(self, scores: Mapping[str, ModelScores]) -> dict[str, Any]:
        """Means of each category and of all prompts, and where there are two models their differences by prompt."""
        results: dict[str, Any] = {"models": {}}
        for name, made in scores.items():
            categories = {}
            for category, places in self.groups().items():
                values = {"score": made.score, "other_prompts": made.others, "own_first": made.first}
                means = {key: mean_of(value[places].mean(1)) for key, value in values.items()}
                categories[category] = {"prompts": len(places), **means}
            results["models"][name] = {"categories": categories}
            if made.written:
                each = {
                    k: [np.mean([one[k] for one in rows]) for rows in made.written.values()]
                    for k in ("words", "letters", "exact")
                }
                results["models"][name]["written"] = {key: mean_of(np.array(values)) for key, values in each.items()}
        if len(scores) == 2:
            first, second = (made.score.mean(1) for made in scores.values())
            results["difference"] = {
                category: {**mean_of((first - second)[places]), "first_better": float((first > second)[places].mean())}
                for category, places in self.groups().items()
            }
        return results

    def groups(self) -> dict[str, list[int]]:
        """The prompts of each category, and all of them."""
        groups = {name: list[int]() for name in category_counts(self.rows)}
        for place, row in enumerate(self.rows):
            groups[row.fields["category"]].append(place)
        return {**groups, ALL: list(range(len(self.rows)))}

    def columns(self, results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
        """The table of scores: its head, and its rows."""
        names = list(results["models"])
        head = ["category", "prompts"]
        head += [f"{name}{part}" for name in names for part in (" score", ", other prompts", ", own prompt first")]
        head += [f"{names[0]} - {names[1]}"] if "difference" in results else []
        rows = []
        for category, places in self.groups().items():
            row = [category, str(len(places))]
            for name in names:
                means = results["models"][name]["categories"][category]
                share = {key: 100 * value for key, value in means["own_first"].items()}
                row += [number(means["score"], 2), number(means["other_prompts"], 2), number(share, 1) + "%"]
            row += [signed(results["difference"][category], 2)] if "difference" in results else []
            rows.append(row)
        return head, rows

    def tables(self, results: dict[str, Any]) -> list[Table | str]:
        head, rows = self.columns(results)
        table = Table(title="images and prompts: 100 x cosine", box=box.MARKDOWN)
        for i, name in enumerate(head):
            table.add_column(name, justify="right" if i else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        return [table, *self.written_lines(results), self.remark()]

    def written_lines(self, results: Mapping[str, Any]) -> list[str]:
        """A line of text for each model whose written words were read."""
        return [
            f"written text, {name}: {number(shares(one['words']), 1)}% of words, letters {number(one['letters'], 3)}, "
            f"exact {number(shares(one['exact']), 1)}%"
            for name, model in results["models"].items()
            if (one := model.get("written"))
        ]

    def remark(self) -> str:
        chance = 100 / len(self.rows)
        return (
            f"Means over prompts with standard errors over prompts, {self.images} images of each. Other prompts: the "
            f"same images against all other prompts; an image's own prompt is first by chance in {chance:.2g}%."
        )

    def lines(self, scores: Mapping[str, ModelScores], sets: Mapping[str, Path], out: Path) -> Any:
        """A line of scores.jsonl for each image."""
        for name, made in scores.items():
            for p, row in enumerate(self.rows):
                for c in range(self.images):
                    line = {"model": name, "file": f"{sets[name].relative_to(out).as_posix()}/{made.files[p][c]}"}
                    line |= {"category": row.fields["category"], "prompt": row.prompt, "seed": made.seeds[p][c]}
                    line |= {"score": round(float(made.score[p, c]), 4), "own_first": bool(made.first[p, c])}
                    yield line | (made.written[p][c] if p in made.written else {})

    def gallery(
        self, scores: Mapping[str, ModelScores], sets: Mapping[str, Path], results: Mapping[str, Any], out: Path
    ) -> Gallery:
        """The page."""
        prompts = []
        for p, row in enumerate(self.rows):
            images, notes = {}, {}
            for name, made in scores.items():
                folder = sets[name].relative_to(out).as_posix()
                images[name] = [
                    GalleryImage(file=f"{folder}/{made.files[p][c]}", note=self.note(made, p, c))
                    for c in range(self.images)
                ]
                notes[name] = f"score {made.score[p].mean():.2f}"
            prompts.append(
                GalleryPrompt(prompt=row.prompt, category=row.fields["category"], images=images, notes=notes)
            )
        facts = {"models": ", ".join(scores), "prompts": describe_prompts(self.head["prompts"])}
        facts["scorer"] = ", ".join(f"{key} {str(value)[:40]}" for key, value in self.head["scorer"].items())
        facts["settings"] = ", ".join(f"{key} {value}" for key, value in self.head["settings"].items())
        if self.head["ocr"]:
            facts["text read by"] = " ".join(self.head["ocr"].values())
        head, rows = self.columns(results)
        remark = " ".join([*self.written_lines(results), self.remark()])
        size = max((made.size for made in scores.values()), key=math.prod)
        title = f"Prompts by category: {' and '.join(scores)}"
        return Gallery(title=title, facts=facts, columns=head, rows=rows, remark=remark, prompts=prompts, size=size)

    def note(self, made: ModelScores, p: int, c: int) -> str:
        """What is said of one image."""
        text = f"score {made.score[p, c]:.2f}, seed {made.seeds[p][c]}"
        if p in made.written:
            read = " / ".join(made.written[p][c]["read"]) or "nothing"
            text += f", read: {read}"
        return text


def mean_of(values: np.ndarray) -> dict[str, float]:
    """The mean over prompts (P,) and, of two or more, its standard error."""
    mean = {"value": float(values.mean())}
    return mean if len(values) < 2 else {**mean, "error": float(values.std(ddof=1) / math.sqrt(len(values)))}


def shares(mean: Mapping[str, float]) -> dict[str, float]:
    """A share and its error in percent."""
    return {key: 100 * value for key, value in mean.items()}


def opened_image(path: Path) -> Image.Image:
    """An image as RGB, read now."""
    with Image.open(path) as image:
        return image.convert("RGB")


def describe_prompts(prompts: Mapping[str, Any]) -> str:
    """The prompts in words."""
    as_published = "the counts of DrawBench" if prompts["as_drawbench"] else "other counts than DrawBench"
    return f"{prompts['source']}: {prompts['count']} in {len(prompts['categories'])} categories, {as_published}"


def read_categories(path: Path | None = None) -> list[PromptRow]:
    """Prompts with categories: those of a file, or diptych's own. A `UserError` for one without a category."""
    rows = read_prompts(path or OWN_PROMPTS)
    for place, row in enumerate(rows, 1):
        if not row.fields.get("category"):
            raise UserError(f"prompt {place} of {path} has no category: give a table with the columns Prompts,Category")
    return rows


def evaluate_drawbench(
    models: Mapping[str, Callable[[], Opened]],
    out: Path | str,
    scorer: TextImageScorer,
    *,
    prompts: Path | None = None,
    images: int = IMAGES,
    seed: int = 0,
    batch: int = 8,
    reader: tuple[Reader, dict[str, str]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Generate and score `images` of each prompt by one or two models; write tables and the page into `out`.

    Args:
        models: name -> a function that opens it, and the options of its `generate`.
        prompts: a table with the columns Prompts and Category, such as DrawBench's; none for diptych's own.
        reader: reads the text in images of the category Text; none to leave that out.
        options: as the user gave them, for the report.

    Returns the results: of each model and category mean, control and retrieval; see the module.
    """
    if not 1 <= len(models) <= 2:
        raise UserError("one model is evaluated, or two are compared")
    rows = read_categories(prompts)
    about = {"source": "diptych's own" if prompts is None else prompts.name, "count": len(rows)}
    about |= {"categories": category_counts(rows), "as_drawbench": against_drawbench(rows) is None}
    about |= {"rows": [row.prompt for row in rows]}
    settings = {"images": images, "seed": seed, **{key: str(value) for key, value in (options or {}).items()}}
    head = {"evaluation": "drawbench", "models": list(models), "prompts": about, "scorer": scorer.facts}
    head |= {"ocr": None if reader is None else reader[1], "settings": settings}
    study = DrawBenchStudy(
        models=models,
        rows=rows,
        images=images,
        seed=seed,
        scorer=scorer,
        reader=None if reader is None else reader[0],
        head=head,
        batch=batch,
    )
    return run_study(study, Path(out))
