"""The words that scenes are made of: clearly namable things in groups, colours, words to write, hats."""

from __future__ import annotations

import re

from diptych.data.emoji.wordlists import listed, table

GROUPS: dict[str, tuple[str, ...]] = {
    "animal": listed("""
    cat, dog, rabbit, mouse, hamster, cow, pig, ox, water buffalo, tiger, leopard, lion, horse, goat, ram,
    elephant, giraffe, zebra, kangaroo, llama, camel, gorilla, monkey, orangutan, sloth, otter, skunk, badger,
    beaver, hedgehog, chipmunk, raccoon, bat, bear, panda, koala, fox, wolf, frog, turtle, crocodile, lizard,
    snake, dragon, sauropod, whale, dolphin, shark, seal, fish, tropical fish, blowfish, octopus, squid, crab,
    lobster, snail, butterfly, bug, ant, honeybee, ladybug, cricket, beetle, spider, scorpion, mosquito,
    rooster, chicken, turkey, baby chick, hatching chick, bird, penguin, dove, eagle, duck, swan, owl, flamingo,
    peacock, parrot, deer, rhinoceros, hippopotamus, unicorn, boar, poodle, rat, bison, mammoth, dodo, polar
    bear, jellyfish, worm, fly, cockroach, goose, moose, donkey, black bird
"""),
    "food": listed("""
    melon, watermelon, tangerine, lemon, banana, pineapple, apple, pear, peach, strawberry, kiwi fruit, tomato,
    coconut, avocado, eggplant, potato, carrot, ear of corn, hot pepper, cucumber, mushroom, chestnut,
    croissant, pretzel, bagel, hamburger, pizza, hot dog, sandwich, taco, burrito, egg, waffle, cheese wedge,
    pie, doughnut, cookie, birthday cake, shortcake, cupcake, chocolate bar, lollipop, honey pot, ice cream,
    rice ball, moon cake, fortune cookie, onion, olive, bell pepper, mango
"""),
    "drink": listed("""
    cup of coffee, teapot, baby bottle, glass of milk, wine glass, cocktail glass, beer mug, tumbler glass, cup
    with straw, beverage box, tropical drink
"""),
    "vehicle": listed("""
    car, taxi, police car, ambulance, fire engine, bus, trolleybus, minibus, delivery truck, tractor, racing
    car, motorcycle, motor scooter, bicycle, kick scooter, skateboard, locomotive, tram, helicopter, airplane,
    small airplane, rocket, flying saucer, sailboat, canoe, speedboat, ferry, ship, motor boat, pickup truck,
    sled, shopping cart, monorail, roller skate
"""),
    "building": listed("""
    house, castle, church, mosque, hospital, school, bank, hotel, factory, office building, tent, stadium, hut,
    fountain, ferris wheel, circus tent, post office, synagogue, department store
"""),
    "plant": listed("""
    evergreen tree, deciduous tree, palm tree, cactus, tulip, rose, hibiscus, sunflower, seedling, four leaf
    clover, maple leaf, cherry blossom, potted plant, Christmas tree, bouquet
"""),
    "music": listed("""
    guitar, violin, trumpet, saxophone, drum, banjo, accordion, microphone, radio, bell, flute, long drum,
    musical keyboard
"""),
    "clothes": listed("""
    t-shirt, dress, kimono, bikini, handbag, purse, backpack, running shoe, high-heeled shoe, crown, top hat,
    graduation cap, necktie, scarf, coat, hiking boot, flat shoe, billed cap, lab coat, ring
"""),
    "object": listed("""
    alarm clock, watch, hourglass, camera, television, telephone, mobile phone, laptop, computer mouse,
    keyboard, printer, floppy disk, light bulb, flashlight, candle, book, notebook, newspaper, scroll, pencil,
    pen, crayon, paintbrush, paperclip, pushpin, key, old key, hammer, axe, wrench, screwdriver, ladder, magnet,
    bomb, knife, dagger, shield, sewing needle, toothbrush, broom, basket, bucket, sponge, mirror, window, door,
    bed, chair, toilet, bathtub, teddy bear, kite, balloon, wrapped gift, trophy, telescope, microscope,
    syringe, pill, crystal ball, magic wand, coin, money bag, credit card, envelope, package, anchor, umbrella,
    magnifying glass, briefcase, battery, puzzle piece, joystick, video game, fire extinguisher, toolbox, safety
    pin, game die, lipstick, razor, spoon, jar, stethoscope, parachute, boomerang, brick, hook, plunger,
    compass, gem stone, treasure chest, shovel
"""),
    "sport": listed("""
    soccer ball, basketball, American football, baseball, volleyball, tennis ball, boxing glove, bullseye, bow
    and arrow, fishing pole, yo-yo, ice skate, softball
"""),
    "sky": listed("""
    sun, star, crescent moon, rainbow, cloud, snowflake, snowman, volcano, comet, lightning bolt, ringed planet,
    tornado, mountain
"""),
    "character": listed("""
    robot, ghost, alien, ogre, goblin, clown face, skull, jack-o-lantern, mermaid, fairy, vampire, zombie,
    genie, ninja, astronaut, baby, princess, prince
"""),
}
"""Everyday objects by group; each name is a concept of the drawings."""

DRAWING_NAMES: dict[str, str] = table("""
    apple=red apple; book=closed book; knife=kitchen knife; magnifying glass=magnifying glass tilted left
""")
"""Plain names whose drawing has a longer one."""

RARE: tuple[str, ...] = listed("""
    abacus, alembic, amphora, accordion, banjo, boomerang, diya lamp, falafel, tamale, dango, nazar amulet,
    hamsa, khanda, sari, tanabata tree, moon cake, carp streamer, wind chime, barber pole, postal horn,
    sauropod, dodo, mammoth, orangutan, badger, bison, blowfish, boar, chipmunk, hyacinth, hibiscus, lotus, moai
    statue, microbe, petri dish, stethoscope, trackball, pager, pine decoration, funeral urn, fleur-de-lis, yin
    yang, shamrock, auto rickshaw, trolleybus, monorail, articulated lorry, suspension railway, aerial tramway,
    mountain railway, sparkler, firecracker, piñata, plunger, razor, satellite antenna, satellite, telescope,
    trident emblem, wheel of dharma, menorah, rosette, shinto shrine, oil drum, card index, clamp, comet,
    curling stone, beaver, sloth, skunk, lobster, scorpion, kimono, bento box, croissant, pretzel, fish cake
    with swirl, shortcake, custard, evergreen tree, deciduous tree, sheaf of rice, chestnut, seedling, mushroom,
    avocado, eggplant, hedgehog, llama, otter
""")
"""Names that few captions hold."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 41, 46),
    "orange": (246, 137, 31),
    "yellow": (250, 213, 40),
    "green": (56, 165, 66),
    "blue": (44, 105, 226),
    "purple": (136, 62, 190),
    "pink": (250, 130, 186),
    "brown": (132, 82, 44),
    "black": (44, 44, 48),
    "white": (245, 245, 245),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (240, 110, 104),
    "orange": (252, 184, 112),
    "yellow": (255, 238, 140),
    "green": (156, 216, 146),
    "blue": (142, 190, 245),
    "purple": (196, 160, 232),
    "pink": (255, 196, 220),
    "grey": (188, 190, 196),
    "black": (32, 33, 38),
}
INK = ("black", "red", "blue", "green", "purple")
"""Colours of written words."""

USUAL: dict[str, str] = table("""
    banana=yellow; tomato=red; carrot=orange; cucumber=green; lemon=yellow; strawberry=red; eggplant=purple;
    tangerine=orange; frog=green; pig=pink; crocodile=green; elephant=grey; penguin=black; flamingo=pink;
    lobster=red; baby chick=yellow; swan=white; fire engine=red; sun=yellow; snowman=white; cactus=green;
    sunflower=yellow; rose=red; evergreen tree=green; whale=blue; fox=orange; tiger=orange; monkey=brown;
    bear=brown; camel=brown; pear=green; apple=red; cookie=brown; croissant=brown; pineapple=yellow;
    watermelon=green; ghost=white; jack-o-lantern=orange; crab=red; turtle=green; ladybug=red; honeybee=yellow;
    duck=brown; maple leaf=red; four leaf clover=green; crown=yellow; potato=brown; polar bear=white;
    mouse=grey; rat=grey; shark=blue; dolphin=blue; gorilla=black; moose=brown; lion=yellow
""")
"""The colour that a thing has as everybody knows; scenes of the category "conflicting" go against it."""

LARGE = listed("""
    elephant, whale, giraffe, rhinoceros, hippopotamus, bus, house, castle, ship, airplane, mountain, fire
    engine, locomotive, gorilla, camel, horse, cow, church, palm tree, rocket, tractor, sauropod, polar bear,
    shark
""")
SMALL = listed("""
    mouse, ant, ladybug, butterfly, snail, honeybee, hamster, frog, strawberry, mushroom, key, pencil, candle,
    spider, worm, cookie, coin, egg, paperclip, ring, pill, cricket, cherry blossom
""")
"""Large things that a "conflicting" scene draws small beside small things drawn big."""

WRITABLE = listed("""
    yes, no, hi, hello, love, fun, cat, dog, sun, moon, star, open, stop, go, art, zoo, wow, hot, cold, big,
    tea, day, night, one, two, ten, red, blue, home, run, joy, hope, peace, happy, lucky, magic, king, sky, sea,
    ice, fire, play, jump, sing, gold, new, sale, free, top, win, bye, thanks, party, fish, bird, apple, music,
    dream, good, best
""")

FACES = listed("""
    cat face, dog face, pig face, mouse face, cow face, rabbit face, tiger face, horse face, monkey face, bear,
    panda, koala, frog, fox, lion, wolf, hamster, skull, alien, robot, clown face, grinning face, smiling face
    with sunglasses
""")
HATS = listed("crown, top hat, graduation cap, billed cap, rescue worker's helmet")
"""Hats that "dalle" scenes put on faces."""

_IRREGULAR = table("""
    mouse=mice; goose=geese; wolf=wolves; leaf=leaves; knife=knives; fish=fish; deer=deer; moose=moose;
    bison=bison; squid=squid; ox=oxen; die=dice; dress=dresses; child=children; fly=flies; foot=feet;
    tooth=teeth; box=boxes; blossom=blossoms; axe=axes; man=men; fishing=fishing; tomato=tomatoes;
    potato=potatoes; mango=mangoes; bus=buses; watch=watches; jellyfish=jellyfish; blowfish=blowfish;
    calf=calves; scarf=scarves; snowman=snowmen; genie=genies; mosquito=mosquitoes; buffalo=buffaloes;
    volcano=volcanoes; antenna=antennas; cactus=cacti
""")


def plural(name: str) -> str:
    """More than one: "cats", "cups of coffee", "mice"."""
    if match := re.match(r"(.+?)( (?:of|with|in|on) .+)$", name):
        return plural(match[1]) + match[2]
    *before, last = name.split(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif re.search(r"(s|x|z|ch|sh)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*before, last])


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
