"""Making a study: which images are shown together, the batches, and the control questions among them."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diptych.core.disk import replacing, require_place
from diptych.core.errors import UserError
from diptych.core.progress import track
from diptych.data.prompt_files import read_prompts
from diptych.evaluation.human.control_tasks import Controls, opaque_id
from diptych.evaluation.human.image_pools import ImagePool, key_of, read_pool
from diptych.evaluation.human.questions import BATCH, CONTROLS, PAIRS, REFERENCE, SET_SIZE, TASK_KINDS, THRESHOLD
from diptych.evaluation.human.study_file import FILE, IMAGES, Ask, Batch, HumanStudy, Side, Task, read_study
from diptych.evaluation.human.study_images import StudyImages, common_size

ANY = "no category"
"""Of prompts that have none."""


class Shown(NamedTuple):
    """One prompt with the files that are shown for it."""

    prompt: str
    category: str
    files: Mapping[str, Sequence[Path]]
    """Name of a model, or `reference` -> its images."""


def make_coco(
    out: Path,
    models: Mapping[str, Path],
    reference: Path,
    *,
    pairs: int = PAIRS,
    batch: int = BATCH,
    controls: int = CONTROLS["coco"],
    size: int | None = None,
    seed: int = 0,
) -> HumanStudy:
    """A study of photorealism and caption alignment against reference images (Saharia et al. 2022, section 4.1).

    Args:
        out: a new folder.
        models: name -> folder of images.
        reference: folder of reference images with their captions.
        pairs: image-caption pairs, drawn by `seed` from those prompts of which all have an image.
        batch: pairs in a batch, at most.
        controls: control questions in a batch, among those.
        size: side of all images as squares; none for the size of the models' largest.
    """
    check(out, models, least=1)
    real = read_pool(REFERENCE, reference)
    pools = [real, *(read_pool(name, folder, like=real) for name, folder in models.items())]
    keys = common_prompts(pools)
    if len(keys) < pairs:
        raise UserError(
            f"{len(keys)} prompts have a reference image and one of every model, and {pairs} are needed: give --pairs "
            f"{max(len(keys), 1)} at most, or more images"
        )
    draw = np.random.Generator(np.random.PCG64(seed))
    order = [keys[i] for i in draw.permutation(len(keys))]
    shown = [drawn(pools, key, "", 1, draw) for key in order]
    chosen, spare = shown[:pairs], shown[pairs:]
    settings = {"pairs": pairs, "batch": batch, "controls": controls, "reference": str(reference)}
    with making(out, "coco", models, settings, sizes(chosen, models), size, seed) as build:
        chunks = [list(map(int, part)) for part in np.array_split(np.arange(pairs), -(-pairs // batch))]
        sources = {"photorealism": tuple(models), "alignment": (*models, REFERENCE)}
        plan = [(part, chunk, turn) for part in sources for chunk in chunks for turn in range(len(sources[part]))]
        for part, chunk, turn in track(plan, "batches"):
            # Latin square: each caption once in a batch, and all sources equally often.
            turned = [sources[part][(n + turn) % len(sources[part])] for n in range(len(chunk))]
            asked = zip(chunk, turned, strict=True)
            tasks = [build.task(chosen[i], sides_of(part, source), (part,)) for i, source in asked]
            others = [*spare, *(chosen[i] for i in range(pairs) if i not in chunk)]
            others = others if len(others) > 1 else shown  # one batch asks about all
            build.batch(part, tasks, build.controls.coco(part, others, controls))
    return read_study(out)


def sides_of(part: str, source: str) -> tuple[str, ...]:
    return (source, REFERENCE) if part == "photorealism" else (source,)


def make_drawbench(
    out: Path,
    models: Mapping[str, Path],
    prompts: Path | None = None,
    *,
    set_size: int = SET_SIZE,
    controls: int = CONTROLS["drawbench"],
    size: int | None = None,
    seed: int = 0,
) -> HumanStudy:
    """A study of models against each other, category by category (Saharia et al. 2022, section 4.3).

    Args:
        out: a new folder.
        models: name -> folder of images; of more than two every pair is compared; a rater sees each prompt once.
        prompts: a file of prompts with their `category`; none for those of which all models have images.
        set_size: images in a set, drawn by `seed` from those of the prompt.
        controls: control tasks in a batch.
        size: side of all images as squares; none for the size of the models' largest.
    """
    check(out, models, least=2)
    table = None if prompts is None else categories_of(prompts)
    pools = [read_pool(name, folder) for name, folder in models.items()]
    if table is None:
        table = [(pools[0].prompts[key], ANY) for key in common_prompts(pools)]
    draw = np.random.Generator(np.random.PCG64(seed))
    for pool in pools:
        few = [prompt for prompt, _ in table if len(pool.images.get(key_of(prompt), ())) < set_size]
        if few or not table:
            first = (
                f"{few[0]!r} has {len(pool.images.get(key_of(few[0]), ()))}" if few else "no prompt is in all folders"
            )
            raise UserError(
                f"{pool.folder} has fewer than {set_size} images of {len(few)} of {len(table)} prompts ({first}): "
                f"generate more (--count {set_size}), or give --set-size"
            )
    shown = [drawn(pools, key_of(prompt), category, set_size, draw) for prompt, category in table]
    settings = {"set_size": set_size, "controls": controls, "prompts": None if prompts is None else str(prompts)}
    with making(out, "drawbench", models, settings, sizes(shown, models), size, seed) as build:
        versus = list(itertools.combinations(models, 2))
        plan = list(itertools.product(sorted({one.category for one in shown}), range(len(versus))))
        for category, turn in track(plan, "batches"):
            members = [one for one in shown if one.category == category]
            others = [one for one in shown if one.category != category] or members
            turned = [versus[(n + turn) % len(versus)] for n in range(len(members))]
            tasks = [build.task(one, pair, TASK_KINDS[2]) for one, pair in zip(members, turned, strict=True)]
            build.batch(category, tasks, build.controls.drawbench(others, tuple(models), controls))
    return read_study(out)


def categories_of(path: Path) -> list[tuple[str, str]]:
    """(prompt, category) of a file of prompts; of one that occurs twice the last."""
    rows = {key_of(row.prompt): (row.prompt, str(row.fields.get("category") or ANY)) for row in read_prompts(path)}
    return list(rows.values())


def check(out: Path, models: Mapping[str, Path], least: int) -> None:
    """Raise a `UserError` for a folder that is taken, and for too few models or a name that cannot be one."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: name a new folder, a study is never written over another")
    require_place(out)
    if len(models) < least:
        raise UserError(f"give --model NAME=FOLDER {'twice or more' if least > 1 else 'once or more'}")
    for name in models:
        if not name.strip() or not name.isprintable() or len(name) > 60:
            raise UserError(f"a model is called by at most 60 printable letters, not {name[:80]!r}")
    if REFERENCE in models:
        raise UserError(f"a model cannot be called {REFERENCE}: give it another name")


def common_prompts(pools: Sequence[ImagePool]) -> list[str]:
    """Keys of prompts of which every pool has an image, in alphabetical order."""
    return sorted(set.intersection(*(set(pool.images) for pool in pools)))


def drawn(pools: Sequence[ImagePool], key: str, category: str, count: int, draw: np.random.Generator) -> Shown:
    """`count` images of one prompt out of each pool, not picked by anyone, in the order of their seeds."""
    files = {
        pool.name: [pool.images[key][i] for i in sorted(draw.permutation(len(pool.images[key]))[:count])]
        for pool in pools
    }
    return Shown(pools[0].prompts[key], category, files)


def sizes(shown: Sequence[Shown], models: Mapping[str, Path]) -> tuple[int, int]:
    return common_size(path for one in shown for name in models for path in one.files[name])


@contextlib.contextmanager
def making(
    out: Path,
    protocol: str,
    models: Mapping[str, Path],
    settings: dict[str, Any],
    natural: tuple[int, int],
    size: int | None,
    seed: int,
) -> Iterator[StudyBuilder]:
    """Collects a study within, and then gives the whole folder its place."""
    with replacing(out) as partial:
        partial.mkdir()
        images = StudyImages(partial / IMAGES, natural if size is None else (size, size), seed)
        build = StudyBuilder(images, seed)
        yield build
        folders = {name: str(folder) for name, folder in models.items()}
        study = HumanStudy(
            protocol=protocol,
            models=tuple(models),
            seed=seed,
            threshold=THRESHOLD,
            settings={**settings, "folders": folders, "size": list(images.size)},
            tasks=tuple(build.tasks),
            batches=tuple(build.batches),
            images=tuple(images.names),
        )
        (partial / FILE).write_text(json.dumps(study.to_json(), indent=1) + "\n", encoding="utf-8")


class StudyBuilder:
    """Collects the tasks and batches of a study, and writes their images."""

    def __init__(self, images: StudyImages, seed: int) -> None:
        self.images, self.seed = images, seed
        self.tasks: list[Task] = []
        self.batches: list[Batch] = []
        self.controls = Controls(images, seed)

    def task(self, shown: Shown, sources: Sequence[str], kinds: Sequence[str]) -> str:
        """A task of what is measured; returns its name."""
        name = opaque_id(self.seed, f"task {len(self.tasks)}")
        sides = tuple(
            Side(source=source, images=tuple(self.images.add(path) for path in shown.files[source]))
            for source in sources
        )
        asks = tuple(Ask(id=f"{name}-{n}", kind=kind) for n, kind in enumerate(kinds, 1))
        self.tasks.append(Task(id=name, prompt=shown.prompt, category=shown.category, sides=sides, asks=asks))
        return name

    def batch(self, part: str, tasks: Sequence[str], controls: Sequence[Task]) -> None:
        known = {task.id for task in self.tasks}
        self.tasks += [task for task in controls if task.id not in known]
        self.batches.append(Batch(part=part, tasks=tuple(tasks), controls=tuple(task.id for task in controls)))
