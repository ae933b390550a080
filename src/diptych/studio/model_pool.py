"""The models that the studio offers: opened when they are first needed, and closed where memory is short."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from diptych.core.disk import values_of
from diptych.core.errors import UserError
from diptych.encoders.base import network_of
from diptych.studio.limits import FieldError
from diptych.studio.styles import FILE, Style, read_styles


class ModelPool:
    """Models by name. At most `memory` bytes of weights are open; the least recently used is closed first."""

    def __init__(
        self,
        sources: Mapping[str, str],
        open_source: Callable[[str], Any],
        memory: int | None = None,
        styles: Mapping[str, Style] = MappingProxyType({}),
    ) -> None:
        """styles: those of all models; a model's folder may have its own."""
        if not sources:
            raise UserError("no model is named")
        self.sources, self.memory = dict(sources), memory
        self.styles = {name: {**own_styles(source), **styles} for name, source in sources.items()}
        self._open_source = open_source
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.RLock()
        self._opening = threading.Lock()
        """Held while a model is opened, which takes long: open ones are used meanwhile."""

    @property
    def default(self) -> str:
        return next(iter(self.sources))

    def loaded(self) -> list[str]:
        """Names of the open models, the least recently used first."""
        with self._lock:
            return list(self._open)

    def name_of(self, asked: Any) -> str:
        """The name of a model that a client asks for; the default where it asks for none."""
        if asked in (None, ""):
            return self.default
        if not isinstance(asked, str) or asked not in self.sources:
            raise FieldError("model", f"no model {str(asked)[:80]!r}: there are {', '.join(self.sources)}")
        return asked

    def open(self, name: str) -> Any:
        """The model, opened if it is not. Raises a `UserError` as `diptych.load` does."""
        if (model := self._of_open(name)) is not None:
            return model
        with self._opening:
            if (model := self._of_open(name)) is not None:
                return model
            if self.memory is not None:
                self._make_room(file_bytes(self.sources[name]))
            model = self._open_source(self.sources[name])
            with self._lock:
                self._open[name] = model
            if self.memory is not None:
                self._make_room(0, keep=name)
            return model

    def _of_open(self, name: str) -> Any:
        """An open model, used now; none where it is not open."""
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
            return self._open.get(name)

    def used(self) -> int:
        """Bytes of the weights that are open."""
        with self._lock:
            return sum(model_bytes(model) for model in self._open.values())

    def _make_room(self, more: int, keep: str | None = None) -> None:
        assert self.memory is not None
        with self._lock:
            while (closing := [name for name in self._open if name != keep]) and self.used() + more > self.memory:
                del self._open[closing[0]]
                gc.collect()


def model_bytes(model: Any) -> int:
    """Bytes of the parameters and buffers of a model, or of the open stages of a cascade, with first stages and text
    encoders, and of what engines compiled of them."""
    stages = [model] if isinstance(model, nn.Module) else list(getattr(model, "_open", {}).values())
    frozen = [part for stage in stages for part in getattr(stage, "_frozen", {}).values()]
    parts = [*stages, *frozen, *getattr(model, "_encoders", {}).values()]
    modules = [part if isinstance(part, nn.Module) else network_of(part) for part in parts]
    every = {id(each): each for module in modules if module is not None for each in module.modules()}
    tensors = {id(t): t for each in every.values() for t in (*each.parameters(False), *each.buffers(False))}
    runners = {id(value): value for each in every.values() for value in vars(each).values()}
    compiled = sum(getattr(runner, "compiled_bytes", 0) for runner in runners.values())
    return compiled + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def own_styles(source: str) -> dict[str, Style]:
    """The styles in a model's folder; none where it has no file of them."""
    from diptych.pretrained.load import EMBEDDED

    folder = EMBEDDED.get(source, Path(source))
    files = [file for file in (folder / FILE, folder / "model" / FILE) if file.is_file()]
    if not files and (base := base_of(folder)) is not None:
        return own_styles(base)
    return read_styles(files[0]) if files else {}


def file_bytes(source: str) -> int:
    """Bytes of the weights in a model's folder or file, as they lie there; 0 where it is not on the disk."""
    from diptych.pretrained.load import EMBEDDED

    path = EMBEDDED.get(source, Path(source))
    files = [path] if path.is_file() else path.rglob("*.safetensors") if path.is_dir() else []
    base = base_of(path)
    return sum(file.stat().st_size for file in files) + (0 if base is None else file_bytes(base))


def base_of(folder: Path) -> str | None:
    """The model that a folder with a LoRA changes, as `diptych.load` takes it; none of any other folder."""
    from diptych.pretrained.adapted_model import base_place

    for place in (folder, folder / "model"):
        values = values_of(place / "config.json")
        if values.get("kind") == "latent-lora" and isinstance(base := values.get("base"), str):
            return str(base_place(base, place))
    return None
