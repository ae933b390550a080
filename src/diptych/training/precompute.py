"""Latents or codes and text embeddings computed once and kept on disk, so that training reads them and nothing else.

A folder holds, for each split, latents (the encoder's moments, so that posteriors are still sampled freshly) or codes
(of a VQ), `text.safetensors` (every caption's tokens, end to end), `captions.json` and `config.json`. Hashes say which
autoencoder and text encoder they come from.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diptych.conditioning.cache import EmbeddedTexts
from diptych.conditioning.parts import read_precomputed
from diptych.conditioning.text import TextEncoder
from diptych.data.augment import flipped
from diptych.data.dataset import PictureDataset, fitted_captions
from diptych.data.hashing import mix
from diptych.data.stream import SampleStream, collate
from diptych.disk import replacing, write_text
from diptych.errors import UserError
from diptych.networks.autoencoder import Autoencoder
from diptych.progress import track
from diptych.weights.files import load_safetensors, save_safetensors
from diptych.weights.fingerprint import fingerprint

__all__ = ["EmbeddedTexts", "PrecomputedLatents", "precompute", "precomputed_splits", "read_precomputed"]

BATCH = 64
Kept = Literal["latents", "codes"]
"""What is kept of a picture: the encoder's moments in half precision, or the codes of a VQ."""
NAMES = {"latents": ("moments", "latent"), "codes": ("codes", "codes")}
"""How it is called in its file, and in a batch."""
FLIPPED = "_flipped"
"""Behind that name in its file: the same of the mirror images."""


def encode(autoencoder: Autoencoder, pictures: Tensor, kept: Kept) -> Tensor:
    """What is kept of pictures (B, 3, H, W): (B, moment_channels, h, w) float16 or (B, h, w) of a small integer."""
    if kept == "latents":
        return autoencoder.moments(pictures).to("cpu", torch.float16)
    small = (autoencoder.config.codebook or 0) <= 2**15
    return autoencoder.codes(pictures).to("cpu", torch.int16 if small else torch.int32)


@torch.no_grad()
def encode_dataset(
    dataset: PictureDataset, autoencoder: Autoencoder, device: torch.device, kept: Kept = "latents"
) -> dict[str, Any]:
    """What is kept of every picture, under its name, captions and keys of every example. Where pictures are flipped,
    what is kept of each one's mirror image too, as an encoder's latents are not the mirrored ones."""
    encoded, mirrored, captions, keys = [], [], [], []
    autoencoder.to(device).eval()
    for start in track(range(0, len(dataset), BATCH), "encoding pictures"):
        examples = [dataset[index] for index in range(start, min(start + BATCH, len(dataset)))]
        pictures = collate(examples, [0] * len(examples))["picture"].to(device)
        encoded.append(encode(autoencoder, pictures, kept))
        if dataset.config.flip:
            mirrored.append(encode(autoencoder, pictures.flip(-1), kept))
        captions += [list(example.captions) for example in examples]
        keys += [example.key for example in examples]
    name = NAMES[kept][0]
    found = {name: torch.cat(encoded), "captions": captions, "keys": keys}
    return {**found, name + FLIPPED: torch.cat(mirrored)} if mirrored else found


def precompute(
    datasets: dict[str, PictureDataset],
    autoencoder: Autoencoder,
    text: TextEncoder | None,
    out: Path,
    device: torch.device,
    kept: Kept = "latents",
) -> Path:
    """Write everything that training reads of these datasets (by split) into the folder `out`."""
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        splits: dict[str, int] = {}
        captions: list[str] = []
        for split, dataset in datasets.items():
            encoded, name = encode_dataset(dataset, autoencoder, device, kept), NAMES[kept][0]
            tensors = {key: encoded.pop(key) for key in (name, name + FLIPPED) if key in encoded}
            save_safetensors(tensors, partial / f"{kept}-{split}.safetensors")
            write_text(partial / f"examples-{split}.json", json.dumps(encoded))
            captions += [caption for row in encoded["captions"] for caption in row]
            splits[split] = len(encoded["keys"])
        if text is not None:
            embed_captions(text, captions, out).save(partial)
        config = {"autoencoder": fingerprint(autoencoder), "examples": splits}
        write_text(partial / "config.json", json.dumps(config, indent=2) + "\n")
    return out


def embed_captions(text: TextEncoder, captions: list[str], folder: Path) -> EmbeddedTexts:
    """Every caption embedded; what an earlier run left in `folder` is not embedded again."""
    found = None
    if (folder / "captions.json").is_file():
        with contextlib.suppress(UserError):  # damaged, or of another encoder: made again
            found = EmbeddedTexts.load(text, folder)
    return EmbeddedTexts.compute(text, captions, known=found)


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
            kept, why = fitted_captions(self.captions[place], fit, long_captions)
            if why:
                changed[key] = why
            self.captions[place] = kept
        self.places = [place for place in self.places if self.captions[place]]
        if not self.places:
            raise UserError(f"no example is left ({next(iter(changed.values()))})")
        self.stream = SampleStream(len(self.places), self.seed)
        return changed

    def __call__(self, positions: list[int]) -> dict[str, Any]:
        drawn = [self.stream[position] for position in positions]
        pairs = [(self.places[place], seed) for place, seed in drawn]
        return {
            self.key: torch.stack(
                [(self.mirrored if flipped(self.flip, seed) else self.stored)[index] for index, seed in pairs]
            ),
            "caption": [self.captions[i][mix(seed, 2) % len(self.captions[i])] for i, seed in pairs],
            "seed": torch.tensor([seed for _, seed in pairs], dtype=torch.int64),
            "key": [self.keys[index] for index, _ in pairs],
        }
