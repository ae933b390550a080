"""The pages say what is there: links lead somewhere, named functions exist, Python runs, settings are settings.

That commands and make targets exist is checked in test_documents.py.
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import diptych
from diptych.encoders.registry import JointTransformerConfig, build_text_encoder, train_tokenizer
from diptych.models.latent_diffusion import LatentConfig, LatentDiffusion
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.transformer import TextTransformerConfig
from diptych.networks.unet import UNetConfig
from diptych.recipes import get
from diptych.training import experiment as recipes_run
from diptych.training.experiment_config import Recipe

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "diptych"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
TREE = re.compile(r"^```\n(src/diptych/\n.*?)^```", re.MULTILINE | re.DOTALL)
PAINTED = {"docs/images/contact-sheet.png"}
"""Made by the model in the package: missing only as long as it is."""


def links(page: Path) -> list[tuple[str, str]]:
    """(text, target) of each link, formulas and code blocks left out."""
    text = re.sub(r"^```.*?^```|\$\$.*?\$\$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return LINK.findall(text)


def relative(page: Path) -> list[tuple[str, Path, str]]:
    """(text, file, anchor) of each link that stays in the repository."""
    found = [(text, target.partition("#")) for text, target in links(page) if "://" not in target]
    return [(text, (page.parent / path if path else page).resolve(), anchor) for text, (path, _, anchor) in found]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def names(path: Path) -> set[str]:
    """Everything that a module defines: `f`, `C`, `C.method`, `CONSTANT`."""
    found: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    visit(ast.parse(path.read_text()).body, "")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    model = SOURCE / "assets" / "latent" / "config.json"
    for text, path, anchor in relative(page):
        assert path.is_relative_to(ROOT), f"[{text}] leads out of the repository"
        if str(path.relative_to(ROOT)) in PAINTED and not model.exists():
            continue
        assert path.exists(), f"[{text}] leads to {path.relative_to(ROOT)}, which is not there"
        if anchor:
            assert anchor in anchors(path), f"[{text}]: {path.name} has no heading #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_functions_exist(page: Path) -> None:
    for text, path, _ in relative(page):
        if path.suffix == ".py" and text.startswith("`"):
            assert text.strip("`") in names(path), f"{path.relative_to(ROOT)} has no {text}"


def test_the_pages_name_functions() -> None:
    for name, least in (("house.md", 30), ("mathematics.md", 30)):
        named = [text for text, path, _ in relative(ROOT / "docs" / name) if path.suffix == ".py"]
        assert len(named) >= least


def test_the_tree_is_the_package() -> None:
    found = TREE.search((ROOT / "docs" / "house.md").read_text())
    assert found
    rooms: dict[str, list[str]] = {}
    for line in found[1].splitlines()[1:]:
        if line.startswith("  "):
            room, rest = line.split(maxsplit=1)
            rooms[room] = re.findall(r"\b\w+\.py\b", rest)
    for room, files in rooms.items():
        assert (SOURCE / room).exists(), room
        assert all((SOURCE / room / file).exists() for file in files), (room, files)
    there = {path.name + ("/" if path.is_dir() else "") for path in SOURCE.iterdir()}
    assert there - set(rooms) <= {"__main__.py", "__pycache__/", "assets/", "py.typed"}


@pytest.fixture(scope="module")
def tiny() -> LatentDiffusion:
    """A latent model that can paint nothing yet, in no time."""
    torch.manual_seed(0)
    text = JointTransformerConfig(
        network=TextTransformerConfig(vocabulary=64, width=8, layers=1, heads=1, head_width=8)
    )
    autoencoder = AutoencoderConfig(channels=4, multipliers=(1, 2), blocks=1, norm_groups=2, attention=False)
    unet = UNetConfig(
        channels=8, multipliers=(1,), blocks=1, attention_levels=(0,), heads=1, context_width=8, norm_groups=2
    )
    config = LatentConfig(autoencoder=autoencoder, unet=unet, text=text, size=8)
    encoder = build_text_encoder(text)
    encoder.tokenizer = train_tokenizer(["a red apple", "a cat face"], 64)  # type: ignore[union-attr]
    return LatentDiffusion(config, Autoencoder(autoencoder), encoder).eval()


BRIEFLY = "training.steps=1 training.batch_size=1 training.sample_every=0 training.device=cpu".split()


def train_briefly(recipe: Recipe, folder: str, train: Callable[..., Path]) -> Path:
    return train(recipe.override([*BRIEFLY, "data.size=16"]), folder)


def own_pictures(folder: Path, count: int) -> None:
    """What README calls my-pictures."""
    (folder / "my-pictures").mkdir()
    for number in range(count):
        colour = ("red", "green", "blue")[number % 3]
        picture = folder / "my-pictures" / f"{number}.png"
        Image.new("RGB", (20 + number, 24), colour).save(picture)
        picture.with_suffix(".txt").write_text(f"something {colour}")


WITH_PYTHON = [page for page in PAGES if PYTHON.search(page.read_text())]


def test_the_pages_that_teach_have_python() -> None:
    assert {"README.md", "house.md", "mathematics.md"} <= {page.name for page in WITH_PYTHON}


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_runs(page: Path, tiny: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, top to bottom, in one namespace; `diptych.load()` gives a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diptych, "load", lambda source=None, device="cpu": tiny)
    monkeypatch.setattr(recipes_run, "train", functools.partial(train_briefly, train=recipes_run.train))
    own_pictures(tmp_path, 4)
    blocks = PYTHON.findall(page.read_text())
    space: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        for number, block in enumerate(blocks, 1):
            exec(compile(block, f"{page.name}, block {number}", "exec"), space)
    if page.name == "README.md":
        assert {path.name for path in tmp_path.glob("*.png")} == {"a red apple 0.png", "a cat face 1.png"}
        assert (tmp_path / "runs" / "my-autoencoder-3" / "model" / "config.json").is_file()


def assignments(page: Path) -> list[tuple[str, list[str]]]:
    """(recipe, its a.b=c) of each `diptych train` and `diptych precompute`."""
    lines = "\n".join(SHELL.findall(page.read_text())).replace("\\\n", " ").splitlines()
    found = [words for line in lines if len(words := shlex.split(line, comments=True)) > 2]
    return [
        (words[2], [word for word in words[3:] if "=" in word and not word.startswith("-")])
        for words in found
        if words[0] == "diptych" and words[1] in ("train", "precompute")
    ]


def test_settings_are_settings() -> None:
    told = assignments(ROOT / "README.md")
    assert any(settings for _, settings in told)
    for recipe, settings in told:
        get(recipe).override(settings)
