"""Where the values of the papers' recipes come from.

Each recipe of a published model has its sources here as data: what a paper, a repository or a model card says of a
field, and where. The value printed with it is read from the recipe itself, by the path of the field, so the two cannot
drift apart unseen: `Citation.problem` names a value that no longer agrees, and the tests ask all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diptych.core.errors import UserError, pick
from diptych.recipes import get
from diptych.training.experiment_config import Recipe

PARAMETERS = "parameters"
"""What is counted, not set: `parameters.unet`, or `parameters` for all networks together."""
TITLE = """# Recipes and their sources

What the recipes of published models have, where it comes from, and where it differs. `diptych recipes --sources` prints
this page from the recipes themselves, `diptych recipes --sources NAME` one of its tables. A value without a source says
what stands in its place; parameters are counted, and sources round them.

Tables, sections, appendices and figures are those of the paper that a recipe names. LD is CompVis/latent-diffusion, and
`config` the model's own there; TT is CompVis/taming-transformers, GD openai/guided-diffusion, GL openai/glide-text2im.

Models of these papers that have no recipe: latent-diffusion's semantic synthesis (215 M, table 15), which reads maps of
classes, and no data here has these; its larger LDM-SR (552 M, table 5), of which no shape is published.
"""
HEADER = "| Value | Source | Where it differs |\n|-|-|-|\n"


@dataclass(frozen=True)
class Citation:
    """What one source says of one field."""

    field: str
    """Path of the field, such as `training.steps`; or `parameters.NETWORK`."""
    kind: Literal["same", "differs", "silent"]
    """The recipe follows it; or does not, for a reason; or there is nothing to follow."""
    says: Any = None
    """The value, in the units of the field; none of a silent source."""
    where: str = ""
    """Table, section, file or card."""
    why: str = ""
    """One line: why the recipe differs, or what stands in the place of what no source says."""
    within: float = 0.0
    """For counts, which sources round: how far, as a share, the recipe's may be from it."""

    def problem(self, recipe: Recipe, counts: Mapping[str, int]) -> str | None:
        """What is wrong with this entry now, in one line; none while it describes the recipe."""
        value = value_of(self.field, recipe, counts)
        agrees = self.kind != "silent" and agree(value, self.says, self.within)
        if self.kind == "same" and not agrees:
            return f"{self.field} is {as_text(value)}, and {self.where} says {as_text(self.says)}"
        if self.kind == "differs" and agrees:
            return f"{self.field} is {as_text(value)} as {self.where} says: it no longer differs"
        if self.kind != "same" and not self.why:
            return f"{self.field} differs, or has no source, and nothing says why"
        return None

    def cells(self, recipe: Recipe, counts: Mapping[str, int]) -> tuple[str, str, str]:
        """Field and value, source, and where the recipe differs, in Markdown."""
        note = self.why
        if self.kind == "differs" or self.within:
            text = f"source: {as_text(self.says, self.field)}"
            note = f"{text}; {note}" if note else text
        value = as_text(value_of(self.field, recipe, counts), self.field)
        return f"`{self.field}` {value}", self.where or "none", note


def same(where: str, values: Mapping[str, Any], within: float = 0.0, why: str = "") -> tuple[Citation, ...]:
    """The recipe has what `where` says of these fields."""
    return tuple(Citation(field, "same", says, where, why, within) for field, says in values.items())


def differs(field: str, says: Any, where: str, why: str) -> tuple[Citation, ...]:
    """The recipe has another value than the source, for a reason."""
    return (Citation(field, "differs", says, where, why),)


def silent(why: str, *fields: str) -> tuple[Citation, ...]:
    """No source says anything of these fields."""
    return tuple(Citation(field, "silent", why=why) for field in fields)


def under(prefix: str, **values: Any) -> dict[str, Any]:
    """Fields of one part of a recipe: `under("training", steps=7)`."""
    return {f"{prefix}.{name}": value for name, value in values.items()}


def value_of(field: str, recipe: Recipe, counts: Mapping[str, int]) -> Any:
    """The recipe's value; a `UserError` names a path that leads nowhere. counts: parameters of each network."""
    first, *rest = field.split(".")
    if first == PARAMETERS:
        if rest and rest[0] not in counts:
            raise UserError(f"no network {rest[0]!r} is counted: choose one of {', '.join(counts)}")
        return counts[rest[0]] if rest else sum(counts.values())
    value: Any = recipe
    for name in (first, *rest):
        if not hasattr(value, name):
            raise UserError(f"no field {name!r} in {field!r}")
        value = getattr(value, name)
    return value


def agree(value: Any, says: Any, within: float = 0.0) -> bool:
    """Whether two values are the same; numbers to nine digits, or within a share."""
    if isinstance(value, (tuple, list)) and isinstance(says, (tuple, list)):
        return len(value) == len(says) and all(map(agree, value, says))
    numbers = [x for x in (value, says) if isinstance(x, (int, float)) and not isinstance(x, bool)]
    return math.isclose(*numbers, rel_tol=within or 1e-9) if len(numbers) == 2 else value == says


def as_text(value: Any, field: str = "") -> str:
    """A value as text."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if field.startswith(PARAMETERS) and value >= 1e6 and value % 1e5 == 0:
        return f"{value / 1e9:g} B" if value >= 1e9 else f"{value / 1e6:g} M"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(as_text, value)) or "none"
    return str(value)


def all_sources() -> dict[str, tuple[Citation, ...]]:
    """The sources of every recipe that has some, by name."""
    from diptych.recipes.sources import first_stage_sources as first_stages
    from diptych.recipes.sources import glide_sources as glide
    from diptych.recipes.sources import ldm_sources as latent_diffusion
    from diptych.recipes.sources import pixel_sources as pixels

    modules = (first_stages, latent_diffusion, pixels, glide)
    return {name: sources for module in modules for name, sources in module.SOURCES.items()}


def counted(name: str) -> dict[str, int]:
    """Parameters of each network of a recipe."""
    import torch

    from diptych.training import experiment as run

    with torch.device("meta"):
        return run.counts(get(name).system.networks())["networks"]


def table(name: str, counts: Mapping[str, int] | None = None) -> str:
    """The sources of one recipe, in Markdown; a `UserError` lists those that have some. counts: parameters of each
    network, where they are known."""
    sources = all_sources()
    citations, recipe = sources[pick("recipe with sources", name, sources)], get(name)
    counts = counted(name) if counts is None else counts
    cells = [source.cells(recipe, counts) for source in citations]
    rows = []
    for (where, note), group in itertools.groupby(cells, key=lambda cell: cell[1:]):
        rows.append(f"| {'<br>'.join(field for field, *_ in group)} | {where} | {note} |\n")
    return f"## {name}\n\n{recipe.description}.\n\n{HEADER}{''.join(rows)}"


def document() -> str:
    """The tables of all recipes, as docs/recipes.md has them."""
    return TITLE + "".join(f"\n{table(name)}" for name in all_sources())
