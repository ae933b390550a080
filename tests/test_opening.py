"""The one door: what was saved opens as it was; what is broken is refused in one line that names it."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diptych
from diptych.errors import NothingThere, UserError
from diptych.opening import EMBEDDED, model_folder
from diptych.weights.files import load_safetensors, load_weights, save_safetensors, save_weights
from tests.latents import CAPTIONS, arrays, system


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    system().save(folder)
    return folder


@pytest.mark.parametrize("text", ["joint", "minilm"])
def test_a_saved_model_paints_the_same_pictures(tmp_path: Path, text: str) -> None:
    model = system(text)
    model.save(tmp_path / "run" / "model")
    again = diptych.load(tmp_path / "run")
    assert again.config == model.config
    assert not again.training and not any(module.training for module in again.autoencoder.modules())
    options: dict[str, Any] = {"seeds": [3, 4], "sampler": "dpmpp-2m-sde"}
    assert np.array_equal(
        arrays(again.generate(list(CAPTIONS), **options)), arrays(model.generate(list(CAPTIONS), **options))
    )
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_bfloat16_takes_half_the_room_and_paints_nearly_the_same(saved: Path, tmp_path: Path) -> None:
    model = system()
    model.save(tmp_path, dtype="bfloat16")
    sizes = [sum(p.stat().st_size for p in folder.rglob("*.safetensors")) for folder in (tmp_path, saved)]
    assert sizes[0] < 0.65 * sizes[1]
    close, exact = arrays(diptych.load(tmp_path).generate(list(CAPTIONS))), arrays(model.generate(list(CAPTIONS)))
    assert np.abs(close - exact).mean() < 0.1 * exact.std()


def test_an_opened_model_can_be_trained_and_leaves_its_files_alone(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "model")
    model = diptych.load(tmp_path / "model")
    before = load_weights(saved / "unet")
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.requires_grad
            parameter.zero_()
    after = load_weights(tmp_path / "model" / "unet")
    assert all(torch.equal(after[key], before[key]) for key in before)
    shutil.rmtree(tmp_path / "model")
    assert not model.unet.conv_in.weight.any(), "the weights do not live in the file"


def test_the_default_and_its_name_are_the_model_in_the_package() -> None:
    assert model_folder(None) == model_folder("latent") == EMBEDDED["latent"]


@pytest.mark.parametrize(("panel", "target"), [("latent", "default-model"), ("cascade", "default-cascade")])
def test_a_default_that_is_not_in_the_package_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, panel: str, target: str
) -> None:
    (tmp_path / "MODEL_CARD.md").write_text("a card without its model")
    monkeypatch.setitem(EMBEDDED, panel, tmp_path)
    with pytest.raises(NothingThere, match=f"the {panel} panel has no model in this package: .*`make {target}`"):
        diptych.load(panel)
    assert re.search(f"^{target}:", (Path(__file__).parent.parent / "Makefile").read_text(), re.MULTILINE)


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


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def change_weights(part: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / part / "model.safetensors"
        tensors = load_safetensors(path)
        change(tensors)
        save_safetensors(tensors, path)

    return spoil


def cut(folder: Path) -> None:
    path = folder / "unet" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def shard_missing(folder: Path) -> None:
    tensors = load_safetensors(folder / "unet" / "model.safetensors")
    save_weights(tensors, folder / "unet", shard_bytes=40_000)
    sorted((folder / "unet").glob("*-of-*"))[1].unlink()


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("missing folder", shutil.rmtree, "no model at"),
    ("no config", lambda f: (f / "config.json").unlink(), r"is no model: it has no config\.json"),
    ("config is a folder", lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()), "not readable"),
    ("config is no JSON", write("config.json", b"{"), r"config\.json is not readable JSON"),
    ("config is empty", write("config.json", b""), r"config\.json is not readable JSON"),
    ("config is no UTF-8", write("config.json", b'{"kind": "\xff\xfe"}'), r"config\.json is not readable JSON"),
    ("config is deep", write("config.json", b"[" * 100_000), r"config\.json is not readable JSON"),
    ("config is a list", write("config.json", b"[1]"), "does not say what kind"),
    ("no kind", change_config(kind=...), "does not say what kind"),
    ("another kind", change_config(kind="judge"), "kind 'judge'"),
    ("unknown kind", change_config(kind=[]), "kind"),
    ("unknown key", change_config(colour=3), r"config\.json: LatentConfig has no field 'colour'"),
    ("unknown inner key", change_config(unet__colour=3), r"config\.json: .*unet has no field 'colour'"),
    ("wrong type", change_config(unet__channels="many"), r"config\.json: .*channels must be a whole number"),
    ("null part", change_config(unet=None), r"config\.json: .*unet"),
    ("unknown text", change_config(text__kind="t6"), r"config\.json: .*kind must be one of"),
    ("no channels", change_config(unet__channels=0), r"config\.json: .*channels must be at least 1"),
    ("too many channels", change_config(unet__channels=2**40), r"config\.json: "),
    ("very many channels", change_config(autoencoder__channels=10**30), r"config\.json: "),
    ("other channels", change_config(unet__channels=32), r"unet: key .* has shape"),
    ("no scale", change_config(scale=...), r"config\.json: scale must be a positive number, not None"),
    *((f"scale {x}", change_config(scale=x), "scale must be") for x in (0, -1.0, "x", True, 1e300, float("nan"))),
    ("cut weights", cut, r"unet/model\.safetensors is a damaged"),
    ("no weights", lambda f: (f / "unet" / "model.safetensors").unlink(), r"no file .*unet/model\.safetensors"),
    ("no part", lambda f: shutil.rmtree(f / "autoencoder"), "no file .*autoencoder"),
    (
        "pickle",
        write("unet/model.safetensors", pickle.dumps({"a": [1.0] * 99})),
        "a Python pickle",
    ),
    ("zip", write("autoencoder/model.safetensors", b"PK\x03\x04" + bytes(99)), "PyTorch pickle"),
    (
        "NaN",
        change_weights("unet", lambda t: t["conv_in.weight"].view(-1)[:1].fill_(torch.nan)),
        r"conv_in\.weight.*NaN",
    ),
    ("a key less", change_weights("unet", lambda t: t.pop("conv_in.bias")), r"unet: key 'conv_in\.bias'.*missing"),
    ("a key more", change_weights("autoencoder", lambda t: t.update(x=torch.ones(1))), "unexpected key 'x'"),
    (
        "shape",
        change_weights("unet", lambda t: t.update({"conv_in.bias": torch.ones(3)})),
        r"conv_in\.bias.*shape \(3,\)",
    ),
    ("a shard less", shard_missing, "no file .*-of-"),
    ("no tokenizer", lambda f: (f / "text" / "tokenizer.json").unlink(), r"no tokenizer at .*text/tokenizer\.json"),
    ("broken tokenizer", write("text/tokenizer.json", b"{}"), r"is not a tokenizer\.json"),
    ("no text weights", lambda f: (f / "text" / "model.safetensors").unlink(), "no file .*text"),
]


@pytest.mark.parametrize(("spoil", "says"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_is_broken_is_refused_by_name(
    saved: Path, tmp_path: Path, spoil: Callable[[Path], Any], says: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    spoil(folder)
    with pytest.raises(UserError, match=says) as caught:
        diptych.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_that_is_not_finished_says_how_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"description": "", "system": {"kind": "latent"}, "training": {}}))
    with pytest.raises(UserError, match="not finished: go on with `diptych train`"):
        diptych.load(run)
    (run / "checkpoints").mkdir()
    with pytest.raises(UserError, match="not finished: go on with `diptych train`"):
        diptych.load(run)


def test_a_file_is_not_a_model_folder(saved: Path) -> None:
    with pytest.raises(UserError, match="is a file: give the run folder"):
        diptych.load(saved / "config.json")
