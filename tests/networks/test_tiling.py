"""Tiles: as the reference blends them, exact where the overlap covers the receptive field, and without a seam."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.tiling import Tiling, decode, in_tiles, moments
from diptych.networks.tiny_decoder import TinyDecoder, TinyDecoderConfig
from diptych.pretrained.key_map import published
from diptych.pretrained.load import open_autoencoder
from diptych.pretrained.stable_diffusion.state_dict_keys import diffusers_autoencoder
from tests.networks.reference import noise, randomised, relative_error
from tests.parity import within

SMALL = AutoencoderConfig(channels=8, multipliers=(1, 2), blocks=1, norm_groups=4)


def pair(config: AutoencoderConfig, tile: int):
    """Ours and diffusers' with the same random weights, theirs set to tiles of so many pixels."""
    diffusers = pytest.importorskip("diffusers")
    levels = len(config.multipliers)
    theirs = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.channels * m for m in config.multipliers),
        layers_per_block=config.blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
    ).eval()
    ours = randomised(Autoencoder(config))
    theirs.load_state_dict(published(diffusers_autoencoder(config), ours.state_dict()), strict=True)
    theirs.enable_tiling()
    theirs.tile_sample_min_size, theirs.tile_latent_min_size = tile, tile // config.factor
    return ours, theirs


@pytest.mark.parametrize("size", [(64, 32), (40, 72), (36, 54), (32, 32)], ids=str)
@torch.no_grad()
def test_tiles_are_blended_as_in_diffusers(size: tuple[int, int]) -> None:
    ours, theirs = pair(SMALL, 32)
    tiling = Tiling(side=16, overlap=4, last="cut")
    latents, images = noise(2, 4, *(side // 2 for side in size)), noise(2, 3, *size).clamp(-1, 1)
    assert relative_error(decode(ours, latents, tiling), theirs.decode(latents).sample) <= 1e-5
    assert relative_error(moments(ours, images, tiling), theirs.encode(images).latent_dist.parameters) <= 1e-5
    if max(size) > 32:
        assert relative_error(decode(ours, latents), theirs.decode(latents).sample) > 1e-3, "tiles change something"


@pytest.mark.slow
@torch.no_grad()
def test_tiled_stable_diffusion_autoencoder_matches_diffusers() -> None:
    """Whole and in tiles, both ways, at the published shape with random weights."""
    ours, theirs = pair(AutoencoderConfig(), 128)
    latents, images = noise(1, 4, 24, 16), noise(1, 3, 192, 128).clamp(-1, 1)
    tiling = Tiling(side=16, overlap=4, last="cut")
    for how, tiles in (("in tiles", tiling), ("whole", None)):
        theirs.use_tiling = tiles is not None
        decoded = relative_error(decode(ours, latents, tiles), theirs.decode(latents).sample)
        encoded = relative_error(moments(ours, images, tiles), theirs.encode(images).latent_dist.parameters)
        for way, error in (("decoded", decoded), ("encoded", encoded)):
            within("Stable Diffusion 1.x", "random weights at full size", f"autoencoder, {way} {how}", error, 1e-5)


@pytest.mark.parametrize("last", ["full", "cut"])
@pytest.mark.parametrize("size", [(9, 31), (16, 17), (25, 8)], ids=str)
@torch.no_grad()
def test_tiles_are_exact_with_enough_overlap(size: tuple[int, int], last: str) -> None:
    """For a pointwise network any tiling is exact: no position is left out."""
    network = nn.Sequential(nn.Conv2d(2, 3 * 4, 1), nn.PixelShuffle(2)).eval()
    x = noise(2, 2, *size)
    for side, overlap in ((8, 2), (5, 0), (6, 5)):
        tiling = Tiling.from_dict({"side": side, "overlap": overlap, "last": last})
        assert relative_error(in_tiles(network, x, tiling, input_scale=1, output_scale=2), network(x)) <= 1e-6
        starts = tiling.starts(size[1])
        assert starts[0] == 0 and starts[-1] + side >= size[1]
        assert last == "cut" or starts[-1] == max(size[1] - side, 0), "the last one is whole"


@torch.no_grad()
def test_tiles_without_norms_and_attention_are_exact_outside_overlaps() -> None:
    """The tiny decoder has neither: values in one tile only are those of decoding without tiles."""
    config = TinyDecoderConfig(latent_channels=2, channels=(6,), blocks=1)
    decoder = randomised(TinyDecoder(config))
    x = noise(1, 2, 12, 60)
    tiling = Tiling(side=30, overlap=8)  # four convolutions of 3 x 3 reach 4 positions
    apart = (decode(decoder, x, tiling) - decoder.decode(x)).abs().amax((0, 1, 2))  # (60,)
    touched = torch.zeros(60, dtype=torch.bool)
    starts = tiling.starts(60)
    for before, after in itertools.pairwise(starts):
        touched[after : before + 30] = True
    assert len(starts) == 3 and touched.any()
    assert apart[~touched].max() <= 1e-6 < apart[touched].max()


@torch.no_grad()
def test_tiles_blend_linearly() -> None:
    """Each tile is constant: across the overlap the image is a straight line between the two."""
    numbers = iter((1.0, 3.0))
    row = in_tiles(
        lambda tile: torch.full_like(tile, next(numbers)), noise(1, 1, 4, 12), Tiling(side=8, overlap=4), 1, 1
    )
    expected = torch.tensor([1, 1, 1, 1, 1, 1.5, 2, 2.5, 3, 3, 3, 3])
    assert torch.allclose(row, expected.expand(1, 1, 4, 12))


def steps(image: Tensor) -> Tensor:
    """How much the image (1, 3, H, W) changes from each column to the next: (W - 1,)."""
    return image.diff(dim=-1).abs().mean((0, 1, 2))


@torch.no_grad()
def test_tiles_of_the_default_model_have_no_seam() -> None:
    """A smooth image whole and in tiles: where tiles begin and end, it changes from column to column as elsewhere."""
    try:
        autoencoder = open_autoencoder("latent")
    except UserError:
        pytest.skip("no latent model in this package")
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 192), indexing="ij")
    image = torch.stack([torch.sin(5 * x + y), torch.cos(4 * y - 2 * x), 2 * x - 1])[None] * 0.8
    tiling = Tiling.of_pixels(64, autoencoder.config.factor)
    latents = autoencoder.encode(image).mean
    whole, tiled = autoencoder.decode(latents), decode(autoencoder, latents, tiling)
    change = steps(tiled - whole)
    borders = {edge * 8 for start in tiling.starts(24) for edge in (start, start + tiling.side)} - {0, 192}
    at = torch.tensor([change[border - 1] for border in borders])
    elsewhere = torch.tensor([value for i, value in enumerate(change) if i + 1 not in borders])
    assert at.max() <= elsewhere.max() and at.mean() <= 2 * elsewhere.mean()
    hard = steps(decode(autoencoder, latents, Tiling(side=tiling.side, overlap=0)) - whole)  # the test detects a seam
    seams = [hard[start * 8 - 1] for start in Tiling(side=tiling.side, overlap=0).starts(24) if start]
    assert max(seams) > 2 * at.max()


@torch.no_grad()
def test_one_tile_is_the_whole_image() -> None:
    module = randomised(Autoencoder(SMALL))
    latents, images = noise(1, 4, 8, 16), noise(1, 3, 16, 32)
    assert torch.equal(decode(module, latents, Tiling(side=16, overlap=4)), module.decode(latents))
    assert torch.equal(moments(module, images, Tiling(side=16, overlap=4)), module.moments(images))


@torch.no_grad()
def test_tiles_bound_the_memory() -> None:
    module = randomised(Autoencoder(SMALL))
    seen: list[tuple[int, ...]] = []
    module.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    module.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    tiling = Tiling(side=8, overlap=2)
    assert decode(module, noise(3, 4, 20, 20), tiling).shape == (3, 3, 40, 40)
    assert moments(module, noise(3, 3, 40, 40), tiling).shape == (3, 8, 20, 20)
    assert set(seen) == {(1, 4, 8, 8), (1, 3, 16, 16)} and len(seen) == 2 * 3 * 9


@pytest.mark.parametrize("tile", [0, 8, 65, -64, True, 64.0])
def test_tiling_errors(tile: object) -> None:
    with pytest.raises(UserError, match="tile must be a multiple of 8 pixels and at least 64"):
        Tiling.of_pixels(tile, 8)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="overlap"):
        Tiling(side=4, overlap=4)
