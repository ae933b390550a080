"""latent-diffusion's own models (Rombach et al. 2022) as CompVis published them: single files, and no configs in them.

Told text (LDM-KL-8, 1.45 B, and LDM-VQ-4), classes of ImageNet (LDM-VQ-4, LDM-VQ-8) or nothing (CelebA-HQ, FFHQ, LSUN).
Sizes follow from shapes, the schedule and the latents' scale from buffers. How many heads attend shows in neither,
and follows what the networks were published with. First stages that were published alone open as an `Autoencoder`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from diptych.core.errors import UserError
from diptych.diffusion.schedules import ScheduleConfig, TableSchedule
from diptych.diffusion.times import TimesConfig
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.classes import ClassLabels
from diptych.encoders.configs import JointTransformerConfig
from diptych.encoders.joint import JointTransformer
from diptych.encoders.tokenizers import bert_tokenizer
from diptych.models.latent_diffusion import LatentConfig, LatentDiffusion
from diptych.networks.adm import AdmUNet
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.transformer import TextTransformer, TextTransformerConfig
from diptych.networks.unet import UNet, UNetConfig
from diptych.pretrained.adm_keys import adm_of_shapes, compvis_adm
from diptych.pretrained.file_metadata import FileMetadata, read_file_metadata
from diptych.pretrained.key_map import Layout, Piece, pieces
from diptych.pretrained.source import Family, Options, Source
from diptych.pretrained.stable_diffusion.infer_shapes import (
    PrefixedShapes,
    Shapes,
    autoencoder_of_shapes,
    unet_of_shapes,
)
from diptych.pretrained.stable_diffusion.single_file import AVERAGED, SCALE_KEY, UNREAD, scale_of, unet_of, unet_shapes
from diptych.pretrained.stable_diffusion.state_dict_keys import (
    FIRST_STAGE,
    UNET,
    compvis_autoencoder,
    compvis_unet,
    names,
)
from diptych.weights.hub import cached_snapshot
from diptych.weights.lazy import LazyCheckpoint, fill, on_meta

CONDITION = "cond_stage_model."
TEXT = CONDITION + "transformer."
CLASSES = CONDITION + "embedding.weight"
LOGITS = TEXT + "to_logits."
"""Of the text transformer, what only a language model needs. The 1.45 B count it."""
TRAINING_KEYS = ("loss.", "model_ema.", "colorize")
"""Of a first stage alone, what only its training needs."""
SIZE = 256
"""Side of the images that all of them were trained on, in pixels."""
IMAGENET = 1000
"""Classes; an embedding with one more has the null class behind them."""
HEAD_WIDTH = 64
"""Of the text transformer's heads, as in x-transformers."""
TOKENIZERS = ("google-bert/bert-base-uncased", "bert-base-uncased")
"""Models of the hub that have the tokenizer."""
TEXT_BETAS, BETAS, BETAS_KL = (0.00085, 0.012), (0.0015, 0.0195), (0.0015, 0.0155)
"""Where the betas begin and end, for a file without them: of text over KL-8, of most, of LSUN-Churches."""

BLOCK = {"norm1": "0.0", "norm2": "1.0", "attention": "0.1", "mlp": "1.1.net"}
"""Of the text transformer: each of our blocks is two layers there, each with its norm first."""
ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out"}
MLP = {"0": "0.0", "3": "2"}
ALONE = {"token": "token_emb", "position": "pos_emb.emb.weight"}


def fits(source: Source) -> bool:
    """A U-Net under CompVis's name that is not Stable Diffusion's, which is asked before; or a first stage alone."""
    whole = (UNET, AVERAGED + "diffusion_model", FIRST_STAGE)
    return not source.folder and (any(key.startswith(whole) for key in source.checkpoint) or is_first_stage(source))


def is_first_stage(source: Source) -> bool:
    """By three of its keys, of which a damaged file may lack one."""
    keys = ("encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight", "quant_conv.weight")
    return sum(key in source.checkpoint for key in keys) >= 2


def read(source: Source) -> LatentDiffusion | Autoencoder:
    """The model in a file. A `UserError` names the key at fault, or says that a tokenizer is needed."""
    checkpoint, name, dtype = source.checkpoint, str(source.path), source.options.dtype
    if is_first_stage(source) or not any(key.startswith((UNET, AVERAGED + "diffusion_model")) for key in checkpoint):
        source.options.without_effect((), f"{name}, an autoencoder alone")
        return first_stage(source)
    prefixes = (UNET, FIRST_STAGE, CONDITION)
    if unknown := [key for key in checkpoint if not key.startswith(prefixes) and not UNREAD.fullmatch(key)]:
        raise UserError(f"{name}: unexpected key {min(unknown)!r} ({len(unknown)} in all)")
    config = config_of(checkpoint, name, source)
    if not isinstance(config.text, JointTransformerConfig):
        source.options.without_effect(("ema", "prediction"), f"{name}, which reads no text")
    condition = checkpoint.only(key for key in checkpoint if key.startswith(CONDITION) and not key.startswith(LOGITS))
    text: Any = None
    if isinstance(config.text, JointTransformerConfig):
        text = read_text(config.text, condition, source.options)
    elif isinstance(config.text, ClassConfig):
        text = ClassLabels(config.text)
    stored = checkpoint.only(key for key in checkpoint if key.startswith(FIRST_STAGE) and not UNREAD.fullmatch(key))
    autoencoder = read_first_stage(stored, FIRST_STAGE, dtype)
    model = LatentDiffusion(config, autoencoder, text, read_unet(config.unet, source))
    model.scale.fill_(latent_scale(checkpoint, config))
    return model.eval()


def first_stage(source: Source) -> Autoencoder:
    """The autoencoder in a file, alone or beside a U-Net."""
    alone = is_first_stage(source)
    names = [key for key in source.checkpoint if not key.startswith(TRAINING_KEYS) and not UNREAD.fullmatch(key)]
    stored = source.checkpoint.only(key for key in names if alone or key.startswith(FIRST_STAGE))
    return read_first_stage(stored, "" if alone else FIRST_STAGE, source.options.dtype).eval()


def config_of(checkpoint: LazyCheckpoint, source: str, origin: Source | None = None) -> LatentConfig:
    """What shapes and buffers say, and what is stated of a `origin` file. A `UserError` names what is none of ours."""
    statements = FileMetadata() if origin is None else read_file_metadata(origin)
    shapes = checkpoint.shapes if origin is None else unet_shapes(origin)
    autoencoder = autoencoder_of_shapes(checkpoint.shapes, source)
    text = condition_of(checkpoint)
    unet = unet_config(shapes, checkpoint, autoencoder, text, source)
    if statements.terminal is not None:
        raise UserError(
            f"{statements.terminal} says that betas are rescaled to zero terminal SNR, which diptych has not here"
        )
    if unet.concat_channels:
        raise UserError(
            f"{source}: the U-Net reads {unet.concat_channels} channels beside the {unet.in_channels} of the latent: "
            "latent-diffusion's models that are conditioned on images are not among those that diptych reads"
        )
    usual: tuple[int, float] = (200, 1.0)
    if isinstance(text, JointTransformerConfig):
        usual = (50, 5.0)
    elif isinstance(text, ClassConfig):
        usual = (50, 3.0) if text.null is not None else (200, 1.0)
    schedule = schedule_of(checkpoint, autoencoder, text)
    for field, ours in (("beta_start", "beta_start"), ("beta_end", "beta_end"), ("num_train_timesteps", "steps")):
        if field in statements.schedule and not math.isclose(
            statements.schedule[field].value, getattr(schedule, ours), rel_tol=1e-4
        ):
            statement, default = statements.schedule[field], getattr(schedule, ours)
            raise UserError(f"{statement.where} is {statement.value}, and the betas of {source} have {default}")
    return LatentConfig(
        autoencoder=autoencoder,
        unet=unet,
        text=text,
        schedule=schedule,
        prediction=(origin and origin.options.prediction) or statements.prediction() or "eps",
        times=TimesConfig(spacing="published", offset=1, final="first"),
        size=SIZE if SIZE % autoencoder.factor == 0 else autoencoder.factor,
        steps=usual[0],
        guidance=usual[1],
        sampler="ddim",
    )


Condition = JointTransformerConfig | ClassConfig | None


def condition_of(checkpoint: LazyCheckpoint) -> Condition:
    """The condition: text, a class, or none."""
    keys = [key for key in checkpoint if key.startswith(CONDITION)]
    if TEXT + "token_emb.weight" in keys:
        has = PrefixedShapes(checkpoint.shapes, TEXT, checkpoint.source)
        vocabulary, width = has.matrix("token_emb.weight")
        network = TextTransformerConfig(
            vocabulary=vocabulary,
            max_tokens=has.matrix("pos_emb.emb.weight")[0],
            width=width,
            layers=has.count(r"attn_layers\.layers\.(\d+)\.") // 2,
            heads=max(has.size("attn_layers.layers.0.1.to_q.weight") // HEAD_WIDTH, 1),
            head_width=HEAD_WIDTH,
        )
        return JointTransformerConfig(network=network, padded=True)
    if CLASSES in keys:
        entries, _ = PrefixedShapes(checkpoint.shapes, "", checkpoint.source).matrix(CLASSES)
        classes = entries - 1 if entries == IMAGENET + 1 else entries
        return ClassConfig(classes=classes, null=classes if classes < entries else None)
    if keys:
        raise UserError(
            f"{checkpoint.source}: key {min(keys)!r} is of a condition that diptych does not read: it knows text "
            f"({TEXT}token_emb.weight) and classes ({CLASSES})"
        )
    if any(key.startswith(UNET) and ".transformer_blocks." in key for key in checkpoint):
        raise UserError(
            f"{checkpoint.source}: the U-Net reads a condition, and what makes it is missing: key "
            f"{TEXT + 'token_emb.weight'!r} (of text) or {CLASSES!r} (of classes)"
        )
    return None


def unet_config(
    shapes: Shapes, checkpoint: LazyCheckpoint, autoencoder: AutoencoderConfig, text: Condition, source: str
) -> UNetConfig | AdmUNetConfig:
    """The U-Net's config: with transformers where there is a condition to read, else of ADM's kind."""
    latent, quantised = autoencoder.latent_channels, autoencoder.codebook is not None
    heads: dict[str, Any] = {"heads": None, "head_width": 32}
    if text is None:
        if not quantised:  # LSUN-Churches
            heads = {"heads": 8, "head_width": None}
        return adm_of_shapes(shapes, source, latent, UNET, **heads)
    if isinstance(text, JointTransformerConfig) and not quantised:  # 1.45 B
        heads = {"heads": 8, "head_width": None}
    if isinstance(text, ClassConfig) and latent == 3:  # LDM-VQ-4 (cin256-v2); LDM-VQ-8 has four channels
        heads = {"heads": 1, "head_width": None}
    config = unet_of_shapes(shapes, source, latent)
    classes = checkpoint.shapes[CLASSES][0] if isinstance(text, ClassConfig) else None
    return dataclasses.replace(config, classes=classes, **heads)


def schedule_of(checkpoint: LazyCheckpoint, autoencoder: AutoencoderConfig, text: Condition) -> ScheduleConfig:
    """As the buffer of betas says: they begin and end where it does, and must be spaced as in latent-diffusion."""
    stored = checkpoint["betas"].double() if "betas" in checkpoint else None
    if stored is None or stored.is_meta:
        quantised = autoencoder.codebook is not None
        start, end = BETAS if quantised else TEXT_BETAS if text is not None else BETAS_KL
        return ScheduleConfig(beta_start=start, beta_end=end)
    if stored.ndim != 1 or len(stored) < 2 or not 0 < stored[0] <= stored[-1] < 1:
        raise UserError(f"{checkpoint.source}: betas must rise between 0 and 1")
    start, end = (float(f"{float(value):.7g}") for value in (stored[0], stored[-1]))  # of single precision
    config = ScheduleConfig(steps=len(stored), beta_start=start, beta_end=end)
    expected = config.build()
    assert isinstance(expected, TableSchedule)
    if torch.allclose(TableSchedule(stored).table, expected.table, rtol=0, atol=1e-5):
        return config
    raise UserError(
        f"{checkpoint.source}: betas are not spaced as in latent-diffusion, where their roots are evenly so"
    )


def latent_scale(checkpoint: LazyCheckpoint, config: LatentConfig) -> float:
    """By what latents are multiplied: the buffer, or what every model without one has."""
    if SCALE_KEY in checkpoint:
        return scale_of(checkpoint)
    if config.autoencoder.codebook is not None:
        return 1.0
    if config.text is not None:
        return scale_of(checkpoint)  # 0.18215, as in Stable Diffusion
    raise UserError(
        f"{checkpoint.source}: key {SCALE_KEY!r} is missing, by which latents of a KL first stage are scaled"
    )


def read_first_stage(stored: LazyCheckpoint, prefix: str, dtype: torch.dtype | None) -> Autoencoder:
    """The autoencoder in tensors whose names all begin with `prefix`."""
    config = autoencoder_of_shapes(stored.shapes, stored.source, prefix)
    with on_meta():
        autoencoder = Autoencoder(config)
    fill(autoencoder, pieces(compvis_autoencoder(config, prefix), stored), stored.source, dtype)
    return autoencoder


def read_unet(config: UNetConfig | AdmUNetConfig, source: Source) -> UNet | AdmUNet:
    """The U-Net, with the embedding of its classes where it has one."""
    with on_meta():
        unet = UNet(config) if isinstance(config, UNetConfig) else AdmUNet(config)
    if isinstance(unet, AdmUNet):
        layout = compvis_adm(unet, UNET)
    else:
        classes = {"label.weight": Piece(CLASSES)} if unet.config.classes is not None else {}
        layout = {**compvis_unet(unet.config), **classes}
    fill(unet, unet_of(source, layout), str(source.path), source.options.dtype)
    return unet


def read_text(config: JointTransformerConfig, stored: LazyCheckpoint, options: Options) -> JointTransformer:
    """The text transformer with its tokenizer, which the file does not hold."""
    with on_meta():
        text = JointTransformer(config)
    fill(text.network, pieces(bert_layout(config.network), stored), stored.source, options.dtype)
    if not text.network.position.is_meta:  # else nothing is read with it
        text.tokenizer = tokenizer_of(options, config.network.vocabulary)
    return text


def bert_layout(config: TextTransformerConfig) -> Layout:
    """Of x-transformers' encoder, in which attention and MLP are layers of their own."""
    layout = {}
    for name in names(lambda: TextTransformer(config)):
        match name.split("."):
            case ["blocks", number, part, *rest]:
                layer, _, place = BLOCK[part].partition(".")
                table = ATTENTION if part == "attention" else MLP
                rest = [place, *(table.get(word, word) for word in rest)]
                theirs = ".".join(["attn_layers.layers", str(2 * int(number) + int(layer)), *rest])
            case [part, *rest]:
                theirs = ".".join([ALONE.get(part, part), *rest])
        layout[name] = Piece(TEXT + theirs)
    return layout


def tokenizer_of(options: Options, vocabulary: int) -> Any:
    """BERT's tokenizer: in the user's folder, or in the hub's cache."""
    if options.tokenizer is not None:
        inner = options.tokenizer / "tokenizer"
        folder = inner if inner.is_dir() else options.tokenizer
    else:
        folder = next((path for name in TOKENIZERS if (path := cached_snapshot(name, None)) is not None), None)
    if folder is None:
        raise UserError(
            "the text is read with BERT's tokenizer, which neither the file nor the hub's cache has: "
            f"give its folder by --tokenizer FOLDER (tokenizer=), such as that of {TOKENIZERS[0]}"
        )
    tokenizer = bert_tokenizer(folder)
    if (size := tokenizer.get_vocab_size()) != vocabulary:
        raise UserError(
            f"the tokenizer in {folder} knows {size:,} tokens, and the text model {vocabulary:,}: it is another's"
        )
    return tokenizer


FAMILY = Family("latent-diffusion", fits, read, first_stage)
