"""Print the tables of docs/house.md: which package may import which, and how many lines a reader needs for each part.

`python docs/newcomer.py` prints them, `python docs/newcomer.py docs/house.md` writes them into the page. Lines are the
physical lines of the named functions and classes as they stand in the files, docstrings and blank lines included.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "diptych"
ARCHITECTURE_TEST = ROOT / "tests" / "test_architecture.py"


@dataclass(frozen=True)
class Part:
    """One thing to understand: the functions and classes to read for it, by file, in reading order."""

    title: str
    aim: int
    """Lines that it should need at most."""
    reads: dict[str, tuple[str, ...]]
    """File -> names (`f`, `C`, `C.method`); none for the whole file."""
    given: str
    """What is taken as known: called on this path, and not counted."""


PARTS = (
    Part(
        title="a sampler (DDIM), with its schedule and guidance",
        aim=200,
        reads={
            "diffusion/samplers.py": ("ddim", "ancestral"),
            "diffusion/steps.py": (
                "Sampler.__call__",
                "Steps.__init__",
                "Steps.__iter__",
                "Steps.predict_x0",
                "Steps.report",
                "Steps.randn",
                "ddim_step",
                "posterior_std",
                "forward_std",
            ),
            "core/random.py": ("NoiseSource.__init__", "NoiseSource.draw"),
            "diffusion/times.py": ("timesteps", "check_steps"),
            "diffusion/schedules.py": ("FlowSchedule.alpha_sigma", "FlowSchedule.network_time"),
            "diffusion/guidance.py": (
                "Wrapper.__init__",
                "Wrapper.__call__",
                "ClassifierFreeGuidance.__init__",
                "ClassifierFreeGuidance.estimate",
            ),
            "diffusion/conditions.py": ("expand_condition", "cat_conditions", "without_full_masks"),
        },
        given="the denoiser, `(x, t, cond) -> x_0`; a noise level, `(t, alpha, sigma)`",
    ),
    Part(
        title="a network (the U-Net)",
        aim=250,
        reads={
            "networks/unet.py": (
                "UNetConfig",
                "UNetBlock.__init__",
                "UNetBlock.forward",
                "UNet.__init__",
                "UNet.project_context",
                "UNet.predict",
            ),
            "networks/conditioned_unet.py": ("ConditionedUNet", "time_mlp"),
            "networks/residual.py": ("ResidualBlock.__init__", "ResidualBlock.forward", "ResidualBlock.norm_with"),
        },
        given="the layers in networks/layers.py: convolutions, attention, timestep embedding",
    ),
    Part(
        title="the training loop",
        aim=250,
        reads={
            "training/trainer.py": (),
        },
        given="the model's loss, checkpoint files, the processes, the logger, EMA, how numbers come from a GPU",
    ),
    Part(
        title="from a prompt to a PNG file",
        aim=600,
        reads={
            "cli/main.py": ("main",),
            "cli/generate_commands.py": ("generate",),
            "__init__.py": ("load",),
            "pretrained/load.py": ("load", "open_model", "find", "model_folder", "open_own"),
            "cli/output.py": ("generate_images", "save_image", "write_png"),
            "models/latent_diffusion.py": (
                "LatentDiffusion.load",
                "LatentDiffusion.__init__",
                "LatentDiffusion.generate",
                "LatentDiffusion.conditions",
                "LatentDiffusion.embed",
                "LatentDiffusion.decode",
            ),
            "models/request.py": ("LatentRequest.read", "Request.of", "LatentRequest.result", "Request.metadata"),
            "models/sampling.py": ("read_settings", "sample", "SamplingSettings.metadata"),
            "encoders/prompt_weights.py": ("encode_prompts",),
            "encoders/frozen.py": ("FrozenText.encode",),
            "encoders/base.py": ("TextEmbedding.from_sequence", "TextEmbedding.cond"),
            "core/images.py": ("to_images",),
            "models/metadata.py": ("png_texts",),
        },
        given=(
            "the sampler and the networks (above); parsing and checks of prompts, seeds and options; "
            "the count of network calls; helpers of `core` and `weights`"
        ),
    ),
)


def lines_of(path: Path, name: str) -> int:
    """Physical lines of a function, class or method, its decorators included."""
    body = ast.parse(path.read_text()).body
    node: ast.stmt | None = None
    for part in name.split("."):
        node = next((n for n in body if getattr(n, "name", None) == part), None)
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            raise SystemExit(f"{path.relative_to(ROOT)} has no {name}")
        body = node.body
    assert isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.end_lineno is not None
    return node.end_lineno - min([node.lineno, *(one.lineno for one in node.decorator_list)]) + 1


def lines_read(part: Part) -> dict[str, int]:
    """Lines to read in each file."""
    counts = {}
    for file, names in part.reads.items():
        path = PACKAGE / file
        counts[file] = sum(lines_of(path, name) for name in names) if names else len(path.read_text().splitlines())
    return counts


def newcomer_table() -> str:
    """The table of lines to read, and what is read for each row, as markdown."""
    rows, lists = ["| To understand | Lines | Aim |", "|-|-:|-:|"], []
    for part in PARTS:
        counts = lines_read(part)
        rows.append(f"| {part.title} | {sum(counts.values())} | {part.aim} |")
        lists.append(f"\n**{part.title[0].upper()}{part.title[1:]}.** Taken as known: {part.given}.\n")
        for file, names in part.reads.items():
            listed = ", ".join(f"`{name}`" for name in names) if names else "the whole file"
            lists.append(f"- [{file}](../src/diptych/{file}) ({counts[file]}): {listed}")
    return "\n".join([*rows, *lists])


def may_import() -> dict[str, set[str]]:
    """`MAY_IMPORT` of the architecture test."""
    space: dict[str, dict[str, set[str]]] = {}
    for node in ast.parse(ARCHITECTURE_TEST.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MAY_IMPORT":
            exec(compile(ast.Module([node], []), str(ARCHITECTURE_TEST), "exec"), space)
    return space["MAY_IMPORT"]


def imports_table() -> str:
    """The packages, each after those that it imports, as markdown."""
    left, rows = dict(may_import()), ["| Package | Imports |", "|-|-|"]
    while left:
        room = next(name for name, needs in left.items() if not needs & left.keys())
        needs = left.pop(room)
        order = [name for name in may_import() if name in needs]
        shown = {"diptych": "`diptych/__init__.py`", "__main__": "`__main__.py`"}
        listed = ", ".join(shown.get(name, f"`{name}`") for name in order)
        rows.append(f"| {shown.get(room, f'`{room}`')} | {listed or 'nothing of diptych'} |")
    return "\n".join(rows)


TABLES = {"imports": imports_table, "newcomer": newcomer_table}
"""Marker in the page -> what stands between its begin and end."""


def with_tables(page: str) -> str:
    """The page with its tables as they are now."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin not in page or end not in page:
            raise SystemExit(f"the page has no {begin} ... {end}")
        before, after = page.split(begin)[0], page.split(end)[1]
        page = f"{before}{begin}\n{table()}\n{end}{after}"
    return page


def main() -> None:
    if len(sys.argv) > 1:
        page = Path(sys.argv[1])
        page.write_text(with_tables(page.read_text()))
        return
    for table in TABLES.values():
        print(table(), end="\n\n")


if __name__ == "__main__":
    main()
