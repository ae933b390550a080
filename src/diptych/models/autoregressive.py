"""Autoregressive models: a transformer samples the codes of a VQGAN one by one, row by row; these are then decoded
(Esser et al. 2021, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from PIL import Image
from torch import Tensor

from diptych.core.checks import remedy
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.core.images import to_images
from diptych.core.option_fields import takes
from diptych.diffusion.conditions import cat_conditions
from diptych.encoders.configs import build_encoder
from diptych.models.autoregressive_config import AutoregressiveConfig
from diptych.models.frozen_parts import ENCODED_AT_ONCE, OverFirstStage
from diptych.models.options import AutoregressiveOptions, read_options
from diptych.models.request import Request, read_size
from diptych.models.result import Result
from diptych.models.token_sampling import GumbelSource, TokenSampling, guided_logits
from diptych.networks.autoencoder import Autoencoder
from diptych.networks.code_transformer import CodeTransformer
from diptych.weights.identity import identity
from diptych.weights.lazy import load_module, on_meta
from diptych.weights.model_folder import model_place
from diptych.weights.save import save_weights

NOT_YET = -1
"""Where a code has not been drawn."""
Logits = Callable[[Tensor, int, int], Tensor]
"""(codes (B, h, w), row, column) -> logits (B, V) of the code at that place, from those before it."""


class Autoregressive(OverFirstStage):
    """VQGAN, transformer and text encoder. Its state dict is what training changes: the transformer, and a jointly
    trained text encoder."""

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

    # Training

    def prepare(self, batch: dict[str, Any], dropped: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The codes (B, length) of a training batch, row by row, and the transformer's other arguments.

        dropped (B,) bool marks captions replaced by the empty one.
        """
        codes = batch["codes"].long() if "codes" in batch else self.encode(batch["picture"])
        return codes.flatten(1), self.embed(self.kept_captions(batch, dropped))

    # Sampling

    def embed(self, prompts: list[str], request: Request | None = None) -> dict[str, Tensor]:
        """Prompts as the transformer's keyword arguments, read as a request says."""
        if self.text is None:
            return {}
        from diptych.encoders.prompt_weights import encode_prompts

        embedding = self.text.encode(prompts) if request is None else encode_prompts(self.text, prompts, request)
        return embedding.cond(self.config.transformer, self.device)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The codes (B, h, w) of images (B, 3, H, W)."""
        images = images.to(self.device, next(self.autoencoder.parameters()).dtype)
        with torch.autocast(self.device.type, enabled=False):  # rounding would change which entry is the nearest
            return torch.cat([self.autoencoder.codes(part) for part in images.split(ENCODED_AT_ONCE)])

    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, 3, H, W) of codes (B, h, w)."""
        assert self.autoencoder.quantise is not None, "an autoencoder of codes has a codebook"
        parts = codes.split(ENCODED_AT_ONCE)
        entries = self.autoencoder.quantise.entries
        return torch.cat([self.autoencoder.decode_entries(entries(part)).float() for part in parts])

    @torch.no_grad()
    @takes(AutoregressiveOptions)
    def generate(self, prompts: str | Sequence[str], **options: Unpack[AutoregressiveOptions]) -> Result:
        """Generate one image for each prompt.

        prompts: one text, or several; for a class-conditional model, numbers or names of classes. An unconditional
          model reads none: there they only name the images.

        Sizes are multiples of the first stage's factor. An image that is larger than in training is sampled through a
        window of the training size that slides along (section 3.2). `callback` gets (row, rows, codes (B, h, w)) after
        each row, -1 where there is none yet.

        Raises a `UserError` that names the option or prompt at fault.
        """
        request, factor = AutoregressiveRequest.read(self, prompts, options), self.config.autoencoder.factor
        width, height = request.size

        logits = self.logits(request, cached=max(request.size) == self.config.size)

        codes = self.sample(request, (height // factor, width // factor), logits)

        advice = remedy(next(self.autoencoder.parameters()).dtype)
        return request.result(self, to_images(self.decode(codes), "what the decoder makes of the codes", advice))

    def sample(self, request: AutoregressiveRequest, shape: tuple[int, int], logits: Logits) -> Tensor:
        """Codes (B, h, w), drawn one after the other."""
        noise = GumbelSource(request.seeds, self.config.transformer.vocabulary, self.device)
        codes = torch.full((len(request), *shape), NOT_YET, device=self.device)
        for row in range(shape[0]):
            for column in range(shape[1]):
                codes[:, row, column] = request.sampling(logits(codes, row, column), noise.draw())
            if request.callback is not None:
                request.callback(row, shape[0], codes.clone())
        return codes

    def logits(self, request: AutoregressiveRequest, cached: bool) -> Logits:
        """The logits of a request, with classifier-free guidance. `cached` reads each code once, for images of the
        training size."""
        cond, unguided = self.embed(request.prompts, request), request.guidance == 1
        if not unguided:
            negatives = request.negatives if any(request.negatives) else [""]
            cond = cat_conditions(cond, self.embed(negatives, request), len(request))
        logits = partial(self.next_logits, cond, self.transformer.new_cache() if cached else None)
        if unguided:
            return logits
        return lambda codes, row, column: guided_logits(
            logits(torch.cat([codes, codes]), row, column), request.guidance
        )

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
            with on_meta():  # shapes alone, until the files are known to have them
                autoencoder, transformer = Autoencoder(config.autoencoder), CodeTransformer(config.transformer)
        except (UserError, RuntimeError, TypeError) as error:  # the latter two for sizes beyond all bounds
            raise UserError(f"{folder / 'config.json'}: {str(error).splitlines()[0]}") from None
        load_module(autoencoder, folder / "autoencoder")
        load_module(transformer, folder / "transformer")
        return cls(config, autoencoder, build_encoder(config.text, folder / "text"), transformer).eval()


@dataclass(frozen=True, kw_only=True)
class AutoregressiveRequest(Request):
    """What `Autoregressive.generate` is asked for."""

    sampling: TokenSampling
    guidance: float
    size: list[int]
    """Width and height in pixels."""

    @classmethod
    def read(cls, model: Autoregressive, prompts: Any, options: Mapping[str, Any]) -> AutoregressiveRequest:
        """From what the user gave."""
        values, config = read_options(AutoregressiveOptions, options), model.config
        own = {name: getattr(config, name) if values[name] is None else values[name] for name in TOKEN_OPTIONS}
        size = read_size((config.size,) * 2 if values["size"] is None else values["size"], config.autoencoder.factor)
        if min(size) < config.size:
            raise UserError(f"size must be at least the training size, {config.size} x {config.size}, not {size}")
        guidance = own.pop("guidance")
        guidance = guidance if config.guidable else 1.0  # there is nothing to guide away from
        request = cls.of(prompts, values, sampling=TokenSampling(**own), guidance=guidance, size=size)
        request.warn_if_unguided(guidance)
        return request

    def result(self, model: Autoregressive, images: list[Image.Image]) -> Result:
        """The images that a model has made, with their metadata."""
        settings = {**vars(self.sampling), "guidance": self.guidance, "size": self.size}
        return Result(images, self.metadata(identity(model, "autoregressive"), settings))


TOKEN_OPTIONS = ("temperature", "top_k", "top_p", "guidance")
"""Options of an autoregressive model that its config has defaults for."""
