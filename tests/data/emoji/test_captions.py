import pytest

from diptych.data.emoji.captions import article, captions, clean_name, keyword_list
from diptych.data.emoji.scene_words import FACES, GROUPS, HATS, LARGE, RARE, SMALL, USUAL, plural


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("red apple", "a red apple"),
        ("eggplant", "an eggplant"),
        ("hourglass", "an hourglass"),
        ("unicorn", "a unicorn"),
        ("ewe", "a ewe"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("OK button", "an OK button"),
        ("A button", "an A button"),
        ("VS button", "a VS button"),
        ("grapes", "grapes"),
        ("scissors", "scissors"),
        ("octopus", "an octopus"),
        ("bacon", "bacon"),
        ("glass of milk", "a glass of milk"),
        ("slice of bread", "a slice of bread"),
        ("houses", "houses"),
        ("face savoring food", "a face savoring food"),
        ("red triangle pointed up", "a red triangle pointed up"),
        ("woman lifting weights", "a woman lifting weights"),
        ("person playing handball", "a person playing handball"),
        ("women wrestling", "women wrestling"),
        ("Statue of Liberty", "the Statue of Liberty"),
        ("thumbs up", "thumbs up"),
        ("two hearts", "two hearts"),
    ],
)
def test_names_get_the_article_that_english_wants(name, said):
    assert article(name) == said


@pytest.mark.parametrize(
    ("short_name", "concept"),
    [
        ("man: beard", "man with a beard"),
        ("woman: red hair", "woman with red hair"),
        ("person: bald", "bald person"),
        ("family: man, woman, boy", "family of a man, a woman and a boy"),
        ("kiss: woman, man", "kiss between a woman and a man"),
        ("keycap: 3", "keycap 3"),
        ("three o’clock", "clock face showing three o'clock"),
        ("Japanese “here” button", 'Japanese "here" button'),
        ("O button (blood type)", "O button"),
        ("woman getting haircut", "woman getting a haircut"),
        ("man in motorized wheelchair: facing right", "man in a motorized wheelchair facing right"),
        ("men’s room", "men's room sign"),
        ("Leo", "Leo zodiac sign"),
        ("high voltage", "lightning bolt"),
    ],
)
def test_clean_name(short_name, concept):
    assert clean_name(short_name) == concept


def test_captions_are_plain_then_styled_and_all_different():
    lines = captions("red apple", "Noto", ("apple", "fruit", "red", "ripe"), "noto-1f34e")
    assert lines[0] == "a red apple"
    assert lines[1] == "a red apple, in the style of Noto"
    assert 6 <= len(lines) == len(set(lines)) <= 8
    assert all("apple" in line for line in lines)
    assert lines == captions("red apple", "Noto", ("apple", "fruit", "red", "ripe"), "noto-1f34e")
    assert any("fruit" in line or "ripe" in line for line in lines)


def test_keywords_exclude_words_of_the_name_and_slang():
    assert keyword_list("red apple", ("apple", "red", "fruit", "143", "bestest", "x")) == ["fruit"]


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cat", "cats"),
        ("mouse", "mice"),
        ("computer mouse", "computer mice"),
        ("cup of coffee", "cups of coffee"),
        ("glass of milk", "glasses of milk"),
        ("wolf", "wolves"),
        ("fox", "foxes"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("fish", "fish"),
        ("tropical fish", "tropical fish"),
        ("tomato", "tomatoes"),
        ("ear of corn", "ears of corn"),
        ("bus", "buses"),
        ("torch", "torches"),
    ],
)
def test_plurals(one, many):
    assert plural(one) == many


def test_every_word_of_the_scenes_is_one_countable_thing():
    every = [*RARE, *FACES, *HATS, *LARGE, *SMALL, *USUAL, *(name for group in GROUPS.values() for name in group)]
    assert [name for name in every if not article(name).startswith(("a ", "an "))] == []
    grouped = [name for group in GROUPS.values() for name in group]
    assert len(grouped) == len(set(grouped))
