"""Imagen's stages on a CPU: diptych beside imagen-pytorch 2.1.0, in one process, at the same widths.

    pip install --no-deps --target FOLDER imagen-pytorch==2.1.0 einops beartype
    python -m benchmarks.cpu_imagen_pytorch --imagen FOLDER [--jobs base-forward,sr-sample] [--engines pytorch,float32]

FOLDER (or $IMAGEN_PYTORCH) is put on the module path of this script alone; what the package imports besides and never
uses here (torchvision, kornia, ...) is replaced by empty modules where it is not installed. `base` is a 64-px stage
from text, `sr` the stage 64 -> 256. `forward` is one call of the network, `sample` an image of 8 guided steps of DDPM
with dynamic thresholding (two network evaluations a step), `train` a loss with its gradient and a step of Adam.

No state dict fits both networks: theirs normalise each pixel over its channels where ours normalise groups of channels
over all pixels, their attention is of cosines with one key for all heads and learned null keys, and text passes through
a Perceiver. So outputs cannot be compared; widths are equal, and the result states the parameters and the operations of
both, which are within a few percent. Theirs has cfg_remove_parallel_component off, so that both do plain guidance.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.cpu_diffusers import FixedText, noise
from benchmarks.engine_variants import Variant, chosen, entrants
from benchmarks.side_by_side import Contestant, Job, NotHere, Work, flops, parser, run_all
from diptych.conditioning.lowres_augmentation import AugmentationConfig
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.encoders.configs import T5Config
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.efficient_unet import EfficientUNetConfig

PLACE = "IMAGEN_PYTORCH"
UNUSED = ("torchvision.transforms", "kornia.augmentation", "pytorch_warmup", "ema_pytorch", "datasets.utils.file_utils")
WIDTH, TOKENS, STEPS, GUIDANCE, LEVEL = 768, 32, 8, 3.0, 0.2
BATCH = {"base": 4, "sr": 2}
"""Of a training step; of the stage 64 -> 256 on crops of 64 px, as in the paper."""


class StandIn(ModuleType):
    """A module in which any name is there, and is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@functools.cache
def imagen_pytorch(folder: str | None) -> Any:
    """The package in a folder. Nothing of it is fetched: its T5 is replaced by the width that it would have."""
    import transformers

    if folder is not None:
        if not (Path(folder) / "imagen_pytorch").is_dir():
            raise NotHere(f"there is no imagen_pytorch in {folder}")
        sys.path.insert(0, folder)
    for name in UNUSED:
        first, *rest = name.split(".")
        if first not in sys.modules and importlib.util.find_spec(first) is not None:
            continue
        for depth in range(len(rest) + 1):
            whole = ".".join([first, *rest[:depth]])
            module = sys.modules[whole] = StandIn(whole)
            module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(whole, None), []
            if depth:
                setattr(sys.modules[whole.rpartition(".")[0]], rest[depth - 1], module)
    shape: Any = transformers.T5Config
    usual = shape.__dict__.get("from_pretrained")
    shape.from_pretrained = lambda name: shape(d_model=WIDTH)
    try:
        return importlib.import_module("imagen_pytorch")
    except ImportError as missing:
        raise NotHere(f"{missing}: see --help for how to install imagen-pytorch, and name its folder") from None
    finally:
        if usual is None:
            del shape.from_pretrained
        else:
            shape.from_pretrained = usual


class Stage(NamedTuple):
    """A stage on both sides."""

    name: str
    size: int
    low: int | None
    network: AdmUNetConfig | EfficientUNetConfig
    theirs: dict[str, Any]
    """Options of their `Unet`."""


def stages(toy: bool) -> dict[str, Stage]:
    """Widths of 64 to 256 for the base, 64 to 512 for super-resolution. The numbers of our blocks are those with which
    parameters and operations are nearest to theirs."""
    width, size = (16, 16) if toy else (64, 64)
    base = AdmUNetConfig(
        out_channels=3,
        channels=width,
        multipliers=(1, 2, 3, 4),
        blocks=1 if toy else 2,
        attention_levels=(1, 2, 3),
        head_width=width,
        context_width=WIDTH,
        context_projection=4 * width,
        context_norm_kind="layer",
        text_pooling_heads=8,
    )
    large = EfficientUNetConfig(
        channels=width,
        multipliers=(1, 2, 4, 8),
        blocks=(1, 1, 1, 1) if toy else (4, 6, 10, 10),
        heads=8,
        feed_forward=2,
        context_width=WIDTH,
        text_pooling_heads=8,
        scale_shift=True,
    )
    some = (False, True, True, True)
    their_base = {"dim_mults": (1, 2, 3, 4), "num_resnet_blocks": 1 if toy else 3}
    their_base |= {"layer_attns": some, "layer_cross_attns": some, "memory_efficient": False}
    their_large = {"dim_mults": (1, 2, 4, 8), "num_resnet_blocks": (1, 1, 1, 1) if toy else (2, 4, 8, 8)}
    last = (False, False, False, True)
    their_large |= {"layer_attns": last, "layer_cross_attns": last, "memory_efficient": True, "lowres_cond": True}
    common = {"dim": width, "text_embed_dim": WIDTH, "attn_heads": 8, "ff_mult": 2.0}
    return {
        "base": Stage("base", size, None, base, {**common, **their_base}),
        "sr": Stage("sr", 32 if toy else 256, 16 if toy else 64, large, {**common, **their_large}),
    }


def awake(module: nn.Module) -> nn.Module:
    """Draw what starts at zero anew, so that it is no shorter work than after training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02, generator=generator)
    return module


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Sides:
    """A stage on both sides, with what both are given."""

    def __init__(self, stage: Stage, package: Any, crop: bool = False) -> None:
        torch.manual_seed(0)
        self.stage, self.size = stage, (stage.low if crop and stage.low else stage.size)
        low = None if stage.low is None else self.size // (stage.size // stage.low)
        self.unet: Any = awake(package.Unet(**stage.theirs))
        first = () if low is None else (package.NullUnet(),)
        self.imagen: Any = package.Imagen(
            unets=(*first, self.unet),
            image_sizes=(self.size,) if low is None else (low, self.size),
            text_embed_dim=WIDTH,
            timesteps=STEPS,
            lowres_sample_noise_level=LEVEL,
        )
        self.unet = self.imagen.unets[-1]
        config = PixelDiffusionConfig(
            network=stage.network,
            text=T5Config(width=WIDTH),
            schedule=ScheduleConfig(kind="cosine"),
            size=self.size,
            low_size=low,
            augmentation=AugmentationConfig(level=LEVEL),
            steps=STEPS,
            guidance=GUIDANCE,
            threshold=ThresholdConfig(kind="dynamic", percentile=0.95),
        )
        self.text = FixedText(WIDTH, TOKENS)
        self.ours = PixelDiffusion(config, self.text)
        awake(self.ours.network)
        self.low = None if low is None else Image.effect_noise((low, low), 64).convert("RGB")

    def cond(self, batch: int, size: int) -> dict[str, Tensor]:
        """Our network's condition."""
        cond = {"context": noise(batch, TOKENS, WIDTH, seed=2), "context_mask": torch.ones(batch, TOKENS).bool()}
        if self.low is not None:
            cond |= {"concat": noise(batch, 3, size, size, seed=3), "level": torch.full((batch,), LEVEL)}
        return cond

    def their_cond(self, batch: int, size: int) -> dict[str, Tensor]:
        ours = self.cond(batch, size)
        cond = {"text_embeds": ours["context"], "text_mask": ours["context_mask"]}
        if self.low is not None:
            cond |= {"lowres_cond_img": ours["concat"], "lowres_noise_times": ours["level"]}
        return cond

    def about(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters and operations of a forward of both: what is counted is the same (`flops`)."""
        x = noise(1, 3, self.size, self.size)
        theirs = flops(lambda: self.unet(x, torch.zeros(1), **self.their_cond(1, self.size)))
        with torch.device("meta"):
            network = self.stage.network.build()
        meta = {key: value.to("meta") for key, value in self.cond(1, self.size).items()}
        ours = flops(lambda: network(x.to("meta"), torch.ones(1, device="meta"), **meta))
        return (
            {"parameters": parameters(self.unet), "flop_of_a_forward": theirs},
            {"parameters": parameters(self.ours.network), "flop_of_a_forward": ours},
        )


def forward(sides: Sides) -> tuple[Work, Callable[[PixelDiffusion], Work], float]:
    x = noise(1, 3, sides.size, sides.size)
    cond, their_cond = sides.cond(1, sides.size), sides.their_cond(1, sides.size)

    def ours(model: PixelDiffusion) -> Work:
        return lambda: model.network(x, torch.full((1,), 500.0), **cond)

    return lambda: sides.unet(x, torch.zeros(1), **their_cond), ours, 1


def sample(sides: Sides) -> tuple[Work, Callable[[PixelDiffusion], Work], float]:
    embeds = sides.text.prompt[None]
    start: dict[str, Any] = {} if sides.low is None else {"start_at_unet_number": 2}
    if sides.low is not None:
        pixels = torch.from_numpy(np.array(sides.low)).permute(2, 0, 1)[None] / 255
        start |= {"start_image_or_video": pixels}

    def theirs() -> Tensor:
        common = {"cond_scale": GUIDANCE, "cfg_remove_parallel_component": False, "use_tqdm": False}
        return sides.imagen.sample(text_embeds=embeds, **common, **start)

    def ours(model: PixelDiffusion) -> Work:
        low: dict[str, Any] = {} if sides.low is None else {"low_res": sides.low}

        def generate() -> Tensor:
            image = model.generate("a prompt", seeds=[0], sampler="ddpm", **low).images[0]
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255

        return generate

    return theirs, ours, 2 * STEPS


def train(sides: Sides) -> tuple[Work, Callable[[PixelDiffusion], Work], float]:
    batch = BATCH[sides.stage.name]
    images, cond = noise(batch, 3, sides.size, sides.size).clamp(-1, 1), sides.cond(batch, sides.size)
    embeds, number = cond["context"], len(sides.imagen.unets)

    def step(module: nn.Module, loss: Callable[[], Tensor]) -> Work:
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-5, fused=True)
        module.train()

        def work() -> Tensor:
            value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            return value.detach()

        return work

    def ours(model: PixelDiffusion) -> Work:
        def loss() -> Tensor:
            times = torch.rand(batch)
            return model.denoiser.loss(images, torch.randn_like(images), times, cond, "min-snr").mean()

        return step(model.network, loss)

    def theirs() -> Tensor:
        return sides.imagen((images + 1) / 2, text_embeds=embeds, unet_number=number)

    return step(sides.unet, theirs), ours, 3 * batch


PARTS = {"forward": (9, forward), "sample": (5, sample), "train": (5, train)}


def build(stage: Stage, part: str, folder: str | None, variants: Sequence[Variant]) -> Job:
    """A job of a stage."""
    sides = Sides(stage, imagen_pytorch(folder), crop=part == "train")
    theirs, ours, forwards = PARTS[part][1](sides)
    about_theirs, about_ours = sides.about()
    if part != "train":
        sides.imagen.eval()
        sides.ours.eval()
    flop, own = (forwards * about["flop_of_a_forward"] for about in (about_theirs, about_ours))
    if part == "train":  # compiled networks have no gradients
        variants = [variant for variant in variants if variant.engine == "pytorch"]
    what = {
        "forward": "a forward",
        "sample": f"an image of {STEPS} guided steps",
        "train": f"a training step of {BATCH[stage.name]} at {sides.size} px",
    }
    counts = [f"{about['parameters'] / 1e6:.1f} M, {about['flop_of_a_forward'] / 1e9:.1f} GFLOP" for about in
              (about_theirs, about_ours)]  # fmt: skip
    return Job(
        name=f"{stage.name}-{part}",
        what=f"Imagen {stage.name}, {stage.size} px: {what[part]}",
        reference=Contestant(name="imagen-pytorch", prepare=lambda: theirs, about=about_theirs),
        challengers=entrants(sides.ours, variants, ours, **about_ours, flop=own),
        flop=flop,
        different=f"no state dict fits both architectures; equal widths, {counts[0]} a forward there, {counts[1]} here",
        grad=part == "train",
    )


def main(argv: Sequence[str] | None = None) -> int:
    made: argparse.ArgumentParser = parser(__doc__, "benchmarks/results/cpu-imagen-pytorch")
    made.add_argument("--imagen", default=os.environ.get(PLACE), help=f"folder with imagen-pytorch (${PLACE})")
    given = made.parse_args(argv)
    variants, shapes = chosen(given.engines), stages(given.quick)
    jobs: dict[str, tuple[int, Callable[[], Job]]] = {
        f"{stage}-{part}": (PARTS[part][0], functools.partial(build, shapes[stage], part, given.imagen, variants))
        for stage in shapes
        for part in PARTS
    }
    return run_all(jobs, given)


if __name__ == "__main__":
    sys.exit(main())
