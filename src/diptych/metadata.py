"""The texts in a PNG: all that makes the image again, as JSON for diptych, and as galleries and web UIs read it.

`diptych` holds the JSON. `parameters` holds the text that the web UIs of Stable Diffusion write: the prompt, the
negative prompt, and a last line of `Key: value` pairs. diptych up to 0.1.0.dev wrote its JSON there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.errors import UserError
from diptych.version import version

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
}
"""Samplers by the names that galleries know."""


def png_texts(row: dict[str, Any]) -> dict[str, str]:
    """The texts of a PNG, by their keys, of one row of `Result.metadata`."""
    return {"Software": f"diptych {version()}", "parameters": infotext(row), KEY: json.dumps({KEY: version(), **row})}


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
    named = row.get("model")
    model: dict[str, Any] = named if isinstance(named, dict) else {}
    yield "Steps", first.get("steps", 1)
    yield "Sampler", SAMPLERS.get(first.get("sampler", ""), first.get("sampler", "autoregressive"))
    if first.get("schedule_type"):
        yield "Schedule type", first["schedule_type"].capitalize()
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
        yield "Lora hashes", ", ".join(f"{Path(one['file']).stem}: {one['sha256'][:12]}" for one in row["lora"])
    yield "Version", f"diptych {version()}"


def quoted(value: Any) -> str:
    """A value as the web UIs write it: in quotes where it holds what separates pairs."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def read_metadata(path: Path) -> dict[str, Any]:
    """What `png_texts` wrote into a PNG. A `UserError` where the file is none, or holds no metadata of diptych's."""
    try:
        with Image.open(path) as image:
            image.load()  # texts may stand behind the pixels
            texts = dict(getattr(image, "text", {}))
    except FileNotFoundError:
        raise UserError(f"{path} is no file: give a PNG that diptych wrote") from None
    except Exception as error:  # of many kinds: whatever a decoder raises
        raise UserError(
            f"{path} cannot be read as an image ({type(error).__name__}): give a PNG that diptych wrote"
        ) from None
    for key in (KEY, "parameters"):
        try:
            row = json.loads(texts.get(key, ""))
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("prompt"), str) and isinstance(row.get("seed"), int):
            return row
    other = "another program made it" if "parameters" in texts else "they may have been stripped"
    raise UserError(f"{path} holds no metadata of diptych's ({other}), so it cannot be made again from them")
