"""Training a model that repaints: it is fed what it is shown when it paints, and its recipes are those published."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from diptych.cli.describe import describe
from diptych.conditioning.concat_config import MaskConcat, MaskConfig
from diptych.conditioning.masks import smooth_fill
from diptych.core.errors import UserError
from diptych.core.images import to_images, to_tensor
from diptych.core.random import CONCAT, GeneratorDraws
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.networks.adm_config import AdmUNetConfig
from diptych.recipes import get
from diptych.training.experiment_config import LatentTraining
from diptych.training.tasks.diffusion import DiffusionTask, DiffusionTraining
from tests.models.latents import AUTOENCODER, SIZE, autoencoder, config, system, toy_batch
from tests.networks.reference import randomised

BESIDE = MaskConcat(masks=MaskConfig(thin=0, medium=0))
NOTHING: dict[str, Any] = {"concat_channels": 5, "context_width": None, "pooled_width": None}


def repainter(words: bool = False) -> LatentDiffusion:
    """A model that repaints, told the image alone, or words too."""
    if words:
        return system(unet=config().unet.override(["concat_channels=5"]), concat=BESIDE)
    unet = config().unet.override([f"{name}={'none' if value is None else value}" for name, value in NOTHING.items()])
    told = config().override(["guidance=1"]).to_dict() | {
        "text": None,
        "unet": unet.to_dict(),
        "concat": BESIDE.to_dict(),
    }
    model = LatentDiffusion(type(config()).from_dict(told), autoencoder(), None)
    randomised(model.unet, seed=2)
    model.scale.fill_(0.5)
    return model.eval()


def batch(seeds: list[int]) -> dict[str, Any]:
    """Of images in 8 bits, as files hold them."""
    made = toy_batch(seeds)
    return {**made, "picture": to_tensor(to_images(made["picture"]))}


@pytest.mark.parametrize("fill", ["grey", "smooth"])
@pytest.mark.parametrize("fine", [False, True])
def test_what_is_shown_is_the_mask_and_the_rest_of_the_image(fill: Any, fine: bool) -> None:
    shape = MaskConcat(masks=BESIDE.masks, fill=fill, full_resolution_mask=fine)
    model, given = repainter(), batch([3, 8])
    condition = shape.build(AUTOENCODER)
    masks = condition.drawn(given["picture"], given["seed"])
    seen: list[torch.Tensor] = []

    def latents(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return model.encode(images, GeneratorDraws(given["seed"]), CONCAT)

    found = condition.from_training(given["picture"], masks, latents)
    assert found.shape == (2, shape.channels(AUTOENCODER), SIZE // 2, SIZE // 2)
    hole, own = masks.bool().expand_as(seen[0]), found[:, : 4 if fine else 1]
    assert torch.equal(seen[0][~hole], given["picture"][~hole]) and (fill == "smooth" or (seen[0][hole] == 0).all())
    assert torch.equal(own, torch.nn.functional.pixel_unshuffle(masks, 2) if fine else masks[..., ::2, ::2])
    hidden = torch.where(masks.bool(), -given["picture"], given["picture"])
    assert torch.equal(condition.from_training(hidden, masks, latents), found), "what is hidden"


def test_a_smooth_fill_takes_the_colours_around() -> None:
    ramp = torch.linspace(-1, 1, 24).view(1, 1, 1, 24).expand(1, 3, 20, 24)
    mask = torch.zeros(1, 1, 20, 24)
    mask[..., 5:15, 8:16] = 1
    filled = smooth_fill(ramp, mask)
    assert (filled - ramp).abs().max() < 0.3 and torch.equal(filled[..., :8], ramp[..., :8])
    flat = torch.full((2, 3, 20, 24), 0.3)
    torch.testing.assert_close(smooth_fill(flat, torch.cat([mask, 1 - mask])), flat)
    assert torch.equal(smooth_fill(flat, torch.ones(1, 1, 20, 24)), torch.zeros_like(flat))
    both = smooth_fill(torch.cat([ramp, flat[:1]]), mask)
    torch.testing.assert_close(both[:1], filled)


@pytest.mark.parametrize("words", [False, True])
def test_training_feeds_what_generate_feeds(words: bool) -> None:
    """The same image, mask and seed: the same mask, the same noise of the posterior, to the bit."""
    model, given, rows = repainter(words), batch([3, 8, 12]), []
    none = torch.zeros(3, dtype=torch.bool)
    x0, cond = model.prepare(given, GeneratorDraws(given["seed"]), none)
    masks = BESIDE.build(AUTOENCODER).drawn(given["picture"], given["seed"])
    run_unet = model.unet.forward

    def spy(*positional: Any, concat: torch.Tensor, **more: Any) -> torch.Tensor:
        rows.append(concat)
        return run_unet(*positional, concat=concat, **more)

    model.unet.forward = spy  # type: ignore[method-assign]
    model.generate(given["caption"], seeds=given["seed"].tolist(), image=given["picture"], mask=masks)
    assert cond["concat"].shape == (3, 5, SIZE // 2, SIZE // 2) and x0.shape == (3, 4, SIZE // 2, SIZE // 2)
    torch.testing.assert_close(rows[0][:3], cond["concat"], rtol=0, atol=1e-6)
    assert torch.equal(cond["concat"][:, :1], masks[..., ::2, ::2]), "at each place its first pixel"
    assert ("context" in cond) == words


def test_masked_pixels_are_in_the_target_and_not_in_the_condition() -> None:
    model, given = repainter(), batch([3, 8])
    masks = BESIDE.build(AUTOENCODER).drawn(given["picture"], given["seed"])
    other = {**given, "picture": torch.where(masks.bool(), -given["picture"], given["picture"])}
    none = torch.zeros(2, dtype=torch.bool)
    (x0, cond), (x1, seen) = (model.prepare(one, GeneratorDraws(one["seed"]), none) for one in (given, other))
    assert torch.equal(cond["concat"], seen["concat"]) and not torch.allclose(x0, x1)


def test_an_example_is_prepared_alike_in_any_batch() -> None:
    model, none = repainter(), torch.zeros(3, dtype=torch.bool)
    together, alone = batch([3, 8, 12]), batch([8])
    (_, cond), (_, own) = (
        model.prepare(one, GeneratorDraws(one["seed"]), none[: len(one["seed"])]) for one in (together, alone)
    )
    torch.testing.assert_close(cond["concat"][1:2], own["concat"], rtol=0, atol=1e-5)


def test_its_gradients_reach_the_channels_of_mask_and_masked_latent_alone() -> None:
    model, given = repainter().train(), batch([3, 8])
    losses, _ = DiffusionTask(model, DiffusionTraining(caption_dropout=0.0)).loss(given)
    losses.mean().backward()
    kernel = model.unet.conv_in.weight.grad
    assert kernel is not None and (kernel.abs().amax((0, 2, 3)) > 0).all(), "of all 4 + 1 + 4 channels"
    assert all(p.grad is None for p in model.autoencoder.parameters())


def test_the_grid_shows_masked_images_painted_ones_and_the_truth() -> None:
    model, given = repainter(), batch([3, 8])
    task = DiffusionTask(model, DiffusionTraining(caption_dropout=0.0))
    assert task.samples() is None, "nothing to repaint was seen yet"
    task.validation(given)
    grid = task.samples()
    assert isinstance(grid, Image.Image) and grid.size == (2 * SIZE + 2, 3 * SIZE + 4)
    rows = [to_tensor([grid.crop((0, top, SIZE, top + SIZE))])[0] for top in (0, SIZE + 2, 2 * SIZE + 4)]
    hole = BESIDE.build(AUTOENCODER).drawn(given["picture"], given["seed"])[0, 0].bool()
    torch.testing.assert_close(rows[2], given["picture"][0], rtol=0, atol=1e-6)
    assert torch.equal(rows[0][:, ~hole], rows[2][:, ~hole]) and rows[0][:, hole].abs().max() < 0.01


def test_its_images_cannot_be_precomputed() -> None:
    recipe = get("emoji-inpainting")
    with pytest.raises(UserError, match="precomputed must be none"):
        recipe.override(["system.precomputed=cache/x"])


def test_emoji_inpainting_is_the_default_unet_with_concat_in_place_of_text() -> None:
    ours, default = (get(name).system for name in ("emoji-inpainting", "emoji-latent"))
    assert isinstance(ours, LatentTraining) and isinstance(default, LatentTraining)
    assert ours.model.repaints and ours.init_from == ours.autoencoder == "latent"
    changed = {"concat_channels": 72, "context_width": None, "pooled_width": None}
    assert ours.model.unet.to_dict() == {**default.model.unet.to_dict(), **changed}
    for field in ("autoencoder", "schedule", "prediction", "times", "size", "sampler"):
        assert getattr(ours.model, field) == getattr(default.model, field)


def test_latent_diffusion_of_full_size() -> None:
    """Rombach et al. 2022, section 4.5: 387 M parameters; the first stage without attention, the U-Net with it on three
    levels."""
    described, system = describe("ldm-inpainting"), get("ldm-inpainting").system
    assert isinstance(system, LatentTraining) and isinstance(system.model.unet, AdmUNetConfig)
    assert described["networks"]["unet"] == 387_245_827
    assert described["networks"]["autoencoder"] == describe("vq-f4-noattn")["networks"]["autoencoder"]
    assert not system.model.autoencoder.attention and len(system.model.unet.attention_levels) == 3
