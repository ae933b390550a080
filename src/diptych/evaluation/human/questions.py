"""The questions of both protocols, word for word, and what an answer counts (Saharia et al. 2022, sections 4.1, 4.3).

`coco`: photorealism, a model's image against the reference; alignment, one image with its caption. `drawbench`: two
sets of images of one prompt, by their quality and by how well they represent it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """What is asked of what is shown."""

    kind: str
    text: str
    """`{caption}` stands for the prompt."""
    choices: tuple[tuple[str, str], ...]
    """(value, words on its button), in the order of the keys 1, 2, 3."""
    measure: str
    """What it measures, for tables and charts."""
    shows_prompt: bool
    """Whether the prompt is shown above it; one that has it in its words needs no more."""

    @property
    def compares(self) -> bool:
        """Whether two sides are compared, or one is rated."""
        return self.choices[0][0] == "A"


TWO = (("A", "Image A"), ("B", "Image B"))
THREE = (("A", "I prefer set A"), ("indifferent", "I am indifferent"), ("B", "I prefer set B"))
QUESTIONS = {
    question.kind: question
    for question in (
        Question("photorealism", "Which image is more photorealistic (looks more real)?", TWO, "photorealism", False),
        Question(
            "alignment",
            "Does the caption accurately describe the above image?",
            (("yes", "Yes"), ("somewhat", "Somewhat"), ("no", "No")),
            "caption alignment",
            True,
        ),
        Question("set-quality", "Which set of images is of higher quality?", THREE, "fidelity", False),
        Question(
            "set-alignment",
            "Which set of images better represents the text caption: {caption}?",
            THREE,
            "alignment",
            False,
        ),
    )
}
TASK_KINDS = (("photorealism",), ("alignment",), ("set-quality", "set-alignment"))
"""Questions that are asked together, on one screen."""
POINTS = {"yes": 100.0, "somewhat": 50.0, "no": 0.0}
"""Of an answer about alignment (section 4.1)."""
SHARES = {"A": 1.0, "indifferent": 0.5, "B": 0.0}
"""Of the first side in an answer that compares: ties are half a win for each."""
REFERENCE = "reference"
"""The name of the reference images among those of models."""
THRESHOLD = 0.8
"""Share of control questions that a rater must answer correctly to be kept (section 4.1)."""
PAIRS, BATCH, SET_SIZE = 200, 50, 8
"""Image-caption pairs, images in a batch, and images in a set, as in the paper."""
CONTROLS = {"coco": 10, "drawbench": 0}
"""Control questions in a batch: the paper has them for COCO, without saying how many, and none for DrawBench."""
