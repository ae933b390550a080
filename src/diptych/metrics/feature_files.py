"""Features on disk, computed once: what was interrupted goes on, and 30,000 images never fill the memory."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diptych.core.caches import cache_folder, short_hash
from diptych.core.disk import disk_errors, make_folder, values_of, write_text
from diptych.core.errors import UserError
from diptych.core.folder_lock import locked
from diptych.core.progress import bar
from diptych.core.terminal import print_err
from diptych.metrics.feature_networks import FeatureNetwork
from diptych.metrics.feature_rows import FeatureRowsFile
from diptych.metrics.image_set import ImageSet, set_sha256

FORMAT = 1
"""Of what is written, and of how images are read: features of another one are computed anew."""
DIGEST = 32
"""Bytes of the hash of an image."""


@dataclass(frozen=True)
class Features:
    """The features of a set."""

    values: FeatureRowsFile
    """(N, D) float32."""
    sha256: str
    """Of the pixels of all images, in whatever order: two sets of the same images have the same."""

    def __len__(self) -> int:
        return len(self.values)


def extract(images: ImageSet, network: FeatureNetwork, batch: int = 32, folder: Path | None = None) -> Features:
    """The features of all images of a set, read from disk where they were computed before. A line says where they are
    computed anew because images or weights have changed since.

    Args:
        folder: where features are kept; if none, under $DIPTYCH_CACHE/features. A run that is killed goes on there.

    Raises:
        UserError: an image is broken, a feature is not finite, or the disk is full.
    """
    about = {"format": FORMAT, "images": images.identity(), "processing": images.processing.to_dict()}
    about |= network.describe()
    text = json.dumps(about, sort_keys=True)
    kept = folder or cache_folder("features")
    place = kept / short_hash(text)
    say_changed(kept, place, images, network, about["images"])
    with locked(place), disk_errors(place):
        if not (place / "about.json").exists():
            write_text(place / "about.json", text + "\n")
        done = whole_rows(place, network.width, batch, len(images))
        if done < len(images):
            _append(images, network, batch, place, done)
        values = FeatureRowsFile(place / "features.f32", (len(images), network.width))
        digests = np.fromfile(place / "hashes.bin", np.uint8).reshape(-1, DIGEST)[: len(images)]
    return Features(values, set_sha256(row.tobytes() for row in digests))


def say_changed(kept: Path, place: Path, images: ImageSet, network: FeatureNetwork, identity: str) -> None:
    """Say in a line where the set had features of this network before that are not those of today's files, unless
    today's are there too."""
    described = network.describe()
    which = [images.path, images.part(), images.processing.to_dict(), network.kind, described.get("resize")]
    last = kept / f"last-{short_hash(json.dumps(which, sort_keys=True))}.json"
    before, now = values_of(last), {"images": identity, "network": described}
    if before == now:
        return
    if before and not (place / "about.json").exists():
        changed = "its images" if before.get("images") != identity else f"the weights of {network.kind}"
        print_err(f"{images.path}: {changed} changed since its features were computed: they are computed anew")
    with disk_errors(last):
        make_folder(kept)
        write_text(last, json.dumps(now) + "\n")


def whole_rows(place: Path, width: int, batch: int, count: int) -> int:
    """Images of whose batch all was written. What is left of more is cut off: that write was interrupted. The last bits
    of a feature depend on the batch that it is computed in, so that no batch begins elsewhere than in one run."""
    files = ((place / "features.f32", 4 * width), (place / "hashes.bin", DIGEST))
    rows = min(path.stat().st_size // size if path.exists() else 0 for path, size in files)
    rows = count if rows >= count else rows - rows % batch
    for path, size in files:
        if path.exists() and path.stat().st_size != rows * size:
            os.truncate(path, rows * size)
    return rows


def _append(images: ImageSet, network: FeatureNetwork, batch: int, place: Path, done: int) -> None:
    stream = images.stream(done, network.prepare)
    with open(place / "features.f32", "ab") as file, open(place / "hashes.bin", "ab") as hashes, bar() as progress:
        task = progress.add_task(f"{network.kind} features", total=len(images))
        progress.reached(task, done)
        while done < len(images):
            rows = [next(stream) for _ in range(min(batch, len(images) - done))]
            values = network(torch.stack([image for image, _ in rows]))
            if not (finite := torch.isfinite(values).all(1)).all():
                name = images.name(done + int((~finite).nonzero()[0]))
                raise UserError(f"{network.title} gives NaN or Inf for {name} of {images.path}: use other weights")
            file.write(values.numpy().tobytes())
            hashes.write(b"".join(digest for _, digest in rows))
            file.flush()
            hashes.flush()
            done += len(rows)
            progress.advance(task, len(rows))
