"""What several tests of training look at."""

from __future__ import annotations

from typing import Any

import pytest

from diptych.encoders.t5 import T5


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that the real T5 reads."""
    read, encode = [], T5.encode

    def recorded(self: T5, prompts: list[str]) -> Any:
        read.extend(prompts)
        return encode(self, prompts)

    monkeypatch.setattr(T5, "encode", recorded)
    return read
