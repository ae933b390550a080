"""Finding a model on disk and opening it as the system that its config names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.config import read_json
from diptych.errors import NothingThere, UserError

if TYPE_CHECKING:
    from diptych.cascade import Cascade
    from diptych.latent import LatentDiffusion
    from diptych.stage import Stage

ASSETS = Path(__file__).parent / "assets"
EMBEDDED = {"latent": ASSETS / "latent", "cascade": ASSETS / "cascade"}
MADE_BY = {"latent": "default-model", "cascade": "default-cascade"}


def model_folder(source: str | Path | None) -> Path:
    """The folder with the model's config.json: `source` itself, `source`/model of a run, or an embedded default.

    Raises `NothingThere` for a default that is not in this package, and `UserError` for anything else that is no model.
    """
    if source is None or str(source) in EMBEDDED:
        panel = str(source or "latent")
        folder = EMBEDDED[panel]
        if not (folder / "config.json").is_file():
            how = f"make it with `make {MADE_BY[panel]}`, or name a run folder or model folder"
            raise NothingThere(f"the {panel} panel has no model in this package: {how}")
        return folder
    path = Path(source)
    if not path.exists():
        known = ", ".join(EMBEDDED)
        raise UserError(f"no model at {path}: give a run folder or model folder, or an embedded model ({known})")
    if path.is_file():
        raise UserError(f"{path} is a file: give the run folder or model folder that it lies in")
    if (path / "model" / "config.json").is_file():
        return path / "model"
    if (path / "checkpoints").is_dir():
        raise UserError(f"the run in {path} is not finished: go on with `diptych train` and the same arguments")
    return path


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder; its `kind` says what the folder holds."""
    path = folder / "config.json"
    values = read_json(path, missing=f"{folder} is no model: it has no config.json")
    if isinstance(values, dict) and {"system", "training"} <= values.keys():
        raise UserError(f"the run in {folder} is not finished: go on with `diptych train` and the same arguments")
    if not isinstance(values, dict) or "kind" not in values:
        raise UserError(f"{path} does not say what kind of model it is")
    return values


def open_model(source: str | Path | None) -> LatentDiffusion | Stage | Cascade:
    """The system in a folder, on the CPU, ready to generate."""
    folder = model_folder(source)
    values = read_config(folder)
    kind = values["kind"]
    if kind == "latent":
        from diptych.latent import LatentDiffusion

        return LatentDiffusion.load(values, folder)
    if kind == "cascade":
        from diptych.cascade import Cascade

        return Cascade.load(values, folder)
    if kind == "stage":
        from diptych.stage import Stage

        return Stage.load(values, folder)
    raise UserError(f"{folder} holds a model of kind {kind!r}, which does not paint from words")
