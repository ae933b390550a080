"""The texts in an image: all that makes it again, as JSON for diptych, and as galleries and web UIs read it.

`diptych` holds the JSON. `parameters` holds the text that the web UIs of Stable Diffusion write: the prompt, the
negative prompt, and a last line of `Key: value` pairs. diptych up to 0.1.0.dev wrote its JSON there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from PIL import Image

from diptych.core.errors import UserError
from diptych.core.values import short_repr
from diptych.core.version import version
from diptych.models.exif import texts_of
from diptych.models.provenance import XMP_KEY, tool, xmp

KEY = "diptych"
SAMPLERS = {
    "ddpm": "DDPM",
    "ddpm-fixed-large": "DDPM",
    "ddim": "DDIM",
    "euler": "Euler",
    "euler-ancestral": "Euler a",
    "heun": "Heun",
    "dpmpp-2m": "DPM++ 2M",
    "dpmpp-2m-heun": "DPM++ 2M Heun",
    "dpmpp-2m-sde": "DPM++ 2M SDE",
    "dpmpp-2m-sde-heun": "DPM++ 2M SDE Heun",
    "dpmpp-3m": "DPM++ 3M",
    "unipc": "UniPC",
    "unipc-bh1": "UniPC",
    "lcm": "LCM",
}
"""Samplers by the names that galleries know."""
SCHEDULES = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "trailing": "Simple",
    "leading": "DDIM",
    "linspace": "Normal",
}
"""Schedule types by the names of the web UIs: those that have the same times, or nearly."""


class Fields(NamedTuple):
    """A JSON object; it may have further fields."""

    needed: Mapping[str, Any]
    other: Mapping[str, Any]
    text: bool = False
    """Whether a string is allowed too, as in files of earlier versions."""


NUMBER = (int, float)
INPUT_FILE = Fields({}, {"file": str, "sha256": str}, text=True)
MODEL = Fields(
    {},
    {
        **dict.fromkeys(("source", "sha256", "kind", "revision", "dtype", "prediction", "tokenizer", "device"), str),
        "ema": bool,
    },
    text=True,
)
ROW = Fields(
    {"prompt": str, "seed": range(2**63)},
    {
        "negative": (str, NoneType),
        "size": [int],
        "model": MODEL,
        "stages": [Fields({}, {})],
        "image": INPUT_FILE,
        "mask": INPUT_FILE,
        "low": INPUT_FILE,
        "lora": [Fields({"file": str, "scale": NUMBER}, {"sha256": str, "tensors_sha256": str})],
        "guides": [Fields({"guide": str, "scale": NUMBER}, {"source": str, "sha256": str})],
        "decoder": Fields({}, {"source": str, "fingerprint": str}, text=True),
        "kept": int,
    },
)
"""What is read of an image's metadata to make it again; its settings are checked as those of the command line."""


def png_texts(row: dict[str, Any]) -> dict[str, str]:
    """The texts of a PNG, by their keys, of one row of `Result.metadata`."""
    texts = {"Software": tool(), KEY: json.dumps({KEY: version(), **row}), XMP_KEY: xmp(row)}
    # A sheet of several images has no one prompt, seed or sampler.
    return {"parameters": infotext(row), **texts} if "prompt" in row else texts


def of_stage(row: dict[str, Any], number: int, image: Image.Image) -> dict[str, Any]:
    """The row of what stage `number` (from 1) of those that ran has made on the way to the image of `row`."""
    fields = {**row, "size": list(image.size)}
    if "image" in row:  # brought to the size of the last stage: it takes all of them to make this one again
        return {**fields, "kept": number}
    return {**fields, "stages": row["stages"][:number], "stop": number + row.get("start", 0)}


def stage_suffix(metadata: Mapping[str, Any]) -> str:
    """Of the name of an image that a cascade made on its way: its size."""
    number = metadata.get("kept", len(metadata["stages"]))
    return f"-stage-{metadata['stages'][number - 1]['stage'].rpartition('-')[2]}"  # of "32-128", it has 128 pixels


def infotext(row: dict[str, Any]) -> str:
    """What web UIs write: prompt, negative prompt, settings."""
    lines = [row.get("prompt") or ""]
    if row.get("negative"):
        lines.append(f"Negative prompt: {row['negative']}")
    lines.append(", ".join(f"{key}: {quoted(value)}" for key, value in pairs(row)))
    return "\n".join(lines).replace("\0", " ").encode("utf-8", "replace").decode()


def pairs(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings under the names of the web UIs, of a cascade those of the first stage that ran."""
    first = {**row, **(row["stages"][0] if row.get("stages") else {})}
    stated = row.get("model")
    model: dict[str, Any] = stated if isinstance(stated, dict) else {}
    yield "Steps", first.get("steps", 1)
    yield "Sampler", SAMPLERS.get(first.get("sampler", ""), first.get("sampler", "autoregressive"))
    if first.get("schedule_type"):
        yield "Schedule type", SCHEDULES.get(first["schedule_type"], first["schedule_type"])
    if "guidance" in first:
        yield "CFG scale", f"{first['guidance']:g}"
    yield "Seed", row.get("seed", 0)
    if "size" in row:
        yield "Size", "x".join(map(str, row["size"]))
    if model.get("sha256"):
        yield "Model hash", model["sha256"][:10]
        yield "Model", Path(model["source"]).stem
    if "strength" in row:
        yield "Denoising strength", f"{row['strength']:g}"
    if row.get("lora"):
        yield "Lora hashes", ", ".join(f"{Path(one['file']).stem}: {lora_hash(one)}" for one in row["lora"])
    for name in ("guidance_interval", "cache_interval", "precision", "weight_precision"):
        if (value := first.get(name, model.get(name))) is not None:
            yield name.replace("_", " ").capitalize(), value
    yield "Version", f"diptych {version()}"


def lora_hash(row: dict[str, Any]) -> str:
    """Of a LoRA file as galleries look it up: 12 digits of the hash of its tensors, or 10 of that of the file."""
    return row["tensors_sha256"][:12] if "tensors_sha256" in row else row.get("sha256", "")[:10]


def quoted(value: Any) -> str:
    """A value as the web UIs write it: in quotes where it holds what separates pairs."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def read_metadata(path: Path) -> dict[str, Any]:
    """What `png_texts` wrote into a PNG, or `exif_of` into a JPEG or WebP. A `UserError` where the file is none, or
    holds no metadata of diptych's."""
    try:
        with Image.open(path) as image:
            image.load()  # texts may stand behind the pixels
            texts = texts_of(image)
    except FileNotFoundError:
        raise UserError(f"{path} is no file: give a PNG that diptych wrote") from None
    except Exception as error:  # of many kinds: whatever a decoder raises
        raise UserError(
            f"{path} cannot be read as an image ({type(error).__name__}): give a PNG that diptych wrote"
        ) from None
    for key in (KEY, "parameters"):
        try:
            row = json.loads(texts.get(key, ""))
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("prompt"), str) and "seed" in row:
            if wrong := misfit(row, ROW):
                raise UserError(f"the metadata of {path} are damaged: {wrong}")
            return row
        if isinstance(row, dict) and KEY in row and "pictures" in row:
            raise UserError(f"{path} is a sheet of several images: name one of the images on it")
    other = "another program made it" if "parameters" in texts else "they may have been stripped"
    raise UserError(f"{path} holds no metadata of diptych's ({other}), so it cannot be made again from them")


def misfit(value: Any, form: Any, name: str = "") -> str | None:
    """The first part of a value read from JSON that has not the form of `ROW`, in words; none where all has."""
    if isinstance(form, Fields) and isinstance(value, dict):
        if missing := form.needed.keys() - value.keys():
            return f"{name} has no {min(missing)}"
        parts = {**form.needed, **form.other}
        reasons = (
            misfit(value[key], part, f"{name}.{key}" if name else key) for key, part in parts.items() if key in value
        )
    elif isinstance(form, list) and isinstance(value, list):
        reasons = (misfit(one, form[0], name) for one in value)
    else:
        if isinstance(form, Fields):
            fits = form.text and isinstance(value, str)
        elif isinstance(form, range):
            fits = type(value) is int and value in form
        else:
            fits = type(value) in (form if isinstance(form, tuple) else (form,))  # true is no number
        return None if fits else f"{name} cannot be {short_repr(value)}"
    return next(filter(None, reasons), None)
