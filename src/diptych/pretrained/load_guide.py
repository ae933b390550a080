"""Opening what steers a model by its gradient: `generate(prompts, guides=[(open_guide("judge"), 2.0)])`.

Noisy classifiers and noisy pairs of ours or ADM's classifiers read what the model is at work on; the judge and any CLIP
of transformers read the images that it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diptych.core.config import read_json
from diptych.core.errors import UserError
from diptych.encoders.class_configs import ClassConfig
from diptych.models.guides import Guide
from diptych.models.judge import SHIPPED, load_judge
from diptych.models.noisy_guide import NoisyGuide, NoisyGuideConfig
from diptych.models.pair_guide import ClipPair, PairGuide
from diptych.networks.noisy_classifier import NoisyClassifier
from diptych.pretrained.families import open_published
from diptych.pretrained.guided_diffusion import COSINE, LINEAR
from diptych.pretrained.load import find, is_published, read_config, read_options
from diptych.weights.identity import Origin
from diptych.weights.lazy import on_meta

JUDGE = "judge"
"""The name of the judge in the package."""


def open_guide(source: str | Path, *, through: bool = True, **opening: Any) -> Guide:
    """A guide, on the CPU; it follows the model that it guides.

    Args:
        source: the run or model folder of a noisy classifier or noisy pair (`diptych train emoji-classifier`); "judge",
            or the folder of another one; a CLIP as a folder of transformers or by its hub id; a file with one of ADM's
            classifiers.
        through: of the judge and CLIP, whether the gradient is taken through the model that is guided too. Else the
            noise that it sees is held fixed: cheaper, and coarser where there is much noise.
        opening: `revision`, `offline` and `allow_pickle`, as for `diptych.load`.

    Raises:
        UserError: there is nothing there that guides, or its files are damaged.
    """
    embedded = str(source) == JUDGE and not Path(source).exists()
    path = SHIPPED if embedded else find(source, **opening)
    guide: Any = opened(path, Path(source).name, through, opening.get("allow_pickle", False))
    guide.origin = Origin(str(source), path)
    return guide


def opened(path: Path, name: str, through: bool, allow_pickle: bool) -> Guide:
    """What guides in a folder or file."""
    if is_published(path):
        network = open_published(path, read_options(allow_pickle))
        if not isinstance(network, NoisyClassifier):
            raise UserError(f"{path} holds no classifier of noisy images")
        return published_guide(network, path.stem)
    values = read_json(path / "config.json", missing=f"{path} holds no guide: it has no config.json")
    if isinstance(values, dict) and values.get("model_type") == "clip":
        return PairGuide(ClipPair(path), name, through)
    kind = read_config(path)["kind"]
    if kind not in GUIDES:
        raise UserError(
            f"{path} holds a model of kind {kind!r}, which does not guide: name a noisy classifier or pair "
            "(`diptych train emoji-classifier`), judge, or a CLIP as transformers saves it"
        )
    return GUIDES[kind](values, path, name, through)


GUIDES: dict[str, Callable[[Any, Path, str, bool], Guide]] = {
    "guide": lambda values, path, name, through: NoisyGuide.load(values, path, name),
    "judge": lambda values, path, name, through: PairGuide(load_judge(path), name, through),
}
"""How each kind of model that guides is opened."""


def published_guide(network: NoisyClassifier, name: str) -> NoisyGuide:
    """One of ADM's classifiers; that for 64 px was trained on the cosine schedule, the others on the linear one."""
    config = NoisyGuideConfig(
        network=network.config,
        classes=ClassConfig(classes=network.config.classes),
        schedule=COSINE if network.config.size == 64 else LINEAR,
    )
    with on_meta():
        guide = NoisyGuide(config, name=name)
    guide.network = network
    return guide.eval().requires_grad_(False)
