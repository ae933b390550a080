"""Holds the house to its plan: which room may import which, what lies at the root, how long files are, unique names."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "diptych"
MAY_IMPORT = {
    "core": set(),
    "weights": {"core"},
    "diffusion": {"core"},
    "networks": {"core"},
    "conditioning": {"core", "networks", "diffusion"},
    "encoders": {"core", "weights", "networks"},
    "data": {"core"},
    "serving": {"core"},
    "models": {"core", "weights", "diffusion", "networks", "conditioning", "encoders", "data"},
    "engines": {"core", "weights", "networks", "encoders"},
    "pretrained": {"core", "weights", "diffusion", "networks", "conditioning", "encoders", "models", "engines"},
    "metrics": {"core", "weights", "networks", "encoders", "data", "models", "pretrained"},
    "training": {
        *("core", "weights", "diffusion", "networks", "encoders", "data", "models", "pretrained", "metrics"),
        "engines",
    },
    "evaluation": {
        *("core", "weights", "diffusion", "conditioning", "encoders", "data", "models", "pretrained"),
        *("serving", "metrics"),
    },
    "studio": {"core", "encoders", "serving", "models", "pretrained", "diptych"},
    "recipes": {
        "core",
        "diffusion",
        "networks",
        "conditioning",
        "encoders",
        "data",
        "models",
        "pretrained",
        "training",
    },
    "diptych": {"core", "models", "engines", "pretrained"},
    "cli": {
        *("core", "weights", "diffusion", "networks", "encoders", "data", "models", "engines", "pretrained"),
        *("metrics", "training", "evaluation", "recipes", "diptych", "serving", "studio"),
    },
    "__main__": {"cli"},
}
"""Room -> rooms that it may import. `diptych` is the package's own `__init__`."""

ROOT_FILES = {"__init__.py", "__main__.py"}
"""What may lie beside the rooms."""

KINDS = (
    *("generate", "serve", "prompts", "train", "plan", "evaluate", "measure", "protocol", "curves", "study"),
    *("model", "data"),
)
AT_START = ("main", "parser", "arguments", "argument_values", "image_list", *(f"{kind}_commands" for kind in KINDS))
"""These modules of the command line import core and the table of options alone; functions import the rest."""

SAME_NAME = {
    *("adm", "deepfloyd"),  # the network, or the reader of files, and the recipes of it
    *("inpainting", "layouts", "super_resolution"),  # the task's recipes and its benchmark
    *("diffusion", "emoji", "stable_diffusion"),  # rooms, and the task or the recipes that go with them
}
"""Modules of which there may be several of one name."""

LONGEST = {
    "networks/*.py": 250,
    "training/trainer.py": 250,
    "diffusion/samplers.py": 200,
    "evaluation/benchmarks/*.py": 350,
    "**/*.py": 400,
}
LATENT_FILES, LATENT_LINES = 45, 6_000
"""The most that importing the latent model may bring in."""


@cache
def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    """A module, which several tests look at."""
    return ast.parse(path.read_text())


def room_of(path: Path) -> str:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "diptych" if name == "__init__" else name


def imported_modules(tree: ast.AST, at_start: bool = False) -> Iterator[str]:
    """The modules below diptych that a module imports, and names imported from them, dotted; `at_start` leaves out
    what functions import when they are called, and what is there for type checkers."""
    for node in ast.walk(tree) if not at_start else outer(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import in full"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        yield from (module for module in modules if module.split(".")[0] == "diptych")


def imported(tree: ast.AST, at_start: bool = False) -> set[str]:
    """The rooms that a module imports."""
    rooms = set()
    for module in imported_modules(tree, at_start):
        _, *rest = module.split(".")
        rooms.add(rest[0] if rest and rest[0] in MAY_IMPORT else "diptych")
    return rooms


def outer(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from outer(node)


@cache
def module_file(module: str) -> Path | None:
    """The file of a module, or of the module that a name is imported from."""
    _, *rest = module.split(".")
    for parts in (rest, rest[:-1]):
        path = PACKAGE.joinpath(*parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def closure(start: str) -> set[Path]:
    """The files that importing a module reads, itself among them."""
    found: set[Path] = set()
    ahead = [module_file(start)]
    while ahead:
        file = ahead.pop()
        if file is None or file in found:
            continue
        found.add(file)
        ahead += [module_file(module) for module in imported_modules(parsed(file), at_start=True)]
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_what_lies_below_it(path: Path) -> None:
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room} is a new room: say in MAY_IMPORT what it may import"
    wrong = imported(parsed(path)) - MAY_IMPORT[room] - {room}
    assert not wrong, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(wrong))}"


def test_diffusion_and_networks_know_nothing_of_each_other() -> None:
    assert "networks" not in MAY_IMPORT["diffusion"] and "diffusion" not in MAY_IMPORT["networks"]


def test_models_know_nothing_of_training() -> None:
    assert not {"training", "recipes", "evaluation", "cli"} & MAY_IMPORT["models"]


def test_every_arrow_that_may_be_is() -> None:
    drawn = defaultdict(set)
    for path in files():
        drawn[room_of(path)] |= imported(parsed(path))
    unused = {room: may - drawn[room] for room, may in MAY_IMPORT.items() if may - drawn[room]}
    assert not unused, f"arrows that no file needs: {unused}"


def test_the_arrows_make_no_circle() -> None:
    left = {room: set(rooms) for room, rooms in MAY_IMPORT.items()}
    while left:
        free = [room for room, rooms in left.items() if not rooms & left.keys()]
        assert free, f"a circle among {', '.join(left)}"
        for room in free:
            del left[room]


def test_no_modules_import_each_other_in_a_circle() -> None:
    needs = {path: set() for path in files()}
    for path in files():
        modules = imported_modules(parsed(path), at_start=True)
        needs[path] = {file for file in map(module_file, modules) if file is not None} - {path}
    while needs:
        free = [path for path, others in needs.items() if not others & needs.keys()]
        assert free, f"a circle among {', '.join(str(path.relative_to(PACKAGE)) for path in needs)}"
        for path in free:
            del needs[path]


def test_only_rooms_lie_at_the_root() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} <= ROOT_FILES


def test_module_names_are_unique() -> None:
    places = defaultdict(list)
    for path in files():
        if path.stem not in ("__init__", "__main__"):
            places[path.stem].append(str(path.relative_to(PACKAGE)))
    for folder in {path.parent for path in files()} - {PACKAGE}:
        places[folder.name].append(str(folder.relative_to(PACKAGE)))
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert twice.keys() <= SAME_NAME, {name: where for name, where in twice.items() if name not in SAME_NAME}
    assert twice.keys() == SAME_NAME, f"no exceptions any more: {SAME_NAME - twice.keys()}"


def test_public_class_names_are_unique() -> None:
    places = defaultdict(list)
    for path in files():
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not twice


@pytest.mark.parametrize("name", AT_START)
def test_the_command_line_imports_late(name: str) -> None:
    modules = set(imported_modules(parsed(PACKAGE / "cli" / f"{name}.py"), at_start=True))
    table = ("diptych.models.options.", "diptych.models.option_registry.")
    rooms = {module.split(".")[1] for module in modules if not module.startswith(table)}
    assert rooms <= {"core", "cli"}


def test_the_latent_model_needs_little() -> None:
    found = closure("diptych.models.latent_diffusion")
    lines = sum(len(path.read_text().splitlines()) for path in found)
    assert len(found) <= LATENT_FILES and lines <= LATENT_LINES, f"{len(found)} files, {lines} lines"


@pytest.mark.parametrize("pattern", LONGEST)
def test_what_a_newcomer_reads_is_short(pattern: str) -> None:
    found = {path: len(path.read_text().splitlines()) for path in PACKAGE.glob(pattern)}
    assert found, f"no file matches {pattern}"
    long = {str(path.relative_to(PACKAGE)): lines for path, lines in found.items() if lines > LONGEST[pattern]}
    assert not long


def test_the_test_sees_an_arrow_that_points_up() -> None:
    tree = ast.parse(
        "import diptych.models.cascade\nfrom diptych import networks, load\n"
        "class A:\n    def f(self):\n        from diptych.recipes.papers import ldm\n"
    )
    assert imported(tree) == {"models", "networks", "diptych", "recipes"}
    assert imported(tree, at_start=True) == {"models", "networks", "diptych"}
    with pytest.raises(AssertionError, match="in full"):
        imported(ast.parse("from . import models"))
