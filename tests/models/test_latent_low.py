"""Latent models that enlarge: what they learn from, what they take, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import diptych
from diptych.cli.describe import describe
from diptych.cli.option_checks import accepted_options
from diptych.conditioning.concat import at_latent_size
from diptych.conditioning.concat_config import DegradationConfig, LowResConcat
from diptych.conditioning.degradations import degrade
from diptych.core.errors import UserError
from diptych.core.images import to_tensor
from diptych.core.random import CONCAT, GeneratorDraws
from diptych.models.latent_diffusion import LatentConfig, LatentDiffusion
from diptych.networks.autoencoder import AutoencoderConfig
from diptych.networks.unet import UNetConfig
from diptych.recipes import get
from diptych.training.tasks.diffusion import DiffusionTask, DiffusionTraining
from tests.models.latents import AUTOENCODER, SIZE, arrays, autoencoder, system, toy_batch
from tests.networks.reference import randomised

FACTOR, LOW = 2, SIZE // 2


def config(factor: int = FACTOR, **changes: Any) -> LatentConfig:
    low = LowResConcat(factor=factor, **changes.pop("low", {}))
    unet = UNetConfig(
        channels=16,
        multipliers=(1, 2),
        blocks=1,
        attention_levels=(1,),
        heads=2,
        concat_channels=low.channels(AUTOENCODER),
        context_width=None,
        norm_groups=8,
    )
    values = {"autoencoder": AUTOENCODER, "unet": unet, "concat": low, "text": None, "size": SIZE, "steps": 3}
    return LatentConfig(**{**values, **changes})


def enlarging(**changes: Any) -> LatentDiffusion:
    model = LatentDiffusion(config(**changes), autoencoder(), None)
    randomised(model.unet, seed=2)
    model.scale.fill_(0.5)
    return model.eval()


def picture(width: int = LOW, height: int = LOW, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_small_pixels_stand_where_the_latents_of_their_square_do() -> None:
    low, factor_8 = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6), AutoencoderConfig(multipliers=(1, 1, 1, 1))
    found = at_latent_size(low, 4, factor_8)  # a latent stands for 8 px, a small pixel for 4
    assert found.shape == (2, 12, 2, 3)
    for y in range(2):
        for x in range(3):
            assert torch.equal(found[:, :, y, x], low[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten(1))
    assert torch.equal(at_latent_size(low, 8, factor_8), low)
    assert torch.equal(at_latent_size(low, 16, factor_8)[:, :, 3, 5], low[:, :, 1, 2])


def test_it_learns_from_images_made_small_by_their_own_seeds() -> None:
    how = DegradationConfig(kind="bsr-light")
    model, batch = enlarging(low={"degradation": how}), toy_batch([3, 8])
    _, cond = model.prepare(batch, GeneratorDraws(batch["seed"]), torch.zeros(2, dtype=torch.bool))
    expected = at_latent_size(degrade(batch["picture"], FACTOR, how, batch["seed"]), FACTOR, AUTOENCODER)
    assert list(cond) == ["concat"] and torch.equal(cond["concat"], expected)


def test_it_may_be_shown_the_latent_of_what_is_enlarged_bicubically() -> None:
    """In training and at sampling alike, but for the posterior's noise, which each seed draws."""
    model, batch = enlarging(low={"with_latent": True}), toy_batch([3, 8])
    batch["picture"] = batch["picture"].sign()  # so that bicubic overshoots
    _, cond = model.prepare(batch, GeneratorDraws(batch["seed"]), torch.zeros(2, dtype=torch.bool))
    low = degrade(batch["picture"], FACTOR, DegradationConfig(), batch["seed"])
    larger = functional.interpolate(low, scale_factor=FACTOR, mode="bicubic").clamp(-1, 1)
    latent = model.encode(larger, GeneratorDraws(batch["seed"]), CONCAT)
    expected = torch.cat([at_latent_size(low, FACTOR, AUTOENCODER), latent], 1)
    assert torch.equal(cond["concat"], expected) and larger.amax() == 1 and larger.amin() == -1
    asked: list[torch.Tensor] = []
    model.unet.register_forward_pre_hook(lambda _, given, named: asked.append(named["concat"]), with_kwargs=True)
    pictures = arrays(model.generate(["a", "b"], seeds=[3, 8], low=low))
    assert all(torch.equal(one, expected) for one in asked) and asked
    alone = arrays(model.generate("b", seeds=[8], low=low[1:]))
    assert np.abs(alone[0] - pictures[1]).max() <= 1
    wide = model.generate("a", low=picture(LOW + 24, 16), tile=2 * LOW).metadata[0]
    assert wide["size"] == [2 * LOW + 48, 32] and wide["tile"] == 2 * LOW


def test_what_it_is_shown_is_the_small_image() -> None:
    """Painted by hand: the network is asked with the image beside the noise, and with nothing else."""
    model, low = enlarging(), picture()
    asked: list[torch.Tensor] = []
    model.unet.register_forward_pre_hook(lambda _, given, named: asked.append(named["concat"]), with_kwargs=True)
    result = model.generate("a", seeds=[4], low=low)
    assert result.images[0].size == (SIZE, SIZE)
    assert all(torch.equal(one, at_latent_size(to_tensor([low]), FACTOR, AUTOENCODER)) for one in asked) and asked
    told = result.metadata[0]
    assert "sha256" in told["low"] and told["guidance"] == 1 and told["size"] == [SIZE, SIZE]


def test_images_tensors_and_files_are_read_alike(tmp_path: Path) -> None:
    model, low = enlarging(), picture()
    low.save(tmp_path / "low.png")
    expected = arrays(model.generate(["a", "b"], seeds=[1, 2], low=[low, low]))
    for given in (low, tmp_path / "low.png", to_tensor([low]), to_tensor([low, low])):
        assert np.array_equal(arrays(model.generate(["a", "b"], seeds=[1, 2], low=given)), expected)
    other = arrays(model.generate("b", seeds=[2], low=picture(seed=1)))
    assert np.abs(other[0] - expected[1]).max() > 2, "the picture matters"
    alone = arrays(model.generate("anything else", seeds=[2], low=low))
    assert np.abs(alone[0] - expected[1]).max() <= 1, "neither the words nor the neighbours do"


@pytest.mark.parametrize(("size", "made"), (((12, 10), (24, 20)), ((LOW + 24, 16), (2 * LOW + 48, 32))))
def test_images_of_other_sizes_than_in_training(size: tuple[int, int], made: tuple[int, int]) -> None:
    result = enlarging().generate("a", low=picture(*size))
    assert result.images[0].size == made and result.metadata[0]["size"] == list(made)


def test_an_image_of_odd_sides_is_enlarged_at_its_own_size() -> None:
    model = enlarging()
    assert model.generate("a", low=picture(11, 9)).images[0].size == (22, 18)
    assert model.generate("a", low=torch.zeros(1, 3, 11, 9)).images[0].size == (18, 22)


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({}, "this model makes images 2 times as large: give it the one to enlarge, --low"),
        ({"low": "x", "size": (SIZE, SIZE)}, "size does not go with low"),
        ({"low": "x", "image": picture()}, "image does not go with low"),
        ({"low": "x", "mask": torch.ones(1, 1, SIZE, SIZE)}, "mask does not go with low_res"),
        ({"low": "x", "strength": 0.5}, "strength does not go with low"),
        ({"low": "x", "paste": True}, "paste does not go with low"),
        ({"low": [picture(), picture(), picture()]}, "one low-resolution image for all 2 prompts or one for each"),
        ({"low": [picture(), picture(12)]}, "the low-resolution images have different shapes"),
        ({"low": torch.full((1, 3, 8, 8), 2.0)}, "values of low_res must lie between -1 and 1"),
        ({"low": "missing.png"}, "missing.png is no file"),
    ),
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        enlarging().generate(["a", "b"], **options)


def test_a_model_that_does_not_enlarge_takes_no_small_image() -> None:
    model = system()
    with pytest.raises(UserError, match="not trained to enlarge images: leave --low-res"):
        model.generate("a red picture", low=picture())
    with pytest.raises(UserError, match="--low-res is for models that enlarge images, and the model mine is none"):
        accepted_options(model, "mine", {"low_res": "x"})
    assert list(accepted_options(enlarging(), "mine", {"low_res": "x"}).values()) == ["x"]
    with pytest.raises(UserError, match="--augmentation is for pixel models that enlarge images"):
        accepted_options(enlarging(), "mine", {"augmentation": 0.1})


@pytest.mark.parametrize("factor", (3, 5))
def test_factors_that_do_not_fit_the_first_stage_are_refused(factor: int) -> None:
    with pytest.raises(UserError, match=r"concat.factor must divide size \(16\)"):
        config(factor)


def test_it_is_saved_and_opened_again(tmp_path: Path) -> None:
    model = enlarging(low={"degradation": DegradationConfig(kind="bsr")})
    model.save(tmp_path)
    opened = diptych.load(tmp_path, "cpu")
    assert opened.config == model.config and opened.low_size == LOW
    assert np.array_equal(arrays(opened.generate("a", low=picture())), arrays(model.generate("a", low=picture())))


def test_training_shows_what_it_makes_of_small_images() -> None:
    model, batch = enlarging(), toy_batch([3, 8])
    task = DiffusionTask(model, DiffusionTraining())
    assert task.samples() is None, "nothing to show before it has validated"
    task.validation(batch)
    sheet = to_tensor([task.samples()])[0]
    shown = to_tensor([Image.fromarray(one) for one in np.asarray(task.samples())[None]])[0][:, :SIZE, :SIZE]
    low = degrade(batch["picture"], FACTOR, DegradationConfig(), batch["seed"])
    assert torch.equal(shown, low[0].repeat_interleave(2, 1).repeat_interleave(2, 2))
    truth = sheet[:, 2 * (SIZE + 2) : 2 * (SIZE + 2) + SIZE, :SIZE]
    torch.testing.assert_close(truth, batch["picture"][0], atol=1 / 127, rtol=0)
    made = model.generate(batch["caption"], seeds=[3, 8], low=low).images[0]
    assert torch.equal(sheet[:, SIZE + 2 : 2 * SIZE + 2, :SIZE], to_tensor([made])[0])


def test_ldm_sr_has_the_published_size() -> None:
    """169 M parameters in the paper's table 5, the first stage among them; and of the U-Net as many as in the
    reference library, in whose layout the same model is published."""
    from diffusers import UNet2DModel

    with torch.device("meta"):
        reference = UNet2DModel(
            in_channels=6,
            out_channels=3,
            block_out_channels=(160, 320, 320, 640),
            layers_per_block=2,
            attention_head_dim=32,
            down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        )
    counted = describe("ldm-sr")
    assert counted["networks"]["unet"] == sum(p.numel() for p in reference.parameters()) == 113_622_563
    assert round(counted["total"] / 1e6) == 169


def test_our_recipes_differ_in_how_images_become_small_alone() -> None:
    plain, spoiled = (get(f"emoji-super-resolution{kind}").system for kind in ("", "-bsr"))
    values, others = plain.to_dict(), spoiled.to_dict()
    assert values["model"]["concat"].pop("degradation") == {"kind": "bicubic"}
    assert others["model"]["concat"].pop("degradation") == {"kind": "bsr-light"}
    assert values == others
