"""Latents or codes and text embeddings computed once and kept on disk, so that training reads them and nothing else.

A folder holds, for each split, the examples in parts of `PART`: latents (the encoder's moments, so that posteriors are
still sampled freshly) or codes (of a VQ), captions and keys; the embeddings of all captions, in parts too; and
`config.json`, which says how large each part is and which autoencoder and text encoder they come from. Any number of
processes share the work; each is in memory one part at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.core.disk import Written, values_of
from diptych.core.errors import UserError
from diptych.core.progress import bar
from diptych.data.dataset import ImageDataset
from diptych.data.stream import EachImage
from diptych.encoders.base import TextEncoder, network_of
from diptych.encoders.cache import EmbeddedTexts, by_length, encoder_fingerprint
from diptych.encoders.cache_part import CachePart, read_precomputed
from diptych.encoders.frozen import FrozenText
from diptych.encoders.text_store import STEM, save_part
from diptych.networks.autoencoder import Autoencoder
from diptych.training.distributed import Team
from diptych.training.precision import autocast
from diptych.training.precompute_folder import TEXTS, agreed, contents_of, made_once, missing_parts, sizes_of, take_over
from diptych.training.precomputed import FLIPPED, NAMES, Kept, PrecomputedLatents, part_tensors, precomputed_splits
from diptych.training.prefetch import prefetched
from diptych.training.training_config import TrainingConfig
from diptych.weights.files import load_safetensors
from diptych.weights.fingerprint import fingerprint
from diptych.weights.packed_texts import PackedTexts, buckets_of, text_hashes
from diptych.weights.part_files import part_name
from diptych.weights.save import save_safetensors

__all__ = ["EmbeddedTexts", "Kept", "PrecomputedLatents", "precompute", "precomputed_splits", "read_precomputed"]

BATCH = 64
PART = 16 * BATCH
"""Images, or about so many captions, of a part: what an interruption of a process loses at most."""
ALONE = TrainingConfig(workers=0)
"""Images are decoded when they are needed."""
GATHERED = 256
"""Parts of captions that are gathered from the examples at a time."""
PRECOMPUTED = Written(
    "precomputed data",
    ("config.json", "asked.json", *(f"{name}-*.safetensors" for name in (*NAMES, STEM)), "examples-*.json", *TEXTS),
    lambda folder: {"autoencoder", "examples"} <= values_of(folder / "config.json").keys(),
)


def encode(autoencoder: Autoencoder, images: Tensor, kept: Kept) -> Tensor:
    """What is kept of images (B, 3, H, W), on their device: (B, moment_channels, h, w) float16 or (B, h, w) of a small
    integer."""
    if kept == "latents":
        return autoencoder.moments(images).half()
    small = (autoencoder.config.codebook or 0) <= 2**15
    return autoencoder.codes(images).to(torch.int16 if small else torch.int32)


def precompute(
    datasets: dict[str, ImageDataset],
    autoencoder: Autoencoder,
    text: TextEncoder | None,
    out: Path,
    device: torch.device,
    kept: Kept = "latents",
    team: Team | None = None,
    settings: TrainingConfig = ALONE,
    bf16: bool = False,
    fitted: str | None = None,
) -> Path:
    """Write everything that training reads of these datasets (by split) into the folder `out`.

    The work is done in parts, in a folder next to `out` which becomes `out` when all are there: the same call resumes
    with the parts that are missing after an interruption, and does nothing where `out` is made of the same. team: the
    processes that share the work; all call this with the same arguments. settings: how many workers decode images
    ahead. bf16: whether the autoencoder runs in bfloat16. fitted: the fingerprint of the encoder to whose limit
    captions are cut, where none embeds them. Raises a `UserError` where `out` holds anything but precomputed data, or
    another run is at it.
    """
    team = team or Team(0, 1, device)

    def asked() -> dict[str, Any]:
        return {
            "precompute": kept,
            "part": PART,
            "autoencoder": fingerprint(autoencoder),
            "precision": "bf16" if bf16 else "fp32",
            "text": None if text is None else encoder_fingerprint(text),
            **({} if fitted is None else {"captions": fitted}),
            "data": {split: contents_of(dataset) for split, dataset in datasets.items()},
        }

    def make(work: Path, asked: dict[str, Any]) -> dict[str, Any]:
        take_over(out, work, asked, team)
        for split, dataset in datasets.items():
            encode_dataset(dataset, autoencoder, device, kept, work, split, team, settings, bf16)
        agreed(team)  # all parts are there
        stated: dict[str, Any] = {key: asked[key] for key in ("autoencoder", "captions") if key in asked}
        counts = {split: len(dataset) for split, dataset in datasets.items()}
        return stated | parts_stated(kept, counts, PART, text, out, work, team)

    return made_once(out, PRECOMPUTED, team, asked, make)


def parts_stated(
    kept: Kept, counts: dict[str, int], size: int, text: TextEncoder | None, out: Path, work: Path, team: Team
) -> dict[str, Any]:
    """What `config.json` says of the parts in `work`, of `size` examples each, `counts` in all by split; their captions
    are embedded, where there is an encoder for them."""
    sizes = {split: sizes_of(work, f"{kept}-{split}", -(-count // size)) for split, count in counts.items()}
    stated: dict[str, Any] = {"examples": counts, "parts": {"size": size, "bytes": sizes}}
    if text is not None:
        sources = [(f"{kept}-{split}", len(sizes[split])) for split in counts]
        stated["texts"] = embed_captions(text, sources, out, work, team)
    return stated


@torch.no_grad()
def encode_dataset(
    dataset: ImageDataset,
    autoencoder: Autoencoder,
    device: torch.device,
    kept: Kept,
    work: Path,
    split: str,
    team: Team,
    settings: TrainingConfig = ALONE,
    bf16: bool = False,
) -> None:
    """What is kept of every image, with captions and keys, in parts; those that are in `work` already are not made
    again, and each process makes its share of the others.

    Where images are flipped, what is kept of each one's mirror image too, as an encoder's latents are not the
    mirrored ones. A part is written while the next one is encoded: two are in memory.
    """
    autoencoder.to(device).eval()
    name, stem, within = NAMES[kept][0], f"{kept}-{split}", autocast(bf16, device)
    parts = [range(start, min(start + PART, len(dataset))) for start in range(0, len(dataset), PART)]
    mine = team.share(missing_parts(work, stem, len(parts), team))

    pieces = (
        list(parts[number][first : first + BATCH]) for number in mine for first in range(0, len(parts[number]), BATCH)
    )
    with (
        contextlib.closing(prefetched(EachImage(dataset), pieces, settings, device)) as batches,
        showing(team) as progress,
        writing() as write,
    ):
        task = progress.add_task(f"encoding images ({split})", total=len(dataset))
        progress.reached(task, max(0, len(dataset) - team.size * sum(len(parts[number]) for number in mine)))
        for number in mine:
            tensors: dict[str, list[Tensor]] = {}
            captions, keys = [], []
            while len(keys) < len(parts[number]):
                batch = next(batches)
                images = batch["picture"]
                with within():
                    tensors.setdefault(name, []).append(encode(autoencoder, images, kept))
                    if dataset.config.flip:
                        tensors.setdefault(name + FLIPPED, []).append(encode(autoencoder, images.flip(-1), kept))
                captions += batch["captions"]
                keys += batch["key"]
                progress.advance(task, len(images) * team.size)
            dataset.quarantine.check()  # also where the last image is whole
            joined = {key: torch.cat(some).cpu() for key, some in tensors.items()}  # until here a GPU is not waited for
            write(save_examples, joined, captions, keys, work / part_name(stem, number))


def save_examples(tensors: dict[str, Tensor], captions: list[list[str]], keys: list[str], path: Path) -> None:
    """Write a part of the examples."""
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise UserError(f"the autoencoder gives NaN or Inf for images from {keys[0]} to {keys[-1]}")
    hashes = text_hashes(caption for row in captions for caption in row)
    save_safetensors(tensors | part_tensors(captions, keys, hashes), path)


@contextlib.contextmanager
def writing() -> Iterator[Callable[..., None]]:
    """A function that runs another one in a thread, once what it was given before is done; its errors come with the
    next call, or at the end."""
    last: list[Future[None]] = []
    with ThreadPoolExecutor(1, "write") as thread:

        def write(work: Callable[..., None], *given: Any) -> None:
            while last:
                last.pop().result()
            last.append(thread.submit(work, *given))

        yield write
        while last:
            last.pop().result()


@contextlib.contextmanager
def showing(team: Team) -> Iterator[Any]:
    """A progress bar of the main process, which counts what all do as if all were as quick."""
    with bar() if team.main else contextlib.nullcontext(Unseen()) as progress:
        yield progress


class Unseen:
    """In place of a progress bar."""

    def add_task(self, description: str, total: int) -> int:
        return 0

    def advance(self, task: int, steps: int) -> None: ...

    def reached(self, task: int, steps: int) -> None: ...


@torch.no_grad()
def embed_captions(
    text: TextEncoder, examples: Sequence[tuple[str, int]], folder: Path, work: Path, team: Team
) -> dict[str, Any]:
    """Every caption of the parts of examples (stem, number of parts) in `work`, and the empty one, embedded, each part
    of an equal range of hashes; returns what `config.json` says of them. What an earlier run left in `folder`, or an
    interrupted one in `work`, is not embedded again."""
    known: EmbeddedTexts | None = None
    with contextlib.suppress(UserError):  # none, damaged, or of another encoder: made again
        known = EmbeddedTexts.load(text, folder)
    if (network := network_of(text)) is not None:
        network.to(team.device)
    sources = [work / part_name(stem, number) for stem, count in examples for number in range(count)]
    total = sum(len(load_safetensors(path, check_finite=False)["hashes"]) for path in sources)
    count = max(1, -(-total // PART))
    mine = team.share(missing_parts(work, STEM, count, team))
    with showing(team) as progress:
        task = progress.add_task("embedding captions", total=count)
        progress.reached(task, max(0, count - len(mine) * team.size))
        for start in range(0, len(mine), GATHERED):
            for number, captions in gathered(sources, mine[start : start + GATHERED], count):
                save_part(work / part_name(STEM, number), *embedded(captions, text, known))
                progress.advance(task, team.size)
    agreed(team)
    return {"encoder": encoder_fingerprint(text), "bytes": sizes_of(work, STEM, count)}


def embedded(captions: Sequence[str], text: TextEncoder, known: EmbeddedTexts | None) -> CachePart:
    """The embeddings of captions: of those that are known as they are, of others by the encoder, which keeps nothing in
    memory. On a GPU it takes a batch in one pass."""
    missing = set(captions) if known is None else set(known.missing(captions))
    batches = list[CachePart]()
    for encoder, some in ((text, missing), (known, set(captions) - missing)):
        if isinstance(encoder, EmbeddedTexts) and encoder is text and some:  # built when it is needed
            encoder = encoder.encoder
        if isinstance(encoder, FrozenText):
            encoder.online = True
        order = by_length(some)
        for first in range(0, len(order), BATCH):
            assert encoder is not None
            batch = order[first : first + BATCH]
            batches.append(CachePart.of(batch, encoder.encode(batch)))
    return CachePart.join(batches) if batches else CachePart([], torch.empty(0, text.width).half(), [], None)


def gathered(sources: Sequence[Path], numbers: Sequence[int], count: int) -> Iterator[tuple[int, list[str]]]:
    """The captions of some of `count` equal ranges of hashes, from parts of examples, with the number of each range."""
    wanted = np.zeros(count, dtype=bool)
    wanted[numbers] = True
    found: dict[int, dict[int, str]] = {number: {} for number in numbers}
    for path in sources:
        tensors = load_safetensors(path, check_finite=False)
        hashes = tensors["hashes"].numpy().view(np.uint64)
        buckets, texts = buckets_of(hashes, count), PackedTexts.read(tensors, "captions")
        for row in np.nonzero(wanted[buckets])[0].tolist():
            some, hashed = found[int(buckets[row])], int(hashes[row])
            if hashed not in some:
                some[hashed] = texts[row]
    empty = int(buckets_of(text_hashes([""]), count)[0])
    for number in numbers:
        captions = set(found.pop(number).values())
        yield number, [*captions, *([""] if number == empty else [])]
