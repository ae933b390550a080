"""Classes in the place of text: numbers and names, the null class, and what guidance and training make of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.core.random import GeneratorDraws
from diptych.diffusion.conditions import cat_conditions
from diptych.diffusion.denoiser import Denoiser
from diptych.diffusion.guidance import ClassifierFreeGuidance
from diptych.diffusion.schedules import ScheduleConfig
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.classes import ClassLabels, LabelEmbedding
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.efficient_unet import EfficientUNetConfig
from tests.models.stages import drawing, stage
from tests.networks.reference import noise

NAMES = ("tench", "Goldfish", "great white shark")
NAMED = ClassConfig(classes=3, null=3, names=NAMES)
NETWORK = AdmUNetConfig(
    out_channels=3,
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    attention_levels=(1,),
    head_width=8,
    norm_groups=4,
    classes=4,
)


def painting(text: ClassConfig = NAMED, **changes: Any) -> PixelDiffusionConfig:
    values: dict[str, Any] = {"network": NETWORK, "text": text, "size": 8, "low_size": None, "steps": 3}
    return PixelDiffusionConfig(**{**values, "prediction": "v", "guidance": 3.0, "sampler": "ddim", **changes})


def test_prompts_are_numbers_or_names() -> None:
    embedding = ClassLabels(NAMED).encode(["2", " goldfish ", "TENCH", "great  White\tshark", "", "00"])
    assert embedding.label.tolist() == [2, 1, 0, 2, 3, 0]
    assert embedding.label.dtype == torch.int64


def test_a_name_that_is_a_number_is_a_name() -> None:
    assert ClassLabels(ClassConfig(classes=3, names=("2", "1", "0"))).encode(["2", "0"]).label.tolist() == [0, 2]


def test_of_two_classes_of_one_name_the_first_is_meant() -> None:
    assert ClassLabels(ClassConfig(classes=3, names=("crane", "dog", "crane"))).encode(["crane"]).label.tolist() == [0]


@pytest.mark.parametrize(
    ("config", "prompt", "message"),
    [
        (NAMED, "3", "'3' is no class of this model: give a number from 0 to 2 or a name"),
        (NAMED, "-1", "'-1' is no class"),
        (NAMED, "1.0", "'1.0' is no class"),
        (NAMED, "²", "'²' is no class"),
        (NAMED, "9" * 5000, "is no class"),
        (NAMED, "gold fish", "or a name such as 'Goldfish'"),
        (ClassConfig(classes=10), "goldfish", "give a number from 0 to 9$"),
        (ClassConfig(classes=10), "", "the empty prompt is no class: this model was trained on one of 10"),
    ],
)
def test_what_is_no_class_is_named(config: ClassConfig, prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassLabels(config).encode(["0", prompt])


def test_the_null_class_takes_the_place_of_what_is_dropped() -> None:
    embedding = ClassLabels(NAMED).encode(["0", "1", "2"])
    assert embedding.zeroed(torch.tensor([False, True, False])).label.tolist() == [0, 3, 2]
    assert embedding.null().label.tolist() == [3, 3, 3]
    without = ClassLabels(ClassConfig(classes=3)).encode(["0", "1", "2"])
    assert without.zeroed(torch.zeros(3, dtype=torch.bool)).label.tolist() == [0, 1, 2]
    with pytest.raises(UserError, match=r"set its number as text\.null, or drop none"):
        without.null()


def test_label_condition_only_for_a_class_conditional_network() -> None:
    embedding = LabelEmbedding(torch.tensor([1, 2]))
    cond = embedding.cond(NETWORK, torch.device("cpu"))
    assert cond.keys() == {"label"} and cond["label"].tolist() == [1, 2]
    assert embedding.cond(EfficientUNetConfig(), torch.device("cpu")) == {}


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"classes": 0}, "classes"), ({"null": -1}, "null"), ({"names": ["a", "b"]}, "names")],
)
def test_a_config_that_does_not_fit_names_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=rf"ClassConfig\.{field} must"):
        ClassConfig.from_dict({"classes": 3, **changes})


@pytest.mark.parametrize(("null", "entries"), [(None, 3), (3, 4), (0, 3), (7, 8)])
def test_the_null_class_may_stand_behind_the_others(null: int | None, entries: int) -> None:
    assert ClassConfig(classes=3, null=null).entries == entries


def test_guidance_tells_half_of_a_batch_the_null_class() -> None:
    told: list[Tensor] = []

    def network(x: Tensor, time: Tensor, *, label: Tensor) -> Tensor:
        told.append(label)
        return label.to(x).view(-1, 1, 1, 1).expand_as(x)

    prompts = ClassLabels(NAMED).encode(["1", "2"])
    cond, uncond = (one.cond(NETWORK, torch.device("cpu")) for one in (prompts, prompts.null()))
    both = cat_conditions(cond, uncond, 2)["label"]
    assert both.tolist() == [1, 2, 3, 3] and both.dtype == torch.int64
    schedule = ScheduleConfig(kind="cosine").build()
    guided = ClassifierFreeGuidance(Denoiser(network, schedule, "x0"), cond, uncond, 3.0)
    x0 = guided(noise(2, 3, 4, 4), 0.5)
    assert told[0].tolist() == [1, 2, 3, 3]
    assert x0[:, 0, 0, 0].tolist() == [3 + 3 * (1 - 3), 3 + 3 * (2 - 3)]
    one = cat_conditions({"label": torch.tensor([1])}, {"label": torch.tensor([3])}, 2)["label"]
    assert one.tolist() == [1, 1, 3, 3], "one row stands for all"


def test_training_drops_classes() -> None:
    batch = {"picture": noise(3, 3, 8, 8).clamp(-1, 1), "caption": ["0", "goldfish", "2"], "seed": torch.arange(3)}
    dropped = torch.tensor([False, True, False])
    draws = GeneratorDraws(batch["seed"])
    for null in ("zeros", "empty"):
        _, cond = PixelDiffusion(painting(null_text=null)).prepare(batch, draws, dropped)
        assert cond["label"].tolist() == [0, 3, 2]
    always = ClassConfig(classes=4)
    _, cond = PixelDiffusion(painting(always)).prepare({**batch, "caption": ["0", "3", "2"]}, draws, ~dropped & dropped)
    assert cond["label"].tolist() == [0, 3, 2]


def test_a_stage_paints_and_is_guided_by_classes() -> None:
    it = stage(painting())
    result = it.generate(["goldfish", "2"], seeds=[1, 1])
    assert result.images[0].tobytes() != result.images[1].tobytes()
    assert result.metadata[0]["prompt"] == "goldfish" and result.metadata[0]["guidance"] == 3.0
    plain = it.generate("goldfish", seeds=[1], guidance=1.0).images[0]
    other = it.generate("goldfish", seeds=[1], negative="2").images[0]
    assert len({one.tobytes() for one in (plain, other, result.images[0])}) == 3
    always = stage(painting(ClassConfig(classes=4)))
    assert not always.config.guidable
    told = always.generate("1", seeds=[1], guidance=7.0)
    assert told.metadata[0]["guidance"] == 1.0
    assert told.images[0].tobytes() == always.generate("1", seeds=[1], guidance=1.0).images[0].tobytes()


def test_a_stage_and_its_network_know_as_many_classes() -> None:
    with pytest.raises(
        UserError, match=r"PixelDiffusionConfig\.network\.classes must be 10 to fit its neighbours, not 4"
    ):
        painting(ClassConfig(classes=10))
    with pytest.raises(UserError, match=r"PixelDiffusionConfig\.network\.classes must be None"):
        painting(text=None)  # type: ignore[arg-type]
    assert PixelDiffusionConfig.from_dict(painting().to_dict()) == painting()


def test_classes_enlarge_too() -> None:
    network = AdmUNetConfig.from_dict({**NETWORK.to_dict(), "concat_channels": 3})
    it = stage(painting(network=network, size=16, low_size=8))
    one, two = (it.generate(word, low=drawing(), seeds=[0]).images[0] for word in ("tench", "goldfish"))
    assert one.size == (16, 16) and one.tobytes() != two.tobytes()
