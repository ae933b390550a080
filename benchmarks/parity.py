"""diptych beside the reference implementations, at random weights: the largest error of each comparison.

    python benchmarks/parity.py --out benchmarks/results/parity

Runs the files of tests that compare and gathers what they found. Writes results.json, each comparison in results.md,
and summary.md, whose table docs/published.md shows. With --slow the full-size networks are among them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WHERE = ["tests/published", "tests/networks"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/parity"), metavar="FOLDER")
    parser.add_argument("--slow", action="store_true", help="the full-size networks too: minutes, and 8 GB of memory")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", *comparing(), *(["-m", ""] if arguments.slow else [])]
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, "DIPTYCH_PARITY": str(found)}).returncode
        rows = [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()] if found.exists() else []
    if code:
        print("a comparison failed: nothing is written", file=sys.stderr)
        return code
    rows = largest(rows)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (arguments.out / "results.md").write_text(table(rows), encoding="utf-8")
    (arguments.out / "summary.md").write_text(summary(rows), encoding="utf-8")
    print(summary(rows))
    return 0


def comparing() -> list[str]:
    """The files whose tests say how far apart the two are, by `tests.parity.within` or `tests.pretrained.sd_models`."""
    files = [path for where in WHERE for path in sorted((ROOT / where).glob("test_*.py"))]
    return [
        str(path) for path in files if re.search("tests.parity|sd_models.compare", path.read_text(encoding="utf-8"))
    ]


def largest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a comparison, in order of family and files: the largest error where a test ran it several times."""
    kept: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["family"], row["files"], row["what"]
        if key not in kept or row["error"] > kept[key]["error"]:
            kept[key] = row
    return [kept[key] for key in sorted(kept)]


def summary(rows: list[dict[str, Any]]) -> str:
    """A line for each family and kind of file, in Markdown: how many comparisons, the largest relative error, and the
    largest difference of images in levels of 8 bits."""
    lines = ["| family | files | comparisons | largest relative error | images, of 255 |", "|-|-|-:|-:|-:|"]
    for family, files in dict.fromkeys((row["family"], row["files"]) for row in rows):
        own = [row for row in rows if (row["family"], row["files"]) == (family, files)]
        levels = [row["error"] * (1 if row["limit"] == 1 else 255) for row in own if painted(row)]
        relative = [row["error"] for row in own if not painted(row)]
        told = (f"{max(relative):.1e}" if relative else "", f"{max(levels):.1f}" if levels else "")
        lines.append(f"| {family} | {files} | {len(own)} | {told[0]} | {told[1]} |")
    return "\n".join(lines) + "\n"


def painted(row: dict[str, Any]) -> bool:
    """Whether a row compares images, which may be one level of 255 apart."""
    return row["limit"] > 1e-3


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| family | files | compared | largest error | at most |", "|-|-|-|-:|-:|"]
    lines += [
        f"| {row['family']} | {row['files']} | {row['what']} | {row['error']:.1e} | {limit(row['limit'])} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def limit(value: float) -> str:
    """A bound as it was meant: 1/255 is a level of an 8-bit image."""
    return "1/255" if abs(value - 1 / 255) < 1e-9 else f"{value:g}"


if __name__ == "__main__":
    sys.exit(main())
