"""The results of a study: what the paper reports of each protocol, computed from the ratings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from diptych.core.errors import UserError
from diptych.evaluation.human.answer_store import AnswerStore
from diptych.evaluation.human.preference import RESAMPLES, mean_interval, strengths
from diptych.evaluation.human.questions import QUESTIONS, REFERENCE
from diptych.evaluation.human.rating_table import Rating, measured, of_kind, read_ratings, score_raters

ALL = "all"
"""The name of all categories together."""


def study_results(store: AnswerStore, resamples: int = RESAMPLES) -> tuple[dict[str, Any], list[Rating]]:
    """All results as one object for JSON, and every rating.

    `coco`: "photorealism", model -> share that chose it over the reference; "alignment", source -> mean of 100, 50, 0.
    `drawbench`: "comparisons", a list of question, pair and category with the shares of first, indifferent and second,
    and "preference", the first's share with ties as half. Both: "strengths", question -> Bradley-Terry, from three on.

    Raises a `UserError` where there are no answers.
    """
    study, ratings = store.study, read_ratings(store)
    if not ratings:
        raise UserError(f"{store.folder} has no answers yet: `diptych study serve` or `import` gets them")
    raters = score_raters(store, ratings)
    counted = measured(ratings, raters)
    results: dict[str, Any] = {
        "study": study.id,
        "protocol": study.protocol,
        "models": list(study.models),
        "settings": {**study.settings, "seed": study.seed, "threshold": study.threshold, "resamples": resamples},
        "raters": [asdict(rater) for rater in raters],
        "ratings": {"all": len(ratings), "counted": len(counted)},
    }
    how = {"resamples": resamples, "seed": study.seed}
    if study.protocol == "coco":
        results |= coco_results(counted, study.models, **how)
        kinds, players = ("photorealism",), (*study.models, REFERENCE)
    else:
        results["comparisons"] = comparisons(counted, study.models, **how)
        kinds, players = ("set-alignment", "set-quality"), study.models
    if len(players) > 2:
        results["strengths"] = {
            kind: strengths(own, players, **how) for kind in kinds if (own := of_kind(counted, kind))
        }
    return results, ratings


def coco_results(ratings: Sequence[Rating], models: Sequence[str], **how: int) -> dict[str, Any]:
    """Shares in percent (Saharia et al. 2022, section 4.1 and table 2)."""
    real, aligned = of_kind(ratings, "photorealism"), of_kind(ratings, "alignment")
    results: dict[str, Any] = {"photorealism": {}, "alignment": {}}
    for source in (*models, REFERENCE):
        if own := [rating for rating in real if rating.sides[0] == source]:
            results["photorealism"][source] = mean(own, [100 * rating.score for rating in own], **how)
        if own := [rating for rating in aligned if rating.sides[0] == source]:
            results["alignment"][source] = mean(own, [rating.score for rating in own], **how)
    return results


def comparisons(ratings: Sequence[Rating], models: Sequence[str], **how: int) -> list[dict[str, Any]]:
    """Shares in percent of each question, pair and category, and of all categories (section 4.3 and figure 3)."""
    rows = []
    for kind in ("set-alignment", "set-quality"):
        for pair in combinations(models, 2):
            whole = [rating for rating in of_kind(ratings, kind) if rating.sides == pair]
            categories = sorted({rating.category for rating in whole})
            for category in (*categories, *([ALL] if whole else [])):
                own = [rating for rating in whole if category in (ALL, rating.category)]
                shares = {
                    name: mean(own, [100.0 * (rating.choice == choice) for rating in own], **how)
                    for name, choice in (("first", "A"), ("indifferent", "indifferent"), ("second", "B"))
                }
                preference = mean(own, [100 * rating.score for rating in own], **how)
                rows.append(
                    {
                        "question": kind,
                        "measure": QUESTIONS[kind].measure,
                        "models": list(pair),
                        "category": category,
                        "raters": len({rating.rater for rating in own}),
                        "preference": preference,
                        **shares,
                    }
                )
    return rows


def mean(ratings: Sequence[Rating], values: Sequence[float], **how: int) -> dict[str, Any]:
    return mean_interval([rating.prompt for rating in ratings], values, **how)
