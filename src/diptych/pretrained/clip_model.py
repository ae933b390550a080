"""CLIP with both towers, as transformers has it, for measuring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.core.config import read_json
from diptych.core.errors import UserError
from diptych.weights.hub import fetch_model, hub_id

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the images that OpenAI's CLIP was trained on, where a folder does not say."""
EXAMPLE = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class Clip:
    """Both towers."""

    model: Any
    """transformers' `CLIPModel`, frozen, in float32."""
    tokenizer: Any
    mean: tuple[float, ...]
    """Of red, green and blue from 0 to 1."""
    deviation: tuple[float, ...]


def read_clip(source: str | Path, offline: bool = False) -> Clip:
    """A CLIP on the CPU.

    source: a folder as transformers saves it (safetensors), or a model of the hub.

    Raises a `UserError` where there is none, or its files are damaged.
    """
    import torch
    from transformers import AutoTokenizer, CLIPModel

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
    if config.get("model_type") != "clip":
        raise UserError(f"{folder} holds a model of type {config.get('model_type')!r}, not clip with both towers")
    try:
        model = CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers raises on damaged or missing files
        raise UserError(f"{folder} cannot be read as a CLIP: {' '.join(str(error).split())[:200]}") from None
    path = folder / "preprocessor_config.json"
    values: dict[str, Any] = read_json(path, missing="", damaged=f"{path} is no JSON") if path.is_file() else {}
    mean, deviation = (values.get(name) or usual for name, usual in (("image_mean", MEAN), ("image_std", DEVIATION)))
    for numbers in (mean, deviation):
        if (
            not isinstance(numbers, list | tuple)
            or len(numbers) != 3
            or not all(isinstance(n, float | int) for n in numbers)
        ):
            raise UserError(f"{path}: image_mean and image_std must be three numbers each")
    if not all(number > 0 for number in deviation):
        raise UserError(f"{path}: image_std must be above zero")
    return Clip(model.eval().requires_grad_(False), tokenizer, tuple(mean), tuple(deviation))
