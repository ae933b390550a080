"""CLIP with both towers, as transformers saves it, for measuring."""

from __future__ import annotations

from pathlib import Path

from diptych.core.config import read_json
from diptych.core.errors import UserError
from diptych.models.pair_guide import ClipPair
from diptych.weights.hub import fetch_model, hub_id

EXAMPLE = "openai/clip-vit-large-patch14"


def read_clip(source: str | Path, offline: bool = False) -> ClipPair:
    """A CLIP on the CPU in float32, frozen.

    source: a folder as transformers saves it (safetensors), or a model of the hub.

    Raises a `UserError` where there is none, or its files are damaged.
    """
    folder = Path(source)
    if not folder.is_dir():
        if (repository := hub_id(str(source))) is None:
            raise UserError(f"no CLIP at {source}: give a folder as transformers saves it, or {EXAMPLE} of the hub")
        folder = fetch_model(*repository, offline=offline)
    config = read_json(
        folder / "config.json",
        missing=f"{folder} has no config.json: give a CLIP as transformers saves it",
        damaged=f"{folder / 'config.json'} is not readable JSON",
    )
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "clip":
        raise UserError(f"{folder} holds a model of type {kind!r}, not clip with both towers")
    return ClipPair(folder).eval().requires_grad_(False)
