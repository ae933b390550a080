"""Finding a model, on disk or on the hub, and opening it as the system that its config or its layout names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from diptych.core.config import read_json
from diptych.core.devices import find_device
from diptych.core.errors import NotFound, UserError, pick
from diptych.core.values import short_repr
from diptych.models.kinds import MODEL_KINDS, imported
from diptych.weights.bounds import bounded, stored_tensors
from diptych.weights.hub import fetch_model, hub_id
from diptych.weights.identity import Origin
from diptych.weights.tensors import is_weights

if TYPE_CHECKING:
    from diptych.models.autoregressive import Autoregressive
    from diptych.models.cascade import Cascade
    from diptych.models.latent_diffusion import LatentDiffusion
    from diptych.models.pixel_diffusion import PixelDiffusion
    from diptych.networks.autoencoder import Autoencoder
    from diptych.networks.tiny_decoder import TinyDecoder
    from diptych.pretrained.source import Options

ASSETS = Path(__file__).resolve().parent.parent / "assets"
EMBEDDED = {name: ASSETS / name for name in ("latent", "latent-4-steps", "cascade")}
MADE_BY = {"latent": "default-model", "latent-4-steps": "default-4-steps", "cascade": "default-cascade"}
DTYPES = ("float32", "float16", "bfloat16")
"""What networks may be of."""
OTHER_NETWORKS = {"Autoencoder": "an autoencoder or first stage", "NoisyClassifier": "a noisy classifier"}
"""Classes of networks that are published alone."""


def model_folder(source: str | Path | None) -> Path:
    """The folder with the model's config.json: `source` itself, `source`/model of a run, or an embedded default.

    Raises `NotFound` for a default that is not in this package, and `UserError` for anything else that is no model.
    """
    if source is None or str(source) in EMBEDDED:
        panel = str(source or "latent")
        folder = EMBEDDED[panel]
        if not (folder / "config.json").is_file():
            how = f"make it with `make {MADE_BY[panel]}`, or name a run folder or model folder"
            raise NotFound(f"this package has no {panel} model: {how}")
        return folder
    path = Path(source)
    if not path.exists():
        names = ", ".join(EMBEDDED)
        raise UserError(
            f"no model at {path}: give a run folder or model folder, a model of the package ({names}), a file of "
            "published weights, or the hub's owner/name"
        )
    if path.is_file():
        raise UserError(f"{path} is a file: give the run folder or model folder that it lies in")
    if (path / "model" / "config.json").is_file():
        return path / "model"
    if (path / "checkpoints").is_dir():
        raise UserError(f"the run in {path} is not finished: go on with `diptych train` and the same arguments")
    if not (path / "config.json").is_file():
        from diptych.pretrained.unsupported import other_folder

        if (what := other_folder(path)) is not None:
            raise UserError(f"{path} {what}")
    return path


def find(
    source: str | Path | None, *, revision: str | None = None, offline: bool = False, allow_pickle: bool = False
) -> Path:
    """A model of ours as `model_folder` finds it, or a published one: its folder or file, fetched where `source` is an
    id of the hub (of a `revision`, or from the cache alone: `offline`).

    Raises a `UserError` where there is none, as `model_folder` and `weights.hub.fetched` do.
    """
    name = str(source)
    local = source is None or name in EMBEDDED or Path(name).exists()
    if not local and (repository := hub_id(name)):
        path = fetch_model(*repository, revision=revision, offline=offline, pickles=allow_pickle)
    elif revision is not None:
        raise UserError(f"a revision ({revision!r}) is for models of the hub, owner/name, which {source} is not")
    elif source is None or name in EMBEDDED:
        return model_folder(source)
    else:
        path = Path(name)
    return path if is_published(path) else model_folder(path)


def is_published(path: Path) -> bool:
    """A file of weights, or a folder in a published layout; one with a config of ours is ours, whatever lies in it."""
    if path.is_file():
        return is_weights(path)
    if (path / "model_index.json").is_file() or _published_config(path / "config.json"):
        return True
    if (path / "config.json").exists() or (path / "model" / "config.json").is_file():
        return False
    parts = path.glob("*/config.json")
    return any(path.glob("*/model_index.json")) or any(_published_config(config) for config in parts)


def _published_config(path: Path) -> bool:
    """Whether a config.json is one of diffusers, which says the network's class."""
    try:
        values = read_json(path)
    except UserError:
        return False
    return isinstance(values, dict) and "_class_name" in values


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder; its `kind` says what the folder holds."""
    path = folder / "config.json"
    values = read_json(path, missing=f"{folder} is no model: it has no config.json")
    if isinstance(values, dict) and {"system", "training"} <= values.keys():
        raise UserError(f"the run in {folder} is not finished: go on with `diptych train` and the same arguments")
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        model = values.get("model_type") if isinstance(values, dict) else None
        what = (
            f": it is of a model of transformers ({short_repr(model)}), a text encoder or the like alone"
            if model
            else ""
        )
        raise UserError(f"{path} does not say what kind of model it is{what}")
    return values


def open_model(
    source: str | Path | None,
    *,
    revision: str | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
    tokenizer: str | Path | None = None,
    dtype: str = "float32",
    ema: bool = False,
    prediction: Literal["eps", "v"] | None = None,
) -> LatentDiffusion | PixelDiffusion | Cascade | Autoregressive:
    """The system in a folder or file, or on the hub, on the CPU, ready to generate; `diptych.load` says the rest."""
    options = read_options(allow_pickle, tokenizer, dtype, ema, prediction)
    path = find(source, revision=revision, offline=offline, allow_pickle=allow_pickle)
    said = {"revision": revision, "dtype": dtype if dtype != "float32" else None, "ema": ema or None}
    said |= {"prediction": prediction, "tokenizer": None if tokenizer is None else str(tokenizer)}
    origin = Origin(str(source or "latent"), path, {key: value for key, value in said.items() if value is not None})

    def known_by(system: Any) -> Any:
        system.origin = origin
        return system

    if is_published(path):
        from diptych.pretrained.families import open_published

        system = open_published(path, options)
        if not hasattr(system, "generate"):
            what = OTHER_NETWORKS.get(type(system).__name__, "a network")
            raise UserError(f"{path} holds {what} alone, which generates no images; `diptych info` describes it")
        return known_by(system)
    require_unread(options, path)
    return known_by(open_own(path))


def load(
    source: str | Path | None = None,
    device: str = "auto",
    *,
    lora: Any = None,
    engine: str = "auto",
    precision: str = "auto",
    offload: str = "none",
    weight_precision: str = "stored",
    **opening: Any,
) -> LatentDiffusion | PixelDiffusion | Cascade | Autoregressive:
    """The model of `open_model` on a device, with LoRA files on it, run by an engine: what `diptych.load` does, which
    says the rest."""
    from diptych.engines.accelerate import accelerate, choose_engine
    from diptych.engines.compute_precision import choose_precision
    from diptych.engines.memory_options import engine_for, offload_on, placed

    where = find_device(device)
    offload = offload_on(where, offload)
    engine = engine_for(engine, offload, weight_precision, precision)
    choose_engine(engine, where, choose_precision(precision, where))  # or an error, before anything is read
    model: Any = placed(open_model(source, **opening), where, engine, offload, weight_precision)
    if lora is not None:
        from diptych.pretrained.lora_files import attach_files

        attach_files(model, lora, opening.get("allow_pickle", False))
    model.origin = model.origin.with_options(accelerate(model, engine, precision))
    return model


def open_autoencoder(source: str | Path | None, **opening: Any) -> Autoencoder:
    """The autoencoder in whatever holds one, on the CPU: a run or model folder of a first stage or of a latent model,
    an embedded model, a published latent model, or an autoencoder published alone. Only its weights are read.

    `opening` is as for `open_model`. Raises a `UserError` that names what is there instead.
    """
    from diptych.models.first_stage import load_autoencoder
    from diptych.networks.autoencoder import AutoencoderConfig
    from diptych.pretrained.families import open_published_first_stage

    path, options = located(source, **opening)
    if is_published(path):
        if (module := open_published_first_stage(path, options)) is not None:
            return module
    else:
        values = read_config(path)
        kind = MODEL_KINDS.get(values["kind"])
        if kind is not None and (field := kind.first_stage) in values:
            return load_autoencoder(AutoencoderConfig.from_dict(values[field]), path)
    raise UserError(f"{path} holds no autoencoder: name a latent model, or the run that trained a first stage")


def open_tiny_decoder(source: str | Path, autoencoder: Autoencoder) -> TinyDecoder:
    """The tiny decoder in a run or model folder, on the CPU; a `UserError` where it is none of this autoencoder's."""
    from diptych.models.first_stage import load_tiny_decoder, require_fits

    decoder = load_tiny_decoder(source)
    require_fits(decoder, autoencoder)
    return decoder


def read_options(
    allow_pickle: bool = False,
    tokenizer: str | Path | None = None,
    dtype: str = "float32",
    ema: bool = False,
    prediction: Literal["eps", "v"] | None = None,
) -> Options:
    """The options of a file, checked."""
    from diptych.pretrained.source import Options

    pick("dtype", dtype, DTYPES)
    if prediction is not None:
        pick("prediction", prediction, ("eps", "v"))
    folder = Path(tokenizer) if tokenizer is not None else None
    if folder is not None and not folder.is_dir():
        raise UserError(f"there is no folder {folder} with a tokenizer")
    return Options(
        allow_pickle=allow_pickle, tokenizer=folder, dtype=getattr(torch, dtype), ema=ema, prediction=prediction
    )


def located(source: str | Path | None, **opening: Any) -> tuple[Path, Options]:
    """Where a model is, and how it is to be read. A `UserError` for an option that has no effect on one of ours."""
    where = {key: opening[key] for key in ("revision", "offline", "allow_pickle") if key in opening}
    options = read_options(**{key: opening[key] for key in opening if key not in ("revision", "offline")})
    path = find(source, **where)
    if not is_published(path):
        require_unread(options, path)
    return path, options


def require_unread(options: Options, where: Path | str) -> None:
    """Raise a `UserError` for an option that says how a published model is read, where there is none."""
    for name, value in (
        ("tokenizer", options.tokenizer),
        ("ema", options.ema),
        ("dtype", options.dtype != torch.float32),
        ("prediction", options.prediction),
    ):
        if value:
            raise UserError(f"{name} is for published weights, which {where} is not")


def open_own(folder: Path) -> LatentDiffusion | PixelDiffusion | Cascade | Autoregressive:
    """The system in a model folder of ours. A `UserError` for configs that describe more than the files hold."""
    values = read_config(folder)
    with bounded(stored_tensors(folder), folder):
        kind = MODEL_KINDS.get(values["kind"])
        if kind is None or kind.model is None:
            raise UserError(f"{folder} holds a model of kind {values['kind']!r}, which generates no images")
        return imported(kind.model).load(values, folder)
