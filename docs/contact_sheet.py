"""Generate docs/images/contact-sheet.png with the default model: `python docs/contact_sheet.py`. Every seed is 0."""

from __future__ import annotations

import sys
from pathlib import Path

import diptych
from diptych.core.progress import track
from diptych.evaluation.report import SheetCell, contact_sheet

PROMPTS = """a red apple; a red heart; a grinning face; a cat face; a dog face; an evergreen tree; a crown; a rocket;
a snowman; a pizza; a strawberry; a ghost; a house, in the style of Noto; a guitar, in the style of Twemoji;
a tulip, in the style of OpenMoji; a pumpkin, in the style of EmojiOne; a car, in the style of Fluent;
a crab, in the style of FxEmoji; three apples; a blue heart; a cat to the left of a tree; a star on a purple background;
a penguin wearing a top hat; the word "go" on a yellow background"""


def main(path: Path) -> None:
    model = diptych.load()
    prompts = [" ".join(prompt.split()) for prompt in PROMPTS.split(";")]
    cells = []
    for start in track(range(0, len(prompts), 8), "generating"):
        part = prompts[start : start + 8]
        images = model.generate(part, seeds=[0] * len(part)).images
        cells += [
            SheetCell(prompt=p, images=(i,), correct=(None,), notes=("",)) for p, i in zip(part, images, strict=True)
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(cells, columns=6, side=128).save(path)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images" / "contact-sheet.png")
