"""Words that no caption of the emoji data says, and the concepts that a person would expect an image of them to show.

Written by hand, and checked against every caption (`novel_words.py` does it again for the data that it is given). The
captions say more than the names do: "puppy", "kitty", "infant" and "automobile" are among their keywords, so they
are not here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diptych.data.caption_text import concept_of, is_scene

ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True)
class WordPair:
    """A wording, and the concepts that it should show."""

    prompt: str
    """For example "a pup", "a joyful face"."""
    words: tuple[str, ...]
    """Those of its words that must be unseen; a seen noun may hold up an adjective."""
    concepts: tuple[str, ...]
    """Concepts any of which is right, the nearest first."""


def read_pairs(text: str) -> tuple[WordPair, ...]:
    """One line a meaning, `a wording, another = concept, another`; `[ ]` marks what is unseen where not all is."""
    pairs = []
    for line in filter(None, map(str.strip, text.splitlines())):
        left, _, right = line.partition("=")
        concepts = tuple(part.strip() for part in right.split(","))
        for wording in map(str.strip, left.split(",")):
            words = " ".join(re.findall(r"\[(.+?)\]", wording)) or wording
            pairs.append(
                WordPair(
                    wording.replace("[", "").replace("]", ""),
                    tuple(w for w in words.lower().split() if w not in ARTICLES),
                    concepts,
                )
            )
    return tuple(pairs)


ANIMALS = """
a pup, a hound = dog face, dog, guide dog, service dog, poodle
a tomcat = cat face, cat, black cat
a hog = pig face, pig, boar
a stallion = horse, horse face
a heifer = cow, cow face, ox
a hen = chicken, rooster
a viper = snake
an alligator = crocodile
an iguana = lizard
a toad = frog
a tarantula = spider
a moth = butterfly, monarch butterfly
a hornet = honeybee
a chimpanzee = monkey, monkey face, gorilla, orangutan, see-no-evil monkey
a tigress = tiger, tiger face
a stag = deer, doe
a rodent = mouse, mouse face, rat, hamster, chipmunk
a coyote = wolf, fox
a falcon = eagle
a cockatoo = parrot, macaw
a sparrow = bird, black bird
a tyrannosaurus = T-Rex
a salmon = fish, tropical fish, goldfish
a crustacean = crab, lobster, shrimp
"""

PLACES = """
a sedan = car, oncoming car
a jeep = sport utility vehicle, car
a chopper = helicopter
an airliner = airplane, small airplane
a spaceship = rocket, flying saucer, space shuttle
a moped = motor scooter, motorcycle, kick scooter
a kayak = canoe, person rowing a boat
a schooner = sailboat
a freighter = ship, passenger ship, ferry
a cottage = house, house with garden, houses, hut
a cathedral = church
a skyscraper = office building, cityscape
a fortress = castle, Japanese castle
an infirmary = hospital
a tepee = tent, campsite
lava = volcano, erupting volcano, volcano with ashes
an inferno = fire, forest fire, house on fire
a downpour = cloud with rain, sun behind rain cloud, cloud with lightning and rain, umbrella with rain drops
a blizzard = cloud with snow, snowflake
a spruce = evergreen tree, Christmas tree
an oak = deciduous tree
a daisy = blossom, white flower, sunflower
an orchid = hibiscus, blossom, cherry blossom, tulip, lotus, hyacinth, rose
daybreak = sunrise, sunrise over mountains
"""

FOOD = """
a mandarin = tangerine, half an orange
a zucchini = cucumber, pickle
a spud = potato
lettuce = leafy green vegetable, green salad
a jalapeno = hot pepper
mozzarella = cheese wedge
a bratwurst = hot dog
beef = cut of meat, meat on the bone
a panini = sandwich, stuffed flatbread
macaroni = spaghetti
ravioli = dumpling
broth = pot of food, steaming bowl, bowl with spoon, shallow pan of food
sashimi = sushi
a muffin = cupcake
a biscuit = cookie, rice cracker, fortune cookie
a tart = pie
a gateau = birthday cake, shortcake, cupcake, moon cake
gelato = ice cream, soft ice cream, shaved ice
a cappuccino = cup of coffee, latte macchiato, teacup without handle
lager = beer mug, clinking beer mugs, bottle of beer
a martini = cocktail glass, tropical drink
champagne = bottle with popping cork, clinking glasses, wine glass
parsley = sprig of herbs
"""

PEOPLE = """
a lad = boy, boy standing
a lass = girl, girl standing
a toddler = child, baby, boy, girl
a surgeon = health worker, man health worker, woman health worker, male doctor, female doctor
a sheriff = police officer, man police officer, woman police officer
dracula = vampire, man vampire, woman vampire
a phantom = ghost
a cranium = skull, skull and crossbones
a droid = robot
a pixie = fairy, man fairy, woman fairy
a cherub = baby angel, smiling face with halo
a buccaneer = pirate with hook, pirate with sword, male pirate, female pirate, pirate flag
a cosmonaut = astronaut, man astronaut, woman astronaut
a tutor = teacher, man teacher, woman teacher
a vocalist = singer, man singer, woman singer
a ballerina = ballet dancer, woman dancing, ballet shoes
an aviator = pilot, man pilot, woman pilot
a molar = tooth
a nostril = nose
"""

THINGS = """
a tiara = crown
a gown = dress
a mitten = gloves
spectacles = glasses, sunglasses
a cravat = necktie
a knapsack = backpack
a wallet = purse, clutch bag, handbag
a brolly = umbrella, closed umbrella, umbrella with rain drops, umbrella on ground
an emerald = gem stone, ring
a telly = television
a mallet = hammer
a sabre = crossed swords, dagger
a grenade = bomb
a paperback = closed book, open book, books, blue book, green book, orange book
a sofa = couch and lamp, armchair
a mattress = bed
a loo = toilet
a ukulele = guitar, banjo
a fiddle = violin
a bugle = trumpet, postal horn
a melody = musical note, musical notes, musical score
a penny = coin
a vaccine = syringe
a cigar = cigarette
a casket = coffin
a tombstone = headstone
excrement = pile of poo
a kettle = teapot
a goblet = wine glass, trophy
a frisbee = flying disc
a tabloid = newspaper, rolled-up newspaper
a rosary = prayer beads
applause = clapping hands
"""

FACES = """
a [joyful] face, a [cheerful] face = grinning face, grinning face with big eyes, \
grinning face with smiling eyes, beaming face with smiling eyes, smiling face, smiling face with smiling eyes, \
grinning squinting face, slightly smiling face, smiling face with open hands
a [weeping] face = loudly crying face, crying face
a [gloomy] face = frowning face, slightly frowning face, disappointed face, pensive face, \
crying face, dejected face, worried face
a [furious] face = angry face, enraged face, face with symbols on mouth, \
face with steam from nose, angry face with horns
a [terrified] face = fearful face, face screaming in fear, anguished face, \
anxious face with sweat
an [amazed] face = astonished face, hushed face, face with open mouth, exploding head, \
face with open eyes and hand over mouth, star-struck face
a [drowsy] face = sleepy face, sleeping face, yawning face, tired face
a [baffled] face = confused face, thinking face, confounded face, face with raised eyebrow
a [queasy] face = nauseated face, face vomiting, woozy face
a [feverish] face = face with thermometer, hot face
a [bashful] face = flushed face, smiling face with smiling eyes, smiling face, face with hand over mouth
a [smitten] face = smiling face with heart-eyes, smiling face with hearts, face blowing a kiss
a [greedy] face = money-mouth face
a [shivering] face = cold face, shaking face
a [saintly] face = smiling face with halo
a [fiendish] face = smiling face with horns, angry face with horns
an [indifferent] face = neutral face, expressionless face, unamused face
a [goofy] face = zany face, face with tongue, winking face with tongue, squinting face with tongue
"""

PAIRS = read_pairs((ANIMALS + PLACES + FOOD + PEOPLE + THINGS + FACES).replace("\\\n", ""))
"""The default list of `diptych evaluate novel-words`."""


@dataclass(frozen=True)
class WordTrial:
    """A pair that holds for some data: its word is new there, and its concepts are not."""

    place: int
    """In the list of pairs: decides the seeds, so that a dropped pair changes no other's images."""
    prompt: str
    control: str
    """The caption of the nearest concept, as the training data words it."""
    concepts: tuple[str, ...]


def choose_trials(
    metas: Sequence[dict[str, Any]], pairs: Sequence[WordPair]
) -> tuple[list[WordTrial], dict[str, list[str]]]:
    """The pairs that hold for some data, and the prompts of those that were dropped, by reason.

    "said": a training caption, of a drawing or a scene, has the word or another form of it; "not shown": no training
    drawing shows any of the concepts.
    """
    training = [meta for meta in metas if meta.get("split") != "held-out"]
    stems = {stem(word) for meta in training for caption in meta["captions"] for word in spelt(caption)}
    captions = {concept_of(meta): meta["captions"][0] for meta in reversed(training) if not is_scene(meta)}
    trials: list[WordTrial] = []
    dropped: dict[str, list[str]] = {"said": [], "not shown": []}
    for place, pair in enumerate(pairs):
        concepts = tuple(concept for concept in pair.concepts if concept in captions)
        if any(stem(word) in stems for part in pair.words for word in spelt(part)):
            dropped["said"].append(pair.prompt)
        elif not concepts:
            dropped["not shown"].append(pair.prompt)
        else:
            trials.append(WordTrial(place, pair.prompt, captions[concepts[0]], concepts))
    return trials, dropped


def spelt(text: str) -> list[str]:
    """The words of a text, in small letters."""
    return re.findall(r"[^\W_]+", text.lower())


def stem(word: str) -> str:
    """A word without its inflection, roughly: it must not miss a form that was said, and may confuse a few words."""
    for ending, instead in (("ies", "y"), ("ied", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending) + instead
            if ending in ("ing", "ed"):
                word = re.sub(r"([bdgklmnprtz])\1$", r"\1", word)  # sobbing, sob
            break
    return word[:-1] if word.endswith("e") and len(word) > 3 else word
