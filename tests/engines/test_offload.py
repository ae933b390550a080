"""Offloading on the CPU, which stands for a device: the same bits, at most one part or two blocks there at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import diptych
from diptych.core.errors import DiptychWarning, UserError
from diptych.encoders.configs import T5Config
from diptych.engines import host_weights
from diptych.engines.host_weights import HostWeights, is_placeholder
from diptych.engines.offload import Block, LayersOffload, PartsOffload, blocks, entry_modules
from diptych.engines.placement import Placement, place
from diptych.models.cascade import Cascade
from diptych.networks.adm import AdmUNet
from diptych.networks.autoencoder import Autoencoder
from diptych.networks.efficient_unet import EfficientUNet
from diptych.networks.lora import Adapter, LowRank, adapt
from tests.encoders.tiny_encoders import t5_folder
from tests.models import codes, latents, stages

CPU = torch.device("cpu")
PROMPTS, SEEDS = ["a red picture", "a blue picture"], [3, 4]
WAYS: dict[str, Callable[[], Any]] = {"parts": lambda: PartsOffload(CPU, 0), "layers": lambda: LayersOffload(CPU, 0)}


class Watch:
    """Follows which weights are on the device, and what was copied there."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.copies: list[HostWeights] = []
        self.there: set[HostWeights] = set()
        self.most = 0
        copy_to, bind = HostWeights.copy_to, HostWeights.bind

        def copied(weights: HostWeights, flat: torch.Tensor) -> None:
            self.copies.append(weights)
            copy_to(weights, flat)

        def bound(weights: HostWeights, tensors: Any) -> None:
            tensors = list(tensors)
            bind(weights, tensors)
            (self.there.discard if tensors[0] is weights.placeholders[0] else self.there.add)(weights)
            self.most = max(self.most, len(self.there))

        patch.setattr(HostWeights, "copy_to", copied)
        patch.setattr(HostWeights, "bind", bound)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def offloaded(model: Any, way: str) -> Any:
    return Placement(CPU, WAYS[way]()).apply(model)


@pytest.mark.parametrize("way", WAYS)
def test_a_latent_model_makes_the_same_bits_with_one_part_or_block_on_the_device(way: str, watch: Watch) -> None:
    model = offloaded(latents.system(), way)
    options: dict[str, Any] = {"seeds": SEEDS, "image": stages.drawing(16, 16), "strength": 0.7}
    for extra in ({}, options):
        plain, ours = (one.generate(PROMPTS, **extra) for one in (latents.system(), model))
        assert stages.equal(plain.images, ours.images)
    assert watch.most == 1


def test_the_steps_of_sampling_move_no_part(watch: Watch) -> None:
    offloaded(latents.system(), "parts").generate(PROMPTS, steps=6)
    assert len(watch.copies) == len(set(watch.copies)) == 3  # text encoder, U-Net, decoder


def test_the_next_block_is_copied_while_one_computes() -> None:
    way, model = LayersOffload(CPU, 0), latents.system()
    Placement(CPU, way).apply(model)
    ready = list[bool]()
    for module in model.unet.modules():
        for hook in list(module._forward_pre_hooks.values()):
            block = hook.args[0]  # type: ignore[union-attr]
            look = lambda *_, block=block: ready.append(any(slot.block is block for slot in way.slots))  # noqa: E731
            module.register_forward_pre_hook(look, prepend=True)
    x, words = torch.randn(1, 4, 8, 8), {"context": torch.zeros(1, 3, 16), "pooled": torch.zeros(1, 16)}
    with torch.no_grad():
        for _ in range(3):
            model.unet(x, torch.tensor([5.0]), **words)
    first, second, third = (ready[i * len(ready) // 3 :][: len(ready) // 3] for i in range(3))
    assert len(first) > 10 and not any(first)
    assert all(second[1:]) and all(third)


@pytest.mark.parametrize("way", WAYS)
def test_who_asks_hears_of_the_device_and_states_have_the_weights(way: str) -> None:
    plain: Any = latents.system()
    model = offloaded(latents.system(), way)
    weight, same = model.unet.down[0].block.conv1.weight, plain.unet.down[0].block.conv1.weight
    assert is_placeholder(weight) and weight.isnan().all() and weight.untyped_storage().nbytes() == 4
    assert (weight.shape, weight.dtype, weight.device) == (same.shape, same.dtype, model.device)
    for part in ("unet", "autoencoder", "joint_text"):
        state, expected = getattr(model, part).state_dict(), getattr(plain, part).state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in state.items())
    assert model.to(CPU) is model
    with pytest.raises(UserError, match="stays on cpu as it is"):
        model.half()


@pytest.mark.parametrize("way", WAYS)
def test_a_saved_model_is_whole(way: str, tmp_path: Path) -> None:
    model = offloaded(latents.system(), way)
    images = model.generate(PROMPTS).images
    model.save(tmp_path / "model")
    assert stages.equal(images, diptych.load(tmp_path / "model", "cpu").generate(PROMPTS).images)


@pytest.mark.parametrize("way", WAYS)
def test_lora_is_applied_live_and_not_merged(way: str) -> None:
    plain: Any = latents.system()
    model = offloaded(latents.system(), way)
    for one in (plain, model):
        layer = one.unet.middle[1].blocks[0].self_attention.query
        change = LowRank(torch.full((2, layer.in_features), 0.3), torch.full((layer.out_features, 2), 0.2))
        adapt(layer, "style", Adapter(change, 1.0, live=True))
    changed = plain.generate(PROMPTS).images
    assert stages.equal(changed, model.generate(PROMPTS).images)
    assert not stages.equal(changed, latents.system().generate(PROMPTS).images)
    with pytest.raises(UserError, match="apply it live"):
        adapt(model.unet.middle[1].blocks[0].self_attention.query, "other", Adapter(change, 1.0, live=False))


class Towards:
    """A guide of clean images: towards a colour."""

    name, input_kind = "towards", "images"

    def __init__(self, through: bool) -> None:
        self.through = through

    def bind(self, prompts: Any, space: Any) -> Any:
        return lambda images: -(images - 0.5).square().flatten(1).mean(1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("through", [False, True])
def test_gradients_lead_through_what_is_offloaded(way: str, through: bool, watch: Watch) -> None:
    model = offloaded(latents.system(), way)
    options: dict[str, Any] = {"guides": [(Towards(through), 50.0)], "seeds": SEEDS}
    guided = latents.system().generate(PROMPTS, **options).images
    assert stages.equal(guided, model.generate(PROMPTS, **options).images)
    assert not stages.equal(guided, latents.system().generate(PROMPTS, seeds=SEEDS).images)
    assert (watch.most > 1) == (through or way == "layers")  # what gradients lead through stays


@pytest.mark.parametrize("way", WAYS)
def test_tiles_and_previews_in_between_change_nothing(way: str, watch: Watch) -> None:
    model = offloaded(latents.system(), way)
    seen = list[torch.Tensor]()
    options: dict[str, Any] = {"size": (32, 16), "tile": 16}
    ours = model.generate(PROMPTS, callback=lambda i, n, x0: seen.append(model.decode(x0)), **options)
    assert stages.equal(latents.system().generate(PROMPTS, **options).images, ours.images)
    assert watch.most == 1 and all(image.isfinite().all() for image in seen)


@pytest.mark.parametrize("way", WAYS)
def test_parts_of_a_network_that_run_alone_find_their_weights(way: str, watch: Watch) -> None:
    options: dict[str, Any] = {"cache_interval": 2, "steps": 4}
    ours = offloaded(latents.system(), way).generate(PROMPTS, **options)
    assert stages.equal(latents.system().generate(PROMPTS, **options).images, ours.images) and watch.most == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("told", ["words", "class"])
def test_a_model_of_codes_makes_the_same_bits(way: str, told: str, watch: Watch) -> None:
    prompts = PROMPTS if told == "words" else ["red", "blue"]
    ours = offloaded(codes.system(told), way).generate(prompts)
    assert stages.equal(codes.system(told).generate(prompts).images, ours.images) and watch.most == 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cascade in a folder, with a T5 beside it."""
    text = T5Config(path=str(t5_folder(tmp_path_factory.mktemp("text") / "t5")), width=stages.WIDTH)
    encoder, folder = text.build(), tmp_path_factory.mktemp("cascade")
    Cascade.of([stages.stage(one, seed, encoder) for seed, one in enumerate(stages.configs(text))]).save(folder)
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("alone", [False, True])
def test_stages_and_encoders_that_are_opened_later_are_offloaded(
    way: str, alone: bool, saved: Path, watch: Watch
) -> None:
    plain: Any = diptych.load(saved, "cpu")
    model = offloaded(diptych.load(saved, "cpu"), way)
    for _ in range(2):
        ours = model.generate(PROMPTS, keep_stages=True, one_at_a_time=alone)
        assert all(map(stages.equal, plain.generate(PROMPTS, keep_stages=True).stages, ours.stages))
    assert watch.most == 1 and len(set(watch.copies)) >= 4


@pytest.mark.every(2)
@pytest.mark.parametrize("kind", stages.KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_stages_of_every_kind_make_the_same_bits(way: str, kind: str) -> None:
    config = stages.KINDS[kind]
    options: dict[str, Any] = {} if config.low_size is None else {"low_res": [stages.drawing(seed=i) for i in range(2)]}
    ours = offloaded(stages.stage(config), way).generate(PROMPTS, **options)
    assert stages.equal(stages.stage(config).generate(PROMPTS, **options).images, ours.images)


NETWORKS = {
    "unet": lambda: latents.system().unet,
    "efficient": lambda: EfficientUNet(stages.attentive()),
    "adm": lambda: AdmUNet(stages.fused()),
    "autoencoder": lambda: Autoencoder(latents.AUTOENCODER),
    "codebook": lambda: Autoencoder(codes.VQ),
    "codes": lambda: codes.system("class").transformer,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_are_disjoint_and_have_almost_all_weights(name: str) -> None:
    network = NETWORKS[name]()
    found = [parameter for block in blocks(network) for parameter in block.parameters()]
    assert len(found) == len(set(found))
    left = {key for key, parameter in network.named_parameters() if parameter not in set(found)}
    assert left <= {"position", "quantise.embedding.weight"}
    parts = {p for entries in entry_modules(network) for entry in entries for p in entry.parameters()}
    assert {key for key, p in network.named_parameters() if p not in parts} <= {"quantise.embedding.weight"}


def test_weights_of_any_layout_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_weights, "PIECE", 512)  # so that most lie in several pieces
    module = nn.ParameterList(
        [
            nn.Parameter(torch.randn(7, 5, 3, 3).to(memory_format=torch.channels_last)),
            nn.Parameter(torch.randn(9, 31).T),
            nn.Parameter(torch.tensor(2.5)),
            nn.Parameter(torch.randn(0, 3)),
            nn.Parameter(torch.arange(300, dtype=torch.int8), requires_grad=False),
            nn.Parameter(torch.randn(3, 1).expand(3, 40)),
            nn.Parameter(torch.randn(50, 40).to(torch.bfloat16)[:, 3:30]),
        ]
    )
    before = [(p.detach().clone(), p.stride()) for p in module]
    weights = HostWeights([module], CPU)
    assert all(map(is_placeholder, (module[0], module[1], module[4])))
    assert all(
        torch.equal(state, value) for state, (value, _) in zip(module.state_dict().values(), before, strict=True)
    )
    weights.bind(weights.views(weights.copied()))
    assert all(torch.equal(p, value) for p, (value, _) in zip(module, before, strict=True))
    assert all(module[i].stride() == before[i][1] for i in range(5))
    weights.unbind()
    assert is_placeholder(module[0])


def test_buffers_go_to_the_device_for_good() -> None:
    module = nn.BatchNorm2d(3, affine=False)  # which has no parameters: these could not be on the meta device
    HostWeights([nn.Sequential(module)], torch.device("meta"))
    assert module.running_mean is not None and module.running_mean.is_meta


def test_a_stage_that_is_dropped_takes_its_weights_along(saved: Path) -> None:
    way = LayersOffload(CPU, 0)
    model = Placement(CPU, way).apply(diptych.load(saved, "cpu"))
    model.generate("a red picture", one_at_a_time=True)
    gc.collect()
    assert len([one for one in gc.get_objects() if isinstance(one, Block)]) <= 3  # in two slots, and the last to run


@pytest.mark.parametrize("way", WAYS)
def test_on_a_cpu_nothing_is_offloaded_and_one_line_says_so(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    with pytest.warns(DiptychWarning, match=f"offload={way} is for CUDA devices: on cpu it changes nothing"):
        model = place(latents.system(), CPU, offload=way)
    monkeypatch.delenv("DIPTYCH_ENGINE", raising=False)
    latents.system().save(tmp_path / "model")
    with pytest.warns(DiptychWarning, match=f"offload={way} is for CUDA devices") as warned:
        same = diptych.load(tmp_path / "model", "cpu", offload=way, engine="openvino", precision="float32")
    assert len(warned) == 1 and same.origin is not None and same.origin.options["engine"] == "openvino"
    assert not is_placeholder(model.unet.conv_in.weight)
    with pytest.raises(UserError, match="unknown offload 'part': choose one of layers, none, parts"):
        place(latents.system(), CPU, offload="part")
