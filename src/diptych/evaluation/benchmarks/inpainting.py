"""How well a hole in a picture is filled: models that repaint, and fills that need no training, on the same masks.

The layout is that of table 7 in Rombach et al. 2022: all masks, and hard ones that hide 40 to 50 % of the pixels. What
is under a mask is hidden before anything sees the picture, and the known pixels are put back into every fill.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from diptych import terminal
from diptych.conditioning.masks import MaskConfig, drawn_masks, shares
from diptych.data.dataset import Split
from diptych.disk import write_text
from diptych.errors import UserError
from diptych.evaluation.benchmarks.reconstruction import measuring
from diptych.evaluation.fills import harmonic_fill, mean_fill
from diptych.evaluation.folder import MARK, require_free, write_tables
from diptych.evaluation.inpainting_report import sheet_of, summary, tables
from diptych.evaluation.judge import Judge, load_judge
from diptych.evaluation.metrics import WINDOW
from diptych.evaluation.prompt_sets import asked, drawn, is_scene
from diptych.evaluation.runner import manifest_hash, model_fingerprint
from diptych.pictures import grid, save_png, to_images, to_tensor
from diptych.progress import bar

SHARES = {"40-50 %": (0.4, 0.5), "all": (0.0, 0.5)}
"""Which share of the pixels masks hide. LaMa leaves out of all of its own what hides more than half, as here."""
FILLS = {"mean fill": mean_fill, "harmonic fill": harmonic_fill}
"""By the name of their row; the first is what all are compared with."""
Fill = Callable[[Tensor, Tensor, list[str], list[int]], Tensor]
"""(hidden pictures (B, 3, H, W), masks (B, 1, H, W), captions, seeds) -> pictures (B, 3, H, W)."""


@dataclass(frozen=True)
class Pictures:
    """What is to be filled."""

    truth: Tensor
    """(N, 3, H, W) in [-1, 1]."""
    captions: list[str]


def evaluate_inpainting(
    models: Sequence[tuple[str, Any]],
    data: Path | str,
    out: Path | str,
    *,
    split: Split = "held-out",
    pictures: int = 100,
    seeds: int = 3,
    masks: MaskConfig | None = None,
    perceptual: Any = None,
    judge: Judge | Path | str | None = None,
    seed: int = 0,
    batch: int = 16,
    sheet: int = 8,
    steps: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Fill the same holes by all means; write results.json, results.md, inpainting.png. A rerun goes on.

    Args:
        models: names and latent models of one size, on one device. Those that were not trained to repaint do so without
            (`Repaint`), told each picture's caption.
        pictures: of the data's `split`, so many, drawn by `seed`.
        seeds: how many times over; each time has its own masks and noise. Standard errors are over these.
        masks: how masks are drawn; LaMa's kinds alike if none.
        perceptual: a distance forward(first, second (B, 3, H, W) in [-1, 1]) -> (B,) with a `name`, or none.
        judge: whose features the Fréchet distance is of: one, its folder, or the one that ships with diptych.
        sheet: pictures on the contact sheet, the first ones, under hard masks of the first seed.
        steps: of sampling; the models' own if none.

    Returns:
        What results.json holds: settings, a cell for each share, row and seed, and means over seeds.

    Raises:
        UserError: a model that does not start from pictures, models of different sizes, too few pictures or seeds, or
            other results in `out`.
    """
    out, console, masks = Path(out), console or terminal.console(), masks or MaskConfig()
    size, unit = read_models(models)
    if seeds < 2:
        raise UserError(f"seeds must be at least 2, not {seeds}: standard errors are over them")
    judge = judge if isinstance(judge, Judge) else load_judge(Path(judge) if judge else None)
    chosen, examples = drawn(data, split, size, pictures, seed)
    captions = [asked(example.captions, is_scene(example.meta)) for example in examples]
    given = Pictures(to_tensor([Image.fromarray(example.picture) for example in examples]), captions)
    fills: dict[str, Fill] = {name: plain(fill) for name, fill in FILLS.items()}
    fills |= {name: painting(model, steps) for name, model in models}
    device = models[0][1].device
    head = {
        "data": {"name": Path(data).name, "manifest": manifest_hash(Path(data)), "split": split},
        "settings": {"pictures": len(examples), "size": size, "seeds": seeds, "seed": seed, "steps": steps},
        "masks": masks.to_dict(),
        "frechet": {"features": "judge", "judge": judge.fingerprint()},
        "perceptual": None if perceptual is None else perceptual.name,
        "models": {name: told(model) for name, model in models},
    }
    results = begun(out, head)
    measure = measuring(judge, None if perceptual is None else perceptual.to(device), batch, device)
    todo = [(s, k) for k in range(seeds) for s in SHARES if missing(results, s, k, fills)]
    with bar() as progress:
        task = progress.add_task(
            "filling", total=sum(len(missing(results, s, k, fills)) for s, k in todo) * len(chosen)
        )
        for share, number in todo:
            own = torch.arange(len(chosen)) + (seed + number) * 1_000_003
            holes = drawn_masks(masks, (size, size), own, every=unit, share=SHARES[share])
            for name in missing(results, share, number, fills):
                made: list[Image.Image] = []
                for start in range(0, len(chosen), batch):
                    made += filled(fills[name], given, holes, own, slice(start, start + batch))
                    progress.advance(task, len(made) - start)
                values, _ = measure(to_images(given.truth), made)
                values = {k: v["value"] if isinstance(v, dict) else v for k, v in values.items()}
                if not number and share == next(iter(SHARES)):
                    strips = {
                        "masked": to_images(given.truth * (1 - holes)),
                        name: made,
                        "truth": to_images(given.truth),
                    }
                    for title, images in strips.items():
                        keep_strip(out, title, images[:sheet])
                cell = {"share": share, "row": name, "seed": number, "hidden": float(shares(holes).mean()), **values}
                results["cells"].append(cell)
                write_text(out / "results.json", json.dumps(results, indent=2) + "\n")
    results["rows"] = summary(results["cells"], list(fills), seeds)
    write_text(out / "results.json", json.dumps(results, indent=2) + "\n")
    save_png(sheet_of(out / "strips", ["masked", *fills, "truth"], captions), out / "inpainting.png", optimize=True)
    found = list(tables(results))
    write_tables(out / "results.md", 200, *found)
    for table in found:
        console.print(table)
    console.print(f"the tables, every seed's numbers and a contact sheet are in {out}")
    return results


def read_models(models: Sequence[tuple[str, Any]]) -> tuple[int, int]:
    """The size of their pictures, and every how many pixels their latents are told of a mask."""
    for name, model in models:
        config = getattr(model, "config", None)  # a cascade has several
        if getattr(config, "kind", None) != "latent" or getattr(config, "low_factor", None) is not None:
            raise UserError(f"{name} repaints no part of a picture: give latent models that repaint or read text")
    names, sizes = [name for name, _ in models], {model.config.size for _, model in models}
    if len(set(names) | set(FILLS)) < len(names) + len(FILLS):
        raise UserError(f"two rows have one name: name each model once, and none {' or '.join(FILLS)}")
    if len(sizes) != 1 or min(sizes) < WINDOW:
        raise UserError(f"the models must be of one size, at least {WINDOW} pixels, not {sorted(sizes)}")
    return min(sizes), max(model.config.autoencoder.factor for _, model in models)


def told(model: Any) -> dict[str, Any]:
    """Which model it is, and how it repaints."""
    how = "trained to repaint" if model.config.repaints else "repaints without training"
    return {
        "fingerprint": model_fingerprint(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "how": how,
    }


def plain(fill: Callable[[Tensor, Tensor], Tensor]) -> Fill:
    """A fill that reads neither words nor seeds."""
    return lambda hidden, masks, captions, seeds: fill(hidden, masks)


def painting(model: Any, steps: int | None) -> Fill:
    """A model as a fill. One that was not trained to repaint takes what is outside of the mask from the latent of the
    picture: it is to paint each place of this anew that any masked pixel lies in, so that it keeps nothing of the hole.
    """
    factor = model.config.autoencoder.factor

    def paint(hidden: Tensor, masks: Tensor, captions: list[str], seeds: list[int]) -> Tensor:
        if not model.config.repaints:
            masks = F.interpolate(F.max_pool2d(masks, factor), scale_factor=factor)  # whole places
        return to_tensor(model.generate(captions, seeds=seeds, steps=steps, image=hidden, mask=masks).images)

    return paint


def filled(fill: Fill, given: Pictures, masks: Tensor, seeds: Tensor, part: slice) -> list[Image.Image]:
    """Some pictures with their holes filled, and every known pixel as it was."""
    truth, holes = given.truth[part], masks[part]
    made = fill(mean_fill(truth, holes), holes, given.captions[part], seeds[part].tolist())
    return to_images(torch.where(holes.bool(), made, truth))


def begun(out: Path, head: dict[str, Any]) -> dict[str, Any]:
    """The results to go on with: those in `out`, if they were begun with the same head, but for more models."""
    head, path = json.loads(json.dumps(head)), out / "results.json"
    if not path.is_file():
        require_free(out, ("results.json", "results.md", "strips", "inpainting.png", MARK))
        return {**head, "cells": []}
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        same = {key: before[key] for key in head}
        cells = list(before["cells"])
    except (ValueError, KeyError, TypeError, OSError):
        raise UserError(f"{path} holds the results of something else: name another folder") from None
    same["models"] = {**head["models"], **same["models"]}
    same["settings"] = {**same["settings"], "seeds": head["settings"]["seeds"]}
    if changed := [key for key in head if same[key] != head[key]]:
        raise UserError(f"{out} holds results with other {' and '.join(changed)}: name another folder, or delete it")
    return {**head, "cells": [cell for cell in cells if cell["row"] in (*FILLS, *head["models"])]}


def missing(results: dict[str, Any], share: str, number: int, fills: dict[str, Fill]) -> list[str]:
    """The rows that have no numbers yet for this share and seed."""
    have = {cell["row"] for cell in results["cells"] if (cell["share"], cell["seed"]) == (share, number)}
    return [name for name in fills if name not in have]


def keep_strip(out: Path, title: str, images: list[Image.Image]) -> None:
    """The first pictures side by side, for the contact sheet."""
    save_png(grid(images, len(images), gap=0), out / "strips" / f"{title.replace('/', '-')}.png")
