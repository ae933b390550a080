"""The table of saved schedulers as markdown: `python -m diptych.pretrained.schedulers_page docs/published.md` writes it
into the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from diptych.pretrained.schedulers import CLASSES, SETTINGS

BEGIN, END = "<!-- schedulers: begin -->", "<!-- schedulers: end -->"


def page() -> str:
    """The table as markdown."""
    lines = ["| saved class | sampler | |", "|-|-|-|"]
    for name, kind in CLASSES.items():
        lines.append(f"| {name} | `{kind.sampler}` | {'' if kind.same else 'stands in'} |")
    lines += ["", "| setting | values | | |", "|-|-|-|-|"]
    for field, setting in SETTINGS.items():
        values = "any" if setting.allowed is None else ", ".join(map(shown, setting.allowed))
        where = "" if not setting.readers else "; of " + ", ".join(setting.readers)
        lines.append(f"| `{field}` | {values} | {setting.treatment} | {setting.note}{where} |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A value as JSON has it."""
    return json.dumps(value).strip('"')


def write(path: Path) -> None:
    """Put the table in its place in a page."""
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{page()}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
