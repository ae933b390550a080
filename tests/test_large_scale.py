"""The page on large-scale training: every command of it runs at toy size, in order; it reads what earlier ones made."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.cli import main as cli
from diptych.recipes import get
from diptych.training.experiment_config import Recipe
from tests.cli.test_page_commands import briefly, lines
from tests.encoders.tiny_encoders import WORDS, t5_folder
from tests.pretrained.sd_models import text_encoder, tokenizer

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "large-scale.md"
COMMANDS = lines(PAGE)
IMAGES, SHARDS = 42, 3

UNET = "channels=8 multipliers=1,2 blocks=1 attention_levels=1 heads=2 context_width=128 norm_groups=4".split()
ADM = "channels=8 multipliers=1,2 blocks=1 attention_levels=1 head_width=8 context_width=24".split()
EFFICIENT = "channels=8 multipliers=1,2 blocks=1,1 self_attention_levels= cross_attention_levels=1".split()
POOLED = "context_width=24 text_pooling_heads=4 norm_groups=4".split()
T5 = ["system.model.text.width=24", "system.model.text.max_tokens=24"]
AUTOENCODER = "channels=8 norm_groups=4 blocks=1".split()


def under(path: str, fields: Sequence[str]) -> list[str]:
    return [f"{path}.{field}" for field in fields]


def enlarging(size: int, low: int) -> list[str]:
    fields = [*under("system.model.network", [*EFFICIENT, *POOLED]), *T5]
    return [*fields, f"system.model.size={size}", f"system.model.low_size={low}", f"data.size={size}"]


TOYS = {
    "kl-f8": [*under("system.network", AUTOENCODER), "system.perceptual=none", "data.size=40", "data.crop=32"],
    "sd1": [*under("system.model.unet", UNET), *under("system.model.autoencoder", AUTOENCODER)],
    "imagen-base": [
        *under("system.model.network", [*ADM, *POOLED, "context_projection=8"]),
        *(*T5, "system.model.size=8", "data.size=8"),
    ],
    "imagen-sr-256": enlarging(16, 8),
    "imagen-sr-1024": [*enlarging(32, 16), "data.crop=16"],
}
"""What makes the networks and images of each recipe small."""
CLIP = ["system.model.text.width=128"]
PLANNED = {
    "sd1": ["system.model.text.width=768", "system.model.unet.context_width=768"],
    "imagen-base": ["system.model.text.width=512", "system.model.network.context_width=512"],
}
"""Plans are made without the folders of text encoders, from the shapes of published ones."""
SIZES = {"256": "32", "512": "64", "640x384": "80x48"}
"""Sides of the page's images, and those of the toys."""
KEEP = {"side>=512": "side>=64", "side>=1024": "side>=64"}
"""What leaves one of the toy images out."""
LESS = {
    "training.batch_size": "4",
    "training.workers": "1",  # starting processes takes seconds
    "training.compile": "no",  # minutes of a compiler
    "training.cuda_graphs": "false",  # for GPUs alone
    "training.precision": "fp32",
    "training.accumulation": None,
    "training.checkpoint_every": None,
    "training.activation_checkpointing": None,
    "training.channels_last": None,
    "training.optimizer": None,
    "training.shard": None,
}
"""Fields of training that have another value in a toy run; those of None stay as the page has them."""
RUNS = {"--nnodes": "1", "--nproc-per-node": "2", "--rdzv-endpoint": "localhost:0", "--max-restarts": "1"}
"""Options of torchrun that have another value in a toy run."""
KEPT = {"--rdzv-id", "--rdzv-backend"}


def divided(words: list[str]) -> tuple[list[str], list[str]]:
    """(torchrun and its options, the words of `diptych`) of a command that runs diptych."""
    at = words.index("diptych")
    return words[:at], words[at + 1 :]


def recipe_of(words: list[str]) -> tuple[Recipe, dict[str, str]] | None:
    """The recipe of a command as the page has it, and its settings; none where it has no recipe."""
    arguments = cli.parse(words)
    if getattr(arguments, "recipe", None) is None:
        return None
    given = dict(one.split("=", 1) for one in arguments.assignments)
    return get(arguments.recipe).override(arguments.assignments), given


def toy_settings(name: str, given: dict[str, str], steps: int) -> list[str]:
    """What to add to a page's settings of a recipe."""
    added = list(TOYS[name])
    for field, value in given.items():
        if field in ("data.size", "system.model.size"):
            added.append(f"{field}={SIZES[value]}")
        elif field == "data.bucket_step":
            added.append("data.bucket_step=16")
        elif field == "data.keep":
            added.append(f"data.keep={KEEP[value]}")
        elif field == "data.held_out":
            added.append("data.held_out=0.1")
        elif LESS.get(field) is not None:
            added.append(f"{field}={LESS[field]}")
        else:
            known = field in LESS or field == "training.steps" or not field.startswith("training.")
            assert known, f"{field} is not known at toy size"
    if name == "sd1":
        added += [*CLIP, *(f"{field}=64" for field in ("data.size", "system.model.size") if field not in given)]
    batch = 4 * int(given.get("training.accumulation", 1))
    added += [f"training.steps={steps}", f"training.batch_size={batch}", "training.device=cpu", "training.threads=1"]
    return [*added, "training.validate_every=0", "training.sample_every=0", "training.warmup=1"]


def with_value(words: list[str], option: str, values: dict[str, str]) -> list[str]:
    """The words with the option's value in place of the page's."""
    at = words.index(option) + 1
    return [*words[:at], values[words[at]], *words[at + 1 :]]


class Walk:
    """Runs the commands of the page in a folder; processes: as many, with torchrun, or none for one in this process."""

    def __init__(self, folder: Path, torchrun: bool) -> None:
        self.folder, self.torchrun, self.trained = folder, torchrun, Counter[str]()
        self.ran = Counter[str]()

    def run(self, line: str) -> None:
        words = shlex.split(line, comments=True)
        if words[:2] == ["pip", "install"]:
            extras = re.findall(r"diptych\[(\w+)\]", line)
            assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)
        elif words[0] in ("mkdir", "ls", "(cd"):
            short = line.replace("-l 20000", f"-l {2 * IMAGES // SHARDS}")
            subprocess.run(["bash", "-euo", "pipefail", "-c", short], cwd=self.folder, check=True)
        elif words[0] in ("diptych", "torchrun"):
            before, words = divided(words)
            self.diptych(before, words, line)
        else:
            pytest.fail(f"how to run this at toy size is not said: {line}")
        self.ran[words[0]] += 1

    def diptych(self, before: list[str], words: list[str], line: str) -> None:
        found = recipe_of(words)
        if found is not None:
            recipe = words[words.index("--recipe") + 1] if "--recipe" in words else words[1]
            if words[0] == "train":
                self.trained[words[words.index("--run-dir") + 1]] += 1
            steps = 2 * self.trained[words[words.index("--run-dir") + 1]] if words[0] == "train" else 2
            words = [*words, *toy_settings(recipe, found[1], steps), *(PLANNED[recipe] if words[0] == "plan" else [])]
        words = with_value(words, "--size", SIZES) if "--size" in words else words
        words = with_value(words, "--images", {"5000": "4"}) if words[0] == "evaluate" else words
        words = with_value(words, "--gpus", {"256": "4", "64": "4"}) if words[0] == "plan" else words
        if words[0] == "generate":
            words = briefly(words)
        if words[:2] == ["data", "check"] and words[2].startswith("https://"):
            with served(self.folder) as address:
                assert cli.main([*words[:2], address + words[2].removeprefix("https://my-store")]) == 0, line
        elif before and self.torchrun:
            options = self.options(before)
            command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "diptych", *words]
            path = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command, cwd=self.folder, env=os.environ | path, capture_output=True, text=True, timeout=1200
            )
            assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
        else:
            self.options(before)
            assert cli.main(words) == 0, line

    def options(self, before: list[str]) -> list[str]:
        """torchrun's options as two processes of this machine take them."""
        if not before:
            return []
        assert before[0] == "torchrun" and before[-1] == "-m"
        given = dict(zip(before[1:-1:2], before[2:-1:2], strict=True))
        assert given.keys() <= RUNS.keys() | KEPT, f"options of torchrun that are not known at toy size: {before}"
        if "--rdzv-endpoint" not in given:
            given |= {"--rdzv-backend": "c10d", "--rdzv-endpoint": "localhost:0"}  # any port that is free
        return [word for name, value in given.items() for word in (name, RUNS.get(name, value))]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder behind HTTP; its address."""
    from tests.data.test_remote import Store

    server = Store(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def own_things(folder: Path) -> None:
    """What the reader of the page brings: images with captions in folders, and two text encoders."""
    pixels = np.random.default_rng(0)
    for number in range(IMAGES):
        place = folder / "my-images" / str(number % 4) / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        size = (66, 66), (84, 66), (66, 90)
        width, height = size[number % 3] if number else (48, 48)
        image = Image.fromarray(pixels.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        image.resize((width, height)).save(place)
        place.with_suffix(".txt").write_text(f"a {WORDS[number % 7]}")
    text_encoder().save_pretrained(folder / "clip")
    tokenizer().save_pretrained(folder / "clip")
    t5_folder(folder / "t5-xxl")


def walk(folder: Path, monkeypatch: pytest.MonkeyPatch, torchrun: bool) -> None:
    pytest.importorskip("obstore")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DIPTYCH_CACHE", str(folder / "caches"))
    own_things(folder)
    walking = Walk(folder, torchrun)
    for line in COMMANDS:
        walking.run(line)
    assert len(list((folder / "shards").glob("*.tar"))) == SHARDS
    for run in walking.trained:
        assert json.loads((folder / run / "model" / "config.json").read_text())
        assert (folder / run / "metrics.jsonl").is_file()
    assert {path.name for path in (folder / "out").iterdir()} == {"sd1", "sd1-buckets", "imagen"}
    assert walking.trained["runs/sd1-256"] == 2


def test_every_command_has_a_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose words are read, and whose recipe is built: `test_every_command_runs_at_toy_size` runs them."""
    asked = list[str]()

    def read(words: list[str]) -> int:
        asked.append(words[0])
        recipe_of(words)
        return 0

    monkeypatch.setattr(cli, "main", read)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: None)
    walking = Walk(tmp_path, torchrun=False)
    for line in COMMANDS:
        walking.run(line)
    assert {*walking.trained} >= {"runs/kl-f8", "runs/imagen-sr-1024"} and walking.trained["runs/sd1-256"] == 2
    assert {"data", "plan", "precompute", "evaluate", "generate", "assemble"} <= {*asked}


@pytest.mark.slow
def test_every_command_runs_at_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of torchrun in one process: `test_torchrun_runs_them_in_two_processes` has two."""
    walk(tmp_path, monkeypatch, torchrun=False)


@pytest.mark.slow
def test_torchrun_runs_them_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk(tmp_path, monkeypatch, torchrun=True)


@pytest.mark.parametrize("line", ["wget https://host/x.tar", "diptych train sd1 training.betas=0,0 --run-dir runs/x"])
def test_a_command_that_is_not_known_at_toy_size_is_found(line: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match="toy size"):
        Walk(tmp_path, torchrun=False).run(line)


def test_the_lines_of_runs_that_stop_are_those_of_the_package() -> None:
    """The first column of the table: what the code says, where a line of it goes on in the next one."""
    rows = re.findall(r"^\| `([^`]+)` \|.*\|$", PAGE.read_text().split("## When a run stops")[1], re.MULTILINE)
    source = "\n".join(path.read_text() for path in (ROOT / "src" / "diptych").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    assert len(rows) > 12
    assert [row for row in rows if row not in source] == []
