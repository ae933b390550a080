"""A cache of text embeddings, in memory and on disk, so that a frozen text encoder embeds each prompt once.

Many prompts are two files: `text.safetensors` (the tokens of all, end to end) and `captions.json`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diptych.core.caches import cache_folder
from diptych.core.config import Config, read_json
from diptych.core.disk import Written, remove, replacing, values_of, write_text
from diptych.core.errors import UserError
from diptych.core.progress import bar
from diptych.encoders.base import TextEmbedding, TextEncoder, network_of
from diptych.encoders.configs import FrozenConfig, JointTransformerConfig
from diptych.encoders.joint import JointTransformer
from diptych.encoders.text_store import StoredPart, TextStore
from diptych.weights.files import load_metadata, load_safetensors
from diptych.weights.fingerprint import fingerprint
from diptych.weights.save import save_safetensors

BATCH = 64
QUIET = BATCH
"""The most prompts that are embedded without a progress bar."""
CACHED = Written(
    "a part of the cache of texts",
    ("text.safetensors", "captions.json"),
    lambda folder: re.fullmatch("[0-9a-f]{16}", folder.name) is not None and not folder.is_symlink(),
)
IN_MEMORY = 2**31
"""Bytes of a store beyond which its embeddings are read from disk when they are asked for."""
BATCHES_PER_PART = 16
"""Batches that `CachedTexts` writes at once: the most that a killed run loses."""


def read_precomputed(path: Path) -> Any:
    """What a JSON file of the folder holds; a `UserError` that says how to make it again where it is damaged."""
    again = f"{path} is missing or damaged: make it again with `diptych precompute`"
    return read_json(path, again, again)


class CachePart(NamedTuple):
    """Some prompts and their embeddings, in half precision where they fit and on the CPU."""

    prompts: list[str]
    tokens: Tensor  # (tokens of all prompts, width)
    ends: list[int]  # where each prompt's tokens end
    pooled: Tensor | None  # (prompts, width), or none where it is the tokens' mean

    def row(self, index: int) -> Tensor:
        """The tokens (L, width) of one prompt."""
        return self.tokens[self.ends[index - 1] if index else 0 : self.ends[index]]

    @classmethod
    def of(cls, prompts: list[str], embedding: TextEmbedding) -> CachePart:
        """Round an embedding of these prompts."""
        mean = TextEmbedding.from_sequence(embedding.sequence, embedding.mask).pooled
        tokens, pooled = half(embedding.sequence[embedding.mask]), half(embedding.pooled)
        return cls(
            prompts, tokens, ends(embedding.mask.sum(1)), None if torch.equal(mean, embedding.pooled) else pooled
        )

    @classmethod
    def join(cls, parts: Iterable[CachePart]) -> CachePart:
        """All their prompts, in order."""
        parts = list(parts)
        lengths = torch.tensor([len(part.row(i)) for part in parts for i in range(len(part.prompts))])
        has_pooled = any(part.pooled is not None for part in parts)
        pooled = (
            torch.cat([part.means() if part.pooled is None else part.pooled for part in parts]) if has_pooled else None
        )
        prompts = [prompt for part in parts for prompt in part.prompts]
        return cls(prompts, torch.cat([part.tokens for part in parts]), ends(lengths), pooled)

    def means(self) -> Tensor:
        return half(torch.stack([self.row(i).float().mean(0) for i in range(len(self.prompts))]))

    def save(self, folder: Path, encoder: str) -> None:
        """Write the two files; `encoder` is the fingerprint of the encoder."""
        tensors = {"tokens": self.tokens, "lengths": torch.tensor(self.ends).diff(prepend=torch.tensor([0]))}
        if self.pooled is not None:
            tensors["pooled"] = self.pooled
        stated = {"encoder": encoder, "content": digest(self.prompts, tensors)}
        save_safetensors(tensors, folder / "text.safetensors", stated)
        write_text(folder / "captions.json", json.dumps(self.prompts))

    @classmethod
    def load(cls, folder: Path, width: int) -> CachePart:
        """Read what `save` wrote, or raise a `UserError` where it is not that any more. The tokens stay on disk until
        they are asked for."""
        path = folder / "text.safetensors"
        tensors, prompts = load_safetensors(path, check_finite=False), read_precomputed(folder / "captions.json")
        tokens, lengths, pooled = (tensors.get(key) for key in ("tokens", "lengths", "pooled"))
        fits = tokens is not None and lengths is not None and tokens.ndim == 2 and tokens.shape[1] == width
        fits = fits and len(prompts) == len(lengths) and int(lengths.sum()) == len(tokens)  # type: ignore[arg-type]
        if not fits or (pooled is not None and pooled.shape != (len(prompts), width)):
            raise UserError(f"{path} does not fit captions or text encoder: make it again with `diptych precompute`")
        if load_metadata(path).get("content", expected := digest(prompts, tensors)) != expected:
            raise UserError(f"{path} does not hold what was written: make it again with `diptych precompute`")
        return cls(prompts, tokens, ends(lengths), pooled)  # type: ignore[arg-type]


def digest(prompts: list[str], tensors: Mapping[str, Tensor]) -> str:
    """A hash of prompts, tensors and their names."""
    made = hashlib.sha256(json.dumps(prompts).encode())
    for name, tensor in sorted(tensors.items()):
        made.update(name.encode())
        made.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return made.hexdigest()


def half(tensor: Tensor) -> Tensor:
    """On the CPU in float16, or as it is where that would overflow."""
    tensor = tensor.detach().cpu()
    if not torch.isfinite(tensor).all():
        raise UserError("the text encoder gives NaN or Inf: its weights are not usable")
    rounded = tensor.half()
    return rounded if torch.isfinite(rounded).all() else tensor.float()


def ends(lengths: Tensor) -> list[int]:
    return lengths.cumsum(0).tolist()


def embed_batches(encoder: TextEncoder, prompts: Iterable[str]) -> Iterator[CachePart]:
    """Embeddings of each prompt once, in batches of similar length, with a progress bar if they are many."""
    order = by_length(prompts)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(bar()) if len(order) > QUIET else None
        task = progress.add_task("embedding captions", total=len(order)) if progress else None
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            yield CachePart.of(batch, encoder.encode(batch))
            if progress is not None and task is not None:
                progress.advance(task, len(batch))


def by_length(prompts: Iterable[str]) -> list[str]:
    """Each prompt once, the shortest first: batches then have similar lengths."""
    return sorted(set(prompts), key=lambda prompt: (len(prompt), prompt))


class EmbeddedTexts:
    """A text encoder that has the embeddings of some prompts in memory, and embeds others with the real encoder.

    Embeddings are on the CPU, in half precision.
    """

    def __init__(self, encoder: TextEncoder, *parts: CachePart) -> None:
        self._encoder = encoder
        self.width, self.max_tokens = encoder.width, encoder.max_tokens
        self.parts: list[CachePart] = []
        self.index: dict[str, tuple[CachePart, int]] = {}
        for part in parts:
            self.add(part)

    @property
    def encoder(self) -> TextEncoder:
        """The real text encoder."""
        return self._encoder

    def add(self, part: CachePart) -> None:
        self.parts.append(part)
        for index, prompt in enumerate(part.prompts):
            self.index.setdefault(prompt, (part, index))

    def missing(self, prompts: Iterable[str]) -> list[str]:
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.index]

    def read(self, prompts: list[str]) -> None:
        """Embed those prompts that are not in memory. For many prompts use it before `encode`, which pads them all."""
        for part in embed_batches(self.encoder, self.missing(prompts)):
            self.add(part)

    def encode(self, prompts: list[str]) -> TextEmbedding:
        if self.missing(prompts):
            self.read(prompts)
        return padded([self.index[prompt] for prompt in prompts])

    def unload(self) -> None:
        """Free the real encoder if it can be built again."""
        if isinstance(self._encoder, EmbeddedTexts):
            self._encoder.unload()

    @classmethod
    def compute(cls, encoder: TextEncoder, prompts: Iterable[str], known: TextEncoder | None = None) -> EmbeddedTexts:
        """Embed each prompt, and the empty one, once; by `known` instead of the encoder if it is given."""
        return cls(encoder, CachePart.join(embed_batches(known or encoder, {*prompts, ""})))

    def save(self, folder: Path) -> None:
        """Write all embeddings as one part."""
        CachePart.join(self.parts).save(folder, encoder_fingerprint(self.encoder))

    @classmethod
    def load(cls, encoder: TextEncoder, folder: Path) -> EmbeddedTexts:
        """Read what `save` or `diptych precompute` wrote; of a large store, each prompt when it is asked for. A
        `UserError` where another encoder made it; a file that does not say is trusted."""
        path, stated = folder / "text.safetensors", values_of(folder / "config.json").get("texts")
        made_by = load_metadata(path).get("encoder") if stated is None else stated["encoder"]
        if made_by not in (None, encoder_fingerprint(encoder)) and made_by != weights_fingerprint(encoder):
            raise UserError(f"{path} was made with another text encoder: make it again with `diptych precompute`")
        if stated is None:
            return cls(encoder, CachePart.load(folder, encoder.width))
        store = TextStore(folder, stated["bytes"], encoder.width, "make it again with `diptych precompute`")
        if store.bytes > IN_MEMORY:
            return StoredTexts(encoder, store)
        parts = map(store.part, range(len(stated["bytes"])))
        return cls(
            encoder, *(CachePart(part.prompts[:], part.tokens, part.ends.tolist(), part.pooled) for part in parts)
        )


def padded(places: Sequence[tuple[CachePart | StoredPart, int]]) -> TextEmbedding:
    """The embeddings of rows of parts."""
    rows = [part.row(index) for part, index in places]
    sequence = nn.utils.rnn.pad_sequence(rows, batch_first=True).float()  # (B, L, width)
    lengths = torch.tensor([len(row) for row in rows])
    embedding = TextEmbedding.from_sequence(sequence, torch.arange(sequence.shape[1]) < lengths[:, None])
    for i, (part, index) in enumerate(places):
        if part.pooled is not None:
            embedding.pooled[i] = part.pooled[index]
    if not (sequence.isfinite().all() and embedding.pooled.isfinite().all()):
        raise UserError("a text embedding on disk holds NaN or Inf: delete the folder it lies in and make it again")
    return embedding


class StoredTexts(EmbeddedTexts):
    """A text encoder whose embeddings of some prompts are on disk, memory-mapped, and those of others in memory."""

    def __init__(self, encoder: TextEncoder, store: TextStore) -> None:
        super().__init__(encoder)
        self.store = store

    def missing(self, prompts: Iterable[str]) -> list[str]:
        unknown = super().missing(prompts)
        found = self.store.find(unknown)
        return [prompt for prompt, place in zip(unknown, found, strict=True) if place is None]

    def encode(self, prompts: list[str]) -> TextEmbedding:
        places = [
            place or self.index.get(prompt) for prompt, place in zip(prompts, self.store.find(prompts), strict=True)
        ]
        if None in places:
            self.read(prompts)
            places = [place or self.index[prompt] for prompt, place in zip(prompts, places, strict=True)]
        return padded(places)  # type: ignore[arg-type]


class CachedTexts(EmbeddedTexts):
    """A frozen text encoder that is built when it first meets a prompt that is not in its folder, and can be unloaded.

    `source` is a config, or an encoder that is built already (and never unloaded). `folder` holds one folder for each
    encoder, by its fingerprint, and therein a part for each addition; without one, prompts are only remembered. Parts
    appear whole or not at all, so several processes may share them; a damaged one is made again.

    `model` follows whatever system moves it, and takes the real network along once there is one.
    """

    def __init__(self, source: FrozenConfig | TextEncoder, folder: Path | None = None) -> None:
        if isinstance(source, (JointTransformer, JointTransformerConfig)):
            raise UserError("a text encoder that learns with the model has nothing to keep: cache a frozen one")
        super().__init__(source)  # type: ignore[arg-type]
        self.source = source
        self.folder = None if folder is None else Path(folder) / self.fingerprint
        self.seen: set[str] = set()
        self.model = NetworkSlot()
        if not isinstance(source, Config):
            self.model.network = network_of(source)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies the encoder's embeddings."""
        return self.source.fingerprint() if isinstance(self.source, Config) else encoder_fingerprint(self.source)

    @property
    def loaded(self) -> bool:
        """Whether the real encoder is in memory."""
        return not isinstance(self._encoder, Config)

    @property
    def encoder(self) -> TextEncoder:
        if isinstance(self._encoder, Config):
            self._encoder = self._encoder.build(device=self.model.here.device)
            self.model.network = network_of(self._encoder)
        return self._encoder

    def read(self, prompts: list[str]) -> None:
        """As `EmbeddedTexts.read`, kept in the folder every few batches; the encoder is built if any is not there."""
        self.refresh()
        unknown = self.missing(prompts)
        batches = embed_batches(self.encoder, unknown) if unknown else iter(())
        while some := list(itertools.islice(batches, BATCHES_PER_PART)):
            part = CachePart.join(some)
            if self.folder is not None:
                name = secrets.token_hex(8)  # no other process writes at this name
                with replacing(self.folder / name) as partial:
                    partial.mkdir(parents=True)
                    part.save(partial, self.fingerprint)
                self.seen.add(name)
            self.add(part)

    def refresh(self) -> None:
        """Load the parts that were added to the folder, also by other processes."""
        names = sorted(path.name for path in self.folder.glob("[!.]*")) if self.folder is not None else []
        for name in names:
            if name not in self.seen:
                self.seen.add(name)
                try:
                    self.add(CachePart.load(self.folder / name, self.width))  # type: ignore[operator]
                except UserError:
                    if CACHED.sign(path := self.folder / name) and CACHED.foreign(path) is None:  # type: ignore[operator]
                        remove(path)

    def unload(self) -> None:
        """Free the memory of the real encoder; it is built again for the next prompt that is not cached."""
        if isinstance(self.source, Config):
            self._encoder = self.source  # type: ignore[assignment]
            self.model.network = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


class NetworkSlot(nn.Module):
    """Holds a network that is loaded and unloaded; `here` is on its device. Nothing of it is saved."""

    here: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("here", torch.empty(0), persistent=False)
        self.network: nn.Module | None = None


def text_cache() -> Path:
    """The folder for `CachedTexts` of all models: $DIPTYCH_CACHE/text, else ~/.cache/diptych/text."""
    return cache_folder("text")


def encoder_fingerprint(encoder: TextEncoder) -> str:
    """Identifies an encoder's embeddings: its `fingerprint`, else a hash of its weights."""
    return getattr(encoder, "fingerprint", None) or weights_fingerprint(encoder)


def weights_fingerprint(encoder: TextEncoder) -> str:
    """A hash of the weights of a frozen text encoder."""
    while isinstance(encoder, EmbeddedTexts):
        encoder = encoder.encoder
    network = network_of(encoder)
    return type(encoder).__name__ if network is None else fingerprint(network)
