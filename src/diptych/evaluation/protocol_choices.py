"""The choices of a protocol that a paper's table depends on, each with a name, and presets that set them.

What a preset takes from a paper, and what the paper leaves open, are kept apart: results say which is which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from diptych.core.config import Config, Within
from diptych.core.errors import pick
from diptych.metrics.image_set import Processing


@dataclass(frozen=True, kw_only=True)
class ProtocolChoices(Config):
    """What every protocol has to choose."""

    number: Annotated[int | None, Within(1)] = 50_000
    """Generated images; none for one of each prompt that there is."""
    seed: Annotated[int, Within(0, 2**63 - 1)] = 0
    """Of the draw, and of the images."""
    size: Annotated[int | None, Within(1, 4096)] = 256
    """Side in pixels that both sides are brought to; none for as they are."""
    crop: Literal["center", "none"] = "center"
    """The square from the centre, or the whole image, whose shape changes."""
    resize: Literal["box", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """The filter to that size."""
    jpeg: Annotated[int | None, Within(1, 100)] = None
    """Measure generated images as JPEGs of this quality; none for as they are."""
    reference_jpeg: Annotated[int | None, Within(1, 100)] = None
    """The same for the reference, after it was brought to the size."""
    network_resize: Literal["tf1", "torch-bilinear", "clean"] = "tf1"
    """InceptionV3's own resizing: torch-fidelity's, pytorch-fid's or clean-fid's."""

    def processing(self, reference: bool = False) -> Processing:
        """What is done to the images of a side first."""
        jpeg = self.reference_jpeg if reference else self.jpeg
        return Processing(size=self.size, crop=self.crop, resize=self.resize, jpeg=jpeg)

    def described(self) -> dict[str, Any]:
        """By the names of `published_results.CHOICES`."""
        values = self.to_dict()
        values["format"], values["reference_format"] = (
            "as it is" if quality is None else f"JPEG {quality}"
            for quality in (values.pop("jpeg"), values.pop("reference_jpeg"))
        )
        values["size"] = values["size"] or "as it is"
        values["network resize"] = values.pop("network_resize")
        return values


@dataclass(frozen=True, kw_only=True)
class CaptionChoices(ProtocolChoices):
    """FID of images of COCO's captions."""

    number: Annotated[int | None, Within(1)] = 30_000
    per_image: Annotated[int | None, Within(1, 1000)] = 1
    """Captions of an image that are drawn; none draws among all captions."""
    caption: Literal["random", "first"] = "random"
    """Which caption of an image."""
    reference: Literal["full", "subset"] = "full"
    """All images of the annotations, or those whose captions were drawn."""


@dataclass(frozen=True, kw_only=True)
class SampleChoices(ProtocolChoices):
    """Samples without prompts, or of classes."""

    manifold_reference: Annotated[int | None, Within(2)] = 10_000
    """Reference images of precision and recall, drawn by the seed; none for all."""


@dataclass(frozen=True, kw_only=True)
class ClassChoices(SampleChoices):
    """Samples of classes."""

    classes: Literal["random", "balanced"] = "random"
    """Each image's class drawn alike among all, or all equally often."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Values of choices that go with a paper."""

    source: str
    stated: Mapping[str, Any]
    """What the paper says."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """What it does not say clearly, and is taken to mean."""
    metrics: tuple[str, ...] = ("fid", "is")


IMAGEN = "Saharia et al. 2022, section 4 and table 1"
LDM_COCO = "Rombach et al. 2022, appendix E.3.2 and table 2"
LDM = "Rombach et al. 2022, appendix E.3.1"
SAMPLES = ("fid", "is", "precision-recall")
NO_PAPER = "no paper: the defaults"
_SAMPLE_PRESETS = {
    "common": Preset(source=NO_PAPER, stated={}, metrics=SAMPLES),
    "ldm": Preset(source=LDM, stated={"number": 50_000, "size": 256, "network_resize": "tf1"}, metrics=SAMPLES),
}
PRESETS: dict[str, dict[str, Preset]] = {
    "fid-30k": {
        "common": Preset(source=NO_PAPER, stated={}),
        "imagen": Preset(
            source=IMAGEN,
            stated={"number": 30_000, "reference": "full", "size": 256},
            chosen={"per_image": None},
            metrics=("fid",),
        ),
        "ldm": Preset(
            source=LDM_COCO, stated={"number": 30_000, "reference": "subset", "size": 256, "network_resize": "tf1"}
        ),
    },
    "unconditional": _SAMPLE_PRESETS,
    "class-conditional": _SAMPLE_PRESETS,
}
"""Protocol -> name -> preset. Imagen draws "prompts" from the validation set, which is taken to mean among all
captions. LDM's FID and Inception Score are torch-fidelity's."""
KINDS: dict[str, type[ProtocolChoices]] = {
    "fid-30k": CaptionChoices,
    "unconditional": SampleChoices,
    "class-conditional": ClassChoices,
}


def choose(protocol: str, preset: str, given: Mapping[str, Any]) -> tuple[ProtocolChoices, dict[str, Any]]:
    """The choices of a preset with what was given in their place, and what results say of it: `name`, `source`,
    `not_stated` by its paper, and `changed` from it.

    Raises a `UserError` for an unknown preset and for values that cannot be.
    """
    one = PRESETS[protocol][pick("preset", preset, tuple(PRESETS[protocol]))]
    values = {**one.chosen, **one.stated}
    choices = KINDS[protocol].from_dict({**values, **given})
    names = [entry.name for entry in fields(choices)]
    about: dict[str, Any] = {"name": preset, "source": one.source}
    if one.stated:
        about["not_stated"] = [name for name in names if name not in one.stated]
    before = KINDS[protocol].from_dict(dict(values))
    about["changed"] = [name for name in names if getattr(before, name) != getattr(choices, name)]
    return choices, about
