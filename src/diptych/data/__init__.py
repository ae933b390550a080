"""Data: emoji drawings and composed scenes, folders of images, WebDataset shards, the training stream.

The names are looked up when they are asked for: processes that draw emoji have no use for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.data.dataset import DataConfig, Example, ImageDataset, open_dataset
    from diptych.data.quarantine import Quarantine
    from diptych.data.stream import SampleStream, collate, make_batch, sample_stream

__all__ = [
    "DataConfig",
    "Example",
    "ImageDataset",
    "Quarantine",
    "SampleStream",
    "collate",
    "make_batch",
    "open_dataset",
    "sample_stream",
]
_HOMES = {
    "Quarantine": "quarantine",
    **dict.fromkeys(("SampleStream", "collate", "make_batch", "sample_stream"), "stream"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'dataset')}"), name)
