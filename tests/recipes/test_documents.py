"""The commands in README, CONTRIBUTING and docs exist; blocks marked ```bash run``` run."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych.cli import main as cli
from diptych.core.errors import UserError

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.md")])
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language after the fence, content) of each fenced block."""
    return [(kind.strip(), body) for kind, body in FENCE.findall(page.read_text())]


def commands(body: str) -> list[list[str]]:
    """The words of each command of a shell block, without prompts, comments and variable assignments."""
    found = []
    for line in body.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:  # not a shell line
            continue
        part: list[str] = []
        for word in [*words, ";"]:
            if word in (";", "&&", "||", "|", ">", ">>", "&"):
                while part and re.fullmatch(r"[A-Z_]+=.*", part[0]):
                    part = part[1:]
                found += [part] if part else []
                part = []
            else:
                part.append(word)
    return found


ALL = [
    (page, words) for page in PAGES for kind, body in blocks(page) if "python" not in kind for words in commands(body)
]
CALLS = [pytest.param(words[1:], id=f"{p.name}: {' '.join(words)}") for p, words in ALL if words[0] == "diptych"]
MAKES = [pytest.param(words[1:], id=f"{p.name}: {' '.join(words)}") for p, words in ALL if words[0] == "make"]
RUNS = [
    pytest.param(body, id=f"{page.name} {i}")
    for page in PAGES
    for i, (kind, body) in enumerate(blocks(page))
    if kind.split()[1:] == ["run"]
]


@pytest.fixture(scope="module")
def one_parser() -> Iterator[None]:
    """Built once for all commands, which takes longer than to read one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "build_parser", functools.cache(cli.build_parser))
        yield


@pytest.mark.usefixtures("one_parser")
@pytest.mark.parametrize("words", CALLS)
def test_commands_parse(words: list[str]) -> None:
    placeholders = {"RECIPE": "emoji-autoencoder", "...": ""}
    try:
        cli.parse([placeholders.get(word, word) for word in words if word != "..."])
    except UserError as error:
        pytest.fail(f"diptych {' '.join(words)}: {error}")
    except SystemExit as ending:  # --help and --version
        assert ending.code == 0


@pytest.mark.parametrize("words", MAKES)
def test_make_targets_exist(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        assert "=" in word or word in targets


@pytest.mark.slow
@pytest.mark.parametrize("body", RUNS)
def test_run_blocks_run(body: str, tmp_path: Path) -> None:
    here = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{here}:{os.environ['PATH']}"}
    shell = ["bash", "-euo", "pipefail", "-c", body]
    done = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_commands_are_found_in_a_block() -> None:
    body = "$ diptych train x \\\n  a.b=1   # why\nPYTHON=p make test && diptych info sd1 | head\n\n# only a remark\n"
    assert commands(body) == [
        ["diptych", "train", "x", "a.b=1"],
        ["make", "test"],
        ["diptych", "info", "sd1"],
        ["head"],
    ]


def test_the_documents_have_commands() -> None:
    assert {page.name for page, _ in ALL} >= {"README.md", "CONTRIBUTING.md"}
    assert MAKES


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("prompt", ["$HOME", "$(HOME)", "it's", 'a "b" `id` # c', "a  b $$x \\ 苹果"])
def test_make_demo_passes_the_prompt_unchanged(tmp_path: Path, prompt: str) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", ".venv/bin/python", ".venv/.installed"):
        (tmp_path / name).touch()
    echo = tmp_path / ".venv" / "bin" / "diptych"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    command = ["make", "-s", "demo", f"PROMPT={prompt}"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=plain
    )  # though make runs the tests
    assert done.stdout.splitlines() == ["demo", prompt, "--count", "2", "--out", "out"], done.stderr
