"""Plans of training runs: FLOPs by hand, memory of real steps, and the arithmetic from there to days and price."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.plan_memory import COMMON, SHARDED, run
from diptych.cli import main as cli
from diptych.cli.plan_report import as_values, time_rows
from diptych.engines.accounting import Meter, OnMeta
from diptych.recipes import get
from diptych.training.planning.cards import CARDS, card
from diptych.training.planning.outline import outlined
from diptych.training.planning.plan import Cluster, Plan, advice, make_plan, measure, memory_of
from diptych.training.trainer import train
from tests.training.test_plan_recipes import CLUSTERS, planned, require_sense

TINY = (
    *("system.model.unet.channels=32", "system.model.unet.multipliers=1,2", "system.model.unet.attention_levels=1"),
    *("system.model.unet.blocks=1", "system.model.autoencoder.channels=32", "system.precomputed=cache/any"),
    "training.batch_size=8",
)
CHEAP = {"judge": 8, "emoji-codes-free": 1, "emoji-tiny-decoder": 256, "emoji-classifier": 256}
"""Recipes of several kinds of networks, and a number of GPUs; a slow test plans all."""
BLOCKS = "training.activation_checkpointing=blocks"


def tiny(*changes: str):
    return get("emoji-class").override([*TINY, *changes])


def counted(network: nn.Module, *shape: int) -> tuple[int, int]:
    """FLOPs of a forward pass, and of its backward pass without a gradient for the input."""
    meter = Meter(network.parameters())
    with OnMeta("cuda", meter), meter:
        loss = network(torch.empty(*shape, device="meta")).sum()
        with meter.counting("backward"):
            loss.backward()
    return meter.flops["rest"], meter.flops["backward"]


def test_flops_of_layers_are_those_by_hand() -> None:
    with torch.device("meta"):
        conv = nn.Conv2d(3, 8, 3, padding=1)
        two = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4))
    assert counted(conv, 2, 3, 10, 10) == (2 * 2 * 8 * 100 * 27, 2 * 2 * 8 * 100 * 27)
    forward = 2 * 5 * (16 * 32 + 32 * 4)
    assert counted(two, 5, 16) == (forward, forward + 2 * 5 * 32 * 4)  # the first has no gradient for its input


@pytest.mark.parametrize(("device", "masked"), [("cuda", False), ("cuda", True), ("cpu", False)])
def test_flops_and_memory_of_attention(device, masked: bool) -> None:
    query = torch.empty(2, 4, 64, 40, device="meta", requires_grad=True)
    key = torch.empty(2, 4, 16, 40, device="meta")
    mask = torch.ones(2, 1, 1, 16, dtype=torch.bool, device="meta") if masked else None
    meter = Meter([query, key])
    with OnMeta(device, meter), meter:
        out = F.scaled_dot_product_attention(query, key, key, mask)
        assert out.shape == query.shape
        alive = sum(meter.live.values())
        with meter.counting("backward"):
            out.sum().backward()
    product = 2 * 2 * 4 * 64 * 16 * 40
    assert meter.flops["rest"] == 2 * product
    assert meter.flops["backward"] == 5 * product  # of which one is computed again
    assert alive < 1.2 * 4 * query.numel()  # no table of 64 x 16 weights a head is kept


def test_the_unet_of_stable_diffusion_has_the_flops_that_are_known() -> None:
    with torch.device("meta"):
        unet = get("sd1").system.model.unet.build()  # type: ignore[union-attr]
        x, time, context = torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 768)
    meter = Meter(unet.parameters())
    with torch.no_grad(), OnMeta("cuda", meter), meter:
        unet(x, time, context=context)
    assert meter.flops.total() == pytest.approx(0.803e12, rel=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        ["training.precision=bf16", BLOCKS],
        pytest.param(["training.precision=bf16"], marks=pytest.mark.slow),
        pytest.param(["training.precision=fp32"], marks=pytest.mark.slow),
    ],
)
def test_planned_memory_is_that_of_a_real_run(changes: list[str], tmp_path: Path) -> None:
    size = ("system.model.size=32", "data.size=32", "training.batch_size=4", "training.steps=3", "training.workers=0")
    recipe = tiny(*size, *changes, "training.device=cpu", "training.warmup=0")
    half = recipe.training.precision == "bf16"
    outline = outlined(recipe, device="cpu")
    step = measure(outline, recipe, 4, half, "cpu")
    planned = max(memory.total for memory in memory_of(outline, recipe, step))
    with Meter() as meter, contextlib.suppress(StopIteration):
        real = outlined(recipe, device="cpu", place="cpu")
        calls, loss = iter((meter.peak.clear, list)), real.task.loss

        def second(batch: dict[str, Any]) -> Any:
            next(calls)()  # none is left at the third step
            return loss(batch)

        real.task.loss = second  # type: ignore[method-assign]
        train(real.task, lambda positions: real.batch(recipe, len(positions)), recipe.training, tmp_path / "run")
    assert planned == pytest.approx(meter.peak_bytes, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], [BLOCKS, "training.accumulation=2"]])
def test_planned_memory_is_that_of_two_processes(more: list[str]) -> None:
    words = ["emoji-latent", *TINY, *COMMON, SHARDED, "training.device=cpu", "training.precision=fp32", *more]
    words += ["system.model.unet.channels=64", "system.model.unet.attention_levels=0,1"]
    found = run(2, "allocator", "cpu", words)
    assert found["planned"] == pytest.approx(found["measured"], rel=0.05)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(tiny(), Cluster(2, card("A100"), 0.5, 2.0), examples=1000)


def test_memory_by_part(plan: Plan) -> None:
    (trained,) = plan.parameters.values()
    assert plan.step.images == 4 and plan.idle == ("autoencoder",)
    assert plan.memory.weights == pytest.approx(4 * trained, rel=0.001)  # and the scale
    assert plan.memory.optimizer == pytest.approx(8 * trained, rel=0.001) and plan.memory.average == 4 * trained
    assert plan.memory.frozen == 4 * plan.frozen_parameters["autoencoder"]
    assert 0 < plan.memory.copies < 2 * trained
    assert plan.update.gradients == 4 * trained and plan.update.copies == 0
    assert plan.fits and plan.needed_bytes > plan.peak_bytes == max(plan.memory.total, plan.update.total)


def test_shards_are_rows_of_what_is_trained_and_blocks_are_gathered(plan: Plan) -> None:
    sharded = make_plan(tiny("training.shard=fsdp", BLOCKS), plan.cluster)
    for field in ("weights", "optimizer", "average"):
        part = getattr(sharded.memory, field) / getattr(plan.memory, field)
        assert part == pytest.approx(0.5, abs=0.01)
    assert 0 < sharded.memory.copies < plan.memory.weights / 2
    assert sharded.memory.activations < 0.7 * plan.memory.activations
    assert sharded.step.forward == plan.step.forward and sharded.step.backward > 1.2 * plan.step.backward


def test_time_and_price_follow_from_flops(plan: Plan) -> None:
    assert plan.images_per_second == pytest.approx(2 * 0.5 * 312e12 / plan.flops)
    assert plan.steps == plan.recipe.training.steps and plan.images == plan.steps * 8
    assert plan.gpu_hours == pytest.approx(plan.seconds / 3600 * 2) and plan.price == pytest.approx(2 * plan.gpu_hours)
    assert plan.example_bytes["latents"] == 2 * 16 * 16 * 16  # moments of 8 channels, in half precision
    slow = dataclasses.replace(plan, cluster=Cluster(2, CARDS["v100"], 0.5))
    assert not slow.half and slow.images_per_second == pytest.approx(2 * 0.5 * 15.7e12 / plan.flops)


def test_accumulation_saves_activations_and_keeps_gradients_and_days_give_images(plan: Plan) -> None:
    parts = make_plan(tiny("training.accumulation=4"), plan.cluster, days=2.0)
    assert parts.step.images == 1 and parts.memory.activations < plan.memory.activations
    assert parts.memory.gradients >= parts.update.gradients
    assert parts.seconds == pytest.approx(2 * 86400, rel=1e-6)
    assert parts.images == pytest.approx(2 * 86400 * plan.images_per_second, rel=1e-6)


def test_what_does_not_fit_says_what_would(plan: Plan) -> None:
    memory = (plan.needed_bytes - 0.5 * plan.memory.activations) / 1e9
    small = dataclasses.replace(plan, cluster=Cluster(2, card("t4")._replace(memory=memory), 0.5))
    assert not small.fits
    said = advice(small)
    assert len(said) >= 1 and said[-1] == "a GPU of 16 GB"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["emoji-latnt"], "did you mean emoji-latent?"),
        (["emoji-latent", "--gpu", "h10"], "did you mean h100?"),
        (["emoji-latent", "--gpus", "0"], "must be at least 1"),
        (["emoji-latent", "--gpus", "2000000"], "must be at most"),
        (["emoji-latent", "--hour-price", "nan"], "argument --hour-price"),
        (["emoji-latent", "--hour-price", "-1"], "must lie between"),
        (["emoji-latent", "--days", "inf"], "argument --days"),
        (["emoji-class", *TINY, "--gpus", "12", "training.batch_size=24", "training.shard=hsdp"], "groups of equal"),
        (["emoji-latent", "--utilisation", "40"], "must be more than 0 and at most 1"),
        (["emoji-latent", "--days", "1", "--images", "5"], "give one of them"),
        (["emoji-latent", "--gpuss", "2"], "did you mean --gpus?"),
        (["emoji-latent", "training.bach_size=2"], "did you mean"),
        (["emoji-class", *TINY, "--gpus", "9"], "training.batch_size (8) is less than 9 GPUs"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys) -> None:
    assert cli.main(["plan", *words]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and said in err, err


def test_the_command_prints_what_is_planned(plan: Plan, capsys) -> None:
    words = ["plan", "emoji-class", *TINY, "--gpus", "3", "--gpu", "t4", "--hour-price", "1.5", "--examples", "1000"]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    for part in (
        "unet",
        "backward",
        "weights",
        "adamw state",
        "EMA",
        "activations",
        "images a second",
        "days",
        "price",
    ):
        assert part in text
    assert "float32" in text and "fits" in text and "some GPUs compute 3 images" in text


def test_a_frozen_text_encoder_and_values_for_programs(capsys) -> None:
    assert cli.main(["plan", "emoji-latent", *TINY, "--hour-price", "2", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert set(values["parameters"]["idle"]) == {"autoencoder", "text"}
    assert values["storage"]["bytes_an_example"]["text"] == 2 * 384 * 20


def test_what_a_gpu_sends_for_its_gradients(plan: Plan) -> None:
    """Two GPUs: each sends half of its sums and half of the results; sharded, half of its sums in each part."""
    (trained,) = plan.parameters.values()
    assert plan.sent_bytes == 4 * trained
    training = dataclasses.replace(plan.recipe.training, shard="fsdp", accumulation=3)
    sharded = dataclasses.replace(plan, recipe=dataclasses.replace(plan.recipe, training=training))
    assert sharded.sent_bytes == 3 * 4 * trained / 2
    (row,) = [row for row in time_rows(plan) if row[0] == "gradients sent"]
    rate = float(row[2].split(" GB/s")[0].rsplit(" ", 1)[1].replace(",", ""))
    assert 1e9 * rate * plan.seconds == pytest.approx(plan.sent_bytes * plan.steps, rel=0.01)
    alone = dataclasses.replace(plan, cluster=dataclasses.replace(plan.cluster, gpus=1))
    assert "gradients sent" not in [row[0] for row in time_rows(alone)]


def test_values_for_programs(plan: Plan) -> None:
    values = json.loads(json.dumps(as_values("emoji-latent", plan)))
    assert values["gradient_bytes_sent"] == plan.sent_bytes
    assert values["memory"]["fits"] and values["price"] == pytest.approx(2 * values["gpu_hours"])
    assert values["precision"] == "bf16" and values["flops_an_image"]["total"] == plan.flops


@pytest.mark.parametrize(("name", "gpus"), CHEAP.items())
def test_a_recipe_of_each_kind_can_be_planned(name: str, gpus: int, capsys: pytest.CaptureFixture[str]) -> None:
    require_sense(name, planned(name, gpus, dict(CLUSTERS)[gpus]), capsys)
