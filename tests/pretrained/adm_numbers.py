"""guided-diffusion in miniature: its networks at random weights, and the program that writes down what they answer.

    git clone https://github.com/openai/guided-diffusion
    git -C guided-diffusion checkout 22e0df8183507e13a7813f8d38d51b072ca1e67c
    PYTHONPATH=guided-diffusion:. python -m tests.pretrained.adm_numbers > tests/pretrained/adm_numbers.json

Weights are drawn in the alphabetical order of the published keys, so that whoever knows the keys and shapes can make
them again. Each network is called at two times, and two are sampled from, by `p_sample_loop` of a diffusion of 10 of
1000 steps, with the noise that our seeds draw.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from diptych.diffusion.steps import NoiseSource
from diptych.models.pixel_diffusion import stage_seed
from tests.networks.reference import noise

COMMIT = "22e0df8183507e13a7813f8d38d51b072ca1e67c"
COMMON: dict[str, Any] = {"image_size": 16, "in_channels": 3, "out_channels": 6}
ADM: dict[str, Any] = {**COMMON, "resblock_updown": True, "use_scale_shift_norm": True}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "unconditional": (
        "UNetModel",
        {
            **ADM,
            "model_channels": 32,
            "num_res_blocks": 1,
            "attention_resolutions": (2, 4),
            "channel_mult": (1, 1, 2),
            "num_head_channels": 16,
        },
    ),
    "classes": (
        "UNetModel",
        {
            **ADM,
            "model_channels": 64,
            "num_res_blocks": 2,
            "attention_resolutions": (4,),
            "channel_mult": (0.5, 1, 2),
            "num_head_channels": 32,
            "num_classes": 10,
            "use_new_attention_order": True,
        },
    ),
    "upsampler": (
        "SuperResModel",
        {
            **ADM,
            "model_channels": 32,
            "num_res_blocks": 2,
            "attention_resolutions": (2,),
            "channel_mult": (1, 2),
            "num_heads": 4,
            "num_classes": 10,
        },
    ),
    "plain": (  # as in latent-diffusion, and before ADM
        "UNetModel",
        {
            **COMMON,
            "out_channels": 3,
            "model_channels": 32,
            "num_res_blocks": 2,
            "attention_resolutions": (2, 4),
            "channel_mult": (1, 2, 3),
            "num_head_channels": 16,
        },
    ),
}
ENCODER: dict[str, Any] = {
    **ADM,
    "out_channels": 10,
    "model_channels": 32,
    "num_res_blocks": 2,
    "attention_resolutions": (2, 4),
    "channel_mult": (1, 2, 2),
    "num_head_channels": 32,
}
for pool in ("attention", "adaptive", "spatial", "spatial_v2"):
    MODELS[f"classifier, {pool}"] = ("EncoderUNetModel", {**ENCODER, "pool": pool})
SAMPLED = {"classes": "cosine", "upsampler": "linear"}
"""And by which schedule."""

BATCH, STEPS, SEED, SIDE, LOW = 2, 10, 5, 16, 8
TIMES, LABELS = (3, 977), (1, 7)
CALM = 0.1
"""Of networks that are sampled from, the last layer's weights are multiplied by it, so that rounding errors die out."""


def weights(shapes: Mapping[str, tuple[int, ...]], calm: float = 1.0) -> dict[str, Tensor]:
    """A state dict of these shapes: matrices of unit gain, norms near 1, and no branch silent."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for key in sorted(shapes):
        draw = torch.randn(shapes[key], generator=generator)
        if draw.ndim > 1:
            made[key] = draw / draw[0].numel() ** 0.5 * (calm if key == "out.2.weight" else 1.0)
        else:
            made[key] = float(key.endswith("weight")) + 0.1 * draw
    return made


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy images, times, classes and low-resolution images."""
    images, low = noise(BATCH, 3, SIDE, SIDE), noise(BATCH, 3, LOW, LOW, seed=2).clamp(-1, 1)
    return images, torch.tensor(TIMES), torch.tensor(LABELS), low


def some(values: Tensor) -> list[float]:
    """Some of many values: every 7th."""
    return [float(f"{value:.7g}") for value in values.double().flatten()[::7]]


def source(low: bool) -> NoiseSource:
    """What our stage draws for the seeds SEED, SEED + 1."""
    config: Any = SimpleNamespace(low_size=LOW if low else None, name=f"{LOW}-{SIDE}")
    return NoiseSource([stage_seed(SEED + number, config) for number in range(BATCH)], (3, SIDE, SIDE))


@torch.no_grad()
def main() -> None:
    """Print what the original modules answer."""
    unet = importlib.import_module("guided_diffusion.unet")
    gaussian = importlib.import_module("guided_diffusion.gaussian_diffusion")
    create = importlib.import_module("guided_diffusion.script_util").create_gaussian_diffusion
    x, times, labels, low = inputs()
    numbers: dict[str, Any] = {}
    for name, (kind, options) in MODELS.items():
        model = getattr(unet, kind)(**options).eval()
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        extra: dict[str, Tensor] = {"y": labels} if "num_classes" in options else {}
        extra |= {"low_res": low} if kind == "SuperResModel" else {}
        model.load_state_dict(weights(shapes))
        numbers[name] = {"forward": some(model(x, times, **extra))}
        if name in SAMPLED:
            model.load_state_dict(weights(shapes, CALM))
            diffusion = create(learn_sigma=True, noise_schedule=SAMPLED[name], timestep_respacing=str(STEPS))
            draws = source(kind == "SuperResModel")
            start = draws.draw()
            gaussian.th.randn_like = lambda like, draws=draws: draws.draw()
            image = diffusion.p_sample_loop(model, start.shape, noise=start, model_kwargs=extra, device="cpu")
            numbers[name]["picture"] = some(image)
    json.dump({"commit": COMMIT, **numbers}, sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
