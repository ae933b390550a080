"""Novel words: prompts whose words no caption of the training data has (Saharia et al. 2022, section 2.1).

Each model gets the prompts of `novel_word_list.PAIRS`, "a pup", and for comparison the seen caption of the concept that
each should show, "a dog face", from the same noise. The judge ranks all concepts by each image. The share of the seen
score that is left with the new wording comes from the text encoder: one that was trained with the model has met no such
word, one that was trained on text before has.

The judge reads MiniLM's features too. But its captions are the names of concepts only, which every model has seen, and
never the new words: that a model shares its text encoder does not give the judge its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from diptych.core.errors import UserError
from diptych.evaluation.benchmarks.novel_word_list import PAIRS, WordPair, WordTrial, choose_trials
from diptych.evaluation.report import SheetCell, contact_sheet, percent
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
    run_study,
    settings_used,
)
from diptych.evaluation.scores import bootstrap_ratio
from diptych.models.judge import Judge
from diptych.models.retrieval import Mean, best_ranks, concept_vectors

FEWEST = 10
"""Wordings below which a share of them says nothing."""
WORDINGS = ("seen", "unseen")
SHUFFLED = " shuffled"
SHOWN = 2
"""Images of each wording and model on the contact sheet."""


def compare(
    models: Sequence[tuple[str, Any]],
    data: Path | str,
    out: Path | str,
    *,
    images: int = 4,
    seed: int = 0,
    batch: int = 32,
    judge: Judge | Path | str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    pairs: Sequence[WordPair] = PAIRS,
    console: Console | None = None,
) -> dict[str, Any]:
    """Compare models by new words, print a table, write results.json, results.md, pictures.jsonl, unseen.png to `out`.

    Args:
        models: (name, model or what `diptych.load` takes); differences are of the first to each of the others.
        data: the data that all of them were trained on: words in its captions are not new.
        images: images of each wording. They are not independent: shares and errors are over wordings.
        seed: image j of pair i gets seed + i * images + j, in both wordings and for every model.
        batch: images generated at a time; they do not depend on it.
        judge: another judge than the one that ships with diptych, or its folder.
        steps, guidance, sampler: for `generate`; each model's own defaults if none.
        pairs: other wordings than ours.

    Returns:
        The content of results.json. `found[name]` has the shares of images, averaged by wording, whose concept is named
        first or among five, with standard errors over wordings: "seen", "unseen", each "shuffled" (scored as another
        wording), and "kept", the share of seen that unseen reaches (errors by bootstrap over wordings). `differences`
        has the same, paired by wording.

    Raises:
        UserError: two models have one name, there is nothing to generate, or fewer than `FEWEST` wordings are new.
    """
    names = [name for name, _ in models]
    if not names or len(set(names)) < len(names):
        raise UserError(f"give one model or more, each with a name of its own, not {', '.join(names) or 'none'}")
    if min(images, batch) < 1:
        raise UserError("images and batch must be at least 1")
    loaded = {name: open_model(model)[0] for name, model in models}
    judge = open_judge(judge)
    _, metas, concepts = open_data(data, judge)
    trials, dropped = choose_trials(metas, pairs)
    if len(trials) < FEWEST:
        raise UserError(
            f"only {len(trials)} of {len(pairs)} wordings are new to {data} and mean something that it shows: "
            f"a comparison needs {FEWEST}"
        )
    options = {"steps": steps, "guidance": guidance, "sampler": sampler}
    settings = {"pictures": images, "seed": seed}
    study = NovelWords(
        head={
            "evaluation": "unseen words",
            "models": {name: model_fingerprint(model) for name, model in loaded.items()},
            "judge": describe_judge(judge),
            "data": describe_data(data),
            "settings": {**settings, "trials": [trial.prompt for trial in trials], **options},
        },
        batch=batch,
        models=loaded,
        trials=trials,
        dropped=dropped,
        concepts=concepts,
        judge=judge,
        settings=settings,
        options=options,
    )
    return run_study(study, out, console)


@dataclass(kw_only=True, eq=False)
class NovelWords(ImageStudy):
    """A cell for each model and wording."""

    writes = ("results.json", "results.md", "pictures.jsonl", "unseen.png")
    closing = "every wording, its images and what the judge saw in them are in {out}"
    models: dict[str, Any]
    trials: Sequence[WordTrial]
    dropped: dict[str, list[str]]
    concepts: list[str]
    judge: Judge
    settings: dict[str, int]
    options: dict[str, Any]
    scored: list[dict[str, Any]] = field(default_factory=list)
    """A line of pictures.jsonl for each image."""
    images: dict[str, list[Image.Image]] = field(default_factory=dict)
    """Of each model, with unseen wordings."""

    def prompts(self, wording: str) -> list[str]:
        """Of each image, wording by wording."""
        return [t.prompt if wording == "unseen" else t.control for t in self.trials for _ in self.numbers]

    @property
    def numbers(self) -> range:
        return range(self.settings["pictures"])

    @property
    def seeds(self) -> list[int]:
        first, many = self.settings["seed"], len(self.numbers)
        return [first + trial.place * many + number for trial in self.trials for number in self.numbers]

    def cells(self) -> list[StudyCell]:
        return [
            StudyCell(
                name=f"{wording}-{name}",
                count=len(self.seeds),
                generate=by_model(model, self.prompts(wording), self.seeds, **self.options),
            )
            for name, model in self.models.items()
            for wording in WORDINGS
        ]

    def results(self, images: dict[str, list[Image.Image]], metadata: dict[str, dict[str, Any]]) -> dict[str, Any]:
        vectors = concept_vectors(self.judge, self.concepts)
        answers = right_answers([trial.concepts for trial in self.trials], self.concepts)
        ranked: dict[str, dict[str, Tensor]] = {}
        for name in self.models:
            ranked[name] = {}
            for wording in WORDINGS:
                encoded = self.judge.encode_images(images[f"{wording}-{name}"])  # (W * P, D)
                ranks = word_ranks(encoded, vectors, answers)
                ranked[name] |= {wording + control: rank for control, rank in ranks.items()}
                self.record(name, wording, ranks[""].flatten().tolist(), (encoded @ vectors.T).argmax(1).tolist())
            self.images[name] = images[f"unseen-{name}"]
        used = {
            name: settings_used(self.options, (metadata[f"{wording}-{name}"] for wording in WORDINGS))
            for name in self.models
        }
        fingerprints = self.head["models"]
        return {
            "models": [{"name": n, "fingerprint": fingerprints[n], "settings": used[n]} for n in self.models],
            "judge": self.head["judge"],
            "data": self.head["data"],
            "settings": self.settings,
            "concepts": len(self.concepts),
            "wordings": len(self.trials),
            "dropped": self.dropped,
            **summary(ranked),
            "chance": {f"top{k}": {"value": chance(answers, len(self.concepts), k)} for k in (1, 5)},
            "by_wording": [
                {"prompt": trial.prompt, "control": trial.control, "concepts": list(trial.concepts)}
                | {"top5": {n: {w: float((r[w][i] < 5).double().mean()) for w in WORDINGS} for n, r in ranked.items()}}
                for i, trial in enumerate(self.trials)
            ],
        }

    def record(self, name: str, wording: str, ranks: list[int], guesses: list[int]) -> None:
        """A line of pictures.jsonl for each image of a cell."""
        lines = zip(self.prompts(wording), self.seeds, ranks, guesses, strict=True)
        for i, (prompt, seed, rank, guess) in enumerate(lines):
            self.scored.append(
                {"model": name, "wording": wording, "prompt": prompt, "seed": seed}
                | {"concepts": self.trials[i // len(self.numbers)].concepts}
                | {"guess": self.concepts[guess], "rank": rank}
            )

    def records(self) -> list[dict[str, Any]]:
        return self.scored

    def sheets(self, results: dict[str, Any]) -> dict[str, Image.Image]:
        """Every unseen wording with each model's first images side by side; a green border is a right first guess."""
        many = len(self.numbers)
        columns = min(SHOWN, many)
        rows = {n: [r for r in self.scored if r["model"] == n and r["wording"] == "unseen"] for n in self.models}
        cells = []
        for i, trial in enumerate(self.trials):
            places = [(name, i * many + j) for name in self.models for j in range(columns)]
            cells.append(
                SheetCell(
                    prompt=f"{trial.prompt} ({trial.concepts[0]})",
                    images=[self.images[name][place] for name, place in places],
                    correct=[rows[name][place]["rank"] == 0 for name, place in places],
                    notes=[rows[name][place]["guess"] for name, place in places],
                )
            )
        page = contact_sheet(cells, columns=max(3, 16 // (columns * len(self.models))), side=64)
        order = f"left to right, {columns} each: {', '.join(self.models)}"
        titled = Image.new("RGB", (page.width, page.height + 24), "white")
        font = ImageFont.load_default(size=12)
        head = f"{order}. Beneath: the judge's first guess; the wording (concept)"
        ImageDraw.Draw(titled).text((8, 6), head, fill="black", font=font)
        titled.paste(page, (0, 24))
        return {"unseen.png": titled}

    def tables(self, results: dict[str, Any]) -> list[Table | str]:
        words = "\n" + "\n\n".join(explained(results)) + "\n"
        return [summary_table(results), words, wording_table(results)]

    def printed(self, results: dict[str, Any]) -> list[Table | str]:
        return [summary_table(results), *explained(results)[:1]]


def right_answers(wordings: Sequence[Sequence[str]], concepts: Sequence[str]) -> Tensor:
    """Indices (W, A) of each wording's right concepts; -1 fills the rows."""
    place = {concept: i for i, concept in enumerate(concepts)}
    most = max(map(len, wordings))
    return torch.tensor([[place[name] for name in names] + [-1] * (most - len(names)) for names in wordings])


def word_ranks(images: Tensor, concepts: Tensor, answers: Tensor) -> dict[str, Tensor]:
    """The ranks (W, P) of the right concepts of images (W * P, D), and, shuffled, of another wording's.

    concepts: unit vectors (C, D). answers: as `right_answers` gives them.
    """
    many = len(images) // len(answers)
    expected = answers.repeat_interleave(many, 0)  # (W * P, A)
    other = expected.roll(len(answers) // 2 * many, 0)  # half the list away: another sort of thing
    ranks = {"": best_ranks(images, concepts, expected), SHUFFLED: best_ranks(images, concepts, other)}
    return {control: rank.unflatten(0, (-1, many)) for control, rank in ranks.items()}


def chance(answers: Tensor, concepts: int, k: int) -> float:
    """The share that guessing gets: one of a wording's right concepts (W, A) is among k drawn at random."""
    rights = (answers >= 0).sum(1).tolist()
    return 1 - float(np.mean([comb(concepts - right, k) / comb(concepts, k) for right in rights]))


def summary(ranked: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """Shares and paired differences with standard errors over wordings, from ranks (W, P) by model and wording."""
    scores: dict[str, Any] = {name: {} for name in ranked}
    first, *others = ranked
    differences: dict[str, Any] = {f"{first} - {other}": {} for other in others}
    for k in (1, 5):
        hits = {n: {w: (r < k).double().mean(1) for w, r in own.items()} for n, own in ranked.items()}  # (W,)
        again = {name: bootstrap_ratio(own["seen"], own["unseen"]) for name, own in hits.items()}
        for name, own in hits.items():
            for wording, shares in own.items():
                scores[name].setdefault(wording, {})[f"top{k}"] = Mean.of(shares)._asdict()
            scores[name].setdefault("kept", {})[f"top{k}"] = again[name][0]
        for other in others:
            row = differences[f"{first} - {other}"]
            for wording in WORDINGS:
                paired = hits[first][wording] - hits[other][wording]
                row.setdefault(wording, {})[f"top{k}"] = Mean.of(paired)._asdict()
            (one, ones), (two, twos) = again[first], again[other]
            if one is not None and two is not None:
                error = float(np.nanstd(ones - twos))
                row.setdefault("kept", {})[f"top{k}"] = {"value": one["value"] - two["value"], "error": error}
    return {"found": scores, "differences": differences}


def summary_table(results: dict[str, Any]) -> Table:
    """Each model, its shuffled control, chance, and the paired differences, for the first guess and the first five."""
    title = f"{results['wordings']} wordings, named among {results['concepts']} concepts by the judge, %"
    table = Table(title=title, box=box.MARKDOWN)
    table.add_column("model", overflow="fold")
    for name in ("guesses", *WORDINGS, "kept"):
        table.add_column(name, justify="right", no_wrap=True)

    def rows(name: str, scores: dict[str, Any]) -> None:
        for k in (1, 5):
            shares = [(scores.get(group) or {}).get(f"top{k}") for group in (*WORDINGS, "kept")]
            table.add_row(name if k == 1 else "", f"top-{k}", *("" if s is None else percent(s) for s in shares))

    for name, scores in results["found"].items():
        rows(name, scores)
    for name, scores in results["found"].items():
        rows(f"{name}, shuffled", {group: scores[group + SHUFFLED] for group in WORDINGS})
    rows("chance", dict.fromkeys(WORDINGS, results["chance"]))
    for name, scores in results["differences"].items():
        rows(name, scores)
    return table


def explained(results: dict[str, Any]) -> list[str]:
    """Explanations of the table, first of the dropped wordings."""
    trained, unknown = (results["dropped"][reason] for reason in ("said", "not shown"))
    return [
        f"{len(trained)} wordings were dropped because a training caption says their word, {len(unknown)} because the "
        "data shows nothing of what they mean.",
        f"Each model generated {results['settings']['pictures']} images of each unseen wording and, from the same "
        "noise, of the seen caption of the concept that it should give. Kept is the share of the seen score that the "
        "unseen wording reaches. Scores are averaged by wording first; errors are standard errors over wordings, those "
        "of kept by bootstrap. Differences are paired by wording. Shuffled: scored as if another had been asked.",
        "The judge reads MiniLM's features as one of the models may. It is asked for the names of concepts only, which "
        "every model has seen, and never for the unseen words.",
        *(f"Dropped ({reason}): {', '.join(names)}." for reason, names in results["dropped"].items() if names),
    ]


def wording_table(results: dict[str, Any]) -> Table:
    """How often each model hit with each wording, unseen and seen."""
    names = list(results["found"])
    table = Table(title="Images with the concept among the first five, %: unseen (seen)", box=box.MARKDOWN)
    table.add_column("unseen wording", no_wrap=True)
    table.add_column("seen wording", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for one in results["by_wording"]:
        shares = [f"{100 * one['top5'][name]['unseen']:.0f} ({100 * one['top5'][name]['seen']:.0f})" for name in names]
        table.add_row(one["prompt"], one["control"], *shares)
    return table
