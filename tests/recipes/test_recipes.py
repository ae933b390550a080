"""Recipes: each can be built, written down and changed; a tiny one goes all the way from images to a painting."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diptych.cli import main as cli
from diptych.cli.describe import describe
from diptych.core.errors import UserError
from diptych.core.random import GeneratorDraws
from diptych.encoders.class_configs import ClassConfig
from diptych.models.judge import SHIPPED
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.autoencoder import Autoencoder
from diptych.recipes import all_recipes, get
from diptych.recipes.sources import Citation, all_sources, table
from diptych.training import experiment as run
from diptych.training.experiment_config import LatentTraining, PixelTraining, Recipe
from diptych.training.tasks.autoencoding import FirstStage, FirstStageConfig
from tests.models.latents import AUTOENCODER, JOINT, SIZE, autoencoder, system, write_images

PUBLISHED = {
    "sd1": {"unet": 859_520_964, "autoencoder": 83_653_863, "text": 123_060_480},
    "ldm-text": {"unet": 872_300_484, "autoencoder": 83_653_863},
    "kl-f8": {"autoencoder": 83_653_863},
}


DOCS = Path(__file__).parents[2] / "docs"
TABLES = {part.split("\n", 1)[0]: f"## {part}" for part in (DOCS / "recipes.md").read_text().split("\n## ")[1:]}
OF_PAPERS = [name for name in all_recipes() if not name.startswith(("emoji", "judge"))]
TRAINED = ("steps", "batch_size", "learning_rate", "warmup", "schedule", "optimizer", "weight_decay", "clip", "ema")


@pytest.mark.every(3)
@pytest.mark.parametrize("name", all_recipes())
def test_every_recipe_is_described_on_the_meta_device(name: str) -> None:
    """Its networks are counted once, for all that is said of them: the published counts, sizes in words, sources."""
    described, recipe = describe(name), get(name)
    counts = described["networks"]
    assert described["total"] == sum(counts.values()) > 0
    for part, count in PUBLISHED.get(name, {}).items():
        assert counts[part] == count
    assert Recipe.from_dict(json.loads(json.dumps(described["config"]))) == recipe
    for line in (recipe.description, *(row for row in task_rows() if row.startswith(f"| `{name}` |"))):
        assert not wrong_sizes(line, counts), line
    if name in OF_PAPERS:
        assert not [problem for source in all_sources()[name] if (problem := source.problem(recipe, counts))]
        assert TABLES[name].strip() == table(name, counts).strip(), "diptych recipes --sources > docs/recipes.md"


def task_rows() -> list[str]:
    return [line for line in (DOCS / "tasks.md").read_text().splitlines() if line.startswith("| `")]


def wrong_sizes(line: str, counts: dict[str, int]) -> list[str]:
    """Numbers of parameters in a line ("401 M", "2.3 B", "385,030,726") that are those of no network, nor of all."""
    known = [*counts.values(), sum(counts.values())]
    rounded, exact = r"(?<![\w.,])(\d[\d,]*(?:\.(\d+))?) ([MB])\b", r"(?<![\w.,])(\d{1,3}(?:,\d{3}){2,})(?![\w,])"
    wrong = [number for number in re.findall(exact, line) if int(number.replace(",", "")) not in known]
    for number, decimals, unit in re.findall(rounded, line):
        values = {round(count / {"M": 1e6, "B": 1e9}[unit], len(decimals)) for count in known}
        if float(number.replace(",", "")) not in values:
            wrong.append(f"{number} {unit}")
    return wrong


def test_the_test_of_sizes_sees_a_wrong_one() -> None:
    counts = {"unet": 245_620_000, "text": 54_656_000}
    right = "246 M and 54.7 M, 0.2 B, 300.3 M in all; 245,620,000 and 300,276,000 at 1,000 px"
    assert not wrong_sizes(right, counts)
    assert wrong_sizes("306 M U-Net of 245,620,001", counts) == ["245,620,001", "306 M"]


def test_every_recipe_of_a_paper_has_sources_for_how_it_is_trained() -> None:
    sources = all_sources()
    assert set(sources) == set(OF_PAPERS) == set(TABLES)
    for name, entries in sources.items():
        fields = [entry.field for entry in entries]
        assert len(fields) == len(set(fields)), name
        betas = () if get(name).training.optimizer == "adafactor" else ("betas",)
        needed = {*(f"training.{field}" for field in (*TRAINED, *betas)), "data.crop", "data.flip"}
        assert needed <= set(fields), name
        assert any(field.startswith("parameters") for field in fields), name


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (Citation("training.warmup", "same", 7, "table 1"), "training.warmup is 10,000, and table 1 says 7"),
        (Citation("training.warmup", "differs", 10_000, "table 1", "because"), "as table 1 says: it no longer differs"),
        (Citation("training.warmup", "differs", 7, "table 1"), "nothing says why"),
        (Citation("training.warmup", "silent"), "nothing says why"),
        (Citation("parameters.unet", "same", 2e9, "table 1", within=0.1), "and table 1 says"),
        (Citation("training.warmup", "same", 10_000, "table 1"), None),
        (Citation("parameters.unet", "same", 1e9, "table 1", within=0.1), None),
    ],
)
def test_a_source_that_does_not_describe_its_recipe_is_found(source: Citation, says: str | None) -> None:
    problem = source.problem(get("sd1"), {"unet": 1_050_000_000})
    assert problem is None if says is None else says in str(problem)


def test_a_source_of_a_field_that_is_not_there_is_refused() -> None:
    for field, says in (("training.stepz", "no field 'stepz'"), ("parameters.net", "no network 'net'")):
        with pytest.raises(UserError, match=says):
            Citation(field, "same", 1, "table 1").problem(get("sd1"), {"unet": 1})


def test_sources_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "--sources", "kl-f4"]) == 0
    assert capsys.readouterr().out.strip() == TABLES["kl-f4"].strip()
    assert cli.main(["recipes", "--sources", "emoji-latent"]) == 2
    assert "recipe with sources 'emoji-latent'" in capsys.readouterr().err


@pytest.mark.parametrize("name", all_recipes())
def test_every_recipe_can_be_written_down_and_changed(name: str) -> None:
    recipe = get(name)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    changed = recipe.override(["training.steps=7", "data.path=elsewhere", "description=mine"])
    assert (changed.training.steps, changed.data.path, changed.description) == (7, "elsewhere", "mine")
    assert type(changed.system) is type(recipe.system)


def test_the_description_counts_what_is_built() -> None:
    described = describe("emoji-latent")
    recipe = get("emoji-latent")
    assert isinstance(recipe.system, LatentTraining)
    with torch.device("meta"):
        from diptych.networks.unet import UNet

        unet = UNet(recipe.system.model.unet)
    assert described["networks"]["unet"] == sum(p.numel() for p in unet.parameters())


def test_the_joint_recipe_differs_in_what_reads_the_words_alone() -> None:
    frozen, joint = get("emoji-64-latent"), get("emoji-latent-joint")
    assert isinstance(frozen.system, LatentTraining)
    back = joint.override(
        [
            f"system.model.text={json.dumps(frozen.system.model.text.to_dict())}",
            f"system.model.unet.context_width={frozen.system.model.text.width}",
            f"system.model.unet.pooled_width={frozen.system.model.text.width}",
            f"training.steps={frozen.training.steps}",
            f"description={frozen.description}",
        ]
    )
    assert joint.system.model.text.kind == "transformer"  # type: ignore[union-attr]
    assert back == frozen


def test_a_model_folder_is_described_too(tmp_path: Path) -> None:
    model = system()
    model.save(tmp_path / "run" / "model")
    described = describe(str(tmp_path / "run"))
    assert described["networks"]["unet"] == sum(p.numel() for p in model.unet.parameters())
    assert described["networks"]["text"] == sum(p.numel() for p in model.text.parameters())


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        (["training.stepz=3"], "no field 'stepz'"),
        (["trainin.steps=3"], "no field 'trainin'"),
        (["training.steps=many"], "training.steps must be a whole number"),
        (["training.steps"], "write it as field=value"),
        (["system.model.unet.channels=97"], "divide|head_width"),
        (["system.model.prediction=noise"], "system.model.prediction must be one of"),
        (["data.size=64"], "data.size \\(64\\) and system.model.size \\(128\\) must be the same"),
        (["system.model.unet.in_channels=4"], "in_channels must be 8"),
    ],
)
def test_a_mistaken_change_is_refused_in_one_line(assignments: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        get("emoji-latent").override(assignments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "assignments", "says"),
    [
        ("kl-f8", ["data.size=100", "data.crop=none"], r"data\.size must be a multiple of 8, not 100"),
        ("kl-f8", ["data.size=384", "data.crop=100"], r"data\.crop must be a multiple of 8, not 100"),
        ("emoji-tiny-decoder", ["data.size=99"], r"data\.size must be a multiple of \d, not 99"),
        ("emoji-classifier-pixels", ["data.size=99"], r"data\.size.* \(?99\)?|multiple of \d+, not 99"),
        ("emoji-latent", ["data.crop=32"], r"data\.crop \(32\) and system\.model\.size \(128\) must be the same"),
        ("emoji-latent", ["data.size=160", "data.crop=128", "system.precomputed=x"], "latents are not kept"),
        ("emoji-latent", ["data.center_shift=0.1", "system.precomputed=x"], "latents are not kept"),
    ],
)
def test_images_that_a_model_cannot_take_are_refused(name: str, assignments: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        get(name).override(assignments)


@pytest.mark.parametrize(
    ("name", "assignment"),
    [
        ("ldm-cin256-vq-f8", "system.diffusion.caption_dropout=0.1"),
        ("ldm-imagenet-1", "system.diffusion.caption_dropout=0.1"),
        ("imagenet-codes", "system.codes.caption_dropout=0.1"),
        ("ldm-cin256", 'system.model.text={"kind":"class","classes":1001}'),
    ],
)
def test_captions_are_not_dropped_where_nothing_stands_for_none(name: str, assignment: str) -> None:
    with pytest.raises(UserError, match=r"caption_dropout must be 0, not 0\.1: no class stands for none"):
        get(name).override([assignment])


def test_what_is_guided_by_default_has_learned_what_none_is() -> None:
    for name, recipe in all_recipes().items():
        system: Any = recipe.system
        if getattr(getattr(system, "model", None), "guidance", 1.0) != 1.0:
            training = system.codes if hasattr(system, "codes") else system.diffusion
            assert system.model.guidable and training.caption_dropout > 0, name


def shrunk(recipe: Recipe) -> Recipe:
    """The same recipe with the smallest networks and images that its shape allows."""
    model = recipe.system.model  # type: ignore[union-attr]
    size = 4 * math.lcm(model.multiple, 2 * (model.size // model.low_size) if getattr(model, "low_size", None) else 1)
    data = [f"data.{field}={size}" for field in ("size", "crop") if getattr(recipe.data, field) is not None]
    data += [f"data.max_size={size}"] if recipe.data.max_size is not None else []
    small = ["channels=8", "norm_groups=8", "blocks=1"]
    fields = [f"system.model.{'unet' if model.kind == 'latent' else 'network'}.{field}" for field in small]
    if model.kind == "latent":
        fields += [f"system.model.autoencoder.{field}" for field in small]
        fields += ["system.model.autoencoder.codebook=16"] * (model.autoencoder.codebook is not None)
    heads = "unet" if model.kind == "latent" else "network"
    fields += [f"system.model.{heads}.heads=1", f"system.model.{heads}.head_width=none"]
    return recipe.override([*data, *fields, f"system.model.size={size}"])


UNWORDED = [
    name
    for name, recipe in all_recipes().items()
    if isinstance(recipe.system, LatentTraining | PixelTraining)
    and not name.startswith("emoji")
    and (recipe.system.model.text is None or isinstance(recipe.system.model.text, ClassConfig))
    and getattr(recipe.system.model, "low_size", None) is None
    and not re.fullmatch("ldm-celeba-.*|ldm-imagenet-(2|4|16|32)|adm-(128|512)", name)  # as their relatives
]


@pytest.mark.every(2)
@pytest.mark.parametrize("name", UNWORDED)
def test_a_paper_s_recipe_trains_when_it_is_shrunk(name: str) -> None:
    """Its fields fit each other where they come together: a batch, half of whose captions would be dropped if any are,
    has a finite loss. Of recipes without words, whose encoders need files."""
    system, size = shrunk(get(name)).system, shrunk(get(name)).data.side
    assert isinstance(system, LatentTraining | PixelTraining)
    if isinstance(system, LatentTraining):
        model: Any = LatentDiffusion(system.model, Autoencoder(system.model.autoencoder), reader(system.model.text))
    else:
        model = PixelDiffusion(system.model, text=reader(system.model.text))
    images = torch.rand(2, 3, size, size) * 2 - 1
    batch = {"picture": images, "caption": ["7", "8"], "seed": torch.tensor([1, 2]), "key": ["a", "b"]}
    model.start(batch)
    dropped = torch.tensor([True, False]) & (system.diffusion.caption_dropout > 0)
    x0, cond = model.prepare(batch, GeneratorDraws(batch["seed"]), dropped)
    loss = model.denoiser.loss(x0, torch.randn_like(x0), torch.tensor([0.2, 0.8]), cond)
    assert torch.isfinite(loss).all()


def reader(text: Any) -> Any:
    return None if text is None else text.build()


def test_random_crops_train_what_reads_images_of_their_side() -> None:
    for name in ("kl-f8", "ldm-inpainting"):
        recipe = get(name).override(["data.size=384", "data.crop=256", "data.flip=0.5"])
        assert recipe.data.side == 256
    with pytest.raises(UserError, match="train without precomputing"):
        run.precompute(get("sd1").override(["data.size=600", "data.crop=512"]), Path("nowhere"))


def test_an_unknown_recipe_is_answered_with_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'emojii'; did you mean emoji-\w+\?.*`diptych recipes` lists"):
        get("emojii")
    assert cli.main(["train", "emojii", "--run", str(tmp_path / "run")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


# From images to a painting. All of it tiny: 16 pixels, thousands of parameters, four steps.

QUICK = [
    *("data.path=pictures", f"data.size={SIZE}", "training.steps=4", "training.batch_size=4", "training.device=cpu"),
    *("training.threads=1", "training.warmup=1", "training.validate_every=2", "training.sample_every=4"),
    *("training.checkpoint_every=2", "training.validation_images=3", "training.log_every=2"),
]
STAGE = {key: json.dumps(value) for key, value in AUTOENCODER.to_dict().items()}
UNET = [
    *("channels=16", "multipliers=1,2", "blocks=1", "attention_levels=1", "head_width=8", "norm_groups=8"),
    *("in_channels=4", "out_channels=4"),
]
LATENT = [
    *QUICK,
    *(f"system.model.autoencoder.{key}={value}" for key, value in STAGE.items()),
    *(f"system.model.unet.{change}" for change in UNET),
    *(f"system.model.size={SIZE}", "system.model.steps=2", 'system.diffusion.prompts=["a red picture","a cat"]'),
    *("system.autoencoder=runs/first", "system.precomputed=cache/tiny"),
]
JOINT_TEXT = [
    *LATENT,
    f"system.model.text={json.dumps(JOINT.to_dict())}",
    *("system.model.unet.context_width=16", "system.model.unet.pooled_width=16"),
]
FIRST = [*QUICK, *(f"system.network.{key}={value}" for key, value in STAGE.items())]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a first stage trained on them by the command line."""
    folder = tmp_path_factory.mktemp("workshop")
    write_images(folder / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["train", "emoji-autoencoder", "--run", "runs/first", *FIRST]) == 0
        assert cli.main(["precompute", "emoji-latent", "--out", "cache/tiny", *LATENT]) == 0
    return folder


@pytest.fixture
def here(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workshop)
    return workshop


def lines(path: str, kind: str) -> list[dict[str, Any]]:
    told = [json.loads(line) for line in Path(path, "metrics.jsonl").read_text().splitlines()]
    return [line for line in told if line["kind"] == kind]


@pytest.mark.parametrize(
    ("name", "assignments"),
    [
        ("frozen", LATENT),
        pytest.param("on-the-fly", [*LATENT, "system.precomputed=none"], marks=pytest.mark.slow),
        pytest.param("joint", JOINT_TEXT, marks=pytest.mark.slow),
        ("joint-on-the-fly", [*JOINT_TEXT, "system.precomputed=none"]),
    ],
)
def test_from_images_to_a_painting(here: Path, capsys, name: str, assignments: list[str]) -> None:
    assert cli.main(["train", "emoji-latent", "--run", f"runs/{name}", *assignments]) == 0
    assert [line["step"] for line in lines(f"runs/{name}", "validation")] == [2, 4]
    assert Path("runs", name, "samples", "step-00000004.png").is_file()
    capsys.readouterr()
    words = ["a red picture", "a blue picture"]
    assert cli.main(["generate", *words, "--model", f"runs/{name}", "--out", f"out-{name}", "--seed", "1,2"]) == 0
    paths = capsys.readouterr().out.split()
    assert len(paths) == 4
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (SIZE, SIZE)
            told = json.loads(image.text["diptych"])  # type: ignore[attr-defined]
        assert told["prompt"] in words and told["steps"] == 2 and told["sampler"] == "dpmpp-2m"
    assert cli.main(["train", "emoji-latent", "--run", f"runs/{name}", *assignments]) == 0
    assert "is finished" in capsys.readouterr().err


def test_on_the_fly_and_precomputed_training_agree(here: Path) -> None:
    """The same images, captions, noise and first weights; latents and words in half precision in one of the two."""
    for name, more in (("kept", []), ("fly", ["system.precomputed=none"])):
        run.train(get("emoji-latent").override([*LATENT, *more, "system.diffusion.prompts=[]"]), Path("runs", name))
    kept, fly = (lines(f"runs/{name}", "train") for name in ("kept", "fly"))
    for mine, wanted in zip(kept, fly, strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"], rel=5e-3)


def test_two_runs_of_a_recipe_start_from_the_same_weights(here: Path) -> None:
    torch.manual_seed(1)
    run.train(get("emoji-autoencoder").override([*FIRST, "training.steps=1"]), Path("runs/a"))
    torch.manual_seed(2)
    run.train(get("emoji-autoencoder").override([*FIRST, "training.steps=1"]), Path("runs/b"))
    a, b = (Path("runs", name, "model", "autoencoder", "model.safetensors").read_bytes() for name in "ab")
    assert a == b


def refused(recipe: Recipe, says: str, do: Any = run.train) -> None:
    with pytest.raises(UserError, match=says) as caught:
        do(recipe, Path("runs/refused"))
    assert "\n" not in str(caught.value)
    assert not Path("runs/refused").exists()


def test_a_first_stage_that_does_not_fit_is_refused(here: Path) -> None:
    recipe = get("emoji-latent").override(LATENT)
    refused(recipe.override(["system.autoencoder=runs/none"]), "no model at runs/none")
    refused(recipe.override(["system.model.autoencoder.norm_groups=8"]), "another shape than the recipe")
    Path("judge").mkdir(exist_ok=True)
    Path("judge/config.json").write_text('{"kind": "judge"}')
    refused(recipe.override(["system.autoencoder=judge"]), "holds no autoencoder")
    Path("odd").mkdir(exist_ok=True)
    Path("odd/config.json").write_text('{"kind": "autoencoder", "network": 3}')
    refused(recipe.override(["system.autoencoder=odd"]), "must be an object")


def test_a_saved_config_that_lacks_a_newer_field_still_fits(here: Path) -> None:
    folder = Path("older")
    system_config = FirstStageConfig(network=AUTOENCODER)
    FirstStage(system_config).save(folder)
    values = json.loads((folder / "config.json").read_text())
    del values["network"]["patch"], values["network"]["attention"]
    (folder / "config.json").write_text(json.dumps(values))
    LatentTraining(model=get_model(), autoencoder="older").first_stage()


def get_model():
    recipe = get("emoji-latent").override(LATENT)
    assert isinstance(recipe.system, LatentTraining)
    return recipe.system.model


def test_a_latent_model_may_lend_its_first_stage(here: Path) -> None:
    system().save(Path("lender"))
    lent = LatentTraining(model=get_model(), autoencoder="lender").first_stage()
    assert all(torch.equal(a, b) for a, b in zip(lent.parameters(), autoencoder().parameters(), strict=True))


def test_precomputed_latents_of_another_size_are_refused(here: Path) -> None:
    recipe = get("emoji-latent").override([*LATENT, "data.size=32", "system.model.size=32"])
    refused(recipe, r"holds latents of shape \(8, 8, 8\), not \(8, 16, 16\)")


def test_data_without_a_held_out_split_is_trained_without_validation(here: Path) -> None:
    write_images(Path("all"), held_out=0)
    assignments = [*LATENT, "data.path=all", "system.precomputed=cache/all", "system.diffusion.prompts=[]"]
    assert cli.main(["precompute", "emoji-latent", "--out", "cache/all", *assignments]) == 0
    run.train(get("emoji-latent").override(assignments), Path("runs/all"))
    assert not lines("runs/all", "validation") and lines("runs/all", "train")


def test_only_latent_models_are_precomputed(here: Path) -> None:
    refused(get("kl-f8"), "only recipes over latents or codes", run.precompute)


def test_stable_diffusion_is_trained_to_repaint_where_its_network_has_the_channels() -> None:
    latent = get("sd1").system.model.autoencoder.latent_channels  # type: ignore[union-attr]
    changed = get("sd1").override([f"system.model.unet.concat_channels={latent + 1}"]).system
    assert isinstance(changed, LatentTraining) and changed.model.repaints
    with pytest.raises(UserError, match="concat_channels must be 0"):
        get("sd1").override([f"system.model.unet.concat_channels={latent}"])


@pytest.mark.parametrize("width", [30_000, 65_536])
def test_networks_that_no_memory_holds_are_refused_before_they_are_built(tmp_path: Path, capsys, width: int) -> None:
    change = f"system.network.multipliers={width},{width}"
    assert cli.main(["train", "emoji-autoencoder", "--run-dir", str(tmp_path / "run"), change]) == 2
    assert "the networks of this recipe" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_judge_in_the_package_is_described() -> None:
    assert set(describe(SHIPPED)["networks"]) == {"judge"}
