"""Latents and text embeddings computed once and kept on disk, so that diffusion training reads them and nothing else.

A folder holds `latents.safetensors` (the encoder's moments, so that posteriors are still sampled freshly),
`text.safetensors` (every caption's tokens, end to end), `captions.json` and `config.json`. Hashes say which autoencoder
and text encoder they come from.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.conditioning.text import TextEmbedding, TextEncoder
from diptych.data.dataset import PictureDataset
from diptych.data.hashing import mix
from diptych.data.stream import SampleStream, collate
from diptych.errors import UserError
from diptych.networks.autoencoder import Autoencoder
from diptych.progress import track
from diptych.weights.files import load_metadata, load_safetensors, replacing, save_safetensors, write_text
from diptych.weights.fingerprint import fingerprint

BATCH = 64


def read_json(path: Path) -> Any:
    """What a JSON file of the folder holds; a `UserError` that says how to make it again where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path} is missing or damaged: make it again with `diptych precompute`") from None


class EmbeddedTexts:
    """A text encoder that answers from memory for the captions it was given, and asks the real one for the rest.

    tokens (all tokens of all captions, width) and pooled (captions, width), or none where it is the tokens' mean; both
    float16 and on the CPU: the model moves what it embeds.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        captions: list[str],
        tokens: Tensor,
        lengths: Sequence[int],
        pooled: Tensor | None = None,
    ) -> None:
        self.encoder, self.width, self.max_tokens = encoder, encoder.width, encoder.max_tokens
        ends = torch.tensor(list(lengths)).cumsum(0).tolist()
        self.tokens, self.pooled = tokens, pooled
        self.where = {c: (i, end - n, end) for i, (c, end, n) in enumerate(zip(captions, ends, lengths, strict=True))}

    def encode(self, prompts: list[str]) -> TextEmbedding:
        if any(prompt not in self.where for prompt in prompts):
            return self.encoder.encode(prompts)
        places = [self.where[prompt] for prompt in prompts]
        rows = [self.tokens[start:end] for _, start, end in places]
        sequence = nn.utils.rnn.pad_sequence(rows, batch_first=True).float()  # (B, L, width)
        lengths = torch.tensor([len(row) for row in rows])
        embedding = TextEmbedding.from_sequence(sequence, torch.arange(sequence.shape[1])[None] < lengths[:, None])
        if self.pooled is None:
            return embedding
        return embedding._replace(pooled=self.pooled[[index for index, _, _ in places]].float())

    @classmethod
    def compute(cls, encoder: TextEncoder, captions: list[str]) -> EmbeddedTexts:
        """Encode each caption once, in batches of similar length, in float16."""
        order = sorted(set(captions) | {""}, key=lambda caption: (len(caption), caption))
        tokens: list[Tensor] = []
        pooled: list[Tensor] = []
        own = False  # whether `pooled` says more than the tokens do
        for start in track(range(0, len(order), BATCH), "embedding captions"):
            embedding = encoder.encode(order[start : start + BATCH])
            rows = zip(embedding.sequence, embedding.mask, strict=True)
            tokens += [row[mask].to("cpu", torch.float16) for row, mask in rows]
            pooled.append(embedding.pooled.to("cpu", torch.float16))
            mean = TextEmbedding.from_sequence(embedding.sequence, embedding.mask).pooled
            own = own or not torch.equal(mean, embedding.pooled)
        return cls(encoder, order, torch.cat(tokens), [len(t) for t in tokens], torch.cat(pooled) if own else None)

    def save(self, folder: Path) -> None:
        lengths = torch.tensor([end - start for _, start, end in self.where.values()])
        tensors = {"tokens": self.tokens, "lengths": lengths}
        if self.pooled is not None:
            tensors["pooled"] = self.pooled
        save_safetensors(tensors, folder / "text.safetensors", {"encoder": encoder_fingerprint(self.encoder)})
        write_text(folder / "captions.json", json.dumps(list(self.where)))

    @classmethod
    def load(cls, encoder: TextEncoder, folder: Path) -> EmbeddedTexts:
        """Read what `save` wrote. A `UserError` where another encoder made it; a file that does not say is trusted."""
        path = folder / "text.safetensors"
        made_by = load_metadata(path).get("encoder")
        if made_by is not None and made_by != encoder_fingerprint(encoder):
            raise UserError(f"{path} was made with another text encoder: make it again with `diptych precompute`")
        tensors, captions = load_safetensors(path), read_json(folder / "captions.json")
        if tensors["tokens"].shape[1] != encoder.width or len(captions) != len(tensors["lengths"]):
            raise UserError(f"{path} does not fit captions or text encoder: make it again with `diptych precompute`")
        return cls(encoder, captions, tensors["tokens"], tensors["lengths"].tolist(), tensors.get("pooled"))


def encoder_fingerprint(encoder: TextEncoder) -> str:
    """A hash of the weights of a frozen text encoder."""
    model = getattr(encoder, "model", None)
    return fingerprint(model) if isinstance(model, nn.Module) else type(encoder).__name__


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
        splits: dict[str, int] = {}
        captions: list[str] = []
        for split, dataset in datasets.items():
            encoded = encode_dataset(dataset, autoencoder, device)
            save_safetensors({"moments": encoded.pop("moments")}, partial / f"latents-{split}.safetensors")
            write_text(partial / f"examples-{split}.json", json.dumps(encoded))
            captions += [caption for row in encoded["captions"] for caption in row]
            splits[split] = len(encoded["keys"])
        if text is not None:
            embed_captions(text, captions, out).save(partial)
        config = {"autoencoder": fingerprint(autoencoder), "examples": splits}
        write_text(partial / "config.json", json.dumps(config, indent=2) + "\n")
    return out


def embed_captions(text: TextEncoder, captions: list[str], folder: Path) -> EmbeddedTexts:
    """Every caption embedded; what an earlier run left in `folder` is used where it is of these very captions."""
    if (folder / "captions.json").is_file():
        with contextlib.suppress(UserError):  # damaged, or of another encoder: made again
            found = EmbeddedTexts.load(text, folder)
            if set(found.where) == {*captions, ""}:
                return found
    return EmbeddedTexts.compute(text, captions)


def precomputed_splits(folder: Path) -> list[str]:
    """The splits that a precomputed folder holds. Raises a `UserError` where there is none."""
    if not (folder / "config.json").is_file():
        raise UserError(f"no precomputed latents in {folder}: make them with `diptych precompute`")
    return list(read_json(folder / "config.json")["examples"])


class PrecomputedLatents:
    """One split of a precomputed folder, as batches of stream positions."""

    def __init__(self, folder: Path, split: str, seed: int, autoencoder: Autoencoder) -> None:
        splits = precomputed_splits(folder)
        if read_json(folder / "config.json")["autoencoder"] != fingerprint(autoencoder):
            raise UserError(f"{folder} was made with another autoencoder: make it again with `diptych precompute`")
        if split not in splits:
            raise UserError(f"{folder} has no split {split!r}: choose one of {', '.join(splits)}")
        self.moments = load_safetensors(folder / f"latents-{split}.safetensors")["moments"]
        examples = read_json(folder / f"examples-{split}.json")
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
