"""The table of options: its lists are those of the code, its bounds hold on the command line and in Python alike."""

from __future__ import annotations

import inspect
import subprocess
import sys
from fractions import Fraction
from typing import Any, Unpack

import numpy as np
import pytest
import torch

from diptych.core.errors import UserError
from diptych.core.image_files import FITS
from diptych.core.option_fields import options_of, takes
from diptych.core.values import integers
from diptych.diffusion.sampler_options import LIMITS, sampler_options
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.diffusion.times import SCHEDULE_TYPES
from diptych.encoders.base import LONG_PROMPTS
from diptych.models import options
from diptych.models.option_registry import MODELS, all_options
from diptych.models.options import AutoregressiveOptions, CascadeOptions, LatentOptions, PixelOptions, read_options
from diptych.models.sampling import SAMPLER_OPTIONS


def test_the_lists_are_those_of_the_code() -> None:
    assert set(options.SAMPLERS) == set(SAMPLERS)
    assert options.SCHEDULE_TYPES == SCHEDULE_TYPES
    assert options.FITS == FITS
    assert options.LONG_PROMPTS == LONG_PROMPTS
    assert {ThresholdConfig.parse(kind).kind for kind in options.THRESHOLDS} == set(options.THRESHOLDS)


def test_the_bounds_of_sampler_options_are_those_of_the_samplers() -> None:
    for name, limits in LIMITS.items():
        assert options_of(LatentOptions)[name].value == limits, name


def test_names_are_unique() -> None:
    for kind in MODELS.values():
        names = [other for name, one in options_of(kind).items() for other in (name, *one.also, *one.old)]
        assert len(names) == len(set(names)) == len(options.names_of(options_of(kind)))


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, diptych.models.options; print({'torch', 'PIL', 'numpy', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_is_not_given_is_the_default_and_old_names_count() -> None:
    values = read_options(CascadeOptions, {"low": "x.png", "keep": True, "weights": True, "negative_prompt": "y"})
    assert set(values) == set(CascadeOptions.__annotations__)
    assert values["low_res"] == "x.png" and values["keep_stages"] and values["prompt_weights"]
    assert values["negative"] == "y" and values["long_prompts"] == "refuse" and values["guides"] == ()
    assert read_options(LatentOptions, {"paste": None, "steps": None})["paste"] is False


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        (LatentOptions, {"steps": 0}, "steps must be at least 1, not 0"),
        (LatentOptions, {"steps": 10**9}, "steps must be at most 10000, not 1000000000"),
        (LatentOptions, {"steps": True}, "steps must be a whole number, not True"),
        (LatentOptions, {"steps": [1, 2]}, r"steps must be a whole number, not \[1, 2\]"),
        (LatentOptions, {"guidance": "3"}, "guidance must be a finite number, not '3'"),
        (LatentOptions, {"guidance": 1e4}, "guidance must lie between -1000 and 1000, not 10000"),
        (LatentOptions, {"strength": 0.0}, "strength must be more than 0 and at most 1, not 0"),
        (LatentOptions, {"s_tmin": -1.0}, "s_tmin must be at least 0, not -1"),
        (LatentOptions, {"sampler": "dimm"}, r"unknown sampler 'dimm': .*did you mean ddim\?"),
        (LatentOptions, {"long_prompts": "chop"}, "unknown long_prompts 'chop'"),
        (LatentOptions, {"prompt_weights": 1}, "prompt_weights must be true or false, not 1"),
        (LatentOptions, {"low": 1, "low_res": 2}, "low and low_res are one option"),
        (LatentOptions, {"stepz": 1}, r"no option 'stepz': .*did you mean steps\?"),
        (LatentOptions, {"threshold": "static"}, "threshold is for pixel models, and this model is none"),
        (LatentOptions, {"keep_stages": True}, "keep_stages is for cascades"),
        (LatentOptions, {"top_k": 3}, "top_k is for autoregressive models"),
        (AutoregressiveOptions, {"image": "x"}, "image is for diffusion models"),
        (LatentOptions, {"augmentation": 0.1}, "augmentation is for pixel models that enlarge images"),
        (AutoregressiveOptions, {"low_res": "x"}, "low_res is for models that enlarge images"),
        (AutoregressiveOptions, {"low": "x"}, "low is for models that enlarge images"),
        (CascadeOptions, {"size": (8, 8)}, "size is for models of one stage"),
        (PixelOptions, {"threshold": "dynamik"}, "unknown threshold 'dynamik'"),
        (CascadeOptions, {"augmentation": [None, 2]}, "augmentation must lie between 0 and 1, not 2"),
        (AutoregressiveOptions, {"temperature": 0}, "temperature must be more than 0, not 0"),
    ],
)
def test_what_does_not_fit_is_refused(kind: type, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_options(kind, given)


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("steps", "0", 0),
        ("steps", "10001", 10001),
        ("guidance", "2000", 2000.0),
        ("strength", "0", 0.0),
        ("augmentation", "1.5", 1.5),
        ("eta", "-1", -1.0),
        ("top_p", "0", 0.0),
        ("tile", "0", 0),
    ],
)
def test_the_command_line_and_python_refuse_in_the_same_words(name: str, word: str, value: float) -> None:
    option = all_options()[name]
    with pytest.raises(ValueError) as parsed:
        option.value.parse(word)
    with pytest.raises(UserError) as read:
        option.read(value)
    assert f"{name} {parsed.value}" == str(read.value)


def test_a_cascade_takes_one_value_for_each_stage() -> None:
    given = {"steps": [3, None], "threshold": ["static", None], "guidance": 2}
    values = read_options(CascadeOptions, given)
    assert (values["steps"], values["threshold"], values["guidance"]) == ([3, None], ["static", None], 2.0)
    value = options_of(CascadeOptions)["steps"].value
    assert value.parse("24,,-") == [24, None, None] and value.parse("7") == 7
    assert {name for name, one in all_options().items() if one.per_stage} == set(options.StageOptions.__annotations__)


class Model:
    @takes(LatentOptions)
    def generate(self, prompts: str, **options: Unpack[LatentOptions]) -> dict[str, Any]:
        """Generate images."""
        return read_options(LatentOptions, options)


def test_the_signature_lists_the_options() -> None:
    parameters = inspect.signature(Model().generate).parameters
    assert list(parameters) == ["prompts", *LatentOptions.__annotations__]
    assert (parameters["steps"].annotation, parameters["long_prompts"].default) == ("int | None", "refuse")
    assert "steps: number of sampling steps (default: the model's own)" in (Model.generate.__doc__ or "")


@pytest.mark.parametrize("scalar", [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)])
def test_scalars_of_numpy_and_pytorch_are_numbers(scalar: Any) -> None:
    value = read_options(LatentOptions, {"guidance": scalar})["guidance"]
    assert value == 0.5 and type(value) is float


@pytest.mark.parametrize("scalar", [np.int64(2), np.uint8(2), np.array(2), torch.tensor(2)])
def test_scalars_of_numpy_and_pytorch_are_whole_numbers(scalar: Any) -> None:
    assert type(read_options(LatentOptions, {"steps": scalar})["steps"]) is int
    assert integers("seeds", [scalar]) == [2]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"guidance": 10**400}, "guidance must be a finite number, not 1000"),
        ({"guidance": torch.tensor(True)}, "guidance must be a finite number, not True"),
        ({"steps": torch.tensor(True)}, "steps must be a whole number, not True"),
        ({"callback": 5}, "callback must be a function, not 5"),
        ({"guides": "judge"}, "guides must be a list of pairs of an opened guide and its scale, not 'judge'"),
        ({"guides": [("judge", 1.0)]}, r"guides must be .*, not .*judge"),
        ({"guides": [None]}, "guides must be .*, not .None."),
        ({"guides": torch.zeros(2)}, "guides must be .*, not tensor"),
    ],
)
def test_values_of_other_types_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_options(LatentOptions, given)


@pytest.mark.parametrize("values", [5, "12", b"12", {1, 2}, {1: 2}, np.int64(3), torch.tensor(3), None])
def test_a_list_of_whole_numbers_is_in_order(values: Any) -> None:
    with pytest.raises(UserError, match="seeds must be a list of whole numbers"):
        integers("seeds", values)


@pytest.mark.parametrize("values", [[True], [1.0], ["1"], torch.tensor([True]), np.array([1.5]), [None]])
def test_a_list_of_other_things_is_refused(values: Any) -> None:
    with pytest.raises(UserError, match="seeds must be whole numbers"):
        integers("seeds", values)


def test_every_option_of_a_sampler_is_an_option_of_generate() -> None:
    assert set(SAMPLER_OPTIONS) == LIMITS.keys() >= {key for name in SAMPLERS for key in sampler_options(name)}
