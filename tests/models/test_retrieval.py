"""Retrieval on hand-made vectors, where every answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from diptych.models.retrieval import Mean, Share, prompt_ensemble, ranks, right_first


def test_ranks_on_known_vectors() -> None:
    concepts = torch.eye(4)
    images = torch.tensor([[0.9, 0.3, 0.1, 0.0], [0.9, 0.3, 0.1, 0.0], [0.1, 0.2, 0.3, 0.9]])
    assert ranks(images, concepts, torch.tensor([0, 2, 0])).tolist() == [0, 2, 3]


def test_a_tie_counts_against_the_truth() -> None:
    """A judge that says the same of everything names nothing."""
    images, concepts = torch.ones(3, 2), torch.ones(10, 2)
    assert ranks(images, concepts, torch.tensor([0, 4, 9])).tolist() == [9, 9, 9]
    assert not right_first(images, torch.ones(3, 2), [torch.ones(1, 2)] * 3).any()


def test_the_true_caption_must_beat_every_foil() -> None:
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    captions = torch.tensor([[0.8, 0.6], [0.8, 0.6]])
    foils = [torch.tensor([[0.6, 0.8], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.9, 0.4], [0.1, 0.9]])]
    assert right_first(images, captions, foils).tolist() == [True, False]


def test_shares_carry_their_standard_error() -> None:
    share = Share.of(torch.tensor([True] * 20 + [False] * 80))
    assert share.value == pytest.approx(0.2)
    assert share.error == pytest.approx(math.sqrt(0.2 * 0.8 / 100))
    assert share.count == 100


def test_concepts_are_said_with_their_article() -> None:
    assert prompt_ensemble("orange")[:2] == ["orange", "an orange"]


def test_a_mean_has_the_standard_error_of_a_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    trials = torch.randn(2000, 50, generator=draw)
    errors = [Mean.of(row).error for row in trials]
    assert sum(errors) / len(errors) == pytest.approx(float(trials.mean(1).std()), rel=0.05)
    assert Mean.of(trials[0]).value == pytest.approx(float(trials[0].mean()))
    assert Mean.of(trials[0]).count == 50
