"""OpenAI's guided-diffusion: its files give its numbers, pinned in adm_numbers.json, which adm_numbers.py wrote."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import diptych
from diptych.cli.describe import describe
from diptych.cli.main import main
from diptych.core.errors import UserError
from diptych.diffusion.times import TimesConfig
from diptych.networks.adm import AdmUNet, AdmUNetConfig
from diptych.networks.noisy_classifier import NoisyClassifier, NoisyClassifierConfig
from diptych.pretrained.adm_keys import compvis_adm
from diptych.pretrained.families import open_published
from diptych.pretrained.guided_diffusion import LINEAR, PUBLISHED, Facts, classifier_layout, read_facts, stage_config
from diptych.pretrained.guided_diffusion import classifier_config as read_classifier_config
from diptych.pretrained.key_map import published
from diptych.recipes.papers.adm import RECIPES
from diptych.training.experiment_config import PixelTraining
from diptych.weights.lazy import LazyCheckpoint
from diptych.weights.save import save_safetensors
from tests.networks.reference import relative_error
from tests.parity import within
from tests.pretrained.adm_numbers import BATCH, CALM, LOW, MODELS, SAMPLED, SEED, SIDE, STEPS, inputs, some, weights

FAMILY = "guided-diffusion"
NUMBERS = json.loads(Path(__file__).with_name("adm_numbers.json").read_text())
UNETS = [name for name in MODELS if not name.startswith("classifier")]
CLASSIFIERS = [name for name in MODELS if name.startswith("classifier")]


def config_of(name: str) -> AdmUNetConfig:
    """The options of an original module, as ours."""
    kind, options = MODELS[name]
    factors = [2**level for level in range(len(options["channel_mult"]))]
    return AdmUNetConfig(
        concat_channels=3 if kind == "SuperResModel" else 0,
        out_channels=6 if kind == "EncoderUNetModel" else options["out_channels"],
        channels=options["model_channels"],
        multipliers=options["channel_mult"],
        blocks=options["num_res_blocks"],
        attention_levels=tuple(level for level, f in enumerate(factors) if f in options["attention_resolutions"]),
        heads=options.get("num_heads"),
        head_width=options.get("num_head_channels"),
        classes=options.get("num_classes"),
        scale_shift=options.get("use_scale_shift_norm", False),
        residual_resampling=options.get("resblock_updown", False),
    )


def classifier_config(name: str) -> NoisyClassifierConfig:
    options = MODELS[name][1]
    size = options["image_size"] if options["pool"] == "attention" else None
    return NoisyClassifierConfig(encoder=config_of(name), classes=10, pool=options["pool"], size=size)


def facts(name: str) -> dict[str, Any]:
    """What stands in NAME.json: only what differs from the defaults."""
    kind, options = MODELS[name]
    stated: dict[str, Any] = {"size": SIDE, "heads": options.get("num_heads")}
    stated["head_width"] = options.get("num_head_channels")
    stated |= {"low_size": LOW} if kind == "SuperResModel" else {}
    stated |= {"new_attention_order": True} if options.get("use_new_attention_order") else {}
    return stated | {"noise_schedule": SAMPLED.get(name, "linear")}


def state(name: str, calm: float = 1.0) -> dict[str, Tensor]:
    """The weights that the original was given, by its keys."""
    with torch.device("meta"):
        if name in CLASSIFIERS:
            network: Any = NoisyClassifier(classifier_config(name))
            layout = classifier_layout(network, True)
        else:
            network = AdmUNet(config_of(name))
            layout = compvis_adm(network, older_attention=not facts(name).get("new_attention_order"))
    shapes = {key: tuple(value.shape) for key, value in published(layout, network.state_dict()).items()}
    return weights(shapes, calm)


def write(folder: Path, name: str, calm: float = 1.0, pickled: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"model.{'pt' if pickled else 'safetensors'}"
    if pickled:
        torch.save(state(name, calm), path)
    else:
        save_safetensors(state(name, calm), path)
    path.with_suffix(".json").write_text(json.dumps(facts(name)))
    return path


def arguments(name: str) -> dict[str, Tensor]:
    _, _, labels, low = inputs()
    kind, options = MODELS[name]
    extra = {"label": labels} if "num_classes" in options else {}
    if kind == "SuperResModel":
        extra["concat"] = torch.nn.functional.interpolate(low, (SIDE, SIDE), mode="bilinear")
    return extra


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_the_unets_give_the_original_numbers(tmp_path: Path, name: str) -> None:
    x, times, *_ = inputs()
    path = write(tmp_path, name, pickled=name == "classes")
    stage = diptych.load(path, "cpu", allow_pickle=name == "classes")
    assert stage.config.network == config_of(name), "told from shapes alone, but for the heads"
    ours = stage.network(x, times.float(), **arguments(name))
    error = relative_error(torch.tensor(some(ours)), torch.tensor(NUMBERS[name]["forward"]))
    within(FAMILY, "single file", f"U-Net forward ({name}), relative", error, 1e-5)


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_the_classifiers_give_the_original_numbers(tmp_path: Path, name: str) -> None:
    x, times, *_ = inputs()
    classifier: NoisyClassifier = open_published(write(tmp_path, name))
    assert classifier.config == classifier_config(name)
    error = relative_error(torch.tensor(some(classifier(x, times.float()))), torch.tensor(NUMBERS[name]["forward"]))
    within(FAMILY, "single file", f"{name}, relative", error, 1e-5)


@pytest.mark.parametrize("name", SAMPLED)
def test_sampling_gives_the_original_images(tmp_path: Path, name: str) -> None:
    """Ten of a thousand steps, the variance the network's own, the noise that of our seeds."""
    stage: Any = diptych.load(write(tmp_path, name, CALM), "cpu")
    _, _, labels, low = inputs()
    prompts, seeds = [str(int(label)) for label in labels], [SEED + number for number in range(BATCH)]
    settings = stage.settings(steps=STEPS)
    cond = stage.text.encode(prompts)
    lows = low if name == "upsampler" else None
    ours, _ = stage.sample((cond, cond), seeds, settings, size=(SIDE, SIDE), low_res=lows)
    theirs = torch.tensor(NUMBERS[name]["picture"])
    apart = (torch.tensor(some(ours)) - theirs).abs().max().item() * 127.5
    within(FAMILY, "single file", f"images of {STEPS} steps ({name}), of 255", apart, 1.0)
    assert theirs.std() > 0.2 and (theirs.abs() < 1).float().mean() > 0.3
    other, _ = stage.sample((stage.text.encode(["2", "3"]),) * 2, seeds, settings, size=(SIDE, SIDE), low_res=lows)
    assert (torch.tensor(some(other)) - theirs).abs().max() * 127.5 > 3, "the class is seen"


def test_generate_paints_as_sampling_does(tmp_path: Path) -> None:
    """Prompts are classes, the defaults are those of the README: 250 steps, a learned variance, nothing guided."""
    stage: Any = diptych.load(write(tmp_path, "classes", CALM), "cpu")
    assert (stage.config.steps, stage.config.sampler, stage.config.guidance) == (250, "ddpm", 1.0)
    assert stage.config.learned_variance and not stage.config.guidable
    result = stage.generate(["1", "7"], seeds=[SEED, SEED + 1], steps=STEPS, guidance=5.0)
    values = torch.from_numpy(np.stack([np.asarray(image) for image in result.images])).permute(0, 3, 1, 2).float()
    theirs = (torch.tensor(NUMBERS["classes"]["picture"]) + 1) * 127.5
    assert (torch.tensor(some(values)) - theirs).abs().max() <= 1
    with pytest.raises(UserError, match="'a dog' is no class of this model: give a number from 0 to 9"):
        stage.generate("a dog")


def test_an_upsampler_enlarges_behind_a_base_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both are told the same class; the smaller image is enlarged as it is, without noise."""
    base, larger = write(tmp_path / "a", "classes", CALM), write(tmp_path / "b", "upsampler", CALM)
    stage: Any = diptych.load(larger, "cpu")
    assert stage.config.low_size == LOW and stage.config.augmentation.kind == "none"
    assert stage.generate("7", low=Image.new("RGB", (LOW, LOW), (200, 30, 30)), steps=4).images[0].size == (SIDE, SIDE)
    assert main(["assemble", str(base), str(larger), "--out", str(tmp_path / "c")]) == 2
    assert "cannot follow" in capsys.readouterr().err  # 16 px are not 8
    base = write(tmp_path / "a", "classes", CALM, pickled=True)
    base.with_suffix(".json").write_text(json.dumps({**facts("classes"), "size": LOW}))
    command = ["assemble", str(base), str(larger), "--out", str(tmp_path / "c")]
    assert main(command) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert main([*command, "--allow-pickle"]) == 0
    cascade: Any = diptych.load(tmp_path / "c", "cpu")
    images = [cascade.generate(word, seeds=[0], steps=4, keep=True).stages for word in ("1", "7")]
    assert [image[0].size for image in images[0]] == [(LOW, LOW), (SIDE, SIDE)]
    assert all(one[0].tobytes() != two[0].tobytes() for one, two in zip(*images, strict=True))


def test_half_precision_paints_nearly_the_same(tmp_path: Path) -> None:
    path = write(tmp_path, "upsampler", CALM)
    low = Image.fromarray(np.random.default_rng(0).integers(0, 256, (LOW, LOW, 3)).astype(np.uint8))
    full, half = (
        np.asarray(diptych.load(path, "cpu", dtype=dtype).generate("7", low=low, steps=4).images[0], dtype=int)
        for dtype in ("float32", "bfloat16")
    )
    assert 0 < np.abs(full - half).max() < 40 and np.abs(full - half).mean() < 4


def test_the_command_line_paints_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path, "classes", pickled=True), tmp_path / "out"
    command = ["generate", "7", "--model", str(path), "--steps", "3", "--device", "cpu", "--out", str(out)]
    assert main(command) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert main([*command, "--allow-pickle"]) == 0
    assert [image.name for image in out.glob("*.png")] == ["7-s0.png"]
    assert describe(path, allow_pickle=True)["networks"] == {
        "network": sum(tensor.numel() for tensor in state("classes").values())
    }


def test_a_classifier_does_not_paint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "classifier, attention")
    assert main(["generate", "7", "--model", str(path), "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    assert "noisy classifier" in capsys.readouterr().err
    count = sum(tensor.numel() for tensor in state("classifier, attention").values())
    assert describe(path)["networks"] == {"classifier": count}


def test_what_was_loaded_can_be_saved_and_opened_again(tmp_path: Path) -> None:
    stage = diptych.load(write(tmp_path, "classes", CALM), "cpu")
    stage.save(tmp_path / "ours")
    again = diptych.load(tmp_path / "ours", "cpu")
    assert again.config == stage.config
    images = [one.generate("3", steps=3).images[0].tobytes() for one in (stage, again)]
    assert images[0] == images[1]


def shapes_of(layout: Any, network: torch.nn.Module) -> Any:
    """A source of the shapes of a network by the published keys, with no file behind it."""
    tensors = published(layout, network.state_dict())
    return SimpleNamespace(path=Path("model.pt"), checkpoint=LazyCheckpoint.of(tensors, "model.pt"))


@pytest.mark.parametrize("name", RECIPES)
def test_published_guided_diffusion_files_are_recognised_by_shapes(name: str) -> None:
    """At full size; attention is at 32, 16 and 8 pixels, but for one upsampler."""
    system = RECIPES[name].system
    assert isinstance(system, PixelTraining) and isinstance(system.model.network, AdmUNetConfig)
    model = dataclasses.replace(system.model, network=dataclasses.replace(system.model.network, dropout=0.0))
    with torch.device("meta"):
        network = AdmUNet(system.model.network)
        config, older = stage_config(shapes_of(compvis_adm(network), network))
    assert config == dataclasses.replace(model, steps=config.steps) and older == (name != "adm-64")
    assert config.size // 2 ** max(system.model.network.attention_levels) == (16 if name == "adm-128-512" else 8)


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_published_classifiers_are_recognised_by_shapes(size: int) -> None:
    network = RECIPES[f"adm-{size}"].system.model.network  # type: ignore[union-attr]
    encoder = AdmUNetConfig(
        channels=128,
        multipliers=network.multipliers,
        blocks=4 if size == 64 else 2,
        attention_levels=network.attention_levels,  # type: ignore[union-attr]
    )
    expected = NoisyClassifierConfig(encoder=encoder, size=size)
    with torch.device("meta"):
        classifier = NoisyClassifier(expected)
        source = shapes_of(classifier_layout(classifier, True), classifier)
        found, older = read_classifier_config(source)
    assert (found, older) == (expected, True)


def test_a_classifier_with_strided_convolutions_is_recognised(tmp_path: Path) -> None:
    encoder = dataclasses.replace(classifier_config("classifier, adaptive").encoder, residual_resampling=False)
    expected = NoisyClassifierConfig(encoder=encoder, pool="adaptive", size=None)
    with torch.device("meta"):
        classifier = NoisyClassifier(expected)
        source = shapes_of(classifier_layout(classifier, True), classifier)
    source.path = tmp_path / "model.pt"
    source.path.with_suffix(".json").write_text('{"head_width": 32}')
    assert read_classifier_config(source) == (expected, True)


def test_steps_are_respaced_as_there() -> None:
    """`space_timesteps(1000, "n")`: from the first to the last, evenly, rounded."""
    schedule = LINEAR.build()
    for steps in (2, 3, 10, 25, 27, 50, 100, 250, 1000):
        stride, at, theirs = 999 / (steps - 1), 0.0, []
        for _ in range(steps):
            theirs.append(round(at))
            at += stride
        ours = TimesConfig(spacing="linspace").times(schedule, steps, "ddpm") * 1000 - 1
        assert ours.round().long().tolist()[:-1] == theirs[::-1]
        assert ours[-1] == -1  # the image


# What is refused


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda tensors: tensors.pop("input_blocks.1.0.out_layers.0.bias"), "out_layers.0.bias' is missing"),
    "extra": (lambda tensors: tensors.update(surprise=torch.zeros(2)), "unexpected key 'surprise'"),
    "shape": (lambda tensors: tensors.update({"out.2.bias": torch.zeros(5)}), "has shape (5,)"),
    "inner": (lambda tensors: tensors.pop("time_embed.2.weight"), "time_embed.2.weight' is missing"),
    "nan": (lambda tensors: tensors["label_emb.weight"].fill_(torch.nan), "'label_emb.weight' holds NaN"),
    "attention": (
        lambda tensors: [tensors.pop(key) for key in list(tensors) if "blocks.7.1." in key],
        "have attention, others not",
    ),
    "untrained": (lambda tensors: tensors["out.2.weight"].zero_(), "was never trained"),
}


@pytest.mark.every(2)
@pytest.mark.parametrize("case", REFUSED)
def test_a_damaged_file_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    tensors = state("classes")
    change, message = REFUSED[case]
    change(tensors)
    path = write(tmp_path, "classes")
    save_safetensors(tensors, path)
    with pytest.raises(UserError) as raised:
        diptych.load(path, "cpu")
    assert message in str(raised.value) and str(path) in str(raised.value)


def test_an_unpublished_shape_has_to_be_explained(tmp_path: Path) -> None:
    path = write(tmp_path, "classes")
    beside = path.with_suffix(".json")
    beside.unlink()
    with pytest.raises(UserError, match=r"64 channels times \[0.5, 1, 2\].*model.json must say at least size,"):
        diptych.load(path, "cpu")
    beside.write_text('{"size": 16, "num_heads": 2}')
    with pytest.raises(UserError, match=r"model.json: Facts has no field 'num_heads'"):
        diptych.load(path, "cpu")
    beside.write_text('{"size": 15, "head_width": 32}')
    with pytest.raises(UserError, match=r"model.safetensors: PixelDiffusionConfig.size must be a multiple of 4"):
        diptych.load(path, "cpu")
    beside.write_text(json.dumps(dataclasses.replace(Facts(), size=16, head_width=48).to_dict()))
    with pytest.raises(UserError, match=r"head_width must divide the 128 channels"):
        diptych.load(path, "cpu")


def test_what_is_said_takes_the_place_of_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    known = PUBLISHED[3, 192, (1, 2, 3, 4), (1, 2, 3)]
    source: Any = SimpleNamespace(path=path.with_suffix(".pt"))
    assert read_facts(source, known) == known
    path.write_text('{"heads": 4, "names": ["cat", "dog"]}')
    assert read_facts(source, known) == dataclasses.replace(known, heads=4, head_width=None, names=("cat", "dog"))


def test_classes_may_have_names(tmp_path: Path) -> None:
    path = write(tmp_path, "classes", CALM)
    names = [f"kind {letter}" for letter in "abcdefghij"]
    path.with_suffix(".json").write_text(json.dumps({**facts("classes"), "names": names}))
    stage: Any = diptych.load(path, "cpu")
    named, numbered = (stage.generate(word, steps=2).images[0].tobytes() for word in ("Kind H", "7"))
    assert named == numbered
