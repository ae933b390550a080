"""docs/options.md, and the list of options in a terminal, printed from the table of options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from diptych.core.option_fields import Option, options_of, type_name
from diptych.core.values import Choice, PerStage
from diptych.models.option_registry import GROUPS, MODELS, all_options, takers

INTRODUCTION = """\
# Options of generate

Printed by `diptych options --markdown` from [the table of options](../src/diptych/models/options.py); do not edit.

An option has one name on the command line and in Python: `--low-res small.png` is `low_res="small.png"`. Options that
are not given are the model's own, as `diptych info MODEL --json` lists them. A model refuses options that have no
effect on it. The metadata of each image records what it was made with.

```bash
diptych generate "a red apple" --sampler dpmpp-2m --steps 20 --guidance 5
```

```python
import diptych

diptych.load().generate("a red apple", sampler="dpmpp-2m", steps=20, guidance=5.0)
```
"""
TYPES = """\
## Types in Python

`ImageInput` is a Pillow image, a path, a tensor (B, 3, H, W) in [-1, 1] (a mask: (B, 1, H, W) in [0, 1]), or a list
with one for each prompt. Cascades take the types of the last column.
"""


def markdown() -> str:
    """The page."""
    parts = [INTRODUCTION]
    for heading, options in by_heading(command_line=True):
        parts.append(f"## {capital(heading)}\n")
        if GROUPS[heading]:
            parts.append(f"{capital(GROUPS[heading])}.\n")
        if heading == "options of samplers":
            parts.append(rows(("Sampler", "Options and their defaults"), sampler_rows()))
        parts.append(rows(("Option", "Description", "Values", "Default", "For"), map(command_line_row, options)))
    per_stage = ", ".join(f"`{name}`" for name, option in all_options().items() if option.per_stage)
    parts.append(
        f"## One value for each stage\n\nCascades take one value for all stages, or one for each, of {per_stage}:\n"
        "`--steps 24,8,8`, `steps=[24, 8, 8]`. An empty value, `-` or `None` is the stage's own: `--steps 24,,`.\n"
    )
    parts.append("## In Python only\n")
    python = [option for _, options in by_heading(command_line=False) for option in options]
    parts.append(rows(("Option", "Description", "Default", "For"), map(python_row, python)))
    parts.append(TYPES)
    parts.append(rows(("Option", "Type", "Of cascades"), map(type_row, all_options())))
    return "\n".join(parts)


def listing() -> str:
    """Names and descriptions, for a terminal."""
    width = max(len(", ".join(option.arguments)) for option in all_options().values())
    lines = []
    for heading, options in by_heading(command_line=True):
        lines += [f"{heading}:", *(f"  {', '.join(one.arguments):<{width}}  {one.described}" for one in options), ""]
    return "\n".join(lines)


def by_heading(command_line: bool) -> Iterator[tuple[str, list[Option]]]:
    """The options under each heading, those of the command line or those of Python only."""
    chosen = [option for option in all_options().values() if bool(option.arguments) == command_line]
    for heading in GROUPS:
        options = [option for option in chosen if option.group == heading]
        if options:
            yield heading, options


def sampler_rows() -> Iterator[tuple[str, ...]]:
    """The options that each sampler has, and their defaults."""
    from diptych.diffusion.sampler_options import sampler_options
    from diptych.diffusion.samplers import SAMPLERS

    for sampler in SAMPLERS:
        options = [f"`{name}` {default:g}" for name, default in sampler_options(sampler).items()]
        yield f"`{sampler}`", ", ".join(options) or "none"


def command_line_row(option: Option) -> tuple[str, ...]:
    names = ", ".join(f"`{name}`" for name in option.arguments)
    value = f" `{option.placeholder}`" if option.placeholder else ""
    single = option.value.value if isinstance(option.value, PerStage) else option.value
    allowed = ", ".join(f"`{name}`" for name in single.choices) if isinstance(single, Choice) else single.allowed
    return names + value, cell(option.help), allowed, option.unset, takers(option.name)


def python_row(option: Option) -> tuple[str, ...]:
    return f"`{option.name}`", cell(option.help), option.unset, takers(option.name)


def type_row(name: str) -> tuple[str, ...]:
    types = {model: type_name(kind, name) for model, kind in MODELS.items() if name in options_of(kind)}
    single = next((text for model, text in types.items() if model != "cascade"), "")
    return f"`{name}`", *(cell(f"`{text}`") if text else "" for text in (single, types.get("cascade", "")))


def capital(text: str) -> str:
    """The text with a capital letter at its start."""
    return text[0].upper() + text[1:]


def cell(text: str) -> str:
    """The text in a table, where a bar would end the cell."""
    return text.replace("|", "\\|")


def rows(heads: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    """A table."""
    table = [heads, tuple("-" for _ in heads), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in table)
