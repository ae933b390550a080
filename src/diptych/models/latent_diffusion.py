"""The latent panel: Stable Diffusion. Text -> latent -> picture (Rombach et al. 2022)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diptych.conditioning.concat import Latents, LowResConcat, MaskConcat
from diptych.core.checks import initial, remedy, said
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.core.images import to_images, to_tensor
from diptych.core.random import KEPT, POSTERIOR, Draws
from diptych.diffusion.denoiser import Cond, Denoiser, Denoising
from diptych.diffusion.finite_check import FiniteCheck
from diptych.diffusion.guidance import ClassifierFreeGuidance
from diptych.diffusion.inpainting import sample_from_image
from diptych.diffusion.samplers import SAMPLERS, read_sampler
from diptych.diffusion.steps import NoiseSource
from diptych.encoders.base import PromptOptions, network_of
from diptych.encoders.configs import ClipTextConfig, build_reader
from diptych.models.first_stage import choose_tiny_decoder, load_tiny_decoder, save_tiny_decoder
from diptych.models.guides import Guides, Space, guided_by, guides_metadata
from diptych.models.init_image import InitImage, read_init_image
from diptych.models.latent_config import LatentConfig
from diptych.models.lowres_image import read_enlarged
from diptych.models.request import Callback, Request, Result, read_guidance, read_size, read_steps, warn_of_size
from diptych.models.sampling import Cost
from diptych.models.second_stage import ENCODED_AT_ONCE, OverFirstStage
from diptych.networks import tiling
from diptych.networks.adm import AdmUNet
from diptych.networks.autoencoder import Autoencoder, Posterior
from diptych.networks.lora import adapted
from diptych.networks.tiling import Tiling
from diptych.networks.tiny_decoder import TinyDecoder
from diptych.networks.unet import UNet
from diptych.weights.files import save_weights
from diptych.weights.fingerprint import fingerprint
from diptych.weights.identity import identity, named_file
from diptych.weights.lazy import load_module
from diptych.weights.model_folder import model_place

if TYPE_CHECKING:
    from diptych.encoders.prompt_domain import PromptDomain


class LatentDiffusion(OverFirstStage):
    """Autoencoder, U-Net and text encoder. Its state is what diffusion training changes: the U-Net, a jointly trained
    text encoder, and `scale`, which brings latents to unit deviation. The frozen parts stand beside it.
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
        self.begun = False  # from another model, whose scale it has
        self.schedule = config.schedule.build()
        self.denoiser = Denoiser(self.unet, self.schedule, config.prediction)

    @property
    def tiny(self) -> TinyDecoder | None:
        """The tiny decoder that came with the model, if one did."""
        return self._frozen["tiny"]

    @property
    def device(self) -> torch.device:
        return self.scale.device

    # What the training loop asks for.

    @torch.no_grad()
    def start(self, batch: dict[str, Any]) -> None:
        """Set `scale`, where the config states none, from the first batch: 1 / the deviation of its latents over all
        components (appendix G).

        The latents are samples, so the posteriors' own variance counts beside that of their means. A model that began
        from another has its scale.
        """
        if self.begun or self.config.latent_scale is not None:
            return
        posterior = self.posterior(batch)
        self.scale.copy_((posterior.mean.var() + posterior.log_variance.exp().mean()).rsqrt())

    def posterior(self, batch: dict[str, Any], tiles: Tiling | None = None) -> Posterior:
        """Of the batch's pictures, in tiles or whole, or as `diptych precompute` stored it."""
        if "latent" in batch:
            return self.autoencoder.posterior(batch["latent"].float())
        with torch.no_grad():
            pictures = batch["picture"].to(next(self.autoencoder.parameters()).dtype)
            parts = [tiling.moments(self.autoencoder, part, tiles) for part in pictures.split(ENCODED_AT_ONCE)]
        return self.autoencoder.posterior(torch.cat(parts).float())

    def prepare(self, batch: dict[str, Any], draws: Draws, dropped: Tensor) -> tuple[Tensor, Cond]:
        """The scaled latent sample x0 (B, C, h, w) and the condition of a training batch.

        The posterior's noise is drawn; dropped (B,) bool marks captions replaced by the empty one.
        """
        posterior = self.posterior(batch)
        cond = self.embed(self.kept_captions(batch, dropped))
        if (beside := self.config.reads) is not None:
            latents = self.latents_beside(draws)
            cond["concat"] = beside.concatenated(self.config.autoencoder, batch["picture"], batch["seed"], latents)
        return posterior.sample(draws.normal(posterior.mean, POSTERIOR)) * self.scale, cond

    @property
    def remakes(self) -> bool:
        """Whether it makes pictures of pictures: it repaints or enlarges them."""
        return self.config.reads is not None

    def remake(self, pictures: Tensor, captions: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) with a hole or made small as in training, and what it makes of these."""
        assert self.config.reads is not None, "a model that starts from words alone"
        shown, given = self.config.reads.posed(self.config.autoencoder, pictures, torch.tensor(seeds))
        return shown, to_tensor(self.generate(captions, seeds=seeds, **given).images)

    # What everyone else asks for.

    @property
    def low_size(self) -> int | None:
        """Side of the pictures that it was trained to enlarge; none if it was not."""
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

    def embed(self, prompts: list[str], order: Request | None = None) -> dict[str, Tensor]:
        """Prompts as the U-Net's keyword arguments; those that it was not built to read are left out."""
        if self.text is None:
            return {}
        from diptych.encoders.prompt_weights import encode_prompts

        domain = self.familiar if order is not None and prompts is order.prompts else None
        text = self.text
        embedding = text.encode(prompts) if order is None else encode_prompts(text, prompts, order, domain)
        return embedding.cond(self.config.unet, self.device)

    def latents(self, pictures: Tensor, draws: Draws, stream: int, tiles: Tiling | None = None) -> Tensor:
        """Scaled samples (B, C, h, w) of the latents of pictures (1 or B, 3, H, W); the posterior's noise is drawn."""
        posterior = self.posterior({"picture": pictures.to(self.device)}, tiles)
        like = posterior.mean.expand(len(draws.seeds), *posterior.mean.shape[1:])
        return posterior.sample(draws.normal(like, stream)) * self.scale

    def latents_beside(self, draws: Draws, tiles: Tiling | None = None) -> Latents:
        """What makes latents of pictures that stand beside the noisy one."""
        return partial(self.latents, draws=draws, stream=KEPT, tiles=tiles)

    def decoded(
        self, latents: Tensor, tiles: Tiling | None = None, decoder: Autoencoder | TinyDecoder | None = None
    ) -> Tensor:
        """Pictures (B, 3, H, W) of scaled latents, in tiles or whole, by the autoencoder or what stands in for it."""
        decoder = decoder or self.autoencoder
        return tiling.decode(decoder, (latents / self.scale).to(next(decoder.parameters()).dtype), tiles).float()

    def decoder(self, chosen: TinyDecoder | Path | str | None) -> Autoencoder | TinyDecoder:
        """What decodes: the autoencoder where none is chosen, or as `choose_tiny_decoder` has it."""
        if chosen is None:
            return self.autoencoder
        return choose_tiny_decoder(chosen, self.autoencoder, self.tiny).to(self.device)

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
        negative: str | Sequence[str] | None = None,
        noise: Tensor | None = None,
        size: tuple[int, int] | None = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        paste: bool = False,
        fit: str | None = None,
        low: Any = None,
        tile: int | None = None,
        decoder: TinyDecoder | Path | str | None = None,
        guides: Guides = (),
        weights: bool = False,
        long_prompts: str = "refuse",
        callback: Callback | None = None,
    ) -> Result:
        """Paint one picture for each prompt.

        Args:
            prompts: one text, or several; for a model of classes, their numbers or names; of a model without either
                they only name the pictures, and nothing is guided. With an image, or low, they may be empty.
            seeds: one for each prompt; picture i depends on seeds[i] and not on its neighbours. 0, 1, ... if none.
            steps, guidance, sampler: the model's own defaults if none. A guidance weight of 1 is no guidance.
            schedule_type: times of another kind than the model's own: "karras", "exponential" or "beta", curves along
                which the noise falls, or "trailing", "leading" or "linspace" (`diffusion.times`).
            negative: what to steer away from, one text for all or one for each prompt; nothing by default.
            noise: initial noise (B, latent channels, height / factor, width / factor) with unit deviation, in the place
                of the seeds' own.
            size: (width, height) in pixels, multiples of `config.multiple`; the training size if none.
            image: a picture to paint over (PIL, a path, or a tensor (B, 3, H, W) in [-1, 1]), one or one for each
                prompt; PIL pictures are brought to the training size, in their shape, or to `size`.
            strength: which fraction of the steps, the last ones, is taken, from the picture with the noise of their
                first (SDEdit); above 0 and at most 1; 0.8 if none, 1 with a mask.
            mask: what of the picture to paint anew: white there, black elsewhere (or a tensor (B, 1, H, W) in [0, 1]).
                Models that were trained to repaint need it; others are shown the rest of the picture at each step.
            paste: put the pixels that the mask leaves alone back in the end; the autoencoder changes them a little.
            fit: what is done to image, mask or low of another shape: "crop", "pad" or "stretch"; what does not come out
                even is cropped if none.
            low: for a model that enlarges, the picture to enlarge (PIL, a path, or a tensor (B, 3, h, w) in [-1, 1]),
                one or one for each prompt, of any size: what is painted is `config.low_factor` times as large.
            tile: side in pixels of the overlapping tiles in which larger pictures are encoded and decoded, one by one,
                where memory is short; a multiple of the autoencoder's factor. Whole if none.
            decoder: a tiny decoder in the place of the autoencoder's own, coarser and far quicker: "tiny" for the one
                that came with the model, a folder that `diptych train emoji-tiny-decoder` made, or the module.
            guides: (guide, scale) pairs whose gradients steer as well, of `diptych.pretrained.load_guide.open_guide`:
                classifiers and CLIP. Pictures are scored as `decoder` decodes them. With a guidance weight of 0 the
                model itself is told nothing of the prompts, and the guides alone are.
            weights: read `(word:1.3)` and `[word]` in prompts as weights of words (`encoders.prompt_weights`).
            long_prompts: what to do with a prompt beyond the text encoder's limit: "refuse", "cut" or "chunks".
            callback: called with (step, steps, x0 estimate as latents (B, C, h, w)); raise to cancel.

        Raises:
            UserError: an empty or too long prompt, an unknown sampler, numbers that make no sense, or no picture.
        """
        config, factor = self.config, self.config.autoencoder.factor
        order = Request.read(
            prompts,
            seeds,
            negative,
            image is not None or low is not None,
            reading=PromptOptions.read(weights, long_prompts),
        )
        steps = read_steps(config.steps if steps is None else steps)
        guidance = read_guidance(config.guidance if guidance is None else guidance)
        guidance = guidance if config.guidable else 1.0  # nothing to be guided by
        sampler = read_sampler(sampler, config)
        sides = read_size((config.size, config.size) if size is None else size, config.multiple)
        others = {"size": size, "image": image, "strength": strength, "mask": mask, "paste": paste}
        (small, fitted), original, extra = read_enlarged(config, low, len(order), fit, **others), None, {}
        tiles = None if tile is None else Tiling.of_pixels(tile, factor)
        draws = Draws(torch.tensor(order.seeds), whole=True)
        if small is not None and isinstance(config.reads, LowResConcat):
            latents = self.latents_beside(draws, tiles)
            extra["concat"] = config.reads.shown(config.autoencoder, small.to(self.device), latents)
            sides = [factor * side for side in reversed(extra["concat"].shape[-2:])]
        else:
            original = read_init_image(config, len(order), steps, size, image, strength, mask, paste, factor, fit)
            sides = sides if original is None else original.sides
        if original is None and small is None:
            warn_of_size(sides, config.size)
        decoding = self.decoder(decoder)
        shape = (config.autoencoder.latent_channels, sides[1] // factor, sides[0] // factor)
        source = NoiseSource(order.seeds, shape, device=self.device)
        own = source.draw()  # also where noise is given: what the sampler draws is not to be that noise again
        start = own if noise is None else initial(noise, (len(order), *shape)).to(self.device)

        times, first, schedule = config.times.plan(self.schedule, steps, sampler, schedule_type)
        first, denoiser = first * start, self.denoiser.with_schedule(schedule)
        check = FiniteCheck("this model", times, remedy(next(self.unet.parameters()).dtype, guidance))
        walk = check.wrap_sampler(partial(SAMPLERS[sampler], schedule=self.schedule, noise=source, callback=callback))
        cost = Cost(denoiser, len(order))

        def guided(**extra: Tensor) -> Denoising:
            return check.wrap(self.guided(denoiser, order, guidance, guides, decoding, **extra))

        if original is None:
            latents = walk(guided(**extra), first, times)
        else:
            latents = self.redone(original, draws, guided, walk, start, first, times, tiles)
        pictures = self.decoded(latents, tiles, decoding)
        common = {"steps": steps, "guidance": guidance, "sampler": sampler, "size": sides}
        common |= {} if schedule_type is None else {"schedule_type": schedule_type}
        common |= {} if fitted is None else {"fit": fitted}
        common |= guides_metadata(guides) | cost.metadata()
        if tiles is not None:
            common["tile"] = tile
        if decoder is not None:
            named = {} if isinstance(decoder, TinyDecoder) else {"source": str(decoder)}
            common["decoder"] = {**named, "fingerprint": fingerprint(decoding)}
        if original is not None:
            pictures, common = original.pasted(pictures), {**common, **original.told()}
        if changed := adapted(self.unet, network_of(self.text)):
            common["lora"] = [{**named_file(name), "scale": scale} for name, scale in changed.items()]
        images = to_images(pictures, "what the decoder makes of the latents", remedy(next(decoding.parameters()).dtype))
        given = {"image": image, "mask": mask, "low": low, "noise": noise}
        return Result(images, order.metadata(identity(self, "latent"), common, **given))

    def guided(
        self,
        denoiser: Denoiser,
        order: Request,
        guidance: float,
        guides: Guides = (),
        decoder: Autoencoder | TinyDecoder | None = None,
        **extra: Tensor,
    ) -> Denoising:
        """The denoiser, guided for an order; `extra` are more of the U-Net's keyword arguments. Guides of pictures see
        what `decoder` makes of its estimates."""
        cond = uncond = self.embed(order.prompts, order)
        if self.config.guidable:
            uncond = self.embed(order.negatives if any(order.negatives) else [""], order)
        both = {**cond, **extra}, {**uncond, **extra}
        guided = ClassifierFreeGuidance(denoiser, *both, guidance, self.config.interval)
        if not guides:
            return guided
        pictures = partial(self.decoded, decoder=decoder)
        stated = next(self.autoencoder.parameters()).dtype == torch.float32  # in other types the hash differs
        known = fingerprint(self.autoencoder) if stated else None
        space = Space(self.schedule, self.device, pictures, known, float(self.scale))
        return guided_by(guided, guides, order.prompts, space)

    def redone(
        self,
        original: InitImage,
        draws: Draws,
        guided,
        walk,
        noise: Tensor,
        first: Tensor,
        times: Tensor,
        tiles: Tiling | None = None,
    ) -> Tensor:
        """Latents (B, C, h, w) from pictures, not from `first`, which is noise (B, C, h, w) as sampling starts with it.

        guided: (**extra) -> denoiser. walk: (denoiser, x, times) -> x, the sampler.
        """
        known, times = self.latents(original.pictures, draws, POSTERIOR, tiles), original.later(times)
        start = first if original.anew else None
        over = partial(sample_from_image, walk, add_noise=self.denoiser.add_noise, start=start)
        if original.mask is None:
            return over(guided(), known, noise, times)
        if isinstance(reads := self.config.reads, MaskConcat):
            latents = self.latents_beside(draws, tiles)
            concat = reads.shown(self.config.autoencoder, original.pictures, original.mask, latents)
            return over(guided(concat=concat), known, noise, times)
        mask = original.small_mask(self.config.autoencoder.factor).to(self.device)
        return over(guided(), known, noise, times, mask=mask.expand(len(known), 1, *known.shape[2:]).bool())

    # Files: config.json, unet/, autoencoder/, where the text encoder was trained along text/, and tiny_decoder/ if any.

    def save(self, folder: Path, dtype: str = "float32") -> None:
        """Write the model as a folder that `diptych.load` opens."""
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
            raise UserError(f"{source}: scale must be a positive number, not {said(scale)}")
        try:
            config = LatentConfig.from_dict(values)
            with torch.device("meta"):  # shapes alone, until the files are known to have them
                autoencoder, unet = Autoencoder(config.autoencoder), config.unet.build()
        except (UserError, RuntimeError, TypeError) as error:  # the latter two for sizes beyond all bounds
            raise UserError(f"{source}: {str(error).splitlines()[0]}") from None
        load_module(autoencoder, folder / "autoencoder")
        load_module(unet, folder / "unet")
        tiny = load_tiny_decoder(folder / "tiny_decoder") if (folder / "tiny_decoder").is_dir() else None
        model = cls(config, autoencoder, build_reader(config.text, folder / "text"), unet, tiny)
        model.scale.fill_(scale)
        from diptych.encoders.prompt_domain import PromptDomain

        model.familiar = PromptDomain.load(folder)
        return model.eval()
