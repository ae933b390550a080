"""The two sides of `gpu_sampling.py`: Stable Diffusion 1.x by diptych and by diffusers, with the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diptych.core.errors import UserError
from diptych.core.random import NoiseSource
from diptych.encoders.base import TextEmbedding
from diptych.engines.parts import parts
from diptych.engines.replace import Part, replace, restore
from diptych.models.latent_config import LatentConfig
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.pretrained.key_map import published
from diptych.pretrained.stable_diffusion.config_json import autoencoder_json, unet_json
from diptych.pretrained.stable_diffusion.state_dict_keys import diffusers_autoencoder, diffusers_unet
from diptych.recipes import get

GUIDANCE, BATCHES = 7.5, (1, 8)


class FixedText:
    """Stands for a frozen text encoder: an embedding of each prompt that follows from it alone, all on the device."""

    fingerprint = "fixed"

    def __init__(self, width: int, tokens: int, device: torch.device) -> None:
        self.width, self.max_tokens, self.device = width, tokens, device
        self.rows: dict[str, Tensor] = {}

    def encode(self, prompts: list[str]) -> TextEmbedding:
        for prompt in prompts:
            if prompt not in self.rows:
                made = torch.Generator().manual_seed(len(prompt))
                self.rows[prompt] = torch.randn(self.max_tokens, self.width, generator=made).to(self.device)
        sequence = torch.stack([self.rows[prompt] for prompt in prompts])
        return TextEmbedding.from_sequence(
            sequence, torch.ones(sequence.shape[:2], dtype=torch.bool, device=self.device)
        )


@dataclasses.dataclass
class Case:
    """What is sampled."""

    config: LatentConfig
    steps: int
    tokens: int
    batches: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    @property
    def side(self) -> int:
        """Of latents."""
        return self.config.size // self.config.autoencoder.factor

    def model(self) -> LatentDiffusion:
        """On the device, its weights drawn there."""
        torch.manual_seed(0)
        with self.device:
            autoencoder, unet = self.config.autoencoder.build(), self.config.unet.build()
            with torch.no_grad():  # layers that begin at zero would hide all before them
                for parameter in (*unet.parameters(), *autoencoder.parameters()):
                    parameter.add_(torch.randn_like(parameter) * 0.02)
        text = FixedText(self.config.unet.context_width or 1, self.tokens, self.device)
        model = LatentDiffusion(self.config, autoencoder.to(self.dtype), text, unet.to(self.dtype)).eval()  # type: ignore[arg-type]
        return model.requires_grad_(False).to(self.device)

    def step_inputs(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """x, times and context of a step of so many images, with and without their prompts."""
        made = torch.Generator(self.device).manual_seed(1)
        shape = (2 * batch, self.config.unet.in_channels, self.side, self.side)
        x = torch.randn(shape, device=self.device, generator=made).to(self.dtype)
        width = self.config.unet.context_width or 1
        context = torch.randn(2 * batch, self.tokens, width, device=self.device, generator=made).to(self.dtype)
        return x, torch.full((2 * batch,), 500.0, device=self.device), context

    def tflop(self) -> dict[str, float]:
        """Of a forward pass of the U-Net for one image without guidance, of decoding, and of a whole image."""
        with torch.device("meta"), torch.no_grad():
            unet, autoencoder = self.config.unet.build(), self.config.autoencoder.build()
            x = torch.empty(1, self.config.unet.in_channels, self.side, self.side)
            context = torch.empty(1, self.tokens, self.config.unet.context_width or 1)
            found = {}
            for name, run in (
                ("unet", lambda: unet(x, torch.empty(1), context=context)),
                ("decode", lambda: autoencoder.decode(x)),
            ):
                with FlopCounterMode(display=False) as counter:
                    run()
                found[name] = counter.get_total_flops() / 1e12
        return {**found, "image": 2 * self.steps * found["unet"] + found["decode"]}


class Side:
    """One of the things that are compared: a step, decoding, and whole images."""

    def __init__(self, name: str, case: Case) -> None:
        self.name, self.case = name, case

    def step(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def images(self, batch: int) -> list[Image.Image]:
        raise NotImplementedError

    def check(self) -> None:
        """Raise a `UserError` where it does not run as its name says."""


class Ours(Side):
    """diptych, by `generate`. runner: what runs the networks of a part; none for PyTorch as it is."""

    def __init__(self, name: str, case: Case, model: LatentDiffusion, runner: Callable[[Part], Any] | None) -> None:
        super().__init__(name, case)
        self.model, self.made = model, runner
        self.runners = None if runner is None else [(part, runner(part)) for part in parts(model)]

    def mine(self) -> LatentDiffusion:
        """The model with this side's runners."""
        for part, runner in self.runners or ((part, None) for part in parts(self.model)):
            restore(part) if runner is None else replace(part, runner)
        return self.model

    def check(self) -> None:
        notes = [note for _, runner in self.runners or () for note in sorted(runner.told)]
        if notes:
            raise UserError(f"{self.name}: {'; '.join(notes)}")

    def step(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        return self.mine().unet(x, time, context=context)  # without a mask, as `generate` on a GPU

    def decode(self, latents: Tensor) -> Tensor:
        return self.mine().autoencoder.decode(latents)

    def images(self, batch: int) -> list[Image.Image]:
        options = {"seeds": list(range(batch)), "steps": self.case.steps, "guidance": GUIDANCE, "sampler": "ddim"}
        return self.mine().generate(["a red apple on a table"] * batch, **options).images  # type: ignore[arg-type]


class Theirs(Side):
    """diffusers' networks and DDIM scheduler, in the loop of its StableDiffusionPipeline."""

    def __init__(
        self, name: str, case: Case, model: LatentDiffusion, channels_last: bool = False, mode: str = ""
    ) -> None:
        """mode: of torch.compile; none for PyTorch as it is."""
        import diffusers
        from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]

        diffusers.utils.logging.set_verbosity_error()
        super().__init__(name, case)
        unet, first = case.config.unet, case.config.autoencoder
        with case.device:
            self.unet: Any = diffusers.UNet2DConditionModel.from_config(unet_json(unet, case.side))  # type: ignore[arg-type]
            self.vae: Any = AutoencoderKL.from_config(autoencoder_json(first, float(model.scale), case.config.size))  # type: ignore[arg-type]
        self.unet.load_state_dict(published(diffusers_unet(unet), model.unet.state_dict()))  # type: ignore[arg-type]
        self.vae.load_state_dict(published(diffusers_autoencoder(first), model.autoencoder.state_dict()))
        for network in (self.unet, self.vae):
            network.to(case.dtype).eval().requires_grad_(False)
            if channels_last:
                network.to(memory_format=torch.channels_last)
        if mode:
            how: Any = {"fullgraph": True, "dynamic": False}
            how |= {"backend": "eager"} if case.device.type == "cpu" else {"mode": mode}
            self.unet.forward = torch.compile(self.unet.forward, **how)
            self.vae.decoder.forward = torch.compile(self.vae.decoder.forward, **how)
        self.scheduler: Any = diffusers.DDIMScheduler(  # type: ignore[attr-defined]
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            timestep_spacing="trailing",
        )  # fmt: skip
        self.text, self.scale = model.text, float(model.scale)

    def step(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        mark_step()
        return self.unet(x, time[0], encoder_hidden_states=context, return_dict=False)[0].clone()  # as its pipeline

    def decode(self, latents: Tensor) -> Tensor:
        mark_step()
        return self.vae.decode(latents, return_dict=False)[0].clone()

    def images(self, batch: int) -> list[Image.Image]:
        case = self.case
        both = self.text.encode(["", "a red apple on a table"]).sequence.to(case.dtype)
        context = both.repeat_interleave(batch, 0)
        self.scheduler.set_timesteps(case.steps, device=case.device)
        shape = (batch, case.config.unet.in_channels, case.side, case.side)
        latents = NoiseSource(range(batch), shape[1:], case.device, case.dtype).draw()  # as ours
        for t in self.scheduler.timesteps:
            mark_step()
            x = self.scheduler.scale_model_input(torch.cat([latents] * 2), t)
            without, with_prompt = self.unet(x, t, encoder_hidden_states=context, return_dict=False)[0].chunk(2)
            guided = without + GUIDANCE * (with_prompt - without)
            latents = self.scheduler.step(guided, t, latents, return_dict=False)[0]
        mark_step()
        images = self.vae.decode(latents / self.scale, return_dict=False)[0]
        values = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        return [Image.fromarray(row) for row in (values * 255).round().astype("uint8")]


def mark_step() -> None:
    """What torch.compile's own CUDA graphs need to know."""
    torch.compiler.cudagraph_mark_step_begin()


def cases(toy: bool, device: torch.device) -> Case:
    """Stable Diffusion 1 at 512 px."""
    system: Any = get("sd1").system
    config: LatentConfig = system.model
    if not toy:
        return Case(dataclasses.replace(config, size=512), 50, 77, BATCHES, device, torch.bfloat16)
    narrow = {"channels": 32, "multipliers": (1, 2), "blocks": 1}
    unet = dataclasses.replace(config.unet, attention_levels=(0,), **narrow)
    first = dataclasses.replace(config.autoencoder, channels=32, multipliers=(1, 2), blocks=1)
    small = dataclasses.replace(config, unet=unet, autoencoder=first, size=16)
    return Case(small, 2, 5, (1, 2), device, torch.float32)
