"""How a latent model decodes: in tiles where memory is short, by a tiny decoder where time is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

import diptych
from diptych.cli import main as cli
from diptych.core.errors import UserError
from diptych.models.first_stage import save_tiny_decoder
from diptych.networks import tiling
from diptych.networks.tiling import Tiling
from diptych.networks.tiny_decoder import TinyDecoder, TinyDecoderConfig
from diptych.weights.fingerprint import fingerprint
from tests.models.latents import arrays, autoencoder, system
from tests.networks.reference import noise, randomised

PROMPT = "a red picture"
NETWORK = TinyDecoderConfig(channels=(6, 8), blocks=1, teacher=fingerprint(autoencoder()))


def tiny(seed: int = 5, **changes: object) -> TinyDecoder:
    return randomised(TinyDecoder(dataclasses.replace(NETWORK, **changes)), seed)


def test_an_image_of_one_tile_is_the_same_and_a_larger_one_is_decoded_in_tiles() -> None:
    model = system()
    assert (arrays(model.generate(PROMPT)) == arrays(model.generate(PROMPT, tile=16))).all()
    seen: list[tuple[int, ...]] = []
    model.autoencoder.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    whole = model.generate([PROMPT] * 2, size=(32, 48))
    tiled = model.generate([PROMPT] * 2, size=(32, 48), tile=16)
    assert seen[0] == (24, 16) and set(seen[1:]) == {(8, 8)} and len(seen[1:]) == 2 * 3 * 4
    assert tiled.images[0].size == (32, 48)
    assert [told["tile"] for told in tiled.metadata] == [16, 16] and "tile" not in whole.metadata[0]
    assert (arrays(whole) != arrays(tiled)).any()


@torch.no_grad()
def test_tiles_are_of_the_images_latents() -> None:
    """Given the same latents, what comes of them is what the tiles of the autoencoder make."""
    model, latents = system(), noise(2, 4, 16, 12)
    expected = tiling.decode(model.autoencoder, latents / 0.5, Tiling(side=8, overlap=2))
    assert torch.allclose(model.decode(latents, Tiling.of_pixels(16, 2)), expected, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_an_image_to_paint_over_is_encoded_in_tiles(masked: bool) -> None:
    model, image = system(), noise(1, 3, 32, 32).clamp(-1, 1)
    seen: list[tuple[int, ...]] = []
    model.autoencoder.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    mask = torch.ones(1, 1, 32, 32) if masked else None
    model.generate(PROMPT, image=image, mask=mask, strength=0.7, tile=16)
    assert len(seen) == 9 and set(seen) == {(16, 16)}
    seen.clear()
    model.generate(PROMPT, image=image, mask=mask, strength=0.7)
    assert seen == [(32, 32)]


@pytest.mark.parametrize(
    ("tile", "says"),
    [
        (0, "at least 1"),
        (15, "multiple of 2 pixels and at least 16"),
        (8, "multiple of 2 pixels"),
        ("16", "whole number"),
        (16.0, "whole number"),
    ],
)
def test_a_tile_that_makes_no_sense_is_refused(tile: object, says: str) -> None:
    with pytest.raises(UserError, match=f"tile must be .*{says}"):
        system().generate(PROMPT, tile=tile)  # type: ignore[arg-type]


@torch.no_grad()
def test_a_tiny_decoder_stands_in_for_the_autoencoders_own(tmp_path: Path) -> None:
    model, decoder = system(), tiny()
    latents = noise(1, 4, 8, 8)
    assert torch.allclose(model.decode(latents, decoder=decoder), decoder(latents / 0.5), atol=1e-5)
    save_tiny_decoder(decoder, tmp_path / "model")
    given, found = model.generate(PROMPT, decoder=decoder), model.generate(PROMPT, decoder=tmp_path)
    assert abs(arrays(given) - arrays(found)).max() <= 3, "bfloat16"
    assert (arrays(given) != arrays(model.generate(PROMPT))).any()
    assert given.metadata[0]["decoder"] == {"fingerprint": fingerprint(decoder)}
    assert "decoder" not in model.generate(PROMPT).metadata[0]


def test_a_tiny_decoder_in_the_models_folder_comes_with_it(tmp_path: Path) -> None:
    model = system()
    with pytest.raises(UserError, match="no tiny decoder came with this model"):
        model.generate(PROMPT, decoder="tiny")
    model.save(tmp_path)
    save_tiny_decoder(tiny(), tmp_path / "tiny_decoder")
    opened = diptych.load(str(tmp_path))
    expected = arrays(opened.generate(PROMPT, decoder=tmp_path / "tiny_decoder"))
    assert (arrays(opened.generate(PROMPT, decoder="tiny")) == expected).all()
    assert not any("tiny" in name for name in opened.state_dict()), "it is not trained along"
    opened.save(tmp_path / "again")
    again = diptych.load(str(tmp_path / "again")).generate(PROMPT, decoder="tiny")
    assert (arrays(again) == expected).all()


def test_a_decoder_of_another_first_stage_is_refused(tmp_path: Path) -> None:
    model = system()
    for other in (tiny(teacher="0123456789abcdef"), tiny(latent_channels=5), tiny(patch=2)):
        with pytest.raises(UserError, match="after another first stage"):
            model.generate(PROMPT, decoder=other)
    with pytest.raises(UserError, match="no tiny decoder in"):
        model.generate(PROMPT, decoder=tmp_path)


def test_the_command_line_hands_both_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    model = system()
    monkeypatch.setattr(diptych, "load", lambda *_, **__: model)
    save_tiny_decoder(tiny(), tmp_path / "decoder")
    options = [
        "--size",
        "32x16",
        "--tile",
        "16",
        "--preview-decoder",
        str(tmp_path / "decoder"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(["generate", PROMPT, *options]) == 0
    with Image.open(capsys.readouterr().out.strip()) as image:
        told = image.info["diptych"]
        assert image.size == (32, 16)
    assert '"tile": 16' in told and '"decoder": {"source": "' in told
    for words, says in (
        (["--tile", "15"], "tile must be a multiple of 2"),
        (["--size", "4y"], "WIDTHxHEIGHT or one number"),
    ):
        assert cli.main(["generate", PROMPT, *words]) == 2
        assert says in capsys.readouterr().err
