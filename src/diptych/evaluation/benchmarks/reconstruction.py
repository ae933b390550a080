"""What a first stage keeps of pictures: originals beside what its encoder and decoder make of them.

A KL autoencoder decodes the mean of its posterior, a VQ the entries of its codebook that are nearest. What is compared
are pictures of 8 bits, as files hold them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from diptych import terminal
from diptych.data.dataset import DataConfig, PictureDataset, Split, open_dataset
from diptych.disk import write_text
from diptych.errors import UserError
from diptych.evaluation.folder import claimed, write_tables
from diptych.evaluation.judge import Judge, load_judge
from diptych.evaluation.metrics import WINDOW, frechet_distance, psnr, ssim
from diptych.evaluation.prompt_sets import drawn
from diptych.evaluation.reconstruction_report import page, tables
from diptych.evaluation.retrieval import Mean
from diptych.evaluation.runner import manifest_hash
from diptych.pictures import save_png, to_images, to_tensor
from diptych.progress import bar
from diptych.weights.fingerprint import fingerprint

LARGEST = 256
"""Pixels a side at which pictures are compared where no size is chosen and theirs are larger."""


@dataclass
class Rebuilt:
    """What a first stage made of all pictures."""

    name: str
    """In tables and on the contact sheet."""
    told: dict[str, Any]
    """Which network it is."""
    images: list[Image.Image] = field(default_factory=list)
    uses: Tensor | None = None
    """Of each entry of a codebook, how many positions took it (N,) int64."""
    encoding: float = 0.0
    decoding: float = 0.0
    """Seconds in all."""


def evaluate_reconstruction(
    models: Sequence[tuple[str, Any]],
    data: Path | str,
    out: Path | str,
    *,
    split: Split = "held-out",
    pictures: int = 400,
    size: int | None = None,
    perceptual: Any = None,
    judge: Judge | Path | str | None = None,
    decoder: Any = None,
    seed: int = 0,
    batch: int = 16,
    sheet: int = 18,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure first stages on the same pictures; write results.json, results.md, pictures.jsonl, reconstructions.png.

    Args:
        models: names and autoencoders (`opening.open_autoencoder`), on one device.
        data: shards, or a folder of pictures; of its `split`, so many `pictures`, drawn by `seed`.
        size: pixels a side; what the first picture has, at most 256 and a multiple of all factors, if none.
        perceptual: a distance forward(first, second (B, 3, H, W) in [-1, 1]) -> (B,) with a `name`, or none.
        judge: whose features the Fréchet distance is of: one, its folder, or the one that ships with diptych.
        decoder: a tiny decoder, to be compared with that of the one model there is.
        batch: pictures at a time. sheet: how many the contact sheet shows.

    Returns:
        What results.json holds: settings, and a row for each model; means come with their standard errors.

    Raises:
        UserError: no such pictures, fewer than two, or of a size that a model cannot halve.
    """
    out, console = Path(out), console or terminal.console()
    if decoder is not None and len(models) != 1:
        raise UserError("a tiny decoder is compared with that of one model: give one --model")
    if len({name for name, _ in models}) < len(models):
        raise UserError("a model is named twice: name each once")
    judge = judge if isinstance(judge, Judge) else load_judge(Path(judge) if judge else None)
    unit = math.lcm(*(model.config.factor for _, model in models))
    if size is None:
        size = side_of(open_dataset(DataConfig(path=str(data), split=split), captions=False)) // unit * unit
    if size % unit or size < WINDOW:
        raise UserError(f"the size must be a multiple of {unit} and at least {WINDOW}, not {size}: set --size")
    _, examples = drawn(data, split, size, pictures, seed, captions=False)
    originals = [Image.fromarray(example.picture) for example in examples]
    found = [Rebuilt(name, described(model)) for name, model in models]
    head = {
        "evaluation": "reconstruction",
        "models": {one.name: one.told for one in found}
        | ({} if decoder is None else {"tiny decoder": fingerprint(decoder)}),
        "judge": judge.fingerprint(),
        "perceptual": None if perceptual is None else perceptual.name,
        "data": {"name": Path(data).name, "manifest": manifest_hash(Path(data)), "split": split},
        "settings": {"pictures": [example.key for example in examples], "size": size, "seed": seed},
    }
    writes = ("results.json", "results.md", "pictures.jsonl", "reconstructions.png")
    if (done := claimed(out, head, writes)) is not None:
        show(done, out, console)
        return done
    if decoder is not None:
        parameters = sum(p.numel() for p in decoder.parameters())
        told = {"fingerprint": fingerprint(decoder), "parameters": parameters}
        found.append(Rebuilt(f"{models[0][0]}, tiny decoder", {**found[0].told, "decoder": told}))
    with bar() as progress:
        task = progress.add_task("reconstructing", total=len(models) * len(originals))
        for row, (_, model) in zip(found, models, strict=False):
            decoders = [(row, model)] if decoder is None else [(row, model), (found[-1], decoder)]
            for start in range(0, len(originals), batch):
                rebuild(model, decoders, originals[start : start + batch], again=start == 0)
                progress.advance(task, len(originals[start : start + batch]))
    rows: list[dict[str, Any]] = []
    shown: list[tuple[str, list[Image.Image], list[dict[str, float]]]] = []
    device = next(models[0][1].parameters()).device
    measure = measuring(judge, None if perceptual is None else perceptual.to(device), batch, device)
    for one in found:
        measured, each = measure(originals, one.images)
        row = {"name": one.name, **one.told, **measured, **codebook(one.uses)}
        row["milliseconds"] = {
            k: 1000 * v / len(originals) for k, v in (("encode", one.encoding), ("decode", one.decoding))
        }
        if "decoder" in one.told:
            row["of_teacher"], _ = measure(found[0].images, one.images)
            row["times_as_fast"] = found[0].decoding / one.decoding
        rows.append(row)
        shown.append((one.name, one.images, each))
    results = {
        "data": {"name": Path(data).name, "manifest": manifest_hash(Path(data)), "split": split},
        "settings": {"pictures": len(originals), "size": size, "seed": seed, "batch": batch}
        | {"device": str(device), "threads": torch.get_num_threads()},
        "latents": "KL: the mean of the posterior; VQ: the nearest entries of the codebook",
        "frechet": {"features": "judge", "judge": judge.fingerprint(), "pictures": "originals and reconstructions"},
        "perceptual": None if perceptual is None else perceptual.name,
        "models": rows,
    }
    lines = [
        json.dumps({"model": name, "key": example.key, **values}, ensure_ascii=False) + "\n"
        for name, _, each in shown
        for example, values in zip(examples, each, strict=True)
    ]
    write_text(out / "pictures.jsonl", "".join(lines))
    save_png(page(originals, shown, [example.captions[0] for example in examples], sheet), out / "reconstructions.png")
    write_text(out / "results.json", json.dumps(results, indent=2) + "\n")  # last: it says that the rest is there
    show(results, out, console)
    return results


def show(results: dict[str, Any], out: Path, console: Console) -> None:
    """Print the tables, and keep them as results.md."""
    found = list(tables(results))
    write_tables(out / "results.md", 200, *found)
    for table in found:
        console.print(table)
    console.print(f"the table, every picture's numbers and a contact sheet are in {out}")


def side_of(dataset: PictureDataset) -> int:
    """The shorter side of the first picture that can be read, at most `LARGEST`."""
    for index in range(min(len(dataset), 64)):
        try:
            return min(*dataset.sides(index), LARGEST)
        except Exception:  # a broken one is set aside when it is read
            continue
    raise UserError(f"{dataset.config.path}: none of the first pictures can be read")


def described(model: Any) -> dict[str, Any]:
    """Which first stage it is."""
    c = model.config
    told = {"fingerprint": fingerprint(model), "parameters": sum(p.numel() for p in model.parameters())}
    return {**told, "kind": "KL" if c.codebook is None else "VQ", "factor": c.factor, "channels": c.latent_channels}


@torch.inference_mode()
def rebuild(model: Any, decoders: Sequence[tuple[Rebuilt, Any]], pictures: list[Image.Image], again: bool) -> None:
    """Encode some pictures, and decode them by each of the decoders. `again`: once before the clock runs, too."""
    parameter = next(model.parameters())
    x = to_tensor(pictures).to(parameter)  # (B, 3, H, W)
    if again:
        model.moments(x)
    latents, seconds = timed(lambda: model.encode(x).mean, parameter.device)
    for place, (row, decoder) in enumerate(decoders):
        if again:
            decoder.decode(latents)
        made, row_seconds = timed(lambda decoder=decoder: decoder.decode(latents), parameter.device)
        row.images += to_images(made)
        row.encoding, row.decoding = row.encoding + seconds, row.decoding + row_seconds
        if not place and model.config.codebook is not None:
            counted = torch.bincount(model.quantise.indices(latents).flatten(), minlength=model.config.codebook).cpu()
            row.uses = counted if row.uses is None else row.uses + counted


def timed(run: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    """What `run` gives, and in how many seconds."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    result = run()
    wait()
    return result, time.perf_counter() - began


Measure = Callable[[list[Image.Image], list[Image.Image]], tuple[dict[str, Any], list[dict[str, float]]]]


def measuring(judge: Judge, perceptual: Any, batch: int, device: torch.device) -> Measure:
    """From pictures and what was made of them to the means over all, and the numbers of each."""

    @torch.inference_mode()
    def measure(real: list[Image.Image], made: list[Image.Image]) -> tuple[dict[str, Any], list[dict[str, float]]]:
        each = [{"psnr": psnr(a, b), "ssim": ssim(a, b)} for a, b in zip(real, made, strict=True)]
        for start in range(0, len(real), batch):
            if perceptual is None:
                break
            part = slice(start, start + batch)
            pairs = (to_tensor(images[part]).to(device) for images in (real, made))
            for values, apart in zip(each[part], perceptual(*pairs).tolist(), strict=True):
                values["perceptual"] = apart
        means = {name: Mean.of(torch.tensor([values[name] for values in each]))._asdict() for name in each[0]}
        features = [judge.features(images).numpy() for images in (real, made)]
        return {**means, "frechet": frechet_distance(features[0], features[1])}, each

    return measure


def codebook(uses: Tensor | None) -> dict[str, Any]:
    """How a codebook is used: by how many positions, which share of its entries, and their perplexity.

    That is exp of the entropy of the shares that the entries have in all positions: as many as would be in use if all
    of these were so equally.
    """
    if uses is None:
        return {}
    shares = uses[uses > 0].double() / uses.sum()
    told = {"entries": len(uses), "positions": int(uses.sum()), "used": float((uses > 0).double().mean())}
    return {"codebook": {**told, "perplexity": float(torch.exp(-(shares * shares.log()).sum()))}}
