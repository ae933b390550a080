"""One stage of the cascade panel: pixel diffusion from words, from a smaller picture, or both (Saharia et al. 2022)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.checks import initial
from diptych.conditioning.low_resolution import augmented, reduce, training_levels
from diptych.conditioning.text import TextEmbedding, build_text_encoder
from diptych.diffusion.denoiser import Cond, Denoiser
from diptych.diffusion.guidance import ClassifierFreeGuidance, ThresholdConfig
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedule import build_schedule, timesteps
from diptych.diffusion.steps import NoiseSource
from diptych.errors import UserError
from diptych.generation import Callback, Order, Result, read_size
from diptych.networks.efficient_unet import EfficientUNet
from diptych.networks.unet import UNet
from diptych.pictures import read_picture, to_images, to_tensor
from diptych.stage_config import Settings, StageConfig, build_network, read_settings, trained
from diptych.training.randomness import AUGMENTATION, LEVEL, Draws
from diptych.weights.files import load_into, load_stated, load_weights, save_weights, write_text

LONGEST_SIDE = 4
"""A low-resolution picture may be so many times as long as it is wide."""


class Stage(nn.Module):
    """A network over pixels and the text encoder beside it, which is frozen and no part of its state."""

    def __init__(self, config: StageConfig, text=None, network: UNet | EfficientUNet | None = None) -> None:
        super().__init__()
        self.config = config
        self.network = network or build_network(config.network)
        self._text = (text,)  # in a tuple, so that it is no submodule
        self.schedule = build_schedule(config.schedule)
        self.denoiser = Denoiser(self.network, self.schedule, config.prediction, config.learned_variance)

    @property
    def text(self) -> Any:
        """The text encoder, or none; built when it is first asked for."""
        if self._text[0] is None and self.config.text is not None:
            self.text = build_text_encoder(self.config.text)
        return self._text[0]

    @text.setter
    def text(self, encoder) -> None:
        self._text = (encoder,)
        if isinstance(network := getattr(encoder, "model", None), nn.Module):
            network.to(self.device)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _apply(self, fn, recurse: bool = True):
        """Whatever moves the stage moves its text encoder along."""
        if isinstance(network := getattr(self._text[0], "model", None), nn.Module):
            network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    # What the training loop asks for.

    @property
    def low_size(self) -> int | None:
        return self.config.low_size

    def start(self, batch: dict[str, Any]) -> None:
        """Nothing to estimate: pixels have a scale already."""

    def prepare(self, batch: dict[str, Any], draws: Draws, dropped: Tensor) -> tuple[Tensor, Cond]:
        """The pictures x0 (B, 3, H, W), whole or crops, and the condition of a training batch.

        dropped (B,) bool marks captions whose embedding is zeroed. The low-resolution picture is made from x0 itself,
        and spoiled at a level drawn for each picture.
        """
        x0 = batch["picture"]
        cond = {} if self.config.text is None else self.cond(self.text.encode(batch["caption"]).zeroed(dropped))
        if self.config.low_size is not None:
            level = training_levels(draws.uniform(LEVEL), self.config.augmentation).to(x0.device)
            cond |= self.enlarged(self.reduced(x0), level, lambda like: draws.normal(like, AUGMENTATION))
        return x0, cond

    @torch.no_grad()
    def enlarge(self, pictures: Tensor, captions: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) made small, and enlarged again by this stage at its own settings."""
        low, order = self.reduced(pictures), Order(captions, [""] * len(captions), seeds)
        size = (pictures.shape[-2], pictures.shape[-1])
        return low, self.sample(self.words(order), seeds, size, self.settings(), low)

    def reduced(self, pictures: Tensor) -> Tensor:
        """The low-resolution truth (B, 3, H / factor, W / factor) of pictures (B, 3, H, W)."""
        factor = self.config.factor
        if pictures.shape[-2] % factor or pictures.shape[-1] % factor:
            raise UserError(f"pictures of {tuple(pictures.shape[-2:])} pixels are no multiples of the factor {factor}")
        return reduce(pictures, (pictures.shape[-2] // factor, pictures.shape[-1] // factor))

    def enlarged(self, low: Tensor, level: Tensor, noise: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """low (B, 3, h, w) and levels (B,) as the network's keyword arguments."""
        size = (low.shape[-2] * self.config.factor, low.shape[-1] * self.config.factor)
        cond = {"concat": augmented(low, size, level, noise, self.config.augmentation)}
        return {**cond, "level": level.to(low)} if self.config.network.augmented else cond

    def cond(self, embedding: TextEmbedding) -> dict[str, Tensor]:
        """Prompts as the network's keyword arguments; those that it was not built to read are left out."""
        net, cond = self.config.network, embedding.cond()
        if net.pooled_width is None:
            del cond["pooled"]
        if net.context_width is None:
            del cond["context"], cond["context_mask"]
        return {key: value.to(self.device) for key, value in cond.items()}

    # What everyone else asks for.

    def settings(self, **given: Any) -> Settings:
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
        threshold: str | ThresholdConfig | None = None,
        negative: str | Sequence[str] | None = None,
        low: Any = None,
        augmentation: float | None = None,
        noise: Tensor | None = None,
        size: tuple[int, int] | None = None,
        callback: Callback | None = None,
    ) -> Result:
        """Paint one picture for each prompt; a super-resolution stage enlarges one picture for each.

        Args:
            prompts, seeds, negative: as for the latent panel. Nothing is said by zeros, the null embedding.
            steps, guidance, sampler, threshold, augmentation: the stage's own defaults if none.
            low: for a super-resolution stage, the picture to enlarge (PIL, or a path), one or one for each prompt; its
                shorter side is brought to `config.low_size`.
            noise: initial noise (B, 3, H, W) with unit deviation, in the place of the seeds' own.
            size: (width, height) of a base stage's pictures, multiples of `config.multiple`.

        Raises:
            UserError: as for the latent panel; or the stage was never trained; or `low` is missing, or no picture.
        """
        order = Order.read(prompts, seeds, negative)
        settings = self.settings(
            steps=steps, guidance=guidance, sampler=sampler, threshold=threshold, augmentation=augmentation
        )
        lows = self.read_low(low, len(order))
        if lows is not None:
            if size is not None:
                raise UserError("size follows from the low-resolution picture: leave it out")
            height, width = (side * self.config.factor for side in lows.shape[-2:])
        else:
            width, height = read_size((self.config.size,) * 2 if size is None else size, self.config.multiple)
        start = None if noise is None else initial(noise, (len(order), 3, height, width))
        pictures = self.sample(
            self.words(order), order.seeds, (height, width), settings, lows, noise=start, callback=callback
        )
        common = {**settings.told(), "size": [width, height]}
        if noise is not None:
            common["noise"] = "given"  # the seed alone does not make this picture again
        return Result(to_images(pictures), order.metadata(common))

    def words(self, order: Order) -> tuple[TextEmbedding, TextEmbedding] | None:
        """The prompts and what to steer away from: the negatives, or zeros."""
        return None if self.config.text is None else embed_order(self.text, order)

    def read_low(self, low: Any, count: int) -> Tensor | None:
        """A user's pictures at this stage's input size, (B, 3, h, w); none for a base stage."""
        if self.config.low_size is None:
            if low is not None:
                raise UserError("this is a base stage, which starts from words: it has no low-resolution picture")
            return None
        if low is None:
            raise UserError(
                f"this stage makes {self.config.low_size}-px pictures into {self.config.size}-px ones: "
                "give it the picture to enlarge as `low`"
            )
        given = list(low) if isinstance(low, (list, tuple)) else [low]
        if len(given) not in (1, count):
            raise UserError(f"give one low-resolution picture for all or one for each of the {count} prompts")
        unit = max(1, self.config.multiple // self.config.factor)
        pictures = [fitted(read_picture(one), self.config.low_size, unit) for one in given]
        if any(picture.size != pictures[0].size for picture in pictures):
            raise UserError("low-resolution pictures of different shapes: enlarge them one at a time")
        return to_tensor(pictures * (count if len(pictures) == 1 else 1)).to(self.device)

    def sample(
        self,
        words: tuple[TextEmbedding, TextEmbedding] | None,
        seeds: Sequence[int],
        size: tuple[int, int],
        settings: Settings,
        low: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Pictures (B, 3, *size) in [-1, 1]; low (B, 3, h, w) for a super-resolution stage."""
        if not trained(self.network):
            raise UserError(f"the stage {self.config.name} was never trained: its last layer is still all zeros")
        own = [stage_seed(seed, self.config) for seed in seeds]
        source = NoiseSource(own, (3, *size), device=self.device)
        x = source.draw() if noise is None else noise.to(self.device)
        cond, uncond = ({}, {}) if words is None else (self.cond(words[0]), self.cond(words[1]))
        if low is not None:
            level = torch.full((len(low),), settings.augmentation or 0.0, dtype=torch.float64, device=self.device)
            spoiling = [stage_seed(seed, self.config, "low") for seed in seeds]

            def draw(like: Tensor) -> Tensor:
                return NoiseSource(spoiling, like.shape[1:], device=self.device).draw()

            extra = self.enlarged(low.to(self.device), level, draw)
            cond, uncond = {**cond, **extra}, {**uncond, **extra}
        guidance = settings.guidance if words is not None else 1.0
        guided = ClassifierFreeGuidance(self.denoiser, cond, uncond, guidance)
        denoiser = settings.threshold.around(guided)
        times = timesteps(self.schedule, settings.steps)
        return SAMPLERS[settings.sampler](denoiser, x, times, self.schedule, noise=source, callback=callback).clamp(
            -1, 1
        )

    # Files: config.json and network/.

    def save(self, folder: Path, dtype: str = "float32") -> None:
        """Write the stage as a folder that `diptych.load` opens."""
        folder.mkdir(parents=True, exist_ok=True)
        stated = {"stage": self.config.name}
        save_weights(self.network.state_dict(), folder / "network", dtype=getattr(torch, dtype), metadata=stated)
        write_text(folder / "config.json", self.config.to_json())

    @classmethod
    def load(cls, values: dict[str, Any], folder: Path) -> Stage:
        """Open a folder that `save` wrote. A `UserError` names the file or key at fault: also where the weights are
        those of another stage, or were never trained.
        """
        source = folder / "config.json"
        try:
            config = StageConfig.from_dict(values)
            with torch.device("meta"):  # shapes alone, until the files are known to have them
                network = build_network(config.network)
        except (UserError, RuntimeError, TypeError) as error:  # the latter two for sizes beyond all bounds
            raise UserError(f"{source}: {str(error).splitlines()[0]}") from None
        stated = load_stated(folder / "network").get("stage", config.name)
        if stated != config.name:
            raise UserError(f"{folder / 'network'} holds the weights of stage {stated}, not of stage {config.name}")
        load_into(network, load_weights(folder / "network"), str(folder / "network"), assign=True)
        if not trained(network):
            raise UserError(f"the stage in {folder} was never trained: its last layer is still all zeros")
        return cls(config, network=network).eval()


def embed_order(text, order: Order) -> tuple[TextEmbedding, TextEmbedding]:
    """The embeddings of prompts and of negatives; an empty negative is the null embedding, zeros."""
    negatives = text.encode([negative or " " for negative in order.negatives]) if any(order.negatives) else None
    prompts = text.encode(order.prompts)
    empty = torch.tensor([not negative for negative in order.negatives])
    return prompts, (prompts if negatives is None else negatives).zeroed(empty)


def stage_seed(seed: int, config: StageConfig, what: str = "") -> int:
    """The seed itself for a base stage, and one that follows from it for every other stage and purpose."""
    if config.low_size is None and not what:
        return seed
    digest = hashlib.blake2b(f"{seed}/{config.name}/{what}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def fitted(picture: Image.Image, side: int, unit: int) -> Image.Image:
    """An RGB picture with its shorter side at `side`, the other in proportion and a multiple of `unit`."""
    width, height = picture.size
    short, long = sorted(picture.size)
    if long > LONGEST_SIDE * short:
        raise UserError(f"the low-resolution picture has {width} x {height} pixels: too long to enlarge, crop it")
    scale = side / short
    across, down = (max(unit, round(length * scale / unit) * unit) for length in picture.size)
    if (across, down) == picture.size:
        return picture
    whole = width % across == 0 and height % down == 0
    return picture.resize((across, down), Image.Resampling.BOX if whole else Image.Resampling.LANCZOS)
