"""A cache of text embeddings, in memory and on disk, so that a frozen text encoder embeds each prompt once."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.core.caches import cache_folder
from diptych.core.config import Config
from diptych.core.disk import Written, make_folder, remove, replacing, values_of
from diptych.core.errors import UserError
from diptych.core.progress import bar
from diptych.encoders.base import TextEmbedding, TextEncoder, network_of
from diptych.encoders.cache_part import CachePart, digest
from diptych.encoders.configs import FrozenConfig, JointTransformerConfig
from diptych.encoders.joint import JointTransformer
from diptych.encoders.text_store import StoredPart, TextStore
from diptych.encoders.text_table import TextTable
from diptych.weights.files import load_metadata
from diptych.weights.fingerprint import fingerprint

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
NOT_FINITE = "a text embedding on disk holds NaN or Inf: delete the folder it lies in and make it again"
AGAIN = "make it again with `diptych precompute`"
POLL = 0.2
"""Seconds until `CachedTexts` looks again for what other processes embed."""
BATCHES_PER_PART = 16
"""Batches that `CachedTexts` writes at once: the most that a killed run loses."""


def embed_batches(encoder: TextEncoder, prompts: Iterable[str]) -> Iterator[CachePart]:
    """Embeddings of each prompt once, in batches of similar length, with a progress bar if they are many."""
    order = by_length(prompts)
    with counting(len(order)) as advance:
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            yield CachePart.of(batch, encoder.encode(batch))
            advance(len(batch))


@contextlib.contextmanager
def counting(total: int) -> Iterator[Callable[[int], None]]:
    """A function that counts embedded prompts, with a progress bar if they are many."""
    if total <= QUIET:
        yield lambda count: None
        return
    with bar() as progress:
        task = progress.add_task("embedding captions", total=total)
        yield lambda count: progress.advance(task, count)


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
        self.finite: set[str] = set()
        """Prompts whose embeddings were looked at, and hold neither NaN nor infinity."""
        self.table: TextTable | None = None
        """Those that are on a device, too."""
        self.packing: torch.device | None = None
        """Where embeddings are padded, when they are too many for a table: they come there as they are kept."""
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

    def keep_on(self, device: torch.device, prompts: Iterable[str] | None = None) -> None:
        """Bring those of these prompts that are in memory, or all that are, to a device other than the CPU. Where they
        are too many, those of each call come there when they are asked for. `encode` gives their embeddings there; a
        `UserError` where some hold NaN or infinity."""
        if device.type != "cpu":
            chosen = self.index if prompts is None else dict.fromkeys(prompts)
            self.table = TextTable.of({one: self.index[one] for one in chosen if one in self.index}, device)
            self.packing = device if self.table is None else None
            if self.table is not None and device.type != "meta" and not self.table.finite():
                raise UserError(NOT_FINITE)

    def encode(self, prompts: list[str]) -> TextEmbedding:
        if self.table is not None and (embedding := self.table.encode(prompts)) is not None:
            return embedding
        if self.missing(prompts):
            self.read(prompts)
        check = not self.finite.issuperset(prompts)
        embedding = self.joined(prompts, [self.index[prompt] for prompt in prompts], check)
        self.finite.update(prompts)
        return embedding

    def joined(
        self, prompts: list[str], places: Sequence[tuple[CachePart | StoredPart, int]], check: bool = True
    ) -> TextEmbedding:
        """The embeddings of prompts at these places: padded here, or on the device of `keep_on`."""
        if self.packing is None:
            return padded(places, check)
        if (table := TextTable.of(named := dict(zip(prompts, places, strict=True)), self.packing)) is None:
            return padded(places, check)  # of no tokens, or of more than a device should hold
        if check and not all(part.row(i).isfinite().all() for part, i in named.values()):
            raise UserError(NOT_FINITE)
        if check and not all(part.pooled is None or part.pooled[i].isfinite().all() for part, i in named.values()):
            raise UserError(NOT_FINITE)
        embedding = table.encode(prompts)
        assert embedding is not None
        return embedding

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
        if (store := text_store(encoder, folder)) is None:
            path = folder / "text.safetensors"
            made_by = load_metadata(path).get("encoder")
            if made_by not in (None, encoder_fingerprint(encoder)) and made_by != weights_fingerprint(encoder):
                raise made_with_another(path)
            return cls(encoder, CachePart.load(folder, encoder.width))
        if store.bytes > IN_MEMORY:
            return StoredTexts(encoder, store)
        parts = map(store.part, range(len(store.files)))
        return cls(
            encoder, *(CachePart(part.prompts[:], part.tokens, part.ends.tolist(), part.pooled) for part in parts)
        )


def text_store(encoder: TextEncoder, folder: Path) -> TextStore | None:
    """The embeddings that `diptych precompute` wrote into a folder, or none where it holds none in parts. A `UserError`
    where another encoder made them."""
    if (stated := values_of(folder / "config.json").get("texts")) is None:
        return None
    if stated["encoder"] != encoder_fingerprint(encoder):
        raise made_with_another(folder)
    return TextStore(folder, stated["bytes"], encoder.width, AGAIN)


def made_with_another(path: Path) -> UserError:
    return UserError(f"{path} was made with another text encoder: {AGAIN}")


def padded(places: Sequence[tuple[CachePart | StoredPart, int]], check: bool = True) -> TextEmbedding:
    """The embeddings of rows of parts. With `check`, a `UserError` where they hold NaN or infinity."""
    rows = [part.row(index) for part, index in places]
    if len({row.dtype for row in rows}) > 1:  # some are beyond half precision
        rows = [row.float() for row in rows]
    sequence = nn.utils.rnn.pad_sequence(rows, batch_first=True).float()  # (B, L, width)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(sequence.shape[1]) < lengths[:, None]
    mean = sequence.sum(1) / lengths.clamp(min=1)[:, None]  # as `from_sequence`: padding is zeros
    embedding = TextEmbedding(sequence, mask, mean)
    for i, (part, index) in enumerate(places):
        if part.pooled is not None:
            embedding.pooled[i] = part.pooled[index]
    if check and not (sequence.isfinite().all() and embedding.pooled.isfinite().all()):
        raise UserError(NOT_FINITE)
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
        return self.joined(prompts, places)  # type: ignore[arg-type]


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
        """As `EmbeddedTexts.read`, kept in the folder every few batches; the encoder is built if any is not there.

        Processes that read the same prompts, such as those of one run, each embed what none of the others is at, and
        read the rest from the folder.
        """
        self.refresh()
        if not (unknown := self.missing(prompts)):
            return
        order, size = by_length(prompts), BATCH * BATCHES_PER_PART  # pieces of all: of what is missing each sees less
        pieces = [order[start : start + size] for start in range(0, len(order), size)]
        first = int(os.environ.get("RANK", 0)) * len(pieces) // int(os.environ.get("WORLD_SIZE", 1))
        pieces = pieces[first:] + pieces[:first]
        shared = self.folder is not None and len(order) > QUIET
        with counting(len(unknown)) as advance:
            while pieces:
                waiting = []
                for piece in pieces:
                    left = len(self.missing(piece))
                    with self.claimed(piece) if left and shared else contextlib.nullcontext(left > 0) as mine:
                        if mine and shared:
                            self.refresh()  # another process may have finished them a moment ago
                        if mine:
                            left -= self.embed(piece, advance)
                    if self.missing(piece):
                        waiting.append(piece)
                    else:
                        advance(left)  # what others have embedded
                if len(waiting) == len(pieces):  # others are at them
                    time.sleep(POLL)
                self.refresh()
                pieces = waiting

    def embed(self, prompts: list[str], advance: Callable[[int], None]) -> int:
        """Embed those of some prompts that are not in memory, and keep them; returns how many they are."""
        order = by_length(self.missing(prompts))
        if not order:
            return 0
        batches = []
        for batch in (order[start : start + BATCH] for start in range(0, len(order), BATCH)):
            batches.append(CachePart.of(batch, self.encoder.encode(batch)))
            advance(len(batch))
        part = CachePart.join(batches)
        if self.folder is not None:
            name = secrets.token_hex(8)  # no other process writes at this name
            with replacing(self.folder / name) as partial:
                partial.mkdir(parents=True)
                part.save(partial, self.fingerprint)
            self.seen.add(name)
        self.add(part)
        return len(order)

    @contextlib.contextmanager
    def claimed(self, prompts: list[str]) -> Iterator[bool]:
        """Whether these are this process's to embed: no other has them meanwhile, and one that dies lets go."""
        assert self.folder is not None
        make_folder(self.folder)
        path = self.folder / f".claim-{digest(prompts, {})[:16]}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError:  # a file system without locks: some are embedded twice
                pass
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

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
