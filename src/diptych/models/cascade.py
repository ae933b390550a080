"""Cascades of pixel models, as Imagen: text -> small image -> larger ones (Saharia et al. 2022, section 2)."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack

import torch
from PIL import Image
from torch import nn

from diptych.core.config import Config
from diptych.core.disk import replacing, write_text
from diptych.core.errors import UserError
from diptych.core.images import to_images, to_tensor
from diptych.core.option_fields import takes
from diptych.encoders.base import network_of
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import FrozenConfig, JointTransformerConfig, T5Config, build_encoder
from diptych.encoders.prompt_domain import PromptDomain
from diptych.models.options import CascadeOptions
from diptych.models.pixel_config import PixelDiffusionConfig, read_stage, require_trained
from diptych.models.pixel_diffusion import PixelDiffusion, check_stated, embed_prompts
from diptych.models.pixel_request import CascadeRequest
from diptych.models.result import OneLineRepr, Result
from diptych.weights.model_folder import CASCADE, model_place

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CascadeConfig(Config):
    """Which stages stand behind one another."""

    kind: Literal["cascade"] = "cascade"
    """Which system this is."""
    stages: tuple[str, ...] = ()
    """Folders of the stages, next to this config, in the order in which they run."""

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
        self.configs, self.folders = list(configs), list(folders)
        self._open: dict[int, PixelDiffusion] = {}
        self._encoders: dict[FrozenConfig | JointTransformerConfig | ClassConfig, Any] = {}  # frozen ones
        self.device = torch.device("cpu")
        self.familiar: PromptDomain | None = None
        self._on_open: Callable[[PixelDiffusion], None] = lambda stage: None

    @property
    def on_open(self) -> Callable[[PixelDiffusion], None]:
        """Called with each stage when it is in memory; setting it calls it with those that are."""
        return self._on_open

    @on_open.setter
    def on_open(self, call: Callable[[PixelDiffusion], None]) -> None:
        self._on_open = call
        for stage in self._open.values():
            call(stage)

    @classmethod
    def of(cls, stages: Sequence[PixelDiffusion]) -> Cascade:
        """A cascade of stages that are in memory, on the device of the first; their text encoders are its own."""
        cascade = cls([stage.config for stage in stages])
        cascade._open = {number: stage.eval() for number, stage in enumerate(stages)}
        for stage in stages:
            if stage.config.text is not None and stage.text_loaded and stage.joint_text is None:
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
            self._open[number] = self.place(open_stage(self.folders[number]))
            self.on_open(self._open[number])
        return self._open[number]

    def place(self, stage: PixelDiffusion) -> PixelDiffusion:
        """A stage that was opened, on the device; `engines.placement` puts another way in its place."""
        return stage.to(self.device)

    def encoder(self, text: Any) -> Any:
        """The frozen text encoder of a config, opened if it is not in memory."""
        if text not in self._encoders:
            self._encoders[text] = self.open_encoder(text)
        return self._encoders[text]

    def open_encoder(self, config: Any) -> Any:
        """A frozen text encoder on the device, as `place`."""
        return build_encoder(config, device=self.device)

    @property
    def text(self) -> Any:
        """The text encoder of the first stage, or none."""
        text = self.configs[0].text
        if text is None or isinstance(text, JointTransformerConfig):
            return None if text is None else self.stage(0).text
        return self.encoder(text)

    @property
    def networks(self) -> list[nn.Module]:
        """The networks of all stages."""
        return [self.stage(number).network for number in range(len(self.configs))]

    @property
    def stage_sizes(self) -> list[tuple[int, int | None]]:
        """Of each stage the side of its images, and of its low-resolution input, none for a base stage."""
        return [(config.size, config.low_size) for config in self.configs]

    @torch.no_grad()
    @takes(CascadeOptions)
    def generate(self, prompts: str | Sequence[str], **options: Unpack[CascadeOptions]) -> Result:
        """Generate one image for each prompt, stage by stage.

        prompts: as for `LatentDiffusion.generate`. Each stage draws its noise from the image's seed.

        A low-resolution image, a file or a Pillow image, is enlarged by stage `start` (from 0) in the place of the
        stages before; an image that one of these made, with the same seeds, gives the same result. An init image has
        the size of the last stage: the first stage starts from it, downsampled, and the others enlarge that; with a
        mask each stage gets it at its own size, and the pixels outside the mask stay as they are. Guides and initial
        noise (B, 3, H, W) are for the first stage that runs. `callback` counts the steps of all stages.

        Raises a `UserError` that names the option or prompt at fault, or a stage that is missing, damaged or untrained.
        """
        request = CascadeRequest.read(self, prompts, options)
        embeddings, low_res, (width, height) = self.embed(request), request.low_res, request.size
        images: list[list[Image.Image]] = []
        costs: list[dict[str, Any]] = []

        for number, callback in zip(request.stages, request.callbacks, strict=True):
            first = number == request.stages.start
            factor = 1 if first else self.configs[number].factor
            width, height = width * factor, height * factor
            x0, cost = self.on_stage(number, request.one_at_a_time, PixelDiffusion.sample)(
                embeddings.get(number),
                request.seeds,
                request.sampling[number],
                size=(height, width),
                low_res=low_res,
                init_image=request.init_images.get(number),
                noise=request.noise if first else None,
                guides=request.guides if first else (),
                prompts=request.prompts,
                callback=callback,
            )
            images.append(to_images(x0))
            costs.append(cost)
            low_res = to_tensor(images[-1])  # rounded to 8 bits, as in a file

        return request.result(self, images, costs)

    def embed(self, request: CascadeRequest) -> dict[int, Any]:
        """The embeddings of each stage. Stages with the same text encoder share it, and what it computes."""
        if request.one_at_a_time:
            self._open.clear()
            self._encoders.clear()  # of an earlier call
        else:
            for number in request.stages:  # before any work
                require_trained(self.stage(number).network, f"the stage {self.configs[number].name}")
        embeddings: dict[int, Any] = {}
        try:
            for text in dict.fromkeys(self.configs[number].text for number in request.stages):
                numbers = [number for number in request.stages if self.configs[number].text == text]
                if isinstance(text, JointTransformerConfig):  # a part of its stage
                    for number in numbers:
                        embed = self.on_stage(number, request.one_at_a_time, PixelDiffusion.embed)
                        embeddings[number] = embed(request)
                elif text is not None:
                    embeddings |= self.encode(text, numbers, request)
        finally:
            if request.one_at_a_time:
                self._encoders.clear()
        return embeddings

    def encode(self, text: Any, numbers: Sequence[int], request: CascadeRequest) -> dict[int, Any]:
        """The embeddings of stages with the same frozen text encoder."""
        if request.one_at_a_time:
            self._encoders.clear()
        encoder = self.encoder(text)
        embeddings: dict[int, Any] = {}
        shared: dict[tuple[str, str, bool], Any] = {}
        for number in numbers:
            stage = self.configs[number]
            key = (stage.null_text, stage.null_tokens, stage.guidable)
            if key not in shared:
                shared[key] = embed_prompts(encoder, request, stage, self.familiar)
            embeddings[number] = shared[key]
        return embeddings

    def on_stage(self, number: int, alone: bool, method: Callable[Concatenate[PixelDiffusion, P], T]) -> Callable[P, T]:
        """A method of stage `number`. `alone` keeps no other stage in memory, and not this one afterwards."""

        def run(*arguments: P.args, **options: P.kwargs) -> T:
            if alone:
                self._open.clear()
            try:
                return method(self.stage(number), *arguments, **options)
            finally:
                if alone:
                    self._open.clear()

        return run

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
    lies at `out` is replaced, other files (a model card) are copied.
    """
    published = published or {}
    sources = [source / "model" if (source / "model" / "config.json").is_file() else source for source in sources]
    stages = [read_stage(source) for source in sources if source not in published]
    if not published:
        check_chain(stages)
    with replacing(out, CASCADE) as partial:
        if out.is_dir():
            shutil.copytree(out, partial, symlinks=True, ignore=other_files(out))
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
    folders = all(one.path is not None and Path(one.path).is_dir() for one in (text, other))
    return text == other or (folders and text.fingerprint() == other.fingerprint())


def open_stage(folder: Path) -> PixelDiffusion:
    return PixelDiffusion.load(read_stage(folder).to_dict(), folder)


def other_files(out: Path) -> Callable[[str, list[str]], set[str]]:
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
            does = f"enlarges {after.low_size}-px images" if after.low_size else "is a base stage"
            made = f"which makes {before.size}-px images"
            raise UserError(f"stage {after.name} cannot follow stage {before.name}, {made}: it {does}")
