"""`diptych generate --from image.png`: what made an image, read from its metadata, found again and verified."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.core.errors import UserError, warn
from diptych.core.images import read_picture
from diptych.models.metadata import of_stage, read_metadata
from diptych.weights.identity import Origin, file_sha256

SETTINGS = (
    *("negative", "steps", "guidance", "sampler", "schedule_type", "threshold", "augmentation", "strength", "paste"),
    *("fit", "tile", "temperature", "top_k", "top_p", "weights", "long_prompts", "start", "stop"),
)
"""Metadata that are options by the same name."""
OPENING = ("revision", "dtype", "ema", "prediction")
"""Metadata of a model that are options by the same name. Whether pickles may be read is not for an image to say."""
STAGES = ("steps", "guidance", "sampler", "schedule_type", "threshold", "augmentation")
"""Settings that a cascade has for each stage."""
HANDED = {"image": "image", "mask": "mask", "low": "low-resolution image"}


@dataclass
class Recorded:
    """The metadata of an image, and whether what makes it anew is the same in all that decides."""

    path: Path
    row: dict[str, Any]
    changed: bool = False
    """Whether the user asked for something else than what was recorded."""
    renamed: set[str] = field(default_factory=set)
    """The files that the user named in the place of those that were recorded."""

    @classmethod
    def read(cls, path: Path) -> Recorded:
        """Raises a `UserError` where a file is no image, or says nothing of how it was made."""
        row = read_metadata(path)
        if isinstance(row.get("model"), str):  # as it was written at first
            row["model"] = {} if row["model"] == "default" else {"source": row["model"]}
        if "noise" in row:
            raise UserError(
                f"{path} was made from noise that its maker handed in, which no file holds: "
                "hand the same to `generate` in Python"
            )
        return cls(path, row)

    def complete(self, arguments: argparse.Namespace) -> None:
        """Set the options that are not given to what was recorded. Raises a `UserError` that names a missing file."""
        row, model = self.row, self.row.get("model") or {}
        if arguments.model is None:
            self.set(arguments, "model", model.get("source"))
            for name in OPENING:
                self.set(arguments, name, model.get(name))
            self.set(arguments, "tokenizer", None if model.get("tokenizer") is None else Path(model["tokenizer"]))
        else:
            self.renamed.add("model")
        known = {
            *row,
            *(row["stages"][0] if row.get("stages") else ()),
            *(("classifier", "clip") if "guides" in row else ()),
        }
        asked = (*SETTINGS, *HANDED, "size", "decoder", "lora", "classifier", "clip")
        new = any(getattr(arguments, name) is not None for name in asked if name not in known)
        if new or arguments.prompts or arguments.seed or arguments.count or arguments.variations:
            self.changed = True
        arguments.prompts = arguments.prompts or ([row["prompt"]] if row["prompt"] else [])
        arguments.seed = arguments.seed or [range(row["seed"], row["seed"] + 1)]
        arguments.keep = arguments.keep or (self.kept > 0 or None)
        stages = row.get("stages")
        for name in SETTINGS:
            value = row.get(name)
            if stages and name in STAGES:
                values = [stage.get(name) for stage in stages]
                value = None if all(one is None for one in values) else values
            self.set(arguments, name, value)
        if "size" in row and not stages and "low" not in row:
            self.set(arguments, "size", tuple(row["size"]))
        if isinstance(decoder := row.get("decoder"), dict):
            self.set(arguments, "decoder", decoder.get("source"))
            self.require(arguments.decoder, "decoder", "its decoder was handed in in Python", "--preview-decoder")
        for name, what in HANDED.items():
            if name in row:
                self.find(arguments, name, what, row[name])
        self.adapters(arguments)

    @property
    def kept(self) -> int:
        """Which of the stages that ran made the image, from 1, where it is not the last one: those behind it run again,
        because an image that was handed in is brought to the size of the last."""
        return self.row.get("kept", 0)

    def set(self, arguments: argparse.Namespace, name: str, value: Any) -> None:
        """One option, where it is not given."""
        if value is None or value is False:
            return
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
        elif getattr(arguments, name) != value:
            self.changed = True

    def require(self, value: Any, name: str, why: str, option: str) -> None:
        if value is None:
            raise UserError(f"{self.path} does not say which {name} to take ({why}): give it as {option}")

    def find(self, arguments: argparse.Namespace, name: str, what: str, entry: Any) -> None:
        """The file of an image that was handed in; one that is given in its place is compared with it."""
        entry = entry if isinstance(entry, dict) else {}
        given: Path | None = getattr(arguments, name)
        if given is not None:
            if given.is_file() and entry.get("sha256") not in (None, file_sha256(given)):
                warn(f"{given} is another file than the {what} that {self.path} was made from")
                self.changed = True
            return
        option = f"--{name}"
        self.require(entry.get("file"), what, "it was in memory, or not recorded", option)
        setattr(arguments, name, self.located(entry, what, option))

    def located(self, entry: Mapping[str, Any], what: str, option: str) -> Path:
        """A recorded file, here or beside the image, with the content that was recorded."""
        file = Path(entry["file"])
        places = [file, self.path.parent / file, self.path.parent / file.name, Path(file.name)]
        there = [place for place in places if place.is_file()]
        for place in there:
            if entry.get("sha256") in (None, file_sha256(place)):
                return place
        wanted = f"the {what} {file} (SHA-256 {str(entry.get('sha256'))[:12]}...)"
        if there:
            raise UserError(
                f"{self.path} was made from {wanted}, and {there[0]} is another file: give the right one as {option}"
            )
        raise UserError(f"{self.path} was made from {wanted}, which is not here: give it as {option}")

    def adapters(self, arguments: argparse.Namespace) -> None:
        """LoRA files and guides."""
        if loras := self.row.get("lora"):
            if arguments.lora is None:
                each = [(self.located(one, "LoRA file", "--lora"), one["scale"]) for one in loras]
                arguments.lora = each
            else:
                self.changed = self.changed or self.other_loras(arguments.lora, loras)
        if guides := self.row.get("guides"):
            if arguments.classifier is None and arguments.clip is None:
                for one in guides:
                    self.require(one.get("source"), f"guide {one['guide']}", "it was made in Python", "--classifier")
                arguments.classifier = [(one["source"], one["scale"]) for one in guides]
            else:
                self.renamed.add("guides")

    def other_loras(self, given: Sequence[tuple[Path, float]], recorded: Sequence[Mapping[str, Any]]) -> bool:
        """Whether other LoRA files, or other scales, are given than what was recorded."""
        if any(not file.is_file() for file, _ in given):
            return True  # whoever opens it says so
        now = sorted((file_sha256(file), scale) for file, scale in given)
        return now != sorted((one.get("sha256", ""), one["scale"]) for one in recorded)

    def verify(self, model: Any, settings: Mapping[str, Any]) -> None:
        """Raise a `UserError` where a model, decoder or guide that was found by its recorded name is another than then;
        one that the user named is only told of."""
        recorded, origin = self.row.get("model") or {}, getattr(model, "origin", None)
        if isinstance(origin, Origin) and recorded.get("sha256") not in (None, origin.sha256):
            self.other("model", f"the model {origin.source}", recorded["sha256"], "--model")
        now = [guide.origin.sha256 for guide, _ in settings.get("guides", ())]
        for guide, sha256 in zip(self.row.get("guides", []), now, strict=False):
            if guide.get("sha256") not in (None, sha256):
                self.other("guides", f"the guide {guide['guide']}", guide["sha256"], "--classifier or --clip")
        decoder = self.row.get("decoder")
        if isinstance(decoder, dict) and settings.get("decoder") == decoder.get("source"):
            from diptych.weights.fingerprint import fingerprint

            if fingerprint(model.decoder(settings["decoder"])) != decoder.get("fingerprint"):
                self.other("decoder", "the decoder", str(decoder.get("fingerprint")), "--preview-decoder")

    def other(self, what: str, named: str, sha256: str, option: str) -> None:
        """What is there is not what was recorded."""
        text = f"{named} is another than the one that made {self.path} ({sha256[:12]}...)"
        if what not in self.renamed:
            raise UserError(f"{text}: name the right one as {option}, or the same name to go on with what is there")
        self.changed = True
        warn(text)

    def kept_of(
        self, told: dict[str, Any], earlier: Sequence[Image.Image], last: Image.Image
    ) -> tuple[Image.Image, dict[str, Any]]:
        """The image of the stage that made this one, of all that a cascade made anew, and its metadata."""
        if self.kept > len(earlier):  # another cascade, or stopped before
            return last, told
        return earlier[self.kept - 1], of_stage(told, self.kept, earlier[self.kept - 1])

    def compare(self, image: Image.Image) -> None:
        """Say if an image that should be the same is not, to the bit."""
        if self.changed:
            return
        before = read_picture(self.path)
        if before.size != image.size:
            warn(f"the image is of {image.size} pixels, and {self.path} of {before.size}")
        elif most := int(np.abs(np.asarray(before, np.int16) - np.asarray(image, np.int16)).max()):
            made = (self.row.get("diptych", "of an older version"), (self.row.get("model") or {}).get("device", "?"))
            why = ", perhaps in a batch, which rounds otherwise" if most == 1 else ""
            warn(
                f"the image differs from {self.path} by up to {most} of 255, which diptych {made[0]} made on "
                f"{made[1]}{why}"
            )
