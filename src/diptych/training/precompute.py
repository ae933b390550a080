"""Latents or codes and text embeddings computed once and kept on disk, so that training reads them and nothing else.

A folder holds, for each split, latents (the encoder's moments, so that posteriors are still sampled freshly) or codes
(of a VQ), `text.safetensors` (every caption's tokens, end to end), `captions.json` and `config.json`. Hashes say which
autoencoder and text encoder they come from.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diptych.core.disk import Written, make_folder, remove, replacing, sweep, values_of, write_text
from diptych.core.errors import UserError
from diptych.core.progress import bar
from diptych.data.augment import flipped
from diptych.data.dataset import ImageDataset, fit_captions
from diptych.data.paths import walk
from diptych.data.stream import SampleStream, collate, texts
from diptych.encoders.base import TextEncoder
from diptych.encoders.cache import CachePart, EmbeddedTexts, by_length, encoder_fingerprint, read_precomputed
from diptych.networks.autoencoder import Autoencoder
from diptych.weights.files import load_safetensors
from diptych.weights.fingerprint import fingerprint
from diptych.weights.save import join_safetensors, save_safetensors

__all__ = ["EmbeddedTexts", "PrecomputedLatents", "precompute", "precomputed_splits", "read_precomputed"]

BATCH = 64
PART = 16 * BATCH
"""Images, or captions, of a part: what an interruption loses at most."""
Kept = Literal["latents", "codes"]
"""What is kept of an image: the encoder's moments in half precision, or the codes of a VQ."""
NAMES = {"latents": ("moments", "latent"), "codes": ("codes", "codes")}
"""How it is called in its file, and in a batch."""
TEXTS = ("text.safetensors", "captions.json")
FLIPPED = "_flipped"
"""Behind that name in its file: the same of the mirror images."""


PRECOMPUTED = Written(
    "precomputed data",
    ("config.json", "latents-*.safetensors", "codes-*.safetensors", "examples-*.json", *TEXTS),
    lambda folder: {"autoencoder", "examples"} <= values_of(folder / "config.json").keys(),
)
UNFINISHED = Written(
    "unfinished work of `diptych precompute`",
    ("asked.json", "*-*.safetensors", "*-*.json", *(f"text-*/{name}" for name in TEXTS)),
    lambda folder: "precompute" in values_of(folder / "asked.json"),
)


def encode(autoencoder: Autoencoder, images: Tensor, kept: Kept) -> Tensor:
    """What is kept of images (B, 3, H, W): (B, moment_channels, h, w) float16 or (B, h, w) of a small integer."""
    if kept == "latents":
        return autoencoder.moments(images).to("cpu", torch.float16)
    small = (autoencoder.config.codebook or 0) <= 2**15
    return autoencoder.codes(images).to("cpu", torch.int16 if small else torch.int32)


def precompute(
    datasets: dict[str, ImageDataset],
    autoencoder: Autoencoder,
    text: TextEncoder | None,
    out: Path,
    device: torch.device,
    kept: Kept = "latents",
) -> Path:
    """Write everything that training reads of these datasets (by split) into the folder `out`.

    The work is written in parts, so that memory does not grow with the data, into a folder next to `out`: the same call
    resumes behind the last part after an interruption, and nothing is at `out` before all is. Raises a `UserError`
    where `out` holds anything but precomputed data, or another process is at it.
    """
    PRECOMPUTED.require(out)
    asked = {
        "precompute": kept,
        "autoencoder": fingerprint(autoencoder),
        "text": None if text is None else encoder_fingerprint(text),
        "data": {split: contents_of(dataset) for split, dataset in datasets.items()},
    }
    with unfinished(out, asked) as work:
        parts, rows = {}, {}
        for split, dataset in datasets.items():
            parts[split] = encode_dataset(dataset, autoencoder, device, kept, work, split)
            examples = [read_precomputed(part.with_suffix(".json")) for part in parts[split]]
            rows[split] = {key: [row for some in examples for row in some[key]] for key in ("captions", "keys")}
        captions = [caption for split in rows.values() for row in split["captions"] for caption in row]
        texts = [] if text is None else embed_captions(text, captions, out, work)
        with replacing(out, PRECOMPUTED) as partial:
            partial.mkdir()
            for split in datasets:
                join_safetensors(parts[split], partial / f"{kept}-{split}.safetensors")
                write_text(partial / f"examples-{split}.json", json.dumps(rows[split]))
            if text is not None:
                join_parts(texts, partial, str(asked["text"]), text.width)
            counts = {split: len(found["keys"]) for split, found in rows.items()}
            config = {"autoencoder": asked["autoencoder"], "examples": counts}
            write_text(partial / "config.json", json.dumps(config, indent=2) + "\n")
    return out


@contextlib.contextmanager
def unfinished(out: Path, asked: dict[str, Any]) -> Iterator[Path]:
    """The folder in which work on `out` is kept until it is finished, with what an earlier call left of the same work;
    it goes afterwards, and stays when the work is broken off. Held by a lock."""
    place = Path(os.path.realpath(out))
    work = place.with_name(f".{place.name}.unfinished")
    if work.is_dir():
        sweep(work)
    UNFINISHED.require(work)
    make_folder(work)
    descriptor = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is precomputing {out}: wait for it, or name another folder") from None
        if values_of(work / "asked.json") != asked:
            for path in work.iterdir():  # of other data, or of another model
                remove(path)
            write_text(work / "asked.json", json.dumps(asked, indent=2) + "\n")
        yield work
        if UNFINISHED.foreign(work) is None:
            remove(work)
    finally:
        os.close(descriptor)


def contents_of(dataset: ImageDataset) -> str:
    """A hash of what decides what is kept of a data set: how it is read, and the files that it lies in."""
    path, digest = Path(dataset.config.path), hashlib.sha256(json.dumps(dataset.config.to_dict()).encode())
    for file in sorted(walk(path, {}) if path.is_dir() else [path]):  # as it is read: links to folders are followed
        if file.name != "quarantine.jsonl":
            stat = file.stat()
            digest.update(f"{os.fsencode(file.relative_to(path))} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@torch.no_grad()
def encode_dataset(
    dataset: ImageDataset, autoencoder: Autoencoder, device: torch.device, kept: Kept, work: Path, split: str
) -> list[Path]:
    """What is kept of every image, in parts: of each a file of tensors, and captions and keys as JSON.
    Those that are in `work` already are not made again.

    Where images are flipped, what is kept of each one's mirror image too, as an encoder's latents are not the
    mirrored ones.
    """
    autoencoder.to(device).eval()
    name, found = NAMES[kept][0], []
    with bar() as progress:
        task = progress.add_task(f"encoding images ({split})", total=len(dataset))
        for number, start in enumerate(range(0, len(dataset), PART)):
            path = work / f"{split}-{number:06d}.safetensors"
            found.append(path)
            indices = range(start, min(start + PART, len(dataset)))
            if path.is_file() and path.with_suffix(".json").is_file():  # both whole: they are renamed to their places
                progress.reached(task, indices.stop)
                continue
            tensors: dict[str, list[Tensor]] = {}
            captions, keys = [], []
            for first in indices[::BATCH]:
                examples = [dataset[index] for index in range(first, min(first + BATCH, indices.stop))]
                images = collate(examples, [0] * len(examples))["picture"].to(device)
                tensors.setdefault(name, []).append(encode(autoencoder, images, kept))
                if dataset.config.flip:
                    tensors.setdefault(name + FLIPPED, []).append(encode(autoencoder, images.flip(-1), kept))
                captions += [list(example.captions) for example in examples]
                keys += [example.key for example in examples]
                progress.advance(task, len(examples))
            joined = {key: torch.cat(parts) for key, parts in tensors.items()}
            if not all(torch.isfinite(tensor).all() for tensor in joined.values()):
                raise UserError(f"the autoencoder gives NaN or Inf for images from {keys[0]} to {keys[-1]}")
            write_text(path.with_suffix(".json"), json.dumps({"captions": captions, "keys": keys}))
            save_safetensors(joined, path)
    return found


def embed_captions(text: TextEncoder, captions: list[str], folder: Path, work: Path) -> list[Path]:
    """Every caption, and the empty one, embedded, in folders of a part each; what an earlier run left in `folder`, or
    an interrupted one in `work`, is not embedded again."""
    answers: TextEncoder = text
    if (folder / "captions.json").is_file():
        with contextlib.suppress(UserError):  # damaged, or of another encoder: made again
            answers = EmbeddedTexts.load(text, folder)
    prompts, found = by_length([*captions, ""]), []
    with bar() as progress:
        task = progress.add_task("embedding captions", total=len(prompts))
        for number, start in enumerate(range(0, len(prompts), PART)):
            some, path = prompts[start : start + PART], work / f"text-{number:06d}"
            found.append(path)
            if not path.is_dir():
                batches = []
                for first in range(0, len(some), BATCH):
                    batch = some[first : first + BATCH]
                    batches.append(CachePart.of(batch, answers.encode(batch)))
                    progress.advance(task, len(batch))
                with replacing(path) as partial:
                    partial.mkdir()
                    CachePart.join(batches).save(partial, encoder_fingerprint(text))
            progress.reached(task, start + len(some))
    return found


def join_parts(folders: list[Path], out: Path, encoder: str, width: int) -> None:
    """All the prompts of several parts, and their embeddings, as one."""
    if any(CachePart.load(folder, width).pooled is not None for folder in folders):  # then all need their own
        for folder in folders:
            part = CachePart.load(folder, width)
            if part.pooled is None:
                part._replace(pooled=part.means()).save(folder, encoder)
    join_safetensors(
        [folder / "text.safetensors" for folder in folders], out / "text.safetensors", {"encoder": encoder}
    )
    prompts = [prompt for folder in folders for prompt in read_precomputed(folder / "captions.json")]
    write_text(out / "captions.json", json.dumps(prompts))


def precomputed_splits(folder: Path) -> list[str]:
    """The splits that a precomputed folder holds. Raises a `UserError` where there is none."""
    if not (folder / "config.json").is_file():
        raise UserError(f"no precomputed latents in {folder}: make them with `diptych precompute`")
    return list(read_precomputed(folder / "config.json")["examples"])


class PrecomputedLatents:
    """One split of a precomputed folder, as batches of stream positions; `flip`: with what probability mirrored."""

    def __init__(
        self,
        folder: Path,
        split: str,
        seed: int,
        autoencoder: Autoencoder,
        kept: Kept = "latents",
        flip: float = 0.0,
    ) -> None:
        splits = precomputed_splits(folder)
        if read_precomputed(folder / "config.json")["autoencoder"] != fingerprint(autoencoder):
            raise UserError(f"{folder} was made with another autoencoder: make it again with `diptych precompute`")
        if split not in splits:
            raise UserError(f"{folder} has no split {split!r}: choose one of {', '.join(splits)}")
        name, self.key = NAMES[kept]
        tensors = load_safetensors(folder / f"{kept}-{split}.safetensors")
        if flip and name + FLIPPED not in tensors:
            raise UserError(
                f"{folder} was made without data.flip: make it again with `diptych precompute`, or leave it 0"
            )
        self.flip, self.stored = flip, tensors[name]
        self.mirrored = tensors.get(name + FLIPPED, self.stored)
        examples = read_precomputed(folder / f"examples-{split}.json")
        self.captions, self.keys, self.seed = examples["captions"], examples["keys"], seed
        self.places = list(range(len(self.keys)))
        self.stream = SampleStream(len(self.places), seed)

    def fit_captions(self, fit: Callable[[str], str], long_captions: str) -> dict[str, str]:
        """Let captions be as a reader reads them; what does not fit is cut or left out, as `DataConfig.long_captions`
        says. Returns what was changed or left out: keys, and why. Raises a `UserError` where nothing is left."""
        changed: dict[str, str] = {}
        for place in self.places:
            key = self.keys[place]
            kept, why = fit_captions(self.captions[place], fit, long_captions)
            if why:
                changed[key] = why
            self.captions[place] = kept
        self.places = [place for place in self.places if self.captions[place]]
        if not self.places:
            raise UserError(f"no example is left ({next(iter(changed.values()))})")
        self.stream = SampleStream(len(self.places), self.seed)
        return changed

    def __call__(self, positions: list[int]) -> dict[str, Any]:
        drawn, seeds = self.stream.at(positions)
        places = [self.places[index] for index in drawn.tolist()]
        at = torch.tensor(places)
        gathered = self.stored.index_select(0, at)
        if self.flip:
            mirrored = torch.tensor([flipped(self.flip, seed) for seed in seeds.tolist()])
            gathered[mirrored] = self.mirrored.index_select(0, at[mirrored])
        return {
            self.key: gathered,
            **texts([self.captions[place] for place in places], [self.keys[place] for place in places], seeds),
        }
