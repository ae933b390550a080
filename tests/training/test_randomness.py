"""Random numbers of examples: their own, whatever the company, and the same as ever."""

from __future__ import annotations

import torch

from diptych.core.random import GeneratorDraws, normal, uniform

SEEDS = torch.tensor([3, 1, 2**62, 3])


def test_draws_are_the_functions_of_the_same_streams() -> None:
    draws, like = GeneratorDraws(SEEDS), torch.zeros(4, 3, 5, 6)
    for stream in (1, 7):
        assert torch.equal(draws.normal(like, stream), normal(SEEDS, (3, 5, 6), stream=stream))
        assert torch.equal(draws.uniform(stream), uniform(SEEDS, stream=stream))
        assert torch.equal(draws.uniform(stream), draws.uniform(stream))  # nothing is used up


def test_a_draw_depends_on_the_seed_and_the_stream_alone() -> None:
    draws, like = GeneratorDraws(SEEDS), torch.zeros(4, 100)
    numbers = draws.normal(like, 1)
    assert torch.equal(numbers[0], numbers[3])
    assert torch.equal(GeneratorDraws(SEEDS[1:2]).normal(like[1:2], 1), numbers[1:2])
    other = draws.normal(like, 2)
    assert torch.corrcoef(torch.cat([numbers[:3], other[:3]])).triu(1).abs().max() < 0.5
    uniforms = GeneratorDraws(torch.arange(2000)).uniform(4)
    assert uniforms.shape == (2000,)
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert abs(uniforms.mean() - 0.5) < 0.03
