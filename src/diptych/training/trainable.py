"""What a model must offer to be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor, nn

from diptych.training.distributed import Team
from diptych.training.prefetch import Batch


class Trainable(Protocol):
    """What the loop trains."""

    @property
    def module(self) -> nn.Module:
        """What is optimised; its state dict, buffers included, is what a checkpoint holds. The loop moves it to the
        device of the run."""
        ...

    def start(self, batch: Batch) -> None:
        """Called once in a run, before step 0, with the first batch (at most 256 images), on every process."""
        ...

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses (B,), one an image, and scalars to log (means over the batch). `batch["step"]` counts the steps that
        are done."""
        ...

    def validation(self, batch: Batch) -> dict[str, float]:
        """Metrics of a batch (means over it), with the averaged weights swapped in."""
        ...

    def samples(self) -> Image.Image | None:
        """A grid at fixed prompts, with the averaged weights swapped in."""
        ...

    def save(self, folder: Path) -> None:
        """Write the finished model into an existing, empty folder."""
        ...


class Generated(NamedTuple):
    """The images that a model makes for the examples of a batch, beside their own: all of one size."""

    images: list[Image.Image]
    real: list[Image.Image]
    paired: bool
    """Whether each ought to equal its real one: reconstructions, images that were made small or masked."""
    captions: list[str] | None = None
    """What each was generated for, in words; none where the model reads no words."""
    decoded: bool = False
    """Whether the real ones are what a first stage decodes of what was precomputed."""


@runtime_checkable
class Generating(Protocol):
    """What a model offers besides, if images that it makes can be compared with real ones."""

    def generated(self, batch: Batch, seeds: list[int]) -> Generated:
        """Images for the examples of a batch, one a seed, with the averaged weights swapped in."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """What a model offers besides, if its loss takes something that only the CPU can make."""

    def prepared(self, batch: Batch) -> Batch:
        """A batch with that, before it comes to a GPU. Called ahead of the step, in the threads that load batches."""
        ...


@runtime_checkable
class Stepping(Protocol):
    """What a model offers besides, if it learns something by other means than gradients."""

    def stepped(self, team: Team) -> None:
        """Called after each optimizer step, on every process: the place to add up over them what `loss` saw."""
        ...


def preparation(trainable: Trainable) -> Callable[[Batch], Batch] | None:
    """`prepared` of a model that has it."""
    return trainable.prepared if isinstance(trainable, Preparing) else None


def stepped(trainable: Trainable, team: Team) -> None:
    """Call `stepped` of a model that has it."""
    if isinstance(trainable, Stepping):
        trainable.stepped(team)
