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
from diptych.cli.describe import describe
from diptych.core.errors import NotFound, UserError
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.networks.unet import UNet
from diptych.pretrained import families as published
from diptych.pretrained import load as opening
from diptych.pretrained.load import EMBEDDED, MADE_BY, model_folder
from diptych.pretrained.source import Family, Options, Source
from diptych.weights.files import load_safetensors
from diptych.weights.lazy import fill, load_weights
from diptych.weights.save import save_safetensors, save_weights
from tests.models.latents import CAPTIONS, arrays, system


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    system().save(folder)
    return folder


@pytest.mark.parametrize("text", ["joint", "minilm"])
def test_a_saved_model_paints_the_same_images(tmp_path: Path, text: str) -> None:
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


@pytest.mark.parametrize(("panel", "target"), MADE_BY.items())
def test_a_default_that_is_not_in_the_package_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, panel: str, target: str
) -> None:
    (tmp_path / "MODEL_CARD.md").write_text("a card without its model")
    monkeypatch.setitem(EMBEDDED, panel, tmp_path)
    with pytest.raises(NotFound, match=f"this package has no {panel} model: .*`make {target}`"):
        diptych.load(panel)
    assert re.search(f"^{target}:", (Path(__file__).parents[2] / "Makefile").read_text(), re.MULTILINE)


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


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    """The sources that reach the published families."""
    found: list[Source] = []

    def read(source: Source) -> Any:
        found.append(source)
        return system()

    monkeypatch.setattr(published, "families", lambda: iter([Family("any", lambda source: True, read)]))
    return found


def layout(*names: str) -> Callable[[Path], Path]:
    """A folder with these files, each a config of diffusers."""

    def make(folder: Path) -> Path:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text('{"_class_name": "X"}')
        return folder

    return make


def single(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir()
        save_safetensors({"a": torch.ones(1)}, folder / name)
        return folder / name

    return make


@pytest.mark.parametrize(
    "make",
    [
        layout("model_index.json"),
        layout("model_index.json", "unet/config.json"),
        layout("unet/config.json"),
        layout("config.json"),
        layout("I/model_index.json", "II/model_index.json"),
        single("x.safetensors"),
        single("x.ckpt"),
        single("x.pt"),
    ],
)
def test_published_layouts_go_to_their_families(
    tmp_path: Path, seen: list[Source], make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path / "published")
    diptych.load(path, ema=True, dtype="bfloat16", tokenizer=tmp_path, allow_pickle=True)
    (source,) = seen
    assert source.path == path and source.folder == path.is_dir()
    assert source.options == Options(ema=True, dtype=torch.bfloat16, tokenizer=tmp_path, allow_pickle=True)


def test_a_model_of_ours_stays_ours_whatever_lies_in_it(saved: Path, tmp_path: Path, seen: list[Source]) -> None:
    shutil.copytree(saved, tmp_path / "model")
    layout("model_index.json", "unet/config.json")(tmp_path / "other")
    (tmp_path / "model" / "x.safetensors").write_bytes(b"")
    layout("unet/config.json")(tmp_path / "model")
    diptych.load(tmp_path)
    diptych.load(tmp_path / "model")
    assert not seen


def test_what_no_family_knows_says_what_was_found(tmp_path: Path) -> None:
    path = single("x.safetensors")(tmp_path / "a")
    with pytest.raises(UserError, match="of no kind that diptych knows: it holds 1 tensor"):
        diptych.load(path)
    folder = layout("model_index.json")(tmp_path / "b")
    with pytest.raises(UserError, match=r"model_index\.json says 'X'"):
        diptych.load(folder)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "float8"}, "unknown dtype 'float8': choose one of bfloat16, float16, float32"),
        ({"tokenizer": "nowhere"}, "no folder nowhere with a tokenizer"),
        ({"tokenizer": "."}, "tokenizer is for published weights"),
        ({"dtype": "bfloat16"}, "dtype is for published weights"),
        ({"ema": True}, "ema is for published weights"),
        ({"revision": "v2"}, r"a revision \('v2'\) is for models of the hub"),
    ],
)
def test_an_option_that_does_not_fit_is_named(saved: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        diptych.load(saved, **options)


def test_an_id_of_the_hub_goes_to_the_hub_with_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[Source]
) -> None:
    asked: list[Any] = []

    def fetched(repository: str, file: str | None, **options: Any) -> Path:
        asked.append((repository, file, options))
        return layout("model_index.json")(tmp_path / "cache")

    monkeypatch.setattr(opening, "fetch_model", fetched)
    diptych.load("owner/name/x.safetensors", revision="v2", offline=True)
    assert asked == [("owner/name", "x.safetensors", {"revision": "v2", "offline": True, "pickles": False})]
    assert seen[0].path == tmp_path / "cache"


def test_info_of_a_published_model_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    model = system()
    save_safetensors({key: torch.full_like(tensor, torch.nan) for key, tensor in model.unet.state_dict().items()}, path)

    def read(source: Source) -> Any:
        with torch.device("meta"):
            unet = UNet(model.config.unet)
        fill(unet, source.checkpoint, str(source.path))
        assert all(parameter.is_meta for parameter in unet.parameters())
        return LatentDiffusion(model.config, model.autoencoder, model.text, unet)

    monkeypatch.setattr(published, "families", lambda: iter([Family("any", lambda source: True, read)]))
    described = describe(str(path))
    expected = {"unet": model.unet, "autoencoder": model.autoencoder, "text": model.joint_text}
    assert described["networks"] == {
        name: sum(p.numel() for p in part.parameters()) for name, part in expected.items() if part is not None
    }
    with pytest.raises(UserError, match="NaN"):
        diptych.load(path)
