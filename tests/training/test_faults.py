"""One line for a process without memory, and for those that wait for it."""

from __future__ import annotations

import pytest
import torch

from diptych.core.errors import UserError
from diptych.training.distributed import Team
from diptych.training.faults import named_faults
from tests.training.toy import settings

TEAM = Team(3, 8, torch.device("cpu"))


def cpu_error() -> RuntimeError:
    try:
        torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), cpu_error()])
def test_a_process_without_memory_is_named_with_what_to_lower(error: Exception) -> None:
    asked, said = settings(batch_size=64, accumulation=2), r"process 3 of 8 on \S+ has no memory left on cpu"
    with pytest.raises(UserError, match=said) as caught, named_faults(TEAM, asked):
        raise error
    said = str(caught.value)
    assert "\n" not in said
    assert "training.accumulation (now 2: 4 images at once)" in said
    assert "training.shard=fsdp" in said
    assert "checkpoint stays" in said


def test_a_process_whose_neighbour_is_gone_says_so() -> None:
    with pytest.raises(UserError, match="another process of the run has stopped"), named_faults(TEAM, settings()):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2")
    with pytest.raises(RuntimeError, match="shape"), named_faults(TEAM, settings()):
        raise RuntimeError("a shape that does not fit")
