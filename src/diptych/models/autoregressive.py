"""The two-stage forerunner: a transformer writes a picture as codes of a VQ first stage, one by one, row by row, and
they are decoded (Esser et al. 2021, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.core.checks import remedy
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.core.images import to_images
from diptych.diffusion.guidance import cat_conditions
from diptych.encoders.base import PromptOptions
from diptych.encoders.configs import build_reader
from diptych.models.autoregressive_config import AutoregressiveConfig
from diptych.models.request import Callback, Request, Result, read_guidance, read_size
from diptych.models.second_stage import ENCODED_AT_ONCE, OverFirstStage
from diptych.models.token_sampling import GumbelSource, TokenSampling, steered
from diptych.networks.autoencoder import Autoencoder
from diptych.networks.code_transformer import CodeTransformer
from diptych.weights.files import save_weights
from diptych.weights.identity import identity
from diptych.weights.lazy import load_module
from diptych.weights.model_folder import model_place

NOT_YET = -1
"""Where a code has not been drawn."""
Look = Callable[[Tensor, int, int], Tensor]
"""(codes (B, h, w), row, column) -> logits (B, V) of the code at that place, from those before it."""


class Autoregressive(OverFirstStage):
    """VQ autoencoder, transformer and text encoder. Its state is what training changes: the transformer, and a jointly
    trained text encoder. The frozen parts stand beside it.
    """

    def __init__(
        self, config: AutoregressiveConfig, autoencoder: Autoencoder, text, transformer: CodeTransformer | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.transformer = transformer or CodeTransformer(config.transformer)
        self.set_parts(autoencoder, text)

    @property
    def device(self) -> torch.device:
        return self.transformer.position.device

    # What the training loop asks for.

    def prepare(self, batch: dict[str, Any], dropped: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The codes (B, length) of a training batch, row by row, and the transformer's other arguments.

        dropped (B,) bool marks captions replaced by the empty one.
        """
        codes = batch["codes"].long() if "codes" in batch else self.encoded(batch["picture"])
        return codes.flatten(1), self.embed(self.kept_captions(batch, dropped))

    # What everyone else asks for.

    def embed(self, prompts: list[str], order: Request | None = None) -> dict[str, Tensor]:
        """Prompts as the transformer's keyword arguments."""
        if self.text is None:
            return {}
        from diptych.encoders.prompt_weights import encode_prompts

        read = self.text.encode(prompts) if order is None else encode_prompts(self.text, prompts, order)
        return read.cond(self.config.transformer, self.device)

    @torch.no_grad()
    def encoded(self, pictures: Tensor) -> Tensor:
        """The codes (B, h, w) of pictures (B, 3, H, W)."""
        pictures = pictures.to(self.device, next(self.autoencoder.parameters()).dtype)
        with torch.autocast(self.device.type, enabled=False):  # rounding would take another entry for the nearest
            return torch.cat([self.autoencoder.codes(part) for part in pictures.split(ENCODED_AT_ONCE)])

    def decoded(self, codes: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of codes (B, h, w)."""
        assert self.autoencoder.quantise is not None, "a model of codes has a codebook"
        return self.autoencoder.decode_entries(self.autoencoder.quantise.entries(codes)).float()

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        negative: str | Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        weights: bool = False,
        long_prompts: str = "refuse",
        callback: Callback | None = None,
    ) -> Result:
        """Paint one picture for each prompt.

        Args:
            prompts: one text, or several; for a model of classes, their numbers or names; of a model without either
                they only name the pictures, and nothing is guided.
            seeds: one for each prompt; picture i depends on seeds[i] and not on its neighbours. 0, 1, ... if none.
            temperature, top_k, top_p: how codes are drawn, as `choosing.Choice` says; the model's own if none. A top_k
                as large as the codebook takes all codes.
            guidance: weight of classifier-free guidance; the model's own if none. 1 is no guidance.
            negative: what to steer away from, one text for all or one for each prompt; nothing by default.
            size: (width, height) in pixels, multiples of the first stage's factor; the training size if none. A larger
                picture is written through a window of the training size that slides along (section 3.2).
            weights, long_prompts: as for the latent panel.
            callback: called with (row, rows, codes (B, h, w)) after each row, -1 where there is none yet; raise to
                cancel.

        Raises:
            UserError: an empty or too long prompt, or numbers that make no sense.
        """
        config, factor = self.config, self.config.autoencoder.factor
        order = Request.read(prompts, seeds, negative, reading=PromptOptions.read(weights, long_prompts))
        choice = TokenSampling.read(
            config.temperature if temperature is None else temperature,
            config.top_k if top_k is None else top_k,
            config.top_p if top_p is None else top_p,
        )
        guidance = read_guidance(config.guidance if guidance is None else guidance)
        guidance = guidance if config.guidable else 1.0  # nothing to be guided by
        sides = read_size((config.size, config.size) if size is None else size, factor)
        if min(sides) < config.size:
            raise UserError(f"size must be at least the training size, {config.size} x {config.size}, not {sides}")
        look = self.guided(order, guidance, cached=max(sides) == config.size)
        codes = self.written(order, (sides[1] // factor, sides[0] // factor), look, choice, callback)
        pictures = torch.cat([self.decoded(part) for part in codes.split(ENCODED_AT_ONCE)])
        drawn = {"temperature": choice.temperature, "top_k": choice.top_k, "top_p": choice.top_p}
        images = to_images(
            pictures, "what the decoder makes of the codes", remedy(next(self.autoencoder.parameters()).dtype)
        )
        return Result(
            images, order.metadata(identity(self, "autoregressive"), {**drawn, "guidance": guidance, "size": sides})
        )

    def written(
        self,
        order: Request,
        shape: tuple[int, int],
        look: Look,
        choice: TokenSampling,
        callback: Callback | None = None,
    ) -> Tensor:
        """Codes (B, h, w), drawn one after the other."""
        noise = GumbelSource(order.seeds, self.config.transformer.vocabulary, self.device)
        codes = torch.full((len(order), *shape), NOT_YET, device=self.device)
        for row in range(shape[0]):
            for column in range(shape[1]):
                codes[:, row, column] = choice(look(codes, row, column), noise.draw())
            if callback is not None:
                callback(row, shape[0], codes.clone())
        return codes

    def guided(self, order: Request, guidance: float, cached: bool) -> Look:
        """The logits of an order, guided. `cached` reads each code once, for pictures of the training size."""
        cond, plain = self.embed(order.prompts, order), guidance == 1
        if not plain:
            negatives = order.negatives if any(order.negatives) else [""]
            cond = cat_conditions(cond, self.embed(negatives, order), len(order))
        logits = partial(self.next_logits, cond, self.transformer.new_cache() if cached else None)
        if plain:
            return logits
        return lambda codes, row, column: steered(logits(torch.cat([codes, codes]), row, column), guidance)

    def next_logits(self, cond: dict[str, Tensor], cache: Any, codes: Tensor, row: int, column: int) -> Tensor:
        """Logits (B, V) of the code at a place; with a cache, all places before it have been asked for in order."""
        if cache is not None:
            place = row * codes.shape[2] + column
            return self.transformer(codes.flatten(1)[:, max(cache.length - 1, 0) : place], **cond, cache=cache)[:, -1]
        side = self.config.side
        top, left = (
            min(max(at - side // 2, 0), along - side) for at, along in zip((row, column), codes.shape[1:], strict=True)
        )
        window = codes[:, top : top + side, left : left + side].flatten(1)  # (B, length)
        return self.transformer(window[:, : (row - top) * side + column - left], **cond)[:, -1]

    # Files: config.json, transformer/, autoencoder/ and, where the text encoder was trained along, text/.

    def save(self, folder: Path, dtype: str = "float32") -> None:
        """Write the model as a folder that `diptych.load` opens."""
        folder, kind = model_place(folder), getattr(torch, dtype)
        save_weights(self.transformer.state_dict(), folder / "transformer", dtype=kind)
        save_weights(self.autoencoder.state_dict(), folder / "autoencoder", dtype=kind)
        if self.joint_text is not None:
            save_weights(self.joint_text.state_dict(), folder / "text", dtype=kind)
            self.joint_text.save(folder / "text")
        write_text(folder / "config.json", self.config.to_json())

    @classmethod
    def load(cls, values: dict[str, Any], folder: Path) -> Autoregressive:
        """Open a folder that `save` wrote, `values` being its config.json. Raises a `UserError` that names the file or
        key at fault.
        """
        try:
            config = AutoregressiveConfig.from_dict(values)
            with torch.device("meta"):  # shapes alone, until the files are known to have them
                autoencoder, transformer = Autoencoder(config.autoencoder), CodeTransformer(config.transformer)
        except (UserError, RuntimeError, TypeError) as error:  # the latter two for sizes beyond all bounds
            raise UserError(f"{folder / 'config.json'}: {str(error).splitlines()[0]}") from None
        load_module(autoencoder, folder / "autoencoder")
        load_module(transformer, folder / "transformer")
        return cls(config, autoencoder, build_reader(config.text, folder / "text"), transformer).eval()
