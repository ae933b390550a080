"""Pixel diffusion from text, from a low-resolution image, or both: one stage of a cascade (Saharia et al. 2022)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from diptych.conditioning.degradations import degrade
from diptych.conditioning.lowres_augmentation import augment, downsample, level_condition, training_levels
from diptych.conditioning.masks import sample_masks
from diptych.core.counter_random import Draws
from diptych.core.devices import sent
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.core.images import to_images
from diptych.core.option_fields import takes
from diptych.core.random import AUGMENTATION, LEVEL, NARROW
from diptych.diffusion.denoiser import Cond, Denoiser
from diptych.diffusion.steps import Callback, NoiseSource
from diptych.encoders.base import TextEmbedding, network_of
from diptych.encoders.configs import JointTransformerConfig, build_encoder
from diptych.encoders.joint import JointTransformer
from diptych.encoders.prompt_domain import PromptDomain
from diptych.models.frozen_parts import FrozenModules
from diptych.models.guides import Guides, Space, guided_by
from diptych.models.init_image import InitImage
from diptych.models.options import PixelOptions, PixelSamplingOptions, read_options
from diptych.models.pixel_config import PixelDiffusionConfig, require_trained
from diptych.models.pixel_request import PixelRequest, read_pixel_settings
from diptych.models.request import Request
from diptych.models.result import OneLineRepr, Result
from diptych.models.sampling import SamplingSettings, sample
from diptych.networks.adm import AdmUNet
from diptych.networks.efficient_unet import EfficientUNet
from diptych.networks.unet import UNet
from diptych.weights.files import load_header_values
from diptych.weights.lazy import load_module, on_meta
from diptych.weights.model_folder import model_place
from diptych.weights.save import save_weights


class PixelDiffusion(OneLineRepr, FrozenModules):
    """A network over pixels and a text encoder. A frozen encoder is not in its state dict; one that is trained with the
    network is, as `joint_text`."""

    def __init__(
        self, config: PixelDiffusionConfig, text=None, network: UNet | EfficientUNet | AdmUNet | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.network = network or config.network.build()
        self.joint_text = text if isinstance(text, JointTransformer) else None
        self.set_frozen(text=None if self.joint_text is not None else text)
        self.schedule = config.schedule.build()
        self.denoiser = Denoiser(self.network, self.schedule, config.prediction, config.learned_variance)

    @property
    def text(self) -> Any:
        """The text encoder, or none; built on first use."""
        if self.joint_text is not None:
            return self.joint_text
        if self._frozen["text"] is None and self.config.text is not None:
            self.text = self.open_encoder(self.config.text)
        return self._frozen["text"]

    def open_encoder(self, config: Any) -> Any:
        """A frozen text encoder on the device; `engines.placement` puts another way to open it in its place."""
        return build_encoder(config, device=self.device)

    @text.setter
    def text(self, encoder) -> None:
        self.set_frozen(text=encoder)
        if (network := network_of(encoder)) is not None:
            network.to(self.device)

    @property
    def text_loaded(self) -> bool:
        """Whether the text encoder is in memory."""
        return self.joint_text is not None or self._frozen["text"] is not None

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    # Training

    @property
    def low_size(self) -> int | None:
        return self.config.low_size

    def start(self, batch: dict[str, Any]) -> None:
        """Nothing to estimate: pixels have a scale already."""

    def prepare(self, batch: dict[str, Any], draws: Draws, dropped: Tensor) -> tuple[Tensor, Cond]:
        """The images x0 (B, 3, H, W), whole or crops, and the condition of a training batch.

        dropped (B,) bool marks captions whose embedding is zeroed. The low-resolution image is made from x0 itself,
        and augmented at a level drawn for each image; masks are drawn for each as well.
        """
        x0 = batch["picture"]
        cond = {} if self.config.text is None else self.cond(self.read(batch["caption"], dropped))
        if self.config.low_size is not None:
            level = training_levels(draws.uniform(LEVEL), self.config.augmentation).to(x0.device)
            low = batch["low_res"] if "low_res" in batch else self.reduced(x0, draws.host.seeds)
            cond |= self.enlarged(low, level, lambda like: draws.normal(like, AUGMENTATION))
        if self.config.masks is not None:
            drawn = batch if "mask" in batch else self.drawn(x0, draws.host.seeds)
            cond = concat_masked(cond, x0, drawn["mask"])
        return x0, cond

    def drawn(self, images: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """Degraded images and masks of images (B, 3, H, W) with seeds (B,), made on the CPU: a batch may bring them."""
        made = {}
        if self.config.low_size is not None and self.config.degradation is not None:
            made["low_res"] = self.reduced(images, seeds)
        if self.config.masks is not None:
            made["mask"] = sample_masks(self.config.masks, images.shape[-2:], seeds)
        return made

    def read(self, captions: list[str], dropped: Tensor) -> TextEmbedding:
        """Embeddings of captions; those that dropped (B,) bool marks are the null condition."""
        if self.config.null_text == "zeros":
            return self.text.encode(captions).zeroed(dropped, self.config.null_tokens)
        return self.text.encode(["" if drop else one for one, drop in zip(captions, dropped.tolist(), strict=True)])

    @property
    def image_to_image(self) -> bool:
        """Whether it is a model for super-resolution or inpainting."""
        return self.config.low_size is not None or self.config.masks is not None

    @torch.no_grad()
    def sample_from_images(self, images: Tensor, captions: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) made small or masked, and enlarged or repainted by this stage at its own settings."""
        require_trained(self.network, f"the stage {self.config.name}")
        size, request = (images.shape[-2], images.shape[-1]), Request(captions, [""] * len(captions), seeds)
        low_res = init_image = None
        inputs = images
        if self.config.masks is not None:
            masks = sample_masks(self.config.masks, size, torch.tensor(seeds))
            init_image, inputs = InitImage(images, masks, 1.0, False), images * (1 - masks.to(images))
        if self.config.low_size is not None:
            low_res = inputs = self.reduced(images, torch.tensor(seeds))
        embeddings, settings = self.embed(request), self.settings()
        images, _ = self.sample(embeddings, seeds, settings, size=size, low_res=low_res, init_image=init_image)
        return inputs, images

    def reduced(self, images: Tensor, seeds: Tensor) -> Tensor:
        """The low-resolution truth (B, 3, H / factor, W / factor) of images (B, 3, H, W) with these seeds (B,)."""
        factor = self.config.factor
        if self.config.degradation is not None:
            return degrade(images, factor, self.config.degradation, seeds)
        if images.shape[-2] % factor or images.shape[-1] % factor:
            raise UserError(f"images of {tuple(images.shape[-2:])} pixels are no multiples of the factor {factor}")
        return downsample(images, (images.shape[-2] // factor, images.shape[-1] // factor))

    def enlarged(self, low: Tensor, level: Tensor, noise: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """low (B, 3, h, w) and levels (B,) as the network's keyword arguments."""
        size = (low.shape[-2] * self.config.factor, low.shape[-1] * self.config.factor)
        with torch.autocast(low.device.type, enabled=False):  # a blur is a convolution
            cond = {"concat": augment(low, size, level, noise, self.config.augmentation)}
        condition = level_condition(level, self.config.augmentation, low)
        return {**cond, "level": condition} if self.config.network.augmented else cond

    def cond(self, embedding: TextEmbedding) -> dict[str, Tensor]:
        """Prompts as the network's keyword arguments; those that it was not built to read are left out."""
        return embedding.cond(self.config.network, self.device)

    # Sampling

    def settings(self, **given: Any) -> SamplingSettings:
        """Options of `generate` about sampling, the model's own where none are given."""
        return read_pixel_settings(self.config, read_options(PixelSamplingOptions, given))

    @torch.no_grad()
    @takes(PixelOptions)
    def generate(self, prompts: str | Sequence[str], **options: Unpack[PixelOptions]) -> Result:
        """Generate one image for each prompt; a super-resolution model enlarges one image for each.

        prompts: as for `LatentDiffusion.generate`. An unconditional model (SR3, DDPM) reads none, and with a
          low-resolution image none are needed.

        The low-resolution image is a file or a Pillow image, its shorter side brought to `config.low_size`. An init
        image is for a base stage; one that was trained to inpaint (`config.masks`) needs image and mask, and the pixels
        outside the mask stay as they are. Initial noise is of shape (B, 3, H, W). The threshold bounds what guides add
        too. `callback` gets the estimate of x_0 (B, 3, H, W).

        Raises a `UserError` that names the option or prompt at fault, and for a model that was never trained.
        """
        request = PixelRequest.read(self.config, prompts, options)
        require_trained(self.network, f"the stage {self.config.name}")

        embeddings = self.embed(request)

        width, height = request.size
        images, cost = self.sample(
            embeddings,
            request.seeds,
            request.sampling,
            size=(height, width),
            low_res=request.low_res,
            init_image=request.init_image,
            noise=request.noise,
            guides=request.guides,
            prompts=request.prompts,
            callback=request.callback,
        )

        return request.result(self, to_images(images), cost)

    def embed(self, request: Request) -> tuple[TextEmbedding, TextEmbedding] | None:
        """The prompts and the negative prompts; none for a model without text."""
        return None if self.config.text is None else embed_prompts(self.text, request, self.config)

    def sample(
        self,
        embeddings: tuple[TextEmbedding, TextEmbedding] | None,
        seeds: Sequence[int],
        settings: SamplingSettings,
        *,
        size: tuple[int, int],
        low_res: Tensor | None = None,
        init_image: InitImage | None = None,
        noise: Tensor | None = None,
        guides: Guides = (),
        prompts: Sequence[str] = (),
        callback: Callback | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Images (B, 3, H, W) in [-1, 1] of size (H, W), and their cost as metadata.

        low_res: (B, 3, h, w), of a super-resolution model. init_image: at that size. prompts: for the guides, if any.
        """
        cond, uncond = ({}, {}) if embeddings is None else map(self.cond, embeddings)
        extra = self.image_conditions(seeds, settings, size, low_res, init_image)
        init = guide = None
        if init_image is not None:
            x0 = init_image.images.to(self.device).expand(len(seeds), 3, *size)
            init = init_image.state(x0, None if init_image.mask is None else init_image.mask.to(self.device).bool())
        if guides:
            space = Space(self.schedule, self.device, lambda x0: x0)
            guide = partial(guided_by, guides=guides, prompts=prompts, space=space)
        variance = "learned-range" if self.config.learned_variance else self.config.variance

        images, cost = sample(
            self.denoiser,
            self.config.times,
            settings,
            {**cond, **extra},
            {**uncond, **extra},
            NoiseSource([stage_seed(seed, self.config) for seed in seeds], (3, *size), device=self.device),
            noise=noise,
            init=init,
            guide=guide,
            sampler_options={"variance": variance} if settings.sampler == "ddpm" else {},
            name=f"the stage {self.config.name}",
            callback=callback,
        )
        return images.clamp(-1, 1), cost

    def image_conditions(
        self,
        seeds: Sequence[int],
        settings: SamplingSettings,
        size: tuple[int, int],
        low_res: Tensor | None,
        init_image: InitImage | None,
    ) -> dict[str, Tensor]:
        """The low-resolution image, augmented with noise, and the masked image, as the network's keyword arguments."""
        cond: dict[str, Tensor] = {}
        if low_res is not None:
            level = torch.full((len(seeds),), settings.augmentation or 0.0, dtype=torch.float64, device=self.device)
            noise_seeds = [stage_seed(seed, self.config, "low") for seed in seeds]

            def noise(like: Tensor) -> Tensor:
                return NoiseSource(noise_seeds, like.shape[1:], like.device).draw()

            cond = self.enlarged(low_res.to(self.device), level, noise)
        if self.config.masks is not None:
            if init_image is None or init_image.mask is None:  # enlarging alone: nothing of the large image is known
                images, masks = torch.zeros(1, 3, *size), torch.ones(1, 1, *size)
            else:
                images, masks = init_image.images, init_image.mask
            images, masks = (part.to(self.device).expand(len(seeds), -1, -1, -1) for part in (images, masks))
            cond = concat_masked(cond, images, masks)
        return cond

    # Files: config.json, network/, and where the text encoder was trained along text/.

    def save(self, folder: Path, dtype: str = "float32") -> None:
        """Write the stage as a folder that `diptych.load` opens."""
        folder = model_place(folder)
        self.save_network(folder / "network", getattr(torch, dtype))
        if self.joint_text is not None:
            save_weights(self.joint_text.state_dict(), folder / "text", dtype=getattr(torch, dtype))
            self.joint_text.save(folder / "text")
        write_text(folder / "config.json", self.config.to_json())

    def save_network(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write the weights alone, in the type in which they are if none is given."""
        save_weights(self.network.state_dict(), folder, dtype=dtype, metadata={"stage": self.config.name})

    @classmethod
    def load(cls, values: dict[str, Any], folder: Path) -> PixelDiffusion:
        """Open a folder that `save` wrote. A `UserError` names the file or key at fault: also where the weights are
        those of another stage, or were never trained.
        """
        source = folder / "config.json"
        try:
            config = PixelDiffusionConfig.from_dict(values)
            with on_meta():  # shapes alone, until the files are known to have them
                network = config.network.build()
        except (UserError, RuntimeError, TypeError) as error:  # the latter two for sizes beyond all bounds
            raise UserError(f"{source}: {str(error).splitlines()[0]}") from None
        check_stated(config, folder)
        load_module(network, folder / "network")
        require_trained(network, f"the stage in {folder}")
        joint = isinstance(config.text, JointTransformerConfig)
        return cls(config, build_encoder(config.text, folder / "text") if joint else None, network).eval()


def concat_masked(cond: Cond, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """A condition with masked images (B, 3, H, W) and their masks (B, 1, H, W) concatenated last."""
    masks = sent(masks, images.device).to(images)
    parts = [*([cond["concat"]] if "concat" in cond else []), images * (1 - masks), masks]
    return {**cond, "concat": torch.cat(parts, 1)}


def check_stated(config: PixelDiffusionConfig, folder: Path) -> None:
    """Raise a `UserError` if the weights in a stage's folder say that they are those of another stage."""
    for stated in load_header_values(folder / "network", "stage"):
        if stated != config.name:
            raise UserError(f"{folder / 'network'} holds the weights of stage {stated}, not of stage {config.name}")


def embed_prompts(
    text: Any, request: Request, config: PixelDiffusionConfig, familiar: PromptDomain | None = None
) -> tuple[TextEmbedding, TextEmbedding]:
    """The embeddings of prompts and of negative prompts, the latter for a model that can be guided; an empty one is the
    null embedding."""
    from diptych.encoders.prompt_weights import encode_prompts

    prompts = negatives = encode_prompts(text, request.prompts, request, familiar)
    if not config.guidable:
        return prompts, prompts
    if any(request.negatives) or config.null_text == "empty":
        negatives = encode_prompts(text, request.negatives, request)
    if config.null_text == "empty":
        return prompts, negatives
    no_prompt, no_negative = ([not text for text in texts] for texts in (request.prompts, request.negatives))
    tokens = config.null_tokens
    return prompts.zeroed(torch.tensor(no_prompt), tokens), negatives.zeroed(torch.tensor(no_negative), tokens)


def stage_seed(seed: int, config: PixelDiffusionConfig, what: str = "") -> int:
    """The seed itself for a base stage, and one that follows from it for every other stage and purpose: of 32 bits
    where the seed has no more."""
    if config.low_size is None and not what:
        return seed
    digest = hashlib.blake2b(f"{seed}/{config.name}/{what}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest) >> 1
    return number if seed >= NARROW else number % NARROW
