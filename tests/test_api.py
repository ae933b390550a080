"""The package as Python sees it: names, types, and what its objects show of themselves."""

from __future__ import annotations

import base64
import importlib.resources
import io
import re

import pytest
from PIL import Image

import diptych
from diptych.core.version import version
from diptych.models.request import Result
from tests.models import latents, stages


def test_names() -> None:
    assert diptych.__version__ == version() and diptych.Result is Result
    assert set(diptych.__all__) == {"Result", "UserError", "__version__", "load"}
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        diptych.lode  # noqa: B018


def test_the_package_says_that_it_has_types() -> None:
    assert (importlib.resources.files("diptych") / "py.typed").is_file()


def test_a_model_shows_itself_in_one_line() -> None:
    model = latents.system()
    assert re.fullmatch(r"LatentDiffusion\(\d+ px; unet 0\.\d M, .*autoencoder 0\.\d M; cpu\)", repr(model))
    cascade = stages.cascade()
    sizes = " -> ".join(str(config.size) for config in cascade.configs)
    assert repr(cascade) == f"Cascade({sizes} px; cpu)"
    low, size = cascade.configs[1].low_size, cascade.configs[1].size
    assert repr(cascade.stage(1)).startswith(f"PixelDiffusion({low} -> {size} px; network ")


def test_a_result_shows_itself_in_a_notebook() -> None:
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    shown = Result([image, image], [{"prompt": "<b> & c", "seed": 7}])._repr_html_()
    (first, second) = re.findall(r"base64,([^\"]+)", shown)
    assert first == second and Image.open(io.BytesIO(base64.b64decode(first))).getpixel((2, 1)) == (1, 2, 3)
    assert "<figcaption>&lt;b&gt; &amp; c 7</figcaption>" in shown and "<b>" not in shown
    assert repr(Result([image], [{"prompt": "x"}])) == "Result(1 images: ['x'])"


def test_one_prompt_with_several_seeds_is_several_images() -> None:
    model = latents.system()
    many = model.generate("a red disc", seeds=[3, 4], negative="blue", steps=2)
    assert [(values["prompt"], values["seed"]) for values in many.metadata] == [("a red disc", 3), ("a red disc", 4)]
    alone = model.generate("a red disc", seeds=[4], negative="blue", steps=2)
    assert latents.same_image(alone.images[0], many.images[1])
    with pytest.raises(diptych.UserError, match="2 prompts, 3 seeds"):
        model.generate(["a", "b"], seeds=[1, 2, 3])
