"""The cascade panel: Imagen. Text -> small picture -> larger -> larger still (Saharia et al. 2022, section 2)."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diptych.checks import initial, said, wholes
from diptych.conditioning.cache import CachedTexts
from diptych.config import Config
from diptych.errors import UserError
from diptych.generation import Callback, Order, Result
from diptych.pictures import to_images, to_tensor
from diptych.stage import Stage, embed_order
from diptych.stage_config import Settings, StageConfig, read_settings
from diptych.weights.files import replacing, write_text


@dataclass(frozen=True, kw_only=True)
class CascadeConfig(Config):
    """Which stages stand behind one another."""

    kind: Literal["cascade"] = "cascade"
    """Which system this is."""
    stages: tuple[str, ...] = ()
    """Folders of the stages beside this config, in the order in which they run."""

    def check(self) -> None:
        self.require(len(self.stages) > 0, "stages", "name at least one folder")
        plain = all(name and Path(name).name == name for name in self.stages)
        self.require(plain, "stages", "name folders that lie beside the config")


class Cascade:
    """A base stage and the super-resolution stages behind it. Each was trained alone; they meet only here.

    Stages that came from a folder are opened when they are first needed.
    """

    def __init__(self, configs: Sequence[StageConfig], sources: Sequence[Stage | Path]) -> None:
        check_chain(configs)
        self.configs = list(configs)
        self._sources = list(sources)
        self._open: dict[int, Stage] = {}
        self._texts: dict[str, CachedTexts] = {}
        self.device = torch.device("cpu")

    @classmethod
    def of(cls, stages: Sequence[Stage]) -> Cascade:
        """A cascade of stages that are in memory."""
        return cls([stage.config for stage in stages], stages)

    def to(self, device: str | torch.device) -> Cascade:
        self.device = torch.device(device)
        for stage in self._open.values():
            stage.to(self.device)
        for texts in self._texts.values():
            texts.model.to(self.device)
        return self

    def stage(self, number: int) -> Stage:
        """Stage `number`, from 0, opened if it is not in memory."""
        if number not in self._open:
            source = self._sources[number]
            stage = source if isinstance(source, Stage) else open_stage(source)
            self._open[number] = stage.to(self.device).eval()
        return self._open[number]

    @property
    def networks(self) -> list[torch.nn.Module]:
        """The networks of all stages."""
        return [self.stage(number).network for number in range(len(self.configs))]

    @property
    def size(self) -> int:
        """Side of the pictures of the last stage."""
        return self.configs[-1].size

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        steps: Any = None,
        guidance: Any = None,
        sampler: Any = None,
        threshold: Any = None,
        augmentation: Any = None,
        negative: str | Sequence[str] | None = None,
        low: Any = None,
        start: int | None = None,
        stop: int | None = None,
        noise: Tensor | None = None,
        keep: bool = False,
        one_at_a_time: bool = False,
        callback: Callback | None = None,
    ) -> Result:
        """Paint one picture for each prompt, stage by stage.

        Args:
            prompts, seeds, negative: as for the latent panel. Each stage draws noise of its own from a picture's seed.
            steps, guidance, sampler, threshold, augmentation: one value for all stages, or a list with one for each, in
                which None is the stage's own default. Augmentation is for those that enlarge.
            low: a picture of your own (PIL or a path), one or one for each prompt, in the place of the first stages.
            start: number of the stage (from 0) that enlarges `low`; the first that enlarges if none.
            stop: number of the stage after which to stop, counted from 1; all if none.
            noise: initial noise (B, 3, H, W) of the first stage that runs, in the place of the seeds' own.
            keep: give the pictures of every stage too, as `Result.stages`.
            one_at_a_time: hold one stage in memory at a time, and the text encoder only while it reads.
            callback: called with (step, steps, x0 estimate), steps counted over all stages; raise to cancel.

        Raises:
            UserError: as for the latent panel; a stage is missing, damaged or was never trained; `low` is no picture.
        """
        order = Order.read(prompts, seeds, negative)
        first, last = self._range(low, start, stop)
        if one_at_a_time and not all(isinstance(source, Path) for source in self._sources):
            raise UserError(
                "stages that were never saved cannot be opened one at a time: load the cascade from a folder"
            )
        numbers = range(first, last)
        settings = self._settings(numbers, steps, guidance, sampler, threshold, augmentation)
        words = self._words(order, numbers, one_at_a_time)
        total, done, pictures = sum(one.steps for one in settings.values()), 0, None
        kept: list[list] = []
        for number in numbers:
            stage, own = self.stage(number), settings[number]
            if number == first and first > 0:
                pictures = stage.read_low(low, len(order))
            side = self.configs[number].size if pictures is None else None
            size = (side, side) if side else tuple(n * stage.config.factor for n in pictures.shape[-2:])  # type: ignore
            given = initial(noise, (len(order), 3, *size)) if noise is not None and number == first else None

            def show(step: int, steps: int, x0: Tensor, done: int = done) -> None:
                if callback is not None:
                    callback(done + step, total, x0)

            text = self.configs[number].text
            pictures = stage.sample(
                None if text is None else words[text.to_json()],
                order.seeds,
                size,  # type: ignore[arg-type]
                own,
                pictures,
                noise=given,
                callback=show,
            )
            images = to_images(pictures)
            pictures = to_tensor(images).to(self.device)  # what the next stage sees is what a file would hold
            kept.append(images)
            done += own.steps
            if one_at_a_time:
                del stage
                self._open.pop(number)
        common: dict[str, Any] = {"stages": [{"stage": self.configs[n].name, **settings[n].told()} for n in numbers]}
        common["size"] = list(kept[-1][0].size)
        if noise is not None:
            common["noise"] = "given"
        if low is not None:
            common["low"] = "given"
        return Result(kept[-1], order.metadata(common), kept if keep else [])

    def _range(self, low: Any, start: int | None, stop: int | None) -> tuple[int, int]:
        """The stages that run."""
        count = len(self.configs)
        (stop,) = wholes("stop", [count if stop is None else stop])
        if low is None and start is not None:
            raise UserError("start goes with a low-resolution picture: give one, or leave start out")
        if low is not None and count == 1 and self.configs[0].low_size is None:
            raise UserError("this cascade has no stage that enlarges: leave the low-resolution picture out")
        base = self.configs[0].low_size is None
        (start,) = wholes("start", [(1 if base else 0) if start is None else start]) if low is not None else (0,)
        if low is None and not base:
            raise UserError("this cascade has no base stage: give it a low-resolution picture")
        if not (start < stop <= count) or start < (1 if base and low is not None else 0):
            raise UserError(f"the cascade has {count} stages: cannot run from stage {start} to before stage {stop}")
        return start, stop

    def _settings(self, numbers: range, *given: Any) -> dict[int, Settings]:
        """Each stage's settings, from what was given for all or for each."""
        names = ("steps", "guidance", "sampler", "threshold", "augmentation")
        rows: dict[int, dict[str, Any]] = {number: {} for number in numbers}
        for name, value in zip(names, given, strict=True):
            values = list(value) if isinstance(value, (list, tuple)) else [value] * len(self.configs)
            if len(values) not in (len(numbers), len(self.configs)):
                raise UserError(
                    f"give one {name} for all {len(self.configs)} stages or one for each, not {said(value)}"
                )
            values = values if len(values) == len(numbers) else [values[number] for number in numbers]
            for number, one in zip(numbers, values, strict=True):
                rows[number][name] = one
        return {number: read_settings(self.configs[number], **row) for number, row in rows.items()}

    def _words(self, order: Order, numbers: range, one_at_a_time: bool) -> dict[str, Any]:
        """The embeddings of the prompts by each text encoder that a stage reads; each reads them once."""
        words = {}
        for config in {text.to_json(): text for n in numbers if (text := self.configs[n].text) is not None}.values():
            key = config.to_json()
            if key not in self._texts:
                self._texts[key] = CachedTexts(config)
                self._texts[key].model.to(self.device)
            words[key] = embed_order(self._texts[key], order)
            if one_at_a_time:
                self._texts[key].unload()
        return words

    # Files: config.json and a folder for each stage.

    def save(self, folder: Path, dtype: str = "float32") -> None:
        """Write the cascade as a folder that `diptych.load` opens."""
        for number, config in enumerate(self.configs):
            self.stage(number).save(folder / f"stage-{config.name}", dtype)
        names = tuple(f"stage-{config.name}" for config in self.configs)
        write_text(folder / "config.json", CascadeConfig(stages=names).to_json())

    @classmethod
    def load(cls, values: dict[str, Any], folder: Path) -> Cascade:
        """Open a folder that `save` wrote. Weights are read when a stage is first needed; what a `UserError` can tell
        without them, it tells now.
        """
        try:
            names = CascadeConfig.from_dict(values).stages
        except UserError as error:
            raise UserError(f"{folder / 'config.json'}: {error}") from None
        folders = [folder / name for name in names]
        return cls([read_stage(one) for one in folders], folders)


def assemble(sources: Sequence[Path], out: Path) -> Path:
    """Copy trained stages, base first, into one cascade folder. A `UserError` says which of them do not fit."""
    configs = [read_stage(source) for source in sources]
    check_chain(configs)
    for source in sources:
        open_stage(source)  # whole, of this stage, and trained
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        names = tuple(f"stage-{config.name}" for config in configs)
        for source, name in zip(sources, names, strict=True):
            shutil.copytree(source, partial / name)
        write_text(partial / "config.json", CascadeConfig(stages=names).to_json())
    return out


def read_stage(folder: Path) -> StageConfig:
    """The config of a stage's folder."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"the cascade lacks a stage: there is no {path}") from None
    except (ValueError, RecursionError, OSError):
        raise UserError(f"{path} is not readable JSON") from None
    kind = values.get("kind") if isinstance(values, dict) else None
    if kind != "stage":
        raise UserError(f"{folder} holds a model of kind {kind!r}, not a stage of a cascade")
    try:
        return StageConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def open_stage(folder: Path) -> Stage:
    return Stage.load(read_stage(folder).to_dict(), folder)


def check_chain(configs: Sequence[StageConfig]) -> None:
    """Each stage must enlarge what the one before it makes."""
    if not configs:
        raise UserError("a cascade needs at least one stage")
    for before, after in itertools.pairwise(configs):
        if after.low_size != before.size:
            does = f"enlarges {after.low_size}-px pictures" if after.low_size else "is a base stage"
            made = f"which makes {before.size}-px pictures"
            raise UserError(f"stage {after.name} cannot follow stage {before.name}, {made}: it {does}")
