"""Stable Diffusion 1.x on a CPU: diptych beside diffusers, in one process, with the same tensors.

    python -m benchmarks.cpu_diffusers [--jobs unet-1,unet-2,decode,image] [--engines pytorch,float32,bf16,int8]

U-Net (860 M) and autoencoder (84 M) are of full size, with random weights: those that start at zero are drawn anew,
so that every path speaks. `unet-N` is a forward of the U-Net on latents of 64 x 64 for batch N, `decode` that of one
latent to 512 x 512 pixels, `image` a whole 512-px image: 20 steps of DPM-Solver++ 2M with guidance 7.5 from the same
noise and text embeddings, by diffusers' own pipeline on one side and `generate` on the other. Exact variants must give
its 8-bit images within 1 of 255. Fewer steps or other samplers are no part of any ratio.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.engine_variants import Variant, chosen, entrants
from benchmarks.side_by_side import Contestant, Job, NotHere, Work, flops, levels, parser, run_all
from diptych.diffusion.times import TimesConfig
from diptych.encoders.base import TextEmbedding
from diptych.encoders.configs import ClipTextConfig
from diptych.models.latent_config import LatentConfig
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.unet import UNet, UNetConfig
from diptych.pretrained.key_map import pieces
from diptych.pretrained.stable_diffusion.config_json import autoencoder_json, unet_json
from diptych.pretrained.stable_diffusion.scheduler_config import scheduler_json
from diptych.pretrained.stable_diffusion.state_dict_keys import diffusers_autoencoder, diffusers_unet
from diptych.weights.lazy import LazyCheckpoint, fill

SCALE, TOKENS, GUIDANCE, STEPS = 0.18215, 77, 7.5, 20
LOSSY_LEVELS = 128
"""Bound on images of bf16 and int8, in units of 1 of 255: of random weights they say nothing of quality. How far they
lie apart is in the result, and what a precision costs on trained models is measured elsewhere."""


class Shape(NamedTuple):
    """How large everything is."""

    unet: UNetConfig
    autoencoder: AutoencoderConfig
    side: int
    """Of the images, in pixels."""
    steps: int


FULL = Shape(UNetConfig(), AutoencoderConfig(), 512, STEPS)
TOY = Shape(
    UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention_levels=(0,), heads=2, context_width=32),
    AutoencoderConfig(channels=32, multipliers=(1, 2), blocks=1),
    32,
    3,
)


def draw(module: nn.Module, seed: int) -> None:
    """Fill all parameters: matrices of unit gain, norms near 1, so that no branch is silent and nothing explodes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(generator=generator)
            if parameter.ndim > 1:
                parameter.mul_(parameter[0].numel() ** -0.5)
            else:
                parameter.mul_(0.1).add_(float(name.endswith("weight")))


class FixedText:
    """In place of a text encoder: one embedding for every prompt, and one for the empty one."""

    fingerprint = "fixed"

    def __init__(self, width: int, tokens: int = TOKENS) -> None:
        self.width, self.max_tokens = width, tokens
        self.prompt, self.empty = torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(5))

    def encode(self, prompts: list[str]) -> TextEmbedding:
        sequence = torch.stack([self.prompt if prompt else self.empty for prompt in prompts])
        return TextEmbedding.from_sequence(sequence, torch.ones(sequence.shape[:2], dtype=torch.bool))


class Sides(NamedTuple):
    """The same weights on both sides."""

    theirs: dict[str, Any]
    """unet, vae and scheduler of diffusers."""
    ours: LatentDiffusion
    shape: Shape


@functools.cache
def sides(toy: bool) -> Sides:
    """diffusers' networks with random weights, and ours with the same tensors."""
    try:
        import diffusers
    except ImportError as missing:
        raise NotHere(f"needs diptych[dev]: {missing}") from None
    source: Any = diffusers
    shape = TOY if toy else FULL
    latent = shape.side // shape.autoencoder.factor
    theirs = {
        "unet": source.UNet2DConditionModel.from_config(unet_json(shape.unet, latent)),
        "vae": source.AutoencoderKL.from_config(autoencoder_json(shape.autoencoder, SCALE, shape.side)),
    }
    for seed, network in enumerate(theirs.values()):
        draw(network.eval().requires_grad_(False), seed)
    with torch.device("meta"):
        unet, autoencoder = UNet(shape.unet), Autoencoder(shape.autoencoder)
    for ours, layout, name in (
        (unet, diffusers_unet(shape.unet), "unet"),
        (autoencoder, diffusers_autoencoder(shape.autoencoder), "vae"),
    ):
        fill(ours, pieces(layout, LazyCheckpoint.of(theirs[name].state_dict(), "diffusers")), "diffusers")
    width = shape.unet.context_width or 0
    config = LatentConfig(
        unet=shape.unet,
        autoencoder=shape.autoencoder,
        text=ClipTextConfig(width=width),
        latent_scale=SCALE,
        size=shape.side,
        guidance=GUIDANCE,
        sampler="dpmpp-2m",
        times=TimesConfig(spacing="leading", offset=1),
    )
    theirs["scheduler"] = source.DPMSolverMultistepScheduler.from_config(scheduler_json(config))
    return Sides(theirs, LatentDiffusion(config, autoencoder, FixedText(width), unet).eval(), shape)


def noise(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def unet_job(batch: int, toy: bool, variants: Sequence[Variant]) -> Job:
    theirs, ours, shape = sides(toy)
    latent = shape.side // shape.autoencoder.factor
    x, context = noise(batch, shape.unet.in_channels, latent, latent), noise(batch, TOKENS, ours.text.width, seed=2)
    time = torch.full((batch,), 481.0)

    def work(model: LatentDiffusion) -> Work:
        return lambda: model.unet(x, time, context=context)

    return Job(
        name=f"unet-{batch}",
        what=f"Stable Diffusion 1.x U-Net, {latent} x {latent}, batch {batch}",
        reference=Contestant(name="diffusers", prepare=lambda: lambda: theirs["unet"](x, time, context).sample),
        challengers=entrants(ours, variants, work),
        flop=unet_flops(shape, batch),
    )


def on_meta(network: nn.Module, *inputs: Tensor, method: str = "forward", **cond: Tensor) -> float:
    """Operations of a network that is built without memory."""
    network = network.to("meta")
    sent = {name: value.to("meta") for name, value in cond.items()}
    return flops(lambda: getattr(network, method)(*(value.to("meta") for value in inputs), **sent))


def unet_flops(shape: Shape, batch: int) -> float:
    latent = shape.side // shape.autoencoder.factor
    with torch.device("meta"):
        network = UNet(shape.unet)
    context = torch.empty(batch, TOKENS, shape.unet.context_width or 0)
    return on_meta(
        network, torch.empty(batch, shape.unet.in_channels, latent, latent), torch.ones(batch), context=context
    )


def decode_flops(shape: Shape) -> float:
    latent = shape.side // shape.autoencoder.factor
    with torch.device("meta"):
        network = Autoencoder(shape.autoencoder)
    return on_meta(network, torch.empty(1, shape.autoencoder.latent_channels, latent, latent), method="decode")


def decode_job(toy: bool, variants: Sequence[Variant]) -> Job:
    theirs, ours, shape = sides(toy)
    latent = shape.side // shape.autoencoder.factor
    latents = noise(1, shape.autoencoder.latent_channels, latent, latent)

    def work(model: LatentDiffusion) -> Work:
        return lambda: model.autoencoder.decode(latents)

    return Job(
        name="decode",
        what=f"Stable Diffusion 1.x decode to {shape.side} px",
        reference=Contestant(name="diffusers", prepare=lambda: lambda: theirs["vae"].decode(latents).sample),
        challengers=entrants(ours, variants, work),
        flop=decode_flops(shape),
    )


def image_job(toy: bool, variants: Sequence[Variant]) -> Job:
    theirs, ours, shape = sides(toy)
    latent = shape.side // shape.autoencoder.factor
    start = noise(1, shape.unet.in_channels, latent, latent)

    def reference() -> Work:
        import diffusers

        pipeline: Any = diffusers.StableDiffusionPipeline(  # type: ignore[attr-defined]
            **theirs,
            text_encoder=None,  # type: ignore[arg-type]
            tokenizer=None,  # type: ignore[arg-type]
            safety_checker=None,  # type: ignore[arg-type]
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)

        def generate() -> Tensor:
            images = pipeline(
                prompt_embeds=ours.text.prompt[None],
                negative_prompt_embeds=ours.text.empty[None],
                guidance_scale=GUIDANCE,
                num_inference_steps=shape.steps,
                latents=start.clone(),
                output_type="np",
            ).images
            return torch.from_numpy(np.round(images * 255))

        return generate

    def work(model: LatentDiffusion) -> Work:
        def generate() -> Tensor:
            images = model.generate("a prompt", noise=start, steps=shape.steps).images
            return torch.from_numpy(np.stack([np.asarray(image) for image in images]))

        return generate

    return Job(
        name="image",
        what=f"Stable Diffusion 1.x, a {shape.side}-px image of {shape.steps} guided steps",
        reference=Contestant(name="diffusers", prepare=reference),
        challengers=entrants(ours, variants, work, bounds=(1.0, LOSSY_LEVELS)),
        flop=shape.steps * unet_flops(shape, 2) + decode_flops(shape),
        measure=levels,
    )


def main(argv: Sequence[str] | None = None) -> int:
    made: argparse.ArgumentParser = parser(__doc__, "benchmarks/results/cpu-diffusers")
    given = made.parse_args(argv)
    variants, toy = chosen(given.engines), given.quick
    jobs: dict[str, tuple[int, Callable[[], Job]]] = {
        "unet-1": (7, lambda: unet_job(1, toy, variants)),
        "unet-2": (5, lambda: unet_job(2, toy, variants)),
        "decode": (5, lambda: decode_job(toy, variants)),
        "image": (2, lambda: image_job(toy, variants)),
    }
    return run_all(jobs, given)


if __name__ == "__main__":
    sys.exit(main())
