"""Compiled blocks, graphs, memory formats and checkpointed activations: what is learnt is the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.networks.blocks import BLOCKS, blocks_of
from diptych.networks.residual import ResidualBlock
from diptych.training import acceleration
from diptych.training import run_checkpoint as checkpoint
from diptych.training.acceleration import PaddedTexts, accelerate, compile_each
from diptych.training.cuda_graphs import GraphedNetwork
from diptych.training.tasks.diffusion import DiffusionTask, DiffusionTraining
from diptych.training.trainer import train
from tests.models.latents import config, system, toy_batch
from tests.networks.reference import noise, randomised
from tests.training.toy import Toy, settings

CPU = torch.device("cpu")


def task(dropout: float = 0.0) -> DiffusionTask:
    unet = dataclasses.replace(config().unet, dropout=dropout)
    return DiffusionTask(system(unet=unet), DiffusionTraining())


def lines(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("kind", "images_per_second")} for line in found]


def learned(folder: Path, steps: int = 3, dropout: float = 0.0, **changes: Any) -> list[dict[str, float]]:
    """The metrics of a run of so many steps, which goes on where there is one."""
    every = {"log_every": 1, "validate_every": 0, "sample_every": 0, "schedule": "constant", "batch_size": 4}
    train(task(dropout), lambda positions: toy_batch(positions), settings(steps=steps, **every, **changes), folder)
    return lines(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    learned(folder)
    return folder


def same(folder: Path, plain: Path) -> None:
    for mine, theirs in zip(lines(folder), lines(plain), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    mine, theirs = (checkpoint.latest(one / "checkpoints") for one in (folder, plain))
    assert mine is not None and theirs is not None
    for part in ("weights", "ema", "optimizer"):
        ours, others = mine.load(part), theirs.load(part)
        assert ours.keys() == others.keys()
        if part != "optimizer":  # Adam divides by its moments: where these are nearly zero, last bits count
            assert all(torch.allclose(ours[key], others[key], atol=2e-4) for key in ours)


def test_channels_last_changes_no_result_and_may_be_turned_on_and_off(tmp_path: Path, plain: Path) -> None:
    learned(tmp_path, 1)
    learned(tmp_path, 2, channels_last=True)
    learned(tmp_path, 3)
    same(tmp_path, plain)
    it = task()
    accelerate(it, settings(channels_last=True), CPU)
    weight = it.module.unet.conv_in.weight  # type: ignore[union-attr]
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_checkpointed_activations_are_the_same_bits_in_less_memory(tmp_path: Path) -> None:
    whole = learned(tmp_path / "whole", dropout=0.3)
    assert learned(tmp_path / "again", dropout=0.3, activation_checkpointing="blocks") == whole
    kept = {"no": 0, "blocks": 0}
    for how in kept:
        it = task()
        accelerate(it, settings(activation_checkpointing=how), CPU)
        seen = set[int]()

        def count(tensor: Tensor, how: str = how, seen: set[int] = seen) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in seen and not isinstance(tensor, nn.Parameter):
                seen.add(tensor.untyped_storage().data_ptr())
                kept[how] += tensor.untyped_storage().nbytes()
            return tensor

        it.module.train()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            losses, _ = it.loss(toy_batch([1, 2, 3, 4]))
        losses.sum().backward()
    assert kept["blocks"] < 0.5 * kept["no"]


@pytest.mark.slow
def test_blocks_are_compiled_in_place_and_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.backends.registry import lookup_backend

    graphs, eagerly = list[Any](), lookup_backend("aot_eager")

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return eagerly(graph, inputs)

    def step(it: DiffusionTask, seeds: list[int]) -> list[Tensor]:
        losses, _ = it.loss({**toy_batch(seeds), "random": "counter"})
        trained = [p for p in it.module.parameters() if p.requires_grad]
        return [losses, *torch.autograd.grad(losses.sum(), trained)]

    monkeypatch.setattr(acceleration, "BACKEND", backend)
    eager, compiled = tasks = task(), task()
    for it in tasks:
        for part in (it.module.unet.down, it.module.unet.up):  # type: ignore[union-attr]
            part.requires_grad_(False)  # fewer blocks to compile
        it.module.train()
    together = {
        "channels_last": True,
        "activation_checkpointing": "blocks",
    }  # all at once
    accelerate(compiled, settings(compile="blocks", **together), CPU)
    for seeds in ([1, 2], [4, 7]):  # captions of different lengths
        for mine, theirs in zip(step(compiled, seeds), step(eager, seeds), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    count = len(blocks_of(compiled.module))
    assert count - 1 <= len(graphs) <= count  # the two residual blocks of the middle are of one shape
    assert [*compiled.module.state_dict()] == [*eager.module.state_dict()]


def test_a_run_says_that_it_compiles() -> None:
    assert "minutes before the first step" in acceleration.compiling(settings(compile="blocks"))
    assert acceleration.compiling(settings()) == ""


class Doubled(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.slow
def test_a_block_is_compiled_for_each_shape_of_the_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = list[Any]()

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(acceleration, "BACKEND", backend)
    block = Doubled()
    with torch._dynamo.config.patch(recompile_limit=8):  # as it is at first; `monkeypatch` would delete it in the end
        compile_each([block], shapes=2)
        for side in (*range(4, 14), *range(4, 14)):
            block(torch.zeros(1, 1, side, 4))
    assert len(graphs) == 10
    with pytest.raises(UserError, match=r"one shape.*bucket_step"):
        accelerate(task(), settings(cuda_graphs=True), torch.device("meta"), shapes=2)


def test_blocks_are_the_outermost_that_are_trained() -> None:
    it = task()
    blocks = blocks_of(it.module)
    unet = it.module.unet  # type: ignore[union-attr]
    assert {id(block) for block in blocks} > {id(unet.middle[0]), id(unet.middle[1]), id(unet.down[0].block)}
    assert all(isinstance(block, BLOCKS) for block in blocks) and len(set(map(id, blocks))) == len(blocks)
    assert not any(block in other.modules() for block in blocks for other in blocks if block is not other)
    before = len(blocks)
    unet.middle.requires_grad_(False)
    assert len(blocks_of(it.module)) == before - 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cuda_graphs": True}, "for CUDA devices, and this run is on cpu"),
        ({"compile": "blocks"}, "Sequential has no blocks that repeat"),
        ({"activation_checkpointing": "blocks"}, "Sequential has no blocks that repeat"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        accelerate(Toy(), settings(**changes), CPU)


def test_graphs_are_refused_with_accumulation_and_without_a_denoiser() -> None:
    with pytest.raises(UserError, match="accumulation must be 1 with cuda_graphs"):
        settings(cuda_graphs=True, accumulation=2)
    with pytest.raises(UserError, match="channels_last must be false with shard"):
        settings(channels_last=True, shard="fsdp")
    with pytest.raises(UserError, match="is for denoising networks"):
        acceleration.fix_shapes(Toy(), graphs=True)


def test_padded_texts_change_nothing() -> None:
    it = task()
    unet = it.module.unet  # type: ignore[union-attr]
    x, time = noise(2, 4, 8, 8), torch.tensor([3.0, 500.0])
    cond = it.module.text.encode(["red", "a blue picture"]).cond(unet.config, CPU)  # type: ignore[union-attr, operator]
    seen = list[tuple[int, ...]]()
    unet.register_forward_pre_hook(lambda _, inputs, given: seen.append(given["context"].shape), with_kwargs=True)
    torch.testing.assert_close(PaddedTexts(unet, 24)(x, time, **cond), unet(x, time, **cond), rtol=1e-4, atol=1e-5)
    assert seen[0] == (2, 24, 16) and seen[1][1] < 24


class Recorded:
    """In the place of a capture: counts replays, and may be wrong by a factor."""

    def __init__(self, factor: float = 1.0, error: str = "") -> None:
        self.factor, self.error, self.replays = factor, error, 0

    def __call__(self, network: nn.Module, given: dict[str, Tensor]) -> Callable[..., Tensor]:
        if self.error:
            raise RuntimeError(self.error)

        def passes(*values: Tensor) -> Tensor:
            self.replays += 1
            return network(**dict(zip(given, values, strict=True))) * self.factor

        return passes


def test_the_passes_of_the_first_shapes_are_replayed() -> None:
    unet, capture = randomised(config().unet.build()).train(), Recorded()
    network = GraphedNetwork(unet, capture)
    x, time, cond = noise(2, 4, 8, 8), torch.tensor([3.0, 5.0]), {"pooled": noise(2, 16), "context": noise(2, 3, 16)}
    before = torch.get_rng_state()
    torch.testing.assert_close(network(x, time, **cond), unet(x, time, **cond))
    assert torch.equal(before, torch.get_rng_state())
    assert capture.replays == 2  # one is the comparison
    network(x, time, **cond)
    assert capture.replays == 3
    network(x[:1], time[:1], **{key: value[:1] for key, value in cond.items()})
    with torch.no_grad():
        network(x, time, **cond)
    unet.eval()
    network(x, time, **cond)
    assert capture.replays == 3
    assert next(network.parameters()) is next(unet.parameters())


@pytest.mark.parametrize(
    ("capture", "line"),
    [
        (Recorded(1.1), "captured passes are off by 0.1"),
        (Recorded(error="operation not permitted\nmore"), "cannot be captured (operation not permitted)"),
    ],
)
def test_a_network_whose_capture_fails_runs_as_it_is(
    capture: Recorded, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    unet = randomised(config().unet.build()).train()
    network, inputs = GraphedNetwork(unet, capture), (noise(2, 4, 8, 8), torch.tensor([3.0, 5.0]))
    cond = {"pooled": noise(2, 16), "context": noise(2, 3, 16)}
    for _ in range(2):
        torch.testing.assert_close(network(*inputs, **cond), unet(*inputs, **cond))
    told = capsys.readouterr().err
    assert told.count("training.cuda_graphs: the network runs without") == 1 and line in told


@pytest.mark.slow
def test_a_block_compiled_by_inductor_is_the_same() -> None:
    block, x = randomised(ResidualBlock(8, 8, groups=4)), noise(2, 8, 4, 4)
    expected = block(x)
    compile_each([block])
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
    assert [*block.state_dict()] == [*ResidualBlock(8, 8, groups=4).state_dict()]
