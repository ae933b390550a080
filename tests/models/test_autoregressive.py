"""VQGAN + transformer: what `generate` promises for words, a class or nothing, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import diptych
from diptych.cli import main as cli
from diptych.cli.describe import describe
from diptych.cli.option_checks import accepted_options
from diptych.core.errors import DiptychWarning, UserError
from diptych.encoders.configs import build_encoder
from diptych.models.autoregressive import Autoregressive, AutoregressiveRequest
from diptych.networks.code_transformer import CodeTransformer
from diptych.pretrained.load import open_autoencoder
from tests.models.codes import SIDE, VOCABULARY, VQ, config, first_stage, system, written
from tests.models.latents import CAPTIONS, SIZE, arrays, same_image
from tests.models.latents import system as latent_system

WORDS = [CAPTIONS[i % 2] + " with a cat" * (i % 3) for i in range(6)]
PROMPTS = {"words": WORDS, "minilm": WORDS, "class": ["red", "2", "Green", "0", "blue", "blue"], "free": list("abcdef")}
SEEDS = [5, 0, 7, 7, 123_456_789, 2**63 - 1]
CONDITIONS = ["words", "class", "free"]


@pytest.fixture(scope="module")
def model() -> Autoregressive:
    return system()


@pytest.mark.parametrize("condition", [*CONDITIONS, "minilm"])
def test_a_seed_gives_its_image_alone_and_in_any_company(condition: str) -> None:
    model, prompts = system(condition), PROMPTS[condition]
    codes = written(model, prompts, seeds=SEEDS, top_p=0.95)
    together = model.generate(prompts, seeds=SEEDS, top_p=0.95)
    assert arrays(together).std() > 1
    assert len({tuple(one.flatten().tolist()) for one in codes}) == (6 if condition != "free" else 5)
    for i in (0, 3, 5):
        assert torch.equal(written(model, [prompts[i]], seeds=[SEEDS[i]], top_p=0.95)[0], codes[i])
        assert same_image(model.generate(prompts[i], seeds=[SEEDS[i]], top_p=0.95).images[0], together.images[i])
    assert torch.equal(written(model, prompts[::-1], seeds=SEEDS[::-1], top_p=0.95).flip(0), codes)


@torch.no_grad()
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_codes_are_drawn_as_the_words_say(condition: str, guidance: float) -> None:
    """Without a cache or a batch: each code from a pass over all before it, with the image's own numbers."""
    model, prompts = system(condition), PROMPTS[condition][:3]
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 12, "guidance": guidance}
    found = written(model, prompts, seeds=SEEDS[:3], **options)
    for i, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(SEEDS[i])
        codes = torch.empty(1, 0, dtype=torch.int64)
        for _ in range(SIDE**2):
            logits = model.transformer(codes, **model.embed([prompt]))[0, -1]
            if guidance != 1 and condition != "free":
                without = model.transformer(codes, **model.embed([""]))[0, -1]
                logits = without + guidance * (logits - without)
            logits = torch.where(logits >= logits.sort().values[-12], logits, -torch.inf) / 0.8
            gumbel = -(-torch.rand(VOCABULARY, generator=generator, dtype=torch.float64).log()).log()
            codes = torch.cat([codes, (logits + gumbel).argmax().view(1, 1)], 1)
        assert codes[0].tolist() == found[i].flatten().tolist()
    pixels = model.autoencoder.decode(model.autoencoder.quantise.entries(found))  # type: ignore[union-attr]
    wanted = ((pixels + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    painted = arrays(model.generate(prompts, seeds=SEEDS[:3], **options))
    assert np.abs(wanted - painted).max() <= 1


@torch.no_grad()
def test_pairs_of_codes_come_as_often_as_the_transformer_says() -> None:
    """The first two codes of many images against the product of their probabilities: chi-squared, 99.99% quantile."""
    model, count = system("free"), 3000
    request = AutoregressiveRequest.read(model, ["x"] * count, {"temperature": 1.5, "top_k": VOCABULARY, "top_p": 1.0})
    pair = model.sample(request, (1, 2), model.logits(request, cached=True))[:, 0]
    first = (model.transformer(torch.empty(1, 0, dtype=torch.int64))[0, -1] / 1.5).softmax(0)
    second = (model.transformer(torch.arange(VOCABULARY)[:, None])[:, -1] / 1.5).softmax(1)
    expected = (first[:, None] * second).flatten() * count
    counts = torch.bincount(pair[:, 0] * VOCABULARY + pair[:, 1], minlength=VOCABULARY**2)
    often = expected >= 5
    statistic = ((counts[often] - expected[often]) ** 2 / expected[often]).sum().item()
    degrees = int(often.sum()) - 1
    assert degrees > 40 and statistic < degrees + 3.72 * (2 * degrees) ** 0.5 + 10


def test_the_metadata_is_enough_to_make_each_image_again(model: Autoregressive) -> None:
    options: dict[str, Any] = {"temperature": np.float32(0.5), "top_k": np.int64(9), "top_p": 0.9, "guidance": 3}
    options |= {"size": (np.int32(SIZE), 20), "negative": ["", "grey"]}
    result = model.generate(list(CAPTIONS), seeds=np.array([3, 4]), **options)
    assert [image.size for image in result.images] == [(SIZE, 20)] * 2
    for image, row in zip(result.images, json.loads(json.dumps(result.metadata)), strict=True):
        prompt, seed, _ = row.pop("prompt"), row.pop("seed"), row.pop("notes", None)
        assert same_image(model.generate(prompt, seeds=[seed], **row).images[0], image)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_what_is_not_said_is_the_models_own(condition: str) -> None:
    model = system(condition, temperature=0.9, top_k=5, top_p=0.8, guidance=2.0)
    own = {"temperature": 0.9, "top_k": 5, "top_p": 0.8, "guidance": 2.0, "size": [SIZE, SIZE], "negative": None}
    own |= {"guidance": 1.0} if condition == "free" else {}
    prompts = PROMPTS[condition][:2]
    rows = [{key: value for key, value in row.items() if key != "notes"} for row in model.generate(prompts).metadata]
    assert rows == [{"prompt": p, "seed": i, **own} for i, p in enumerate(prompts)]
    given = {key: value for key, value in own.items() if key != "negative"}
    assert torch.equal(written(model, prompts), written(system(condition), prompts, **given))


def test_negative_prompts_steer(model: Autoregressive) -> None:
    usual = written(model, list(CAPTIONS))
    assert torch.equal(written(model, list(CAPTIONS), negative=""), usual)
    steered = written(model, list(CAPTIONS), negative="a cat")
    one = written(model, list(CAPTIONS), negative=["a cat", ""])
    assert not torch.equal(steered, usual) and torch.equal(one[0], steered[0]) and torch.equal(one[1], usual[1])
    with pytest.warns(DiptychWarning, match="the negative prompt has no effect"):
        plain = written(model, [CAPTIONS[0]], guidance=1.0, negative="a cat")
    assert torch.equal(written(model, [CAPTIONS[0]], negative=CAPTIONS[0], guidance=9.0), plain)


@torch.no_grad()
def test_larger_images_are_written_through_a_window() -> None:
    """Each code is read from those before it in a window of the training size around it, moved into the image."""
    model, (rows, columns) = system("class"), (SIDE + 1, SIDE + 3)
    codes = torch.randint(0, VOCABULARY, (1, rows, columns), generator=torch.Generator().manual_seed(0))
    look = model.logits(AutoregressiveRequest.read(model, ["red"], {"guidance": 1.0}), cached=False)
    for row in range(rows):
        for column in range(columns):
            tops = [top for top in range(rows - SIDE + 1) if top <= row < top + SIDE]
            lefts = [left for left in range(columns - SIDE + 1) if left <= column < left + SIDE]
            top = min(tops, key=lambda at: abs(at + SIDE // 2 - row))
            left = min(lefts, key=lambda at: abs(at + SIDE // 2 - column))
            square = [(r, c) for r in range(top, top + SIDE) for c in range(left, left + SIDE)]
            before = [codes[0, place[0], place[1]] for place in square if place < (row, column)]
            wanted = model.transformer(torch.tensor([before], dtype=torch.int64), **model.embed(["red"]))[:, -1]
            assert (look(codes, row, column) - wanted).abs().max() < 1e-5
    sizes = [image.size for image in model.generate(["red"], size=(SIZE + 12, SIZE + 4)).images]
    assert sizes == [(SIZE + 12, SIZE + 4)]


@torch.no_grad()
def test_a_window_as_large_as_the_image_is_the_cached_way(model: Autoregressive) -> None:
    request = AutoregressiveRequest.read(model, list(CAPTIONS), {"guidance": 2.0})
    ways = [model.sample(request, (SIDE, SIDE), model.logits(request, cached=on)) for on in (True, False)]
    assert torch.equal(*ways)


class Cancelled(Exception):
    pass


def test_the_callback_sees_each_row_and_may_cancel(model: Autoregressive) -> None:
    seen: list[tuple[int, int, Tensor]] = []
    model.generate(list(CAPTIONS), callback=lambda *step: seen.append(step))
    assert [step[:2] for step in seen] == [(row, SIDE) for row in range(SIDE)]
    for row, _, codes in seen:
        assert torch.equal(codes[:, : row + 1], seen[-1][2][:, : row + 1]) and (codes[:, row + 1 :] == -1).all()

    def cancel(*_: Any) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        model.generate(CAPTIONS[0], callback=cancel)


@pytest.mark.parametrize(
    ("condition", "prompts", "options", "says"),
    [
        ("words", ["a", "  "], {}, "a prompt is empty"),
        ("words", ["a"], {"temperature": 0}, "temperature must be more than 0"),
        ("words", ["a"], {"top_k": 0}, "top_k must be at least 1"),
        ("words", ["a"], {"top_p": 1.5}, "top_p must be more than 0 and at most 1"),
        ("words", ["a"], {"guidance": float("nan")}, "guidance must be a finite number"),
        ("words", ["a"], {"size": (SIZE - 4, SIZE)}, "size must be at least the training size, 16 x 16"),
        ("words", ["a"], {"size": (SIZE + 1, SIZE)}, "multiples of 4"),
        ("words", ["a", "b"], {"seeds": [0, 1, 2]}, "one seed for each prompt"),
        ("words", ["a red picture " * 30], {}, "shorten it"),
        ("class", ["purple"], {}, "'purple' is no class of this model: give a number from 0 to 2 or a name"),
        ("class", ["3"], {}, "'3' is no class"),
    ],
)
def test_what_makes_no_sense_is_refused(condition: str, prompts: list[str], options: dict, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        system(condition).generate(prompts, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": 18}, "size must be a multiple of 4"),
        ({"size": 20}, "transformer.length must be 25 to fit its neighbours, not 16"),
        ({"temperature": 0.0}, "temperature must be more than 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must be more than 0"),
        ({"text": None}, "transformer.context_width must be None to fit its neighbours, not 16"),
        ({"autoencoder": {**VQ.to_dict(), "codebook": 99}}, "transformer.vocabulary must be 99"),
        ({"autoencoder": {**VQ.to_dict(), "codebook": None}}, "codebook must be set"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        type(config()).from_dict({**config().to_dict(), **changes})


# Files and the command line.


@pytest.mark.every(3)
@pytest.mark.parametrize("condition", [*CONDITIONS, "minilm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_opens_and_paints_the_same(condition: str, dtype: str, tmp_path: Path) -> None:
    model = system(condition)
    model.save(tmp_path / "run" / "model", dtype)
    opened = diptych.load(tmp_path / "run", "cpu")
    assert isinstance(opened, Autoregressive) and opened.config == model.config and not opened.training
    exact = {name: value.to(getattr(torch, dtype)).float() for name, value in model.state_dict().items()}
    for name, value in opened.state_dict().items():
        wanted = model.state_dict()[name] if dtype == "float32" or value.ndim < 2 else exact[name]
        assert torch.equal(value.float(), wanted), name
    if dtype == "float32":
        prompts = PROMPTS[condition][:2]
        assert torch.equal(written(opened, prompts), written(model, prompts))
        lent = open_autoencoder(tmp_path / "run")
        assert all(torch.equal(a, b) for a, b in zip(lent.parameters(), first_stage().parameters(), strict=True))
    described = describe(str(tmp_path / "run"))
    assert described["networks"]["transformer"] == sum(p.numel() for p in model.transformer.parameters())


def test_damaged_folders_are_refused(tmp_path: Path, model: Autoregressive) -> None:
    model.save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "top_p": 7.0}))
    with pytest.raises(UserError, match=r"config.json: AutoregressiveConfig.top_p must be more than 0"):
        diptych.load(tmp_path, "cpu")
    wider = {**values["transformer"], "width": 64}
    (tmp_path / "config.json").write_text(json.dumps({**values, "transformer": wider}))
    with pytest.raises(UserError, match="transformer"):
        diptych.load(tmp_path, "cpu")
    (tmp_path / "config.json").write_text(json.dumps(values))
    weights = next((tmp_path / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="transformer"):
        diptych.load(tmp_path, "cpu")


def test_whatever_moves_the_system_moves_its_frozen_parts() -> None:
    model = Autoregressive(config("free"), first_stage(), build_encoder(None))
    assert set(model.state_dict()) == {
        f"transformer.{name}" for name in CodeTransformer(config("free").transformer).state_dict()
    }
    model.double()
    assert next(model.autoencoder.parameters()).dtype == torch.float64
    assert not any(parameter.requires_grad for parameter in model.autoencoder.parameters())


def test_the_command_line_paints_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    system("class").save(Path("codes"))
    options = ["--temperature", "0.7", "--top-k", "5", "--top-p", "0.9", "--guidance", "1.5", "--seed", "1,2"]
    assert cli.main(["generate", "Red", "2", "--model", "codes", *options]) == 0
    paths = capsys.readouterr().out.split()
    assert len(paths) == 4
    for path in paths:
        with Image.open(path) as image:
            row = json.loads(image.text["diptych"])  # type: ignore[attr-defined]
            assert (
                row.pop("diptych")
                and row.pop("model")["source"] == "codes"
                and row["temperature"] == 0.7
                and row["top_k"] == 5
            )
            prompt, seed = row.pop("prompt"), row.pop("seed")
            assert same_image(system("class").generate(prompt, seeds=[seed], **row).images[0], image)
    for option, says in (
        ("--steps=5", "--steps is for diffusion models"),
        ("--temperature=0", "--temperature: must be more than 0"),
        ("--top-k=0", "must be at least 1, not 0"),
    ):
        assert cli.main(["generate", "red", "--model", "codes", option]) == 2
        error = capsys.readouterr().err
        assert says in error and len(error.splitlines()) == 1


def test_settings_of_other_models_are_refused_by_name(model: Autoregressive) -> None:
    for name in ("temperature", "top_k", "top_p"):
        option = f"--{name.replace('_', '-')} is for autoregressive models"
        with pytest.raises(UserError, match=option):
            accepted_options(latent_system(), "latent", {name: 1})
        assert accepted_options(model, "codes", {name: 1, "steps": None}) == {name: 1}
    for name, what in (
        ("sampler", "diffusion models"),
        ("strength", "diffusion models"),
        ("tile", "latent models"),
    ):
        with pytest.raises(UserError, match=f"--{name} is for .*{what}"):
            accepted_options(model, "codes", {name: 1})
