"""The fields of the form that made an image, from its metadata."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from diptych.models.metadata import read_metadata
from diptych.studio.engine import Engine
from diptych.studio.image_request import INPUTS, exact
from diptych.studio.model_schema import options_offered
from diptych.studio.read_upload import read_upload


def fields_of(engine: Engine, data: bytes) -> dict[str, Any]:
    """The fields of a request for the image in a PNG of diptych's, and in `missing` what cannot be restored here."""
    read_upload("image", data)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "image.png")  # errors name it
        file.write_bytes(data)
        row = read_metadata(file)
    return fields_of_row(engine, row)


def fields_of_row(engine: Engine, row: dict[str, Any]) -> dict[str, Any]:
    missing = []
    name = model_name(engine, row.get("model"))
    if name is None:
        name, asked = engine.pool.default, row.get("model")
        missing.append(f"the model {asked.get('source') if isinstance(asked, dict) else asked}")
    fields: dict[str, Any] = {"model": name, "prompt": row["prompt"], "negative": row.get("negative") or ""}
    fields |= {"seed": exact(row["seed"]), "count": 1, "options": {}}
    stages, offered = row.get("stages"), options_offered(engine.pool.open(name))
    for key, option in offered.items():
        value = [stage.get(key) for stage in stages] if stages and option.per_stage else row.get(key)
        if value is not None and not (isinstance(value, list) and all(one is None for one in value)):
            fields["options"][key] = value
    if stages or "low" in row:
        fields["options"].pop("size", None)
    for key in INPUTS:
        entry = row.get("low" if key == "low_res" else key)
        if not isinstance(entry, dict):
            continue
        stem = Path(str(entry.get("file", ""))).stem
        try:
            engine.history.input(key, stem)
            fields[key] = stem
        except Exception:
            missing.append(f"the image given as {key}")
    return {**fields, "missing": missing}


def model_name(engine: Engine, stated: Any) -> str | None:
    """The name under which the model of an image is offered here; none where it is not."""
    source = stated.get("source") if isinstance(stated, dict) else stated
    source = "latent" if source in (None, "default") else source
    for name, place in engine.pool.sources.items():
        if source in (name, place):
            return name
    return None
