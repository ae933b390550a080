"""LoRA files for Stable Diffusion (Hu et al. 2021), under the names of kohya's trainer or of diffusers.

    lora = LoRA.open("style.safetensors")
    lora.attach(model, 0.8)     # live: beside the weights, which stay as they are
    lora.attach(model, -0.5)    # another scale
    lora.merge(model, 0.8)      # into the weights: no slower than the model alone, but its own are kept for `remove`
    lora.remove(model)          # the former weights, to the bit

Several may be applied at once. One whose keys or shapes do not fit is refused before anything is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diptych.core.errors import UserError, pick
from diptych.core.values import Number, checked, short_repr
from diptych.encoders.base import network_of
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.networks.lora import AdaptableLayer, Adapter, LowRank, adapt, adapted, adapters
from diptych.networks.unet import UNet
from diptych.pretrained.lora_settings import LoraSettings, stated_settings
from diptych.pretrained.stable_diffusion.state_dict_keys import compvis_unet, diffusers_unet
from diptych.weights.lazy import LazyCheckpoint
from diptych.weights.save import save_safetensors

Given = str | Path | tuple[str | Path, float]
"""A file, alone or with its scale."""
STYLES = ("kohya", "diffusers")
NAMES_IN_FOLDER = ("pytorch_lora_weights", "adapter_model")
"""How diffusers and PEFT name the file in a folder."""
PEFT = "base_model.model."
"""Prefix of PEFT's names."""

ENDINGS = {
    ".lora_down.weight": "down",  # kohya
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",  # diffusers since 0.22, as PEFT
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_linear_layer.down.weight": "down",  # diffusers before, text encoder
    ".lora_linear_layer.up.weight": "up",
    ".lora_linear_layer.alpha": "alpha",
    ".lora.down.weight": "down",  # U-Net
    ".lora.up.weight": "up",
    ".lora.alpha": "alpha",
    "_lora.down.weight": "down",  # at first, in attention processors
    "_lora.up.weight": "up",
    "_lora.alpha": "alpha",
    ".alpha": "alpha",
}
"""How keys end, and which part of a layer's change each is: `down` is A, `up` is B."""

OTHER_METHODS = {
    r"dora_scale|lora_magnitude_vector": "DoRA, which scales whole weights besides",
    r"hada_": "LoHa",
    r"lokr_": "LoKr",
    r"lora_mid": "LoCon with a Tucker core",
    r"oft_|boft": "OFT",
    r"lora_embedding_|emb_params": "one that changes embeddings",
    r"diff_b$|\.diff$|\.on_input$|[wb]_norm$|lora_B(\.default)?\.bias$|lora_up\.bias$|lora\.up\.bias$": (
        "one that changes norms, biases or whole weights"
    ),
}
"""By patterns of their keys, adapters that are no plain LoRA."""

OTHER_MODELS = {
    r"lora_te[12]_|text_encoder_2\.|add_embedding|label_emb|text_projection": "SDXL",
    r"lora_te3_|text_encoder_3\.|joint_blocks|^transformer\.|lora_transformer|double_blocks|single_": (
        "a diffusion transformer (SD 3, Flux)"
    ),
    r"transformer_blocks[._][1-9]": "SDXL, whose transformers are deeper",
}
"""By patterns of their keys, models that such a layer is of."""
WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
"""What cross-attention reads in each."""

OLD_NAMES = {  # in text encoders alone
    ".self_attn.to_q": ".self_attn.q_proj",
    ".self_attn.to_k": ".self_attn.k_proj",
    ".self_attn.to_v": ".self_attn.v_proj",
    ".self_attn.to_out": ".self_attn.out_proj",
}


OTHER_PREFIXES = {
    "model.diffusion_model.": "diffusion_model.",  # ComfyUI, with CompVis' names behind it
    "text_encoders.clip_l.transformer.": "text_encoder.",
    "clip_l.transformer.": "text_encoder.",
    "lora_unet.": "unet.",  # OneTrainer, with diffusers' names
    "lora_te.": "text_encoder.",
    "lora_te1.": "text_encoder.",
}
"""What other programs put before the names of a network's layers."""


class LowRankPair(NamedTuple):
    """The two matrices of one layer, as the file has them."""

    key: str
    """Of the first of them, for messages."""
    down: Tensor
    up: Tensor
    alpha: float
    """The rank where the file states none, so that nothing is scaled."""


class LoRA:
    """What one file changes, layer by layer. It belongs to no model until it is applied to one."""

    def __init__(self, pairs: Mapping[str, LowRankPair], name: str) -> None:
        self.pairs, self.name = dict(pairs), name

    @classmethod
    def open(cls, path: str | Path, allow_pickle: bool = False) -> LoRA:
        """Read a file, or a folder as diffusers or PEFT saves one. It is known by the path of the file from then on.

        What a file of PEFT's states in adapter_config.json beside it, and one of diffusers' in its header, is followed.

        Args:
            allow_pickle: read .pt and .bin files too: their tensors and plain values, never code.

        Raises:
            UserError: the file is missing, damaged, not finite, no LoRA, or lacks one of the two matrices of a layer;
                the message names the key.
        """
        path = Path(path)
        place, name = located(path)
        file = LazyCheckpoint.open(place, name, allow_pickle)
        parts: dict[str, dict[str, str]] = {}
        for key in file:
            layer, part = parsed(key, file.source)
            if part in parts.setdefault(layer, {}):
                raise UserError(f"{file.source}: keys {parts[layer][part]!r} and {key!r} are for the same layer")
            parts[layer][part] = key
        if not parts:
            raise UserError(f"{file.source} holds no tensors, and so no LoRA")
        of_peft = name == NAMES_IN_FOLDER[1] or any(key.startswith(PEFT) for key in file)
        settings = stated_settings(place, of_peft)
        return cls({layer: pair(layer, keys, file, settings) for layer, keys in parts.items()}, identity(place))

    def attach(self, system: Any, scale: float = 1.0) -> None:
        """Apply it live: each layer's output becomes W x + scale alpha / rank B A x. The weights are not touched.

        Applied already, live or merged, it is applied at this scale instead. A negative scale turns the change round.
        Raises a `UserError`, and leaves the model as it was, where keys or shapes do not fit it.
        """
        apply([(self, scale)], system, live=True)

    def merge(self, system: Any, scale: float = 1.0) -> None:
        """Apply it in the weights: W becomes W + scale alpha / rank B A, summed in float32 and rounded to W's type.

        W itself is kept, as much memory again for the layers that are changed. Otherwise as `attach`.
        """
        apply([(self, scale)], system, live=False)

    def remove(self, system: Any) -> None:
        """Take it out again, however it was applied: once none is left, weights are those from before, to the bit.

        Raises a `UserError` where it is not applied to this model.
        """
        networks = read_networks(system)
        all_layers = [layer for network in networks for layer in layers(network).values()]
        carrying = [layer for layer in all_layers if self.name in dict(adapters(layer))]
        if not carrying:
            raise UserError(f"{self.name} is not applied to this model: there is nothing to remove")
        for layer in carrying:
            adapt(layer, self.name, None)
        system.adapters = adapted(*networks)

    def changes(self, system: Any) -> dict[AdaptableLayer, LowRank]:
        """Of each layer of this model that it changes, the change. Raises a `UserError` where it does not fit."""
        by_name = {name: layer for names, layer in named_layers(system) for name in names}
        if strange := [name for name in self.pairs if name not in by_name]:
            raise UserError(self.mismatch_message(strange, system))
        pairs: dict[AdaptableLayer, LowRank] = {}
        for name, each in self.pairs.items():
            if by_name[name] in pairs:
                raise UserError(f"{self.name}: {each.key!r} is for a layer that another key is for, by another name")
            pairs[by_name[name]] = fitted(each, by_name[name], self.name)
        return pairs

    def mismatch_message(self, strange: Sequence[str], system: Any) -> str:
        """Why there are keys for layers that the model does not have."""
        for name in strange:
            for pattern, model in OTHER_MODELS.items():
                if re.search(pattern, name):
                    return f"{self.name}: key {self.pairs[name].key!r} belongs to {model}, which this model is not"
        key = self.pairs[strange[0]].key
        if is_text(strange[0]) and network_of(system.text) is None:
            return f"{self.name}: key {key!r} is for CLIP's text encoder, which this model does not have"
        return f"{self.name}: key {key!r} is for a layer that this model lacks ({len(strange)} such keys in all)"

    def save(self, path: Path, system: Any, style: str = "kohya") -> None:
        """Write a safetensors file with the names of `style`, kohya or diffusers, for the model that it fits.

        kohya's has alphas. diffusers' has none that all of its readers find, so that alpha / rank goes into B.
        """
        pick("style", style, STYLES)
        names = {layer: names for names, layer in named_layers(system)}
        tensors: dict[str, Tensor] = {}
        for layer, change in self.changes(system).items():
            dotted, flat, *_ = names[layer]
            if style == "kohya":
                tensors |= {f"{flat}.lora_down.weight": change.down, f"{flat}.lora_up.weight": change.up}
                tensors[f"{flat}.alpha"] = torch.tensor(change.alpha)
            else:
                up = (change.up.float() * (change.alpha / change.rank)).to(change.up.dtype)
                tensors |= {f"{dotted}.lora_A.weight": change.down, f"{dotted}.lora_B.weight": up}
        save_safetensors(tensors, path)


def apply(loras: Iterable[tuple[LoRA, float]], system: Any, live: bool) -> None:
    """Apply several, live or merged, once all of them are known to fit."""
    ready = [(lora.name, checked("scale", Number().check, scale), lora.changes(system)) for lora, scale in loras]
    for name, scale, changes in ready:
        for layer, change in changes.items():
            adapt(layer, name, Adapter(change, scale, live))
    if ready:
        system.adapters = adapted(*read_networks(system))


def attach_files(system: Any, files: Given | Sequence[Given], allow_pickle: bool = False) -> None:
    """Apply files live, each at its scale, 1 where none is given; all of them or, with a `UserError`, none."""
    listed: Sequence[Any] = files if isinstance(files, (list, tuple)) else [files]
    loras: dict[str, tuple[LoRA, float]] = {}
    for entry in listed:
        path, scale = entry if isinstance(entry, (tuple, list)) and len(entry) == 2 else (entry, 1.0)
        if not isinstance(path, (str, Path)):
            raise UserError(
                f"lora must be a list of files, or of pairs of a file and its scale, not {short_repr(entry)}"
            )
        lora = LoRA.open(path, allow_pickle)
        if lora.name in loras:
            raise UserError(f"{path} is given twice: once, with the sum of the scales, does the same")
        loras[lora.name] = lora, scale
    apply(loras.values(), system, live=True)


# Reading.


def identity(path: Path) -> str:
    """What a file is known by: two objects of one file are one LoRA."""
    return str(path.resolve())


def located(path: Path) -> tuple[Path, str]:
    """The file, and its name without its ending; of a folder the one that diffusers or PEFT saves in it."""
    if not path.is_dir():
        return path, path.stem
    for name in NAMES_IN_FOLDER:
        for ending in (".safetensors", ".bin"):
            if (path / f"{name}{ending}").is_file():
                return path / f"{name}{ending}", name
    names = " or ".join(f"{name}.safetensors" for name in NAMES_IN_FOLDER)
    raise UserError(f"{path} holds no LoRA: there is no {names}")


def parsed(key: str, source: str) -> tuple[str, str]:
    """The layer that a key is for, by a name in one of the styles of today, and the part that it is of its change."""
    for pattern, method in OTHER_METHODS.items():
        if re.search(pattern, key):
            raise UserError(f"{source}: key {key!r} is of another method than LoRA, {method}; it cannot be applied")
    ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
    if ending is None:
        raise UserError(f"{source}: key {key!r} is no part of a LoRA in kohya's or diffusers' layout")
    return current_name(key.removesuffix(ending)), ENDINGS[ending]


def current_name(layer: str) -> str:
    """The name of a layer without what only older versions of diffusers, PEFT, ComfyUI or OneTrainer wrote."""
    if "." not in layer:
        return layer  # kohya's
    layer = layer.removeprefix(PEFT).replace(".processor.", ".")
    for other, ours in OTHER_PREFIXES.items():
        if layer.startswith(other):
            layer = ours + layer.removeprefix(other)
            break
    for old, new in OLD_NAMES.items():
        layer = layer.removesuffix(old) + new if layer.endswith(old) else layer
    layer += ".0" if layer.endswith(".to_out") else ""
    if re.match(r"text_model\.|encoder\.layers\.", layer):
        return f"text_encoder.{layer}"
    return f"unet.{layer}" if re.match(r"(down|up|mid)_block|conv_in|conv_out|time_embedding", layer) else layer


def pair(layer: str, keys: Mapping[str, str], file: LazyCheckpoint, settings: LoraSettings) -> LowRankPair:
    """A layer's two matrices and its alpha, with ranks that agree."""
    if missing := {"down", "up"} - keys.keys():
        any_key = keys.get("down", keys.get("up", keys.get("alpha")))
        raise UserError(f"{file.source}: key {any_key!r} is there, but this layer's {min(missing)} matrix is missing")
    down, up = file[keys["down"]], file[keys["up"]]
    for key, tensor in ((keys["down"], down), (keys["up"], up)):
        if not tensor.is_floating_point() or tensor.ndim not in (2, 4) or not tensor.numel():
            raise UserError(f"{file.source}: key {key!r} is no matrix or kernel of numbers: {tuple(tensor.shape)}")
    if down.shape[0] != up.shape[1]:
        ranks = f"{keys['down']!r} has rank {down.shape[0]}, but {keys['up']!r} rank {up.shape[1]}"
        raise UserError(f"{file.source}: {ranks}; they belong together")
    alpha = settings.alpha(layer, down.shape[0])
    if "alpha" in keys:
        stated = file[keys["alpha"]]
        if stated.numel() != 1 or stated.item() <= 0:
            raise UserError(f"{file.source}: key {keys['alpha']!r} must be one positive number")
        alpha = float(stated)
    return LowRankPair(keys["down"], down, up, alpha)


# Where it goes.


def named_layers(system: Any) -> Iterator[tuple[list[str], AdaptableLayer]]:
    """Each layer of a model that a LoRA can change, with its names: diffusers', kohya's, and others that are in use.

    Layers that published U-Nets have not, such as that of a pooled condition, have no names."""
    unet, *texts = read_networks(system)
    config = replace(system.unet.config, pooled_width=None, augmented=False, context_norm=False)
    compvis = compvis_unet(config, prefix="")
    ours = layers(unet)
    for tensor, piece in diffusers_unet(config).items():
        if (layer := ours.get(tensor.removesuffix(".weight"))) is not None:
            place, older = (key.removesuffix(".weight") for key in (piece.key, compvis[tensor].key))
            yield [f"unet.{place}", kohya("unet", place), kohya("unet", older), f"diffusion_model.{older}"], layer
    for text in texts:
        for name, layer in layers(text).items():
            inner = name.removeprefix("text_model.")  # which some versions of transformers have, and others not
            whole = f"text_model.{inner}"
            yield [f"text_encoder.{whole}", kohya("te", whole), f"text_encoder.{inner}", kohya("te", inner)], layer


def read_networks(system: Any) -> list[nn.Module]:
    """The U-Net of a latent model, and its text encoder's network where that is frozen beside it."""
    if not isinstance(system, LatentDiffusion) or not isinstance(system.unet, UNet):
        raise UserError("LoRA files are for latent models, as Stable Diffusion is, and this model is none")
    text = network_of(system.text)
    return [system.unet] if text is None else [system.unet, text]


def layers(network: nn.Module) -> dict[str, AdaptableLayer]:
    return {name: part for name, part in network.named_modules() if isinstance(part, AdaptableLayer)}


def kohya(network: str, place: str) -> str:
    return f"lora_{network}_{place.replace('.', '_')}"


def is_text(name: str) -> bool:
    return name.startswith(("lora_te_", "text_encoder."))


def fitted(each: LowRankPair, layer: AdaptableLayer, source: str) -> LowRank:
    """The change of this layer. A linear layer and a convolution with a 1x1 kernel take each other's matrices.

    Raises a `UserError` for shapes of another layer.
    """
    (outputs, *inputs), kernel = layer.weight.shape, layer.weight.shape[2:]
    trimmed = [tensor.flatten(1) if tensor.shape[2:] == (1, 1) else tensor for tensor in (each.down, each.up)]
    rank = each.down.shape[0]
    down, up = (tensor[:, :, None, None] if kernel and tensor.ndim == 2 else tensor for tensor in trimmed)
    ones = (1,) * len(kernel)
    if tuple(down.shape) != (rank, *inputs) or tuple(up.shape) != (outputs, rank, *ones):
        reads = each.down.shape[1]
        made = f", as in {WIDTHS[reads]}" if reads in WIDTHS and reads != inputs[0] else ""
        raise UserError(
            f"{source}: key {each.key!r} and its partner are {tuple(each.down.shape)} and {tuple(each.up.shape)}: made "
            f"for a layer of another size{made}; the model's has weights {tuple(layer.weight.shape)}"
        )
    return LowRank(down, up, each.alpha)
