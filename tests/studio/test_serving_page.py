"""The examples of docs/serving.md run against a server."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tests.studio.live import Live, live_studio

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
BLOCKS = re.findall(r"^```py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
PYTHON = [block for block in BLOCKS if "8765" in block]  # of clients
CURL = [line for line in PAGE.splitlines() if line.startswith("curl ")]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_studio(tmp_path_factory.mktemp("studio")) as live:
        yield live


def here(text: str, live: Live) -> str:
    """An example with this server's address, at the size of its small model."""
    text = text.replace("127.0.0.1:8765", f"{live.address.host}:{live.address.port}")
    text = text.replace("port=8765", f"port={live.address.port}").replace("=128", "=16").replace("128x128", "16x16")
    return text.replace('"steps": 20', '"steps": 2').replace("steps=20", "steps=2")


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_of_the_page_runs(
    live: Live, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai" if "openai" in PYTHON[number] else "webuiapi")
    monkeypatch.chdir(tmp_path)
    exec(compile(here(PYTHON[number], live), "docs/serving.md", "exec"), {})
    said = capsys.readouterr().out
    assert "image_generation.completed" in said or "Sampler: DPM++ 2M" in said
    with Image.open("apple.png") as image:
        assert image.size == (16, 16) and "diptych" in image.text  # type: ignore[attr-defined]


def test_curl_of_the_page_runs(live: Live, tmp_path: Path) -> None:
    pytest.importorskip("python_multipart")
    if not shutil.which("curl"):
        pytest.skip("no curl")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "apple.png")
    mask = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    ImageDraw.Draw(mask).rectangle((4, 4, 11, 11), fill=(0, 0, 0, 0))
    mask.save(tmp_path / "mask.png")
    said = []
    for line in CURL:
        words = [*shlex.split(here(line, live)), "--silent", "--fail", "--noproxy", "*"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        said.append(done.stdout)
    assert len(CURL) == 5
    assert '"b64_json"' in said[0] and "event: image_generation.completed" in said[1] and '"b64_json"' in said[2]
    assert '"info"' in said[3] and "diptych_images_total" in said[4]
