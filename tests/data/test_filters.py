"""Which examples `data.keep` keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diptych.core.errors import NotFound, UserError
from diptych.data.dataset import open_dataset
from diptych.data.dataset_config import DataConfig
from diptych.training.experiment_data import described
from tests.data.tiny import foreign_shard, png

EXAMPLES: list[tuple[tuple[int, int], dict[str, Any]]] = [
    ((32, 24), {"AESTHETIC_SCORE": 6.5, "pwatermark": 0.1}),
    ((32, 24), {"AESTHETIC_SCORE": "5", "pwatermark": 0.9}),
    ((20, 60), {"AESTHETIC_SCORE": 4.9}),
    ((64, 48), {"AESTHETIC_SCORE": None, "pwatermark": 0.2}),
    ((12, 12), {"AESTHETIC_SCORE": 7, "pwatermark": float("nan")}),
    ((48, 48), {"AESTHETIC_SCORE": True}),
]


@pytest.fixture(params=["shards", "folder"])
def data(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    members = []
    for number, (size, meta) in enumerate(EXAMPLES):
        members += [(f"{number}.png", png(size)), (f"{number}.json", json.dumps({"caption": "a", **meta}).encode())]
    if request.param == "shards":
        foreign_shard(folder / "0.tar", members[:6])
        foreign_shard(folder / "1.tar", members[6:])
    else:
        for name, content in members:
            (folder / name).write_bytes(content)
    return folder


def kept(data: Path, *rules: str) -> list[str]:
    dataset = open_dataset(DataConfig(path=str(data), size=8, keep=rules))
    return [Path(dataset[index].key).stem for index in range(len(dataset))]


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ([], "012345"),
        (["AESTHETIC_SCORE>=5"], "014"),
        (["AESTHETIC_SCORE > 5", "pwatermark<0.5"], "0"),
        (["AESTHETIC_SCORE!=7"], "012"),
        (["side>=24"], "0135"),
        (["width>=32", "height<48"], "01"),
        (["aspect<=1.5"], "01345"),
        (["aspect==1", "side>20"], "5"),
    ],
)
def test_examples_are_kept_for_which_all_rules_hold(data: Path, rules: list[str], names: str) -> None:
    for _ in range(2):  # the second time from what was kept beside the index
        assert "".join(kept(data, *rules)) == names


def test_what_each_rule_leaves_out_is_said(data: Path) -> None:
    dataset = open_dataset(DataConfig(path=str(data), size=8, keep=("AESTHETIC_SCORE>=5", "side>=24")))
    wanted = "2 examples to train on, 0 held out, AESTHETIC_SCORE>=5 leaves out 3, side>=24 leaves out 1"
    assert wanted in described({"train": dataset})
    with pytest.raises(NotFound, match=r"data.keep keeps .*side>=999 leaves out 6"):
        kept(data, "side>=999")


def test_what_is_left_out_is_not_broken(data: Path) -> None:
    """An image that cannot be read counts as broken only where its sides, or the image itself, are asked for."""
    if (data / "0.tar").exists():
        foreign_shard(data / "2.tar", [("9.png", b"no image"), ("9.json", b'{"caption": "a", "AESTHETIC_SCORE": 1}')])
    else:
        (data / "9.png").write_bytes(b"no image")
        (data / "9.json").write_text('{"caption": "a", "AESTHETIC_SCORE": 1}')
    config = DataConfig(path=str(data), size=8, max_failure_rate=1)
    scored = open_dataset(DataConfig.from_dict({**config.to_dict(), "keep": ["AESTHETIC_SCORE>=5"]}))
    assert scored.left_out == []
    sides = open_dataset(DataConfig.from_dict({**config.to_dict(), "keep": ["side>=24"]}))
    assert [Path(key).stem for _, key, _ in sides.left_out] == ["9"] and len(sides) == 4


@pytest.mark.parametrize("rule", ["", "side", "side>", ">=5", "side>=x", "side=>5", "side>=nan", "side>=1>=2", "a b>1"])
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(UserError, match=r"DataConfig.keep: .*no"):
        DataConfig(keep=(rule,))
