"""What may go wrong while latents are computed: one line says it, and what is finished stays."""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.cli import main as cli
from diptych.core.errors import UserError
from diptych.data.dataset import DataConfig, open_dataset
from diptych.training import precompute as module
from diptych.training.precompute import precompute
from diptych.weights import save as weights_save
from tests.data.buckets import opened_bucket
from tests.data.tiny import image_dataset
from tests.models.latents import SIZE, autoencoder, write_images
from tests.training.test_precompute import CPU, files
from tests.training.test_text_online import changes, made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("sd1"))


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("obstore")
    with opened_bucket(tmp_path, monkeypatch) as bucket:
        yield bucket


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BATCH": 2, "PART": 4}.items():
        monkeypatch.setattr(module, name, value)


def latents(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if name.startswith("latents")}


class Encoding:
    """Counts batches, and does something before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encode, self.count, self.at = module.encode, 0, dict[int, Any]()
        monkeypatch.setattr(module, "encode", self)

    def __call__(self, *given: Any) -> Any:
        self.at.pop(self.count, lambda: None)()
        self.count += 1
        return self.encode(*given)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_shards_in_a_store_are_read_resumed_and_watched(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bucket: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "new").mkdir()
    for number in range(3):
        image_dataset(tmp_path / "shards" / f"{number}.tar", 6)
        bucket.put(f"some/{number}.tar", tmp_path / "shards" / f"{number}.tar")

    def precomputed(path: str, out: str) -> Path:
        data = open_dataset(DataConfig(path=path, size=SIZE, held_out=0.0))
        return precompute({"train": data}, autoencoder(), None, tmp_path / out, CPU)

    wanted = latents(precomputed(str(tmp_path / "shards"), "local"))
    encoding, asked = Encoding(monkeypatch), Counter[tuple[str, str]]()
    encoding.at[5] = interrupt
    with pytest.raises(KeyboardInterrupt):
        precomputed("s3://bucket/some", "store")

    def once(method: str, path: str) -> int | None:
        asked[method, path] += 1
        return 500 if asked[method, path] == 1 else None

    bucket.fault, encoding.count = once, 0
    assert latents(precomputed("s3://bucket/some", "store")) == wanted, "each request failed once, and was made again"
    assert max(asked.values()) > 1 and encoding.count == 5, "of 9 batches, two parts were there"
    bucket.fault = lambda *_: None

    def replace() -> None:
        image_dataset(tmp_path / "new" / "2.tar", 7)
        bucket.put("some/2.tar", tmp_path / "new" / "2.tar")

    encoding.at[encoding.count + 4] = replace
    with pytest.raises(UserError, match=r"s3://bucket/some/2\.tar was replaced while it was read: start again"):
        precomputed("s3://bucket/some", "again")
    assert len(list((tmp_path / ".again.unfinished").glob("latents-*"))) >= 2
    capsys.readouterr()
    precomputed("s3://bucket/some", "again")
    assert ".again.unfinished was begun before the data or a model changed" in capsys.readouterr().err


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on standard error, of one mistake."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diptych: ")]
    assert len(lines) == 1
    return lines[0]


def test_each_mistake_is_one_line_and_loses_nothing(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)

    def run(*more: str, out: str = "store") -> int:
        return cli.main(["precompute", "sd1", *changes(place), *more, "--out", out])

    online = "system.embed_text=online"
    assert run(online) == 0
    whole = files(tmp_path / "store")
    capsys.readouterr()

    for path in sorted(write_images(tmp_path / "bad", 30).glob("*.png"))[:10]:
        path.write_bytes(b"no image")
    assert run(online, "data.path=bad", out="broken") == 2
    assert "are broken, above the limit of" in said(capsys)
    (tmp_path / "empty").mkdir()
    assert run(online, "data.path=empty", out="none") == 2
    assert "empty" in said(capsys)
    assert run(online, out=str(place / "images" / "store")) == 2
    assert "lies in the data" in said(capsys)
    assert not any(".unfinished" in path.name or path.name == "store" for path in (place / "images").iterdir())

    fails, save = [OSError(errno.EROFS, os.strerror(errno.EROFS)), KeyboardInterrupt()], weights_save.save_file
    written: list[Any] = []

    def failing(tensors: Any, path: Any, *more: Any) -> None:
        if len(written) in (1, 2) and fails:
            raise fails.pop(0)
        written.append(path)
        save(tensors, path, *more)

    monkeypatch.setattr(weights_save, "save_file", failing)
    assert run(online, out="parts") == 2
    assert "no permission to write .parts.unfinished/latents" in (line := said(capsys)).replace(f"{tmp_path}/", ""), (
        line
    )
    encoding = Encoding(monkeypatch)
    encoding.at[1] = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert run(online, out="parts") == 130
    assert said(capsys) == "diptych: interrupted"
    fails.clear()
    encoding.count = 0
    assert run(online, out="parts") == 0 and files(tmp_path / "parts") == whole
    assert encoding.count < 7
    capsys.readouterr()

    assert run("training.precision=bf16", online, out="parts") == 0
    assert "was made before training.precision changed" in capsys.readouterr().err
    assert latents(tmp_path / "parts") != latents(tmp_path / "store")
    assert files(tmp_path / "store") == whole


def test_a_folder_of_codes_does_not_become_one_of_latents(
    place: Path,
    tmp_path: Path,
) -> None:
    from tests.models.codes import first_stage

    data = {"train": open_dataset(DataConfig(path=str(place / "images"), size=SIZE, split="train"))}
    store = precompute(data, first_stage(), None, tmp_path / "store", CPU, "codes")
    before = files(store)
    with pytest.raises(UserError, match="store holds codes, and these are latents: name another folder"):
        precompute(data, autoencoder(), None, store, torch.device("cpu"))
    assert files(store) == before and not (tmp_path / ".store.unfinished").exists()
