"""Records files of every kind: `python -m tests.saved.record_folders` writes folders/, folders.json and folders.npz.

The models are tiny, with random weights. They are written by the code of the commit that folders.json names; what is
committed stays as that code wrote it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diptych
from diptych.conditioning.concat_config import LowResConcat, MaskConfig
from diptych.core.images import to_tensor
from diptych.data.dataset import DataConfig, open_dataset
from diptych.encoders.cache import CachedTexts
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import MiniLMConfig, T5Config
from diptych.models.cascade import Cascade
from diptych.models.first_stage import save_tiny_decoder
from diptych.models.judge import Judge, JudgeConfig, load_judge
from diptych.models.latent_diffusion import LatentConfig, LatentDiffusion
from diptych.models.noisy_guide import NoisyGuide, NoisyGuideConfig
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.autoencoder import Autoencoder
from diptych.networks.tiny_decoder import TinyDecoder, TinyDecoderConfig
from diptych.pretrained.load import open_autoencoder
from diptych.pretrained.load_guide import open_guide
from diptych.training.precompute import PrecomputedLatents, precompute
from diptych.training.tasks.autoencoding import FirstStage, FirstStageConfig
from diptych.weights.fingerprint import fingerprint
from tests.encoders.test_layout import LAYOUT, reader, reading
from tests.encoders.tiny_encoders import t5_folder
from tests.models import codes
from tests.models.latents import AUTOENCODER, CAPTIONS, JOINT, SIZE, config, joint, minilm, write_images
from tests.models.stages import WIDTH, base, configs, enlarging, plain, stage, unet, wordless
from tests.models.test_latent_inpainting import BESIDE
from tests.models.test_stage_joint import glide
from tests.networks.reference import randomised
from tests.pretrained.test_load_guide import classifier
from tests.saved.replay import HERE, generate, picture, write

FOLDERS = HERE / "folders"
T5 = T5Config(path="t5", width=WIDTH, max_tokens=32)
FIRST = dataclasses.replace(AUTOENCODER, channels=4, norm_groups=2)
UNET = config().unet.override(["channels=8", "multipliers=1,1"])
CLASSES = ClassConfig(classes=3, null=3, names=("red", "green", "blue"))
WORDS = "a red apple"


def autoencoder() -> Autoencoder:
    return randomised(Autoencoder(FIRST), 1)


def latent(text: Any = JOINT, encoder: Any = None, tiny: TinyDecoder | None = None, **changes: Any) -> LatentDiffusion:
    """A latent model; `changes` are of its config, those of its U-Net under `unet`."""
    network = UNET.override(changes.pop("unet", []))
    values = {"autoencoder": FIRST, "unet": network, "text": text, "size": SIZE, "steps": 3, "guidance": 3.0}
    settings = LatentConfig(**{**values, **changes})
    model = LatentDiffusion(settings, autoencoder(), joint() if text == JOINT else encoder, tiny=tiny)
    randomised(model.unet, seed=2)
    model.scale.fill_(0.5)
    return model.eval()


def pair() -> NoisyGuide:
    network = dataclasses.replace(classifier(3).config.network, classes=6)
    guide = NoisyGuide(NoisyGuideConfig(network=network, classes=None, text=MiniLMConfig()), name="pair")
    return randomised(guide, 5).eval()


def cascade() -> Cascade:
    words = T5.build()
    return Cascade.of([stage(one, seed, words) for seed, one in enumerate(configs(T5))])


def write_models() -> None:
    """A folder of each kind of model; those in bfloat16 are half as large."""
    tiny = TinyDecoderConfig(channels=(6, 8), blocks=1, teacher=fingerprint(autoencoder()))
    decoder = randomised(TinyDecoder(tiny), 5)
    model = latent(tiny=decoder)
    model.save(Path("latent-joint"))
    save_tiny_decoder(randomised(TinyDecoder(tiny), 6), Path("tiny-decoder"))
    of_latents = {"first_stage": fingerprint(autoencoder()), "scale": 0.5, "schedule": model.config.schedule}
    classifier(4, **of_latents).save(Path("guide-of-latents"))
    classifier(3).save(Path("guide-of-pixels"), "bfloat16")
    pair().save(Path("pair-of-pixels"), "bfloat16")
    low = LowResConcat(factor=2, with_latent=True)
    fine = dataclasses.replace(BESIDE, fill="smooth", full_resolution_mask=True)
    models: dict[str, Any] = {
        "latent-minilm": latent(MiniLMConfig(), minilm(), unet=["context_width=384", "pooled_width=none"]),
        "latent-mask": latent(unet=["concat_channels=5"], concat=BESIDE),
        "latent-mask-fine": latent(unet=["concat_channels=8"], concat=fine),
        "latent-mask-published": latent(unet=["concat_channels=5"]),
        "latent-low": latent(
            None, unet=[f"concat_channels={low.channels(FIRST)}", "context_width=none", "pooled_width=none"], concat=low
        ),
        "latent-classes": latent(CLASSES, unet=["context_width=16", "pooled_width=none", "classes=4"]),
        "latent-layout": latent(reading(), reader()),
        "stage": stage(base(text=T5), 2, T5.build()),
        "stage-minilm": stage(
            base(text=MiniLMConfig(), network=unet(pooled_width=384, concat_channels=0, augmented=False)), 2, ()
        ),
        "stage-super-resolution": stage(enlarging(text=T5, guidance=2.0), 3, T5.build()),
        "stage-sr3": stage(wordless(), 4),
        "stage-masks": stage(
            wordless(
                network=plain(context_width=None, concat_channels=4), low_size=None, size=8, masks=MaskConfig(medium=0)
            )
        ),
        "stage-joint": glide(),
        "stage-classes": stage_of_classes(),
        "cascade-t5": cascade(),
        "autoregressive": codes.system("words"),
        "autoregressive-classes": codes.system("class"),
    }
    for name, model in models.items():
        model.save(Path(name), "bfloat16")
    FirstStage(FirstStageConfig(network=FIRST), autoencoder()).save(Path("autoencoder"))
    vq = dataclasses.replace(codes.VQ, channels=4, norm_groups=2)
    FirstStage(FirstStageConfig(network=vq), randomised(Autoencoder(vq), 1)).save(Path("autoencoder-vq"))
    small = JudgeConfig(size=16, widths=(16, 32), blocks=(1, 1), text_width=32, heads=2, embedding=32)
    randomised(Judge(small), seed=6).save(Path("judge-tiny"))


def stage_of_classes() -> PixelDiffusion:
    from tests.encoders.test_classes import painting as of_classes

    return stage(of_classes(), 2)


def call(name: str, model: str, prompts: str | list[str], **options: Any) -> dict[str, Any]:
    return {"name": name, "model": model, "prompts": prompts, "options": options}


RED, BLUE = CAPTIONS
PAINTED = {"image": {"picture": [SIZE, SIZE]}, "mask": {"mask": [SIZE, SIZE]}}
LOW = {"low": {"picture": [8, 8]}}
CALLS = [
    call("latent", "latent-joint", [RED, BLUE]),
    call("latent with its tiny decoder", "latent-joint", RED, decoder="tiny"),
    call("latent with a tiny decoder", "latent-joint", RED, decoder="tiny-decoder"),
    call("latent with a classifier", "latent-joint", RED, guides=[["guide-of-latents", 5.0]]),
    call("latent with a judge", "latent-joint", RED, guides=[["judge-tiny", 2.0]]),
    call("latent with the embedded judge", "latent-joint", RED, guides=[["judge", 2.0]]),
    call("latent of MiniLM", "latent-minilm", WORDS, negative="blue"),
    call("latent with a mask", "latent-mask", RED, **PAINTED),
    call("latent with a fine mask", "latent-mask-fine", RED, **PAINTED),
    call("latent with a mask, as published", "latent-mask-published", RED, **PAINTED),
    call("latent that enlarges", "latent-low", "", **LOW),
    call("latent of classes", "latent-classes", ["red", "2"], guidance=2.0),
    call("latent of layouts", "latent-layout", LAYOUT),
    call("stage of T5", "stage", [WORDS, "two cats"]),
    call("stage with a classifier", "stage", RED, guides=[["guide-of-pixels", 5.0]]),
    call("stage with a pair", "stage", WORDS, guides=[["pair-of-pixels", 5.0]]),
    call("stage of MiniLM", "stage-minilm", WORDS),
    call("stage of super-resolution", "stage-super-resolution", WORDS, **LOW),
    call("stage as SR3", "stage-sr3", "", **LOW),
    call("stage with masks", "stage-masks", "", image={"picture": [8, 8]}, mask={"mask": [8, 8]}),
    call("stage with a text encoder of its own", "stage-joint", RED),
    call("stage of classes", "stage-classes", ["tench", "1"]),
    call("cascade", "cascade-t5", [WORDS, "two cats"]),
    call("cascade one at a time", "cascade-t5", WORDS, one_at_a_time=True),
    call("autoregressive", "autoregressive", [RED, BLUE], temperature=0.9, top_k=12),
    call("autoregressive of classes", "autoregressive-classes", "green", top_p=0.9),
]
PROMPTS = [WORDS, "", "two cats left of a house, and a dog"]


def arrays() -> dict[str, np.ndarray]:
    """What the folders hold that no image shows."""
    shown = to_tensor([picture(SIZE, SIZE)])
    vq, judge = open_autoencoder("autoencoder-vq"), load_judge(Path("judge-tiny"))
    batch = PrecomputedLatents(Path("precomputed"), "train", 0, open_autoencoder("autoencoder"))([0, 5, 12])
    guide: Any = open_guide("pair-of-pixels")
    with torch.no_grad():
        found = {
            "autoencoder": open_autoencoder("autoencoder").moments(shown),
            "autoencoder-vq": vq.codes(shown).float(),
            "judge-pictures": judge.embed_images(shown),
            "judge-captions": judge.embed_captions(PROMPTS[:1]),
            "pair-captions": guide.embed(PROMPTS[:1]),
            "precomputed": batch["latent"].float(),
            "text-cache": CachedTexts(T5, Path("text-cache")).encode(PROMPTS).sequence,
        }
    return {name: value.numpy() for name, value in found.items()}


def write_data() -> None:
    """A cache of texts, and precomputed latents and texts."""
    CachedTexts(T5, Path("text-cache")).encode(PROMPTS)
    pictures = str(write_images(Path("pictures")))
    sets = {split: open_dataset(DataConfig(path=pictures, size=SIZE, split=split)) for split in ("train", "held-out")}
    precompute(sets, autoencoder(), T5.build(), Path("precomputed"), torch.device("cpu"))
    shutil.rmtree("pictures")


def main() -> None:
    warnings.simplefilter("ignore")
    shutil.rmtree(FOLDERS, ignore_errors=True)
    FOLDERS.mkdir()
    os.chdir(FOLDERS)  # the T5 is named by its place beside the models
    t5_folder(Path("t5"))
    write_models()
    write_data()
    images = []
    for call in CALLS:
        images.append(generate(diptych.load(call["model"], device="cpu"), call))
    write("folders", CALLS, images)
    np.savez_compressed(HERE / "arrays.npz", **arrays())  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
