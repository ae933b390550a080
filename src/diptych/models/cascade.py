"""The cascade panel: Imagen. Text -> small picture -> larger -> larger still (Saharia et al. 2022, section 2)."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.core.checks import initial, wholes
from diptych.core.config import Config
from diptych.core.disk import replacing, write_text
from diptych.core.errors import UserError
from diptych.core.images import to_images, to_tensor
from diptych.encoders.base import PromptOptions, network_of
from diptych.encoders.configs import ClassConfig, FrozenConfig, JointTransformerConfig, T5Config, build_reader
from diptych.models.guides import Guides, guides_metadata
from diptych.models.init_image import InitImage, taken
from diptych.models.lowres_image import fit_of
from diptych.models.pixel_config import (
    PixelDiffusionConfig,
    SamplingSettings,
    read_low,
    read_painted,
    read_settings,
    read_stage,
    require_trained,
)
from diptych.models.pixel_diffusion import PixelDiffusion, check_stated, embed_order
from diptych.models.request import Callback, OneLineRepr, Request, Result, counted, one_each
from diptych.models.sampling import Cost
from diptych.weights.identity import identity
from diptych.weights.model_folder import CASCADE, model_place

if TYPE_CHECKING:
    from diptych.encoders.prompt_domain import PromptDomain


@dataclass(frozen=True, kw_only=True)
class CascadeConfig(Config):
    """Which stages stand behind one another."""

    kind: Literal["cascade"] = "cascade"
    """Which system this is."""
    stages: tuple[str, ...] = ()
    """Folders of the stages beside this config, in the order in which they run."""

    def check(self) -> None:
        self.require(len(self.stages) > 0, "stages", "name at least one folder")
        plain = all(name not in ("", "..") and Path(name).name == name for name in self.stages)
        self.require(plain, "stages", "name folders that lie beside the config")

    @classmethod
    def of(cls, stages: Sequence[PixelDiffusionConfig]) -> CascadeConfig:
        return cls(stages=tuple(f"stage-{stage.name}" for stage in stages))


class Cascade(OneLineRepr):
    """A base stage and the super-resolution stages behind it. Each was trained alone; they meet only here.

    Stages that lie in folders are opened when they are first needed, and so are the text encoders.
    """

    def __init__(self, configs: Sequence[PixelDiffusionConfig], folders: Sequence[Path] = ()) -> None:
        check_chain(configs)
        self.configs, self._folders = list(configs), list(folders)
        self._open: dict[int, PixelDiffusion] = {}
        self._encoders: dict[FrozenConfig | JointTransformerConfig | ClassConfig, Any] = {}  # frozen ones
        self.device = torch.device("cpu")
        self.familiar: PromptDomain | None = None

    @classmethod
    def of(cls, stages: Sequence[PixelDiffusion]) -> Cascade:
        """A cascade of stages that are in memory, on the device of the first; their text encoders are its own."""
        cascade = cls([stage.config for stage in stages])
        cascade._open = {number: stage.eval() for number, stage in enumerate(stages)}
        for stage in stages:
            if stage.config.text is not None and stage.reads and stage.joint_text is None:
                cascade._encoders[stage.config.text] = stage.text
        return cascade.to(stages[0].device)

    def to(self, device: str | torch.device) -> Cascade:
        self.device = torch.device(device)
        for stage in self._open.values():
            stage.to(self.device)
        for encoder in self._encoders.values():
            if (network := network_of(encoder)) is not None:
                network.to(self.device)
        return self

    def stage(self, number: int) -> PixelDiffusion:
        """Stage `number`, from 0, opened if it is not in memory."""
        if number not in self._open:
            self._open[number] = open_stage(self._folders[number]).to(self.device)
        return self._open[number]

    @property
    def networks(self) -> list[nn.Module]:
        """The networks of all stages."""
        return [self.stage(number).network for number in range(len(self.configs))]

    @property
    def stage_sizes(self) -> list[tuple[int, int | None]]:
        """Of each stage the side of its images, and of its low-resolution input, none for a base stage."""
        return [(config.size, config.low_size) for config in self.configs]

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        steps: Any = None,
        guidance: Any = None,
        sampler: Any = None,
        schedule_type: Any = None,
        threshold: Any = None,
        augmentation: Any = None,
        negative: str | Sequence[str] | None = None,
        low: Any = None,
        start: int | None = None,
        stop: int | None = None,
        noise: Tensor | None = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        paste: bool = False,
        fit: str | None = None,
        keep: bool = False,
        one_at_a_time: bool = False,
        guides: Guides = (),
        weights: bool = False,
        long_prompts: str = "refuse",
        callback: Callback | None = None,
    ) -> Result:
        """Paint one picture for each prompt, stage by stage.

        Args:
            prompts, seeds, negative: as for the latent panel. Each stage draws noise of its own from a picture's seed.
            steps, guidance, sampler, schedule_type, threshold, augmentation: one value for all stages, or a list with
                one for each (of those that run, or of all), in which None is the stage's own default. Augmentation is
                for those that enlarge, guidance for those with words.
            low: a picture of your own (PIL or a path), one or one for each prompt, in the place of the first stages.
            start: number of the stage (from 0) that enlarges `low`; the first that enlarges if none.
            stop: number of the stage after which to stop, counted from 1; all if none.
            noise: initial noise (B, 3, H, W) of the first stage that runs, in the place of the seeds' own.
            image, strength, mask, paste, fit: as for the latent panel, at the size of the last stage. The base
                paints it over, made small, and the others enlarge that; of what a mask leaves alone each stage is shown
                the picture at its own size, and those pixels stay as they are in any case.
            keep: give the pictures of every stage too, as `Result.stages`. One of them, as `low` of the next stage and
                with the same seeds, makes the same pictures.
            one_at_a_time: hold one stage in memory at a time, and the text encoder only while it reads.
            guides: as for the latent panel. They steer the first stage that runs, which decides what is shown.
            weights, long_prompts: as for the latent panel.
            callback: called with (step, steps, x0 estimate), steps counted over all stages; raise to cancel.

        Raises:
            UserError: as for the latent panel; a stage is missing, damaged or was never trained; `low` is no picture.
        """
        reading, shown = PromptOptions.read(weights, long_prompts), not (image is None and low is None)
        order = Request.read(prompts, seeds, negative, shown, reading=reading)
        numbers = self._numbers(low, start, stop)
        settings = self._settings(numbers, steps, guidance, sampler, schedule_type, threshold, augmentation)
        first, *later = self.configs[numbers.start : numbers.stop]
        fitted = fit_of(images := read_low(first, low, len(order), later, fit))
        asked = {"image": image, "strength": strength, "mask": mask, "paste": paste, "fit": None if images else fit}
        original = read_painted([first, *later], len(order), settings[numbers.start].steps, **asked)
        originals = {} if original is None else self._originals(original, numbers)
        width, height = (side * first.factor for side in images[0].size) if images else (first.size, first.size)
        if original is not None:
            width, height = originals[numbers.start].sides
        steps = {n: settings[n].steps for n in numbers}
        steps |= {n: taken(steps[n], one.strength) for n, one in originals.items()}
        given = None if noise is None else initial(noise, (len(order), 3, height, width))
        if one_at_a_time and not self._folders:
            raise UserError("stages that lie in no folder cannot be opened one at a time: save and load the cascade")
        if one_at_a_time:
            self._open.clear()
        for number in () if one_at_a_time else numbers:  # before any work
            require_trained(self.stage(number).network, f"the stage {self.configs[number].name}")
        try:
            words = self._words(order, numbers, one_at_a_time)
            total, done = sum(steps.values()), 0
            kept: list[list[Image.Image]] = []
            costs: list[dict[str, Any]] = []
            for number in numbers:
                cost = Cost(self.stage(number).denoiser, len(order))
                pictures = self.stage(number).sample(
                    words.get(number),
                    order.seeds,
                    settings[number],
                    size=(height, width),
                    low=to_tensor(images) if images else None,  # what a stage sees is what a file would hold
                    noise=given,
                    original=originals.get(number),
                    guides=guides if number == numbers.start else (),
                    prompts=order.prompts,
                    callback=counted(callback, done, total),
                )
                images = to_images(pictures)
                kept.append(images)
                costs.append(cost.metadata())
                given, done = None, done + steps[number]
                if one_at_a_time:
                    self._open.clear()
        finally:
            if one_at_a_time:
                self._open.clear()
                self._encoders.clear()
        each = zip(numbers, costs, strict=True)
        told = [{"stage": self.configs[n].name, **settings[n].told(), **cost} for n, cost in each]
        common: dict[str, Any] = {"stages": told, "size": list(kept[-1][0].size), **guides_metadata(guides)}
        common |= {} if original is None else original.told()
        common |= {} if low is None else {"start": numbers.start, **({"fit": fitted} if fitted else {})}
        common |= {} if numbers.stop == len(self.configs) else {"stop": numbers.stop}
        handed = {"image": image, "mask": mask, "low": low, "noise": noise}
        return Result(kept[-1], order.metadata(identity(self, "cascade"), common, **handed), kept if keep else [])

    def _numbers(self, low: Any, start: int | None, stop: int | None) -> range:
        """The stages that run."""
        count, base = len(self.configs), self.configs[0].low_size is None
        if low is None and not base:
            raise UserError("this cascade has no base stage: give it a low-resolution picture")
        if low is None and start is not None:
            raise UserError("start goes with a low-resolution picture: give one, or leave start out")
        least = 0 if low is None or not base else 1  # a base stage enlarges nothing
        if least == count:
            raise UserError("this cascade has no stage that enlarges: leave the low-resolution picture out")
        (first,) = wholes("start", [least if start is None else start])
        (last,) = wholes("stop", [count if stop is None else stop])
        if not least <= first < count:
            raise UserError(f"start must be the number of a stage that enlarges, {least} to {count - 1}, not {first}")
        if not first < last <= count:
            raise UserError(f"stop must be a number of stages, {first + 1} to {count}, not {last}")
        return range(first, last)

    def _originals(self, original: InitImage, numbers: range) -> dict[int, InitImage]:
        """What each stage paints over, at its own size: the first all of it, the others what a mask marks, anew."""
        found, factor = {}, 1
        for number in reversed(numbers):
            if number == numbers.start:
                found[number] = original.smaller(factor, original.strength)
            elif original.mask is not None:
                found[number] = original.smaller(factor, 1.0)
            factor *= self.configs[number].factor
        return found

    def _settings(self, numbers: range, *given: Any) -> dict[int, SamplingSettings]:
        """Each stage's settings, from what was given for all or for each."""
        names = ("steps", "guidance", "sampler", "schedule_type", "threshold", "augmentation")
        count = len(self.configs)
        each = {name: one_each(name, value, numbers, count) for name, value in zip(names, given, strict=True)}
        return {n: read_settings(self.configs[n], **{name: each[name][n] for name in names}) for n in numbers}

    def _words(self, order: Request, numbers: range, one_at_a_time: bool) -> dict[int, Any]:
        """What each stage reads: the embeddings by its text encoder. An encoder reads once for all stages alike."""
        words = {}
        for config in dict.fromkeys(self.configs[number].text for number in numbers):
            if config is None:
                continue
            if isinstance(config, JointTransformerConfig):  # a part of its stage
                for number in numbers:
                    if (stage := self.configs[number]).text == config:
                        words[number] = embed_order(self.stage(number).text, order, stage)
                        if one_at_a_time:
                            self._open.clear()
                continue
            if one_at_a_time:
                self._encoders.clear()  # of an earlier call, or of other stages
            if config not in self._encoders:
                self._encoders[config] = build_reader(config, device=self.device)
            alike: dict[tuple[str, str, bool], Any] = {}
            for number in numbers:
                if (stage := self.configs[number]).text == config:
                    key = (stage.null_text, stage.null_tokens, stage.guidable)
                    alike[key] = words[number] = alike.get(key) or embed_order(
                        self._encoders[config], order, stage, self.familiar
                    )
        if one_at_a_time:
            self._encoders.clear()
        return words

    # Files: config.json and a folder for each stage.

    def save(self, folder: Path, dtype: str = "float32") -> None:
        """Write the cascade as a folder that `diptych.load` opens."""
        config, folder = CascadeConfig.of(self.configs), model_place(folder)
        for number, name in enumerate(config.stages):
            self.stage(number).save(folder / name, dtype)
        write_text(folder / "config.json", config.to_json())

    @classmethod
    def load(cls, values: dict[str, Any], folder: Path) -> Cascade:
        """Open a folder that `save` wrote. Weights are read when a stage is first needed, their headers now."""
        try:
            folders = [folder / name for name in CascadeConfig.from_dict(values).stages]
            configs = [read_stage(one) for one in folders]
            check_chain(configs)
        except UserError as error:
            raise UserError(f"{folder / 'config.json'}: {error}") from None
        for config, one in zip(configs, folders, strict=True):
            check_stated(config, one)
        cascade = cls(configs, folders)
        from diptych.encoders.prompt_domain import PromptDomain

        cascade.familiar = PromptDomain.load(folder)
        return cascade


def assemble(sources: Sequence[Path], out: Path, published: Mapping[Path, Callable[[], Any]] | None = None) -> Path:
    """Put trained stages, base first, into one cascade folder. A `UserError` says which of them do not fit.

    Folders of stages are copied. Those of the sources that are `published` models are opened by a call and written as
    they come from there, one in memory at a time. Text encoders stay where they lie; see `shared_texts`. A cascade that
    lies at `out` is replaced, what stands beside its stages (a model card) is kept.
    """
    published = published or {}
    sources = [source / "model" if (source / "model" / "config.json").is_file() else source for source in sources]
    known = [read_stage(source) for source in sources if source not in published]
    if not published:
        check_chain(known)
    with replacing(out, CASCADE) as partial:
        if out.is_dir():
            shutil.copytree(out, partial, symlinks=True, ignore=beside_stages(out))
        configs: list[PixelDiffusionConfig] = []
        for source in sources:
            stage = published[source]() if source in published else open_stage(source)  # whole and trained
            if not isinstance(stage, PixelDiffusion):
                raise UserError(f"{source} holds no stage of a cascade, but a {type(stage).__name__}")
            configs.append(stage.config)
            check_chain(configs)
            network = partial / f"stage-{stage.config.name}" / "network"
            if source in published:
                stage.save_network(network)
            else:
                for part in ("network", "text"):  # the latter of an encoder that was trained along
                    if (source / part).is_dir():
                        shutil.copytree(source / part, network.parent / part)
        config = CascadeConfig.of(configs)
        for stage, name in zip(shared_texts(configs), config.stages, strict=True):
            write_text(partial / name / "config.json", stage.to_json())
        write_text(partial / "config.json", config.to_json())
    return out


def shared_texts(configs: Sequence[PixelDiffusionConfig]) -> list[PixelDiffusionConfig]:
    """The stages, those that read with one T5 naming the same folder, so that it is in memory once: the first in which
    it lies stands for its copies, and for stages that name none."""
    first: dict[T5Config, T5Config] = {}
    for config in configs:
        if isinstance(config.text, T5Config) and config.text.path is not None:
            first.setdefault(nowhere(config.text), config.text)
    made = []
    for config in configs:
        text = config.text
        same = first.get(nowhere(text)) if isinstance(text, T5Config) else None
        if isinstance(text, T5Config) and same and (text.path is None or equal(text, same)):
            config = dataclasses.replace(config, text=same)
        made.append(config)
    return made


def nowhere(text: T5Config) -> T5Config:
    """The encoder, without the folders in which it lies."""
    return dataclasses.replace(text, path=None, tokenizer=None)


def equal(text: T5Config, other: T5Config) -> bool:
    """Whether two folders hold the same encoder."""
    there = all(one.path is not None and Path(one.path).is_dir() for one in (text, other))
    return text == other or (there and text.fingerprint() == other.fingerprint())


def open_stage(folder: Path) -> PixelDiffusion:
    return PixelDiffusion.load(read_stage(folder).to_dict(), folder)


def beside_stages(out: Path) -> Callable[[str, list[str]], set[str]]:
    """For `shutil.copytree`: leaves out a cascade's own files, at the top of its folder alone."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        own = {name for name in names if name == "config.json" or name.startswith("stage-")}
        return own if Path(folder) == out else set()

    return left_out


def check_chain(configs: Sequence[PixelDiffusionConfig]) -> None:
    """Each stage must enlarge what the one before it makes."""
    if not configs:
        raise UserError("a cascade needs at least one stage")
    for before, after in itertools.pairwise(configs):
        if after.low_size != before.size:
            does = f"enlarges {after.low_size}-px pictures" if after.low_size else "is a base stage"
            made = f"which makes {before.size}-px pictures"
            raise UserError(f"stage {after.name} cannot follow stage {before.name}, {made}: it {does}")
