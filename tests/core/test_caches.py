"""The folder of what can be made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.core.caches import cache_folder


@pytest.mark.parametrize(
    ("variable", "folder"),
    [("/a/b", "/a/b"), ("~/b", "/home/me/b"), ("b", "b"), ("", "/home/me/.cache/diptych")],
)
def test_the_folder_is_that_of_the_variable_or_of_the_user(
    variable: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DIPTYCH_CACHE", variable)
    assert cache_folder("text", "one") == Path(folder, "text", "one")
