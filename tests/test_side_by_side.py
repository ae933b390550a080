"""Comparisons with other implementations: nothing is told where outputs differ; each script runs, in toys."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import cpu_default, cpu_diffusers, cpu_imagen_pytorch, side_by_side
from benchmarks.common import run_script
from benchmarks.engine_variants import EagerCalls, sharing_copy
from benchmarks.side_by_side import Contestant, Job, NotHere, OutputsDiffer, flops, levels, run, run_all, table
from diptych.core.errors import UserError
from diptych.networks.unet import UNet

X = torch.linspace(-1, 1, 64).view(8, 8)


def contestant(name: str, output: Tensor, seconds: float = 0.0, **values: object) -> Contestant:
    def work() -> Tensor:
        time.sleep(seconds)
        return output

    return dataclasses.replace(Contestant(name=name, prepare=lambda: work), **values)


def job(*challengers: Contestant, **values: object) -> Job:
    plain = Job(name="toy", what="a toy", reference=contestant("slow", X, 0.1), challengers=challengers, flop=1e6)
    return dataclasses.replace(plain, **values)


def test_the_ratio_is_how_many_times_faster_it_is() -> None:
    result = run(job(contestant("fast", X + 5e-6, 0.02)), rounds=3, side=32)
    (one,) = result["challengers"]
    assert 1.5 < one["ratio"] < 6
    assert one["apart"] == pytest.approx(5e-6, rel=0.2) and one["tolerance"] == 1e-5
    assert len(one["seconds"]["all"]) == len(one["reference_seconds"]["all"]) == 3
    assert one["seconds"]["least"] <= one["seconds"]["median"] and one["reference_seconds"]["least"] >= 0.1
    limit = one["limit_gflops"]["float32"]
    assert one["seconds"]["percent_of_limit"] == pytest.approx(100 * 1e-3 / one["seconds"]["least"] / limit)
    assert {"processor", "cores", "threads", "versions"} <= result["machine"].keys()


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (X + 2e-5, "1e-05 is allowed"),
        (X[:4], r"makes \(4, 8\), not \(8, 8\)"),
        (X * torch.nan, "not finite"),
    ],
)
def test_nothing_is_reported_where_outputs_differ(output: Tensor, reason: str) -> None:
    with pytest.raises(OutputsDiffer, match=reason):
        run(job(contestant("wrong", output)), rounds=1, side=32)


def test_an_output_that_is_the_same_everywhere_proves_nothing() -> None:
    same = torch.ones(3)
    with pytest.raises(OutputsDiffer, match="the same everywhere"):
        run(job(contestant("equal", same), reference=contestant("reference", same)), rounds=1, side=32)


def test_images_are_measured_in_levels() -> None:
    assert levels(torch.tensor([3, 250], dtype=torch.uint8), torch.tensor([3.0, 252.0])) == 2


def test_who_cannot_take_part_says_why() -> None:
    def missing() -> side_by_side.Work:
        raise NotHere("no such processor")

    fell_back = contestant("compiled", X, fault=lambda: "ran in PyTorch")
    result = run(job(Contestant(name="absent", prepare=missing), fell_back), rounds=1, side=32)
    assert [one["absent"] for one in result["challengers"]] == ["no such processor", "ran in PyTorch"]
    assert "no such processor" in table([result])


def test_different_networks_are_said_to_be() -> None:
    result = run(job(contestant("other", X + 1), different="other layers, equal widths"), rounds=1, side=32)
    assert result["challengers"][0]["apart"] is None
    assert "different networks" in table([result]) and "a toy: other layers, equal widths" in table([result])


def test_a_result_is_written_and_printed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = side_by_side.parser("Toys.", "nowhere").parse_args(["--quick", "--threads", "1", "--out", str(tmp_path)])
    jobs = {"toy": (1, lambda: job(contestant("fast", X))), "bad": (1, lambda: job(contestant("wrong", X + 1)))}
    assert run_all(jobs, given) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["toy.json"]
    assert "wrong is 1 from slow" in capsys.readouterr().err
    assert side_by_side.main([str(tmp_path)]) == 0
    assert "| a toy | fast / slow | 0 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["--rounds", "0"], "at least 1, not '0'"), (["--threads", "two"], "at least 1, not 'two'"),
     (["--jobs", "latent-9"], "no job latent-9: the jobs are latent-1"), (["--engines", "foo"], "no engine foo")],
)  # fmt: skip
def test_wrong_options_of_a_script_are_refused_in_a_line(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cpu_default.main(["--quick", *words])
    assert ended.value.code == 2 and reason in capsys.readouterr().err.splitlines()[-1]


def test_what_is_not_installed_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> Job:
        raise NotHere("needs diptych[dev]: diffusers")

    given = side_by_side.parser("Toys.", "nowhere").parse_args(["--quick", "--threads", "1"])
    assert run_all({"one": (1, job), "two": (1, job)}, given) == 2
    assert capsys.readouterr().err == "needs diptych[dev]: diffusers\n"


def test_what_a_user_got_wrong_in_a_study_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main() -> None:
        raise UserError("no data at data/emoji-128")

    monkeypatch.setattr("sys.argv", ["benchmarks/few_steps.py"])
    with pytest.raises(SystemExit) as ended:
        run_script(main)
    assert ended.value.code == 2 and capsys.readouterr().err == "few_steps: no data at data/emoji-128\n"


def test_a_rerun_keeps_who_did_not_run(tmp_path: Path) -> None:
    given = side_by_side.parser("Toys.", "nowhere").parse_args(["--quick", "--threads", "1", "--out", str(tmp_path)])
    for names, flop in ((("a", "b"), 1e6), (("b", "c"), 1e6), (("d",), 2e6)):
        made = job(*(contestant(name, X) for name in names), flop=flop)
        assert run_all({"toy": (1, lambda made=made: made)}, given) == 0
        stored = json.loads((tmp_path / "toy.json").read_text())["challengers"]
        expected = {"a": ["a", "b"], "b": ["a", "b", "c"], "d": ["d"]}[names[0]]  # the last is other work
        assert [one["name"] for one in stored] == expected


def test_products_attention_and_convolutions_are_counted() -> None:
    q = torch.empty(1, 2, 16, 8)
    assert flops(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * 2 * 2 * 16 * 16 * 8
    assert flops(lambda: nn.Conv2d(3, 5, 3, padding=1)(torch.empty(1, 3, 4, 4))) == 2 * 3 * 5 * 9 * 16


def test_a_copy_shares_the_weights_and_what_falls_back_is_counted() -> None:
    model = nn.Module()
    model.unet = UNet(cpu_diffusers.TOY.unet).eval()
    other = sharing_copy(model)
    assert other.unet is not model.unet
    assert all(a is b for a, b in zip(other.parameters(), model.parameters(), strict=True))
    calls = EagerCalls()
    calls.watch(other)
    assert calls.fault() is None
    other.unet.conv_in(torch.zeros(1, 4, 4, 4))
    assert calls.fault() == "its networks ran in PyTorch (1 convolutions)"
    assert calls.fault() is None


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    yield ["--quick", "--threads", "1", "--rounds", "1", "--engines", "pytorch"]
    torch.set_num_threads(threads)


def test_beside_diffusers(tmp_path: Path, one_thread: list[str]) -> None:
    pytest.importorskip("diffusers")
    assert cpu_diffusers.main([*one_thread, "--jobs", "unet-2,decode,image", "--out", str(tmp_path)]) == 0
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    apart = {name: result["challengers"][0]["apart"] for name, result in found.items()}
    assert max(apart["unet-2"], apart["decode"]) <= 1e-5 and apart["image"] <= 1
    guided = 2 * found["unet-2"]["flop"] / 2 * cpu_diffusers.TOY.steps + found["decode"]["flop"]
    assert found["image"]["flop"] == pytest.approx(guided)


def test_the_published_unet_is_of_the_published_size() -> None:
    assert cpu_diffusers.unet_flops(cpu_diffusers.FULL, 1) == pytest.approx(0.803e12, rel=0.01)  # counted elsewhere


def test_the_default_beside_itself(tmp_path: Path, one_thread: list[str]) -> None:
    pytest.importorskip("openvino")
    arguments = [*one_thread[:-1], "float32", "--jobs", "cascade", "--out", str(tmp_path)]
    assert cpu_default.main(arguments) == 0
    (one,) = json.loads((tmp_path / "cascade.json").read_text())["challengers"]
    assert one["apart"] <= 1 and one["ratio"] > 0


def test_without_imagen_pytorch_it_says_what_to_do(
    tmp_path: Path, one_thread: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cpu_imagen_pytorch.main([*one_thread, "--jobs", "base-forward", "--imagen", str(tmp_path)]) == 2
    assert f"there is no imagen_pytorch in {tmp_path}" in capsys.readouterr().err


def test_our_stages_are_as_wide_as_theirs() -> None:
    for stage in cpu_imagen_pytorch.stages(toy=False).values():
        assert stage.network.channels == stage.theirs["dim"]
        assert stage.network.multipliers == stage.theirs["dim_mults"]


@pytest.mark.skipif("IMAGEN_PYTORCH" not in os.environ, reason="needs imagen-pytorch in $IMAGEN_PYTORCH")
def test_beside_imagen_pytorch(tmp_path: Path, one_thread: list[str]) -> None:
    assert cpu_imagen_pytorch.main([*one_thread, "--out", str(tmp_path)]) == 0
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert len(found) == 6
    for result in found.values():
        assert result["different"] and result["challengers"][0]["parameters"] > 0
