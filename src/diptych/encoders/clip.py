"""CLIP's text transformer, the text encoder of Stable Diffusion."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diptych.core.devices import sent
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.encoders.base import TextEmbedding
from diptych.encoders.configs import ClipTextConfig
from diptych.encoders.frozen import (
    FrozenText,
    build_on_meta,
    canonical_key,
    folder_fingerprint,
    load_frozen,
    pretrained_config,
)
from diptych.encoders.tokenizers import require_ids, saved_tokenizer, token_ids
from diptych.weights.fingerprint import fingerprint
from diptych.weights.lazy import fill
from diptych.weights.save import save_weights

if TYPE_CHECKING:
    from transformers import CLIPTextConfig

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
)
"""What a CLIP tokenizer may consist of."""


class ClipText(FrozenText):
    """`last_hidden_state` of a CLIP text model over prompts padded to the maximum; nothing is masked.

    Stable Diffusion 2.x reads the last layer but one: its model is one layer shorter than the CLIP that it is made of.
    What prompts are padded with is the tokenizer's to say: the closing token in 1.x, "!" in 2.x.
    """

    own_pooled = True
    """The pooled embedding is the closing token's, not the mean of the tokens."""
    alone = True
    """Model and tokenizer lie in one folder, with nothing else."""

    def __init__(self, config: ClipTextConfig, device: str | torch.device = "cpu", folder: Path | None = None) -> None:
        """From a folder as transformers saves it: the config's, or `folder` where that names none and holds a model."""
        from transformers import CLIPTextConfig, CLIPTextModel

        inside = config.path is None and folder is not None and (folder / "config.json").is_file()
        folder = folder if inside and folder is not None else config.folder()
        shape = pretrained_config(CLIPTextConfig, folder, config.width)
        self._read(config, shape, folder)
        super().__init__(config, folder, load_frozen(lambda: CLIPTextModel(shape), folder).to(device), self.tokenizer)

    @classmethod
    def of(
        cls,
        config: ClipTextConfig,
        shape: CLIPTextConfig,
        tensors: Mapping[str, Tensor],
        tokenizer: Path | None,
        source: str,
        dtype: torch.dtype | None = torch.float32,
    ) -> ClipText:
        """From its tensors, by their names in transformers without the prefix "text_model.", and the folder of its
        tokenizer; without one it has parameters, and reads no prompt. `source` is named in errors; floating tensors
        become `dtype` (none: as stored).
        """
        encoder = cls.__new__(cls)
        encoder.tokenizer = None
        if tokenizer is not None:
            encoder._read(config, shape, tokenizer)
        network = clip_network(shape, tensors, source, dtype)
        FrozenText.__init__(encoder, config, tokenizer or Path(), network, encoder.tokenizer)
        encoder.alone = False
        return encoder

    def _read(self, config: ClipTextConfig, shape: CLIPTextConfig, tokenizer: Path) -> None:
        """Read the tokenizer and check it against the config, before any weight is read."""
        self.shape, self.tokenizer_folder = shape, tokenizer
        self.tokenizer, self.pad = saved_tokenizer(tokenizer, "tokenizer.json", "vocab.json")
        if shape.max_position_embeddings < config.max_tokens:
            raise UserError(f"{tokenizer} reads {shape.max_position_embeddings} tokens: lower text.max_tokens")
        require_ids(self.tokenizer, shape.vocab_size, tokenizer, self.pad)

    @functools.cached_property
    def fingerprint(self) -> str:
        if self.alone:
            return folder_fingerprint(self.config, self.folder)
        return f"{fingerprint(self.model)}-{self.max_tokens}-{self.pad}"

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        rows = token_ids(self.tokenizer, prompts, self.max_tokens)
        ids = torch.tensor([row + [self.pad] * (self.max_tokens - len(row)) for row in rows])  # (B, 77)
        with self.precision():
            output = self.model(input_ids=sent(ids, self.device))
        sequence = output.last_hidden_state.float()  # (B, 77, 768)
        mask = torch.ones(sequence.shape[:2], dtype=torch.bool, device=sequence.device)
        return TextEmbedding(sequence, mask, output.pooler_output.float())

    def save(self, folder: Path) -> None:
        """Write model and tokenizer as transformers does, in the types in which they are in memory."""
        folder.mkdir(parents=True, exist_ok=True)
        state = self.model.state_dict()
        save_weights({"text_model." + canonical_key(name): tensor for name, tensor in state.items()}, folder)
        write_text(folder / "config.json", self.shape.to_json_string(use_diff=False))
        copy_tokenizer(self.tokenizer_folder, folder)


def clip_network(
    shape: CLIPTextConfig, tensors: Mapping[str, Tensor], source: str, dtype: torch.dtype | None = torch.float32
) -> nn.Module:
    """A frozen CLIP text model of this shape with these tensors, named as `ClipText.of` says."""
    from transformers import CLIPTextModel

    model: Any = build_on_meta(lambda: CLIPTextModel(shape), source)
    inner = getattr(model, "text_model", model)  # transformers before 5.6 has one module around the other
    fill(inner, tensors, source, dtype)
    inner.embeddings.position_ids = torch.arange(shape.max_position_embeddings)[None]  # a buffer that no file needs
    return model.eval().requires_grad_(False)


def clip_shape_network(folder: Path | None, width: int) -> nn.Module:
    """A CLIP text model in the shapes of the config.json in a folder, or of Stable Diffusion's, with random weights:
    ViT-L/14's, and where the width is 1024 that of version 2, all but the last layer of OpenCLIP's ViT-H/14."""
    from transformers import CLIPTextConfig, CLIPTextModel

    if folder is not None:
        return CLIPTextModel(pretrained_config(CLIPTextConfig, folder, width))
    hidden, layers, heads = (1024, 23, 16) if width == 1024 else (768, 12, 12)
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, num_attention_heads=heads
        )
    )


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer's files. A `UserError` where there is none."""
    files = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not any(path.name in ("tokenizer.json", "vocab.json") for path in files):
        raise UserError(f"no tokenizer in {source}: it needs tokenizer.json or vocab.json")
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)
