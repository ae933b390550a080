"""Memory: counted before sampling, required before work, spared where it is short, told of where it is not enough."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.cli import main as cli
from diptych.cli.generate_commands import tell_peak
from diptych.cli.memory_report import memory_of
from diptych.core import memory_use
from diptych.core.errors import DiptychWarning, UserError
from diptych.core.memory_use import lacks_memory, memory_error, peak_memory
from diptych.engines import attention_chunks, placement, sliced_decoding
from diptych.engines.accounting import peak_of
from diptych.engines.attention_chunks import attend, attend_in_chunks, head_widths
from diptych.engines.memory_options import engine_for
from diptych.engines.offload import LayersOffload, PartsOffload, networks, weight_bytes
from diptych.engines.placement import Placement
from diptych.engines.sampling_memory import CONTEXT, FRAGMENTED, PartMemory, Sampling, ways
from diptych.engines.sliced_decoding import decode_in_slices, decoding_bytes
from diptych.networks.autoencoder import AutoencoderConfig
from tests.models import codes, latents, stages

CPU = torch.device("cpu")


def test_a_peak_is_what_is_alive_at_once() -> None:
    network = nn.Sequential(nn.Linear(10, 40, bias=False), nn.Linear(40, 5, bias=False)).to("meta")
    x = torch.empty(3, 10, device="meta")
    assert peak_of(lambda: network(x), network) == 4 * (3 * 40 + 3 * 5)  # the input was there before


def test_ways_are_sums_and_maxima_of_parts() -> None:
    parts = [PartMemory("a", 100, 30, 10, 5), PartMemory("b", 80, 20, 4, 50), PartMemory("c", 7, 7, 0, 90, small=True)]
    found = {way.name: (way.peak, way.part) for way in ways(parts)}
    assert found == {
        "all on the device": (187 + 90, "c"),
        "--offload parts": (80 + 7 + 50, "b"),
        "--offload layers": (14 + 2 * 30 + 90, "c"),
    }
    (way,) = [way for way in ways(parts) if way.part == "b"]
    assert way.needed == 137 * (1 + FRAGMENTED) + CONTEXT
    assert way.fits(1) and not way.fits(0.5)


def test_the_table_of_the_default_has_its_weights() -> None:
    found = memory_of("latent", Sampling(batch=4, tile=64))
    whole, rounded = ({part.name: part for part in found["parts"][kind]} for kind in ("stored", "int8"))
    model = latents_of_default()
    assert whole["U-Net"].weights == 4 * sum(p.numel() for p in model.unet.parameters())
    assert whole["encoder"].weights + whole["decoder"].weights == 4 * sum(
        p.numel() for p in model.autoencoder.parameters()
    )
    assert whole["U-Net"].weights / 5 < rounded["U-Net"].weights < whole["U-Net"].weights / 2
    assert whole["decoder"] == rounded["decoder"]
    one, tiles, together = (whole[f"decoder{end}"] for end in ("", ", tiles of 64 px", ", 4 images at once"))
    assert tiles.activations < one.activations < together.activations < 4 * one.activations + 1
    resident, parts, layers = (way.peak for way in found["ways"]["stored"])
    assert resident > parts > layers


def latents_of_default() -> Any:
    import diptych

    return diptych.load("latent", "cpu", engine="pytorch")


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "name", ["emoji-codes", "emoji-class", "cascade", "ddpm", "emoji-layout", "glide-base-small", "latent-4-steps"]
)
def test_every_kind_of_model_has_a_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", name, "--memory", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(part["weights"] > 0 for part in found["parts"]["stored"].values())
    assert [row["way"] for row in found["ways"]["int8"]] == [row["way"] for row in found["ways"]["stored"]]


@pytest.mark.slow
def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "latent", "--memory", "--size", "256", "--batch", "2", "--dtype", "float16"]) == 0
    printed = capsys.readouterr().out
    assert "latent: 2 images at a time of 256 x 256 px in float16" in printed and "--offload layers" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["judge", "--memory"], "judge generates no images: --memory is for models that do"),
        (["kl-f8", "--memory"], "kl-f8 generates no images"),
        (["latent", "--batch", "2"], "--batch, --size and --tile go with --memory: give that too"),
        (["cascade", "--memory", "--size", "64"], "stages have their own sizes"),
        (["latent", "--memory", "--size", "100"], "--size takes multiples of 8 for this model"),
        (["latent", "--memory", "--tile", "100"], "--tile takes multiples of 8 here"),
        (["ddpm", "--memory", "--tile", "64"], "--tile is for latent models"),
        (["latent", "--memory", "--dtype", "half"], "unknown dtype 'half'"),
    ],
)
def test_what_cannot_be_counted_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", *words]) == 2
    assert message in capsys.readouterr().err


WAYS = {"none": None, "parts": PartsOffload(CPU), "layers": LayersOffload(CPU)}


@pytest.mark.parametrize("way", WAYS)
def test_weights_without_room_are_refused_before_work(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.ModuleList([nn.Sequential(nn.Linear(2000, 2000), nn.ReLU()) for _ in range(9)]).to("meta")
    need = weight_bytes([network])
    assert need["none"] == need["parts"] == 9 * 4 * 2001 * 2000 and need["layers"] == 2 * 4 * 2001 * 2000
    place = Placement(CPU, WAYS[way])
    monkeypatch.setattr(placement, "free_device_memory", lambda device: need[way] - 1)
    with pytest.raises(UserError, match=r"the weights take .* and cpu has .* free: ") as refused:
        place.require_room([network])
    assert ("offload=layers takes 31 MiB" in str(refused.value)) == (way != "layers")
    monkeypatch.setattr(placement, "free_device_memory", lambda device: need[way])
    place.require_room([network])


def test_a_warning_says_where_an_image_may_have_no_room(monkeypatch: pytest.MonkeyPatch, recwarn: Any) -> None:
    model = latents.system()
    need = weight_bytes(networks(model))["none"]
    images = placement.image_bytes(model)
    assert 4 * 8 * 16**2 < images < 2**20  # the decoder's last layers at least
    monkeypatch.setattr(placement, "free_device_memory", lambda device: need + images)
    Placement(CPU).require_room(networks(model), model)
    assert not recwarn.list
    monkeypatch.setattr(placement, "free_device_memory", lambda device: need + images - 1)
    with pytest.warns(DiptychWarning, match=r"one image of 16 px takes .* more, so that memory may run out: offload="):
        Placement(CPU).require_room(networks(model), model)
    for build in (codes.system, lambda: stages.stage(stages.base())):
        assert placement.image_bytes(build()) > 0
    assert placement.image_bytes(stages.cascade()) == 0  # its stages are asked one by one


def test_what_is_there_makes_room_for_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    for way in (PartsOffload(CPU, 0), LayersOffload(CPU, 0)):
        model = Placement(CPU, way).apply(latents.system())
        assert way.present == 0
        model.generate("a red picture")
        assert way.present > 0
        network = nn.Linear(10, 10)
        monkeypatch.setattr(placement, "free_device_memory", lambda device: 0)
        Placement(CPU, way).require_room([network])
        with pytest.raises(UserError, match="cpu has 0 MiB free"):
            Placement(CPU).require_room([network])


def test_other_engines_do_not_go_with_moved_or_rounded_weights() -> None:
    assert engine_for("auto", "none", "stored") == "auto" and engine_for("auto", "parts", "stored") == "pytorch"
    with pytest.raises(UserError, match="offload=layers does not go with the engine compile: leave one of them out"):
        engine_for("compile", "layers", "stored")
    with pytest.raises(UserError, match="weight_precision=int8 does not go with the engine openvino"):
        engine_for("openvino", "none", "int8")
    with pytest.raises(UserError, match="weight_precision=int8 does not go with precision=int8: leave one of them out"):
        engine_for("auto", "none", "int8", "int8")


def test_images_without_room_are_decoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = latents.system()
    decode_in_slices(model)
    sizes = list[int]()
    model.autoencoder.decoder.conv_in.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    plain = latents.system().generate(["a red picture"] * 3, seeds=[1, 2, 3]).images
    one = decoding_bytes(latents.AUTOENCODER, torch.float32, 8, 8)
    for free, expected in ((None, [3]), (3 * one, [3]), (3 * one - 1, [1, 1, 1])):
        monkeypatch.setattr(sliced_decoding, "free_device_memory", lambda device, free=free: free)
        sizes.clear()
        if len(expected) > 1:
            with pytest.warns(DiptychWarning, match="images are decoded one at a time: 3 at once take"):
                images = model.generate(["a red picture"] * 3, seeds=[1, 2, 3]).images
        else:
            images = model.generate(["a red picture"] * 3, seeds=[1, 2, 3]).images
        assert sizes == expected and all(map(latents.same_image, plain, images))


def test_decoding_is_counted_from_the_config() -> None:
    config = AutoencoderConfig(channels=32, multipliers=(1, 2), blocks=1, norm_groups=8)
    one, double = (decoding_bytes(config, torch.float16, 16, width) for width in (16, 32))
    assert 1.9 * one < double <= 2 * one
    assert decoding_bytes(config, torch.float32, 16, 16) == pytest.approx(2 * one, rel=0.1)


@pytest.mark.parametrize("mask", [None, "keys", "pairs"])
def test_attention_in_chunks_is_attention(mask: str | None) -> None:
    query, key, value = torch.randn(2, 3, 37, 5), torch.randn(2, 3, 11, 5), torch.randn(2, 3, 11, 5)
    masks = {"keys": torch.rand(2, 1, 1, 11) > 0.3, "pairs": torch.rand(2, 1, 37, 11) > 0.3}
    which = None if mask is None else masks[mask]
    expected = F.scaled_dot_product_attention(query, key, value, which)
    for most in (0, 5_000, 10**9):
        assert torch.allclose(attend(query, key, value, which, most=most), expected, atol=1e-6, equal_nan=True)


def test_networks_without_fused_kernels_attend_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert head_widths(latents.system().unet) == {16} and head_widths(stages.stage(stages.KINDS["SR3"]).network) == {8}
    rows = list[int]()
    monkeypatch.setattr(attention_chunks, "free_device_memory", lambda device: 20_000)
    attention = F.scaled_dot_product_attention

    def seen(query: Tensor, *more: Any, **options: Any) -> Tensor:
        rows.append(query.shape[-2])
        return attention(query, *more, **options)

    plain = latents.system().generate(["a red picture"]).images
    model = latents.system()
    for device, chunked in (("cuda", False), ("mps", True)):  # heads of 16 have kernels on CUDA
        attend_in_chunks(model.unet, torch.device(device))
        with monkeypatch.context() as patch:
            patch.setattr(attention_chunks, "attend", lambda *a, most, **k: seen_chunks(rows, a, k, most))
            assert latents.same_image(plain[0], model.generate(["a red picture"]).images[0])
        assert bool(rows) == chunked


def seen_chunks(rows: list[int], inputs: Any, options: Any, most: int) -> Tensor:
    rows.append(most)
    return attend(*inputs, most=most, **options)


def test_a_lack_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has a total capacity of 3.94 GiB of which 1 GiB is free."
    )
    host = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 34 bytes.")
    assert str(memory_error(gpu)).startswith("cuda:1 has no memory left for 2.50 GiB more: make fewer images at once")
    assert str(memory_error(host)).startswith("this machine has no memory left for 34 bytes more: ")
    assert lacks_memory(MemoryError()) and not lacks_memory(RuntimeError("shapes do not match"))

    def fail(*given: Any, **options: Any) -> None:
        raise gpu

    monkeypatch.setattr("diptych.cli.describe.describe", fail)
    assert cli.main(["info", "latent"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("diptych: cuda:1 has no memory left") and error.count("\n") == 1


def test_the_peak_is_told_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    tell_peak(latents.system(), asked=False)
    tell_peak(object(), asked=True)  # of no device
    assert capsys.readouterr().err == ""
    before = peak_memory(CPU)
    tell_peak(latents.system(), asked=True)
    line = capsys.readouterr().err.strip()
    assert line == memory_use.peak_line(CPU) and line.startswith("peak memory ") and line.endswith(" (cpu)")
    assert peak_memory(CPU) >= before > 50 * 2**20
