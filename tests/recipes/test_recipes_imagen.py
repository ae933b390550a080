"""The recipes of pixel diffusion: as the papers record them, and each runs forward and backward at its full depth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import diptych
from benchmarks import full_size
from benchmarks.full_size import count, narrowed, stage
from diptych.cli import main as cli
from diptych.cli.describe import describe
from diptych.core.errors import UserError
from diptych.encoders.base import TextEmbedding
from diptych.encoders.configs import T5Config
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.efficient_unet import EfficientUNetConfig
from diptych.recipes import get
from diptych.recipes.papers.imagen import RECIPES
from diptych.training import experiment as run
from diptych.training.adafactor import moment_shapes
from diptych.training.experiment_config import PixelTraining
from diptych.training.learning_rate import learning_rate_at
from diptych.training.optim import build_optimizer
from diptych.training.tasks.diffusion import DiffusionTask
from tests.models.latents import write_images
from tests.models.stages import toy_batch
from tests.networks.reference import noise

T5_XXL = 4_762_310_656
IMAGEN = {
    # recipe: parameters that the paper states, about; size, low size, what is cut; optimizer; schedule; guidance
    "imagen-base": (2.0e9, (64, None, None), "adafactor", "cosine", 1.35),
    "imagen-sr-256": (600e6, (256, 64, None), "adam", "cosine", 8.0),
    "imagen-sr-1024": (400e6, (1024, 256, 256), "adam", "linear", 8.0),
}


GLIDE = ("glide-base", "glide-base-inpainting", "glide-upsampler-inpainting")


@pytest.mark.parametrize("name", IMAGEN)
def test_imagens_stages_are_the_papers(name: str) -> None:
    about, sizes, optimizer, schedule, guidance = IMAGEN[name]
    recipe = get(name)
    assert isinstance(recipe.system, PixelTraining)
    model, training = recipe.system.model, recipe.training
    described = describe(name)["networks"]
    assert described["text"] == T5_XXL
    # The paper rounds; its last two cannot both be met (see the recipe), the other two within a sixth.
    assert described["network"] == pytest.approx(about, rel=0.38 if name == "imagen-sr-1024" else 1 / 6)
    assert (model.size, model.low_size, recipe.data.crop) == sizes
    assert (training.optimizer, model.schedule.kind, model.guidance) == (optimizer, schedule, guidance)
    assert (training.learning_rate, training.warmup, training.schedule) == (1e-4, 10_000, "cosine")
    assert learning_rate_at(training.warmup - 1, training) == 1e-4
    assert learning_rate_at(training.steps - 1, training) < 1e-10
    assert recipe.system.diffusion.caption_dropout == 0.1
    assert model.prediction == "eps"
    assert (model.threshold.kind, model.threshold.percentile, model.threshold.cap) == ("dynamic", 0.995, None)
    assert not model.schedule.build().discrete, "all are trained at continuous times (appendix F)"


def test_the_networks_of_imagens_stages_are_those_of_appendix_f() -> None:
    base, middle, last = (stage(name).network for name in IMAGEN)
    assert isinstance(base, AdmUNetConfig)
    assert [64 >> level for level in base.attention_levels] == [32, 16, 8]
    assert base.residual_resampling and base.scale_shift and base.self_attention
    assert base.text_pooling_heads and base.pooled_width is None
    for network, own in ((middle, (3,)), (last, ())):
        assert isinstance(network, EfficientUNetConfig)
        assert (network.self_attention_levels, network.cross_attention_levels) == (own, (3,))
        assert network.scale_shift and network.text_pooling_heads and network.pooled_width is None
        assert network.level_heads(3) == (8, 2 * network.level_channels(3) // 8)
        assert network.feed_forward == 0


def test_the_optimizer_of_the_base_keeps_little() -> None:
    """Adam keeps two numbers a parameter, PyTorch's Adafactor 1.1 of imagen-base; ours the sums of its kernels."""
    with torch.device("meta"):
        network = stage("imagen-base").network.build()
    parameters = list(network.parameters())
    state = sum(shape.numel() for p in parameters for shape in moment_shapes(p.shape).values())
    assert state < 0.01 * 2 * sum(p.numel() for p in parameters)


def test_ddpm_has_the_published_size_but_for_its_attention() -> None:
    """Ho et al. give 35.7 M; in each of six attentions ours has two projections and a norm more, three biases less."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    with torch.device("meta"):
        theirs = UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            attention_head_dim=None,
        )
    published = sum(p.numel() for p in theirs.parameters())
    assert published == pytest.approx(35.7e6, abs=0.05e6)
    attention = 2 * (256 * 256 + 256) + 2 * 256 - 3 * 256
    assert count(stage("ddpm").network) == published + 6 * attention


@pytest.mark.parametrize(("name", "stated"), [("sr3", 550e6), ("sr3-imagenet", 625e6)])
def test_sr3_is_the_papers(name: str, stated: float) -> None:
    system = get(name).system
    assert isinstance(system, PixelTraining) and isinstance(network := system.model.network, AdmUNetConfig)
    assert count(network) == pytest.approx(stated, rel=0.02)
    assert network.residual_scale == pytest.approx(2**-0.5) and network.residual_resampling
    assert (system.diffusion.objective.loss, system.model.variance) == ("l1", "fixed-large")
    schedule = system.model.schedule.build()
    times = torch.linspace(0.1, 1, 7, dtype=torch.float64)
    assert torch.allclose(schedule.network_time(times) / schedule.steps, schedule.alpha_sigma(times)[0] ** 2)


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_narrowed_keeps_its_depth(name: str) -> None:
    network = stage(name).network
    narrow = narrowed(network, 16)
    assert count(narrow) < count(network) / 100
    assert (narrow.blocks, narrow.multipliers) == (network.blocks, network.multipliers)


class Numbers:
    """A text encoder of any width: random numbers for each word."""

    def __init__(self, width: int) -> None:
        self.width, self.max_tokens = width, 8

    def encode(self, prompts: list[str]) -> TextEmbedding:
        rows = [noise(len(prompt.split()), self.width, seed=len(prompt)) for prompt in prompts]
        sequence = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        return TextEmbedding.from_sequence(sequence, torch.arange(sequence.shape[1]) < lengths[:, None])


@pytest.mark.every(3)
@pytest.mark.parametrize("name", [*RECIPES, *GLIDE])
def test_each_takes_a_training_step_at_full_depth(name: str) -> None:
    """Its own objective, low-resolution image, masks, null text and optimizer, on narrow layers."""
    recipe, config = get(name), stage(name)
    network = narrowed(config.network, 16)
    text = None if config.text is None else T5Config(width=network.context_width or 0)
    factor = config.factor
    small = dataclasses.replace(
        config, network=network, text=text, null_text="zeros", size=32, low_size=None if factor == 1 else 32 // factor
    )
    torch.manual_seed(0)
    model = PixelDiffusion(small, None if text is None else Numbers(text.width))
    with torch.no_grad():
        for p in model.parameters():  # what starts at zero would stop the gradient
            if not p.any():
                p.normal_(std=0.02)
    assert isinstance(recipe.system, PixelTraining)
    optimizer = build_optimizer(model, recipe.training)
    before = [p.detach().clone() for p in model.parameters()]
    losses, _ = DiffusionTask(model, recipe.system.diffusion).loss(toy_batch([3, 1], 32))
    losses.mean().backward()
    optimizer.step()
    assert losses.isfinite().all()
    still = [n for (n, p), old in zip(model.named_parameters(), before, strict=True) if torch.equal(p, old)]
    assert not still and all(p.isfinite().all() for p in model.parameters())


def test_the_benchmark_runs_narrow_what_does_not_fit(tmp_path: Path, capsys) -> None:
    told = full_size.one("ddpm", crop=16, memory=0.01, device="cpu", dtype="float32")
    assert told["ran"] == "full depth, width / 8"
    assert told["ran_parameters"] < told["parameters"] == count(stage("ddpm").network)
    assert told["missed"] == []
    lines = full_size.table([told]).splitlines()
    assert lines[-1].startswith("| ddpm | 36,534,275 |")
    assert len({line.count("|") for line in lines}) == 1


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "pictures"
    write_images(folder)
    return folder


def test_a_stage_that_reads_t5_says_what_is_missing(pictures: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    recipe = get("imagen-base").override([f"data.path={pictures}"])
    with pytest.raises(UserError, match=r"no T5 at None: set text\.path") as caught:
        run.train(recipe, tmp_path / "run")
    assert "\n" not in str(caught.value)


NARROW = ("channels=8", "multipliers=1,2", "blocks=1", "attention_levels=1", "norm_groups=4", "dropout=0")
TINY = [
    *(f"system.model.network.{change}" for change in NARROW),
    *("training.steps=3", "training.batch_size=4", "training.device=cpu", "training.threads=1", "training.warmup=1"),
    *("training.learning_rate=1e-2", "training.validate_every=0", "training.sample_every=0"),
]


@pytest.mark.parametrize(("name", "size"), [("ddpm", ["16"]), ("sr3", ["16", "4"])])
def test_images_without_words(pictures: Path, tmp_path: Path, name: str, size: list[str]) -> None:
    """DDPM and SR3 on the same parts: trained on a few images by the command line, opened, asked for more."""
    assert stage(name).text is None
    fields = [f"system.model.size={size[0]}", f"data.size={size[0]}", *(f"system.model.low_size={s}" for s in size[1:])]
    settings = [*TINY, *fields, f"data.path={pictures}"]
    assert cli.main(["train", name, "--run", str(tmp_path / "run"), *settings]) == 0
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses
    model: Any = diptych.load(str(tmp_path / "run"))
    low: dict[str, Any] = {"low": sorted(pictures.rglob("*.png"))[0]} if name == "sr3" else {}
    first, again = (model.generate("a picture", seeds=[3], steps=3, **low).images[0] for _ in range(2))
    assert first.size == (16, 16)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != model.generate("a picture", seeds=[4], steps=3, **low).images[0].tobytes()
