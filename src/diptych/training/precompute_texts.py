"""Embeddings of captions computed once and kept on disk, for pixel models, whose images are read as they are.

A folder holds them in parts, each of an equal range of hashes, and `config.json`, which says how large each part is and
which text encoder they come from. Any number of processes share the work; each is in memory one part at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.core.disk import Written, remove, values_of
from diptych.data.dataset import ImageDataset
from diptych.encoders.base import TextEncoder
from diptych.encoders.cache import encoder_fingerprint
from diptych.encoders.text_store import STEM
from diptych.training import precompute as parts
from diptych.training.distributed import Team
from diptych.training.precompute_folder import LOOSE, agreed, contents_of, made_once, missing_parts
from diptych.training.precomputed import caption_tensors
from diptych.weights.part_files import part_name
from diptych.weights.save import save_safetensors

TEXTS = "texts"
"""What is kept, as `asked.json` says."""
OF_IMAGES = (
    *("size", "max_size", "crop", "center_shift", "bucket_step", "bucket_aspect", "flip"),
    *LOOSE,
)
"""Fields of the data that do not decide which captions there are."""

PRECOMPUTED_TEXTS = Written(
    "precomputed texts",
    ("config.json", "asked.json", f"{STEM}-*.safetensors"),
    lambda folder: {TEXTS, "examples"} == values_of(folder / "config.json").keys(),
)


def precompute_texts(datasets: dict[str, ImageDataset], text: TextEncoder, out: Path, team: Team) -> Path:
    """Write the embeddings of every caption of these datasets (by split), and of the empty one, into the folder `out`.

    As `precompute`: the same call resumes after an interruption, does nothing where `out` is made of the same, and
    embeds what is new where the data have grown. Raises a `UserError` where `out` holds anything but precomputed texts,
    or another run is at it.
    """

    def asked() -> dict[str, Any]:
        data = {split: contents_of(dataset, OF_IMAGES) for split, dataset in datasets.items()}
        return {"precompute": TEXTS, "part": parts.PART, "text": encoder_fingerprint(text), "data": data}

    def make(work: Path, asked: dict[str, Any]) -> dict[str, Any]:
        sources = [(f"captions-{split}", read_captions(datasets[split], work, split, team)) for split in datasets]
        agreed(team)  # all captions are there
        texts = parts.embed_captions(text, sources, out, work, team)
        if team.main:
            for stem, count in sources:
                for number in range(count):
                    remove(work / part_name(stem, number))
        return {"examples": {split: len(dataset) for split, dataset in datasets.items()}, TEXTS: texts}

    return made_once(out, PRECOMPUTED_TEXTS, team, asked, make)


def read_captions(dataset: ImageDataset, work: Path, split: str, team: Team) -> int:
    """The captions of a data set, in parts of `PART` examples, each caption once; returns how many parts that makes.
    Those that are in `work` already are not read again, and each process reads its share of the others."""
    stem, count, size = f"captions-{split}", -(-len(dataset) // parts.PART), parts.PART
    mine = team.share(missing_parts(work, stem, count, team))
    with parts.showing(team) as progress:
        task = progress.add_task(f"reading captions ({split})", total=len(dataset))
        progress.reached(task, max(0, len(dataset) - team.size * size * len(mine)))
        for number in mine:
            captions, rows = set[str](), range(number * size, min((number + 1) * size, len(dataset)))
            for first in range(0, len(rows), parts.BATCH):
                some = rows[first : first + parts.BATCH]
                captions.update(dataset.all_captions(some))
                progress.advance(task, len(some) * team.size)
            texts = sorted(captions)
            save_safetensors(caption_tensors(texts), work / part_name(stem, number))
    return count
