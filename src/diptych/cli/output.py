"""Painting from the command line: what a model takes, prompts × seeds in batches, and PNG files that say how."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from diptych.core.checks import said
from diptych.core.disk import write_new
from diptych.core.errors import UserError, pick
from diptych.core.images import FITS, read_picture
from diptych.core.progress import bar
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.diffusion.times import SCHEDULE_TYPES
from diptych.encoders.prompt_weights import LONG_PROMPTS
from diptych.models.first_stage import TINY
from diptych.models.request import read_guidance, read_steps
from diptych.weights.hub import hub_id

SIDE = 256
"""Of each picture on the sheet of all panels, in pixels."""
ENLARGING = "models that enlarge pictures"
SPOILING = "models over pixels that enlarge pictures"
LATENT = "latent models"
DIFFUSING = "models that walk from noise to picture"
WRITING = "models that write a picture code by code"
USES = {
    "sampler": DIFFUSING,
    "schedule_type": DIFFUSING,
    "steps": DIFFUSING,
    "temperature": WRITING,
    "top_k": WRITING,
    "top_p": WRITING,
    "threshold": "models over pixels",
    "augmentation": SPOILING,
    "low": ENLARGING,
    "start": "cascades",
    "stop": "cascades",
    "keep": "cascades",
    "one_at_a_time": "cascades",
    "image": DIFFUSING,
    "strength": DIFFUSING,
    "mask": DIFFUSING,
    "paste": DIFFUSING,
    "fit": DIFFUSING,
    "size": "models of one stage, from words",
    "tile": LATENT,
    "decoder": LATENT,
    "guides": DIFFUSING,
}
"""Settings that not every model takes, and what they are for."""

Job = tuple[str, int]
"""A prompt and a seed."""


def fitting(model: Any, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that are given, not None; a `UserError` names one that this model's `generate` does not take."""
    settings = {key: value for key, value in given.items() if value is not None}
    known = inspect.signature(model.generate).parameters
    for key, value in settings.items():
        renamed = {"keep": "--keep-stages", "decoder": "--preview-decoder", "guides": "--classifier or --clip"}
        option = renamed.get(key, f"--{key.replace('_', '-')}")
        # A base stage, or a latent model that starts from words:
        idle = USES.get(key) in (ENLARGING, SPOILING) and getattr(model, "low_size", ...) is None
        if key not in known or idle:
            raise UserError(f"{option} is for {USES[key]}, and the model {name} is none of them: leave it out")
        if isinstance(value, list) and "stop" not in known:
            raise UserError(f"{option} has a value for each stage, but the model {name} is no cascade: give one value")
    return settings


def check(settings: Mapping[str, Any], files: Iterable[Path] = ()) -> None:
    """Raise a `UserError` for what is wrong with settings of `generate` or with files, whatever the model is.

    Settings may be lists with one value for each stage, None for its own.
    """
    readers: dict[str, Callable[[Any], Any]] = {
        "sampler": lambda name: pick("sampler", name, SAMPLERS),
        "schedule_type": lambda name: pick("schedule type", name, SCHEDULE_TYPES),
        "steps": read_steps,
        "guidance": read_guidance,
        "long_prompts": lambda how: pick("long_prompts", how, LONG_PROMPTS),
        "threshold": ThresholdConfig.parse,
        "fit": lambda how: pick("fit", how, FITS),
        "image": read_picture,
        "mask": read_picture,
        "low": read_picture,
        "decoder": lambda source: source == TINY or there("tiny decoder", source, hub=False),
        "negative": unicode_text,
    }
    for key, wanted in (("strength", "image"), ("mask", "image"), ("paste", "image"), ("paste", "mask")):
        if settings.get(key) is not None and settings.get(wanted) is None:
            what = "the image to start from" if wanted == "image" else "the mask outside which pixels are put back"
            raise UserError(f"--{key} goes with --{wanted}: name {what}")
    for key in readers.keys() & settings.keys():
        value = settings[key]
        for part in value if isinstance(value, list) else [value]:
            if part is not None:
                readers[key](part)
    for file in files:
        if not file.exists():
            raise UserError(f"there is no file or folder {file}")


def unicode_text(text: str) -> None:
    """Raise a `UserError` for what is no text, such as a word in another encoding than the terminal's."""
    try:
        text.encode()
    except (UnicodeEncodeError, AttributeError):
        raise UserError(f"{said(text)} is not valid Unicode text") from None


def there(what: str, source: str, hub: bool = True) -> None:
    """Raise a `UserError` where nothing lies at a place that is not one of the hub's either; whether what lies there is
    right is seen when it is opened."""
    if not Path(source).exists() and not (hub and hub_id(source)):
        raise UserError(f"there is no {what} at {source}")


def paint(
    model: Any, jobs: Sequence[Job], batch: int, description: str = "generating", **settings: Any
) -> Iterator[tuple[Image, dict[str, Any], list[Image]]]:
    """The picture of each job, its metadata, and the pictures of the stages before it where they are to be kept."""
    with bar() as progress:
        task = progress.add_task(description, total=None)
        for start in range(0, len(jobs), batch):
            part = jobs[start : start + batch]
            done, batches = start // batch, -(-len(jobs) // batch)

            def show(step: int, steps: int, x0: Any, done: int = done, batches: int = batches) -> None:
                progress.update(task, completed=done * steps + step + 1, total=batches * steps)

            prompts, seeds = [prompt for prompt, _ in part], [seed for _, seed in part]
            result = model.generate(prompts, seeds=seeds, callback=show, **settings)
            earlier = result.stages[:-1] if settings.get("keep") else []
            for i, (image, told) in enumerate(zip(result.images, result.metadata, strict=True)):
                yield image, told, [pictures[i] for pictures in earlier]


def write_png(image: Image, folder: Path, stem: str, texts: Mapping[str, str]) -> Path:
    """Write a PNG with texts inside, under the first name with this stem that is not taken yet: whole or not at all."""
    metadata = PngInfo()
    for key, text in texts.items():
        metadata.add_text(key, text)
    return write_new(folder, stem, ".png", lambda path: image.save(path, "PNG", pnginfo=metadata))


def side_by_side(jobs: Sequence[Job], panels: Mapping[str, Sequence[Image]]) -> Image:
    """One sheet: the pictures of each job, one a panel, shown at one size; beneath each its panel and true size."""
    from diptych.evaluation.report import SheetCell, contact_sheet

    cells = [
        SheetCell(
            prompt=f"{prompt} (seed {seed})",
            images=pictures,
            correct=[None] * len(pictures),
            notes=[f"{panel}, {image.width} px" for panel, image in zip(panels, pictures, strict=True)],
        )
        for (prompt, seed), *pictures in zip(jobs, *panels.values(), strict=True)
    ]
    return contact_sheet(cells, columns=2, side=SIDE)
