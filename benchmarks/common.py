"""What the studies beside this file share: what a run logged, the processor's name, and figures without a window."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diptych.core.errors import UserError
from diptych.core.processors import processor_name

processor = processor_name


def run_script(main: Callable[[], None]) -> None:
    """Run a script; what its user got wrong is one line and exit code 2, as of diptych's own commands."""
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        sys.exit(2)


def logged(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def axes(columns: int = 1, **look: Any) -> tuple[Any, Any]:
    """A figure and its axes side by side, drawn without a window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, **look)


def save(figure: Any, path: Path, dpi: int) -> None:
    """Write a figure as a PNG, and let go of it."""
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, dpi=dpi)
    pyplot.close(figure)
