"""Latent diffusion, as Stable Diffusion: text -> latent -> image (Rombach et al. 2022)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from diptych.core.checks import remedy
from diptych.core.errors import UserError
from diptych.core.images import to_images, to_tensor
from diptych.core.option_fields import takes
from diptych.core.random import CONCAT, POSTERIOR, GeneratorDraws
from diptych.core.values import short_repr
from diptych.diffusion.denoiser import Cond, Denoiser, Denoising
from diptych.diffusion.steps import NoiseSource
from diptych.encoders.configs import ClipTextConfig, build_encoder
from diptych.models.frozen_parts import ENCODED_AT_ONCE, OverFirstStage
from diptych.models.latent_config import LatentConfig
from diptych.models.options import LatentOptions
from diptych.models.request import LatentRequest, Request
from diptych.models.result import Result
from diptych.models.sampling import InitState, sample
from diptych.networks.autoencoder import Autoencoder, Posterior
from diptych.weights.lazy import load_module, on_meta

if TYPE_CHECKING:
    from diptych.core.counter_random import Draws
    from diptych.encoders.prompt_domain import PromptDomain
    from diptych.models.init_image import InitImage
    from diptych.networks.adm import AdmUNet
    from diptych.networks.tiling import Tiling
    from diptych.networks.tiny_decoder import TinyDecoder
    from diptych.networks.unet import UNet


class LatentDiffusion(OverFirstStage):
    """Autoencoder, U-Net and text encoder. Its state dict is what diffusion training changes: the U-Net, a jointly
    trained text encoder, and `scale`, the factor that brings latents to unit deviation.
    """

    scale: Tensor

    def __init__(
        self,
        config: LatentConfig,
        autoencoder: Autoencoder,
        text,
        unet: UNet | AdmUNet | None = None,
        tiny: TinyDecoder | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.unet = unet or config.unet.build()
        self.set_parts(autoencoder, text, tiny=tiny)
        self.register_buffer("scale", torch.tensor(config.latent_scale or 1.0))
        self.familiar: PromptDomain | None = None
        self.initialised = False  # from another model, whose scale it has
        self.adapters: dict[str, float] = {}  # files of LoRA on its layers and their scales, by `pretrained.lora_files`
        self.schedule = config.schedule.build()
        self.denoiser = Denoiser(self.unet, self.schedule, config.prediction)
        concat = config.concat_condition
        self.concat: Any = None if concat is None else concat.build(config.autoencoder)
        """The concat conditioning (`diptych.conditioning.concat`), if any."""

    @property
    def tiny(self) -> TinyDecoder | None:
        """The tiny decoder that came with the model, if one did."""
        return self._frozen["tiny"]

    @property
    def device(self) -> torch.device:
        return self.scale.device

    # Training

    @torch.no_grad()
    def start(self, batch: dict[str, Any]) -> None:
        """Set `scale`, where the config states none, from the first batch: 1 / the deviation of its latents over all
        components (appendix G).

        The latents are samples, so the posteriors' own variance counts beside that of their means. A model that began
        from another has its scale.
        """
        if self.initialised or self.config.latent_scale is not None:
            return
        posterior = self.posterior(batch)
        self.scale.copy_((posterior.mean.var() + posterior.log_variance.exp().mean()).rsqrt())

    def posterior(self, batch: dict[str, Any], tiling: Tiling | None = None) -> Posterior:
        """Of the batch's images, in tiles or whole, or as `diptych precompute` stored it."""
        if "latent" in batch:
            return self.autoencoder.posterior(batch["latent"].float())
        with torch.no_grad():
            images = batch["picture"].to(next(self.autoencoder.parameters()).dtype)
            parts = [self.moments(part, tiling) for part in images.split(ENCODED_AT_ONCE)]
        return self.autoencoder.posterior(torch.cat(parts).float())

    def moments(self, images: Tensor, tiling: Tiling | None) -> Tensor:
        """Means and log-variances of the latents of images, by the autoencoder."""
        if tiling is None:
            return self.autoencoder.moments(images)
        from diptych.networks.tiling import moments

        return moments(self.autoencoder, images, tiling)

    def prepare(self, batch: dict[str, Any], draws: Draws, dropped: Tensor) -> tuple[Tensor, Cond]:
        """The scaled latent sample x0 (B, C, h, w) and the condition of a training batch.

        The posterior's noise is drawn; dropped (B,) bool marks captions replaced by the empty one.
        """
        posterior = self.posterior(batch)
        cond = self.embed(self.kept_captions(batch, dropped))
        if self.concat is not None:
            drawn = batch if "drawn" in batch else self.drawn(batch["picture"], draws.host.seeds)
            cond["concat"] = self.concat.from_training(batch["picture"], drawn["drawn"], self.concat_encoder(draws))
        return posterior.sample(draws.normal(posterior.mean, POSTERIOR)) * self.scale, cond

    def drawn(self, images: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """What concat conditioning draws for images (B, 3, H, W) with seeds (B,), on the CPU: a batch may bring it."""
        return {} if self.concat is None else {"drawn": self.concat.drawn(images, seeds)}

    @property
    def image_to_image(self) -> bool:
        """Whether it is a model for inpainting or super-resolution."""
        return self.config.concat_condition is not None

    def sample_from_images(self, images: Tensor, captions: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) with a hole or made small as in training, and what it makes of these."""
        assert self.config.concat_condition is not None, "a model that starts from words alone"
        inputs, options = self.concat.examples(images, torch.tensor(seeds))
        return inputs, to_tensor(self.generate(captions, seeds=seeds, **options).images)

    # Sampling

    @property
    def low_size(self) -> int | None:
        """Side of the images that it was trained to enlarge; none if it was not."""
        factor = self.config.low_factor
        return None if factor is None else self.config.size // factor

    @property
    def repaints(self) -> bool | None:
        """Whether it was trained to inpaint; none where it takes no mask."""
        return self.config.repaints if self.config.low_factor is None else None

    @property
    def factor(self) -> int:
        """Pixels a side of one place of its latents."""
        return self.config.autoencoder.factor

    def embed(self, prompts: list[str], request: Request | None = None) -> dict[str, Tensor]:
        """Prompts as the U-Net's keyword arguments, read as a request says; it may take some of them only."""
        if self.text is None:
            return {}
        if request is None:
            return self.text.encode(prompts).cond(self.config.unet, self.device)
        from diptych.encoders.prompt_weights import encode_prompts

        domain = self.familiar if prompts is request.prompts else None
        return encode_prompts(self.text, prompts, request, domain).cond(self.config.unet, self.device)

    def encode(self, images: Tensor, draws: Draws, stream: int, tiling: Tiling | None = None) -> Tensor:
        """Scaled samples (B, C, h, w) of the latents of images (1 or B, 3, H, W), random numbers from a stream."""
        posterior = self.posterior({"picture": images.to(self.device)}, tiling)
        like = posterior.mean.expand(len(draws.seeds), *posterior.mean.shape[1:])
        return posterior.sample(draws.normal(like, stream)) * self.scale

    def concat_encoder(self, draws: Draws, tiling: Tiling | None = None) -> Callable[[Tensor], Tensor]:
        """Encodes the images of concat conditioning."""
        return partial(self.encode, draws=draws, stream=CONCAT, tiling=tiling)

    def decode(
        self, latents: Tensor, tiling: Tiling | None = None, decoder: Autoencoder | TinyDecoder | None = None
    ) -> Tensor:
        """Images (B, 3, H, W) of scaled latents, by the autoencoder unless another decoder is given."""
        decoder = decoder or self.autoencoder
        latents = (latents / self.scale).to(next(decoder.parameters()).dtype)
        if tiling is None:
            return decoder.decode(latents).float()
        from diptych.networks.tiling import decode

        return decode(decoder, latents, tiling).float()

    def decoder(self, chosen: TinyDecoder | Path | str | None) -> Autoencoder | TinyDecoder:
        """What decodes: the autoencoder where none is chosen, else as `choose_tiny_decoder` says."""
        if chosen is None:
            return self.autoencoder
        from diptych.models.first_stage import choose_tiny_decoder

        return choose_tiny_decoder(chosen, self.autoencoder, self.tiny).to(self.device)

    @torch.no_grad()
    @takes(LatentOptions)
    def generate(self, prompts: str | Sequence[str], **options: Unpack[LatentOptions]) -> Result:
        """Generate one image for each prompt.

        prompts: one text, or several; for a class-conditional model, numbers or names of classes. An unconditional
          model reads none: there they only name the images. With an init image or a low-resolution image they may be
          empty. One prompt with several seeds makes several images.

        Images are files, Pillow images or tensors (B, 3, H, W) in [-1, 1], masks (B, 1, H, W) in [0, 1], one or one for
        each prompt. Initial noise is of shape (B, latent channels, height / factor, width / factor). `callback` gets
        the estimate of x_0 as latents (B, C, h, w).

        Raises a `UserError` that names the option or prompt at fault.
        """
        request = LatentRequest.read(self, prompts, options)
        decoder = self.decoder(request.decoder)
        draws = GeneratorDraws(torch.tensor(request.seeds), whole=True)

        cond, uncond = self.conditions(request, draws)
        init = None if request.init_image is None else self.init_state(request.init_image, draws, request.tiling)
        shape = (self.config.autoencoder.latent_channels, *(side // self.factor for side in reversed(request.size)))

        latents, cost = sample(
            self.denoiser,
            self.config.times,
            request.sampling,
            cond,
            uncond,
            NoiseSource(request.seeds, shape, device=self.device),
            noise=request.noise,
            init=init,
            guide=partial(self.guide, request=request, decoder=decoder) if request.guides else None,
            callback=request.callback,
        )

        images = self.decode(latents, request.tiling, decoder)
        images = images if request.init_image is None else request.init_image.paste_into(images)
        advice = remedy(next(decoder.parameters()).dtype)
        return request.result(self, to_images(images, "what the decoder makes of the latents", advice), cost, decoder)

    def conditions(self, request: LatentRequest, draws: Draws) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The U-Net's keyword arguments with the prompts, and with the negative prompts."""
        cond = uncond = self.embed(request.prompts, request)
        if self.config.guidable:
            uncond = self.embed(request.negatives if any(request.negatives) else [""], request)
        extra, encode = {}, self.concat_encoder(draws, request.tiling)
        if request.low_res is not None:
            extra["concat"] = self.concat(request.low_res.to(self.device), encode)
        elif self.config.repaints and request.init_image is not None:
            extra["concat"] = self.concat(request.init_image.images, request.init_image.mask, encode)
        return {**cond, **extra}, {**uncond, **extra}

    def init_state(self, init: InitImage, draws: Draws, tiling: Tiling | None) -> InitState:
        """The latents of an init image and its mask over them, unless the U-Net reads the mask."""
        latents = self.encode(init.images, draws, POSTERIOR, tiling)
        if init.mask is None or self.config.repaints:
            return init.state(latents, None)
        return init.state(latents, init.latent_mask(self.factor).to(self.device).bool())

    def guide(self, denoiser: Denoising, request: LatentRequest, decoder: Autoencoder | TinyDecoder) -> Denoising:
        """The denoiser, guided by the guides of a request. Guides of clean images see estimates by `decoder`."""
        from diptych.models.guides import Space, guided_by
        from diptych.weights.fingerprint import fingerprint

        float32 = next(self.autoencoder.parameters()).dtype == torch.float32  # in other types the hash differs
        first_stage = fingerprint(self.autoencoder) if float32 else None
        images = partial(self.decode, decoder=decoder)
        space = Space(self.schedule, self.device, images, first_stage, float(self.scale))
        return guided_by(denoiser, request.guides, request.prompts, space)

    # Files: config.json, unet/, autoencoder/, where the text encoder was trained along text/, and tiny_decoder/ if any.

    def save(self, folder: Path, dtype: str = "float32") -> None:
        """Write the model as a folder that `diptych.load` opens."""
        from diptych.core.disk import write_text
        from diptych.models.first_stage import save_tiny_decoder
        from diptych.weights.model_folder import model_place
        from diptych.weights.save import save_weights

        folder, kind = model_place(folder), getattr(torch, dtype)
        save_weights(self.unet.state_dict(), folder / "unet", dtype=kind)
        save_weights(self.autoencoder.state_dict(), folder / "autoencoder", dtype=kind)
        if self.joint_text is not None:
            save_weights(self.joint_text.state_dict(), folder / "text", dtype=kind)
            self.joint_text.save(folder / "text")
        elif (
            isinstance(text := getattr(self.text, "config", None), ClipTextConfig) and text.path is None
        ):  # of a published model: it came along
            self.text.save(folder / "text")
        if self.tiny is not None:
            save_tiny_decoder(self.tiny, folder / "tiny_decoder")
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
            raise UserError(f"{source}: scale must be a positive number, not {short_repr(scale)}")
        try:
            config = LatentConfig.from_dict(values)
            with on_meta():  # shapes alone, until the files are known to have them
                autoencoder, unet = Autoencoder(config.autoencoder), config.unet.build()
        except (UserError, RuntimeError, TypeError) as error:  # the latter two for sizes beyond all bounds
            raise UserError(f"{source}: {str(error).splitlines()[0]}") from None
        load_module(autoencoder, folder / "autoencoder")
        load_module(unet, folder / "unet")
        tiny = None
        if (folder / "tiny_decoder").is_dir():
            from diptych.models.first_stage import load_tiny_decoder

            tiny = load_tiny_decoder(folder / "tiny_decoder")
        model = cls(config, autoencoder, build_encoder(config.text, folder / "text"), unet, tiny)
        model.scale.fill_(scale)
        from diptych.encoders.prompt_domain import PromptDomain

        model.familiar = PromptDomain.load(folder)
        return model.eval()
