"""The latent panel: Stable Diffusion. Text -> latent -> picture (Rombach et al. 2022)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diptych.checks import initial, said
from diptych.conditioning.embedding import network_of
from diptych.conditioning.text import ClipText, ClipTextConfig, JointTransformer, TextConfig, build_text_encoder
from diptych.config import Config
from diptych.diffusion.denoiser import Cond, Denoiser
from diptych.diffusion.guidance import ClassifierFreeGuidance
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedule import ScheduleConfig, TimesConfig, build_schedule
from diptych.diffusion.steps import NoiseSource
from diptych.errors import UserError, pick
from diptych.generation import Callback, Order, Result, read_number, read_size, read_steps
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig, Posterior
from diptych.networks.lora import adapted
from diptych.networks.unet import UNet, UNetConfig
from diptych.pictures import to_images
from diptych.training.randomness import POSTERIOR, Draws
from diptych.weights.files import load_into, load_weights, save_weights, write_text

ENCODED_AT_ONCE = 32
"""Pictures that the first stage sees at a time: its activations are the largest of all."""


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
    times: TimesConfig = TimesConfig()
    """How the times of sampling are laid out."""
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
        self.require(self.size >= 1 and self.size % self.multiple == 0, "size", f"be a multiple of {self.multiple}")
        self.require(self.steps >= 1, "steps", "be at least 1")
        self.require(math.isfinite(self.guidance), "guidance", "be finite")
        self.require(0 <= self.interval[0] <= self.interval[1] <= 1, "interval", "lie within 0 and 1, low before high")
        self.require(self.sampler in SAMPLERS, "sampler", f"be one of {', '.join(SAMPLERS)}")
        latent, text = self.autoencoder.latent_channels, self.text.width
        for name, value, wanted in (
            ("in_channels", self.unet.in_channels, (latent,)),
            ("concat_channels", self.unet.concat_channels, (0,)),
            ("out_channels", self.unet.out_channels, (latent,)),
            ("context_width", self.unet.context_width, (text, None)),
            ("pooled_width", self.unet.pooled_width, (text, None)),
        ):
            if value not in wanted:
                raise UserError(f"LatentConfig.unet.{name} must be {wanted[0]} to fit its neighbours, not {value}")

    @property
    def latent_size(self) -> int:
        return self.size // self.autoencoder.factor

    @property
    def multiple(self) -> int:
        """What a picture's sides are multiples of, so that every level of both networks halves evenly."""
        return self.autoencoder.factor * 2 ** (len(self.unet.multipliers) - 1)


class LatentDiffusion(nn.Module):
    """Autoencoder, U-Net and text encoder. Its state is what diffusion training changes: the U-Net, a jointly trained
    text encoder, and `scale`, which brings latents to unit deviation. The frozen parts stand beside it.
    """

    scale: Tensor

    def __init__(self, config: LatentConfig, autoencoder: Autoencoder, text, unet: UNet | None = None) -> None:
        super().__init__()
        self.config = config
        self.unet = unet or UNet(config.unet)
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

    def _apply(self, fn, recurse: bool = True):
        """Whatever moves the system (`to`, `cuda`, `cpu`) moves its frozen parts along."""
        self.autoencoder._apply(fn, recurse)
        if (network := network_of(self.text)) is not None:
            network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    # What the training loop asks for.

    @torch.no_grad()
    def start(self, batch: dict[str, Any]) -> None:
        """Set `scale` from the first batch: 1 / the deviation of its latents over all components (appendix G).

        The latents are samples, so the posteriors' own variance counts beside that of their means.
        """
        posterior = self.posterior(batch)
        self.scale.copy_((posterior.mean.var() + posterior.log_variance.exp().mean()).rsqrt())

    def posterior(self, batch: dict[str, Any]) -> Posterior:
        """Of the batch's pictures, or as `diptych precompute` stored it."""
        if "latent" in batch:
            return Posterior.from_moments(batch["latent"].float())
        with torch.no_grad():
            parts = [self.autoencoder.moments(part) for part in batch["picture"].split(ENCODED_AT_ONCE)]
        return Posterior.from_moments(torch.cat(parts).float())

    def prepare(self, batch: dict[str, Any], draws: Draws, dropped: Tensor) -> tuple[Tensor, Cond]:
        """The scaled latent sample x0 (B, C, h, w) and the condition of a training batch.

        The posterior's noise is drawn; dropped (B,) bool marks captions replaced by the empty one.
        """
        posterior = self.posterior(batch)
        captions = ["" if drop else text for text, drop in zip(batch["caption"], dropped.tolist(), strict=True)]
        return posterior.sample(draws.normal(posterior.mean, POSTERIOR)) * self.scale, self.embed(captions)

    # What everyone else asks for.

    def embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """Prompts as the U-Net's keyword arguments; those that it was not built to read are left out."""
        return self.text.encode(prompts).cond(self.config.unet, self.device)

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
            size: (width, height) in pixels, multiples of `config.multiple`; the training size if none.
            callback: called with (step, steps, x0 estimate as latents (B, C, h, w)); raise to cancel.

        Raises:
            UserError: an empty or too long prompt, an unknown sampler, or numbers that make no sense.
        """
        config, factor = self.config, self.config.autoencoder.factor
        order = Order.read(prompts, seeds, negative)
        steps = read_steps(config.steps if steps is None else steps)
        guidance = read_number("guidance", config.guidance if guidance is None else guidance)
        sampler = pick("sampler", config.sampler if sampler is None else str(sampler), SAMPLERS)
        sides = read_size((config.size, config.size) if size is None else size, config.multiple)
        shape = (config.autoencoder.latent_channels, sides[1] // factor, sides[0] // factor)
        source = NoiseSource(order.seeds, shape, device=self.device)
        own = source.draw()  # also where noise is given: what the sampler draws is not to be that noise again
        start = own if noise is None else initial(noise, (len(order), *shape)).to(self.device)

        negatives = order.negatives if any(order.negatives) else [""]
        cond, uncond = self.embed(order.prompts), self.embed(negatives)
        denoiser = ClassifierFreeGuidance(self.denoiser, cond, uncond, guidance, config.interval)
        times = config.times.times(self.schedule, steps, sampler)
        start = start * config.times.first_noise(self.schedule, times, sampler)
        latents = SAMPLERS[sampler](denoiser, start, times, self.schedule, noise=source, callback=callback)
        images = to_images(self.autoencoder.decode(latents / self.scale))
        common = {"steps": steps, "guidance": guidance, "sampler": sampler, "size": sides}
        if noise is not None:
            common["noise"] = "given"  # the seed alone does not make this picture again
        if changed := adapted(self.unet, network_of(self.text)):
            common["lora"] = [{"file": Path(name).name, "scale": scale} for name, scale in changed.items()]
        return Result(images, order.metadata(common))

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
        elif isinstance(self.text, ClipText) and self.text.config.path is None:  # of a published model: it came along
            self.text.save(folder / "text")
        values = {**self.config.to_dict(), "scale": float(self.scale)}
        write_text(folder / "config.json", json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls, values: dict[str, Any], folder: Path) -> LatentDiffusion:
        """Open a folder that `save` wrote, `values` being its config.json. Raises a `UserError` that names the file or
        key at fault.
        """
        source = folder / "config.json"
        values = dict(values)
        scale = values.pop("scale", None)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < 1e30:
            raise UserError(f"{source}: scale must be a positive number, not {said(scale)}")
        try:
            config = LatentConfig.from_dict(values)
            with torch.device("meta"):  # shapes alone, until the files are known to have them
                autoencoder, unet = Autoencoder(config.autoencoder), UNet(config.unet)
        except (UserError, RuntimeError, TypeError) as error:  # the latter two for sizes beyond all bounds
            raise UserError(f"{source}: {str(error).splitlines()[0]}") from None
        load_into(autoencoder, load_weights(folder / "autoencoder"), str(folder / "autoencoder"), assign=True)
        load_into(unet, load_weights(folder / "unet"), str(folder / "unet"), assign=True)
        model = cls(config, autoencoder, build_text_encoder(config.text, folder / "text"), unet)
        model.scale.fill_(scale)
        return model.eval()
