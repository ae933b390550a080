"""Holds the arrows between the rooms of the house, and the length of what a newcomer reads."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "diptych"
GROUND = {"errors", "disk", "terminal", "config", "progress", "pictures"}
GROUND |= {"devices", "checks", "generation", "seeding"}
MAY_IMPORT = {
    "errors": set(),
    "disk": {"errors"},
    "terminal": set(),
    "config": {"errors"},
    "progress": {"terminal"},
    "seeding": set(),
    "pictures": {"errors", "disk", "checks"},
    "devices": {"errors"},
    "checks": {"errors"},
    "generation": {"errors", "checks", "weights"},
    "version": set(),
    "metadata": {"errors", "checks", "version"},
    "weights": {"errors", "disk", "config", "progress"},
    "networks": {"errors", "config"},
    "diffusion": {"errors", "config", "seeding", "checks"},
    "conditioning": {*GROUND, "weights", "networks", "diffusion"},
    "data": GROUND,
    "training": {*GROUND, "weights", "networks", "diffusion", "conditioning", "data"},
    "latent_config": {*GROUND, "networks", "diffusion", "conditioning"},
    "second_stage": {"networks", "conditioning", "generation"},
    "latent": {
        *GROUND,
        *("weights", "networks", "diffusion", "conditioning", "training", "latent_config", "second_stage"),
    },
    "choosing": {"errors", "checks", "generation", "seeding"},
    "autoregressive_config": {*GROUND, "networks", "conditioning"},
    "autoregressive": {
        *GROUND,
        *("weights", "networks", "diffusion", "conditioning", "choosing", "autoregressive_config", "second_stage"),
    },
    "stage_config": {*GROUND, "networks", "diffusion", "conditioning"},
    "stage": {*GROUND, "weights", "networks", "diffusion", "conditioning", "training", "stage_config"},
    "cascade": {*GROUND, "weights", "conditioning", "diffusion", "stage", "stage_config"},
    "published": {
        *GROUND,
        *("weights", "networks", "diffusion", "conditioning"),
        *("latent", "latent_config", "stage", "stage_config", "cascade"),
    },
    "opening": {
        *("errors", "config", "checks", "weights", "networks", "training"),
        *("latent", "stage", "cascade", "autoregressive", "published"),
    },
    "guides": {*GROUND, "weights", "networks", "diffusion", "conditioning", "opening", "published", "evaluation"},
    "evaluation": {
        *GROUND,
        *("weights", "networks", "diffusion", "conditioning", "data", "training"),
        *("published", "diptych"),  # LPIPS's weights; systems by `load`
    },
    "recipes": {
        *GROUND,
        *("weights", "networks", "diffusion", "conditioning", "data", "training", "evaluation"),
        *("latent", "latent_config", "stage", "stage_config", "cascade", "opening", "published"),
        *("autoregressive", "autoregressive_config"),
    },
    "diptych": {
        "errors",
        "version",
        "generation",
        "devices",
        "latent",
        "stage",
        "cascade",
        "autoregressive",
        "opening",
        "published",
    },
    "regenerate": {*GROUND, "metadata", "weights", "arguments"},
    "painting": {*GROUND, "weights", "diffusion", "training", "diptych", "opening", "evaluation"},  # contact sheets
    "arguments": {"errors"},
    "commands": {
        *GROUND,
        *("arguments", "diptych", "recipes", "evaluation", "data", "painting", "opening", "published", "guides"),
        *("metadata", "regenerate"),
    },
    "options": {"errors", "arguments", "commands", "version"},
    "cli": {"errors", "terminal", "options", "recipes"},
    "__main__": {"cli"},
}
"""Room -> rooms that it may import. `diptych` is the package's own `__init__`."""

AT_START = {
    "cli": {"errors", "terminal", "options"},
    "options": {"errors", "arguments", "commands", "version"},
    "commands": {"errors", "terminal", "arguments"},
    "__main__": {"cli"},
}
"""What the command line may import before it knows what is asked of it; the rest is imported inside functions."""

LONGEST = {"networks/*.py": 250, "training/loop.py": 250, "diffusion/samplers.py": 200, "**/*.py": 400}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "diptych" if name == "__init__" else name


def imported(tree: ast.AST, at_start: bool = False) -> set[str]:
    """The rooms that a module imports; `at_start` leaves out what functions import when they are called."""
    rooms = set()
    for node in ast.walk(tree) if not at_start else outer(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import in full"
            modules = [node.module]
            if node.module == "diptych":
                modules = [f"diptych.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        for module in modules:
            top, *rest = (module or "").split(".")
            if top == "diptych":
                rooms.add(rest[0] if rest and rest[0] in MAY_IMPORT else "diptych")
    return rooms


def outer(tree: ast.AST):
    """All nodes that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        yield node
        yield from outer(node)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_what_lies_below_it(path: Path) -> None:
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room} is a new room: say in MAY_IMPORT what it may import"
    wrong = imported(ast.parse(path.read_text())) - MAY_IMPORT[room] - {room}
    assert not wrong, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(wrong))}"


def test_diffusion_and_networks_know_nothing_of_each_other() -> None:
    assert not {"networks", "conditioning", "latent", "training"} & MAY_IMPORT["diffusion"]
    assert not {"diffusion", "conditioning", "latent", "training"} & MAY_IMPORT["networks"]


def test_the_arrows_make_no_circle() -> None:
    left = {room: set(rooms) for room, rooms in MAY_IMPORT.items()}
    while left:
        free = [room for room, rooms in left.items() if not rooms & left.keys()]
        assert free, f"a circle among {', '.join(left)}"
        for room in free:
            del left[room]


@pytest.mark.parametrize("room", AT_START)
def test_the_command_line_imports_late(room: str) -> None:
    assert imported(ast.parse((PACKAGE / f"{room}.py").read_text()), at_start=True) <= AT_START[room]


@pytest.mark.parametrize("pattern", LONGEST)
def test_what_a_newcomer_reads_is_short(pattern: str) -> None:
    found = {path: len(path.read_text().splitlines()) for path in PACKAGE.glob(pattern)}
    assert found, f"no file matches {pattern}"
    long = {str(path.relative_to(PACKAGE)): lines for path, lines in found.items() if lines > LONGEST[pattern]}
    assert not long


def test_the_test_sees_an_arrow_that_points_up() -> None:
    tree = ast.parse(
        "import diptych.models.latent_diffusion\nfrom diptych import networks, load\n"
        "class A:\n    def f(self):\n        from diptych.training.experiment import train\n"
    )
    assert imported(tree) == {"latent", "networks", "diptych", "recipes"}
    assert imported(tree, at_start=True) == {"latent", "networks", "diptych"}
    with pytest.raises(AssertionError, match="in full"):
        imported(ast.parse("from . import latent"))
