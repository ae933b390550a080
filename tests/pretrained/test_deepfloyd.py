"""DeepFloyd IF's folders give diffusers' numbers: T5, U-Nets, whole pipelines, and the stages joined into a cascade."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.cli.describe import describe
from diptych.cli.main import main
from diptych.core.errors import UserError
from diptych.diffusion.steps import NoiseSource
from diptych.models.pixel_diffusion import PixelDiffusion, stage_seed
from diptych.models.sampling import read_settings
from diptych.networks.adm import AdmUNet
from diptych.pretrained.adm_keys import diffusers_adm
from diptych.recipes import get
from diptych.weights.files import load_safetensors
from diptych.weights.lazy import load_weights
from diptych.weights.save import save_safetensors
from tests.encoders.tiny_encoders import write_spiece
from tests.networks.reference import noise, relative_error
from tests.parity import within
from tests.pretrained.tiny_if import BASE, ENLARGING, LAST, SIZES, WIDTH, Draws, pipeline

diffusers = pytest.importorskip("diffusers")

FAMILY, FILES = "DeepFloyd IF", "diffusers folder"
PROMPTS = ["Two cats left of a house", " a red apple"]
SEEDS = [3, 4]
SHAPES = {"I": BASE, "II": ENLARGING, "III": LAST}


class Pair:
    """A folder, diffusers' pipeline of it, and what we make of it."""

    def __init__(self, folder: Path, shape: dict[str, Any], seed: int, text: bool = True) -> None:
        self.folder, self.theirs = folder, pipeline(shape, seed, text)
        self.theirs.save_pretrained(folder)
        self.ours: Any = diptych.load(folder, "cpu")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """The second has a copy of the text encoder, the third has none."""
    folder = tmp_path_factory.mktemp("if")
    texts = {"I": True, "II": True, "III": False}
    return {name: Pair(folder / name, SHAPES[name], seed, texts[name]) for seed, name in enumerate(SHAPES)}


@torch.no_grad()
def test_the_text_embeddings_are_theirs(pairs: dict[str, Pair]) -> None:
    """All 77 places, those of the padding too, and the empty prompt for no words."""
    pair = pairs["I"]
    prompts = [*PROMPTS, ""]
    theirs, nothing = pair.theirs.encode_prompt(prompts)
    ours = pair.ours.text.encode(prompts)
    assert ours.sequence.shape == (3, 77, WIDTH) and ours.mask.all()
    within(FAMILY, FILES, "T5, relative", relative_error(ours.sequence, theirs), 1e-5)
    assert relative_error(ours.sequence[2:].expand(3, -1, -1), nothing) <= 1e-5


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_the_unets_give_their_numbers(pairs: dict[str, Pair], name: str) -> None:
    pair, side = pairs[name], min(SHAPES[name]["sample_size"], 32)
    x, low, time = noise(2, 3, side, side), noise(2, 3, side, side, seed=2), torch.tensor([981, 10])
    context, entry = noise(2, 77, WIDTH, seed=3), torch.tensor([250, 999])
    if name == "I":
        theirs = pair.theirs.unet(x, time, context).sample
        ours = pair.ours.network(x, time.float(), context=context)
    else:
        theirs = pair.theirs.unet(torch.cat([x, low], 1), time, context, class_labels=entry).sample
        ours = pair.ours.network(x, time.float(), context=context, concat=low, level=entry.double() / 1000)
    within(FAMILY, FILES, f"U-Net of stage {name}, relative", relative_error(ours, theirs), 1e-5)
    assert theirs.std() > 0.02


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Draws]:
    """What diffusers' pipelines draw is drawn from this."""
    from diffusers.pipelines.deepfloyd_if import pipeline_if, pipeline_if_superresolution
    from diffusers.schedulers import scheduling_ddpm

    draws = Draws()
    for module in (pipeline_if, pipeline_if_superresolution, scheduling_ddpm):
        monkeypatch.setattr(module, "randn_tensor", draws)
    yield draws


def source(stage: PixelDiffusion, size: int, what: str = "") -> NoiseSource:
    return NoiseSource([stage_seed(seed, stage.config, what) for seed in SEEDS], (3, size, size))


def pictures(result: Any) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=int) for image in result.images])


def low_images(side: int) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (2, side, side, 3))
    return [Image.fromarray(one.astype(np.uint8)) for one in values]


CASES: dict[str, dict[str, Any]] = {
    "plain": {"guidance": 1.0},
    "guided": {"guidance": 7.0},
    "negative": {"guidance": 7.0, "negative": "a dog"},
}


FEW = ("I-guided", "II-negative")


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}-{what}", marks=[] if f"{name}-{what}" in FEW else [pytest.mark.slow])
        for name, (what, case) in itertools.product(("I", "II"), CASES.items())
    ],
)
@torch.no_grad()
def test_the_pipelines_give_their_images(pairs: dict[str, Pair], drawing: Draws, name: str, case: Any) -> None:
    """With the noise of our seeds; the variance is the network's, so is what each step draws."""
    pair, size = pairs[name], SHAPES[name]["sample_size"]
    draws = source(pair.ours, size)
    drawing.queue, drawing.then = [draws.draw()], draws
    own: dict[str, Any] = {}
    if name == "II":
        drawing.queue.append(source(pair.ours, size, "low").draw())
        own["low"] = low_images(size // 4)
    theirs = pair.theirs(
        PROMPTS,
        num_inference_steps=10,
        guidance_scale=case["guidance"],
        negative_prompt=[case.get("negative", "")] * 2,
        **({"image": own["low"]} if own else {}),
    )
    ours = pair.ours.generate(PROMPTS, seeds=SEEDS, steps=10, **own, **case)
    apart = np.abs(pictures(ours) - pictures(theirs)).max()
    within(FAMILY, FILES, f"images of stage {name}, of 255", float(apart), 1.0)
    assert pictures(theirs).std() > 20 and ((pictures(theirs) > 0) & (pictures(theirs) < 255)).mean() > 0.3
    other = pair.ours.generate(PROMPTS, seeds=SEEDS, steps=10, guidance=4.0, **own)
    assert np.abs(pictures(other) - pictures(theirs)).max() > 5, "words and guidance are seen"


# Stages joined


@pytest.fixture(scope="module")
def joined(pairs: dict[str, Pair], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three by the command line; the first is in float16."""
    folder = tmp_path_factory.mktemp("joined")
    shutil.copytree(pairs["I"].folder, folder / "I")
    diffusers.UNet2DConditionModel.from_pretrained(pairs["I"].folder / "unet").half().save_pretrained(folder / "I/unet")
    sources = [str(folder / "I"), str(pairs["II"].folder), str(pairs["III"].folder)]
    assert main(["assemble", *sources, "--out", str(folder / "cascade")]) == 0
    return folder / "cascade"


def test_stages_join_into_a_cascade_that_reads_with_one_t5(pairs: dict[str, Pair], joined: Path) -> None:
    """Nothing of T5 is copied, and what was stored in float16 stays so."""
    model: Any = diptych.load(joined, "cpu")
    assert [config.name for config in model.configs] == ["8", "8-32", "32-128"]
    (text,) = {config.text for config in model.configs}
    assert text.path == str((joined.parent / "I" / "text_encoder").resolve())
    assert {path.name for path in joined.rglob("*") if path.is_file()} == {"config.json", "model.safetensors"}
    kinds = {tensor.dtype for tensor in load_weights(joined / "stage-8" / "network", dtype=None).values()}
    assert kinds == {torch.float16}
    result = model.generate(PROMPTS, seeds=SEEDS, steps=2, keep=True, one_at_a_time=True)
    assert [stage[0].size for stage in result.stages] == [(8, 8), (32, 32), (128, 128)]
    second = pairs["II"].ours.generate(PROMPTS, seeds=SEEDS, steps=2, low=result.stages[0])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(second.images, result.stages[1], strict=True))
    assert json.loads((joined / "stage-8-32" / "config.json").read_text())["augmentation"]["level"] == 0.25


@pytest.mark.slow
@torch.no_grad()
def test_a_joined_cascade_paints_what_the_pipelines_paint(pairs: dict[str, Pair], drawing: Draws, joined: Path) -> None:
    """Each of theirs is given what ours had before it: one value of 255 is enough to lead the next stage elsewhere."""
    model: Any = diptych.load(joined, "cpu")
    result = model.generate(PROMPTS, seeds=SEEDS, steps=5, guidance=[7.0, 4.0, 4.0], keep=True)
    embeddings = dict(
        zip(("prompt_embeds", "negative_prompt_embeds"), pairs["I"].theirs.encode_prompt(PROMPTS), strict=True)
    )
    for number, name in ((1, "II"), (2, "III")):
        theirs, stage = pairs[name].theirs, model.stage(number)
        draws = source(stage, stage.config.size)
        drawing.queue, drawing.then = [draws.draw(), source(stage, stage.config.size, "low").draw()], draws
        wanted = theirs(
            image=result.stages[number - 1],
            num_inference_steps=5,
            guidance_scale=4.0,
            noise_level=round(1000 * stage.config.augmentation.level),
            **embeddings,
        )
        apart = np.abs(pictures(wanted) - np.stack([np.asarray(one, dtype=int) for one in result.stages[number]]))
        within(FAMILY, "three folders joined", f"images of stage {name}, of 255", float(apart.max()), 1.0)


def test_a_stage_without_text_encoder_says_so(pairs: dict[str, Pair]) -> None:
    with pytest.raises(UserError, match=r"no T5"):
        pairs["III"].ours.generate("a", low=low_images(32)[0])


def test_a_tokenizer_may_be_a_sentencepiece_model_alone(pairs: dict[str, Pair], tmp_path: Path) -> None:
    """As in the published folders."""
    folder = tmp_path / "I"
    shutil.copytree(pairs["I"].folder, folder, ignore=shutil.ignore_patterns("tokenizer"))
    (folder / "tokenizer").mkdir()
    with pytest.raises(UserError, match=r"no tokenizer in .*/I/tokenizer: it needs tokenizer\.json or spiece\.model"):
        diptych.load(folder, "cpu").generate("a")
    write_spiece(folder / "tokenizer" / "spiece.model")
    read = diptych.load(folder, "cpu").text.encode(PROMPTS)  # type: ignore[union-attr]
    assert torch.equal(read.sequence, pairs["I"].ours.text.encode(PROMPTS).sequence)


def test_the_command_line_paints_a_published_stage(pairs: dict[str, Pair], joined: Path, tmp_path: Path) -> None:
    folder = pairs["I"].folder
    assert main(["generate", "a dog", "--model", str(folder), "--steps", "2", "--out", str(tmp_path / "one")]) == 0
    assert [Image.open(path).size for path in (tmp_path / "one").iterdir()] == [(8, 8)]
    words = [
        "generate",
        "a dog",
        "--model",
        str(joined),
        "--steps",
        "2",
        "--one-at-a-time",
        "--out",
        str(tmp_path / "all"),
    ]
    assert main(words) == 0
    assert [Image.open(path).size for path in (tmp_path / "all").iterdir()] == [(128, 128)]


def test_networks_in_half_precision_paint_nearly_the_same(pairs: dict[str, Pair]) -> None:
    usual = pictures(pairs["I"].ours.generate(PROMPTS, seeds=SEEDS, steps=4))
    rounded: Any = diptych.load(pairs["I"].folder, "cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in rounded.network.parameters()} == {torch.bfloat16}
    apart = np.abs(pictures(rounded.generate(PROMPTS, seeds=SEEDS, steps=4)) - usual)
    assert 0 < apart.mean() < 0.1 * usual.std()


# What is refused


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_safetensors(path)
        change(tensors)
        save_safetensors(tensors, path)

    return spoil


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
NOISING = "image_noising_scheduler/scheduler_config.json"
WITHIN = "down_blocks.2.attentions.0.add_k_proj.weight"
REFUSED: list[tuple[Callable[[Path], Any], str]] = [
    (edit(UNET, class_embed_type="projection"), r"unet/config\.json: class_embed_type is 'projection'"),
    (edit(UNET, addition_embed_type="image"), "addition_embed_type is 'image'"),
    (edit(UNET, down_block_types=["DownBlock2D"] * 3), "down_block_types must be 3 of ResnetDownsampleBlock2D"),
    (edit(UNET, up_block_types=["ResnetUpsampleBlock2D"] * 3), "up_block_types must be those of down_block_types"),
    (edit(UNET, block_out_channels=[16, 24, 32]), "block_out_channels must be multiples of the first"),
    (edit(UNET, block_out_channels="wide"), "block_out_channels must be a list of whole numbers, not 'wide'"),
    (edit(UNET, time_embedding_act_fn=None), "time_embedding_act_fn must be act_fn where resnet_skip_time_act"),
    (edit(UNET, mid_block_scale_factor=1), "mid_block_scale_factor is 1"),
    (edit(UNET, num_class_embeds=10), "num_class_embeds is 10"),
    (edit(UNET, something_new=True), "something_new is True"),
    (edit(UNET, in_channels=3), "a super-resolution stage has 6 input channels"),
    (edit(UNET, sample_size=None), "sample_size must be a whole number, not None"),
    (edit(UNET, cross_attention_dim=64), r"unet: key '.*' has shape"),
    (edit(SCHEDULER, _class_name="EDMEulerScheduler"), r"scheduler/scheduler_config\.json: _class_name 'EDMEuler"),
    (edit(SCHEDULER, tomorrow=1), "does not know the setting tomorrow = 1"),
    (edit(SCHEDULER, variance_type="fixed_small"), "variance_type 'fixed_small' is none of learned_range"),
    (edit(SCHEDULER, beta_schedule="sigmoid"), "beta_schedule 'sigmoid' is none of"),
    (edit(NOISING, beta_schedule="linear"), "image_noising.*beta_schedule must be 'squaredcos_cap_v2', not 'linear'"),
    (lambda folder: shutil.rmtree(folder / "scheduler"), r"there is no file .*scheduler_config\.json"),
    (weights(lambda tensors: tensors.pop(WITHIN)), rf"key '{WITHIN}' is missing"),
    (weights(lambda tensors: tensors.update(extra=torch.ones(1))), "unexpected key 'extra'"),
    (weights(lambda tensors: tensors[WITHIN].view(-1)[:1].fill_(torch.nan)), "holds NaN"),
    (weights(lambda tensors: tensors["conv_out.weight"].zero_()), "was never trained"),
]


@pytest.mark.parametrize(("spoil", "says"), REFUSED, ids=[says[-40:] for _, says in REFUSED])
def test_what_cannot_be_followed_is_refused_by_name(
    pairs: dict[str, Pair], tmp_path: Path, spoil: Callable[[Path], Any], says: str
) -> None:
    folder = tmp_path / "II"
    shutil.copytree(pairs["II"].folder, folder)
    spoil(folder)
    with pytest.raises(UserError, match=says) as caught:
        read_settings(diptych.load(folder, "cpu").config, {})  # the sampler's when it is used
    assert "\n" not in str(caught.value)


def test_what_its_own_sampler_cannot_follow_another_does_not_need(pairs: dict[str, Pair], tmp_path: Path) -> None:
    folder = tmp_path / "II"
    shutil.copytree(pairs["II"].folder, folder)
    edit(SCHEDULER, tomorrow=1, variance_type="fixed_large_log", clip_sample=False, clip_sample_range=2.0)(folder)
    assert read_settings(diptych.load(folder, "cpu").config, {"sampler": "dpmpp-2m"}).sampler == "dpmpp-2m"


def test_describe_a_deepfloyd_folder(pairs: dict[str, Pair], joined: Path) -> None:
    """Counted without its weights being read, T5 too."""
    for name, pair in pairs.items():
        described = describe(str(pair.folder))
        counts = {"network": pair.theirs.unet.num_parameters()}
        counts |= {"text": pair.theirs.text_encoder.num_parameters()} if name != "III" else {}
        assert described["networks"] == counts and described["config"]["size"] == SHAPES[name]["sample_size"]
    assert sorted(describe(joined)["networks"]) == ["stage 32-128", "stage 8", "stage 8-32", "text"]


@pytest.mark.every(3)
@pytest.mark.parametrize("spacing", [None, "leading"])
@pytest.mark.parametrize("saved", ["DDPMScheduler", "DPMSolverMultistepScheduler"])
@torch.no_grad()
def test_a_solver_gives_the_images_of_the_pipeline(
    pairs: dict[str, Pair], drawing: Draws, tmp_path: Path, saved: str, spacing: str | None
) -> None:
    """A folder saved with DPM-Solver++, or with DDPM and sampled with it, at the times of its own class."""
    folder, kind = tmp_path / "I", "DPMSolverMultistepScheduler"
    shutil.copytree(pairs["I"].folder, folder)
    values = {**json.loads((folder / SCHEDULER).read_text()), "timestep_spacing": spacing, "_class_name": saved}
    (folder / SCHEDULER).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    stage, theirs = diptych.load(folder, "cpu"), pairs["I"].theirs
    assert isinstance(stage, PixelDiffusion)
    assert stage.config.sampler == ("ddpm" if saved == "DDPMScheduler" else "dpmpp-2m")
    usual, read = theirs.scheduler, getattr(diffusers, saved).from_pretrained(folder / "scheduler")
    theirs.scheduler = getattr(diffusers, kind).from_config(read.config)
    drawing.queue = [source(stage, SIZES[0]).draw()]
    try:
        want = theirs(PROMPTS, num_inference_steps=6, guidance_scale=4.0, negative_prompt=[""] * 2)
    finally:
        theirs.scheduler = usual
    got = stage.generate(PROMPTS, seeds=SEEDS, steps=6, guidance=4.0, sampler="dpmpp-2m")
    apart = np.abs(pictures(got) - pictures(want)).max()
    within(FAMILY, FILES, "images of stage I by DPM-Solver++, of 255", float(apart), 1.0)
    assert pictures(want).std() > 5


# Full size

COUNTS = {
    "if-1-xl": 4_304_695_110,
    "if-1-l": 935_365_830,
    "if-1-m": 371_605_830,
    "if-2-l": 1_242_987_270,
    "if-2-m": 443_085_958,
    "if-3-l": 692_416_646,
}


@pytest.mark.parametrize("name", COUNTS)
def test_full_sizes_have_as_many_parameters_as_in_diffusers(name: str) -> None:
    shape: Any = get(name).system.model.network  # type: ignore[union-attr]
    widths = tuple(shape.level_channels(level) for level in range(len(shape.multipliers)))
    attend = [level in shape.attention_levels for level in range(len(widths))]
    kinds = {
        side: {True: f"SimpleCrossAttn{side}Block2D", False: f"Resnet{side}sampleBlock2D"} for side in ("Down", "Up")
    }
    changes = {
        "attention_head_dim": shape.head_width,
        "addition_embed_type_num_heads": shape.text_pooling_heads,
        "block_out_channels": widths,
        "cross_attention_dim": shape.context_projection,
        "down_block_types": tuple(kinds["Down"][one] for one in attend),
        "encoder_hid_dim": shape.context_width,
        "layers_per_block": shape.blocks,
        "norm_num_groups": 32,
        "time_embedding_dim": shape.time_width,
        "up_block_types": tuple(kinds["Up"][one] for one in reversed(attend)),
    }
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**{**(ENLARGING if shape.concat_channels else BASE), **changes})
        ours = AdmUNet(shape)
    assert sum(p.numel() for p in ours.parameters()) == COUNTS[name] == theirs.num_parameters()
    assert set(theirs.state_dict()) == {piece.key for piece in diffusers_adm(ours).values()}
