"""Random numbers by hashing seed, stream and place: exact, independent, well spread, and without looking at values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diptych.core import counter_random
from diptych.core.counter_random import CounterDraws, draws_of, normal_from_keys, stream_keys
from diptych.core.random import NOISE, TIME, GeneratorDraws

SEEDS = torch.tensor([0, 1, 2, 2**32, 2**62 + 1, 3, 1])


def draw(seeds: Tensor, *shape: int, stream: int = NOISE) -> Tensor:
    return CounterDraws(seeds).normal(torch.empty(len(seeds), *shape), stream)


def key_of(seed: int, stream: int) -> int:
    """`stream_keys` in Python's own whole numbers."""

    def mix(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    golden = 0x9E3779B97F4A7C15
    return mix((mix((seed + golden) % 2**64) + (stream + 1) * golden) % 2**64)


def words_of(key: int, count: int) -> list[int]:
    """The hashes of places 0 to count - 1."""
    words = []
    for place in range(count):
        x = (place * 0x9E3779B9 + key) % 2**32
        x = ((x ^ x >> 17) * 0xED5AD4BB + (key >> 32)) % 2**32
        x = (x ^ x >> 11) * 0xAC4C1B51 % 2**32
        x = (x ^ x >> 15) * 0x31848BAB % 2**32
        words.append(x ^ x >> 14)
    return words


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 7, 2**63 - 1])
def test_the_numbers_are_those_of_the_formulas(seed: int) -> None:
    key = key_of(seed, NOISE)
    assert stream_keys(torch.tensor([seed]))[NOISE].item() % 2**64 == key
    assert CounterDraws(torch.tensor([seed])).uniform(TIME).item() == (key_of(seed, TIME) >> 40) / 2**24
    words, found = words_of(key, 8), draw(torch.tensor([seed]), 7)[0].tolist()
    for i in range(4):
        radius = math.sqrt(-2 * math.log(max(words[i] % 2**31, 0.5) / 2**31))
        angle = words[4 + i] / 2**31 * math.pi
        assert found[i] == pytest.approx(radius * math.cos(angle), abs=2e-6)
        assert i == 3 or found[4 + i] == pytest.approx(radius * math.sin(angle), abs=2e-6)


def test_an_example_has_its_numbers_in_any_company_and_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    together, times = draw(SEEDS, 3, 5, 7), CounterDraws(SEEDS).uniform(TIME)
    for i in range(len(SEEDS)):
        assert torch.equal(draw(SEEDS[i : i + 1], 3, 5, 7)[0], together[i])
        assert torch.equal(CounterDraws(SEEDS[i : i + 1]).uniform(TIME), times[i : i + 1])
    assert torch.equal(together[1], together[6]) and len(torch.unique(together.flatten(1), dim=0)) == len(SEEDS) - 1
    for block in (1, 16, 300):
        monkeypatch.setattr(counter_random, "BLOCK", block)
        assert torch.equal(draw(SEEDS, 3, 5, 7), together)


def kolmogorov(sample: Tensor, distribution: Tensor) -> float:
    """The distance of Kolmogorov and Smirnov times the root of the sample's size; above 1.95 once in a thousand."""
    steps = torch.arange(1, len(sample) + 1, dtype=torch.float64) / len(sample)
    return (distribution - steps).abs().max().item() * math.sqrt(len(sample))


NEIGHBOURS = torch.arange(1000)
FAR = NEIGHBOURS * 2**40 + 5
"""Seeds whose low halves are the same."""


@pytest.mark.parametrize("seeds", [NEIGHBOURS, FAR], ids=["neighbours", "high-bits"])
def test_normal_numbers_are_normal_and_independent(seeds: Tensor) -> None:
    x = draw(seeds, 256).double()
    flat, n = x.flatten(), x.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (flat**power).mean().item() == pytest.approx(moment, abs=4 * math.sqrt(variance / n))
    assert kolmogorov(flat.sort().values, torch.special.ndtr(flat.sort().values)) < 1.95
    assert 4 < flat.abs().max() < 6.7
    others = [
        (x[1:], x[:-1]),  # seeds
        (x[:, 1:], x[:, :-1]),  # places
        (x[:, :128], x[:, 128:]),  # cosine and sine of a pair
        (x, draw(seeds, 256, stream=NOISE + 1).double()),
    ]
    for one, other in others:
        for power in (1, 2):  # pairs share a radius, which must not show
            a, b = one.flatten() ** power, other.flatten() ** power
            correlation = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
            assert abs(correlation) < 4.5 / math.sqrt(a.numel())
    assert len(torch.unique(x[:, :2].float(), dim=0)) == len(x)


@pytest.mark.parametrize("seeds", [NEIGHBOURS, FAR], ids=["neighbours", "high-bits"])
def test_uniform_numbers_are_uniform_and_independent(seeds: Tensor) -> None:
    seeds = torch.cat([seeds + 2**50 * i for i in range(20)])
    draws = CounterDraws(seeds)
    streams = torch.stack([draws.uniform(stream) for stream in range(8)]).double()
    assert streams.min() >= 0 and streams.max() < 1
    for row in streams:
        assert kolmogorov(row.sort().values, row.sort().values) < 1.95
    assert torch.corrcoef(streams).triu(1).abs().max() < 4.5 / math.sqrt(len(seeds))
    lagged = torch.corrcoef(torch.stack([streams[2, 1:], streams[2, :-1]]))[0, 1]
    assert abs(lagged) < 4.5 / math.sqrt(len(seeds))


def test_each_bit_of_seed_and_place_changes_half_of_the_key_or_the_word() -> None:
    seeds = torch.randint(0, 2**62, (400,), generator=torch.Generator().manual_seed(0))
    keys = stream_keys(seeds)[NOISE].numpy()
    for bit in range(63):
        changed = stream_keys(seeds ^ (1 << bit))[NOISE].numpy() ^ keys
        assert abs(np.unpackbits(changed.view(np.uint8)).mean() - 0.5) < 5 * 0.5 / math.sqrt(64 * 400)


def test_draws_look_at_no_values() -> None:
    """Traced on shapes alone, anything that is read back would raise."""
    seeds = torch.empty(4, dtype=torch.int64, device="meta")
    draws, like = CounterDraws(seeds, SEEDS[:4]), torch.empty(4, 3, 8, 8, device="meta")
    assert draws.normal(like, NOISE).shape == like.shape and draws.uniform(TIME).device.type == "meta"
    assert torch.equal(draws.host.uniform(TIME), CounterDraws(SEEDS[:4]).uniform(TIME))


@pytest.mark.slow
def test_draws_compile_whole() -> None:
    compiled = torch.compile(normal_from_keys, backend="aot_eager", fullgraph=True)
    keys = stream_keys(SEEDS)[NOISE]
    assert torch.equal(compiled(keys, 33), normal_from_keys(keys, 33))


def test_a_batch_says_how_its_numbers_are_drawn() -> None:
    batch = {"seed": SEEDS}
    assert isinstance(draws_of(batch), GeneratorDraws) and isinstance(
        draws_of({**batch, "random": "generator"}), GeneratorDraws
    )
    drawn = draws_of({**batch, "random": "counter", "seed_on_host": SEEDS.numpy()})
    assert torch.equal(drawn.uniform(TIME), CounterDraws(SEEDS).uniform(TIME)) and drawn.host is drawn
    assert torch.equal(drawn.host.seeds, SEEDS)
