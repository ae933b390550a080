"""Words that no caption said: what a frozen text encoder brings along (Saharia et al. 2022, section 2.1, claims much).

Each model paints `unseen_words.PAIRS`, "a pup", and for comparison the seen caption of the concept that each should
give, "a dog face", from the same noise. The judge ranks all concepts by each picture. What is left, of what a model
can paint, when the wording is new is what its text encoder brought along: one that learned its words with the model has
met no such word, one that was trained on text before has.

The judge reads MiniLM's features too. But it is asked for the names of concepts only, which every model has seen, and
never for the new words: that a model shares its text encoder does not tell the judge what it was asked to paint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from torch import Tensor

from diptych import terminal
from diptych.data.dataset import DataConfig, open_dataset
from diptych.disk import write_text
from diptych.errors import UserError
from diptych.evaluation.benchmarks.novel_word_list import PAIRS, Pair
from diptych.evaluation.folder import claimed
from diptych.evaluation.judge import Judge
from diptych.evaluation.prompt_sets import Group, concept_of, is_scene
from diptych.evaluation.retrieval import concept_vectors
from diptych.evaluation.runner import described, manifest_hash, model_fingerprint, opened, paint
from diptych.evaluation.unseen_report import show, write_report
from diptych.evaluation.unseen_scores import WORDINGS, chance, right_answers, summary, word_ranks

FEWEST = 10
"""Wordings below which a share of them says nothing."""


@dataclass(frozen=True)
class Trial:
    """A pair that holds for some data: its word is new there, and its concepts are not."""

    place: int
    """In the list of pairs: decides the seeds, so that a dropped pair changes no other's pictures."""
    prompt: str
    control: str
    """The caption of the nearest concept, as the training data words it."""
    concepts: tuple[str, ...]


def compare(
    models: Sequence[tuple[str, Any]],
    data: Path | str,
    out: Path | str,
    *,
    pictures: int = 4,
    seed: int = 0,
    batch: int = 32,
    judge: Judge | Path | str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    pairs: Sequence[Pair] = PAIRS,
    console: Console | None = None,
) -> dict[str, Any]:
    """Compare models by new words, print a table, write results.json, results.md, pictures.jsonl, unseen.png to `out`.

    Args:
        models: (name, model or what `diptych.load` takes); differences are of the first to each of the others.
        data: the data that all of them were trained on: words in its captions are not new.
        pictures: how many of each wording. They are not independent: shares and errors are over wordings.
        seed: picture j of pair i gets seed + i * pictures + j, in both wordings and for every model.
        batch: pictures painted at a time; they do not depend on it.
        judge: another judge than the one that ships with diptych, or its folder.
        steps, guidance, sampler: for `generate`; each model's own defaults if none.
        pairs: other wordings than ours.

    Returns:
        What results.json holds. `found[name]` has the shares of pictures, averaged by wording, whose concept is named
        first or among five, with standard errors over wordings: "seen", "unseen", each "shuffled" (scored as another
        wording), and "kept", the share of seen that unseen reaches (errors by bootstrap over wordings). `differences`
        has the same, paired by wording.

    Raises:
        UserError: two models have one name, there is nothing to paint, or fewer than `FEWEST` wordings are new.
    """
    names = [name for name, _ in models]
    if not names or len(set(names)) < len(names):
        raise UserError(f"give one model or more, each with a name of its own, not {', '.join(names) or 'none'}")
    if min(pictures, batch) < 1:
        raise UserError("pictures and batch must be at least 1")
    out, console = Path(out), console or terminal.console()
    loaded = []
    for name, model in models:
        model, judge, _ = opened(model, judge, name)
        loaded.append(model)
    assert isinstance(judge, Judge)
    dataset = open_dataset(DataConfig(path=str(data), size=judge.config.size, split="all"))
    metas = [dataset.meta(i) for i in range(len(dataset))]
    trials, dropped = choose_trials(metas, pairs)
    if len(trials) < FEWEST:
        raise UserError(
            f"only {len(trials)} of {len(pairs)} wordings are new to {data} and mean something that it shows: "
            f"a comparison needs {FEWEST}"
        )
    given = {"steps": steps, "guidance": guidance, "sampler": sampler}
    head = {
        "evaluation": "unseen words",
        "models": {name: model_fingerprint(model) for name, model in zip(names, loaded, strict=True)},
        "judge": described(judge),
        "data": {"name": Path(data).name, "manifest": manifest_hash(Path(data))},
        "settings": {"pictures": pictures, "seed": seed, "trials": [trial.prompt for trial in trials], **given},
    }
    if (done := claimed(out, head, ("results.json", "results.md", "pictures.jsonl", "unseen.png"))) is not None:
        show(done, out, console)
        return done
    concepts = sorted({concept_of(meta) for meta in metas if not is_scene(meta)})
    vectors = concept_vectors(judge, concepts)
    answers = right_answers([trial.concepts for trial in trials], concepts)

    ranked: dict[str, dict[str, Tensor]] = {}
    shown: dict[str, list[Image.Image]] = {}
    records: list[dict[str, Any]] = []
    told = []
    for name, model in zip(names, loaded, strict=True):
        groups = [wanted(trials, wording, pictures, seed) for wording in WORDINGS]
        used = paint(model, groups, batch, **given)
        told.append({"name": name, "fingerprint": model_fingerprint(model), "settings": used})
        ranked[name] = {}
        for group in groups:
            seen = judge.pictures(group.generated)  # (W * P, D)
            found = word_ranks(seen, vectors, answers)
            ranked[name] |= {group.name + control: ranks for control, ranks in found.items()}
            guesses = (seen @ vectors.T).argmax(1).tolist()
            places = found[""].flatten().tolist()
            for i, (prompt, rank, guess) in enumerate(zip(group.prompts, places, guesses, strict=True)):
                records.append(
                    {"model": name, "wording": group.name, "prompt": prompt, "seed": group.seeds[i]}
                    | {"concepts": trials[i // pictures].concepts, "guess": concepts[guess], "rank": rank}
                )
        shown[name] = groups[-1].generated
    results = {
        "models": told,
        "judge": described(judge),
        "data": {"name": Path(data).name, "manifest": manifest_hash(Path(data))},
        "settings": {"pictures": pictures, "seed": seed},
        "concepts": len(concepts),
        "wordings": len(trials),
        "dropped": dropped,
        **summary(ranked),
        "chance": {f"top{k}": {"value": chance(answers, len(concepts), k)} for k in (1, 5)},
        "by_wording": [
            {"prompt": trial.prompt, "control": trial.control, "concepts": list(trial.concepts)}
            | {"top5": {n: {w: float((r[w][i] < 5).double().mean()) for w in WORDINGS} for n, r in ranked.items()}}
            for i, trial in enumerate(trials)
        ],
    }
    write_text(out / "pictures.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    write_report(results, out, console, shown, records)
    write_text(out / "results.json", json.dumps(results, indent=2) + "\n")  # last: it says that the rest is there
    return results


def choose_trials(metas: Sequence[dict[str, Any]], pairs: Sequence[Pair]) -> tuple[list[Trial], dict[str, list[str]]]:
    """The pairs that hold for some data, and the prompts of those that were dropped, by reason.

    "said": a training caption, of a drawing or a scene, has the word or another form of it; "not shown": no training
    drawing shows any of the concepts.
    """
    training = [meta for meta in metas if meta.get("split") != "held-out"]
    known = {stem(word) for meta in training for caption in meta["captions"] for word in spelt(caption)}
    captions = {concept_of(meta): meta["captions"][0] for meta in reversed(training) if not is_scene(meta)}
    trials: list[Trial] = []
    dropped: dict[str, list[str]] = {"said": [], "not shown": []}
    for place, pair in enumerate(pairs):
        shown = tuple(concept for concept in pair.concepts if concept in captions)
        if any(stem(word) in known for part in pair.words for word in spelt(part)):
            dropped["said"].append(pair.prompt)
        elif not shown:
            dropped["not shown"].append(pair.prompt)
        else:
            trials.append(Trial(place, pair.prompt, captions[shown[0]], shown))
    return trials, dropped


def spelt(text: str) -> list[str]:
    """The words of a text, in small letters."""
    return re.findall(r"[^\W_]+", text.lower())


def stem(word: str) -> str:
    """A word without its inflection, roughly: it must not miss a form that was said, and may confuse a few words."""
    for ending, instead in (("ies", "y"), ("ied", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending) + instead
            if ending in ("ing", "ed"):
                word = re.sub(r"([bdgklmnprtz])\1$", r"\1", word)  # sobbing, sob
            break
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def wanted(trials: Sequence[Trial], wording: str, pictures: int, seed: int) -> Group:
    """The pictures to paint of one of `WORDINGS`, wording by wording."""
    prompts = [trial.prompt if wording == "unseen" else trial.control for trial in trials for _ in range(pictures)]
    seeds = [seed + trial.place * pictures + j for trial in trials for j in range(pictures)]
    return Group(wording, [], [{"captions": [prompt]} for prompt in prompts], seeds)
