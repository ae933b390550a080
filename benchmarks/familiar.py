"""Which prompts a model calls far from all that it was trained on, and how often it is wrong.

    python benchmarks/familiar.py --model latent --data data/emoji-64

Three sets of prompts: captions of scenes that were held out of training; NEAR, what a user would ask of a model of
drawings, in words of our own; FAR, what users ask of models of photographs and art. The likeness of each
(`diptych.encoders.prompt_domain`) is compared with a bound. The bound is chosen on every
other prompt of NEAR and FAR, as the one with the fewest mistakes in both (the mean of the two rates), and the rates are
stated on the others and on the scenes, for that bound and for the one in the model's file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import diptych
from diptych.evaluation.training_prompts import pooled, reader_of, wordings

NEAR = """
a red apple
a green apple
a snowman
a cat
a happy dog
a blue car
a smiling face with sunglasses
a pizza
two bananas
three red hearts
a yellow star on a blue background
a house next to a tree
a rocket
a cup of coffee
an emoji of a crying cat
a pink elephant
a red bicycle
a birthday cake with candles
a penguin on a purple background
a drawing of a lion
a slice of watermelon
the flag of Japan
a woman with red hair
an astronaut
a horse
a castle and a tree
a big dog and a small cat
a yellow bus left of a red car
four green apples
an umbrella in the rain
a spider on its web
a bowl of rice
a golden trophy
a soccer ball
a sleeping face
a green dragon
a robot head
a purple octopus
a sunflower
an ice cream cone
a wrapped gift
a police officer
a thumbs up
a broken heart
a full moon
a train
a mushroom with a red cap
an orange cat on a white background
a light bulb
a sad robot
a pair of glasses
a basketball
a chocolate bar
an open book
a red flower in a pot
a rainbow
a guitar
a blue butterfly
a mermaid
two yellow lemons and a green pear
""".strip().splitlines()
FAR = """
a photo of an astronaut riding a horse
a photo of an astronaut riding a horse on mars, high quality
a portrait of a woman in the style of Vermeer
an oil painting of a stormy sea at dusk
a photorealistic living room with large windows and a leather sofa
a crowd of people waiting at a train station in the rain
a black and white photograph of a street in Paris
a man in a suit giving a speech to an audience
two dogs running through shallow water on a beach
a plate of pasta with basil on a wooden table next to a glass of wine
a kitchen with stainless steel appliances and white cabinets
a group of children playing soccer in a field
a baseball player swinging his bat at home plate
a person on a surfboard riding a wave in the ocean
a bathroom with a sink, a toilet and a shower curtain
a woman holding an umbrella while walking her dog
a skateboarder doing a trick on a ramp
a cinematic shot of a cyberpunk city at night with neon lights
a detailed fantasy landscape with a castle on a cliff, matte painting
a macro photograph of an insect on a leaf, shallow depth of field
a renaissance fresco of angels in a cathedral
an isometric render of a small village, unreal engine, octane render
a watercolor painting of a quiet mountain lake in autumn
a vintage poster advertising a trip to the Alps
an anime girl with long silver hair standing in a field of flowers
a steampunk airship flying above a Victorian city
a corgi wearing sunglasses sits on a beach chair and drinks a cocktail
a teddy bear washing dishes in a kitchen sink
a raccoon in a suit playing chess against a fox in a library
the skyline of New York reflected in the water at sunset
an aerial view of rice terraces in the morning mist
a blueprint of a rocket engine with labels
an x-ray of a human hand
a satellite image of a hurricane over the Atlantic
a mathematician writing equations on a blackboard
a still life with skulls, candles and old books
concept art of a giant robot walking through a forest
a close-up of an old fisherman's weathered face
a bride and groom cutting their wedding cake
a traffic jam on a highway during rush hour
a surreal dreamscape where clocks melt over branches
a minimalist logo for a coffee company
a floor plan of a two-bedroom apartment
a knight fighting a dragon in front of a burning castle
the interior of a spaceship with blinking control panels
a jazz band performing on a dimly lit stage
a library with books floating in zero gravity
a sculpture of a running horse made of driftwood
a man sitting on a bench reading a newspaper
a kitchen counter covered with vegetables and knives
a large passenger airplane parked at an airport gate
a zebra and her foal grazing on the savanna at dawn
a little girl blowing out the candles on her birthday cake
a woman in a red dress dancing in the rain, cinematic lighting
an abandoned factory overgrown with ivy, volumetric light
portrait of a cyborg, intricate details, trending on artstation
a laptop and a cup of coffee on a desk by the window
a snowy street with parked cars and bare trees
a surgeon operating on a patient in a hospital
a herd of elephants crossing a dusty road
""".strip().splitlines()


def rates(near: torch.Tensor, far: torch.Tensor, bound: float) -> tuple[float, float]:
    """How much of what is near is called far, and how much of what is far is not."""
    return float((near < bound).double().mean()), float((far >= bound).double().mean())


def best(near: torch.Tensor, far: torch.Tensor) -> float:
    """The bound, in hundredths, with the smallest mean of the two rates; of several the one in the middle."""
    bounds = [step / 100 for step in range(101)]
    mistakes = [sum(rates(near, far, bound)) for bound in bounds]
    least = [bound for bound, wrong in zip(bounds, mistakes, strict=True) if wrong == min(mistakes)]
    return least[len(least) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="latent")
    parser.add_argument("--data", required=True)
    arguments = parser.parse_args()
    model: Any = diptych.load(arguments.model, "cpu")
    if model.familiar is None:
        parser.error(f"{arguments.model} has no file of its training prompts: make it with `diptych data familiar`")
    reader = reader_of(Path(model.origin.path))
    seen = set(wordings(arguments.data, "train"))
    scenes = [text for text in wordings(arguments.data, "held-out") if text not in seen]
    near, far, held_out = (model.familiar.likeness(texts, pooled(reader, texts)) for texts in (NEAR, FAR, scenes))
    bound = best(near[::2], far[::2])
    print("| prompts | number | least | 5% | median | 95% | largest |\n|-|-|-|-|-|-|-|")
    for name, values in (("held-out captions", held_out), ("NEAR", near), ("FAR", far)):
        parts = torch.quantile(values, torch.tensor([0, 0.05, 0.5, 0.95, 1])).tolist()
        print(f"| {name} | {len(values)} | " + " | ".join(f"{part:.2f}" for part in parts) + " |")
    print("\n| bound | of NEAR called far | of held-out captions called far | of FAR not called so |\n|-|-|-|-|")
    for name, value in (("chosen on every other prompt", bound), ("in the model's file", model.familiar.least)):
        (wrong, missed), (others, _) = rates(near[1::2], far[1::2], value), rates(held_out, far, value)
        counts = (
            f"{wrong:.1%} of {len(near[1::2])} | {others:.1%} of {len(held_out)} | {missed:.1%} of {len(far[1::2])}"
        )
        print(f"| {value:.2f}, {name} | {counts} |")


if __name__ == "__main__":
    main()
