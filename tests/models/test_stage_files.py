"""Where the parts of a stage are: its devices, its text encoder, its files and what is wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diptych
from diptych.core.errors import UserError
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.weights.files import load_safetensors
from diptych.weights.save import save_safetensors, save_weights
from tests.models.latents import arrays
from tests.models.stages import CAPTIONS, KINDS, Words, base, drawing, enlarging, lows, stage


def test_every_part_moves_with_the_stage() -> None:
    model = stage(base())
    expected = arrays(model.generate(list(CAPTIONS)))
    parts = [next(model.network.parameters()), model.text.model.weight]
    assert {p.dtype for p in (model.double(), *parts)[1:]} == {torch.float64}
    assert {p.dtype for p in (model.to(torch.float32), *parts)[1:]} == {torch.float32}
    assert np.array_equal(arrays(model.generate(list(CAPTIONS))), expected)
    model.to("meta")
    assert {next(part.parameters()).device.type for part in (model.network, model.text.model)} == {"meta"}
    assert model.device.type == "meta"
    model.text = Words()
    assert model.text.model.weight.device.type == "meta", "an encoder that comes later follows too"


def test_the_text_encoder_is_built_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    monkeypatch.setattr(
        "diptych.models.pixel_diffusion.build_encoder", lambda config, device: (built.append(device), Words())[1]
    )
    model = PixelDiffusion(base())
    assert not model.text_loaded and not built
    assert model.text is model.text and built == [torch.device("cpu")] and model.text_loaded
    assert not model.train().text.model.weight.requires_grad


@pytest.mark.parametrize("kind", ["base", "blur"])
def test_under_autocast_images_stay_in_float32(kind: str) -> None:
    model = stage(KINDS[kind])
    low = lows(model.config, 1)
    exact = arrays(model.generate("red", **low))
    seen: list[torch.dtype] = []
    with torch.autocast("cpu", torch.bfloat16):
        close = arrays(model.generate("red", callback=lambda i, n, x0: seen.append(x0.dtype), **low))
    assert set(seen) == {torch.float32} and np.abs(close - exact).mean() < 25


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage")
    stage(enlarging(), seed=5).save(folder)
    return folder


def test_a_saved_stage_paints_the_same(saved: Path) -> None:
    model, again = stage(enlarging(), seed=5), diptych.load(saved, "cpu")
    assert isinstance(again, PixelDiffusion) and again.config == model.config and not again.training
    again.text = Words()
    options: dict[str, Any] = {"low": drawing(), "sampler": "ddpm", "seeds": [3, 4]}
    assert np.array_equal(arrays(again.generate(["a", "b"], **options)), arrays(model.generate(["a", "b"], **options)))


def test_bfloat16_takes_half_the_room_and_paints_nearly_the_same(saved: Path, tmp_path: Path) -> None:
    model = stage(enlarging(), seed=5)
    model.save(tmp_path, dtype="bfloat16")
    sizes = [sum(p.stat().st_size for p in folder.rglob("*.safetensors")) for folder in (tmp_path, saved)]
    assert sizes[0] < 0.65 * sizes[1]
    close: Any = diptych.load(tmp_path, "cpu")
    close.text = Words()
    exact = arrays(model.generate("a", low=drawing()))
    assert np.abs(arrays(close.generate("a", low=drawing())) - exact).mean() < 0.1 * exact.std()
    again = close.generate("a", low=drawing())
    close.save(tmp_path / "twice", dtype="bfloat16")
    twice: Any = diptych.load(tmp_path / "twice", "cpu")
    twice.text = Words()
    assert np.array_equal(arrays(twice.generate("a", low=drawing())), arrays(again)), "rounded once"


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            *path, last = key.split("__")
            place = values
            for part in path:
                place = place[part]
            place.pop(last) if value is ... else place.update({last: value})
        (folder / "config.json").write_text(json.dumps(values))

    return change


def change_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "network" / "model.safetensors"
        tensors = load_safetensors(path)
        change(tensors)
        save_safetensors(tensors, path, {"stage": "8-16"})

    return spoil


def cut(folder: Path, left: int = -1000) -> None:
    path = folder / "network" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])


def other_stage(folder: Path) -> None:
    shutil.rmtree(folder / "network")
    stage(enlarging(16)).save(folder / "other")
    (folder / "other" / "network").rename(folder / "network")


def other_shard(folder: Path) -> None:
    """One shard of two comes from a stage with the same shapes."""
    tensors = load_safetensors(folder / "network" / "model.safetensors")
    for name, where in (("8-16", folder), ("16-32", folder / "other")):
        save_weights(tensors, where / "network", shard_bytes=20_000, metadata={"stage": name})
    last = sorted((folder / "network").glob("*-of-*"))[-1].name
    shutil.copy(folder / "other" / "network" / last, folder / "network" / last)


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("unknown field", change_config(colour=3), r"config\.json: PixelDiffusionConfig has no field 'colour'"),
    ("unknown inner field", change_config(network__colour=3), r"config\.json: .*network has no field 'colour'"),
    ("unknown network", change_config(network__kind="vit"), r"config\.json: .*kind must be one of"),
    ("wrong type", change_config(low_size="small"), r"config\.json: .*low_size must be a whole number"),
    ("parts that do not fit", change_config(low_size=None), r"config\.json: .*concat_channels"),
    ("too many channels", change_config(network__channels=2**40), r"config\.json: "),
    ("very many channels", change_config(network__channels=10**30), r"config\.json: "),
    ("other channels", change_config(network__channels=16), r"network: key .* has shape"),
    ("cut weights", cut, r"network/model\.safetensors is a damaged"),
    ("cut header", lambda folder: cut(folder, 30), r"network/model\.safetensors is cut short"),
    ("no weights", lambda f: shutil.rmtree(f / "network"), r"no file .*network"),
    ("a key less", change_weights(lambda t: t.pop("conv_in.bias")), r"key 'conv_in\.bias'.*missing"),
    ("NaN", change_weights(lambda t: t["conv_in.weight"].view(-1)[:1].fill_(torch.nan)), r"conv_in\.weight.*NaN"),
    ("untrained", change_weights(lambda t: t["conv_out.weight"].zero_()), "was never trained"),
    ("other stage", other_stage, "holds the weights of stage 16-32, not of stage 8-16"),
    ("other shard", other_shard, "holds the weights of stage 16-32, not of stage 8-16"),
    ("renamed", change_config(size=32, low_size=16), "holds the weights of stage 8-16, not of stage 16-32"),
]


@pytest.mark.parametrize(("spoil", "says"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_is_broken_is_refused_by_name(
    saved: Path, tmp_path: Path, spoil: Callable[[Path], Any], says: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    spoil(folder)
    with pytest.raises(UserError, match=says) as caught:
        diptych.load(folder, "cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
