"""Every seed has numbers of its own, and small ones those that they always had."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diptych.core.random import NARROW, GeneratorDraws, generator
from diptych.core.seeding import seed_default
from diptych.diffusion.steps import NoiseSource
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.models.pixel_diffusion import stage_seed
from diptych.models.token_sampling import GumbelSource

SAME_LOW_HALF = [5, NARROW + 5, 2 * NARROW + 5, 2**62 + 5]


@pytest.mark.parametrize("seed", [0, 5, NARROW - 1])
def test_a_small_seed_is_pytorchs(seed: int) -> None:
    wanted = torch.randn(100, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.randn(100, generator=generator(seed)), wanted)


def test_the_words_of_the_state_stand_where_they_are_written() -> None:
    words = torch.Generator().manual_seed(7).get_state()[24 : 24 + 624 * 8].numpy().view("<u8")
    assert np.array_equal(words, np.random.RandomState(7).get_state(legacy=False)["state"]["key"])


def test_a_large_seed_is_numpys_of_both_halves() -> None:
    ours = torch.rand(2000, generator=generator(NARROW * 3 + 5))  # past several twists; 24 bits of each word
    words = np.random.RandomState([5, 3]).randint(0, 2**32, 2000, dtype=np.uint32)
    assert np.array_equal(ours.numpy(), (words % 2**24) / np.float32(2**24))


def distinct(rows: torch.Tensor) -> bool:
    return len(torch.unique(rows.flatten(1), dim=0)) == len(rows)


def test_whoever_draws_for_a_user_tells_them_apart() -> None:
    assert distinct(NoiseSource(SAME_LOW_HALF, (4,)).draw())
    assert distinct(GumbelSource(SAME_LOW_HALF, 8).draw())
    like = torch.zeros(len(SAME_LOW_HALF), 4)
    assert distinct(GeneratorDraws(torch.tensor(SAME_LOW_HALF), whole=True).normal(like, 4))
    first = []
    for seed in SAME_LOW_HALF:
        seed_default(seed)
        first.append(torch.randn(4))
    assert distinct(torch.stack(first))


def test_streams_of_small_seeds_are_what_they_were() -> None:
    seeds = torch.tensor([3, 10_000, NARROW - 1])  # their products are larger than 32 bits
    like = torch.zeros(len(seeds), 4)
    wanted = [torch.Generator().manual_seed((seed * 1_000_003 + 4) % 2**63) for seed in seeds.tolist()]
    wanted = torch.stack([torch.randn(4, generator=one) for one in wanted])
    for whole in (True, False):
        assert torch.equal(GeneratorDraws(seeds, whole).normal(like, 4), wanted)


def test_a_stage_derives_32_bits_from_a_small_seed_and_more_from_a_large_one() -> None:
    config = PixelDiffusionConfig()
    assert all(stage_seed(seed, config) < NARROW for seed in range(20))
    assert len({stage_seed(seed, config) % NARROW for seed in SAME_LOW_HALF}) == len(SAME_LOW_HALF)
    assert any(stage_seed(NARROW + seed, config) >= NARROW for seed in range(20))
