"""DeepFloyd IF: a stage as diffusers saves it (IFPipeline, IFSuperResolutionPipeline) becomes a stage of a cascade.

What is read: unet/, scheduler/, text_encoder/ and tokenizer/ where they are there, and image_noising_scheduler/ of a
super-resolution stage. What is not: safety_checker/, feature_extractor/ and watermarker/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from diptych.conditioning.lowres_augmentation import AugmentationConfig
from diptych.core.errors import UserError
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.diffusion.times import TimesConfig
from diptych.encoders.configs import T5Config
from diptych.models.pixel_config import PixelDiffusionConfig, require_trained
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.adm import AdmUNet, AdmUNetConfig
from diptych.pretrained import schedulers
from diptych.pretrained.adm_keys import diffusers_adm
from diptych.pretrained.key_map import pieces
from diptych.pretrained.source import Family, Source
from diptych.weights.lazy import fill, on_meta

BASE = ("IFPipeline", "IFImg2ImgPipeline", "IFInpaintingPipeline")
ENLARGING = ("IFSuperResolutionPipeline", "IFImg2ImgSuperResolutionPipeline", "IFInpaintingSuperResolutionPipeline")
"""Classes of pipelines, each with the same parts."""
FACTOR = 4
"""How many times larger a super-resolution stage makes an image: from 64 to 256, from 256 to 1024 pixels."""
MAX_TOKENS = 77
ACTIVATIONS: dict[Any, Any] = {"gelu": "gelu", "silu": "silu", "swish": "silu"}
DOWN = {"ResnetDownsampleBlock2D": False, "SimpleCrossAttnDownBlock2D": True}
UP = {"ResnetUpsampleBlock2D": False, "SimpleCrossAttnUpBlock2D": True}
"""Kinds of levels that resample in residual blocks, and whether they attend."""
FIXED: dict[str, tuple[Any, ...]] = {
    "addition_embed_type": ("text",),
    "attention_type": ("default",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": ("group_norm",),
    "encoder_hid_dim_type": ("text_proj",),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn",),
    "norm_eps": (1e-5,),
    "time_embedding_type": ("positional",),
}
"""Fields of a U-Net's config that can say one thing only, where they say anything."""
NEEDED = ("addition_embed_type", "cross_attention_norm", "mid_block_type")
"""Those whose own default is another."""
READ = (
    *("in_channels", "out_channels", "sample_size", "block_out_channels", "layers_per_block", "dropout", "act_fn"),
    *("down_block_types", "up_block_types", "attention_head_dim", "only_cross_attention", "norm_num_groups"),
    *("mid_block_only_cross_attention", "cross_attention_dim", "encoder_hid_dim", "addition_embed_type_num_heads"),
    *("class_embed_type", "resnet_time_scale_shift", "resnet_skip_time_act", "resnet_out_scale_factor"),
    *("mid_block_scale_factor", "time_embedding_dim", "time_embedding_act_fn"),
)
"""Those that decide our own config."""
WITHOUT_EFFECT = ("downsample_padding", "transformer_layers_per_block", "upcast_attention", "use_linear_projection")
"""Those that such blocks do not read."""


def fits(source: Source) -> bool:
    return source.index is not None and source.index.get("_class_name") in (*BASE, *ENLARGING)


def read(source: Source) -> PixelDiffusion:
    """The stage in a folder. Its text encoder stays where it lies until prompts are read."""
    config = stage_config(source)
    with on_meta():
        network = AdmUNet(cast(AdmUNetConfig, config.network))
    tensors = pieces(diffusers_adm(network), source.part("unet"))
    fill(network, tensors, tensors.source, source.options.dtype)
    require_trained(network, f"the stage in {source.path}")
    return PixelDiffusion(config, network=network).eval()


def stage_config(source: Source) -> PixelDiffusionConfig:
    """What the folder's configs say, in ours. A `UserError` names the file and the field that we cannot follow."""
    unet, where = source.config("unet"), source.path / "unet" / "config.json"
    enlarging = (source.index or {}).get("_class_name") in ENLARGING
    size = number(unet, "sample_size", where)
    if enlarging and (unet.get("in_channels") != 6 or size % FACTOR):
        raise UserError(f"{where}: a super-resolution stage has 6 input channels and a side that {FACTOR} divides")
    last = enlarging and size >= 1024
    return PixelDiffusionConfig(
        network=network_config(unet, where),
        text=text_config(source, unet.get("encoder_hid_dim") or unet.get("cross_attention_dim")),
        null_text="empty",
        **noise_config(source),
        size=size,
        low_size=size // FACTOR if enlarging else None,
        augmentation=augmentation_config(source, 0.0 if last else 0.25) if enlarging else AugmentationConfig(),
        # The defaults of diffusers' pipelines
        steps=50 if enlarging else 100,
        guidance=4.0 if enlarging else 7.0,
    )


def network_config(values: dict[str, Any], where: Path) -> AdmUNetConfig:
    """A `UNet2DConditionModel` as DeepFloyd IF has it. What our network does not have is refused by name."""
    for field in values:
        if not (field.startswith("_") or field in READ or field in WITHOUT_EFFECT):
            demand(values, field, (*FIXED.get(field, ()), None, *(() if field in FIXED else (False,))), where)
    for field in NEEDED:
        demand(values, field, FIXED[field], where)
    widths = numbers(values, "block_out_channels", where)
    levels = len(widths)
    down, up = (tuple(values.get(field) or ()) for field in ("down_block_types", "up_block_types"))
    if len(down) != levels or not set(down) <= set(DOWN):
        raise UserError(f"{where}: down_block_types must be {levels} of {', '.join(DOWN)}, not {list(down)}")
    attending = tuple(level for level in range(levels) if DOWN[down[level]])
    if [UP.get(kind) for kind in up] != [DOWN[kind] for kind in reversed(down)]:
        raise UserError(f"{where}: up_block_types must be those of down_block_types in reverse, not {list(up)}")
    if any(width % widths[0] for width in widths):
        raise UserError(f"{where}: block_out_channels must be multiples of the first, not {list(widths)}")
    alone = bool(values.get("only_cross_attention", False))
    demand(values, "only_cross_attention", (True, False, None), where)
    demand(values, "mid_block_only_cross_attention", (None, alone), where)
    demand(values, "class_embed_type", ("timestep", None), where)
    demand(values, "resnet_time_scale_shift", ("scale_shift", "default", None), where)
    demand(values, "act_fn", (*ACTIVATIONS, None), where)
    activation = ACTIVATIONS[values.get("act_fn") or "silu"]
    preactivated = bool(values.get("resnet_skip_time_act", False))
    embedded = values.get("time_embedding_act_fn")
    if (ACTIVATIONS.get(embedded) if embedded else None) != (activation if preactivated else None):
        raise UserError(f"{where}: time_embedding_act_fn must be act_fn where resnet_skip_time_act is true, else none")
    scale = float(values.get("resnet_out_scale_factor", 1.0))
    demand(values, "mid_block_scale_factor", (scale, *((None,) if scale == 1 else ())), where)
    blocks = values.get("layers_per_block", 2)
    width, projected = values.get("encoder_hid_dim"), number(values, "cross_attention_dim", where)
    outputs = number(values, "out_channels", where)
    return AdmUNetConfig(
        in_channels=outputs // 2,
        concat_channels=number(values, "in_channels", where) - outputs // 2,
        out_channels=outputs,
        channels=widths[0],
        multipliers=tuple(one // widths[0] for one in widths),
        blocks=blocks if isinstance(blocks, int) else tuple(blocks),
        attention_levels=attending,
        heads=None,
        head_width=number(values, "attention_head_dim", where),
        self_attention=not alone,
        context_width=width or projected,
        context_projection=projected if width else None,
        text_pooling_heads=values.get("addition_embed_type_num_heads", 64),
        augmented=values.get("class_embed_type") == "timestep",
        scale_shift=values.get("resnet_time_scale_shift") == "scale_shift",
        residual_resampling=True,
        activation=activation,
        preactivated=preactivated,
        residual_scale=1 / scale,
        time_width=values.get("time_embedding_dim"),
        norm_groups=values.get("norm_num_groups") or 32,
        dropout=values.get("dropout") or 0.0,
    )


def text_config(source: Source, width: Any) -> T5Config:
    """T5 where it lies, in the folder or nowhere: a stage without one is given prompts by the stage before it."""
    encoder = source.path / "text_encoder"
    tokenizer = source.options.tokenizer or source.path / "tokenizer"
    has_config = (encoder / "config.json").is_file()
    if not has_config:
        source.options.without_effect((), f"{source.path}, which has no text encoder")
    return T5Config(
        path=str(encoder.resolve()) if has_config else None,
        tokenizer=str(tokenizer.resolve()) if has_config else None,
        width=width,
        max_tokens=MAX_TOKENS,
        padded=True,
        cleaning="lower",
    )


def noise_config(source: Source) -> dict[str, Any]:
    """The schedule, its times, the sampler, what is predicted and what bounds it."""
    values = source.scheduler()
    where = f"{source.path / 'scheduler' / 'scheduler_config.json'}"
    kind, stated = schedulers.kind_of(values, where), schedulers.stated_settings(values)
    schedulers.check(values, where)
    if stated.get("thresholding"):
        percentile, cap = stated.get("dynamic_thresholding_ratio", 0.995), stated.get("sample_max_value", 1.0)
        threshold = ThresholdConfig(kind="dynamic", percentile=percentile, cap=float(cap))
    else:
        clipped = stated.get("clip_sample", values["_class_name"] in schedulers.CLIPPING)
        if clipped:
            schedulers.require_value(stated, "clip_sample_range", 1.0, where)
        threshold = ThresholdConfig(kind="static" if clipped else "none")
    refused = schedulers.refusals(values, where, latent=False)
    if kind.sampler == "ddpm" and stated.get("variance_type") != "learned_range":
        reason = schedulers.unsupported_value(where, "variance_type", values.get("variance_type"), ("learned_range",))
        refused.setdefault("", str(reason))
    return {
        "schedule": ScheduleConfig.from_dict(schedulers.schedule_values(values, where)),
        "times": TimesConfig.from_dict(schedulers.times_values(values, where)),
        "prediction": schedulers.prediction_of(values, where),
        "sampler": kind.sampler if "" in refused else schedulers.sampler_of(values, where),
        "published_scheduler": None if kind.same else values["_class_name"],
        "unsupported_samplers": tuple(refused.items()),
        "learned_variance": True,
        "threshold": threshold,
    }


def augmentation_config(source: Source, level: float) -> AugmentationConfig:
    """How the low-resolution image is augmented: after upsampling, by the noise of a table."""
    file = "scheduler_config.json"
    values, where = source.scheduler("image_noising_scheduler"), source.path / "image_noising_scheduler" / file
    schedule = ScheduleConfig.from_dict(schedulers.schedule_values(values, str(where)))
    if schedule.kind != "cosine-table":
        raise UserError(f"{where}: beta_schedule must be 'squaredcos_cap_v2', not {values.get('beta_schedule')!r}")
    return AugmentationConfig(where="high", upsample="bilinear", align_corners=True, level=level, table=schedule.steps)


def demand(values: dict[str, Any], field: str, allowed: tuple[Any, ...], where: Path) -> None:
    """Raise a `UserError` that names the field unless its value is one of those we can follow."""
    if (value := values.get(field)) not in allowed:
        expected = " or ".join(repr(one) for one in allowed if one is not None)
        raise UserError(f"{where}: {field} is {value!r}, which diptych does not support: only {expected or 'none'}")


def numbers(values: dict[str, Any], field: str, where: Path) -> tuple[int, ...]:
    value = values.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(one, int) and one > 0 for one in value):
        raise UserError(f"{where}: {field} must be a list of whole numbers, not {value!r}")
    return tuple(value)


def number(values: dict[str, Any], field: str, where: Path) -> int:
    if not isinstance(value := values.get(field), int) or value < 1:
        raise UserError(f"{where}: {field} must be a whole number, not {value!r}")
    return value


FAMILY = Family("DeepFloyd IF", fits, read, takes=("tokenizer",))
