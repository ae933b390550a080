"""The pages say what is there: links lead somewhere, named functions exist, Python runs, tables are up to date.

That commands and make targets exist is checked in test_documents.py.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType

import pytest
import torch
from PIL import Image

import diptych
from diptych.cli import main as cli
from diptych.diffusion.denoiser import Denoiser
from diptych.diffusion.guidance import ClassifierFreeGuidance
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedules import FlowSchedule
from diptych.diffusion.steps import NoiseSource
from diptych.diffusion.times import timesteps
from diptych.encoders.configs import JointTransformerConfig
from diptych.encoders.joint import train_tokenizer
from diptych.models.latent_diffusion import LatentConfig, LatentDiffusion
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.transformer import TextTransformerConfig
from diptych.networks.unet import UNet, UNetConfig
from diptych.recipes import get
from diptych.training import experiment as recipes_run
from diptych.training.experiment_config import Recipe

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "diptych"
PAGES = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")), *sorted(ROOT.glob("docs/*.md"))]
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
TREE = re.compile(r"^```\n(src/diptych/\n.*?)^```", re.MULTILINE | re.DOTALL)
GENERATED = {"docs/images/contact-sheet.png"}
"""Made with the model in the package: missing only if it is."""


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
        if str(path.relative_to(ROOT)) in GENERATED and not model.exists():
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
    assert len(rooms) > 10
    assert there - set(rooms) <= {"__main__.py", "__pycache__/", "assets/", "py.typed"}


@pytest.fixture(scope="module")
def newcomer() -> ModuleType:
    """docs/newcomer.py, which prints the tables of the architecture page."""
    spec = importlib.util.spec_from_file_location("newcomer", ROOT / "docs" / "newcomer.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["newcomer"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_architecture_page_are_up_to_date(newcomer: ModuleType) -> None:
    page = (ROOT / "docs" / "house.md").read_text()
    assert newcomer.with_tables(page) == page, "python docs/newcomer.py docs/house.md"


def test_lines_of_functions_classes_and_methods_are_counted(newcomer: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("@decorated\ndef f():\n    return 1\n\n\nclass C:\n    def g(self):\n        pass\n\n    x = 1\n")
    assert [newcomer.lines_of(path, name) for name in ("f", "C", "C.g")] == [3, 5, 2]


def called(run: Callable[[], object]) -> set[tuple[str, str]]:
    """(file in the package, name) of each function of diptych that runs."""
    found: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(SOURCE) and not frame.f_code.co_name.startswith("<"):
            found.add((str(path.relative_to(SOURCE)), frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


def unlisted(newcomer: ModuleType, title: str, ran: set[tuple[str, str]], given: set[str]) -> set[tuple[str, str]]:
    """What of `ran` is neither named in the table, by itself or with its class, nor in the files `given`."""
    (part,) = [part for part in newcomer.PARTS if part.title.startswith(title)]

    def named(file: str, name: str) -> bool:
        names = part.reads.get(file)
        name = name.partition(".<locals>")[0]
        return names is not None and (not names or name in names or name.split(".")[0] in names)

    return {(file, name) for file, name in ran if file not in given and not named(file, name)}


def idle(newcomer: ModuleType, title: str, ran: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Functions that are named in the table and did not run."""
    (part,) = [part for part in newcomer.PARTS if part.title.startswith(title)]
    listed = {(file, name) for file, names in part.reads.items() for name in names}
    methods = {(file, name.split(".")[0]) for file, name in ran}
    return {(file, name) for file, name in listed - ran if name[0].islower() or "." in name} - methods


def test_what_a_sampler_runs_is_in_the_table(newcomer: ModuleType) -> None:
    schedule = FlowSchedule()
    denoiser = Denoiser(lambda x, time, context: x, schedule, "flow")
    cond, uncond = {"context": torch.ones(1, 2, 4)}, {"context": torch.zeros(1, 2, 4)}

    def sample() -> None:
        noise = NoiseSource([0], (3,))
        guided = ClassifierFreeGuidance(denoiser, cond, uncond, scale=2.0)
        SAMPLERS["ddim"](guided, noise.draw(), timesteps(schedule, 4), schedule, noise=noise, eta=1.0)

    ran = called(sample)
    assert ("diffusion/samplers.py", "ancestral") in ran
    given = {"diffusion/denoiser.py", "core/devices.py", "core/random.py", "core/errors.py"}
    assert not unlisted(newcomer, "a sampler", ran, given)
    assert not idle(newcomer, "a sampler", ran)


def test_what_a_network_runs_is_in_the_table(newcomer: ModuleType) -> None:
    config = UNetConfig(
        channels=8, multipliers=(1, 2), blocks=1, attention_levels=(0,), heads=1, context_width=8, norm_groups=2
    )
    x, time, context = torch.zeros(1, config.in_channels, 8, 8), torch.zeros(1), torch.zeros(1, 2, 8)
    ran = called(lambda: UNet(config)(x, time, context=context))
    assert ("networks/unet.py", "UNet.predict") in ran
    assert not unlisted(newcomer, "a network", ran, {"networks/layers.py"})
    assert not idle(newcomer, "a network", ran)


@pytest.fixture(scope="module")
def tiny() -> LatentDiffusion:
    """A small untrained latent model."""
    torch.manual_seed(0)
    text = JointTransformerConfig(
        network=TextTransformerConfig(vocabulary=64, width=8, layers=1, heads=1, head_width=8)
    )
    autoencoder = AutoencoderConfig(channels=4, multipliers=(1, 2), blocks=1, norm_groups=2, attention=False)
    unet = UNetConfig(
        channels=8, multipliers=(1,), blocks=1, attention_levels=(0,), heads=1, context_width=8, norm_groups=2
    )
    config = LatentConfig(autoencoder=autoencoder, unet=unet, text=text, size=8)
    encoder = text.build()
    encoder.tokenizer = train_tokenizer(["a red apple", "a cat face"], 64)  # type: ignore[union-attr]
    return LatentDiffusion(config, Autoencoder(autoencoder), encoder).eval()


BRIEFLY = "training.steps=1 training.batch_size=1 training.sample_every=0 training.device=cpu".split()


def train_briefly(recipe: Recipe, folder: str, train: Callable[..., Path]) -> Path:
    return train(recipe.override([*BRIEFLY, "data.size=16"]), folder)


def own_images(folder: Path, count: int) -> None:
    """The folder that README calls my-images."""
    (folder / "my-images").mkdir()
    for number in range(count):
        colour = ("red", "green", "blue")[number % 3]
        image = folder / "my-images" / f"{number}.png"
        Image.new("RGB", (20 + number, 24), colour).save(image)
        image.with_suffix(".txt").write_text(f"something {colour}")


def test_what_runs_from_a_prompt_to_a_png_is_in_the_table(
    newcomer: ModuleType, tiny: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "model")
    words = ["generate", "a red apple", "--model", "model", "--steps", "2", "--size", "8x8", "--out", "out"]
    ran = called(lambda: cli.main(words))
    assert (tmp_path / "out" / "a-red-apple-s0.png").is_file()
    encoder = {("encoders/frozen.py", "FrozenText.encode")}  # the tiny model has an encoder of its own
    assert not idle(newcomer, "from a prompt", ran) - encoder


WITH_PYTHON = [page for page in PAGES if PYTHON.search(page.read_text())]


def test_pages_have_python() -> None:
    assert {"README.md", "house.md", "mathematics.md"} <= {page.name for page in WITH_PYTHON}


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_runs(page: Path, tiny: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, top to bottom, in one namespace; `diptych.load()` gives a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diptych, "load", lambda source=None, device="cpu": tiny)
    monkeypatch.setattr(recipes_run, "train", functools.partial(train_briefly, train=recipes_run.train))
    own_images(tmp_path, 4)
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


def test_settings_of_readme_exist() -> None:
    commands = assignments(ROOT / "README.md")
    assert any(settings for _, settings in commands)
    for recipe, settings in commands:
        get(recipe).override(settings)
