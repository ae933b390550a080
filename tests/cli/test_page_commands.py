"""The commands of README and docs work in order: each reads what an earlier one made, or what the reader brings."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diptych.cli import main as cli
from diptych.cli.image_list import apply_variations, read_image_list
from diptych.cli.output import slug
from diptych.recipes import get
from tests.recipes.test_documents import ROOT, blocks
from tests.test_docs import own_images

YOURS = {"my-images", "v1-5.safetensors", "clip-tokenizer", "style.safetensors"}
"""What README says that its reader brings along."""
THEIRS = re.compile(r"[\w.-]+\.(png|jpg|txt|safetensors|pt)|data/layouts")
"""What is the reader's own on the other pages: files without a folder, and the images of COCO or OpenImages."""
PLACES = ("runs/", "cache/", "data/", "out/")
"""Where diptych writes. Any other owner/name is a model on the hub."""
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md"))]
STAGES = {"latent": (), "cascade": ("32", "128")}


def lines(page: Path) -> list[str]:
    """The lines of a page's ```bash blocks, those that go on joined."""
    bodies = [body for kind, body in blocks(page) if kind.split()[:1] == ["bash"]]
    return [line for body in bodies for line in body.replace("\\\n", " ").splitlines() if line.strip()]


def local(name: object) -> bool:
    return str(name).startswith(PLACES) or str(name) in YOURS or bool(re.search(r"\.(png|safetensors)$", str(name)))


def read_by(arguments: Any) -> set[str]:
    """The files and folders that a command reads."""
    given = vars(arguments)
    names = [
        str(given[key])
        for key in "model image mask low_res from_png decoder data judge words tokenizer".split()
        if given.get(key)
    ]
    names += [str(name) for key in ("guides", "lora") for name, _ in given.get(key) or ()]
    names += [*(given.get("models") or ()), *(given.get("stages") or ())]
    if arguments.command.__name__ in ("train", "precompute"):
        recipe = get(given["recipe"]).override(given["assignments"])
        names += [text for text in texts(recipe.to_dict()) if text.startswith(PLACES) or text in YOURS]
        if arguments.command.__name__ == "precompute":
            made = getattr(recipe.system, "precomputed", None)
            names = [name for name in names if name != made]
    return {name for name in names if local(name)}


def made_by(arguments: Any) -> list[str]:
    """The files and folders that a command makes; each is new."""
    kind = arguments.command.__name__
    if kind == "train":
        return [str(arguments.run_dir or f"runs/{arguments.recipe}")]
    if kind == "precompute":
        return [str(arguments.out or f"cache/{arguments.recipe}")]
    if kind == "emoji":
        return [str(arguments.out or f"data/emoji-{arguments.size}")]
    if kind == "convert":
        return [str(arguments.target)]
    if kind == "generate":
        if arguments.from_png is not None:
            return []  # names that are not taken yet, of what the PNG says
        apply_variations(arguments)
        stems = [f"{arguments.out}/{slug(prompt)}-s{seed}" for prompt, seed in read_image_list(arguments)]
        sizes = STAGES.get(arguments.model, ()) if arguments.keep_stages else ()
        return [f"{stem}{end}.png" for stem in stems for end in ("", *(f"-stage-{size}" for size in sizes))]
    out = getattr(arguments, "out", None)
    return [] if out is None or kind == "demo" else [str(out)]


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for part in value.values():
            yield from texts(part)
    elif isinstance(value, str):
        yield value


def walk(page: Path, there: set[str]) -> Iterator[tuple[str, set[str], list[str]]]:
    """(line, what it reads that is not there, what it makes) of each line; what is made joins `there`."""
    for line in lines(page):
        words = shlex.split(line, comments=True)
        if words[:1] == ["torchrun"]:
            words = ["diptych", *words[words.index("diptych") + 1 :]]
        needs: set[str] = set()
        makes: list[str] = []
        if words[:1] == ["make"]:
            makes = [f"make {word}" for word in words[1:] if "=" not in word]
        elif words[:1] in (["python3"], ["python"]):
            makes = re.findall(r"\.save\('([^']+)'\)", line)
        elif words[:1] == ["diptych"]:
            arguments = cli.parse(words[1:])
            needs, makes = read_by(arguments), made_by(arguments)
            needs |= {"make install"} if words[1:3] == ["data", "emoji"] or words[1] == "sweep" else set()
        yield line, needs - there, makes
        there.update(makes)


def follow(page: Path, there: set[str], own: str = "") -> int:
    """Follow a page, and return how many lines it has; fails where one of them reads what is not there."""
    count, folders = 0, set[str]()
    for line, missing, makes in walk(page, there):
        missing = {name for name in missing if not re.fullmatch(own, name)}
        assert not missing, f"{page.name}: {line}: nothing above it makes {', '.join(sorted(missing))}"
        # Training and the like go on where they were, and figures stand beside others; a study would be lost.
        goes_on = re.search(r"-m diptych|diptych (train|precompute|data|evaluate curves)", line)
        new = {name for name in makes if "/" in name and not name.endswith(".png") and not goes_on}
        assert not folders & new, f"{page.name}: {line}: an earlier line made {', '.join(new)}"
        folders |= new
        count += 1
    return count


@pytest.fixture(scope="module")
def made() -> set[str]:
    """What is there after README."""
    there = set(YOURS)
    for _ in walk(README, there):
        pass
    return there


def test_readme_commands_in_order() -> None:
    assert follow(README, set(YOURS)) > 40


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_page_commands_in_order(page: Path, made: set[str]) -> None:
    follow(page, set(made), THEIRS.pattern)


def test_missing_files_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for line, missing in (
        ("diptych train emoji-latent", "data/emoji-128, runs/emoji-autoencoder"),
        ("diptych generate x --model runs/y", "runs/y"),
        ("diptych generate x --image out/x-s0.png", "out/x-s0.png"),
        ("diptych data emoji", "make install"),
        ("diptych sweep guidance --data my-images --out out/s", "make install"),
        (
            "make install\n" + "diptych sweep guidance --data my-images --out out/s\n" * 2,
            "an earlier line made out/s",
        ),
    ):
        page.write_text(f"```bash\n{line}\n```\n")
        with pytest.raises(AssertionError, match=missing):
            follow(page, set(YOURS))
    page.write_text("```bash\ndiptych generate x\ndiptych generate y --image out/x-s0.png\n```\n")
    assert follow(page, set(YOURS)) == 2


FEW = "training.steps=2 training.batch_size=2 training.validation_images=2 training.device=cpu".split()
"""What makes training short."""


def briefly(words: list[str]) -> list[str]:
    """A command with the least work: two sampling steps, two training steps."""
    if words[0] == "train":
        return words + FEW
    if words[0] == "generate":
        if "--steps" not in words:
            return [*words, "--steps", "2"]
        at = words.index("--steps") + 1
        return [*words[:at], re.sub(r"\d+", "2", words[at]), *words[at + 1 :]]
    return words


@pytest.mark.slow
def test_readme_commands_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the emoji sets, which are downloaded: each line in its order, in a fresh folder."""
    monkeypatch.chdir(tmp_path)
    own_images(tmp_path, 40)
    count = 0
    for line in itertools.takewhile(lambda line: line != "make install", lines(README)):
        words = shlex.split(line, comments=True)
        if words[:1] == ["python3"]:
            subprocess.run([sys.executable, *words[1:]], check=True)
        elif words[:1] == ["diptych"] and not re.search(r"stable-diffusion|v1-5", line):
            assert cli.main(briefly(words[1:])) == 0, line
            count += 1
    assert count > 15
