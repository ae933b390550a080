"""The recipes of models of codes: full size counted, and the tiny road from images to a painting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import diptych
from diptych.cli import main as cli
from diptych.cli.describe import describe
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.data.emoji.icon_sources import SETS
from diptych.encoders.classes import ClassLabels
from diptych.evaluation.prompt_sets import PromptGroup
from diptych.evaluation.runner import generate_group
from diptych.models.first_stage import save_autoencoder
from diptych.networks.code_transformer import CodeTransformer
from diptych.recipes import get
from diptych.training import experiment as run
from diptych.training.experiment_config import AutoregressiveTraining
from tests.models.codes import CLASSES, SHAPE, VQ, first_stage
from tests.models.latents import SIZE, write_images
from tests.recipes.test_recipes import QUICK, lines

STATED = {"imagenet-codes": 1400, "ffhq-codes": 801}
"""Millions of parameters of the transformer that the paper states (Esser et al. 2021, appendix)."""


@pytest.mark.parametrize("name", STATED)
def test_full_size_is_what_the_paper_states(name: str) -> None:
    recipe = get(name)
    assert isinstance(recipe.system, AutoregressiveTraining)
    c = recipe.system.model.transformer
    counted = describe(name)["networks"]["transformer"]
    layer = 12 * c.width**2 + 13 * c.width  # four square matrices, an MLP of eight, their biases, two norms
    assert counted == (2 * c.vocabulary + c.length + 2) * c.width + c.layers * layer
    assert counted / 1e6 == pytest.approx(STATED[name], rel=0.01)


def test_the_classes_are_the_styles_of_the_data() -> None:
    recipe = get("emoji-codes-class")
    assert isinstance(recipe.system, AutoregressiveTraining) and recipe.data.caption_field == "style"
    labels = ClassLabels(recipe.system.model.text)  # type: ignore[arg-type]
    assert [labels.number(one.style) for one in SETS] == list(range(len(SETS)))


TINY = {
    "emoji-codes": [f"system.model.transformer={json.dumps({**SHAPE.to_dict(), 'context_width': 384})}"],
    "emoji-codes-class": [
        f"system.model.transformer={json.dumps({**SHAPE.to_dict(), 'classes': CLASSES.entries})}",
        f"system.model.text={json.dumps(CLASSES.to_dict())}",
        *("data.kinds=[]", "system.codes.prompts=red,blue"),
    ],
    "emoji-codes-free": [f"system.model.transformer={json.dumps(SHAPE.to_dict())}"],
}
COMMON = [
    *QUICK,
    *(f"system.model.autoencoder={json.dumps(VQ.to_dict())}", f"system.model.size={SIZE}"),
    *("system.autoencoder=runs/vq", "system.precomputed=cache/codes"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images of three styles and a first stage."""
    monkeypatch.chdir(tmp_path)
    for i, path in enumerate(sorted(write_images(Path("pictures")).glob("*.json"))):
        path.write_text(json.dumps({**json.loads(path.read_text()), "style": CLASSES.names[i % 3]}))
    save_autoencoder(first_stage(), Path("runs/vq/model"))
    values = {"kind": "autoencoder", "network": VQ.to_dict()}
    write_text(Path("runs/vq/model/config.json"), json.dumps(values))
    return tmp_path


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if "class" in n else [pytest.mark.slow]) for n in TINY])
def test_from_images_to_a_painting(here: Path, capsys, name: str) -> None:
    assignments = [*COMMON, *TINY[name]]
    assert cli.main(["precompute", name, "--out", "cache/codes", *assignments]) == 0
    assert cli.main(["train", name, "--run", "runs/kept", *assignments]) == 0
    assert cli.main(["train", name, "--run", "runs/fly", *assignments, "system.precomputed=none"]) == 0
    kept, fly = (lines(f"runs/{which}", "validation") for which in ("kept", "fly"))
    assert [line["step"] for line in kept] == [2, 4]
    assert [line["nats_per_code"] for line in kept] == pytest.approx([line["nats_per_code"] for line in fly], rel=1e-3)
    assert Path("runs/kept/samples/step-00000004.png").is_file()
    capsys.readouterr()
    options = ["--temperature", "0.8", "--top-k", "9", "--top-p", "0.9"]
    assert cli.main(["generate", "red", "blue", "--model", "runs/kept", "--seed", "1,2", *options]) == 0
    paths = capsys.readouterr().out.split()
    assert len(paths) == 4
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (SIZE, SIZE)
            assert json.loads(image.text["diptych"])["top_k"] == 9  # type: ignore[attr-defined]
    assert cli.main(["info", "runs/kept"]) == 0
    assert "transformer" in capsys.readouterr().out
    metas = [{"captions": [word]} for word in ("red", "blue", "red")]
    group = PromptGroup(name="seen", indices=[0, 1, 2], metas=metas, seeds=[1, 2, 3])
    used = generate_group(diptych.load("runs/kept", "cpu"), group, 2, steps=None, guidance=1.5, sampler=None, stop=None)
    assert len(group.generated) == 3 and used["size"] == [SIZE, SIZE]


def test_a_first_stage_without_a_codebook_is_refused(here: Path) -> None:
    with pytest.raises(UserError, match="codebook must be set"):
        get("emoji-codes").override(["system.model.autoencoder.codebook=none"])
    other = [*COMMON, *TINY["emoji-codes-free"], "system.model.autoencoder.norm_groups=2"]
    with pytest.raises(UserError, match="another shape than the recipe"):
        run.train(get("emoji-codes-free").override(other), Path("runs/none"))


def test_codes_of_another_size_are_refused(here: Path) -> None:
    assignments = [*COMMON, *TINY["emoji-codes-free"]]
    assert cli.main(["precompute", "emoji-codes-free", "--out", "cache/codes", *assignments]) == 0
    larger = ["data.size=32", "system.model.size=32", "system.model.transformer.length=64"]
    with pytest.raises(UserError, match=r"holds codes of shape \(4, 4\), not \(8, 8\)"):
        run.train(get("emoji-codes-free").override([*assignments, *larger]), Path("runs/none"))


def test_the_small_transformer_trains_on_random_codes() -> None:
    """A step of the recipe's own size: the loss of codes that say nothing is that of their number."""
    recipe = get("emoji-codes-free")
    assert isinstance(recipe.system, AutoregressiveTraining)
    torch.manual_seed(0)
    network = CodeTransformer(recipe.system.model.transformer)
    codes = torch.randint(0, 1024, (2, 64))
    loss = torch.nn.functional.cross_entropy(network(codes[:, :-1]).transpose(1, 2), codes)
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(1024.0).log().item(), abs=0.2)
