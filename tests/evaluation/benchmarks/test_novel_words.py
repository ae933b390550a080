"""New words: who knows them and who does not come out apart, and a word that was said is not new."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console

from diptych.core.errors import UserError
from diptych.core.hashing import stable_hash
from diptych.evaluation.benchmarks import novel_words as scores
from diptych.evaluation.benchmarks.novel_word_list import ARTICLES, PAIRS, choose_trials, read_pairs, stem
from diptych.evaluation.benchmarks.novel_words import compare
from diptych.models.judge import Judge
from diptych.models.retrieval import Mean
from tests.evaluation import toys

SYNONYMS = {"red": "scarlet", "green": "verdant", "blue": "azure", "yellow": "golden", "black": "inky"}
PAIRS_OF_TOYS = read_pairs("\n".join(f"a [{SYNONYMS[c.split()[0]]}] {c.split()[1]} = {c}" for c in toys.CONCEPTS))


class ToyModel:
    """Paints the concept that a prompt names; of a new word only one that `knows` them makes the right one."""

    def __init__(self, knows: bool) -> None:
        self.knows = knows
        self.requests: list[tuple[str, int]] = []

    def generate(self, prompts: list[str], *, seeds: list[int], steps: int = 5) -> SimpleNamespace:
        self.requests += zip(prompts, seeds, strict=True)
        images = [self.draw(*request) for request in zip(prompts, seeds, strict=True)]
        return SimpleNamespace(images=images, metadata=[{"steps": steps} for _ in prompts])

    def draw(self, prompt: str, seed: int) -> Image.Image:
        _, colour, shape = prompt.split()
        meant = {new: old for old, new in SYNONYMS.items()} if self.knows else {}
        concept = f"{meant.get(colour, colour)} {shape}"
        if concept not in toys.CONCEPTS:
            concept = toys.CONCEPTS[stable_hash(prompt, str(seed)) % len(toys.CONCEPTS)]
        return toys.drawing(concept, "plain")


def run(models, data: Path, out: Path, judge: Judge, **options) -> dict:
    options = {"pairs": PAIRS_OF_TOYS, "images": 3, "batch": 7, **options}
    return compare(models, data, out, judge=judge, console=Console(file=io.StringIO()), **options)


@pytest.fixture(scope="module")
def study(judge: Judge, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One comparison of both models, and where it was written."""
    models, out = (ToyModel(True), ToyModel(False)), tmp_path_factory.mktemp("unseen")
    results = run([("knows", models[0]), ("joint", models[1])], toy_data, out, judge)
    return SimpleNamespace(results=results, out=out, models=models)


def test_models_with_and_without_the_novel_words_differ(study: SimpleNamespace) -> None:
    knows, joint = study.results["found"]["knows"], study.results["found"]["joint"]
    chance = study.results["chance"]["top1"]["value"]
    assert chance == pytest.approx(1 / len(toys.CONCEPTS))
    assert knows["seen"] == joint["seen"] == knows["unseen"]
    assert knows["kept"]["top1"] == {"value": 1.0, "error": 0.0}
    assert knows["seen"]["top1"]["value"] > 10 * chance
    assert joint["unseen"]["top1"]["value"] < 3 * chance
    for found in (knows, joint):
        for wording in scores.WORDINGS:
            assert found[f"{wording} shuffled"]["top1"]["value"] <= 3 * chance
    apart = study.results["differences"]["knows - joint"]
    assert apart["seen"]["top1"] == {"value": 0, "error": 0, "count": len(toys.CONCEPTS)}
    assert apart["unseen"]["top1"]["value"] > 4 * apart["unseen"]["top1"]["error"] > 0
    assert apart["kept"]["top5"]["value"] == pytest.approx(1 - joint["kept"]["top5"]["value"])
    assert apart["kept"]["top5"]["error"] == pytest.approx(joint["kept"]["top5"]["error"])


def test_both_models_and_both_wordings_have_the_same_seeds(study: SimpleNamespace) -> None:
    one, other = (model.requests for model in study.models)
    assert one == other
    half = len(one) // 2
    assert [seed for _, seed in one[:half]] == [seed for _, seed in one[half:]] == list(range(half))
    assert [prompt for prompt, _ in one[:half:3]] == [f"a {concept}" for concept in toys.CONCEPTS]
    assert [prompt for prompt, _ in one[half::3]] == [pair.prompt for pair in PAIRS_OF_TOYS]


def test_written_files(study: SimpleNamespace) -> None:
    assert json.loads((study.out / "results.json").read_text()) == study.results
    table = (study.out / "results.md").read_text()
    for row in ("| knows ", "| joint ", "| knows, shuffled ", "| chance ", "| knows - joint ", "| a scarlet disc "):
        assert row in table
    assert "never for the unseen words" in table and "0 wordings were dropped" in table
    rows = [json.loads(line) for line in (study.out / "pictures.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 3 * len(toys.CONCEPTS)
    right = [row["rank"] == 0 for row in rows if (row["model"], row["wording"]) == ("joint", "unseen")]
    assert sum(right) / len(right) == pytest.approx(study.results["found"]["joint"]["unseen"]["top1"]["value"])
    assert all((row["guess"] in row["concepts"]) == (row["rank"] == 0) for row in rows)
    assert study.results["models"][0]["settings"] == {"steps": 5}
    with Image.open(study.out / "unseen.png") as sheet:
        assert sheet.width > 4 * 64


def test_words_of_training_captions_are_dropped_and_counted(
    study: SimpleNamespace, judge: Judge, toy_data: Path, tmp_path: Path
) -> None:
    more = read_pairs("a disc = red disc\nthe lefts = red disc\na zeppelin = airship\na [scarlet] red = red disc")
    model = ToyModel(True)
    results = run([("one", model)], toy_data, tmp_path, judge, pairs=(*more[:3], *PAIRS_OF_TOYS, more[3]), steps=2)
    assert results["dropped"] == {"said": ["a disc", "the lefts"], "not shown": ["a zeppelin"]}
    assert results["wordings"] == len(toys.CONCEPTS) + 1
    assert results["differences"] == {} and results["models"][0]["settings"] == {"steps": 2}
    assert model.requests[0] == ("a red disc", 9)  # the dropped keep their seeds
    assert "2 wordings were dropped" in (tmp_path / "results.md").read_text()


def test_choose_trials_reads_training_captions_only() -> None:
    metas = [
        {"kind": "single", "concept": "dog", "split": "train", "captions": ["a dog", "dog, puppies"]},
        {"kind": "single", "concept": "cat", "split": "held-out", "captions": ["a cat", "cat, kitty"]},
        {"kind": "single", "concept": "cat", "split": "train", "captions": ["one cat"]},
        {"kind": "scene", "split": "train", "captions": ["a dog barking at a hound"]},
    ]
    pairs = read_pairs("a puppy = dog\na kitty = tiger, cat\na hound = dog\na [bark] of a dog = dog")
    trials, dropped = choose_trials(metas, pairs)
    assert dropped == {"said": ["a puppy", "a hound", "a bark of a dog"], "not shown": []}
    assert [(trial.place, trial.prompt, trial.control, trial.concepts) for trial in trials] == [
        (1, "a kitty", "one cat", ("cat",))
    ]


@pytest.mark.parametrize("forms", ["sob sobs sobbed sobbing", "puppy puppies", "box boxes", "blaze blazes blazing"])
def test_inflections_have_one_stem(forms: str) -> None:
    assert len({stem(form) for form in forms.split()}) == 1
    assert stem("moth") != stem("mother") and stem("lad") != stem("lady")


def test_wrong_arguments_are_refused_before_generating(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    model = ToyModel(True)
    with pytest.raises(UserError, match="only 3 of 4 wordings are new") as caught:
        run([("one", model)], toy_data, tmp_path, judge, pairs=(*PAIRS_OF_TOYS[:3], *read_pairs("a disc = red disc")))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="a name of its own, not one, one"):
        run([("one", model), ("one", model)], toy_data, tmp_path, judge)
    with pytest.raises(UserError, match="one model or more"):
        run([], toy_data, tmp_path, judge)
    with pytest.raises(UserError, match="at least 1"):
        run([("one", model)], toy_data, tmp_path, judge, images=0)
    assert not model.requests


# The numbers, by hand.


def test_best_ranks_is_the_rank_of_the_best_right_concept() -> None:
    concepts = torch.eye(4)
    images = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).repeat(3, 1)
    answers = scores.right_answers([["c"], ["d", "b"], ["b", "a", "d"]], ["a", "b", "c", "d"])
    assert scores.best_ranks(images, concepts, answers).tolist() == [2, 1, 0]
    assert scores.best_ranks(torch.ones(3, 4), concepts, answers[:, :1]).tolist() == [3, 3, 3]


def test_chance_by_enumeration() -> None:
    answers = scores.right_answers([["a"], ["b", "e", "f"]], list("abcdef"))
    draws = list(itertools.combinations("abcdef", 2))
    expected = sum(("a" in draw) + bool(set(draw) & set("bef")) for draw in draws) / 2 / len(draws)
    assert scores.chance(answers, 6, 2) == pytest.approx(expected)


def test_standard_errors_are_over_wordings_not_images() -> None:
    torch.manual_seed(0)
    rank = {"seen": torch.zeros(40, 1, dtype=torch.long), "unseen": torch.randint(0, 2, (40, 1))}
    once = scores.summary({"m": rank})
    often = scores.summary({"m": {wording: r.repeat(1, 5) for wording, r in rank.items()}})
    assert once == often
    share = float((rank["unseen"] == 0).double().mean())
    found = once["found"]["m"]
    assert found["unseen"]["top1"]["error"] == pytest.approx(math.sqrt(share * (1 - share) / 39))
    # All seen ones are hit, so the share kept is the unseen share, and its bootstrap error that share's.
    assert found["kept"]["top1"]["value"] == pytest.approx(share)
    assert found["kept"]["top1"]["error"] == pytest.approx(math.sqrt(share * (1 - share) / 40), rel=0.1)


def test_kept_of_zero_is_none_and_differences_are_paired() -> None:
    torch.manual_seed(0)
    good = torch.randint(0, 2, (30, 2))
    ranked = {
        "a": {"seen": torch.full((30, 2), 9), "unseen": good},
        "b": {"seen": good, "unseen": (good + torch.tensor([0, 1])).clamp(max=1)},
    }
    summary = scores.summary(ranked)
    assert summary["found"]["a"]["kept"]["top1"] is None
    assert "top1" not in summary["differences"]["a - b"].get("kept", {})
    lost = (good[:, 1] == 0).double() / 2  # what b's second image of each wording loses
    assert summary["differences"]["a - b"]["unseen"]["top1"] == Mean.of(lost)._asdict()


def test_the_shipped_list_is_well_formed() -> None:
    assert 80 <= len(PAIRS) <= 150
    assert len({pair.prompt for pair in PAIRS}) == len(PAIRS)
    for pair in PAIRS:
        assert pair.words and set(pair.words) <= set(pair.prompt.lower().split()) - ARTICLES
        assert all(pair.concepts) and len(set(pair.concepts)) == len(pair.concepts)
        assert not set(pair.words) & {word for concept in pair.concepts for word in concept.lower().split()}
