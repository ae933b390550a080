"""Records every recipe, fully resolved: `python -m tests.saved.record_recipes` writes recipes.json.gz."""

from __future__ import annotations

import gzip
import json

from diptych.recipes import all_recipes
from tests.saved.replay import HERE, commit


def main() -> None:
    recipes = {name: recipe.to_dict() for name, recipe in sorted(all_recipes().items())}
    text = json.dumps({"commit": commit(), "recipes": recipes}, ensure_ascii=False)
    (HERE / "recipes.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
