"""LaMa's masks: fixed by their seed, of the sizes that are published, alike at every size of image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diptych.conditioning import masks
from diptych.conditioning.concat_config import MaskConfig
from diptych.conditioning.masks import KINDS, BoxMasks, draw_boxes, draw_part, sample_masks, shares
from diptych.core.errors import UserError


def only(kind: str) -> MaskConfig:
    return MaskConfig(**{name: float(name == kind) for name in KINDS})


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_its_mask_alone_and_in_any_company(kind: str) -> None:
    together = sample_masks(only(kind), (24, 32), torch.tensor([7, 0, 2**63 - 1]))
    assert together.shape == (3, 1, 24, 32) and together.dtype == torch.float32
    assert set(together.unique().tolist()) == {0.0, 1.0}
    for place, seed in enumerate((7, 0, 2**63 - 1)):
        assert torch.equal(sample_masks(only(kind), (24, 32), torch.tensor([seed]))[0], together[place])
    assert not torch.equal(together[0], together[1])


def test_a_part_of_a_stroke_has_the_area_of_a_line_with_round_ends() -> None:
    mask = np.zeros((400, 300), dtype=bool)
    start, end, width = (60.0, 80.0), (220.0, 300.0), 37.0
    draw_part(mask, start, end, width)
    area = width * math.dist(start, end) + math.pi * width**2 / 4
    assert mask.sum() == pytest.approx(area, rel=0.005)
    rows, columns = np.nonzero(mask)
    assert rows.min() == pytest.approx(80 - width / 2, abs=1) and columns.max() + 1 == pytest.approx(
        220 + width / 2, abs=1
    )


def test_a_stroke_ends_where_the_image_does() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    draw_part(mask, (8.0, 0.0), (8.0, 8.0), 4.0)
    assert mask[:, 6:].all() and not mask[:, :6].any()


@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_boxes_are_of_their_sizes_and_stay_off_the_edge(scale: float) -> None:
    side, seen = round(256 * scale), []
    for seed in range(40):
        mask = np.zeros((side, side), dtype=bool)
        draw_boxes(mask, BoxMasks((1, 1), (30, 150), 10), scale, np.random.default_rng(seed))
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        assert mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all(), "one box"
        assert min(rows.min(), columns.min()) >= round(10 * scale) - 1
        assert max(rows.max(), columns.max()) < side - round(10 * scale) + 1
        seen += [len(rows) / scale, len(columns) / scale]
    assert 30 - 1 / scale <= min(seen) < 45 and 135 < max(seen) <= 150 + 1 / scale


@pytest.mark.parametrize("kind", KINDS)
def test_masks_hide_the_same_share_at_every_size(kind: str) -> None:
    """Pixel by pixel too: what a small mask marks is what the large one marks there."""
    seeds = torch.arange(6)
    small, large = (sample_masks(only(kind), (side, side), seeds) for side in (48, 192))
    torch.testing.assert_close(shares(small), shares(large), atol=0.03, rtol=0)
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    inner = (shrunk == 0) | (shrunk == 1)  # off the edges of strokes
    assert (small[inner] == shrunk[inner]).float().mean() > 0.99


def test_thick_masks_hide_more_than_thin_ones_in_fewer_pieces() -> None:
    def edges(found: torch.Tensor) -> float:
        """Length of the outline for each hidden pixel."""
        return float((found.diff(dim=2).abs().sum() + found.diff(dim=3).abs().sum()) / found.sum())

    thin, medium, thick, thicker = (sample_masks(only(kind), (64, 64), torch.arange(40)) for kind in KINDS)
    assert edges(thin) > 1.5 * edges(medium) > 2 * edges(thick) > 2 * edges(thicker) * 0.7
    assert shares(thick).mean() > shares(medium).mean() + 0.05


def test_a_weight_of_zero_is_never_drawn() -> None:
    seeds = torch.arange(30)
    both = sample_masks(MaskConfig(medium=0), (32, 32), seeds)
    apart = [sample_masks(only(kind), (32, 32), seeds) for kind in ("thin", "thick")]
    matches = [[torch.equal(a, b) for a, b in zip(both, one, strict=True)] for one in apart]
    assert all(thin != thick for thin, thick in zip(*matches, strict=True)), "each is of one kind"
    assert 5 < sum(matches[0]) < 25


def test_a_share_and_places_that_must_be_marked_are_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, size = torch.arange(20), (64, 64)
    hard = sample_masks(MaskConfig(), size, seeds, every=8, share=(0.4, 0.5))
    assert ((shares(hard) >= 0.4) & (shares(hard) <= 0.5)).all()
    plain = sample_masks(MaskConfig(), size, seeds)
    fits = (shares(plain) >= 0.4) & (shares(plain) <= 0.5)
    assert torch.equal(hard[fits], plain[fits]) and not fits.all(), "what fits is left as it is"
    many = torch.arange(120)
    marked = sample_masks(only("medium"), size, many, every=8)[..., ::8, ::8].flatten(1).any(1)
    free = sample_masks(only("medium"), size, many)[..., ::8, ::8].flatten(1).any(1)
    assert marked.all() and not free.all()
    monkeypatch.setattr(masks, "TRIES", 3)
    with pytest.raises(UserError, match="no mask of 3 marks from 99% to 100% of 64 x 64 pixels: ask for another share"):
        sample_masks(MaskConfig(), size, seeds, share=(0.99, 1.0))


@pytest.mark.parametrize("bad", [{"thin": -1.0}, {"thick": math.nan}, {"thin": 0.0, "medium": 0.0, "thick": 0.0}])
def test_weights_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"MaskConfig\.(thin|thick) must be"):
        MaskConfig(**bad)
