"""`diptych generate --from image.png`: an image's metadata turned back into options, its files found and verified."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.core.errors import UserError, warn
from diptych.core.image_files import read_image
from diptych.core.values import ImageFile
from diptych.models.metadata import of_stage, read_metadata
from diptych.models.option_registry import all_options
from diptych.models.options import KNOBS
from diptych.weights.file_hash import file_sha256
from diptych.weights.identity import Origin

OPENING = ("revision", "dtype", "ema", "prediction", "precision", "weight_precision")
"""Metadata of a model that are options by the same name. Whether pickles may be read is not for an image to say."""
WITHOUT_EFFECT = ("keep_stages", "one_at_a_time")
"""Options that change no image, and are not recorded."""
SPECIAL = ("size", "decoder", "guides")
"""Options that are recorded in another form than the command line has them."""
IMAGES = tuple(name for name, option in all_options().items() if isinstance(option.value, ImageFile))
"""Options that name an image: recorded are its file and SHA-256."""
OPTIONS = tuple(
    name
    for name, option in all_options().items()
    if option.arguments and name not in (*IMAGES, *WITHOUT_EFFECT, *SPECIAL)
)
"""Options that are recorded as they are."""


@dataclass
class Recorded:
    """The metadata of an image, and whether all that decides its pixels is asked for unchanged."""

    path: Path
    row: dict[str, Any]
    changed: bool = False
    """Whether the user asked for something else than what was recorded."""
    replaced: set[str] = field(default_factory=set)
    """What the user named in place of what was recorded: model, guides."""
    filled: set[str] = field(default_factory=set)
    """Options that were set to what was recorded."""

    @classmethod
    def read(cls, path: Path) -> Recorded:
        """Raises a `UserError` where a file is no image, has no metadata, or was made from noise of the caller's."""
        row = with_current_names(read_metadata(path))
        if isinstance(row.get("model"), str):  # as it was written at first
            row["model"] = {} if row["model"] == "default" else {"source": row["model"]}
        if "noise" in row:
            raise UserError(
                f"{path} was made from noise that was given in Python, which no file holds: "
                "give the same to `generate` in Python"
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
            self.replaced.add("model")
        recorded = {*row, *(row["stages"][0] if row.get("stages") else ())}
        deciding = (*OPTIONS, *IMAGES, *SPECIAL, "lora")
        added = any(getattr(arguments, name) is not None for name in deciding if name not in recorded)
        if added or arguments.prompts or arguments.seed or arguments.count or arguments.variations:
            self.changed = True
        arguments.prompts = arguments.prompts or ([row["prompt"]] if row["prompt"] else [])
        arguments.seed = arguments.seed or [range(row["seed"], row["seed"] + 1)]
        arguments.keep_stages = arguments.keep_stages or (self.kept > 0 or None)
        stages = row.get("stages")
        samplers = [stage.get("sampler") for stage in stages] if stages else row.get("sampler")
        other_sampler = arguments.sampler not in (None, samplers)
        for name in OPTIONS:
            value = row.get(name)
            if stages and all_options()[name].per_stage:
                values = [stage.get(name) for stage in stages]
                if arguments.stop is not None:  # stages that did not run have their own
                    values += [None] * (arguments.stop - row.get("start", 0) - len(values))
                value = None if all(one is None for one in values) else values
            if other_sampler and all_options()[name].group == KNOBS:
                self.changed = True  # the recorded ones are of another sampler
                continue
            self.set(arguments, name, value)
        if "size" in row and not stages and "low_res" not in row:
            self.set(arguments, "size", tuple(row["size"]))
        if isinstance(decoder := row.get("decoder"), dict):
            self.set(arguments, "decoder", decoder.get("source"))
            self.require(arguments.decoder, "decoder", "its decoder was given in Python", "--decoder")
        for name in IMAGES:
            if name in row:
                self.set_image(arguments, name, row[name])
        self.set_adapters(arguments)

    @property
    def kept(self) -> int:
        """The number, from 1, of the stage of those that ran whose image this is; 0 for the last one. Where an image
        was given, all stages run again, because it was brought to the size of the last."""
        return self.row.get("kept", 0)

    def set(self, arguments: argparse.Namespace, name: str, value: Any) -> None:
        """Set one option, where it is not given."""
        if value is None or value is False:
            return
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
            self.filled.add(name)
        elif getattr(arguments, name) != value:
            self.changed = True

    def require(self, value: Any, name: str, why: str, option: str) -> None:
        """Raise a `UserError` where a value was not recorded."""
        if value is None:
            raise UserError(f"{self.path} does not say which {name} to take ({why}): give it as {option}")

    def set_image(self, arguments: argparse.Namespace, name: str, entry: Any) -> None:
        """Set an option that names an image; one that is given is compared with what was recorded."""
        entry = entry if isinstance(entry, dict) else {}
        what = "low-resolution image" if name == "low_res" else name
        path: Path | None = getattr(arguments, name)
        if path is not None:
            if path.is_file() and entry.get("sha256") not in (None, file_sha256(path)):
                warn(f"{path} is another file than the {what} that {self.path} was made from")
                self.changed = True
            return
        option = all_options()[name].arguments[0]
        self.require(entry.get("file"), what, "it was in memory, or not recorded", option)
        setattr(arguments, name, self.find_file(entry, what, option))

    def find_file(self, entry: Mapping[str, Any], what: str, option: str) -> Path:
        """A recorded file, here or in the image's folder, with the content that was recorded."""
        file = Path(entry["file"])
        places = [file, self.path.parent / file, self.path.parent / file.name, Path(file.name)]
        existing = [place for place in places if place.is_file()]
        for place in existing:
            if entry.get("sha256") in (None, file_sha256(place)):
                return place
        expected = f"the {what} {file} (SHA-256 {str(entry.get('sha256'))[:12]}...)"
        if existing:
            raise UserError(
                f"{self.path} was made from {expected}; {existing[0]} is another file: give the right one as {option}"
            )
        raise UserError(f"{self.path} was made from {expected}, which is not here: give it as {option}")

    def set_adapters(self, arguments: argparse.Namespace) -> None:
        """Set LoRA files and guides, where none are given."""
        if loras := self.row.get("lora"):
            if arguments.lora is None:
                arguments.lora = [(self.find_file(one, "LoRA file", "--lora"), one["scale"]) for one in loras]
            else:
                self.changed = self.changed or other_loras(arguments.lora, loras)
        if guides := self.row.get("guides"):
            if arguments.guides is None:
                for one in guides:
                    self.require(one.get("source"), f"guide {one['guide']}", "it was made in Python", "--classifier")
                arguments.guides = [(one["source"], one["scale"]) for one in guides]
            else:
                self.replaced.add("guides")

    def fitting(self, model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options without recorded ones that another model, which the user named, does not take."""
        taken = inspect.signature(model.generate).parameters
        other = self.filled if "model" in self.replaced else set[str]()
        left_out = [
            name
            for name, value in options.items()
            if name in other and (name not in taken or (isinstance(value, list) and "stop" not in taken))
        ]
        if left_out:
            warn(f"{', '.join(left_out)} of {self.path} are of another kind of model: left out")
        return {name: value for name, value in options.items() if name not in left_out}

    def verify(self, model: Any, options: Mapping[str, Any]) -> None:
        """Raise a `UserError` where a model, decoder or guide that was found by its recorded name is another than then;
        where the user named it, warn."""
        recorded, origin = self.row.get("model") or {}, getattr(model, "origin", None)
        if isinstance(origin, Origin) and recorded.get("sha256") not in (None, origin.sha256):
            self.differs("model", f"the model {origin.source}", recorded["sha256"], "--model")
        now = [guide.origin.sha256 for guide, _ in options.get("guides", ())]
        for guide, sha256 in zip(self.row.get("guides", []), now, strict=False):
            if guide.get("sha256") not in (None, sha256):
                self.differs("guides", f"the guide {guide['guide']}", guide["sha256"], "--classifier or --clip")
        decoder = self.row.get("decoder")
        if isinstance(decoder, dict) and options.get("decoder") == decoder.get("source"):
            from diptych.weights.fingerprint import fingerprint

            if fingerprint(model.decoder(options["decoder"])) != decoder.get("fingerprint"):
                self.differs("decoder", "the decoder", str(decoder.get("fingerprint")), "--decoder")

    def differs(self, what: str, named: str, sha256: str, option: str) -> None:
        """Raise or warn: what is there is not what was recorded."""
        text = f"{named} is another than the one that made {self.path} ({sha256[:12]}...)"
        if what not in self.replaced:
            raise UserError(f"{text}: name the right one as {option}, or the same name to go on with what is there")
        self.changed = True
        warn(text)

    def kept_image(
        self, metadata: dict[str, Any], earlier: Sequence[Image.Image], last: Image.Image
    ) -> tuple[Image.Image, dict[str, Any]]:
        """The image of the recorded stage among those of all stages, and its metadata."""
        if self.kept > len(earlier):  # another cascade, or stopped before
            return last, metadata
        image = earlier[self.kept - 1]
        return image, of_stage(metadata, self.kept, image)

    def compare(self, image: Image.Image) -> None:
        """Warn where an image that should be the same differs in any bit. A JPEG or WebP holds it with a loss."""
        with Image.open(self.path) as recorded:
            lossless = recorded.format == "PNG"
        if self.changed or not lossless:
            return
        before = read_image(self.path)
        if before.size != image.size:
            warn(f"the image is of {image.size} pixels, and {self.path} of {before.size}")
        elif most := int(np.abs(np.asarray(before, np.int16) - np.asarray(image, np.int16)).max()):
            version = self.row.get("diptych", "of an older version")
            made = self.row.get("model") or {}
            how = [made.get("device", "?"), *(str(made[name]) for name in ("engine", "precision") if name in made)]
            why = ", perhaps in a batch, which rounds otherwise" if most == 1 else ""
            warn(
                f"the image differs from {self.path} by up to {most} of 255, which diptych {version} made on "
                f"{', '.join(how)}{why}"
            )


def with_current_names(row: dict[str, Any]) -> dict[str, Any]:
    """Metadata with options that had another name before under those of today."""
    today = {old: name for name, option in all_options().items() for old in option.old if name not in row}
    return {today.get(key, key): value for key, value in row.items()}


def other_loras(files: Sequence[tuple[Path, float]], recorded: Sequence[Mapping[str, Any]]) -> bool:
    """Whether other LoRA files, or other scales, are given than what was recorded."""
    if any(not file.is_file() for file, _ in files):
        return True  # opening them reports it
    now = sorted((file_sha256(file), scale) for file, scale in files)
    return now != sorted((one.get("sha256", ""), one["scale"]) for one in recorded)
