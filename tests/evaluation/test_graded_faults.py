"""Faults in levels: each adds to the one before, and the rank correlations of measures with them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion, binary_fill_holes, label
from scipy.stats import kendalltau

from diptych.data.emoji.scenes import SceneRenderer
from diptych.evaluation.count_drawings import COUNTS, WAYS, CountTrial, cut_out, draw_trials, measure_counts
from diptych.evaluation.graded_faults import (
    FAULTS,
    INVISIBLE,
    few_kept,
    remove_tiles,
    swap_tiles,
    tiles,
    turn_hue,
    wrong_objects,
)
from diptych.evaluation.set_measures import (
    DIRECTIONS,
    SetMeasures,
    half_samples,
    interval,
    kendall_tau,
    overtakers,
    rank_agreement,
    unit,
)
from diptych.metrics.frechet import frechet_distance
from diptych.metrics.kernels import cmmd, cubic, unbiased_mmd
from diptych.metrics.neighbours import manifolds


def face(side: int = 64) -> Image.Image:
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 8, side - 8, side - 8), fill="#f0c020", outline="black", width=2)
    draw.rectangle((20, 22, 26, 30), fill="#2040e0")
    return image


def distance(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize("name", FAULTS)
def test_each_level_is_farther_from_the_image_and_the_same_again(name: str) -> None:
    fault, image = FAULTS[name], face()
    levels = [fault(image, amount, 7) for amount in fault.amounts]
    distances = [distance(image, one) for one in levels]
    assert distances[0] > 0 and all(one < other for one, other in pairwise(distances))
    assert levels[1] == fault(image, fault.amounts[1], 7) and levels[1].size == image.size
    assert image == face(), "the image itself stays"


@pytest.mark.parametrize("name", INVISIBLE)
def test_an_invisible_change_is_smaller_than_the_first_level_of_any_fault_of_its_kind(name: str) -> None:
    fault, image = INVISIBLE[name], face()
    assert 0 < distance(image, fault(image, fault.amounts[0], 7)) < 12


def test_noise_of_a_level_is_that_of_another_scaled() -> None:
    grey = Image.new("RGB", (32, 32), (128, 128, 128))
    one, other = (np.asarray(FAULTS["noise"](grey, amount, 3), float) - 128 for amount in (10, 20))
    assert np.abs(2 * one - other).max() <= 1.5  # both are rounded
    assert one.std() == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("apply", [remove_tiles, swap_tiles])
def test_what_is_changed_at_one_level_is_changed_at_the_next(apply) -> None:
    pixels = np.random.Generator(np.random.PCG64(1)).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    pixels[:4] = 255
    image = Image.fromarray(pixels)
    few, many = (np.asarray(apply(image, amount, np.random.Generator(np.random.PCG64(5)))) for amount in (2, 4))
    changed = (few != pixels).any(-1)
    assert changed.any() and (few == many)[changed].all()
    assert (many != pixels).any(-1).sum() == 2 * changed.sum()


def test_tiles_cover_the_drawing_and_those_without_any_of_it_come_last() -> None:
    pixels = np.full((80, 80, 3), 255.0)
    pixels[20:60, 10:50] = 0
    pixels[20:40, 30:50] = 255  # the right upper quarter is empty
    order = tiles(pixels, np.random.Generator(np.random.PCG64(0)))
    covered = np.zeros((80, 80), int)
    for rows, columns in order:
        covered[rows, columns] += 1
    assert (covered[20:60, 10:50] == 1).all() and covered.sum() == 1600
    assert all((pixels[rows, columns] == 255).all() for rows, columns in order[-4:])


def test_half_a_turn_of_hue_leaves_lightness_and_grey() -> None:
    image = Image.fromarray(np.array([[[200, 100, 90], [70, 70, 70], [255, 255, 255]]], np.uint8))
    turned = np.asarray(turn_hue(image, 180, np.random.Generator(np.random.PCG64(0))), float)
    assert turned[0, 1:].tolist() == [[70, 70, 70], [255, 255, 255]]
    luma = np.array([0.3, 0.59, 0.11])
    assert turned[0, 0] @ luma == pytest.approx(np.array([200, 100, 90]) @ luma, abs=1.5)
    assert turned[0, 0, 0] < turned[0, 0, 1], "red has become blue-green"


def test_wrong_objects_are_of_the_same_style_and_the_set_stays() -> None:
    styles = ["a", "b"] * 10 + ["c"]
    for share in (0.25, 0.5, 1):
        places = wrong_objects(styles, share)
        assert sorted(places) == list(range(21))
        assert [styles[place] for place in places] == styles
        assert (places != np.arange(21)).sum() == 2 * round(10 * share) - (round(10 * share) == 1)
    assert Counter(few_kept(100, 1 / 4).tolist()) == dict.fromkeys(range(25), 4)
    assert not few_kept(100, 1 / 256).any()


def test_tau_is_scipys_and_equal_values_count_as_neither() -> None:
    draw = np.random.Generator(np.random.PCG64(2))
    for _ in range(20):
        one, other = draw.normal(size=(2, 6))
        assert kendall_tau(one) == pytest.approx(kendalltau(one, np.arange(6))[0])
        assert rank_agreement(one, other) == pytest.approx(kendalltau(one, other)[0])
    assert kendall_tau([1, 2, 3]) == 1 == -kendall_tau([3, 2, 1])
    assert kendall_tau([5, 5, 5 + 1e-9]) == 0 and kendall_tau([1, 1, 2]) == pytest.approx(2 / 3)
    assert interval([0.0, 1.0]) == pytest.approx({"low": 0.025, "high": 0.975})


def test_half_samples_vary_as_whole_ones_do() -> None:
    values = np.random.Generator(np.random.PCG64(3)).normal(size=400)
    halves = [values[part] for part in half_samples(400, 3000, 1)]
    assert all(len(set(half)) == 200 for half in halves[:20])
    error = values.std(ddof=1) / 20
    assert np.std([half.mean() for half in halves]) == pytest.approx(error, rel=0.05)


def test_overtakers_are_in_the_direction_of_damage() -> None:
    unseen, seen = {"noise": {"fid": 2.0, "recall": -0.1}}, {"eye": {"fid": 1.0, "recall": -0.2}}
    assert overtakers(unseen, seen, "fid") == [("noise", "eye")] and not overtakers(unseen, seen, "recall")
    assert overtakers({"same": seen["eye"]}, seen, "fid") == []


def test_measures_of_a_set_are_those_of_their_functions() -> None:
    draw = np.random.Generator(np.random.PCG64(4))
    real, made = draw.normal(size=(2, 40, 6)).astype(np.float32)
    found = SetMeasures(real, 3)(made[:30])
    assert found["fid"] == pytest.approx(frechet_distance(made[:30], real))
    assert found["kid"] == pytest.approx(1000 * unbiased_mmd(made[:30].astype(float), real.astype(float), cubic))
    assert found["cmmd"] == pytest.approx(cmmd(unit(made[:30]), unit(real)))
    near = manifolds(made[:30], real, 3)._asdict()
    assert {name: found[name] for name in near} == near
    assert {*found, "alignment"} == DIRECTIONS.keys()


NAMES = ("cat", "dog", "cow", "pig", "fox")


@pytest.fixture(scope="module")
def renderer() -> SceneRenderer:
    drawings = {}
    for number, name in enumerate(NAMES):
        image = Image.new("RGB", (48, 48), "white")
        ImageDraw.Draw(image).ellipse((6, 6 + number, 42, 42), fill=(90, 150, 40 * number), outline="black")
        ImageDraw.Draw(image).rectangle((20, 20, 28, 28), fill="white")
        drawings[name] = cut_out(image)
    return SceneRenderer({"plain": drawings}, 128)


def test_what_lies_around_a_drawing_is_transparent_and_what_is_within_stays(renderer: SceneRenderer) -> None:
    cut = renderer.drawings["plain"]["cat"]
    assert cut.getpixel((1, 1))[3] == 0 and cut.getpixel((24, 24)) == (255, 255, 255, 255)  # type: ignore[index]


def test_as_many_things_are_drawn_as_are_asked_for(renderer: SceneRenderer) -> None:
    for trial in draw_trials(renderer, 6, 0):
        assert len({trial.concept, *trial.concepts}) == len({trial.colour, *trial.colours}) == 4
        for count in COUNTS:
            drawn = np.abs(np.asarray(trial.draw(renderer, count), float) - 255).max(-1) > 40
            cores = binary_erosion(binary_fill_holes(drawn), iterations=3)  # neighbours may touch
            assert label(cores)[1] == count  # type: ignore[index]


def test_captions_of_a_trial_differ_in_one_way() -> None:
    trial = CountTrial("plain", "cat", "red", ("blue", "green", "pink"), ("dog", "cow", "fox"), 0)
    assert trial.captions(2, "count") == ["two red cats", "a red cat", "three red cats", "four red cats"]
    assert trial.captions(1, "colour") == ["a red cat", "a blue cat", "a green cat", "a pink cat"]
    assert trial.captions(2, "object") == ["two red cats", "two red dogs", "two red cows", "two red foxes"]


class ColourReader:
    """Sees colours, and neither counts nor objects: captions of one colour score alike."""

    def texts(self, prompts):
        words = ("red", "blue", "green", "pink", "yellow", "purple", "orange", "brown", "black")
        return torch.tensor([[float(word in prompt.split()) for word in words] for prompt in prompts])

    def images(self, images):
        assert len(images) == 4
        return self.texts([self.colour]).repeat(4, 1)

    colour = ""


def test_a_scorer_that_cannot_count_is_at_chance_and_keeps_its_colours(renderer: SceneRenderer) -> None:
    scorer = ColourReader()
    trial = draw_trials(renderer, 1, 0)[0]
    scorer.colour = trial.colour
    found = measure_counts(scorer, [trial, trial], [face()] * 8)  # type: ignore[arg-type]
    assert found["right"]["colour"]["value"] == 1 and found["right"]["object"]["value"] == 0
    assert found["right"]["count"]["value"] <= 0.25 and found["cost"]["object"]["value"] == 0
    assert np.array(found["asked"]).shape == (4, 4) and set(found["drawn"]) == set(WAYS)
