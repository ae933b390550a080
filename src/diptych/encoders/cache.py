"""Prompts embedded once: remembered, kept on disk by what they say and who read them, the reader not in the way."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.core.config import Config
from diptych.core.disk import Written, remove, replacing
from diptych.core.errors import UserError
from diptych.core.progress import bar
from diptych.encoders.base import TextEmbedding, TextEncoder, network_of
from diptych.encoders.cache_parts import CachePart
from diptych.encoders.configs import FrozenConfig, JointTransformerConfig
from diptych.encoders.joint import JointTransformer
from diptych.weights.files import load_metadata
from diptych.weights.fingerprint import fingerprint

BATCH = 64
QUIET = BATCH
"""Prompts that are embedded without a word of progress."""
CACHED = Written(
    "a part of the cache of texts",
    ("text.safetensors", "captions.json"),
    lambda folder: re.fullmatch("[0-9a-f]{16}", folder.name) is not None and not folder.is_symlink(),
)
KEPT_AT_ONCE = 16
"""Batches after which `CachedTexts` writes: what a killed run loses at most."""


def embedded(encoder: TextEncoder, prompts: Iterable[str]) -> Iterator[CachePart]:
    """Each prompt read once, in batches of similar length; it tells how far it is if they are many."""
    order = in_order(prompts)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(bar()) if len(order) > QUIET else None
        task = progress.add_task("embedding captions", total=len(order)) if progress else None
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            yield CachePart.of(batch, encoder.encode(batch))
            if progress is not None and task is not None:
                progress.advance(task, len(batch))


def in_order(prompts: Iterable[str]) -> list[str]:
    """Each prompt once, in the order in which they are embedded: similar lengths stand together."""
    return sorted(set(prompts), key=lambda prompt: (len(prompt), prompt))


class EmbeddedTexts:
    """A text encoder that answers from memory for the prompts it knows, and asks the real one for the rest only.

    Its answers lie on the CPU, rounded to half precision: whoever reads them moves them.
    """

    def __init__(self, encoder: TextEncoder, *parts: CachePart) -> None:
        self._encoder = encoder
        self.width, self.max_tokens = encoder.width, encoder.max_tokens
        self.parts: list[CachePart] = []
        self.known: dict[str, tuple[CachePart, int]] = {}
        for part in parts:
            self.learn(part)

    @property
    def encoder(self) -> TextEncoder:
        """The real one."""
        return self._encoder

    def learn(self, part: CachePart) -> None:
        self.parts.append(part)
        for index, prompt in enumerate(part.prompts):
            self.known.setdefault(prompt, (part, index))

    def unknown(self, prompts: Iterable[str]) -> list[str]:
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]

    def read(self, prompts: list[str]) -> None:
        """Learn those of the prompts that are not known: the way to prepare many, as `encode` gives all at once."""
        for part in embedded(self.encoder, self.unknown(prompts)):
            self.learn(part)

    def encode(self, prompts: list[str]) -> TextEmbedding:
        if self.unknown(prompts):
            self.read(prompts)
        places = [self.known[prompt] for prompt in prompts]
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

    def unload(self) -> None:
        """Free the real encoder if it can come back when it is needed."""
        if isinstance(self._encoder, EmbeddedTexts):
            self._encoder.unload()

    @classmethod
    def compute(cls, encoder: TextEncoder, prompts: Iterable[str], known: TextEncoder | None = None) -> EmbeddedTexts:
        """Embed each prompt, and the empty one, once; `known` answers in the encoder's place if it is given."""
        return cls(encoder, CachePart.join(embedded(known or encoder, {*prompts, ""})))

    def save(self, folder: Path) -> None:
        """Write all that is known as one part."""
        CachePart.join(self.parts).save(folder, encoder_fingerprint(self.encoder))

    @classmethod
    def load(cls, encoder: TextEncoder, folder: Path) -> EmbeddedTexts:
        """Read what `save` wrote. A `UserError` where another encoder made it; a file that does not say is trusted."""
        path = folder / "text.safetensors"
        made_by = load_metadata(path).get("encoder")
        if made_by not in (None, encoder_fingerprint(encoder)) and made_by != weights_fingerprint(encoder):
            raise UserError(f"{path} was made with another text encoder: make it again with `diptych precompute`")
        return cls(encoder, CachePart.load(folder, encoder.width))


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
        self.model = Seat()
        if not isinstance(source, Config):
            self.model.network = network_of(source)

    @functools.cached_property
    def fingerprint(self) -> str:
        """What tells this encoder's embeddings from another's."""
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
        self.look()
        unknown = self.unknown(prompts)
        batches = embedded(self.encoder, unknown) if unknown else iter(())
        while some := list(itertools.islice(batches, KEPT_AT_ONCE)):
            part = CachePart.join(some)
            if self.folder is not None:
                name = secrets.token_hex(8)  # no other process writes at this name
                with replacing(self.folder / name) as partial:
                    partial.mkdir(parents=True)
                    part.save(partial, self.fingerprint)
                self.seen.add(name)
            self.learn(part)

    def look(self) -> None:
        """Learn what has come to the folder since, also from other processes."""
        names = sorted(path.name for path in self.folder.glob("[!.]*")) if self.folder is not None else []
        for name in names:
            if name not in self.seen:
                self.seen.add(name)
                try:
                    self.learn(CachePart.load(self.folder / name, self.width))  # type: ignore[operator]
                except UserError:
                    if CACHED.sign(path := self.folder / name) and CACHED.foreign(path) is None:  # type: ignore[operator]
                        remove(path)

    def unload(self) -> None:
        """Free the memory of the real encoder; it is built again for the next prompt that is not known."""
        if isinstance(self.source, Config):
            self._encoder = self.source  # type: ignore[assignment]
            self.model.network = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


class Seat(nn.Module):
    """The place of a network that comes and goes: `here` is where it belongs. Nothing of it is saved."""

    here: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("here", torch.empty(0), persistent=False)
        self.network: nn.Module | None = None


def text_cache() -> Path:
    """The folder for `CachedTexts` of all models: $DIPTYCH_CACHE/text, else ~/.cache/diptych/text."""
    return Path(os.environ.get("DIPTYCH_CACHE") or Path.home() / ".cache" / "diptych") / "text"


def encoder_fingerprint(encoder: TextEncoder) -> str:
    """What tells an encoder's embeddings from another's: its own word, else a hash of its weights."""
    return getattr(encoder, "fingerprint", None) or weights_fingerprint(encoder)


def weights_fingerprint(encoder: TextEncoder) -> str:
    """A hash of the weights of a frozen text encoder."""
    while isinstance(encoder, EmbeddedTexts):
        encoder = encoder.encoder
    network = network_of(encoder)
    return type(encoder).__name__ if network is None else fingerprint(network)
