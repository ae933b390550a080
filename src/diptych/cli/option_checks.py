"""Whether options of `generate` can be meant: by themselves, before a model is opened, and for the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from diptych.core.errors import UserError
from diptych.core.image_files import read_image
from diptych.core.option_fields import Option
from diptych.core.values import ImageFile
from diptych.diffusion.sampler_options import LIMITS, read_sampler_options
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.models.first_stage import TINY
from diptych.models.option_registry import all_options, takers
from diptych.weights.hub import hub_id


def named(option: Option) -> str:
    """An option as the command line names it: `--low-res`, `--classifier or --clip`."""
    return " or ".join(option.arguments[:1] if option.flags is None else option.arguments)


def accepted_options(model: Any, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that are given, not None; a `UserError` names one that this model does not take."""
    taken = inspect.signature(model.generate).parameters
    accepted: dict[str, Any] = {}
    for key, value in options.items():
        if value is None:
            continue
        option = all_options()[key]
        if key not in taken or (option.enlarging and getattr(model, "low_size", ...) is None):
            raise UserError(f"{named(option)} is for {takers(key)}, and the model {name} is none of them: leave it out")
        if isinstance(value, list) and option.per_stage and "stop" not in taken:
            raise UserError(
                f"{named(option)} has a value for each stage, but the model {name} is no cascade: give one value"
            )
        accepted[key] = value
    return accepted


def check_options(options: Mapping[str, Any], files: Iterable[Path] = ()) -> None:
    """Raise a `UserError` for what is wrong with options or files, whatever the model is. None counts as not given."""
    options = {key: value for key, value in options.items() if value is not None}
    for key in options:
        for needed in all_options()[key].needs:
            if needed not in options:
                raise UserError(f"{named(all_options()[key])} goes with {named(all_options()[needed])}: give both")
    checks: dict[str, Callable[[Any], Any]] = {"threshold": ThresholdConfig.parse, "decoder": check_decoder}
    for key, value in options.items():
        check = read_image if isinstance(all_options()[key].value, ImageFile) else checks.get(key)
        for part in value if isinstance(value, list) else [value]:
            if check is not None and part is not None:
                check(part)
    for source, _ in options.get("guides", ()):
        if source != "judge":
            require_exists("guide", source)
    numbers = {key: options.get(key) for key in LIMITS}
    if isinstance(options.get("sampler"), str) and not any(isinstance(value, list) for value in numbers.values()):
        read_sampler_options(options["sampler"], numbers)
    for file in files:
        if not file.exists():
            raise UserError(f"there is no file or folder {file}")


def check_decoder(source: str) -> None:
    if source != TINY:
        require_exists("tiny decoder", source, hub=False)


def require_exists(what: str, source: str, hub: bool = True) -> None:
    """Raise a `UserError` where nothing lies at a place that does not name a model on the hub either."""
    if not Path(source).exists() and not (hub and hub_id(source)):
        raise UserError(f"there is no {what} at {source}")
