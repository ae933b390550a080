"""Whether a thing is where the layout has it: held-out scenes are painted from their boxes, and what each box shows is
cut out and named by the judge.

The same boxes on the real scenes are the ceiling. Floors are the painted pictures seen through the boxes of other
scenes, and, where a scene has several things, each sought in another's box: a painter of the right words in the wrong
places scores there. A model that paints the scene's caption and is told no boxes may stand beside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from diptych import terminal
from diptych.config import read_json
from diptych.data.dataset import DataConfig, open_dataset
from diptych.data.layouts import layout_of
from diptych.data.quarantine import Broken
from diptych.disk import write_text
from diptych.errors import UserError
from diptych.evaluation.boxes import Boxes, Scene, difference, shares
from diptych.evaluation.folder import claimed, require_free, write_tables
from diptych.evaluation.judge import Judge
from diptych.evaluation.layouts_report import page, tables
from diptych.evaluation.prompt_sets import concept_of, is_scene
from diptych.evaluation.runner import described, manifest_hash, model_fingerprint, opened
from diptych.pictures import save_png
from diptych.progress import bar


def evaluate_layouts(
    model: Any,
    data: Path | str,
    out: Path | str,
    *,
    words: Any = None,
    scenes: int | None = None,
    seeds: int = 4,
    seed: int = 0,
    batch: int = 32,
    judge: Judge | Path | str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    sheet: int = 24,
    name: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Score a model of layouts, print tables, and write results.json, results.md, layouts.png and every painted picture
    into `out`. The same call again goes on behind the last picture that is there.

    Args:
        model: anything with `generate` whose prompts are layouts, or what `diptych.load` takes.
        data: the data set, with held-out scenes that have objects with boxes.
        words: a model that is told the scenes' captions instead, and no boxes; none to leave it out.
        scenes: how many, drawn by `seed`; all if none.
        seeds: pictures of each scene; picture j of scene i gets seed `seed` + i * seeds + j.
        batch: pictures painted at a time; they do not depend on it.
        judge: another judge than the one that ships with diptych, or its folder.
        steps, guidance, sampler: for the model of layouts; each model's own if none.
        sheet: scenes on the contact sheet, the first ones.
        name: what the report calls the model; its path or class if none.

    Returns:
        What results.json holds: `rows` has the shares of boxes whose concept the judge names, as `boxes.MEASURES` has
        it; `margins` their differences, scene by scene. Standard errors are over scenes, whose boxes and seeds are not
        independent; `over_seeds` are those over seeds alone.

    Raises:
        UserError: there are no such scenes, or `out` holds pictures of another model or with other settings.
    """
    if min(seeds, batch) < 1:
        raise UserError("seeds and batch must be at least 1")
    out, console = Path(out), console or terminal.console()
    model, judge, name = opened(model, judge, name)
    dataset = open_dataset(DataConfig(path=str(data), size=judge.config.size, split="all"))
    metas = [dataset.meta(index) for index in range(len(dataset))]
    chosen = choose_scenes(data, metas, scenes, seed)
    told = {"scenes": len(chosen), "seeds": seeds, "seed": seed}
    options = {"steps": steps, "guidance": guidance, "sampler": sampler}
    painters = {"painted": (model, [scene.layout for scene in chosen], options)}
    if words is not None:
        other, *_ = opened(words, judge, None)
        painters["from words"] = (other, [scene.caption for scene in chosen], {})
    head = {
        "evaluation": "layouts",
        "models": {kind: model_fingerprint(painter) for kind, (painter, *_) in painters.items()},
        "judge": described(judge),
        "data": {"name": Path(data).name, "manifest": manifest_hash(Path(data))},
        "settings": {**told, **options, "layouts": [scene.layout for scene in chosen]},
    }
    claimed(out, head, ("results.json", "results.md", "layouts.png"))
    pictures = {
        kind: paint(painter, prompts, out / kind.replace(" ", "-"), seeds, seed, batch, how)
        for kind, (painter, prompts, how) in painters.items()
    }
    pictures["real"] = [[Image.fromarray(dataset[scene.index].picture)] for scene in chosen]

    singles = {concept_of(meta) for meta in metas if not is_scene(meta)}
    concepts = sorted(singles | {concept for scene in chosen for concept, _ in scene.things})
    seen = Boxes(judge, concepts, chosen, seed)
    hits = {kind: seen.hits(found, seen.own) for kind, found in pictures.items()}
    for kind in painters:
        hits[f"{kind}, boxes of other scenes"] = seen.hits(pictures[kind], seen.elsewhere)
        hits[f"{kind}, box of another thing in it"] = seen.hits(pictures[kind], seen.swapped)
    hits["real, boxes of other scenes"] = seen.hits(pictures["real"], seen.elsewhere)
    several = [scene for scene, places in enumerate(seen.swapped) if any(place is not None for place in places)]
    margins = {f"painted - {floor}": difference(hits["painted"], hits[floor]) for floor in hits if floor != "painted"}
    results = {
        "model": {"name": name, "fingerprint": model_fingerprint(model)},
        "judge": described(judge),
        "data": {"name": Path(data).name, "manifest": manifest_hash(Path(data))},
        "settings": {**told, **options},
        "concepts": len(concepts),
        "boxes": sum(len(scene.things) for scene in chosen),
        "scenes_of_several": len(several),
        "rows": {kind: shares(found) for kind, found in hits.items()},
        "chance": {name: {"value": value} for name, value in seen.chance().items()},
        "margins": margins,
    }
    write_text(out / "results.json", json.dumps(results, indent=2) + "\n")
    found = list(tables(results))
    write_tables(out / "results.md", 160, *found)
    for table in found:
        console.print(table)
    first = {kind: [row[0] for row in found[:sheet]] for kind, found in pictures.items()}
    right = {kind: [row[0] for row in hits[kind][:sheet]] for kind in pictures}
    save_png(page([scene.things for scene in chosen[:sheet]], first, right), out / "layouts.png", optimize=True)
    console.print(f"tables, a contact sheet and every picture are in {out}")
    return results


def choose_scenes(data: Path | str, metas: Sequence[dict[str, Any]], count: int | None, seed: int) -> list[Scene]:
    """Held-out scenes that have objects, in an order drawn by `seed`."""
    pool = [i for i, meta in enumerate(metas) if meta.get("split") == "held-out" and meta.get("objects")]
    if not pool:
        raise UserError(f"{data} has no held-out scenes with objects in boxes: make some with `diptych data emoji`")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(pool))[:count]

    def layout(meta: dict[str, Any]) -> str:
        try:
            return layout_of(meta, lambda: np.empty((0, 0, 3)))  # with objects no picture is measured
        except Broken as error:
            raise UserError(f"{data}: a held-out scene cannot be read: {error}") from None

    return [
        Scene(
            i,
            layout(metas[i]),
            metas[i]["captions"][0],
            tuple((one["concept"], tuple(one["box"])) for one in metas[i]["objects"]),
        )
        for i in (pool[place] for place in order)
    ]


def paint(
    model: Any, prompts: Sequence[str], folder: Path, seeds: int, seed: int, batch: int, options: dict[str, Any]
) -> list[list[Image.Image]]:
    """Pictures (scenes, seeds), kept in a folder; those that are there already are not painted again.

    Raises a `UserError` where they are of another model, or were painted with other settings.
    """
    given = {key: value for key, value in options.items() if value is not None}
    settings = {"model": model_fingerprint(model), "seed": seed, "seeds": seeds, "prompts": list(prompts), **given}
    told = folder / "settings.json"
    if told.exists() and read_json(told) != json.loads(json.dumps(settings)):
        raise UserError(f"{folder} holds pictures of another model or with other settings: name another folder")
    if not told.exists():
        require_free(folder, ("*.png",))
    write_text(told, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
    paths = [[folder / f"{i:04d}-{j}.png" for j in range(seeds)] for i in range(len(prompts))]
    todo = [(i, j) for i in range(len(prompts)) for j in range(seeds) if not paths[i][j].exists()]
    with bar() as progress:
        task = progress.add_task(f"painting: {folder.name}", total=len(todo))
        for start in range(0, len(todo), batch):
            part = todo[start : start + batch]
            numbers = [seed + i * seeds + j for i, j in part]
            painted = model.generate([prompts[i] for i, _ in part], seeds=numbers, **given)
            for (i, j), image in zip(part, painted.images, strict=True):
                save_png(image, paths[i][j])
            progress.advance(task, len(part))
    return [[Image.open(path).convert("RGB") for path in row] for row in paths]
