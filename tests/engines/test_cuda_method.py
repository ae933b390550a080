"""Graphs for each shape of a network give what it gives, through changes of weights, hooks, gradients and failures."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.engines import cuda_method
from diptych.engines.accelerate import accelerate, runner_for
from diptych.engines.cuda_method import MOST_CHANGES, MOST_SHAPES, CudaMethod
from diptych.engines.parts import parts
from diptych.engines.replace import Part, replace, restore
from diptych.networks.lora import Adapter, LowRank, adapt
from diptych.networks.unet import UNet, UNetConfig
from tests.engines.graphs_on_cpu import CpuGraph, patch_graphs
from tests.models import latents, stages

SMALL = UNetConfig(
    channels=8, multipliers=(1, 2), attention_levels=(1,), blocks=1, context_width=6, heads=2, norm_groups=4
)


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[CpuGraph]]:
    with torch.no_grad():
        yield patch_graphs(monkeypatch)


def network() -> UNet:
    torch.manual_seed(0)
    made = SMALL.build().eval()
    for parameter in made.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return made


def graphed(made: nn.Module, **options: Any) -> CudaMethod:
    part = Part(made, "forward", "U-Net")
    runner = CudaMethod(part, **{"regions": "none", **options})
    replace(part, runner)
    return runner


def inputs(batch: int = 2, side: int = 4, seed: int = 0) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    made = torch.Generator().manual_seed(seed)
    x, context = torch.randn(batch, 4, side, side, generator=made), torch.randn(batch, 3, 6, generator=made)
    mask = torch.ones(batch, 3, dtype=torch.bool)
    return (x, torch.rand(batch, generator=made) * 999), {"context": context, "context_mask": mask}


def same(made: nn.Module, own: nn.Module, **which: int) -> bool:
    args, kwargs = inputs(**which)
    return torch.allclose(made(*args, **kwargs), own(*args, **kwargs), atol=1e-6)


def test_a_shape_is_captured_once_and_replayed_with_other_values(graphs: type[CpuGraph], monkeypatch) -> None:
    made, own = network(), network()
    runner = graphed(made)
    assert same(made, own)
    monkeypatch.setattr(runner, "call", None)  # a replay runs no code of the network
    assert all(same(made, own, seed=seed) for seed in range(1, 4)) and graphs.captured == 1
    args, kwargs = inputs()
    kept = made(*args, **kwargs)
    before = kept.clone()
    made(*inputs(seed=9)[0], **inputs(seed=9)[1])
    assert torch.equal(kept, before)  # an answer is not overwritten by the next


def test_other_shapes_have_graphs_of_their_own_up_to_a_number(graphs: type[CpuGraph], capsys) -> None:
    made, own = network(), network()
    graphed(made)
    for batch in range(1, MOST_SHAPES + 3):
        assert same(made, own, batch=batch) and same(made, own, batch=batch, seed=1)
    assert graphs.captured == MOST_SHAPES
    assert same(made, own, batch=1, side=5) and graphs.captured == MOST_SHAPES  # odd sides too
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"engine compile: the U-Net runs further shapes without CUDA graphs, of which it keeps {MOST_SHAPES}"
    ]


def test_prompts_of_many_lengths_share_a_graph(graphs: type[CpuGraph]) -> None:
    made, own = network(), network()
    graphed(made)
    for tokens in (3, 4, 9, 16):
        args, _ = inputs()
        context = torch.randn(2, tokens, 6, generator=torch.Generator().manual_seed(tokens))
        mask = torch.arange(tokens) < torch.tensor([[tokens], [2]])
        answers = [net(*args, context=context, context_mask=mask) for net in (made, own)]
        assert torch.allclose(*answers, atol=1e-6)
    assert graphs.captured == 1
    plain = [net(*inputs()[0], context=context) for net in (made, own)]  # nothing says what would be padding
    assert torch.allclose(*plain, atol=1e-6) and graphs.captured == 2


def change(made: UNet, scale: float | None, live: bool = False) -> None:
    layer: Any = made.up[0].transformer.project_in  # type: ignore[union-attr]
    down, up = (
        torch.randn(shape, generator=torch.Generator().manual_seed(3)) for shape in ((2, 16, 1, 1), (16, 2, 1, 1))
    )
    adapt(layer, "style", None if scale is None else Adapter(LowRank(down, up), scale, live))


def test_merged_lora_is_seen(graphs: type[CpuGraph], capsys) -> None:
    made, own = network(), network()
    graphed(made)
    for count, scale in enumerate((None, 1.0, 0.5, None), 1):
        if count > 1:
            change(made, scale)
            change(own, scale)
        assert same(made, own) and same(made, own, seed=1) and graphs.captured == count
    assert not capsys.readouterr().err


def test_live_lora_runs_as_it_is(graphs: type[CpuGraph], capsys) -> None:
    made, own = network(), network()
    graphed(made)
    assert same(made, own)
    for scale in (1.0, 0.25):
        change(made, scale, live=True)
        change(own, scale, live=True)
        assert same(made, own) and same(made, own, seed=1)
    assert capsys.readouterr().err.count("live LoRA") == 1
    change(made, None)
    change(own, None)
    assert same(made, own) and graphs.captured == 1


def test_what_needs_gradients_or_trains_runs_as_it_is(graphs: type[CpuGraph]) -> None:
    made = network()
    graphed(made)
    args, kwargs = inputs()
    with torch.enable_grad():
        made(*args, **kwargs).sum().backward()
    assert made.conv_in.weight.grad is not None
    made.train()
    made(*args, **kwargs)
    assert graphs.captured == 0


def test_weights_that_move_in_each_call_are_left_alone(graphs: type[CpuGraph], capsys) -> None:
    made, own = network(), network()
    graphed(made)
    for seed in range(MOST_CHANGES + 3):
        made.conv_in.weight.data = made.conv_in.weight.data.clone()
        assert same(made, own, seed=seed)
    assert graphs.captured == MOST_CHANGES + 1
    assert capsys.readouterr().err.count("as its weights move between calls") == 1


def failing(*_: Any) -> Any:
    raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


def test_what_cannot_be_captured_runs_as_it_is_and_says_so_once(capsys) -> None:
    made, own = network(), network()
    graphed(made, capture=failing)
    assert all(same(made, own, seed=seed) for seed in range(3)) and same(made, own, batch=1)
    assert capsys.readouterr().err.splitlines() == [
        "engine compile: the U-Net cannot run as a CUDA graph here (operation not permitted when stream is capturing)"
    ]


def test_what_cannot_be_compiled_is_a_graph_all_the_same(graphs: type[CpuGraph], capsys, monkeypatch) -> None:
    monkeypatch.setattr(cuda_method, "compiled", lambda function: failing)
    made, own = network(), network()
    graphed(made, regions="blocks", cached=False)
    assert same(made, own) and same(made, own, seed=1) and graphs.captured == 1
    assert "the U-Net cannot run compiled here" in capsys.readouterr().err
    assert all(block._compiled_call_impl is None for block in made.modules())


def test_a_result_that_is_off_is_never_used(capsys) -> None:
    def wrong(call: Any, given: Any, pool: Any) -> Any:
        return lambda given: call(**given) * 1.1

    made, own = network(), network()
    graphed(made, capture=wrong)
    assert same(made, own) and same(made, own, seed=1)
    assert "the U-Net runs not as a CUDA graph, as the result would be off by 0.1" in capsys.readouterr().err


def test_compiled_blocks_stand_only_in_graphs(monkeypatch) -> None:
    """Here nothing is compiled, and a graph is the call itself."""
    monkeypatch.setattr(cuda_method, "compiled", lambda function: function)
    made, own, calls = network(), network(), list[bool]()

    def call_again(call: Any, given: Any, pool: Any) -> Any:
        calls.append(all(block._compiled_call_impl is not None for block in runner.compiled or ()))
        output = call(**given)
        return lambda given: output

    runner = graphed(made, regions="blocks", capture=call_again, cached=False)
    assert same(made, own) and calls == [True] and runner.compiled
    assert not any(block._compiled_call_impl for block in runner.compiled)


def test_a_copy_has_graphs_of_its_own(graphs: type[CpuGraph]) -> None:
    made, own = network(), network()
    graphed(made)
    assert same(made, own)
    other = copy.deepcopy(made)
    other.conv_in.weight.data.mul_(2)
    own.conv_in.weight.data.mul_(2)
    assert same(other, own) and graphs.captured == 2 and not same(made, own)
    restore(Part(made, "forward", "U-Net"))
    assert "forward" not in vars(made)


def pixels() -> Any:
    return stages.stage(stages.base())


OPTIONS = ({}, {"size": (24, 16)}, {"seeds": [3, 4]}, {"guidance": 1}, {"negative": "blue", "sampler": "unipc"})


@pytest.mark.parametrize("make", [latents.system, pixels])
def test_images_of_a_model_stay_as_they_are(make: Any, graphs: type[CpuGraph]) -> None:
    own, made = make().eval(), make().eval()
    for part in parts(made):
        replace(part, CudaMethod(part, regions="none"))
    for options in OPTIONS if make is latents.system else OPTIONS[2:]:
        a, b = (model.generate("a red picture", **{"steps": 2, **options}) for model in (own, made))
        assert [image.tobytes() for image in a.images] == [image.tobytes() for image in b.images], options
    assert graphs.captured > 2


def test_tiles_have_graphs_of_their_own(graphs: type[CpuGraph]) -> None:
    own, made = latents.system().eval(), latents.system().eval()
    replace(part := Part(made.autoencoder, "decode_entries", "decoder"), CudaMethod(part, "none"))
    tile = 8 * made.factor
    size = (2 * tile + made.factor * 2, tile)
    a, b = (model.generate("a red picture", steps=1, tile=tile, size=size) for model in (own, made))
    assert a.images[0].tobytes() == b.images[0].tobytes() and 1 <= graphs.captured < 3


def test_bfloat16_is_computed_within_the_graph(graphs: type[CpuGraph]) -> None:
    made, own = network(), network()
    graphed(made, bf16=True)
    args, kwargs = inputs()
    exact, rounded = own(*args, **kwargs), [made(*args, **kwargs) for _ in range(2)]
    assert graphs.captured == 1 and torch.equal(*rounded) and rounded[0].dtype == torch.float32
    assert 1e-4 < (rounded[0] - exact).norm() / exact.norm() < 3e-2


@pytest.mark.parametrize("tuned", [True, False])
def test_convolutions_are_tried_within_a_capture_alone(tuned: bool) -> None:
    seen = list[bool]()

    def call_again(call: Any, given: Any, pool: Any) -> Any:
        seen.append(torch.backends.cudnn.benchmark)
        output = call(**given)
        return lambda given: output

    made, own = network(), network()
    graphed(made, tuned=tuned, capture=call_again)
    assert same(made, own) and seen == [tuned] and not torch.backends.cudnn.benchmark


def test_the_engine_compile_has_a_runner_for_each_part() -> None:
    model = latents.system()
    for precision in ("float32", "bf16"):
        runners = [runner_for("compile", part, precision) for part in parts(model)]
        assert len(runners) == 3
        assert all(isinstance(runner, CudaMethod) and runner.bf16 == (precision == "bf16") for runner in runners)


def test_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match="the engine compile is for CUDA devices, and the model is on cpu"):
        accelerate(latents.system(), "compile")
