"""Carrying a recipe out: from its values to data, a trainable model and a run folder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from diptych.core.devices import find_device, require_memory
from diptych.core.disk import real
from diptych.core.errors import UserError
from diptych.core.hashing import mix
from diptych.core.seeding import drawn_apart, seed_default
from diptych.data.dataset import PictureDataset
from diptych.encoders.cache import CachedTexts, text_cache
from diptych.encoders.configs import JointTransformerConfig, LayoutConfig, LearnedConfig, build_reader
from diptych.encoders.joint import JointTransformer, train_tokenizer
from diptych.encoders.layout import LayoutTransformer, classes_of
from diptych.models.autoregressive import Autoregressive
from diptych.models.autoregressive_config import AutoregressiveConfig
from diptych.models.cascade import assemble as run_assemble
from diptych.models.judge import Judge
from diptych.models.latent_diffusion import LatentConfig, LatentDiffusion
from diptych.models.noisy_guide import NoisyGuideConfig
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.autoencoder import Autoencoder
from diptych.networks.code_transformer import CodeTransformer
from diptych.networks.noisy_classifier import NoisyClassifier
from diptych.networks.tiny_decoder import TinyDecoder
from diptych.pretrained.families import open_published
from diptych.pretrained.load import find, is_published, open_autoencoder
from diptych.pretrained.source import Options
from diptych.training.experiment_config import KEEPS_NONE, AutoregressiveTraining, LatentTraining, Recipe, StageTraining
from diptych.training.experiment_data import (
    QUARANTINE,
    all_captions,
    batches,
    caption_fit,
    fit_all,
    fitted_store,
    flip_of,
    learned_fit,
    open_splits,
    stored_captions,
)
from diptych.training.guided_model import guide_task, guided_model
from diptych.training.init_from import (
    FIRST_WEIGHTS,
    begin_from,
    begin_stage,
    distillation,
    first_stage_task,
    initial_stage,
    named,
)
from diptych.training.precompute import (
    PRECOMPUTED,
    EmbeddedTexts,
    Kept,
    PrecomputedLatents,
    precomputed_splits,
)
from diptych.training.precompute import precompute as run_precompute
from diptych.training.prefetch import BatchAt
from diptych.training.run_checkpoint import require_run
from diptych.training.tasks.autoencoding import FirstStage, FirstStageConfig
from diptych.training.tasks.codes import CodesTask
from diptych.training.tasks.contrastive import ContrastConfig, JudgeTrainable
from diptych.training.tasks.diffusion import DiffusionTask
from diptych.training.tasks.distillation import DistillationConfig
from diptych.training.tasks.guide_training import GuideTraining
from diptych.training.trainer import Trainable
from diptych.training.trainer import train as run_loop

TwoStages = LatentTraining | AutoregressiveTraining
"""What is trained over a first stage."""


def train(recipe: Recipe, folder: str | Path) -> Path:
    """Train, or go on with, the run in `folder`; returns the folder of the finished model, or raises a `UserError`."""
    folder = Path(folder)
    require_run(folder)  # before hours of embedding
    require_memory(lambda: counts(_networks(recipe.system))["networks"], find_device(recipe.training.device))
    seed_default(recipe.training.seed)
    seeds = {"train": recipe.training.seed, "held-out": mix(recipe.training.seed, 3)}
    system = recipe.system
    if isinstance(system, TwoStages) and system.precomputed is not None:
        store, autoencoder = Path(system.precomputed), first_stage(system)
        recipe = named(recipe, lambda: stored_captions(store))
        system = recipe.system
        assert isinstance(system, TwoStages)
        names = ["train", *(name for name in precomputed_splits(store) if name == "held-out")]
        kept, wanted = what_is_kept(system)
        splits = {
            name: PrecomputedLatents(store, name, seeds[name], autoencoder, kept, flip_of(recipe, name))
            for name in names
        }
        if (found := tuple(splits["train"].stored.shape[1:])) != wanted:
            raise UserError(
                f"{store} holds {kept} of shape {found}, not {wanted}: make it again with `diptych precompute`"
            )
        task = second_stage(system, autoencoder, recipe.training.seed, store)
        return _run(recipe, folder, task, fitted_store(recipe, store, splits, task))
    if isinstance(system, GuideTraining) and system.guided is not None and system.precomputed is not None:
        store, guided = Path(system.precomputed), guided_model(system.guided)
        names = precomputed_splits(store)
        splits = {
            name: PrecomputedLatents(store, name, seeds[name], guided.autoencoder, flip=flip_of(recipe, name))
            for name in names
        }
        fitted = fitted_store(recipe, store, splits)
        captions = {caption for row in splits["train"].captions for caption in row}
        return _run(recipe, folder, guide_task(system, sorted(captions), guided, recipe.training.seed), fitted)
    datasets = open_splits(recipe, folder / QUARANTINE)
    recipe = named(recipe, lambda: all_captions(datasets["train"]))
    fit_all(caption_fit(recipe.system), *datasets.values())  # of classes, now that they have names
    task = build(recipe, *datasets.values())
    return _run(recipe, folder, task, {name: batches(one, seeds[name]) for name, one in datasets.items()})


def _run(recipe: Recipe, folder: Path, task: Trainable, splits: dict[str, BatchAt]) -> Path:
    distance = task.distance_name if isinstance(task, FirstStage) else None
    facts = {} if distance is None else {"perceptual_distance": distance}
    return run_loop(task, splits["train"], recipe.training, folder, splits.get("held-out"), recipe, facts)


def build(recipe: Recipe, dataset: PictureDataset, *others: PictureDataset) -> Trainable:
    """The model of a recipe as the training loop sees it, reading `dataset`, and in validation the others.

    First weights are drawn apart: they follow from the seed alone, not from what was built, or cached, before.
    """
    system, seed = recipe.system, recipe.training.seed
    if isinstance(system, FirstStageConfig):
        return first_stage_task(system, seed)
    if isinstance(system, DistillationConfig):
        return distillation(system, seed)
    if isinstance(system, TwoStages):
        read = (dataset, *others) if isinstance(system.model.text, LayoutConfig) else (dataset,)
        task = second_stage(system, first_stage(system), seed, captions=lambda: all_captions(*read))
        fit_all(learned_fit(task), dataset, *others)
        return task
    if isinstance(system, StageTraining):
        joint = isinstance(system.model.encoder, JointTransformerConfig)  # whose tokenizer learns from training alone
        read = () if system.model.encoder is None else (dataset,) if joint else (dataset, *others)
        task = stage_task(system, all_captions(*read), seed)
        fit_all(learned_fit(task), dataset, *others)
        return task
    if isinstance(system, GuideTraining):
        guided = None if system.guided is None else guided_model(system.guided)
        if guided is not None and dataset.config.side % (factor := guided.autoencoder.config.factor):
            raise UserError(f"data.size must be a multiple of {factor}, not {dataset.config.side}")
        return guide_task(system, all_captions(dataset), guided, seed)
    with drawn_apart(seed, FIRST_WEIGHTS):
        return JudgeTrainable(system, dataset)


def stage_task(system: StageTraining, captions: list[str], seed: int) -> DiffusionTask:
    """A stage whose captions and sample prompts are embedded before the first step, or were by an earlier run; then the
    encoder goes. One that is trained along stays.
    """
    texts, text = None, system.model.encoder
    before = None if system.init_from is None else initial_stage(system.init_from)
    if isinstance(text, JointTransformerConfig):
        known = None if before is None or before.joint_text is None else before.joint_text.tokenizer
        texts = joint_text(text, captions, seed, known)
    elif text is not None:
        texts = CachedTexts(text, text_cache())
        texts.read([*captions, *system.diffusion.prompts])
        texts.unload()
    with drawn_apart(seed, FIRST_WEIGHTS):
        stage = PixelDiffusion(system.model, texts)
    if before is not None:
        begin_stage(stage, before, str(system.init_from))
    return DiffusionTask(stage, system.diffusion)


def joint_text(
    config: JointTransformerConfig, captions: list[str], seed: int, tokenizer: Any = None
) -> JointTransformer:
    """A text encoder to train along; its tokenizer is the given one, the one that is named, or made of the captions."""
    if tokenizer is None and config.tokenizer is None:
        tokenizer = train_tokenizer(captions, config.network.vocabulary)
    with drawn_apart(seed, f"{FIRST_WEIGHTS} of the text encoder"):
        return JointTransformer(config, tokenizer)


def first_stage(system: TwoStages) -> Autoencoder:
    """The trained autoencoder that a latent model or a transformer over codes stands on."""
    module = open_autoencoder(system.autoencoder)
    if module.config != system.model.autoencoder:
        raise UserError(
            f"the autoencoder in {system.autoencoder} has another shape than the recipe's model.autoencoder"
        )
    return module


def what_is_kept(system: TwoStages) -> tuple[Kept, tuple[int, ...]]:
    """What is precomputed of a picture, and its shape."""
    model = system.model
    if isinstance(model, AutoregressiveConfig):
        return "codes", (model.side, model.side)
    return "latents", (model.autoencoder.moment_channels, model.latent_size, model.latent_size)


def second_stage(
    system: TwoStages,
    autoencoder: Autoencoder,
    seed: int,
    store: Path | None = None,
    captions: Callable[[], list[str]] = list,
) -> DiffusionTask | CodesTask:
    """The model over its first stage; its text encoder answers from `store` where captions were embedded."""
    text = system.model.text
    if isinstance(text, JointTransformerConfig) and text.tokenizer is None:
        encoder: Any = joint_text(text, stored_captions(store) if store else captions(), seed)
    elif isinstance(text, LayoutConfig):
        layouts = captions if store is None else lambda: stored_captions(store, *precomputed_splits(store))
        classes = () if text.classes else classes_of(layouts())
        with drawn_apart(seed, f"{FIRST_WEIGHTS} of the text encoder"):
            encoder = LayoutTransformer(text, classes)
    else:
        with drawn_apart(seed, f"{FIRST_WEIGHTS} of the text encoder"):  # of one with a tokenizer that is named
            encoder = build_reader(text)
        if store is not None and (store / "text.safetensors").is_file():
            encoder = EmbeddedTexts.load(encoder, store)
    if isinstance(system, AutoregressiveTraining):
        with drawn_apart(seed, FIRST_WEIGHTS):
            return CodesTask(Autoregressive(system.model, autoencoder, encoder), system.codes)
    with drawn_apart(seed, FIRST_WEIGHTS):
        model = LatentDiffusion(system.model, autoencoder, encoder)
    if system.init_from is not None:
        begin_from(model, system.init_from)
    return DiffusionTask(model, system.diffusion)


def precompute(recipe: Recipe, out: Path) -> Path:
    """Latents or codes and, for a frozen text encoder, embeddings of the recipe's data, in a folder for
    `system.precomputed`."""
    system = recipe.system
    guided = system.guided if isinstance(system, GuideTraining) else None
    if not isinstance(system, TwoStages) and guided is None:
        raise UserError("only recipes over latents or codes have something to precompute")
    if recipe.data.drawn:
        raise UserError(f"{KEEPS_NONE}: set data.crop=none and data.center_shift=0, or train without precomputing")
    PRECOMPUTED.require(out)
    datasets = open_splits(recipe, out.with_name(f"{out.name}.{QUARANTINE}"))
    device = find_device(recipe.training.device)
    if not isinstance(system, TwoStages):
        return run_precompute(datasets, guided_model(str(guided)).autoencoder, None, out, device)
    text = system.model.encoder
    encoder: Any = None if isinstance(text, LearnedConfig) else build_reader(text)
    return run_precompute(datasets, first_stage(system), encoder, out, device, what_is_kept(system)[0])


def assemble(sources: Sequence[str], out: Path, allow_pickle: bool = False) -> Path:
    """Trained stages, base first, as one cascade in `out`: run folders, model folders, published models."""
    folders = [find(source, allow_pickle=allow_pickle) for source in sources]
    for folder in folders:
        if real(out).is_relative_to(real(folder)):
            raise UserError(f"{out} lies in the stage {folder}: choose a folder of its own for the cascade")
    stored = Options(dtype=None, allow_pickle=allow_pickle)
    published = {path: functools.partial(open_published, path, stored) for path in folders if is_published(path)}
    return run_assemble(folders, out, published)


def counts(networks: dict[str, nn.Module]) -> dict[str, Any]:
    """The parameters of each network, and of all together."""
    each = {part: sum(p.numel() for p in network.parameters()) for part, network in networks.items()}
    return {"networks": each, "total": sum(each.values())}


def _networks(system: Any) -> dict[str, nn.Module]:
    if isinstance(system, (LatentTraining, AutoregressiveTraining, StageTraining)):
        return _networks(system.model)
    if isinstance(system, PixelDiffusionConfig):
        parts: dict[str, nn.Module] = {"network": system.network.build()}
        return parts if system.encoder is None else {**parts, "text": system.encoder.build_network()}
    if isinstance(system, list):  # the stages of a cascade
        parts = {f"stage {stage.name}": stage.network.build() for stage in system}
        read = [stage.encoder for stage in system if stage.encoder is not None]  # those trained along are each its own
        texts = [text for n, text in enumerate(read) if isinstance(text, LearnedConfig) or text not in read[:n]]
        names = ["text", *(f"text {number}" for number in range(2, len(texts) + 1))]
        return {**parts, **{name: text.build_network() for name, text in zip(names, texts, strict=False)}}
    if isinstance(system, LatentConfig):
        parts = {"unet": system.unet.build(), "autoencoder": Autoencoder(system.autoencoder)}
        return parts if system.encoder is None else {**parts, "text": system.encoder.build_network()}
    if isinstance(system, AutoregressiveConfig):
        parts = {"transformer": CodeTransformer(system.transformer), "autoencoder": Autoencoder(system.autoencoder)}
        return parts if system.encoder is None else {**parts, "text": system.encoder.build_network()}
    if isinstance(system, FirstStageConfig):
        return {"autoencoder": Autoencoder(system.network)}
    if isinstance(system, DistillationConfig):
        return {"decoder": TinyDecoder(system.network)}
    if isinstance(system, (GuideTraining, NoisyGuideConfig)):
        return {"classifier" if system.text is None else "pictures": NoisyClassifier(system.network)}
    return {"judge": Judge(system.judge if isinstance(system, ContrastConfig) else system)}
