"""One stage of the cascade panel: pixel diffusion from words, from a smaller picture, or both (Saharia et al. 2022)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diptych.conditioning.degradations import degraded
from diptych.conditioning.lowres_augmentation import augmented, reduce, told_level, training_levels
from diptych.conditioning.masks import drawn_masks
from diptych.core.checks import initial, remedy
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.core.images import to_images, to_tensor
from diptych.core.random import AUGMENTATION, LEVEL, Draws
from diptych.core.seeding import NARROW
from diptych.diffusion.denoiser import Cond, Denoiser
from diptych.diffusion.finite_check import FiniteCheck
from diptych.diffusion.guidance import ClassifierFreeGuidance
from diptych.diffusion.inpainting import sample_from_image
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.steps import NoiseSource
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.encoders.base import PromptOptions, TextEmbedding, network_of
from diptych.encoders.configs import JointTransformerConfig, build_reader
from diptych.encoders.joint import JointTransformer
from diptych.models.frozen_parts import HoldsFrozen
from diptych.models.guides import Guides, Space, guided_by, guides_metadata
from diptych.models.init_image import InitImage
from diptych.models.lowres_image import fit_of
from diptych.models.pixel_config import (
    PixelDiffusionConfig,
    SamplingSettings,
    read_low,
    read_painted,
    read_settings,
    require_trained,
)
from diptych.models.request import Callback, OneLineRepr, Request, Result, read_size, warn_of_size
from diptych.models.sampling import Cost
from diptych.networks.adm import AdmUNet
from diptych.networks.efficient_unet import EfficientUNet
from diptych.networks.unet import UNet
from diptych.weights.files import load_stated, save_weights
from diptych.weights.identity import identity
from diptych.weights.lazy import load_module
from diptych.weights.model_folder import model_place

if TYPE_CHECKING:
    from diptych.encoders.prompt_domain import PromptDomain


class PixelDiffusion(OneLineRepr, HoldsFrozen):
    """A network over pixels and a text encoder. A frozen encoder is not in its state dict; one that is trained with the
    network is, as `joint_text`."""

    def __init__(
        self, config: PixelDiffusionConfig, text=None, network: UNet | EfficientUNet | AdmUNet | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.network = network or config.network.build()
        self.joint_text = text if isinstance(text, JointTransformer) else None
        self.hold_frozen(text=None if self.joint_text is not None else text)
        self.schedule = config.schedule.build()
        self.denoiser = Denoiser(self.network, self.schedule, config.prediction, config.learned_variance)

    @property
    def text(self) -> Any:
        """The text encoder, or none; built when it is first asked for."""
        if self.joint_text is not None:
            return self.joint_text
        if self._frozen["text"] is None and self.config.text is not None:
            self.text = build_reader(self.config.text, device=self.device)
        return self._frozen["text"]

    @text.setter
    def text(self, encoder) -> None:
        self.hold_frozen(text=encoder)
        if (network := network_of(encoder)) is not None:
            network.to(self.device)

    @property
    def reads(self) -> bool:
        """Whether the text encoder is in memory."""
        return self.joint_text is not None or self._frozen["text"] is not None

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    # What the training loop asks for.

    @property
    def low_size(self) -> int | None:
        return self.config.low_size

    def start(self, batch: dict[str, Any]) -> None:
        """Nothing to estimate: pixels have a scale already."""

    def prepare(self, batch: dict[str, Any], draws: Draws, dropped: Tensor) -> tuple[Tensor, Cond]:
        """The pictures x0 (B, 3, H, W), whole or crops, and the condition of a training batch.

        dropped (B,) bool marks captions whose embedding is zeroed. The low-resolution picture is made from x0 itself,
        and spoiled at a level drawn for each picture; masks are drawn for each as well.
        """
        x0 = batch["picture"]
        cond = {} if self.config.text is None else self.cond(self.read(batch["caption"], dropped))
        if self.config.low_size is not None:
            level = training_levels(draws.uniform(LEVEL), self.config.augmentation).to(x0.device)
            cond |= self.enlarged(self.reduced(x0, batch["seed"]), level, lambda like: draws.normal(like, AUGMENTATION))
        if self.config.masks is not None:
            cond = masked_beside(cond, x0, drawn_masks(self.config.masks, x0.shape[-2:], batch["seed"]))
        return x0, cond

    def read(self, captions: list[str], dropped: Tensor) -> TextEmbedding:
        """Captions, those that dropped (B,) bool marks as what stands for no words."""
        if self.config.null_text == "zeros":
            return self.text.encode(captions).zeroed(dropped, self.config.null_tokens)
        return self.text.encode(["" if gone else one for one, gone in zip(captions, dropped.tolist(), strict=True)])

    @property
    def remakes(self) -> bool:
        """Whether it makes pictures of pictures: it enlarges or repaints them."""
        return self.config.low_size is not None or self.config.masks is not None

    @torch.no_grad()
    def remake(self, pictures: Tensor, captions: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) made small or masked, and enlarged or repainted by this stage at its own settings."""
        require_trained(self.network, f"the stage {self.config.name}")
        size, order = (pictures.shape[-2], pictures.shape[-1]), Request(captions, [""] * len(captions), seeds)
        low = original = None
        shown = pictures
        if self.config.masks is not None:
            masks = drawn_masks(self.config.masks, size, torch.tensor(seeds))
            original, shown = InitImage(pictures, masks, 1.0, False), pictures * (1 - masks.to(pictures))
        if self.config.low_size is not None:
            low = shown = self.reduced(pictures, torch.tensor(seeds))
        return shown, self.sample(self.words(order), seeds, self.settings(), size=size, low=low, original=original)

    def reduced(self, pictures: Tensor, seeds: Tensor) -> Tensor:
        """The low-resolution truth (B, 3, H / factor, W / factor) of pictures (B, 3, H, W) with these seeds (B,)."""
        factor = self.config.factor
        if self.config.degradation is not None:
            return degraded(pictures, factor, self.config.degradation, seeds)
        if pictures.shape[-2] % factor or pictures.shape[-1] % factor:
            raise UserError(f"pictures of {tuple(pictures.shape[-2:])} pixels are no multiples of the factor {factor}")
        return reduce(pictures, (pictures.shape[-2] // factor, pictures.shape[-1] // factor))

    def enlarged(self, low: Tensor, level: Tensor, noise: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """low (B, 3, h, w) and levels (B,) as the network's keyword arguments."""
        size = (low.shape[-2] * self.config.factor, low.shape[-1] * self.config.factor)
        with torch.autocast(low.device.type, enabled=False):  # a blur is a convolution
            cond = {"concat": augmented(low, size, level, noise, self.config.augmentation)}
        told = told_level(level, self.config.augmentation, low)
        return {**cond, "level": told} if self.config.network.augmented else cond

    def cond(self, embedding: TextEmbedding) -> dict[str, Tensor]:
        """Prompts as the network's keyword arguments; those that it was not built to read are left out."""
        return embedding.cond(self.config.network, self.device)

    # What everyone else asks for.

    def settings(self, **given: Any) -> SamplingSettings:
        """A user's settings, the stage's own where none are given."""
        return read_settings(self.config, **given)

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        schedule_type: str | None = None,
        threshold: str | ThresholdConfig | None = None,
        negative: str | Sequence[str] | None = None,
        low: Any = None,
        augmentation: float | None = None,
        noise: Tensor | None = None,
        size: tuple[int, int] | None = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        paste: bool = False,
        fit: str | None = None,
        guides: Guides = (),
        weights: bool = False,
        long_prompts: str = "refuse",
        callback: Callback | None = None,
    ) -> Result:
        """Paint one picture for each prompt; a super-resolution stage enlarges one picture for each.

        Args:
            prompts, seeds, negative: as for the latent panel. Nothing is said by zeros, the null embedding, or by the
                empty prompt (`config.null_text`). A stage of classes reads their numbers or names. A stage without text
                (SR3, DDPM) reads neither: prompts then only name the pictures, with `low` none is needed, and nothing
                is guided.
            steps, guidance, sampler, threshold, augmentation: the stage's own defaults if none. A threshold is "none",
                "static", "dynamic", or "dynamic:0.95:1.5" with its percentile and cap; augmentation is the level, from
                0 to 1, at which the low-resolution picture is spoiled.
            schedule_type: as for the latent panel.
            low: for a super-resolution stage, the picture to enlarge (PIL, or a path), one or one for each prompt; its
                shorter side is brought to `config.low_size`.
            noise: initial noise (B, 3, H, W) with unit deviation, in the place of the seeds' own.
            size: (width, height) of a base stage's pictures, multiples of `config.multiple`.
            fit: as for the latent panel, of `image` or `low`.
            image, strength, mask, paste: as for the latent panel, for a base stage; what the mask leaves alone keeps
                its pixels in any case. A base stage that was trained to repaint (`config.masks`) wants both.
            guides: as for the latent panel. They are held to the threshold too, as guidance by words is.
            weights, long_prompts: as for the latent panel.
            callback: called with (step, steps, x0 estimate (B, 3, H, W)); raise to cancel.

        Raises:
            UserError: as for the latent panel; or the stage was never trained; or `low` is missing, or no picture.
        """
        nothing_to_say = image is not None or (low is not None and self.config.text is None)
        order = Request.read(
            prompts, seeds, negative, nothing_to_say, reading=PromptOptions.read(weights, long_prompts)
        )
        settings = self.settings(
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            schedule_type=schedule_type,
            threshold=threshold,
            augmentation=augmentation,
        )
        given = {
            "image": image,
            "strength": strength,
            "mask": mask,
            "paste": paste,
            "fit": fit if low is None else None,
        }
        original = read_painted([self.config], len(order), settings.steps, size, **given)
        lows = read_low(self.config, low, len(order), fit=fit)
        if original is not None:
            width, height = original.sides
        elif lows is None:
            width, height = read_size((self.config.size,) * 2 if size is None else size, self.config.multiple)
            warn_of_size((width, height), self.config.size)
        elif size is None:
            width, height = (side * self.config.factor for side in lows[0].size)
        else:
            raise UserError("size follows from the low-resolution picture: leave it out")
        start = None if noise is None else initial(noise, (len(order), 3, height, width))
        require_trained(self.network, f"the stage {self.config.name}")
        cost = Cost(self.denoiser, len(order))
        pictures = self.sample(
            self.words(order),
            order.seeds,
            settings,
            size=(height, width),
            low=None if lows is None else to_tensor(lows),
            noise=start,
            original=original,
            guides=guides,
            prompts=order.prompts,
            callback=callback,
        )
        common = {**settings.told(), "size": [width, height], **({} if original is None else original.told())}
        common |= guides_metadata(guides) | cost.metadata()
        common |= {"fit": fitted} if (fitted := fit_of(lows)) else {}
        handed = {"image": image, "mask": mask, "low": low, "noise": noise}
        return Result(to_images(pictures), order.metadata(identity(self, "stage"), common, **handed))

    def words(self, order: Request) -> tuple[TextEmbedding, TextEmbedding] | None:
        """The prompts and what to steer away from: the negatives, or no words."""
        return None if self.config.text is None else embed_order(self.text, order, self.config)

    def sample(
        self,
        words: tuple[TextEmbedding, TextEmbedding] | None,
        seeds: Sequence[int],
        settings: SamplingSettings,
        *,
        size: tuple[int, int] | None = None,
        low: Tensor | None = None,
        noise: Tensor | None = None,
        original: InitImage | None = None,
        guides: Guides = (),
        prompts: Sequence[str] = (),
        callback: Callback | None = None,
    ) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1]: of size (H, W), or from low (B, 3, h, w) for a super-resolution stage.

        original: what is painted over, or in part anew, at that size. prompts: what the guides, if any, are told.
        """
        cond, uncond = ({}, {}) if words is None else (self.cond(words[0]), self.cond(words[1]))
        if low is not None:
            level = torch.full((len(low),), settings.augmentation or 0.0, dtype=torch.float64, device=self.device)
            spoiling = [stage_seed(seed, self.config, "low") for seed in seeds]
            extra = self.enlarged(
                low.to(self.device), level, lambda like: NoiseSource(spoiling, like.shape[1:], like.device).draw()
            )
            cond, uncond = {**cond, **extra}, {**uncond, **extra}
            size = (extra["concat"].shape[-2], extra["concat"].shape[-1])
        assert size is not None, "a base stage has to be told the size"
        if self.config.masks is not None:  # enlarging alone, it knows nothing of the large picture
            nothing = torch.zeros(1, 3, *size), torch.ones(1, 1, *size)
            known = nothing if original is None or original.mask is None else (original.pictures, original.mask)
            known = tuple(part.to(self.device).expand(len(seeds), -1, -1, -1) for part in known)
            cond, uncond = masked_beside(cond, *known), masked_beside(uncond, *known)
        source = NoiseSource([stage_seed(seed, self.config) for seed in seeds], (3, *size), device=self.device)
        own = source.draw()  # also where noise is given: what the sampler draws is not to be that noise again
        x = own if noise is None else noise.to(self.device)
        course = self.config.times.plan(self.schedule, settings.steps, settings.sampler, settings.schedule_type)
        times, first = course.times, course.init_noise_sigma * x
        denoiser = ClassifierFreeGuidance(self.denoiser.with_schedule(course.schedule), cond, uncond, settings.guidance)
        space = Space(self.schedule, self.device, lambda x0: x0)
        advice = remedy(next(self.network.parameters()).dtype, settings.guidance)
        check = FiniteCheck(f"the stage {self.config.name}", times, advice)
        denoiser = settings.threshold.wrap(check.wrap(guided_by(denoiser, guides, prompts, space)))
        variance = "learned-range" if self.config.learned_variance else self.config.variance
        options = {"variance": variance} if settings.sampler == "ddpm" else {}
        sampler = partial(
            SAMPLERS[settings.sampler], schedule=self.schedule, noise=source, callback=callback, **options
        )
        walk = check.wrap_sampler(sampler)
        if original is None:
            return walk(denoiser, first, times).clamp(-1, 1)
        known = original.pictures.to(self.device).expand_as(x)
        mask = None if original.mask is None else original.mask.to(self.device).bool()
        start, times = first if original.anew else None, original.later(times)
        painted = sample_from_image(walk, denoiser, known, x, times, self.denoiser.add_noise, mask=mask, start=start)
        return painted.clamp(-1, 1)

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
            with torch.device("meta"):  # shapes alone, until the files are known to have them
                network = config.network.build()
        except (UserError, RuntimeError, TypeError) as error:  # the latter two for sizes beyond all bounds
            raise UserError(f"{source}: {str(error).splitlines()[0]}") from None
        check_stated(config, folder)
        load_module(network, folder / "network")
        require_trained(network, f"the stage in {folder}")
        joint = isinstance(config.text, JointTransformerConfig)
        return cls(config, build_reader(config.text, folder / "text") if joint else None, network).eval()


def masked_beside(cond: Cond, pictures: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """A condition with what is left of pictures (B, 3, H, W) by masks (B, 1, H, W), and these, concatenated last."""
    masks = masks.to(pictures)
    parts = [*([cond["concat"]] if "concat" in cond else []), pictures * (1 - masks), masks]
    return {**cond, "concat": torch.cat(parts, 1)}


def check_stated(config: PixelDiffusionConfig, folder: Path) -> None:
    """Raise a `UserError` if the weights in a stage's folder say that they are those of another stage."""
    for stated in load_stated(folder / "network", "stage"):
        if stated != config.name:
            raise UserError(f"{folder / 'network'} holds the weights of stage {stated}, not of stage {config.name}")


def embed_order(
    text, order: Request, config: PixelDiffusionConfig, familiar: PromptDomain | None = None
) -> tuple[TextEmbedding, TextEmbedding]:
    """The embeddings of prompts and of negatives, the latter for a stage that can be guided; an empty negative is what
    stands for no words."""
    from diptych.encoders.prompt_weights import encode_prompts

    prompts = negatives = encode_prompts(text, order.prompts, order, familiar)
    if not config.guidable:
        return prompts, prompts
    if any(order.negatives) or config.null_text == "empty":
        negatives = encode_prompts(text, order.negatives, order)
    if config.null_text == "empty":
        return prompts, negatives
    silent, free = ([not text for text in texts] for texts in (order.prompts, order.negatives))
    tokens = config.null_tokens
    return prompts.zeroed(torch.tensor(silent), tokens), negatives.zeroed(torch.tensor(free), tokens)


def stage_seed(seed: int, config: PixelDiffusionConfig, what: str = "") -> int:
    """The seed itself for a base stage, and one that follows from it for every other stage and purpose: of 32 bits
    where the seed has no more."""
    if config.low_size is None and not what:
        return seed
    digest = hashlib.blake2b(f"{seed}/{config.name}/{what}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest) >> 1
    return number if seed >= NARROW else number % NARROW
