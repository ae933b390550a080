"""The latent panel: Stable Diffusion. Text -> latent -> picture (Rombach et al. 2022)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.conditioning.text import ClipTextConfig, JointTransformer, TextConfig, build_text_encoder
from diptych.config import Config
from diptych.diffusion.denoiser import Cond, Denoiser
from diptych.diffusion.guidance import ClassifierFreeGuidance
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedule import ScheduleConfig, build_schedule, timesteps
from diptych.diffusion.steps import NoiseSource
from diptych.errors import UserError, pick
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig, Posterior
from diptych.networks.unet import UNet, UNetConfig
from diptych.pictures import to_images
from diptych.weights.files import load_into, load_weights, save_weights, write_text

Callback = Callable[[int, int, Tensor], None]
"""Called after each step with (step, steps, estimate of x0); raise to cancel."""


@dataclass(frozen=True, kw_only=True)
class LatentConfig(Config):
    """A latent diffusion model: its parts, its noise schedule, and how it likes to be sampled."""

    kind: Literal["latent"] = "latent"
    """Which system this is."""
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    """The first stage."""
    unet: UNetConfig = UNetConfig()
    """The denoising network over latents."""
    text: TextConfig = ClipTextConfig()
    """What reads the prompts."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The noise schedule."""
    prediction: Literal["eps", "v", "x0", "flow"] = "eps"
    """What the U-Net predicts."""
    size: int = 512
    """Side of the pictures it was trained on, in pixels."""
    steps: int = 50
    """Default number of sampling steps."""
    guidance: float = 7.5
    """Default weight of classifier-free guidance; 1 is none."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times between which guidance is applied (Kynkäänniemi et al. 2024)."""
    sampler: str = "ddim"
    """Default sampler."""

    def check(self) -> None:
        self.require(self.size % self.autoencoder.factor == 0, "size", f"be a multiple of {self.autoencoder.factor}")
        self.require(self.sampler in SAMPLERS, "sampler", f"be one of {', '.join(SAMPLERS)}")
        latent, text = self.autoencoder.latent_channels, self.text.width
        for name, value, wanted in (
            ("in_channels", self.unet.in_channels, (latent,)),
            ("context_width", self.unet.context_width, (text, None)),
            ("pooled_width", self.unet.pooled_width, (text, None)),
        ):
            if value not in wanted:
                raise UserError(f"LatentConfig.unet.{name} must be {wanted[0]} to fit its neighbours, not {value}")

    @property
    def latent_size(self) -> int:
        return self.size // self.autoencoder.factor


@dataclass
class Result:
    """What `generate` gives: pictures, and for each of them all that is needed to make it again."""

    images: list[Image.Image]
    metadata: list[dict[str, Any]] = field(default_factory=list)


class LatentDiffusion(nn.Module):
    """Autoencoder, U-Net and text encoder. Its state is what diffusion training changes: the U-Net, a jointly trained
    text encoder, and `scale`, which brings latents to unit deviation. The frozen parts stand beside it.
    """

    scale: Tensor

    def __init__(self, config: LatentConfig, autoencoder: Autoencoder, text) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        self.joint_text = text if isinstance(text, JointTransformer) else None
        self.register_buffer("scale", torch.tensor(1.0))
        # Held in a tuple, so that they are no submodules: frozen, neither trained nor saved with the U-Net.
        self._frozen = (autoencoder.eval().requires_grad_(False), text)
        self.schedule = build_schedule(config.schedule)
        self.denoiser = Denoiser(self.unet, self.schedule, config.prediction)

    @property
    def autoencoder(self) -> Autoencoder:
        return self._frozen[0]

    @property
    def text(self):
        return self._frozen[1]

    @property
    def device(self) -> torch.device:
        return self.scale.device

    # What the training loop asks for.

    @torch.no_grad()
    def start(self, batch: dict[str, Any]) -> None:
        """Set `scale` from the first batch of latents: 1 / their deviation over all components (appendix G)."""
        self.scale.copy_(1.0 / self.posterior(batch).mean.std())

    def posterior(self, batch: dict[str, Any]) -> Posterior:
        """Of the batch's pictures, or as `diptych precompute` stored it."""
        if "latent" in batch:
            return Posterior.from_moments(batch["latent"].float())
        with torch.no_grad():
            return self.autoencoder.encode(batch["picture"])

    def prepare(self, batch: dict[str, Any], noise: Callable[[Tensor], Tensor], dropped: Tensor) -> tuple[Tensor, Cond]:
        """The scaled latent sample x0 (B, C, h, w) and the condition of a training batch.

        `noise(like)` draws the posterior's noise; dropped (B,) bool marks captions replaced by the empty one.
        """
        posterior = self.posterior(batch)
        captions = ["" if drop else text for text, drop in zip(batch["caption"], dropped.tolist(), strict=True)]
        return posterior.sample(noise(posterior.mean)) * self.scale, self.embed(captions)

    # What everyone else asks for.

    def embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """Prompts as the U-Net's keyword arguments; those that it was not built to read are left out."""
        unet, cond = self.config.unet, self.text.encode(prompts).cond()
        if unet.pooled_width is None:
            del cond["pooled"]
        if unet.context_width is None:
            del cond["context"], cond["context_mask"]
        return {key: value.to(self.device) for key, value in cond.items()}

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        negative: str | Sequence[str] | None = None,
        noise: Tensor | None = None,
        size: tuple[int, int] | None = None,
        callback: Callback | None = None,
    ) -> Result:
        """Paint one picture for each prompt.

        Args:
            prompts: one text, or several.
            seeds: one for each prompt; picture i depends on seeds[i] and not on its neighbours. 0, 1, ... if none.
            steps, guidance, sampler: the model's own defaults if none. A guidance weight of 1 is no guidance.
            negative: what to steer away from, one text for all or one for each prompt; nothing by default.
            noise: initial noise (B, latent channels, height / factor, width / factor) with unit deviation, in the place
                of the seeds' own.
            size: (width, height) in pixels, multiples of the autoencoder's factor; the training size if none.
            callback: called with (step, steps, x0 estimate as latents (B, C, h, w)); raise to cancel.

        Raises:
            UserError: an empty or too long prompt, an unknown sampler, or numbers that make no sense.
        """
        config = self.config
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        seeds = list(range(len(prompts))) if seeds is None else [int(seed) for seed in seeds]
        steps = config.steps if steps is None else steps
        guidance = config.guidance if guidance is None else guidance
        sampler = pick("sampler", config.sampler if sampler is None else sampler, SAMPLERS)
        width, height = size or (config.size, config.size)
        negatives = [negative or ""] * len(prompts) if negative is None or isinstance(negative, str) else list(negative)
        shape = (
            config.autoencoder.latent_channels,
            height // config.autoencoder.factor,
            width // config.autoencoder.factor,
        )
        self._check(prompts, seeds, negatives, steps, guidance, (width, height))
        if noise is not None and tuple(noise.shape) != (len(prompts), *shape):
            raise UserError(f"noise must have shape {(len(prompts), *shape)}, not {tuple(noise.shape)}")

        cond, uncond = self.embed(prompts), self.embed(negatives if any(negatives) else [""])
        denoiser = ClassifierFreeGuidance(self.denoiser, cond, uncond, guidance, config.interval)
        source = NoiseSource(seeds, shape, device=self.device)
        times = timesteps(self.schedule, steps)
        start = source.draw() if noise is None else noise.to(self.device)
        latents = SAMPLERS[sampler](denoiser, start, times, self.schedule, noise=source, callback=callback)
        images = to_images(self.autoencoder.decode(latents / self.scale))
        common = {"steps": steps, "guidance": guidance, "sampler": sampler, "size": [width, height]}
        rows = zip(prompts, negatives, seeds, strict=True)
        return Result(images, [{"prompt": p, "negative": n or None, "seed": s, **common} for p, n, s in rows])

    def _check(self, prompts, seeds, negatives, steps, guidance, size) -> None:
        if not prompts or any(not isinstance(prompt, str) or not prompt.strip() for prompt in prompts):
            raise UserError("a prompt is empty: say what the picture should show")
        if len(seeds) != len(prompts):
            raise UserError(f"give one seed for each prompt: {len(prompts)} prompts, {len(seeds)} seeds")
        if any(not 0 <= seed < 2**63 for seed in seeds):
            raise UserError("a seed is a whole number from 0 to 2^63 - 1")
        if len(negatives) != len(prompts):
            raise UserError(f"give one negative prompt for all or one for each of the {len(prompts)} prompts")
        if not isinstance(steps, int) or steps < 1:
            raise UserError(f"steps must be a whole number of at least 1, not {steps!r}")
        if not math.isfinite(guidance):
            raise UserError(f"guidance must be a finite number, not {guidance!r}")
        if any(side < 1 or side % self.config.autoencoder.factor for side in size):
            raise UserError(f"the picture's sides must be multiples of {self.config.autoencoder.factor}, not {size}")

    # Files: config.json, unet/, autoencoder/ and, where the text encoder was trained along, text/.

    def save(self, folder: Path, dtype: str = "float32") -> None:
        """Write the model as a folder that `diptych.load` opens."""
        folder.mkdir(parents=True, exist_ok=True)
        kind = getattr(torch, dtype)
        save_weights(self.unet.state_dict(), folder / "unet", dtype=kind)
        save_weights(self.autoencoder.state_dict(), folder / "autoencoder", dtype=kind)
        if self.joint_text is not None:
            save_weights(self.joint_text.state_dict(), folder / "text", dtype=kind)
            self.joint_text.save(folder / "text")
        values = {**self.config.to_dict(), "scale": float(self.scale)}
        write_text(folder / "config.json", json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> LatentDiffusion:
        """Open a folder that `save` wrote. Raises a `UserError` that names the file or key at fault."""
        values = json.loads((folder / "config.json").read_text())
        scale = values.pop("scale", None)
        if not isinstance(scale, float) or not math.isfinite(scale) or scale <= 0:
            raise UserError(f"{folder / 'config.json'}: scale must be a positive number, not {scale!r}")
        config = LatentConfig.from_dict(values)
        autoencoder = Autoencoder(config.autoencoder)
        load_into(autoencoder, load_weights(folder / "autoencoder"), str(folder / "autoencoder"))
        text = build_text_encoder(config.text, folder / "text")
        model = cls(config, autoencoder, text)
        load_into(model.unet, load_weights(folder / "unet"), str(folder / "unet"))
        model.scale.fill_(scale)
        return model.eval()

    def to(self, device: str | torch.device) -> LatentDiffusion:  # type: ignore[override]
        """Move every part, the frozen ones too."""
        super().to(device)
        self.autoencoder.to(device)
        if self.joint_text is None:
            self.text.to(device)
        return self
