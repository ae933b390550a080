"""Latents and text embeddings computed once and kept on disk, so that diffusion training reads them and nothing else.

A folder holds `latents.safetensors` (the encoder's moments, so that posteriors are still sampled freshly),
`text.safetensors` (every caption's tokens, end to end), `captions.json` and `config.json`, whose hashes say which
autoencoder, text encoder and data they come from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.conditioning.text import TextEmbedding, TextEncoder
from diptych.data.dataset import PictureDataset
from diptych.data.hashing import mix
from diptych.data.stream import SampleStream, collate
from diptych.errors import UserError
from diptych.networks.autoencoder import Autoencoder
from diptych.progress import track
from diptych.weights.files import load_safetensors, replacing, save_safetensors, write_text

BATCH = 64


def fingerprint(state: dict[str, Tensor]) -> str:
    """A hash of weights: the same numbers give the same text."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else b"")
    return digest.hexdigest()[:16]


class EmbeddedTexts:
    """A text encoder that answers from memory for the captions it was given, and asks the real one for the rest."""

    def __init__(self, encoder: TextEncoder, captions: list[str], tokens: Tensor, lengths: Sequence[int]) -> None:
        self.encoder, self.width, self.max_tokens = encoder, encoder.width, encoder.max_tokens
        ends = torch.tensor(list(lengths)).cumsum(0).tolist()
        self.tokens = tokens  # (all tokens, width), float16
        self.where = {c: (end - n, end) for c, end, n in zip(captions, ends, lengths, strict=True)}

    def encode(self, prompts: list[str]) -> TextEmbedding:
        if any(prompt not in self.where for prompt in prompts):
            return self.encoder.encode(prompts)
        rows = [self.tokens[slice(*self.where[prompt])] for prompt in prompts]
        sequence = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).float()  # (B, L, width)
        lengths = torch.tensor([len(row) for row in rows])
        return TextEmbedding.from_sequence(sequence, torch.arange(sequence.shape[1])[None] < lengths[:, None])

    def to(self, *args: Any, **kwargs: Any) -> None:
        """The stored tokens stay on the CPU: the model moves what it embeds."""

    @classmethod
    def compute(cls, encoder: TextEncoder, captions: list[str]) -> EmbeddedTexts:
        """Encode each caption once, in batches of similar length, in float16."""
        order = sorted(set(captions) | {""}, key=lambda caption: (len(caption), caption))
        tokens: list[Tensor] = []
        for start in track(range(0, len(order), BATCH), "embedding captions"):
            embedding = encoder.encode(order[start : start + BATCH])
            rows = zip(embedding.sequence, embedding.mask, strict=True)
            tokens += [row[mask].to("cpu", torch.float16) for row, mask in rows]
        return cls(encoder, order, torch.cat(tokens), [len(t) for t in tokens])

    def save(self, folder: Path) -> None:
        lengths = torch.tensor([end - start for start, end in self.where.values()])
        save_safetensors({"tokens": self.tokens, "lengths": lengths}, folder / "text.safetensors")
        write_text(folder / "captions.json", json.dumps(list(self.where)))

    @classmethod
    def load(cls, encoder: TextEncoder, folder: Path) -> EmbeddedTexts:
        tensors = load_safetensors(folder / "text.safetensors")
        captions = json.loads((folder / "captions.json").read_text())
        return cls(encoder, captions, tensors["tokens"], tensors["lengths"].tolist())


@torch.no_grad()
def encode_dataset(dataset: PictureDataset, autoencoder: Autoencoder, device: torch.device) -> dict[str, Any]:
    """Moments (N, 2C, h, w) float16, captions and keys of every example."""
    moments, captions, keys = [], [], []
    autoencoder.to(device).eval()
    for start in track(range(0, len(dataset), BATCH), "encoding pictures"):
        examples = [dataset[index] for index in range(start, min(start + BATCH, len(dataset)))]
        pictures = collate(examples, [0] * len(examples))["picture"].to(device)
        moments.append(autoencoder.moments(pictures).to("cpu", torch.float16))
        captions += [list(example.captions) for example in examples]
        keys += [example.key for example in examples]
    return {"moments": torch.cat(moments), "captions": captions, "keys": keys}


def precompute(
    datasets: dict[str, PictureDataset],
    autoencoder: Autoencoder,
    text: TextEncoder | None,
    out: Path,
    device: torch.device,
) -> Path:
    """Write everything that diffusion training reads of these datasets (by split) into the folder `out`."""
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        splits, captions = {}, []
        for split, dataset in datasets.items():
            encoded = encode_dataset(dataset, autoencoder, device)
            save_safetensors({"moments": encoded.pop("moments")}, partial / f"latents-{split}.safetensors")
            write_text(partial / f"examples-{split}.json", json.dumps(encoded))
            captions += [caption for row in encoded["captions"] for caption in row]
            splits[split] = len(encoded["keys"])
        if text is not None:
            EmbeddedTexts.compute(text, captions).save(partial)
        config = {"autoencoder": fingerprint(autoencoder.state_dict()), "examples": splits, "text": text is not None}
        write_text(partial / "config.json", json.dumps(config, indent=2) + "\n")
    return out


class PrecomputedLatents:
    """One split of a precomputed folder, as batches of stream positions."""

    def __init__(self, folder: Path, split: str, seed: int, autoencoder: Autoencoder) -> None:
        path = folder / "config.json"
        if not path.is_file():
            raise UserError(f"no precomputed latents in {folder}: make them with `diptych precompute`")
        config = json.loads(path.read_text())
        if config["autoencoder"] != fingerprint(autoencoder.state_dict()):
            raise UserError(f"{folder} was made with another autoencoder: make it again with `diptych precompute`")
        if split not in config["examples"]:
            raise UserError(f"{folder} has no split {split!r}: choose one of {', '.join(config['examples'])}")
        self.moments = load_safetensors(folder / f"latents-{split}.safetensors")["moments"]
        examples = json.loads((folder / f"examples-{split}.json").read_text())
        self.captions, self.keys = examples["captions"], examples["keys"]
        self.stream = SampleStream(len(self.keys), seed)

    def __call__(self, positions: list[int]) -> dict[str, Any]:
        pairs = [self.stream[position] for position in positions]
        return {
            "latent": self.moments[[index for index, _ in pairs]],
            "caption": [self.captions[i][mix(seed, 2) % len(self.captions[i])] for i, seed in pairs],
            "seed": torch.tensor([seed for _, seed in pairs], dtype=torch.int64),
            "key": [self.keys[index] for index, _ in pairs],
        }
