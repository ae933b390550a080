import random
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from diptych.data.emoji import scene_words as words
from diptych.data.emoji.scene_sampling import Vocabulary, misspell, sample_scene
from diptych.data.emoji.scene_specs import CATEGORIES, Scene, ScenePart, captions, wordings
from diptych.data.emoji.scenes import SceneRenderer, tint

SIZE = 64
NUMBER = {word: n for n, word in enumerate(words.NUMBERS)}


def toy(name: str) -> Image.Image:
    """A solid shape of its own proportions and colour; opaque, so that truth can be seen in the pixels."""
    rng = random.Random(name)
    image = Image.new("RGBA", (SIZE, SIZE))
    wide, high = rng.randint(30, 60), rng.randint(30, 60)
    colour = (rng.randint(20, 90), rng.randint(60, 90), rng.randint(20, 90), 255)
    ImageDraw.Draw(image).rectangle((2, 2, wide, high), fill=colour)
    return image


NAMES = sorted(
    {name for group in words.GROUPS.values() for name in group[:8]}
    | {*words.RARE[:12], *words.FACES[:6], *words.HATS, *words.LARGE[:6], *words.SMALL[:6], *list(words.USUAL)[:10]}
)


@pytest.fixture(scope="module")
def scenes():
    renderer = SceneRenderer({"noto": {name: toy(name) for name in NAMES}}, SIZE)
    return list(renderer.scenes(540, seed=0, caption_names={"noto": "Noto"}))


def of(scenes, category):
    found = [(image, meta) for _, image, meta in scenes if meta["category"] == category]
    assert found
    return found


def test_categories_occur_equally_often(scenes):
    assert [len(of(scenes, category)) for category in CATEGORIES] == [60] * 9
    assert len({key for key, _, _ in scenes}) == 540


def test_captions_and_foils_are_many_and_disjoint(scenes):
    for _, _, meta in scenes:
        assert 2 <= len(meta["captions"]) == len(set(meta["captions"])) <= 4
        assert 5 <= len(meta["foils"]) == len(set(meta["foils"])) <= 7
        assert not set(meta["captions"]) & set(meta["foils"])
        assert any("in the style of Noto" in caption for caption in meta["captions"])


def test_every_caption_speaks_of_the_background_when_it_is_coloured(scenes):
    for _, image, meta in scenes:
        told = [re.search(r"on an? (\w+) background", caption) for caption in meta["captions"]]
        if meta["background"] == "white":
            assert told == [None] * len(told)
        else:
            assert {match and match[1] for match in told} == {meta["background"]}
        corner = image.getpixel((0, 0))
        assert corner == words.BACKGROUNDS[meta["background"]]


def drawn_mask(image, background):
    ground = np.array(words.BACKGROUNDS[background])
    return np.abs(np.asarray(image).astype(int) - ground).max(-1) > 12


def test_boxes_enclose_the_drawings_and_nothing_else(scenes):
    for key, image, meta in scenes:
        mask = drawn_mask(image, meta["background"])
        boxes = [thing["box"] for thing in meta["objects"]] + ([meta["text"]["box"]] if meta["text"] else [])
        outside = mask.copy()
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 1, key
            assert 0 <= y0 < y1 <= 1, key
            a, b, c, d = (round(v * SIZE) for v in (x0, y0, x1, y1))
            assert mask[b:d, a:c].mean() > (0.15 if meta["text"] else 0.9), key
            outside[b:d, a:c] = False
        assert not outside.any(), key


def hidden(under, over):
    """The share of one box that another covers."""
    width = min(under[2], over[2]) - max(under[0], over[0])
    height = min(under[3], over[3]) - max(under[1], over[1])
    return max(0.0, width) * max(0.0, height) / ((under[2] - under[0]) * (under[3] - under[1]))


def test_things_do_not_hide_each_other(scenes):
    for key, _, meta in scenes:
        boxes = [thing["box"] for thing in meta["objects"]] + ([meta["text"]["box"]] if meta["text"] else [])
        most = 0.3 if meta["relation"] == "wearing" else 0.02  # a hat covers the top of a head
        assert all(hidden(a, b) <= most for i, b in enumerate(boxes) for a in boxes[:i]), key


def test_positions_are_match_the_caption(scenes):
    for _, meta in of(scenes, "positional"):
        a, b = (thing["box"] for thing in meta["objects"])
        first, second = (thing["concept"] for thing in meta["objects"])
        told = meta["captions"][0]
        assert told.index(first) < told.index(second) or first in second
        if "left of" in told:
            assert a[2] <= b[0] + 0.02
        else:
            assert " above " in told
            assert a[3] <= b[1] + 0.02


def test_positional_foils_are_the_other_places(scenes):
    for _, meta in of(scenes, "positional"):
        first, second = (thing["concept"] for thing in meta["objects"])
        assert all(first in foil and second in foil for foil in meta["foils"])


def test_counts_are_match_the_caption(scenes):
    for _, meta in of(scenes, "counting"):
        told = re.split(r" on an? ", meta["captions"][0])[0]
        numbers = [
            NUMBER.get(part.split(" ")[0], 1)
            for part in told.split(" and ")
            if part.split(" ")[0] in {"a", "an", *NUMBER}
        ]
        assert sum(numbers) == len(meta["objects"])
        assert 1 < len(meta["objects"]) <= 4


def test_colours_are_match_the_caption(scenes):
    for image, meta in of(scenes, "colors"):
        for thing in meta["objects"]:
            if thing["colour"] is None:
                continue
            assert f"{thing['colour']} {thing['concept']}" in meta["captions"][0]
            a, b, c, d = (round(v * SIZE) for v in thing["box"])
            inner = np.asarray(image)[b + 2 : d - 2, a + 2 : c - 2].reshape(-1, 3).astype(float)
            distance = {n: np.linalg.norm(np.median(inner, axis=0) - rgb) for n, rgb in words.COLOURS.items()}
            assert min(distance, key=lambda n: distance[n]) == thing["colour"]


def test_conflicting_scenes_have_unusual_sizes_and_colours(scenes):
    seen = set()
    for _, meta in of(scenes, "conflicting"):
        things = meta["objects"]
        if len(things) == 1:
            seen.add("colour")
            usual = words.USUAL[things[0]["concept"]]
            assert things[0]["colour"] != usual
            assert usual == "grey" or any(usual in foil for foil in meta["foils"])
        else:
            seen.add("size")
            area = {t["size"]: (t["box"][2] - t["box"][0]) * (t["box"][3] - t["box"][1]) for t in things}
            assert area["big"] > area["small"]
            assert things[0]["concept"] in words.LARGE
            assert things[0]["size"] == "small"
    assert seen == {"colour", "size"}


def test_words_are_written_and_foils_say_other_words(scenes):
    for _, meta in of(scenes, "text"):
        word = meta["text"]["word"]
        assert all(f'"{word}"' in caption for caption in meta["captions"])
        assert not any(f'"{word}"' in foil for foil in meta["foils"])


def test_misspellings_are_no_names_and_held_by_every_caption(scenes):
    for _, meta in of(scenes, "misspellings"):
        concept = meta["objects"][0]["concept"]
        assert not any(concept in caption for caption in meta["captions"])


def test_hats_are_on_heads(scenes):
    worn = [meta for _, meta in of(scenes, "dalle") if meta["relation"] == "wearing"]
    assert worn
    for meta in worn:
        face, hat = (thing["box"] for thing in meta["objects"])
        assert meta["objects"][1]["concept"] in words.HATS
        assert (hat[1] + hat[3]) / 2 < (face[1] + face[3]) / 2
        assert face[0] < (hat[0] + hat[2]) / 2 < face[2]


def test_held_out_captions_are_never_trained_on(scenes):
    told = {"train": set(), "held-out": set()}
    for _, _, meta in scenes:
        told[meta["split"]] |= set(meta["captions"])
    assert told["held-out"]
    assert not told["train"] & told["held-out"]


def test_equal_contents_share_a_split_with_any_caption():
    pair = (ScenePart("cat"), ScenePart("dog"))
    one = Scene("dalle", pair, background="white")
    for other in (Scene("counting", pair[::-1], background="red"), Scene("counting", pair)):
        assert other.content() == one.content()
    assert (
        Scene("positional", pair, relation="left").content()
        != Scene("positional", pair[::-1], relation="left").content()
    )
    assert (
        Scene("colors", (ScenePart("cat"),), background="red").content()
        != Scene("colors", (ScenePart("cat"),), background="blue").content()
    )


def test_a_fixed_share_of_contents_is_held_out():
    scenes = [Scene("dalle", (ScenePart(a), ScenePart(b))) for a in NAMES for b in NAMES if a < b]
    share = sum(scene.split == "held-out" for scene in scenes) / len(scenes)
    assert abs(share - 0.04) < 4 * (0.04 * 0.96 / len(scenes)) ** 0.5


def test_scenes_depend_on_seed_and_number_alone(scenes):
    renderer = SceneRenderer({"noto": {name: toy(name) for name in NAMES}}, SIZE)
    for (key, image, meta), (k, p, m) in zip(scenes[:30], renderer.scenes(30, 0, {"noto": "Noto"}), strict=True):
        assert (key, meta) == (k, m)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(p))


def test_a_coloured_thing_never_has_the_name_of_another_drawing():
    vocabulary = Vocabulary({"cat", "heart"}, {"black cat", "red heart"})
    rng = random.Random(0)
    colours = {part.colour for _ in range(200) if (part := vocabulary.coloured(rng, "cat", "white"))}
    assert "black" not in colours
    assert "white" not in colours  # nor the colour of the ground
    assert len(colours) == 8


def test_misspelled_names_are_nearer_to_none_other():
    rng = random.Random(0)
    names = ["horse", "house", "butterfly", "cat", "mouse"]
    assert misspell("cat", names, rng) is None
    slips = {misspell("horse", names, rng) for _ in range(200)} - {None}
    assert slips
    assert not slips & {"house", "hose", "mouse"}
    assert all(slip.startswith("h") for slip in slips if slip)


@pytest.mark.parametrize("category", CATEGORIES)
def test_first_wordings_tell_different_contents_apart(category):
    vocabulary = Vocabulary(set(NAMES), set(NAMES))
    rng = random.Random(category)
    contents: dict[str, set] = {}
    for _ in range(400):
        scene = sample_scene(category, vocabulary, rng)
        if scene is not None:
            contents.setdefault(captions(scene, "Noto", rng)[0], set()).add(scene.content())
            assert len(set(wordings(scene))) >= 1
    assert contents
    assert all(len(different) == 1 for different in contents.values())


def test_tinting_keeps_shading_and_shape():
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[0, :, :3], pixels[1:3, :, :3], pixels[3, :, :3] = 60, 128, 230
    pixels[0, 0, 3] = 0
    red = np.asarray(tint(Image.fromarray(pixels), words.COLOURS["red"])).astype(int)
    assert np.abs(red[1, 1, :3] - words.COLOURS["red"]).max() <= 1  # most of the thing
    assert red[0, 1, :3].sum() < red[1, 1, :3].sum() < red[3, 1, :3].sum()
    np.testing.assert_array_equal(red[..., 3], pixels[..., 3])
