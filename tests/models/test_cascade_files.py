"""The folder of a cascade: opened stage by stage, refused by name where it is broken, put together from stages."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diptych
from diptych.core.errors import UserError
from diptych.encoders.configs import T5Config
from diptych.models import cascade as module
from diptych.models.cascade import Cascade, assemble
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.models.request import Result
from diptych.weights.lazy import load_weights
from diptych.weights.save import save_weights
from tests.encoders.tiny_encoders import t5_folder
from tests.models.latents import arrays
from tests.models.stages import WIDTH, Words, configs, enlarging, equal, stage

PROMPTS = ["red left", "two blue cats left of a house", "a cat"]
SEEDS = [5, 7, 7]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> T5Config:
    """A real T5 in miniature, which pads and masks."""
    return T5Config(path=str(t5_folder(tmp_path_factory.mktemp("text") / "t5")), width=WIDTH)


@pytest.fixture(scope="module")
def stages(text: T5Config) -> list[PixelDiffusion]:

    encoder = text.build()
    return [stage(config, seed, encoder) for seed, config in enumerate(configs(text))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, stages: list[PixelDiffusion]) -> Path:
    folder = tmp_path_factory.mktemp("cascade")
    Cascade.of(stages).save(folder)
    return folder


@pytest.fixture(scope="module")
def painted(stages: list[PixelDiffusion]) -> Result:
    return Cascade.of(stages).generate(PROMPTS, seeds=SEEDS, keep=True, negative=["", "a dog", ""])


def test_a_saved_cascade_paints_the_same(saved: Path, painted: Result) -> None:
    again = diptych.load(saved, "cpu")
    assert isinstance(again, Cascade) and len(again.networks) == 3
    result = again.generate(PROMPTS, seeds=SEEDS, keep=True, negative=["", "a dog", ""])
    assert all(equal(a, b) for a, b in zip(result.stages, painted.stages, strict=True))
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "stage-16-32", "stage-8", "stage-8-16"]


def test_stages_are_opened_when_they_are_needed(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "c")
    model: Any = diptych.load(tmp_path / "c", "cpu")
    (tmp_path / "c" / "stage-16-32" / "network" / "model.safetensors").unlink()
    assert model.generate("a cat", stop=2).images[0].size == (16, 16)
    with pytest.raises(UserError, match=r"no file .*stage-16-32/network/model\.safetensors"):
        model.generate("a cat")


class Watch:
    """Counts the stages and text encoders that are alive whenever one is made, without waiting for the collector."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive: list[Callable[[], Any]] = []
        self.most = 0
        open_stage, build = module.open_stage, module.build_encoder
        monkeypatch.setattr(module, "open_stage", lambda folder: self.seen(open_stage(folder)))
        monkeypatch.setattr(module, "build_encoder", lambda *a, **k: self.seen(build(*a, **k)))

    def seen(self, thing: Any) -> Any:
        self.alive.append(weakref.ref(thing))
        self.most = max(self.most, self.count())
        return thing

    def count(self) -> int:
        return sum(one() is not None for one in self.alive)


def test_one_stage_at_a_time_is_in_memory(saved: Path, painted: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = diptych.load(saved, "cpu")
    watch = Watch(monkeypatch)
    options: dict[str, Any] = {"seeds": SEEDS, "keep": True, "negative": ["", "a dog", ""]}
    result = model.generate(PROMPTS, one_at_a_time=True, **options)
    assert all(equal(a, b) for a, b in zip(result.stages, painted.stages, strict=True))
    assert len(watch.alive) == 4 and watch.most == 1 and watch.count() == 0
    usual = model.generate(PROMPTS, **options)
    assert equal(usual.images, painted.images) and watch.count() == 4
    watch.most = 0
    model.generate(PROMPTS, one_at_a_time=True, **options)
    assert watch.most == 1 and watch.count() == 0, "what an earlier call left open is closed first"


def test_cancelling_leaves_nothing_in_memory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = diptych.load(saved, "cpu")
    watch = Watch(monkeypatch)

    def cancel(step: int, steps: int, x0: torch.Tensor) -> None:
        if step == 3:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        model.generate("a cat", one_at_a_time=True, callback=cancel)
    assert watch.count() == 0 and watch.most == 1


def test_bfloat16_and_shards_make_nearly_the_same_cascade(
    saved: Path, painted: Result, stages: list[PixelDiffusion], tmp_path: Path
) -> None:
    Cascade.of(stages).save(tmp_path / "half", "bfloat16")
    sizes = [sum(p.stat().st_size for p in folder.rglob("*.safetensors")) for folder in (tmp_path / "half", saved)]
    assert sizes[0] < 0.65 * sizes[1]
    half: Any = diptych.load(tmp_path / "half", "cpu").generate(PROMPTS, seeds=SEEDS, negative=["", "a dog", ""])
    assert np.abs(arrays(half) - arrays(painted)).mean() < 0.5 * arrays(painted).std()
    shutil.copytree(saved, tmp_path / "shards")
    for name in ("stage-8", "stage-8-16"):
        network = tmp_path / "shards" / name / "network"
        save_weights(
            load_weights(network), network, shard_bytes=20_000, metadata={"stage": name.removeprefix("stage-")}
        )
        assert len(list(network.glob("*-of-*"))) > 1
    result: Any = diptych.load(tmp_path / "shards", "cpu").generate(PROMPTS, seeds=SEEDS, negative=["", "a dog", ""])
    assert equal(result.images, painted.images)


def rename(old: str, new: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / old).rename(folder / new)


def swap(folder: Path) -> None:
    for a, b in (("stage-8-16", "x"), ("stage-16-32", "stage-8-16"), ("x", "stage-16-32")):
        (folder / a / "network").rename(folder / "y")
        (folder / b).mkdir(exist_ok=True)
        (folder / "y").rename(folder / b / "network")


def listed(*names: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "config.json").write_text(json.dumps({"kind": "cascade", "stages": names}))


def change(path: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / path).write_text(text)


def cut(folder: Path) -> None:
    path = folder / "stage-8-16" / "network" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    (
        "no stage folder",
        lambda f: shutil.rmtree(f / "stage-8"),
        r"there is no stage: .*stage-8/config\.json is missing",
    ),
    ("broken JSON", change("stage-8/config.json", "{"), r"stage-8/config\.json is not readable JSON"),
    ("a list", change("stage-8/config.json", "[1]"), "kind None, not a stage"),
    ("a latent model", change("stage-8/config.json", '{"kind": "latent"}'), "kind 'latent', not a stage"),
    ("a cascade within", change("stage-8/config.json", '{"kind": "cascade"}'), "kind 'cascade', not a stage"),
    (
        "unknown stage field",
        change("stage-8/config.json", '{"kind": "stage", "x": 1}'),
        r"stage-8/config\.json: .*field 'x'",
    ),
    ("unknown field", change("config.json", '{"kind": "cascade", "colour": 3}'), "no field 'colour'"),
    ("no stages", listed(), "stages must name at least one folder"),
    ("path out of the folder", listed("../x"), "folders that lie beside the config"),
    ("parent folder", listed(".."), "folders that lie beside the config"),
    ("this folder", listed("."), "folders that lie beside the config"),
    ("absolute path", listed("/etc"), "folders that lie beside the config"),
    ("empty name", listed(""), "folders that lie beside the config"),
    ("no text", change("config.json", '{"kind": "cascade", "stages": [3]}'), "stages"),
    ("wrong order", listed("stage-8-16", "stage-8"), "cannot follow"),
    ("a stage twice", listed("stage-8", "stage-8"), "cannot follow"),
    ("a file for a folder", lambda f: (shutil.rmtree(f / "stage-8"), (f / "stage-8").write_text("")), "not readable"),
    ("swapped weights", swap, "holds the weights of stage 16-32, not of stage 8-16"),
    ("cut weights", cut, r"stage-8-16/network/model\.safetensors is a damaged"),
]


@pytest.mark.parametrize(("spoil", "says"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_is_broken_is_refused_by_name(
    saved: Path, tmp_path: Path, spoil: Callable[[Path], Any], says: str
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(saved, folder)
    spoil(folder)
    with pytest.raises(UserError, match=says) as caught:
        diptych.load(folder, "cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


# Putting trained stages together


@pytest.fixture
def runs(stages: list[PixelDiffusion], tmp_path: Path) -> list[Path]:
    """Run folders, the model beside what else a run leaves."""
    folders = [tmp_path / "runs" / one.config.name for one in stages]
    for folder, one in zip(folders, stages, strict=True):
        one.save(folder / "model")
        (folder / "config.json").write_text('{"system": {}, "training": {}}')
        (folder / "model" / "notes.txt").write_text("not part of a stage")
    return folders


def test_trained_stages_are_put_together(runs: list[Path], painted: Result, tmp_path: Path) -> None:
    first = assemble([runs[0], runs[1] / "model", runs[2]], tmp_path / "out" / "cascade")
    result: Any = diptych.load(first, "cpu").generate(PROMPTS, seeds=SEEDS, negative=["", "a dog", ""])
    assert equal(result.images, painted.images)
    names = {str(path.relative_to(first)) for path in first.rglob("*") if path.is_file()}
    stages = {
        f"stage-{n}/{file}" for n in ("8", "8-16", "16-32") for file in ("config.json", "network/model.safetensors")
    }
    assert names == {"config.json", *stages}


def test_a_cascade_is_replaced_and_nothing_else_is(runs: list[Path], tmp_path: Path) -> None:
    out = assemble(runs, tmp_path / "cascade")
    (out / "README.md").write_text("a model card")
    assemble(runs[:2], out)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "stage-8", "stage-8-16"]
    assert (out / "README.md").read_text() == "a model card"
    (out / "stage-8" / "cat.png").write_text("mine")
    with pytest.raises(UserError, match=r"holds stage-8/cat\.png, which is no part of a cascade"):
        assemble(runs, out)
    assert (out / "stage-8" / "cat.png").read_text() == "mine"
    taken = tmp_path / "taken"
    taken.mkdir()
    assemble(runs[:1], taken)  # empty until now
    for spoil in (tmp_path / "runs", runs[0], runs[0] / "model", runs[0] / "config.json"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=r"not a cascade of diptych|lies in the stage|is a folder of"):
            assemble(runs, spoil)
        assert sorted(tmp_path.rglob("*")) == before


def test_stages_that_do_not_fit_are_not_put_together(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "cascade"
    with pytest.raises(UserError, match="stage 8 cannot follow stage 8-16"):
        assemble([runs[1], runs[0]], out)
    with pytest.raises(UserError, match="at least one stage"):
        assemble([], out)
    with pytest.raises(UserError, match=r"there is no stage: .*nowhere/config\.json is missing"):
        assemble([runs[0], tmp_path / "nowhere"], out)
    shutil.rmtree(runs[1] / "model" / "network")
    with pytest.raises(UserError, match="no file"):
        assemble(runs, out)
    PixelDiffusion(enlarging(), Words()).save(runs[1] / "model")
    with pytest.raises(UserError, match="was never trained"):
        assemble(runs, out)
    assert not out.exists()
