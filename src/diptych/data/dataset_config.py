"""The config of a data set: path, size, crop, augmentation, selection of examples."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from diptych.core.config import Config, Within
from diptych.core.errors import UserError
from diptych.data.box_layouts import LAYOUT_FIELD
from diptych.data.filters import parse_filters

Split = Literal["train", "held-out", "all"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """The images of a data set: where they are, how they are cropped, which are used."""

    path: str = "data/emoji"
    """Folder of WebDataset shards (*.tar), or of images with captions; or shards in a store: `s3://bucket/prefix`, a
    pattern such as `https://host/{00000..00999}.tar`, or a .txt file with an address a line."""
    size: Annotated[int, Within(0, 2**16)] = 64
    """Pixels to which the shorter side of each image is resized; without `crop`, the side of the square from its
    centre that is trained on."""
    max_size: Annotated[int | None, Within(0, 2**16)] = None
    """Resize the shorter side to a length drawn from `size` to this, before a random `crop`: 320 with size 256 and crop
    256 are ADM's random crops of at least 0.8 of an image. None for `size` always."""
    crop: Annotated[int | None, Within(0, 2**16)] = None
    """Side in pixels of a square cut at random from anywhere in the resized image, uniformly (size 384
    and crop 256: the first stages of latent diffusion); none for the centre."""
    center_shift: float = 0.0
    """Move the square from the centre by up to this share of its side, drawn evenly, along the longer side of the
    image and no further than it reaches (DeepFloyd IF: 0.1)."""
    bucket_step: Annotated[int, Within(0, 4096)] = 0
    """Aspect buckets: train on images uncut or nearly so, in shapes whose sides are multiples of this and whose area is
    about that of `size` x `size` (64 in most papers). All images of a step are of one shape. 0 for squares."""
    bucket_aspect: Annotated[float, Within(1, 16)] = 2.0
    """The longest bucket: its longer side is at most so many times the shorter."""
    flip: float = 0.0
    """Probability that an image is mirrored, left for right. Captions stay as they are: leave it 0 where they say left
    and right, or where words are to be read. 0.5 in most papers without text."""
    split: Split = "train"
    """`train`, `held-out` or `all`."""
    shuffle: Literal["all", "shards"] = "all"
    """The order of an epoch: `all` examples in any order, or the `shards` in any order and the examples of
    `shuffle_window` of them mixed, so that a store that is slow or far away reads each shard within a stretch."""
    shuffle_window: Annotated[int, Within(1, 2**20)] = 64
    """Shards whose examples are mixed with `shuffle=shards`."""
    kinds: tuple[str, ...] = ()
    """Keep only these kinds of example ("single", "scene"); empty for all."""
    styles: tuple[str, ...] = ()
    """Keep only single drawings of these styles; empty for all."""
    keep: tuple[str, ...] = ()
    """Keep only examples for which all of these hold, such as `AESTHETIC_SCORE>=5` or `pwatermark<0.5`: numbers in
    their metadata, of which one that is missing does not hold; or `width`, `height`, `side` (the shorter) and `aspect`
    (longer over shorter) of the image itself, turned as its EXIF says. Read once, and kept beside the index."""
    caption_field: str | None = None
    """Field of an example's metadata that takes the place of its captions, such as `style`, whose values may be the
    classes of a model; `folder` for the name of the folder that its image lies in (`train/n01440764/x.JPEG`: class
    folders, as ImageNet has them); `cls` for what a shard's `.cls` members say; `layout` for layouts (see
    `data/box_layouts.py`); none for its captions."""
    long_captions: Literal["cut", "skip"] = "cut"
    """What becomes of captions that are longer than the model's text encoder reads, or layouts of more boxes: `cut`
    keeps as much as fits, to the last whole word; `skip` leaves them out, and an example that has no other."""
    least: int = 1
    """Keep only examples whose caption field says what so many of these kinds and styles say, of whatever split: of
    fewer a class learns nothing."""
    held_out: float = 0.0
    """Share of the examples that state no split themselves, set apart as held-out by a hash of their key."""
    max_failure_rate: float = 0.05
    """Stop when more than this share of the examples read is broken (after at least 20)."""
    quarantine: str | None = None
    """File that gets a JSON line for each example that is left out; none for quarantine.jsonl in the folder of the run,
    or beside that of a cache."""
    in_memory: bool = False
    """Keep decoded images in memory (3 bytes a pixel) after their first use."""

    def check(self) -> None:
        self.require(self.path != "", "path", "name a folder, a shard or an address (. is this folder)")
        self.require(self.size >= 1, "size", "be at least 1")
        self.require(self.crop is None or 1 <= self.crop <= self.size, "crop", f"lie between 1 and size {self.size}")
        self.require(
            self.max_size is None or (self.crop is not None and self.max_size >= self.size),
            *("max_size", f"be at least size ({self.size}), and none without a crop"),
        )
        self.require(0 <= self.center_shift <= 0.5, "center_shift", "lie between 0 and 0.5")
        self.require(self.center_shift == 0 or self.crop is None, "center_shift", "be 0 where crop cuts at random")
        if self.bucket_step:
            self.require(not self.drawn, "bucket_step", "be 0 with a crop or center_shift")
            self.require(self.size % self.bucket_step == 0, "bucket_step", f"divide size ({self.size}), or be 0")
            self.require(self.caption_field != LAYOUT_FIELD, "bucket_step", "be 0 with layouts, which are of squares")
        self.require(0 <= self.flip <= 1, "flip", "lie between 0 and 1")
        if self.caption_field == LAYOUT_FIELD:  # its boxes are those of the square from the centre
            self.require(self.flip == 0 and not self.drawn, "caption_field", "be no layout with flip, crop or shift")
        try:
            parse_filters(self.keep)
        except ValueError as error:
            raise UserError(f"DataConfig.keep: {error}") from None
        self.require(self.least >= 1, "least", "be at least 1")
        self.require(self.least == 1 or self.caption_field is not None, "least", "be 1 where there is no caption_field")
        self.require(0 <= self.held_out < 1, "held_out", "be at least 0 and below 1")
        self.require(0 <= self.max_failure_rate <= 1, "max_failure_rate", "be between 0 and 1")

    @property
    def side(self) -> int:
        """Side in pixels of the squares that are trained on."""
        return self.crop or self.size

    @property
    def resized(self) -> int:
        """Pixels to which the shorter side of an image is resized when it is read."""
        return self.max_size or self.size

    @property
    def drawn(self) -> bool:
        """Whether which part of an image is trained on is drawn anew each time."""
        return self.crop is not None or self.center_shift > 0

    @property
    def unchanged(self) -> DataConfig:
        """For validation: images as they are, square, without flips, shifts or a range of sizes."""
        return dataclasses.replace(self, flip=0.0, center_shift=0.0, max_size=None, bucket_step=0)
