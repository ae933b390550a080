"""How sharp a model's images are beside real ones: the share of their power in fine detail.

    python benchmarks/sharpness.py --model latent --data data/emoji-128 --images 32

Prompts are held-out drawings; image and real drawing are brought to the data's size (bicubic), and the power of
their luminance above a quarter of a cycle a pixel (structures of four pixels and finer) is compared. 1 is as sharp as
real; what is only enlarged lies near 0.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from PIL import Image

import diptych
from diptych.evaluation.prompt_sets import draw_examples, prompt_of


def fine(image: Image.Image, size: int) -> float:
    """Power of the luminance above 0.25 cycles a pixel."""
    grey = (
        np.asarray(image.convert("L").resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    )  # (S, S)
    power = np.abs(np.fft.fft2(grey)) ** 2 / grey.size**2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))  # (S, S), cycles a pixel
    return float(power[frequency > 0.25].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="latent")
    parser.add_argument("--data", default="data/emoji-128")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--images", "--pictures", type=int, default=32)
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    model = diptych.load(arguments.model)
    _, examples = draw_examples(arguments.data, "held-out", arguments.size, arguments.images, seed=0)
    examples = [one for one in examples if one.meta.get("kind") == "single"]
    real = np.array([fine(Image.fromarray(one.image), arguments.size) for one in examples])
    made: list[float] = []
    for start in range(0, len(examples), 8):
        part = examples[start : start + 8]
        prompts = [prompt_of(one.captions, scene=False) for one in part]
        result = model.generate(prompts, seeds=list(range(start, start + len(part))), steps=arguments.steps)
        made += [fine(image, arguments.size) for image in result.images]
    ratio = np.array(made) / real
    told = {
        "model": arguments.model,
        "images": len(real),
        "size": arguments.size,
        "share_of_real": float(np.median(ratio)),
    }
    print(json.dumps(told | {"quartiles": [float(x) for x in np.percentile(ratio, (25, 75))]}))


if __name__ == "__main__":
    main()
