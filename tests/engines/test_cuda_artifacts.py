"""What torch.compile made outlives the process, and what is damaged or of another version is made again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diptych.engines import compiled_cache, cuda_artifacts


@pytest.fixture
def store(tmp_path: Path, monkeypatch) -> list[bytes]:
    """PyTorch's side of it: what was loaded; b"made" is what it saves."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    loaded = list[bytes]()
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"made", None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda body: loaded.append(body) or "info")
    return loaded


def key(**changes: Any) -> dict[str, Any]:
    shapes = changes.pop("shapes", (("x", (2, 4)),))
    return cuda_artifacts.key_of(nn.Linear(4, 4), "forward", shapes, "blocks") | changes


def test_what_is_kept_is_found_again_by_its_key_alone(store: list[bytes], capsys) -> None:
    assert not cuda_artifacts.load(key(), "U-Net")
    cuda_artifacts.save(key())
    assert cuda_artifacts.load(key(), "U-Net") and store == [b"made"]
    for other in (key(torch="2.0.0"), key(card="another"), key(shapes=(("x", (1, 4)),)), key(code="changed")):
        assert not cuda_artifacts.load(other, "U-Net")
    assert store == [b"made"] and not capsys.readouterr().err


@pytest.mark.parametrize("damage", [lambda data: data[:-2], lambda data: data[:-1] + b"x", lambda data: b"\x00" * 9])
def test_a_damaged_file_is_said_and_made_again(store: list[bytes], damage: Any, capsys) -> None:
    cuda_artifacts.save(key())
    path = compiled_cache.path_of(key())
    path.write_bytes(damage(path.read_bytes()))
    assert not cuda_artifacts.load(key(), "U-Net") and not store
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("the compiled U-Net is made again: ")
    cuda_artifacts.save(key())
    assert cuda_artifacts.load(key(), "U-Net")


def test_what_pytorch_does_not_read_is_made_again(store: list[bytes], monkeypatch, capsys) -> None:
    def refuse(body: bytes) -> None:
        raise ValueError("of another build")

    cuda_artifacts.save(key())
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", refuse)
    assert not cuda_artifacts.load(key(), "U-Net")
    assert "PyTorch does not read it (ValueError)" in capsys.readouterr().err


PROGRAM = """
import torch
from torch import nn
from torch._dynamo.utils import counters
from diptych.engines.cuda_method import CudaMethod
from diptych.engines.replace import Part, replace
from diptych.networks.residual import ResidualBlock

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(8, 8, groups=4) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x

def call_again(call, given, pool):
    output = call(**given)
    return lambda given: output

torch.manual_seed(0)
network = Network().eval()
for parameter in network.parameters():
    parameter.data.add_(torch.randn_like(parameter) * 0.1)
x = torch.randn(2, 8, 6, 6)
with torch.no_grad():
    own = network(x)
    part = Part(network, "forward", "U-Net")
    replace(part, CudaMethod(part, capture=call_again))
    assert (network(x) - own).abs().max() < 1e-5
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.slow
def test_inductor_finds_in_a_new_process_what_the_last_one_compiled(tmp_path: Path) -> None:
    pytest.importorskip("torch._inductor")

    def run(number: int) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / f"inductor-{number}"  # so that PyTorch finds nothing by itself
        more = {"DIPTYCH_CACHE": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(folder)}
        return subprocess.run(
            [sys.executable, "-c", PROGRAM], env={**os.environ, **more}, capture_output=True, text=True, check=True
        )

    first, second = run(1), run(2)
    assert "compiling the U-Net for inputs of [2, 8, 6, 6]" in first.stderr and first.stdout.split()[0] == "0"
    assert "compiling" not in second.stderr
    assert int(second.stdout.split()[0]) >= 1 and second.stdout.split()[1] == "0"
