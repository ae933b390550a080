"""Faults of images put before people: folders that a study is made of, and how far measures have people's order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.core.images import save_png
from diptych.evaluation.human.answer_store import AnswerStore
from diptych.evaluation.human.study_results import study_results
from diptych.evaluation.set_measures import rank_agreement

README = "README.md"


def folder_name(kind: str) -> str:
    return kind.replace(" ", "-")


def write_study_images(
    folder: Path, kinds: Mapping[str, Callable[[int], Image.Image]], captions: Mapping[int, str]
) -> None:
    """A folder for each kind of fault, with its images and `captions.jsonl`, as `diptych study make` reads them; and
    README.md, written last, with the commands that ask people. What is complete is left as it is.

    Args:
        kinds: name -> image of a number.
        captions: number -> caption, different ones.
    """
    if (folder / README).exists():
        return
    for kind, image in kinds.items():
        lines = []
        for number, caption in captions.items():
            name = f"{number:05d}.png"
            save_png(image(number), folder / folder_name(kind) / name)
            lines.append(json.dumps({"file_name": name, "text": caption}, ensure_ascii=False) + "\n")
        write_text(folder / folder_name(kind) / "captions.jsonl", "".join(lines))
    models = "".join(f" \\\n  --model '{kind}={folder_name(kind)}'" for kind in kinds)
    make = f"diptych study make study --protocol drawbench --set-size 1{models}"
    text = f"""\
Which fault is worse? People say, of two images of one prompt at a time. In this folder:

```
{make}
diptych study serve study
```

The command that made this folder, once more with `--answers` and the folder of the study, then prints people's order
and how far each measure has it.
"""
    write_text(folder / README, text)


def agreement_with_people(folder: Path, worse: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """People's order of faults, best first, and Kendall's tau a between it and each measure.

    Args:
        folder: a study of `write_study_images` with answers. Its Bradley-Terry strengths of quality are the order.
        worse: measure -> kind of fault -> number that is the higher the worse the measure finds it.

    Raises a `UserError` where the study has no order of three of these kinds or more.
    """
    store = AnswerStore(folder)
    try:
        results = study_results(store)[0]
    finally:
        store.close()
    strengths = results.get("strengths", {}).get("set-quality", {})
    players = strengths.get("players", {})
    kinds = [kind for kind in next(iter(worse.values())) if kind in players]
    if len(kinds) < 3:
        reason = strengths.get("reason", f"it compares {len(kinds)} of the folders")
        raise UserError(f"{folder} gives no order of faults: {reason}; make it as people/{README} says, and ask more")
    disliked = [-players[kind]["value"] for kind in kinds]
    return {
        "study": results["study"],
        "ratings": results["ratings"]["counted"],
        "order": sorted(kinds, key=lambda kind: -players[kind]["value"]),
        "tau": {name: rank_agreement(disliked, [values[kind] for kind in kinds]) for name, values in worse.items()},
    }
