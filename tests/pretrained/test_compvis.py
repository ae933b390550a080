"""latent-diffusion's own models: opened by our door, they answer as the original modules do.

diffusers does not hold these models, so the originals are the oracle: ldm_originals.py built them small from CompVis's
own code, filled them by the rule of ldm_models.py, and kept what they answered in ldm_pins.json. Here files are made by
the same rule. That their keys and shapes are the originals' is pinned too, as a digest.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diptych
from diptych.cli.describe import describe
from diptych.core.errors import UserError
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import ClipTextConfig, JointTransformerConfig
from diptych.models.latent_diffusion import LatentConfig, LatentDiffusion
from diptych.networks.adm import AdmUNet, AdmUNetConfig
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.transformer import TextTransformer, TextTransformerConfig
from diptych.networks.unet import UNet, UNetConfig
from diptych.pretrained.adm_keys import compvis_adm
from diptych.pretrained.compvis import CLASSES, LOGITS, bert_layout, config_of
from diptych.pretrained.families import open_published
from diptych.pretrained.key_map import published
from diptych.pretrained.stable_diffusion.state_dict_keys import (
    FIRST_STAGE,
    UNET,
    averaged_key,
    compvis_autoencoder,
    compvis_unet,
)
from diptych.recipes import get
from diptych.training.experiment_config import LatentTraining
from diptych.weights.lazy import LazyCheckpoint
from tests.networks.reference import relative_error
from tests.parity import within
from tests.pretrained import ldm_models as models

PINS = json.loads(Path(__file__).with_name("ldm_pins.json").read_text())
FAMILY, FILES = "latent-diffusion", "CompVis single file"
FORWARD, IMAGE = 1e-5, 1 / 255

FIRST = {
    "kl": AutoencoderConfig(channels=32, multipliers=(1, 2), blocks=1),
    "kl-attending": AutoencoderConfig(
        latent_channels=6, channels=32, multipliers=(1, 2, 2), blocks=2, attention_levels=(2,)
    ),
    "vq": AutoencoderConfig(latent_channels=3, channels=32, multipliers=(1, 2), blocks=1, codebook=32),
    "vq-noattn": AutoencoderConfig(
        latent_channels=3, channels=32, multipliers=(1, 2), blocks=1, codebook=32, attention=False
    ),
    "vq-attending": AutoencoderConfig(
        channels=32, multipliers=(1, 2), blocks=2, codebook=32, attention_levels=(1,), latent_channels=4
    ),
}
TEXT = JointTransformerConfig(
    network=TextTransformerConfig(
        vocabulary=len(models.VOCABULARY), max_tokens=models.TOKENS, width=64, layers=2, heads=8, head_width=64
    ),
    padded=True,
)
SHAPE: dict[str, Any] = {"channels": 32, "multipliers": (1, 2), "blocks": 1}
HEAD: dict[str, Any] = {"heads": None, "head_width": 32}
READS: dict[str, Any] = {**SHAPE, "attention_levels": (1,), "context_width": 64}
THREE, FOUR = {"in_channels": 3, "out_channels": 3}, {"in_channels": 4, "out_channels": 4}


@dataclasses.dataclass(frozen=True)
class Model:
    """What the door is to find in a file."""

    first: str
    unet: UNetConfig | AdmUNetConfig
    text: JointTransformerConfig | ClassConfig | None = None
    betas: tuple[float, float] = (0.0015, 0.0195)
    scale: float = 1.0
    prompt: str = "whatever"
    guidance: float = 1.0


PLAIN = AdmUNetConfig(**SHAPE, **THREE, **HEAD, attention_levels=(1,), scale_shift=False, residual_resampling=False)
MODELS = {
    "text-kl": Model("kl", UNetConfig(**READS, heads=8), TEXT, (0.00085, 0.012), 0.18215, "a red apple", 3.0),
    "text-vq": Model("vq", UNetConfig(**READS, **THREE, **HEAD), TEXT, prompt="a red apple", guidance=3.0),
    "class-vq4": Model(
        *("vq", UNetConfig(**READS, **THREE, heads=1, classes=1001), ClassConfig(classes=1000, null=1000)),
        prompt="7",
        guidance=3.0,
    ),
    "class-vq8": Model(
        "vq-attending",
        UNetConfig(**{**READS, "attention_levels": (0, 1)}, **HEAD, classes=1000),
        ClassConfig(classes=1000),
        prompt="7",
    ),
    "plain-vq": Model("vq", PLAIN),
    "plain-kl": Model(
        "kl",
        AdmUNetConfig(**SHAPE, **FOUR, heads=8, head_width=None, attention_levels=(0, 1)),
        betas=(0.0015, 0.0155),
        scale=0.7,
    ),
}


def state(layout: Any, module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a module of ours in a published file."""
    ours = module.state_dict()
    return {key: tuple(tensor.shape) for key, tensor in published(layout, {n: ours[n] for n in layout}).items()}


def first_stage_shapes(config: AutoencoderConfig, prefix: str = "") -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return state(compvis_autoencoder(config, prefix), Autoencoder(config))


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return file_shapes(LatentConfig(autoencoder=FIRST[model.first], unet=model.unet, text=model.text))


def file_shapes(model: LatentConfig) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a whole file."""
    found = first_stage_shapes(model.autoencoder, FIRST_STAGE)
    with torch.device("meta"):
        if isinstance(model.unet, AdmUNetConfig):
            network = AdmUNet(model.unet)
            found |= state(compvis_adm(network, UNET), network)
        else:
            found |= state(compvis_unet(model.unet), UNet(model.unet))
        if isinstance(model.text, JointTransformerConfig):
            shape = model.text.network
            found |= state(bert_layout(shape), TextTransformer(shape))
            found |= {LOGITS + "weight": (shape.vocabulary, shape.width), LOGITS + "bias": (shape.vocabulary,)}
        elif model.text is not None and model.unet.classes is not None:
            found[CLASSES] = (model.unet.classes, model.unet.context_width or 0)
    return found


def tensors(name: str) -> dict[str, Tensor]:
    """A whole file, with what is in it beside the networks."""
    model = MODELS[name]
    found = models.drawn(shapes(model))
    found |= {
        "betas": models.betas(*model.betas),
        "alphas_cumprod": torch.ones(1000),
        "model_ema.decay": torch.ones(()),
    }
    found["first_stage_model.loss.discriminator.main.0.weight"] = torch.ones(2, 3, 4, 4)
    return found | ({"scale_factor": torch.tensor(model.scale)} if name == "plain-kl" else {})


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files, and the tokenizer."""
    folder = tmp_path_factory.mktemp("ldm")
    models.tokenizer_folder(folder / "tokenizer")
    for name in MODELS:
        models.write(folder / f"{name}.safetensors", tensors(name))
    return folder


def opened(places: Path, name: str, **options: Any) -> LatentDiffusion:
    tokenizer = places / "tokenizer" if name.startswith("text") else None
    model = diptych.load(places / f"{name}.safetensors", "cpu", tokenizer=tokenizer, **options)
    assert isinstance(model, LatentDiffusion)
    return model


def error(ours: Tensor, pinned: list[float]) -> float:
    return relative_error(models.some(ours), torch.tensor(pinned))


@pytest.mark.parametrize("name", FIRST)
@torch.no_grad()
def test_a_first_stage_answers_as_the_original(name: str, tmp_path: Path) -> None:
    config, pins = FIRST[name], PINS[name]
    assert models.digest(first_stage_shapes(config)) == pins["keys"]
    stored = models.drawn(first_stage_shapes(config)) | {"loss.logvar": torch.ones(())}
    module = open_published(models.write(tmp_path / "model.safetensors", stored))
    assert isinstance(module, Autoencoder) and module.config == config
    moments = module.moments(models.noise(1, 3, 32, 32))
    within(FAMILY, "first stage alone", f"{name}, encoder, relative", error(moments, pins["encoder"]), FORWARD)
    latents = models.noise(1, config.latent_channels, 32 // config.factor, 32 // config.factor, seed=2)
    within(
        FAMILY,
        "first stage alone",
        f"{name}, decoder, relative",
        error(module.decode(latents), pins["decoder"]),
        FORWARD,
    )


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_model_answers_as_the_original(name: str, places: Path) -> None:
    wanted, pins = MODELS[name], PINS[name]
    assert models.digest(shapes(wanted)) == pins["keys"]
    model = opened(places, name)
    found = model.config
    assert (found.autoencoder, found.unet, found.text) == (FIRST[wanted.first], wanted.unet, wanted.text)
    assert (found.schedule.beta_start, found.schedule.beta_end) == wanted.betas
    assert float(model.scale) == pytest.approx(wanted.scale)

    told: dict[str, Tensor] = {}
    if isinstance(found.text, JointTransformerConfig):
        read = model.text.encode(["a red apple", "two cats"])
        assert read.sequence.shape == (2, models.TOKENS, 64) and read.mask.all()
        within(FAMILY, FILES, f"{name}, text encoder, relative", error(read.sequence, pins["text"]), FORWARD)
        told = {"context": read.sequence}
    elif found.text is not None:
        told = {"label": torch.tensor([7, 999])}
    x = models.noise(2, found.unet.in_channels, 16, 16)
    answer = model.unet(x, torch.tensor([3.0, 700.0]), **told)
    within(FAMILY, FILES, f"{name}, U-Net, relative", error(answer, pins["unet"]), FORWARD)


@pytest.mark.parametrize("name", MODELS)
def test_an_image_is_the_originals(name: str, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDIM from the same noise, words or class guided by the empty prompt or the null class."""
    wanted, model = MODELS[name], opened(places, name)
    start = models.noise(1, model.config.unet.in_channels, models.SIZE // 2, models.SIZE // 2)
    options: dict[str, Any] = {"steps": models.STEPS, "guidance": wanted.guidance, "noise": start}
    latents: list[Tensor] = []
    decode = model.autoencoder.decode
    monkeypatch.setattr(model.autoencoder, "decode", lambda given: latents.append(given) or decode(given))
    image = model.generate(wanted.prompt, size=(models.SIZE, models.SIZE), **options).images[0]
    off = error(latents[0] * model.scale, PINS[name]["latents"])
    within(FAMILY, FILES, f"{name}, latents, DDIM, relative", off, FORWARD)
    painted = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    off = (models.some(painted) - torch.tensor(PINS[name]["picture"])).abs().max().item() / 255
    within(FAMILY, FILES, f"{name}, image, DDIM, of 1", off, IMAGE)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", ["text-kl", "class-vq4", "plain-vq"])
def test_it_comes_back_from_our_own_folder(name: str, places: Path, tmp_path: Path) -> None:
    model = opened(places, name)
    model.save(tmp_path / "model")
    again = diptych.load(tmp_path / "model", "cpu")
    assert isinstance(again, LatentDiffusion) and again.config == model.config
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in model.state_dict().items())
    prompt, options = MODELS[name].prompt, {"steps": 1, "size": (16, 16)}
    assert (
        again.generate(prompt, **options).images[0].tobytes() == model.generate(prompt, **options).images[0].tobytes()
    )


def test_a_checkpoint_is_a_pickle_that_needs_leave(tmp_path: Path) -> None:
    path = models.write(tmp_path / "model.ckpt", tensors("plain-vq"), pickled=True)
    with pytest.raises(UserError, match="allow-pickle"):
        diptych.load(path, "cpu")
    model = diptych.load(path, "cpu", allow_pickle=True)
    assert isinstance(model, LatentDiffusion) and model.config.unet == PLAIN


@pytest.mark.parametrize("name", ["class-vq4", "plain-vq"])
def test_averages_are_taken_if_asked_for(name: str, tmp_path: Path) -> None:
    stored = tensors(name)
    averages = {averaged_key(key): tensor + 1 for key, tensor in stored.items() if key.startswith(UNET)}
    path = models.write(tmp_path / "model.safetensors", stored | averages)
    plain, averaged = diptych.load(path, "cpu"), diptych.load(path, "cpu", ema=True)
    assert isinstance(plain, LatentDiffusion) and isinstance(averaged, LatentDiffusion)
    for key, tensor in plain.unet.state_dict().items():
        moved = 0 if key == "label.weight" else 1  # the classes are not part of what was averaged
        assert torch.equal(averaged.unet.state_dict()[key], tensor + moved)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("text-kl", {"scale_factor": torch.tensor([1.0, 2.0])}, "scale_factor must be one positive number"),
        ("plain-kl", {"scale_factor": None}, "'scale_factor' is missing"),
        ("plain-vq", {"betas": torch.linspace(1e-4, 2e-2, 1000)}, "betas are not spaced"),
        ("plain-vq", {"betas": torch.zeros(1000)}, "betas must rise"),
        ("plain-vq", {UNET + "time_embed.0.bias": None}, "model.diffusion_model.time_embed.0.bias"),
        ("plain-vq", {UNET + "extra.weight": torch.ones(2)}, "unexpected key 'model.diffusion_model.extra.weight'"),
        ("plain-vq", {"extra.weight": torch.ones(2)}, "unexpected key 'extra.weight'"),
        ("plain-vq", {FIRST_STAGE + "quantize.embedding.weight": None}, "has shape|shape|missing|unexpected"),
        ("plain-vq", {FIRST_STAGE + "quant_conv.bias": torch.full((3,), torch.nan)}, "quant_conv.bias' holds NaN"),
        ("plain-vq", {UNET + "input_blocks.0.0.weight": torch.ones(32, 6, 3, 3)}, "conditioned on images"),
        (
            "plain-vq",
            {"cond_stage_model.channel_mapper.weight": torch.ones(3, 9, 1, 1)},
            "cond_stage_model.channel_mapper",
        ),
        (
            "class-vq4",
            {UNET + "input_blocks.1.0.in_layers.0.weight": torch.ones(5)},
            "input_blocks.1.0.in_layers|shape",
        ),
    ],
)
def test_a_damaged_file_is_refused_with_its_key(
    name: str, changes: dict[str, Tensor | None], says: str, places: Path, tmp_path: Path
) -> None:
    stored = {key: tensor for key, tensor in {**tensors(name), **changes}.items() if tensor is not None}
    path = models.write(tmp_path / "model.safetensors", stored)
    with pytest.raises(UserError, match=says) as caught:
        diptych.load(path, "cpu", tokenizer=places / "tokenizer" if name.startswith("text") else None)
    assert "\n" not in str(caught.value)


def test_the_tokenizer_is_asked_for(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"--tokenizer FOLDER.*bert-base-uncased"):
        diptych.load(places / "text-kl.safetensors", "cpu")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(UserError, match="knows 5 tokens"):
        diptych.load(places / "text-kl.safetensors", "cpu", tokenizer=tmp_path / "other")


def test_a_prompt_too_long_is_refused_and_not_cut(places: Path) -> None:
    with pytest.raises(UserError, match="this model reads 20"):
        opened(places, "text-kl").text.encode(["cat " * 40])


FULL_SIZE = {  # the original modules on the meta device; of text without to_logits, 39,098,682
    "ldm-text": (872_300_484, 83_653_863, 542_895_360),
    "ldm-cin256": (400_920_579 + 1001 * 512, 55_322_782, 0),
    "ldm-cin256-vq-f8": (394_984_196 + 1000 * 512, 67_717_295, 0),
    "ldm-celebahq": (274_056_163, 55_322_782, 0),
    "ldm-ffhq": (274_056_163, 55_322_782, 0),
    "ldm-bedrooms": (274_056_163, 55_322_782, 0),
    "ldm-churches": (294_966_916, 83_653_863, 0),
}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_published_models_are_known_by_their_shapes(name: str) -> None:
    """At full size: the recipe has the published number of parameters, and is what the door finds in such a file."""
    system = get(name).system
    assert isinstance(system, LatentTraining)
    networks = describe(name)["networks"]
    assert (networks["unet"], networks["autoencoder"], networks.get("text", 0)) == FULL_SIZE[name]
    config = system.model
    assert not isinstance(config.text, ClipTextConfig)
    file = {key: torch.empty(shape, device="meta") for key, shape in file_shapes(config).items()}
    schedule = config.schedule
    file["betas"] = models.betas(schedule.beta_start, schedule.beta_end)
    found = config_of(LazyCheckpoint.of(file, name), name)
    unseen = {"steps": found.steps, "guidance": found.guidance, "sampler": found.sampler}  # how to sample, and scale
    assert found == dataclasses.replace(config, latent_scale=None, **unseen)


@pytest.mark.parametrize("name", MODELS)
def test_info_counts_without_reading(name: str, places: Path) -> None:
    described = describe(str(places / f"{name}.safetensors"))
    wanted = shapes(MODELS[name])
    size = sum(int(np.prod(shape)) for key, shape in wanted.items() if not key.startswith(LOGITS))
    assert described["total"] == size


def test_a_first_stage_alone_is_described_and_does_not_paint(tmp_path: Path) -> None:
    path = models.write(tmp_path / "model.safetensors", models.drawn(first_stage_shapes(FIRST["vq"])))
    assert set(describe(str(path))["networks"]) == {"autoencoder"}
    with pytest.raises(UserError, match="first stage alone"):
        diptych.load(path, "cpu")
