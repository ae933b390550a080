"""Records images of the embedded models: `python -m tests.saved.record_images` writes images.json and images.npz."""

from __future__ import annotations

from typing import Any

import diptych
from tests.saved.replay import generate, write

WIDE = {"picture": [80, 64]}
SMALL = [64, 64]
LONG = "a red apple on a wooden table beside a blue cup, " * 12 + "and a yellow lemon"


def call(name: str, model: str, prompts: str | list[str], **options: Any) -> dict[str, Any]:
    return {"name": name, "model": model, "prompts": prompts, "options": options}


CALLS = [
    call("latent defaults", "latent", "a red apple", steps=6),
    call("latent ddim", "latent", "a green tree", seeds=[7], steps=4, sampler="ddim", guidance=1.0),
    call("latent ddpm", "latent", "a blue house", seeds=[8], steps=4, sampler="ddpm", guidance=4.0, size=SMALL),
    call("latent euler-ancestral", "latent", "two cats", seeds=[9], steps=4, sampler="euler-ancestral", size=SMALL),
    call("latent dpmpp-2m-sde", "latent", "a yellow star", seeds=[10], steps=4, sampler="dpmpp-2m-sde", size=SMALL),
    call(
        "latent dpmpp-3m", "latent", "a sun", seeds=[3], steps=5, sampler="dpmpp-3m", schedule_type="karras", size=SMALL
    ),
    call("latent heun", "latent", "a dog", seeds=[11], steps=3, sampler="heun", schedule_type="leading", size=SMALL),
    call("latent unipc", "latent", "a fish", seeds=[12], steps=4, sampler="unipc", schedule_type="beta", size=SMALL),
    call("latent negative", "latent", "an apple", seeds=[13], steps=4, guidance=3.0, negative="red", size=SMALL),
    call(
        "latent batch",
        "latent",
        ["a red apple", "a house", "two cats beside a tree"],
        seeds=[2**63 - 1, 5, 5],
        size=SMALL,
        steps=3,
        negative=["", "blue", "green"],
    ),
    call("latent size and tile", "latent", "a red apple", seeds=[14], steps=3, size=[160, 96], tile=64),
    call("latent image", "latent", "a face", seeds=[15], steps=6, image=WIDE, strength=0.5, fit="crop", size=SMALL),
    call("latent image alone", "latent", "", seeds=[16], steps=4, image=WIDE, sampler="ddpm", fit="pad", size=SMALL),
    call("latent mask", "latent", "a heart", seeds=[17], steps=4, image=WIDE, mask={"mask": [80, 64]}, size=[80, 64]),
    call(
        "latent mask and paste",
        "latent",
        "a heart",
        seeds=[18],
        steps=4,
        image=WIDE,
        size=[80, 64],
        mask={"mask": [80, 64]},
        paste=True,
        strength=0.75,
        sampler="euler-ancestral",
    ),
    call(
        "latent weights", "latent", "a (red:1.4) apple and a [blue] cup", seeds=[19], steps=3, weights=True, size=SMALL
    ),
    call("latent chunks", "latent", LONG, seeds=[20], steps=3, long_prompts="chunks", size=SMALL),
    call("cascade base", "cascade", ["a red apple", "a blue house"], seeds=[1, 2], steps=8, stop=1),
    call("cascade base ddpm", "cascade", "a tree", steps=6, stop=1, sampler="ddpm", threshold="none"),
    call(
        "cascade base dynamic",
        "cascade",
        "a tree",
        steps=6,
        stop=1,
        guidance=7.0,
        threshold="dynamic:0.95:1.5",
        negative="green",
    ),
    call("cascade base karras", "cascade", "a dog", steps=6, stop=1, sampler="dpmpp-2m", schedule_type="karras"),
    call("cascade base unguided", "cascade", "a dog", steps=5, stop=1, sampler="heun", guidance=1.0),
    call("cascade base unipc", "cascade", "a dog", seeds=[5], steps=5, stop=1, sampler="unipc", weights=True),
    call("cascade two stages", "cascade", "a cat", steps=[5, 2], stop=2, sampler=["dpmpp-2m-sde", "ddim"]),
    call("cascade image", "cascade", "a cat", seeds=[3], steps=5, stop=2, image={"picture": [128, 128]}, strength=0.6),
    call(
        "cascade mask",
        "cascade",
        "a cat",
        seeds=[4],
        steps=4,
        stop=2,
        image={"picture": [128, 128]},
        mask={"mask": [128, 128]},
    ),
    call("cascade low", "cascade", "waves", steps=2, low={"picture": [32, 32]}, start=1, stop=2, augmentation=0.3),
    call("cascade chunks", "cascade", LONG, seeds=[6], steps=4, stop=1, long_prompts="chunks"),
    call("cascade whole", "cascade", "a red apple", seeds=[1], steps=[4, 1, 1], augmentation=[None, 0.1, None]),
]
"""Every option of `generate` that changes the image, on few steps."""


def main() -> None:
    models: dict[str, Any] = {name: diptych.load(name, device="cpu") for name in ("latent", "cascade")}
    write("images", CALLS, [generate(models[call["model"]], call) for call in CALLS])


if __name__ == "__main__":
    main()
