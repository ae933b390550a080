"""The latent panel from an image, with and without a mask: what `generate` and the command promise and refuse."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.cli import main as cli
from diptych.core.errors import UserError
from diptych.core.images import to_tensor
from diptych.core.random import POSTERIOR, GeneratorDraws
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedules import ScheduleConfig
from diptych.models.autoregressive import Autoregressive
from diptych.models.cascade import Cascade
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.models.pixel_diffusion import PixelDiffusion
from tests.cli.test_cli import one_line
from tests.cli.test_output import metadata_of
from tests.models.latents import CAPTIONS, arrays, config, same_image, system

FLOW = {"schedule": ScheduleConfig(kind="flow"), "prediction": "flow"}
SEEDS = [5, 0, 2**63 - 1]
PROMPTS = [CAPTIONS[0], CAPTIONS[1], CAPTIONS[0] + " with a cat"]
STEPS = 4


def repainter(**changes: Any) -> LatentDiffusion:
    """A model that was trained to repaint, but for the training."""
    return system(unet=config().unet.override(["concat_channels=5"]), **changes)


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return system()


def picture(seed: int = 0, width: int = 16, height: int = 16) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    values = np.stack([(x + 5 * seed) // 4 % 2, y // 6 % 2, (x + y + seed) // 8 % 2], -1)
    return Image.fromarray((60 + 120 * values).astype(np.uint8))


def mask(left: int = 6, width: int = 16, height: int = 16) -> Image.Image:
    values = np.zeros((height, width), np.uint8)
    values[2:-3, left:] = 255
    return Image.fromarray(values)


# An image of its own for each, and the same in any company


def sampled(kinds: Sequence[str]) -> list[Any]:
    """Every sampler with every kind; one of each sampler is fast, and of the next sampler the next."""
    pairs = itertools.product(enumerate(SAMPLERS), enumerate(kinds))
    slow = pytest.mark.slow
    return [pytest.param(s, k, id=f"{k}-{s}", marks=[slow] if (i + j) % len(kinds) else []) for (i, s), (j, k) in pairs]


@pytest.mark.parametrize(("sampler", "kind"), sampled(["over", "anew", "anew-0.5", "trained"]))
def test_a_seed_gives_its_image_alone_and_in_any_company(sampler: str, kind: str) -> None:
    model = repainter() if kind == "trained" else system(**(FLOW if kind == "anew" else {}))
    options: dict[str, Any] = {"sampler": sampler, "steps": STEPS}
    options |= {"strength": 0.5} if kind in ("over", "anew-0.5") else {}
    images = [picture(i) for i in range(3)]
    masks = None if kind == "over" else [mask(i + 4) for i in range(3)]
    together = model.generate(PROMPTS, seeds=SEEDS, image=images, mask=masks, **options)
    shown = arrays(together)
    assert np.mean((shown > 0) & (shown < 255)) > 0.5 and np.abs(shown[0] - shown[1]).max() > 1
    for i in (0, 2):
        one = masks and masks[i]
        alone = model.generate(PROMPTS[i], seeds=[SEEDS[i]], image=images[i], mask=one, **options)
        assert same_image(alone.images[0], together.images[i])


@pytest.mark.parametrize("make", [system, repainter])
def test_one_image_and_mask_stand_for_all(make) -> None:
    model = make()
    one = model.generate(PROMPTS, image=picture(), mask=mask(), strength=0.5)
    each = model.generate(PROMPTS, image=[picture()] * 3, mask=[mask()] * 3, strength=0.5)
    assert all(same_image(a, b) for a, b in zip(one.images, each.images, strict=True))
    assert np.abs(arrays(one)[0] - arrays(one)[2]).max() > 1


def test_the_metadata_and_the_image_are_enough_to_make_it_again(model: LatentDiffusion) -> None:
    options: dict[str, Any] = {"image": picture(width=24), "mask": mask(width=24), "strength": 0.7, "paste": True}
    result = model.generate(PROMPTS, seeds=SEEDS, steps=STEPS, **options)
    for image, row in zip(result.images, json.loads(json.dumps(result.metadata)), strict=True):
        assert image.size == (24, 16) and row["size"] == [24, 16]
        assert "sha256" in row["image"] and "sha256" in row["mask"] and (row["strength"], row["paste"]) == (0.7, True)
        again = {
            key: value for key, value in row.items() if key not in ("prompt", "seed", "image", "mask", "cost", "notes")
        }
        again |= {"image": picture(width=24), "mask": mask(width=24)}
        assert same_image(model.generate(row["prompt"], seeds=[row["seed"]], **again).images[0], image)
    plain = model.generate(CAPTIONS[0]).metadata[0]
    assert not {"image", "mask", "strength", "paste"} & set(plain)


# What of the image is left


def test_the_lower_the_strength_the_nearer_the_image() -> None:
    """Of a model whose U-Net says nothing: x_0 = x_t / alpha, which is the image and sigma / alpha of noise."""
    model = system()
    torch.nn.init.zeros_(model.unet.conv_out.weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(model.unet.conv_out.bias)  # type: ignore[arg-type]
    seen: dict[float, torch.Tensor] = {}
    for strength in (0.2, 0.5, 1.0):
        model.generate(
            CAPTIONS[0],
            steps=10,
            image=picture(),
            strength=strength,
            callback=lambda step, count, x0, s=strength: seen.setdefault(s, x0),
        )
    draws = GeneratorDraws(torch.tensor([0]))
    known = model.encode(to_tensor([picture()]), draws, POSTERIOR)
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    for strength, x0 in seen.items():
        alpha, sigma = model.schedule.alpha_sigma(torch.tensor(strength, dtype=torch.float64))
        torch.testing.assert_close(x0, known + (sigma / alpha).float() * noise, rtol=1e-4, atol=1e-4)


def test_the_callback_counts_the_steps_that_are_taken(model: LatentDiffusion) -> None:
    steps: list[tuple[int, int]] = []
    model.generate(CAPTIONS[0], steps=8, image=picture(), strength=0.5, callback=lambda i, n, x0: steps.append((i, n)))
    assert steps == [(i, 4) for i in range(4)]


@pytest.mark.parametrize("make", [system, repainter])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_paste_puts_the_pixels_back_exactly(make, strength: float) -> None:
    model, image, where = make(), picture(width=24), np.asarray(mask(width=24)) > 0
    given: dict[str, Any] = {"image": image, "mask": mask(width=24), "strength": strength}
    plain, pasted = (arrays(model.generate(CAPTIONS[0], paste=paste, **given))[0] for paste in (False, True))
    assert np.array_equal(pasted[~where], np.asarray(image)[~where]) and np.array_equal(pasted[where], plain[where])
    assert np.abs(plain - pasted).max() > 1, "the autoencoder changes them"


def test_what_is_known_is_decoded_from_its_own_latent(model: LatentDiffusion) -> None:
    """At the end the latent outside of the mask is the encoder's sample, and the callback sees it there all the way."""
    seen: list[torch.Tensor] = []
    model.generate(
        CAPTIONS[0], seeds=[3], image=picture(), mask=mask(), callback=lambda i, n, x0: seen.append(x0.clone())
    )
    known = model.encode(to_tensor([picture()]), GeneratorDraws(torch.tensor([3])), POSTERIOR)
    where = torch.from_numpy(np.asarray(mask())[::2, ::2] > 0).expand_as(known)
    assert all(torch.equal(x0[~where], known[~where]) for x0 in seen) and len(seen) == 3
    assert not torch.equal(seen[-1][where], known[where])


def test_a_model_that_repaints_reads_the_mask_and_what_is_left() -> None:
    model, rows = repainter(), []
    run = model.unet.forward

    def spy(*given: Any, concat: torch.Tensor, **more: Any) -> torch.Tensor:
        rows.append(concat)
        return run(*given, concat=concat, **more)

    model.unet.forward = spy  # type: ignore[method-assign]
    options: dict[str, Any] = {"image": picture(), "mask": mask()}
    first = model.generate(CAPTIONS[0], **options)
    assert all(len(concat) == 2 for concat in rows), "both halves of the guidance see it"
    assert torch.equal(rows[0][0, 0], torch.from_numpy(np.asarray(mask())[::2, ::2] / 255).float())
    hidden = np.asarray(picture()).copy()
    hidden[np.asarray(mask()) > 0] = 7
    other = model.generate(CAPTIONS[0], **{**options, "image": Image.fromarray(hidden)})
    assert np.array_equal(arrays(first), arrays(other)), "what is under the mask is never seen"


# What is refused

BAD: list[tuple[dict[str, Any], str]] = [
    ({"strength": 0.5}, "strength is for an image"),
    ({"mask": mask()}, "mask is for an image"),
    ({"paste": True}, "paste is for an image"),
    ({"image": picture(), "strength": 0.3}, "strength 0.3 of 3 steps leaves none to take"),
    ({"image": picture(), "strength": float("nan")}, "strength must be a finite number"),
    ({"image": picture(), "mask": mask(width=24)}, "give a mask of the image's shape"),
    ({"image": picture(), "mask": Image.new("1", (16, 16))}, "the mask is black"),
    (
        {"image": picture(width=24), "noise": torch.zeros(1, 4, 8, 8)},
        r"noise must be a tensor of shape \(1, 4, 8, 12\)",
    ),
    ({"image": picture(width=80)}, "longer side may be at most 4 times the shorter"),
]


@pytest.mark.parametrize(("bad", "says"), BAD, ids=[f"{next(iter(bad))}-{i}" for i, (bad, _) in enumerate(BAD)])
def test_what_makes_no_sense_is_refused_before_any_work(model: LatentDiffusion, bad: dict[str, Any], says: str) -> None:
    before = model.denoiser.calls
    with pytest.raises(UserError, match=says) as caught:
        model.generate(CAPTIONS[0], **bad)
    assert "\n" not in str(caught.value) and model.denoiser.calls == before


# The command


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    system().save(root / "latent")
    repainter().save(root / "repainter")
    return {name: str(root / name) for name in ("latent", "repainter")}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture().save("p.png")
    mask().save("m.png")
    mask(width=32).save("wide.png")
    Image.new("L", (16, 16)).save("black.png")
    picture(width=96).save("long.png")
    Path("words.txt").write_text("no picture")


@pytest.mark.parametrize("name", ["latent", "repainter"])
def test_the_command_paints_what_generate_paints(files: None, folders: dict[str, str], name: str) -> None:
    words = ["generate", "a cat", "--model", folders[name], "--count", "3", "--batch", "2"]
    given = ["--image", "p.png", "--mask", "m.png", "--strength", "0.7", "--paste"]
    assert cli.main([*words, *given]) == 0
    model = repainter() if name == "repainter" else system()
    options: dict[str, Any] = {"image": picture(), "mask": mask(), "strength": 0.7, "paste": True}
    wanted = model.generate(["a cat"] * 3, seeds=[0, 1, 2], **options)
    for seed, image in enumerate(wanted.images):
        with Image.open(f"out/a-cat-s{seed}.png") as shown:
            assert same_image(shown, image)
        row = metadata_of(f"out/a-cat-s{seed}.png")
        assert (row["image"]["file"], row["mask"]["file"], row["strength"], row["paste"]) == (
            "p.png",
            "m.png",
            0.7,
            True,
        )


def test_the_command_paints_over_an_image(files: None, folders: dict[str, str]) -> None:
    assert cli.main(["generate", "a cat", "--model", folders["latent"], "--image", "p.png"]) == 0
    row = metadata_of("out/a-cat-s0.png")
    assert row["strength"] == 0.8 and "mask" not in row
    with Image.open("out/a-cat-s0.png") as shown:
        assert same_image(shown, system().generate("a cat", image=picture()).images[0])


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("latent", ["--strength", "0.5"], "--strength goes with --image: give both"),
        ("latent", ["--mask", "m.png"], "--mask goes with --image"),
        ("latent", ["--paste"], "--paste goes with --image"),
        ("latent", ["--image", "p.png", "--paste"], "--paste goes with --mask"),
        (
            "latent",
            ["--image", "p.png", "--strength", "nan"],
            "argument --strength: must be a finite number, not nan",
        ),
        (
            "latent",
            ["--image", "p.png", "--strength", "much"],
            "argument --strength: must be a finite number, not 'much'",
        ),
        (
            "latent",
            ["--image", "p.png", "--strength", "0"],
            "argument --strength: must be more than 0 and at most 1, not 0",
        ),
        (
            "latent",
            ["--image", "p.png", "--strength", "1.5"],
            "argument --strength: must be more than 0 and at most 1, not 1.5",
        ),
        ("latent", ["--image", "p.png", "--strength", "0.1"], "strength 0.1 of 3 steps leaves none to take"),
        ("latent", ["--image", "nothing.png"], "nothing.png is no file"),
        ("latent", ["--image", "words.txt"], "not a PNG, JPEG or WebP image"),
        ("latent", ["--image", "long.png"], "longer side may be at most 4 times the shorter"),
        ("latent", ["--image", "p.png", "--mask", "wide.png"], "give a mask of the image's shape"),
        ("latent", ["--image", "p.png", "--mask", "black.png"], "the mask is black where it counts"),
        ("repainter", [], "give it an image and a mask that is white where to generate, --image and --mask"),
        ("repainter", ["--image", "p.png"], "give it an image and a mask"),
    ],
)
def test_a_mistake_is_one_line(files, folders, capsys, name: str, options: list[str], says: str) -> None:
    assert says in one_line(capsys, "generate", "a cat", "--model", folders[name], *options)
    assert not list(Path().rglob("a-cat*"))


@pytest.mark.parametrize("option", ["image", "strength", "mask", "paste"])
def test_a_model_of_codes_is_not_asked(option: str) -> None:
    """It takes none of these, and the option is named; the other panel takes all."""
    from diptych.cli.option_checks import accepted_options

    assert all(accepted_options(kind, "mine", {option: 0.5}) for kind in (LatentDiffusion, Cascade, PixelDiffusion))
    with pytest.raises(UserError, match=f"--{option} is for diffusion models, .* codes is none of them"):
        accepted_options(Autoregressive, "codes", {option: 0.5})
