"""What decides a set of images, written as `set.json` into its folder: with other values it is another set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diptych.core.disk import values_of, write_text
from diptych.core.errors import UserError
from diptych.core.folder_lock import locked
from diptych.core.hashing import stable_hash
from diptych.core.option_fields import options_of
from diptych.core.terminal import print_err
from diptych.core.values import MOST, ImageFile, Integer, checked
from diptych.evaluation.folder import differences, require_folder
from diptych.evaluation.runner import config_hash, model_fingerprint
from diptych.evaluation.set_files import MARK, present, require_bare, require_ours
from diptych.evaluation.set_plan import SetPlan
from diptych.models.option_registry import MODELS
from diptych.weights.identity import Origin

COMPARED = ("prompts", "model", "settings")
"""Entries of `MARK` that must be equal for a set to be continued."""
BATCH = 8
WITHOUT_EFFECT = ("keep_stages", "one_at_a_time")


@dataclass(frozen=True)
class SetMark:
    """The content of `set.json`, apart from the size of its batches."""

    head: Mapping[str, Any]
    """`COMPARED`: all that decides the images. Values are as they are when they are read again."""
    about: Mapping[str, Any]
    """What nothing depends on: where prompts and model come from."""

    @classmethod
    def of(
        cls,
        model: Any,
        plan: SetPlan,
        options: Mapping[str, Any],
        quality: int,
        source: str | None,
        drawn: Mapping[str, Any] | None,
    ) -> SetMark:
        """That of a set which `generate_set` begins; arguments as there."""
        settings = {"images_per_prompt": plan.copies, "seed": plan.seed, "format": plan.format}
        settings |= {"quality": quality} if plan.format == "jpeg" else {}
        settings |= {"negative": plan.negative} if plan.negative else {}
        deciding = {name: value for name, value in options.items() if name not in WITHOUT_EFFECT}
        settings |= {name: described_option(model, name, value) for name, value in deciding.items()}
        prompts = {"rows": len(plan.rows), "sha256": plan.sha256}
        head = {"prompts": prompts, "model": model_state(model), "settings": settings}
        origin = getattr(getattr(model, "origin", None), "source", None)
        about = {"source": source, "drawn": drawn or None, "model_source": origin}
        return cls(json.loads(json.dumps(head, default=str)), about)

    @property
    def digest(self) -> str:
        """Written into each image: of all that decides the set's pixels."""
        return f"{stable_hash(json.dumps(self.head, sort_keys=True)):016x}"

    def text(self, batch: int) -> str:
        """The file."""
        made = {"batch": batch, "threads": torch.get_num_threads()}
        return json.dumps({"set": 1, **self.head, **made, **self.about}, indent=2) + "\n"


def begin(out: Path, mark: SetMark, batch: int | None) -> int:
    """Make `out` the folder of a set, or go on with the same one. Returns the size of its batches."""
    require_folder(out)
    with locked(out):
        require_ours(out)
        before = values_of(out / MARK)
        same = {name: before.get(name) for name in COMPARED}
        if same != mark.head and not present(out):  # new, or begun with what no image could be made of
            require_bare(out)
            begun: int = BATCH if batch is None else checked("batch", Integer(1, MOST).check, batch)
            write_text(out / MARK, mark.text(begun))
            return begun
    if same != mark.head:
        raise UserError(f"{out} holds a set of other {differences(same, mark.head)}: name another folder as --out")
    begun = before.get("batch", BATCH)
    if batch is not None and batch != begun:
        print_err(
            f"{out} was begun in batches of {begun}: images of batches of {batch} may differ from those of one run "
            "in their last bits"
        )
    threads, now = before.get("threads"), torch.get_num_threads()
    if threads not in (None, now) and mark.head["model"].get("device", "cpu") == "cpu":
        print_err(
            f"{out} was begun with {threads} threads a process: images made with {now} may differ from those of one "
            f"run in their last bits; OMP_NUM_THREADS={threads} sets the number"
        )
    return batch or begun


def model_state(model: Any) -> dict[str, Any]:
    """What decides a model's images, apart from options: files, how they were read, LoRA, device."""
    origin: Origin | None = getattr(model, "origin", None)
    if origin is None:
        state = {"class": type(model).__name__, "fingerprint": model_fingerprint(model), "config": config_hash(model)}
    else:
        state = {key: value for key, value in origin.metadata().items() if key != "source"}
    if adapters := getattr(model, "adapters", None):
        from diptych.weights.file_hash import named_file

        state["lora"] = [{"sha256": named_file(name)["sha256"], "scale": scale} for name, scale in adapters.items()]
    device = getattr(model, "device", None)
    return {**state, **({} if device is None else {"device": str(device).partition(":")[0]})}


def described_option(model: Any, name: str, value: Any) -> Any:
    """An option as `set.json` has it: files by their content."""
    option = next((table[name] for kind in MODELS.values() if name in (table := options_of(kind))), None)
    if option is not None and isinstance(option.value, ImageFile):
        from diptych.models.given_files import given_metadata

        return [one.get("sha256") for one in given_metadata(value, 1)]
    if name == "guides":
        from diptych.models.guides import guides_metadata

        return guides_metadata(tuple(value))
    if name == "decoder" and hasattr(model, "decoder"):
        from diptych.weights.fingerprint import fingerprint

        return fingerprint(model.decoder(value))
    return value
