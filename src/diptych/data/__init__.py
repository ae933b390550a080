"""Data: emoji drawings and composed scenes, folders of pictures, WebDataset shards, the training stream."""

from diptych.data.dataset import DataConfig, Example, PictureDataset, open_dataset
from diptych.data.quarantine import Quarantine
from diptych.data.stream import SampleStream, collate, make_batch, sample_stream

__all__ = [
    "DataConfig",
    "Example",
    "PictureDataset",
    "Quarantine",
    "SampleStream",
    "collate",
    "make_batch",
    "open_dataset",
    "sample_stream",
]
