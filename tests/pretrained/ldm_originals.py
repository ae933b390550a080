"""Writes what latent-diffusion's original modules answer to ldm_pins.json, for test_compvis.py. It is no test.

    PYTHONPATH=.:LATENT_DIFFUSION:TAMING python -m tests.pretrained.ldm_originals

with checkouts of CompVis/latent-diffusion (a506df5756472e2ebaf9078affdde2c4f1502cd4) and CompVis/taming-transformers
(3ba01b241669f5ade541ce990f7650a3b8f65318), einops and omegaconf. The rest of what they import is not needed.
"""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch

from tests.pretrained import ldm_models as models

PINS = Path(__file__).with_name("ldm_pins.json")
FIRST = {
    "kl": {"ch": 32, "ch_mult": (1, 2), "z_channels": 4, "num_res_blocks": 1, "attn_resolutions": ()},
    "kl-attending": {"ch": 32, "ch_mult": (1, 2, 2), "z_channels": 6, "num_res_blocks": 2, "attn_resolutions": (64,)},
    "vq": {"ch": 32, "ch_mult": (1, 2), "z_channels": 3, "num_res_blocks": 1, "attn_resolutions": ()},
    "vq-noattn": {"ch": 32, "ch_mult": (1, 2), "z_channels": 3, "num_res_blocks": 1, "attn_resolutions": ()},
    "vq-attending": {"ch": 32, "ch_mult": (1, 2), "z_channels": 4, "num_res_blocks": 2, "attn_resolutions": (128,)},
}
UNET = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,)}
READS = {"use_spatial_transformer": True, "context_dim": 64, "conditioning_key": "crossattn"}
MODELS: dict[str, dict[str, Any]] = {
    "text-kl": {**UNET, **READS, "first": "kl", "num_heads": 8, "legacy": False, "linear_start": 0.00085}
    | {"linear_end": 0.012, "scale_factor": 0.18215, "cond": "text"},
    "text-vq": {**UNET, **READS, "first": "vq", "num_head_channels": 32, "cond": "text"},
    "class-vq4": {**UNET, **READS, "first": "vq", "num_heads": 1, "cond": "class", "n_classes": models.CLASSES},
    "class-vq8": {**UNET, **READS, "first": "vq-attending", "num_head_channels": 32, "cond": "class"}
    | {"n_classes": 1000, "attention_resolutions": (1, 2)},
    "plain-vq": {**UNET, "first": "vq", "num_head_channels": 32},
    "plain-kl": {**UNET, "first": "kl", "num_heads": 8, "use_scale_shift_norm": True, "resblock_updown": True}
    | {"attention_resolutions": (1, 2), "linear_end": 0.0155, "scale_by_std": True, "scale_factor": 0.7},
}
PLAIN = ("plain-vq", "plain-kl")
"""Not told anything; class-vq8 was never told of no class, and cannot be guided."""


def stubs() -> None:
    """Empty modules in the place of those that only training needs."""
    for name in ("clip", "kornia", "pytorch_lightning", "pytorch_lightning.utilities", "torchvision"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.utils"] = types.ModuleType("torchvision.utils")
    sys.modules["torchvision.utils"].make_grid = None  # type: ignore[attr-defined]
    sys.modules["pytorch_lightning"].LightningModule = Module  # type: ignore[attr-defined]
    distributed = types.ModuleType("pytorch_lightning.utilities.distributed")
    distributed.rank_zero_only = lambda function: function  # type: ignore[attr-defined]
    sys.modules[distributed.__name__] = distributed


class Module(torch.nn.Module):
    device = torch.device("cpu")


def stage(name: str) -> dict[str, Any]:
    quantised = name.startswith("vq")
    shape = {"double_z": not quantised, "resolution": 256, "in_channels": 3, "out_ch": 3, "dropout": 0.0, **FIRST[name]}
    if name == "vq-noattn":
        shape["attn_type"] = "none"
    values: dict[str, Any] = {"ddconfig": shape, "lossconfig": {"target": "torch.nn.Identity"}}
    values |= {"embed_dim": shape["z_channels"], **({"n_embed": 32} if quantised else {})}
    return {
        "target": f"ldm.models.autoencoder.{'VQModelInterface' if quantised else 'AutoencoderKL'}",
        "params": values,
    }


def condition(values: dict[str, Any]) -> Any:
    where, width = "ldm.modules.encoders.modules.", values.get("context_dim")
    if values["cond"] == "text":
        sizes = {"n_layer": 2, "vocab_size": len(models.VOCABULARY), "max_seq_len": models.TOKENS, "device": "cpu"}
        return {"target": where + "BERTEmbedder", "params": {"n_embed": width, **sizes}}
    sizes = {"n_classes": values["n_classes"], "key": "class_label"}
    return {"target": where + "ClassEmbedder", "params": {"embed_dim": width, **sizes}}


def original(name: str) -> Any:
    from ldm.models.diffusion.ddpm import LatentDiffusion

    values = {"linear_start": 0.0015, "linear_end": 0.0195, **MODELS[name]}
    first = values.pop("first")
    channels = FIRST[first]["z_channels"]
    cond = condition(values) if "cond" in values else "__is_unconditional__"
    ours = ("linear_start", "linear_end", "scale_factor", "scale_by_std", "conditioning_key")
    beside = {key: values.pop(key) for key in ours if key in values}
    for key in ("cond", "n_classes"):
        values.pop(key, None)
    shape = {"image_size": 16, "in_channels": channels, "out_channels": channels, **values}
    return LatentDiffusion(
        first_stage_config=stage(first),
        cond_stage_config=cond,
        unet_config={"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": shape},
        timesteps=1000,
        image_size=16,
        channels=channels,
        cond_stage_trainable="cond" in MODELS[name],
        cond_stage_key="class_label",
        use_ema=False,
        **beside,
    )


def fill(module: Any) -> dict[str, tuple[int, ...]]:
    """Give it the numbers by the rule; its keys and shapes."""
    keys = [key for key, _ in module.named_parameters()]
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items() if key in keys}
    module.load_state_dict(models.drawn(shapes), strict=False)
    module.eval()
    return shapes


def shown(value: Any) -> list[float]:
    return [float(f"{number:.9g}") for number in models.some(value).tolist()]


def painted(model: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """By DDIM as in scripts/txt2img.py: latents, and one image of 32 pixels from 0 to 255."""
    from ldm.models.diffusion.ddim import DDIMSampler

    class OnCpu(DDIMSampler):
        def register_buffer(self, name, attr):
            setattr(self, name, attr)

    cond = none = None
    if MODELS[name].get("cond") == "text":
        cond, none = model.get_learned_conditioning(["a red apple"]), model.get_learned_conditioning([""])
    elif MODELS[name].get("cond") == "class":
        cond = model.get_learned_conditioning({"class_label": torch.tensor([7])})
        none = model.get_learned_conditioning({"class_label": torch.tensor([MODELS[name]["n_classes"] - 1])})
    shape = (model.channels, models.SIZE // 2, models.SIZE // 2)
    latents, _ = OnCpu(model).sample(
        models.STEPS,
        1,
        shape,
        conditioning=cond,
        verbose=False,
        x_T=models.noise(1, *shape),
        unconditional_guidance_scale=1.0 if name in ("class-vq8", *PLAIN) else 3.0,
        unconditional_conditioning=none,
    )
    return latents, 255 * ((model.decode_first_stage(latents) + 1) / 2).clamp(0, 1)


@torch.no_grad()
def main() -> None:
    from transformers import BertTokenizerFast  # before the stubs, which it would look at

    stubs()
    folder = models.tokenizer_folder(Path(tempfile.mkdtemp()))
    BertTokenizerFast.from_pretrained = lambda name: BertTokenizerFast(str(folder / "vocab.txt"))  # type: ignore
    from ldm.util import instantiate_from_config

    answers: dict[str, Any] = {}
    for name in FIRST:
        with contextlib.redirect_stdout(io.StringIO()):
            module = instantiate_from_config(stage(name))
            shapes = fill(module)
            moments = module.encode(models.noise(1, 3, 32, 32))
            side = 32 // 2 ** (len(FIRST[name]["ch_mult"]) - 1)
            decoded = module.decode(models.noise(1, FIRST[name]["z_channels"], side, side, seed=2))
        answers[name] = {"keys": models.digest(shapes)}
        answers[name] |= {"encoder": shown(getattr(moments, "parameters", moments)), "decoder": shown(decoded)}
    for name, values in MODELS.items():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            model = original(name)
            shapes = fill(model)
            if values.get("cond") == "text":
                model.cond_stage_model.tknz_fn.device = "cpu"
            x = models.noise(2, model.channels, 16, 16)
            told = {}
            if values.get("cond") == "text":
                told = {"context": model.get_learned_conditioning(["a red apple", "two cats"])}
            elif values.get("cond") == "class":
                told = {"context": model.get_learned_conditioning({"class_label": torch.tensor([7, 999])})}
            answer = model.model.diffusion_model(x, torch.tensor([3.0, 700.0]), **told)
            latents, image = painted(model, name)
        answers[name] = {"keys": models.digest(shapes), "unet": shown(answer)}
        answers[name] |= {"latents": shown(latents), "picture": shown(image)}
        answers[name] |= {"text": shown(told["context"])} if values.get("cond") == "text" else {}
    lines = (f"{json.dumps(name)}: {json.dumps(answer)}" for name, answer in answers.items())
    PINS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
