"""Every kind of recipe in two processes, sharded, computed again and compiled: what each learns without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.networks.blocks import blocks_of
from diptych.training.sharding import UNITS, units_of
from tests.training.every_kind import COMPILED, FSDP, KINDS, RECOMPUTED, compare
from tests.training.processes import two_processes
from tests.training.toy_blocks import Blocks

NETWORKS = [
    *("latent, text that is trained", "pixels, learned variance", "cascade, base", "autoencoder, KL, adversary"),
    *("classifier", "codes"),
]
"""Kinds with one of each network that has blocks, and with dropout."""
TABLE = {"sharded": ([*KINDS], [(FSDP,)]), "all at once": (NETWORKS, [(FSDP, RECOMPUTED, COMPILED)])}


@pytest.mark.slow
@pytest.mark.parametrize("options", TABLE)
def test_each_learns_what_it_learns_without(tmp_path: Path, options: str) -> None:
    kinds, runs = TABLE[options]
    assert two_processes(compare, str(tmp_path), kinds, runs) == [0, 0]


def test_what_is_within_a_compiled_block_is_gathered_with_it() -> None:
    module = Blocks()
    within = {part for block in blocks_of(module) for part in block.modules()} - {*blocks_of(module)}
    plain, compiled = (set(units_of(module, set[torch.nn.Parameter](), way)) for way in (False, True))
    assert {part for part in within if isinstance(part, UNITS)} == plain - compiled != set()
    assert compiled < plain and {*blocks_of(module)} < compiled
