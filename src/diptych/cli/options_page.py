"""docs/options.md, printed from the table of options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from diptych.core.option_fields import Option, options_of, type_name
from diptych.models.options import GROUPS, MODELS, all_options, takers

INTRODUCTION = """\
# Options of generate

Printed by `diptych options --markdown` from [the table of options](../src/diptych/models/options.py); do not edit.

An option has the same name on the command line and in Python: `--low-res small.png` is `low_res="small.png"`. Options
that are not given are the model's own, as `diptych info MODEL --json` lists them. A model refuses options that it has
no use for. What each image was made with is in its metadata.

```bash
diptych generate "a red apple" --sampler dpmpp-2m --steps 20 --guidance 5
```

```python
import diptych

diptych.load().generate("a red apple", sampler="dpmpp-2m", steps=20, guidance=5.0)
```
"""


def markdown() -> str:
    """The page."""
    per_stage = ", ".join(f"`{name}`" for name, option in all_options().items() if option.per_stage)
    parts = [INTRODUCTION]
    for heading, options in by_heading(command_line=True):
        parts.append(f"## {sentence(heading)}\n")
        if GROUPS[heading]:
            parts.append(f"{sentence(GROUPS[heading])}.\n")
        parts.append(rows(("Option", "What it is", "Default", "For"), map(command_line_row, options)))
    parts.append(
        f"## One value for each stage\n\nCascades take one value for all stages or one for each of {per_stage}: "
        "`--steps 24,8,8`, `steps=[24, 8, 8]`. An empty value, `-` or `None` is the stage's own: `--steps 24,,`.\n"
    )
    parts.append("## In Python only\n")
    python = [option for _, options in by_heading(command_line=False) for option in options]
    parts.append(rows(("Option", "What it is", "Default", "For"), map(python_row, python)))
    parts.append("## Types in Python\n")
    parts.append(rows(("Option", "Type", "Cascades"), (type_row(name) for name in all_options())))
    return "\n".join(parts)


def by_heading(command_line: bool) -> Iterator[tuple[str, list[Option]]]:
    """The options under each heading, those of the command line or those of Python only."""
    chosen = [option for option in all_options().values() if bool(option.arguments) == command_line]
    for heading in GROUPS:
        options = [option for option in chosen if option.group == heading]
        if options:
            yield heading, options


def sentence(text: str) -> str:
    """With a capital letter."""
    return text[0].upper() + text[1:]


def command_line_row(option: Option) -> tuple[str, ...]:
    names = ", ".join(f"`{name}`" for name in option.arguments)
    value = f" `{option.placeholder}`" if option.placeholder else ""
    return names + value, described(option), option.unset, takers(option.name)


def python_row(option: Option) -> tuple[str, ...]:
    return f"`{option.name}`", described(option), option.unset, takers(option.name)


def described(option: Option) -> str:
    """Help and choices; what can be read as HTML or a column's end is code."""
    return option.described.partition(" (default: ")[0].replace("|", "\\|")


def type_row(name: str) -> tuple[str, ...]:
    types: Mapping[str, str] = {
        model: type_name(kind, name) for model, kind in MODELS.items() if name in options_of(kind)
    }
    single = next((text for model, text in types.items() if model != "cascade"), "")
    cascade = types.get("cascade", "")
    return f"`{name}`", *(f"`{text}`".replace("|", "\\|") if text else "" for text in (single, cascade))


def rows(heads: tuple[str, ...], lines: Iterator[tuple[str, ...]] | map) -> str:
    """A table."""
    table = [heads, tuple("---" for _ in heads), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


def table() -> str:
    """Names and help, for a terminal."""
    width = max(len(", ".join(option.arguments)) for option in all_options().values())
    lines = []
    for heading, options in by_heading(command_line=True):
        lines += [f"{heading}:", *(f"  {', '.join(one.arguments):<{width}}  {one.described}" for one in options), ""]
    return "\n".join(lines)
