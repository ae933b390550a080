"""DeepFloyd IF in miniature: folders as diffusers saves them, random weights in every layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.encoders.tiny_encoders import shaken, t5_pieces
from tests.networks.reference import randomised

diffusers: Any = pytest.importorskip("diffusers")

WIDTH = 24  # of T5's tokens
SIZES = (8, 32, 128)
CALM = 0.1
"""The last layer's weights are multiplied by it: random networks make more of each rounding error from step to step,
until two programs that agree to 1e-6 in every step paint different images."""
BASE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 6,
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "attention_head_dim": 8,
    "block_out_channels": (16, 32, 32),
    "cross_attention_dim": 32,
    "cross_attention_norm": "group_norm",
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
    "encoder_hid_dim": WIDTH,
    "encoder_hid_dim_type": "text_proj",
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_num_groups": 8,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": SIZES[0],
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
ENLARGING: dict[str, Any] = {
    **BASE,
    "in_channels": 6,
    "class_embed_type": "timestep",
    "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "layers_per_block": (1, 2, 1),
    "mid_block_scale_factor": 1 / 0.7071,
    "only_cross_attention": True,
    "resnet_out_scale_factor": 1 / 0.7071,
    "resnet_skip_time_act": True,
    "sample_size": SIZES[1],
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 48,
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
}
"""The changes that make a stage "efficient", and blocks that differ by level."""
LAST: dict[str, Any] = {**ENLARGING, "layers_per_block": (1, 1, 2), "sample_size": SIZES[2]}


def scheduler(cap: float) -> Any:
    return diffusers.DDPMScheduler(
        variance_type="learned_range",
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=cap,
    )


def pipeline(shape: dict[str, Any], seed: int = 0, text: bool = True) -> Any:
    """A pipeline of one stage; T5 is the same in all."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    shared: dict[str, Any] = {"tokenizer": None, "text_encoder": None}
    if text:
        sizes: dict[str, Any] = {"d_model": WIDTH, "d_kv": 4, "d_ff": 40, "num_layers": 2, "num_heads": 3}
        sizes |= {"vocab_size": 200, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8}
        shared = {"tokenizer": T5Tokenizer(t5_pieces()), "text_encoder": shaken(T5EncoderModel, T5Config(**sizes))}
    shared |= {"safety_checker": None, "feature_extractor": None, "watermarker": None}
    shared |= {"requires_safety_checker": False}
    unet = randomised(diffusers.UNet2DConditionModel(**shape), seed)
    with torch.no_grad():
        unet.conv_out.weight.mul_(CALM)
    if shape["in_channels"] == 3:
        return quiet(diffusers.IFPipeline(unet=unet, scheduler=scheduler(1.5), **shared))
    noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return quiet(
        diffusers.IFSuperResolutionPipeline(
            unet=unet, scheduler=scheduler(1.0), image_noising_scheduler=noising, **shared
        )
    )


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Draws:
    """What diffusers draws, taken from here: patch its `randn_tensor` with this."""

    def __init__(self, *tensors: torch.Tensor, then: Any = None) -> None:
        self.queue, self.then = list(tensors), then

    def __call__(self, shape: Any, **_: Any) -> torch.Tensor:
        drawn = self.queue.pop(0) if self.queue else self.then.draw()
        assert tuple(drawn.shape) == (len(drawn), 3, *shape[2:])
        return drawn
