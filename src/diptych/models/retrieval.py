"""Image-to-text retrieval: the captions or concepts that the judge finds nearest to an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.data.emoji.captions import article
from diptych.models.judge import Judge

TEMPLATES = ("{name}", "{full}", "an emoji of {full}", "a picture of {full}")
"""Prompt templates of a concept; its vector is the mean over them (CLIP, section 3.1.4)."""


class Share(NamedTuple):
    """A share of `count` images with its binomial standard error."""

    value: float
    error: float
    count: int

    @classmethod
    def of(cls, hits: Tensor) -> Share:
        """From (N,) true and false."""
        return cls.at(float(hits.double().mean()), len(hits))

    @classmethod
    def at(cls, value: float, count: int) -> Share:
        return cls(value, math.sqrt(value * (1 - value) / count), count)


class Mean(NamedTuple):
    """A mean over `count` images with its standard error."""

    value: float
    error: float
    count: int

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """From (N,) numbers, two or more."""
        values = values.double()
        return cls(float(values.mean()), float(values.std()) / math.sqrt(len(values)), len(values))


def prompt_ensemble(concept: str) -> list[str]:
    """A concept in each of the `TEMPLATES`."""
    return [template.format(name=concept, full=article(concept)) for template in TEMPLATES]


def concept_vectors(judge: Judge, concepts: Sequence[str]) -> Tensor:
    """Unit vectors (C, D) of concepts: each is the mean over `TEMPLATES`, set back to length 1."""
    texts = [words for concept in concepts for words in prompt_ensemble(concept)]
    judge.words.prepare(texts)
    vectors = judge.captions(texts)  # (C * templates, D)
    return F.normalize(vectors.unflatten(0, (len(concepts), -1)).mean(1), dim=-1)


def ranks(images: Tensor, concepts: Tensor, truth: Tensor) -> Tensor:
    """The place (N,), from 0, of the true concept among all for each image; ties count against it.

    Args:
        images: unit vectors (N, D).
        concepts: unit vectors (C, D).
        truth: index of each image's concept (N,).
    """
    scores = images @ concepts.T  # (N, C)
    right = scores.gather(1, truth[:, None])  # (N, 1)
    return (scores >= right).sum(1) - 1


def right_first(images: Tensor, captions: Tensor, foils: Sequence[Tensor]) -> Tensor:
    """(N,) bool: the true caption lies nearer to the image than each of its foils. A tie is not right.

    Args:
        images, captions: unit vectors (N, D).
        foils: unit vectors (K_i, D) of each image's own wrong captions.
    """
    true = (images * captions).sum(1)
    best = [float((wrong @ image).max()) for image, wrong in zip(images, foils, strict=True)]
    return true > torch.tensor(best, dtype=true.dtype)


def share_of_right_captions(judge: Judge, images: Tensor, trials: Sequence[tuple[str, Sequence[str]]]) -> Tensor:
    """`right_first` for unit vectors of images (N, D) and (caption, foils) in words."""
    captions = judge.captions([caption for caption, _ in trials])
    wrong = judge.captions([foil for _, foils in trials for foil in foils])
    return right_first(images, captions, wrong.split([len(foils) for _, foils in trials]))


def best_ranks(images: Tensor, concepts: Tensor, answers: Tensor) -> Tensor:
    """The place (N,), from 0, of the best of each image's right concepts (N, A; -1 for none); ties count against it."""
    filled = answers.where(answers >= 0, answers[:, :1])
    return torch.stack([ranks(images, concepts, column) for column in filled.T]).amin(0)
