"""A1111's API, driven by webuiapi, unchanged."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("webuiapi")

import httpx2
import webuiapi

from diptych.cli import main as cli
from diptych.models.metadata import SAMPLERS, infotext, read_metadata
from diptych.models.options import SAMPLERS as OURS
from diptych.models.options import SCHEDULE_TYPES
from diptych.studio.a1111_fields import read_image_call, read_text_call
from diptych.studio.a1111_names import SCHEDULERS, parse_infotext, read_sampler, sampler_names
from diptych.studio.limits import FieldError
from tests.models import latents
from tests.models.test_metadata import ROW
from tests.studio.conftest import pool
from tests.studio.live import Live, live_studio

ASKED = {"prompt": "a red picture", "seed": 3, "steps": 3, "cfg_scale": 2.0, "width": 16, "height": 16}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_studio(tmp_path_factory.mktemp("studio")) as live:
        yield live


@pytest.fixture(scope="module")
def api(live: Live) -> Any:
    return webuiapi.WebUIApi(baseurl=f"{live.url}/sdapi/v1", sampler="Euler a", steps=3)


@pytest.fixture
def latent(api: Any) -> Iterator[Any]:
    api.set_options({"sd_model_checkpoint": "latent"})
    return api


def post(live: Live, route: str, **body: Any) -> httpx2.Response:
    return httpx2.post(f"{live.url}/sdapi/v1/{route}", json=body, timeout=30)


def picture(side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8))


def white_middle() -> Image.Image:
    mask = Image.new("L", (16, 16))
    ImageDraw.Draw(mask).rectangle((4, 4, 11, 11), fill=255)
    return mask


def base64_png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_images_are_those_of_generate(api: Any) -> None:
    """batch_size times n_iter images, their seeds counting up; `info` is a JSON string."""
    result = api.txt2img(**ASKED, negative_prompt="a blue picture", batch_size=2, n_iter=2)
    expected = pool().open("latent").generate(
        "a red picture", seeds=[3, 4, 5, 6], negative="a blue picture", steps=3, guidance=2.0,
        sampler="euler-ancestral", size=(16, 16),
    )  # fmt: skip
    assert len(result.images) == 4
    assert all(latents.same_image(one, image) for one, image in zip(result.images, expected.images, strict=True))
    info = result.info
    assert info["all_seeds"] == [3, 4, 5, 6] and info["seed"] == 3 and info["sampler_name"] == "Euler a"
    assert (info["steps"], info["cfg_scale"], info["width"], info["height"]) == (3, 2.0, 16, 16)
    assert info["infotexts"][1] == result.images[1].info["parameters"]
    assert info["all_negative_prompts"] == ["a blue picture"] * 4
    assert isinstance(result.json["info"], str) and result.parameters["prompt"] == "a red picture"


def test_a_png_of_it_is_made_again(api: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    latents.system().save(tmp_path / "model")
    answer = api.session.post(f"{api.baseurl}/txt2img", json={**ASKED, "sampler_name": "DPM++ 2M Karras"}).json()
    (tmp_path / "a.png").write_bytes(base64.b64decode(answer["images"][0]))
    row = read_metadata(tmp_path / "a.png")
    assert (row["sampler"], row["schedule_type"]) == ("dpmpp-2m", "karras")
    words = ["generate", "--from", str(tmp_path / "a.png"), "--model", str(tmp_path / "model"), "--out", str(tmp_path)]
    assert cli.main(words) == 0
    again = Image.open(capsys.readouterr().out.strip())
    assert np.array_equal(np.asarray(again), np.asarray(Image.open(tmp_path / "a.png")))


def test_a_style_puts_its_words_around_the_prompt(api: Any) -> None:
    style = api.get_prompt_styles()[0]
    image = api.txt2img(**ASKED, styles=[style["name"]]).image
    assert json.loads(image.info["diptych"])["prompt"] == style["prompt"].format(prompt="a red picture")


def test_what_is_left_out_is_the_models_own(live: Live) -> None:
    answer = post(live, "txt2img", prompt="a red picture")
    row = json.loads(answer.json()["info"])
    assert (row["width"], row["steps"], row["cfg_scale"]) == (16, 3, 3.0)
    assert post(live, "txt2img", prompt="a red picture", send_images=False).json()["images"] == []


def test_an_image_is_changed_by_its_strength(api: Any) -> None:
    more = {**ASKED, "images": [picture()], "denoising_strength": 0.5, "sampler_name": "DDIM", "eta": 0.0}
    result = api.img2img(**more)
    expected = (
        pool()
        .open("latent")
        .generate(
            "a red picture", seeds=[3], image=picture(), strength=0.5, steps=3, guidance=2.0, sampler="ddim", eta=0.0
        )
    )
    assert latents.same_image(result.image, expected.images[0]) and result.info["denoising_strength"] == 0.5
    assert result.parameters["init_images"] is None


@pytest.mark.parametrize("invert", [0, 1])
def test_a_mask_is_white_where_to_repaint(api: Any, invert: int) -> None:
    result = api.img2img(
        **ASKED, images=[picture()], mask_image=white_middle(), inpainting_mask_invert=invert, mask_blur=0,
        denoising_strength=1.0,
    )  # fmt: skip
    before, after = np.asarray(picture()), np.asarray(result.image)
    inside = (np.asarray(white_middle()) > 0) ^ bool(invert)
    assert np.array_equal(before[~inside], after[~inside]) and (before[inside] != after[inside]).mean() > 0.5
    assert result.info["ignored"] == ["inpaint_full_res"]


def test_lists_are_those_of_this_server(api: Any) -> None:
    assert api.util_get_model_names() == ["cascade", "latent"]
    names = api.util_get_sampler_names()
    assert {"Euler a", "DPM++ 2M", "DDIM", "UniPC"} <= set(names) and len(names) == len(set(names)) == len(OURS)
    assert {"automatic", "karras", "simple"} <= set(api.util_get_scheduler_names())
    empty = (api.get_loras(), api.get_sd_vae(), api.get_hypernetworks())
    assert empty == ([], [], []) and api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_memory()["ram"]["total"] > 0 and api.get_cmd_flags() == {"api": True}
    api.refresh_checkpoints()


def test_the_checkpoint_is_chosen_for_one_client(api: Any, live: Live) -> None:
    """And nothing else is changed, nor written to the disk."""
    other = {"x-client": "another"}
    files = sorted(live.engine.history.folder.rglob("*"))
    api.util_set_model("cascade")
    try:
        assert api.util_get_current_model() == "cascade"
        assert httpx2.get(f"{live.url}/sdapi/v1/options", headers=other).json()["sd_model_checkpoint"] == "latent"
        info = api.txt2img(prompt="a red picture", steps=1, width=None, height=None, cfg_scale=2).info
        assert info["sd_model_name"] == "cascade"
    finally:
        api.set_options({**api.get_options(), "sd_model_checkpoint": "latent"})  # all of them, as Open WebUI does
    assert [file for file in sorted(live.engine.history.folder.glob("*")) if file not in files] == []
    refused = post(live, "options", outdir_samples="/tmp/x")
    assert refused.status_code == 422 and "cannot be changed over HTTP" in refused.json()["detail"]
    assert post(live, "options", sd_model_checkpoint="sdxl").status_code == 422
    body = {"override_settings": {"sd_model_checkpoint": "cascade [0123456789]"}, "send_images": False}
    assert "cascade" in json.loads(post(live, "txt2img", prompt="a", steps=1, **body).json()["info"])["sd_model_name"]


def test_progress_and_interrupt(api: Any, live: Live) -> None:
    """An interrupted request is answered with what is done."""
    answers: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: answers.append(post(live, "txt2img", **{**ASKED, "steps": 200})))
    thread.start()
    seen = api.get_progress()
    for _ in range(500):
        if (seen := api.get_progress())["current_image"]:
            break
        time.sleep(0.005)
    assert 0 < seen["progress"] < 1 and seen["state"]["sampling_steps"] == 200 and seen["state"]["job_count"] == 1
    assert Image.open(io.BytesIO(base64.b64decode(seen["current_image"]))).format == "PNG"
    assert api.interrupt() == {}
    thread.join(timeout=20)
    assert answers[0].status_code == 200 and answers[0].json()["images"] == []
    api.util_wait_for_ready(check_interval=0.05)
    assert api.get_progress()["progress"] == 0 and api.skip() == {}


def test_png_info_reads_what_galleries_read(api: Any) -> None:
    image = api.txt2img(**ASKED).image
    found = api.png_info(image).json
    assert found["info"] == image.info["parameters"] and json.loads(found["items"]["diptych"])["seed"] == 3
    assert found["parameters"]["Prompt"] == "a red picture" and found["parameters"]["Size-1"] == "16"
    assert api.png_info(picture()).json == {"info": "", "items": {}, "parameters": {}}


def test_a_stage_of_a_cascade_enlarges(api: Any, live: Live) -> None:
    """Which one, the size of the image says, and the last one the factor."""
    sizes = [config.size for config in pool().open("cascade").configs]
    small = picture(sizes[0])
    for factor in [size // sizes[0] for size in sizes[1:]]:  # it may end at any stage
        result = api.extra_single_image(small, upscaler_1="cascade", upscaling_resize=factor)
        assert result.image.size == (sizes[0] * factor,) * 2
    assert {row["name"]: row["scale"] for row in api.get_upscalers()} == {"cascade": sizes[-1] // sizes[0]}
    for fields, says in (
        ({"upscaler_1": "cascade", "upscaling_resize": 3}, "times: ask for that"),
        ({"upscaler_1": "latent"}, "enlarges no images"),
        ({"upscaler_1": "R-ESRGAN 4x+"}, "there are latent, cascade"),
        ({"upscaler_1": "cascade", "gfpgan_visibility": 1}, "not supported"),
    ):
        answer = post(live, "extra-single-image", image=base64_png(small), **fields)
        assert answer.status_code == 422 and says in answer.json()["detail"]


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"sampler_name": "PLMS"}, "sampler_name", "there are DDPM"),
        ({"scheduler": "Align Your Steps"}, "scheduler", "no scheduler"),
        ({"steps": 0}, "steps", "steps"),
        ({"steps": "many"}, "steps", "must be a number"),
        ({"width": 17}, "width", "multiple"),
        ({"height": None}, "height", "or neither"),
        ({"batch_size": 99}, "batch_size", "from 1 to 8"),
        ({"subseed_strength": 0.5}, "subseed_strength", "not supported"),
        ({"enable_hr": True}, "enable_hr", "not supported"),
        ({"restore_faces": True}, "restore_faces", "not supported"),
        ({"script_name": "x/y/z plot"}, "script_name", "not supported"),
        ({"alwayson_scripts": {"ControlNet": {"args": [1]}}}, "alwayson_scripts", "there are no"),
        ({"styles": ["best"]}, "styles", "no style 'best'"),
        (
            {"override_settings": {"CLIP_stop_at_last_layers": 2}},
            "override_settings.CLIP_stop_at_last_layers",
            "cannot",
        ),
        ({"override_settings": {"sd_model_checkpoint": "x"}}, "override_settings.sd_model_checkpoint", "no model 'x'"),
        ({"init_images": ["http://127.0.0.1/a.png"]}, "init_images", "no address is fetched"),
        ({"init_images": ["data:image/png;base64,!"]}, "init_images", "no valid base64"),
        ({"init_images": ["aGVsbG8="]}, "init_images", "not a PNG"),
        ({"init_images": []}, "init_images", "a list with one image"),
        ({"init_images": "PICTURE", "denoising_strength": 0}, "denoising_strength", "strength"),
        ({"init_images": "PICTURE", "resize_mode": 3}, "resize_mode", "resize_mode must be"),
    ],
)
def test_errors_name_the_field(live: Live, changes: dict[str, Any], field: str, says: str) -> None:
    route = "img2img" if "init_images" in changes else "txt2img"
    changes = (
        {**changes, "init_images": [base64_png(picture())]} if changes.get("init_images") == "PICTURE" else changes
    )
    answer = post(live, route, **{**ASKED, **changes})
    assert answer.status_code == 422, answer.text
    assert answer.json()["body"] == field and says in answer.json()["detail"]


def test_a_password_is_asked_for_where_there_is_a_token(tmp_path: Path) -> None:
    with live_studio(tmp_path, token="s" * 22) as live:
        refused = httpx2.get(f"{live.url}/sdapi/v1/options")
        assert refused.status_code == 401 and "Basic" in refused.headers["www-authenticate"]
        assert refused.json()["detail"] == "a token is needed"
        api = webuiapi.WebUIApi(baseurl=f"{live.url}/sdapi/v1", username="me", password="s" * 22)
        assert api.util_get_current_model() == "latent"


# Without a server.


def test_names_of_samplers_lead_both_ways() -> None:
    for ours in OURS:
        names = [name for name, one in sampler_names().items() if one == ours]
        assert len(names) == 1 and read_sampler(names[0]) == read_sampler(ours) == (ours, None)
    assert {read_sampler(name)[0] for name in SAMPLERS.values()} <= set(OURS)
    assert read_sampler("euler A", "Karras") == ("euler-ancestral", "karras")
    assert read_sampler("DPM++ 2M SDE Karras", "Automatic") == ("dpmpp-2m-sde", "karras")
    assert read_sampler(None, "SGM Uniform") == (None, "trailing")
    assert set(SCHEDULERS.values()) == set(SCHEDULE_TYPES)


def test_defaults_of_webuiapi_change_nothing() -> None:
    """It always sends eta=1, which A1111 uses in some samplers only, and churn of 0."""
    body = {"prompt": "a", "s_churn": 0, "s_tmin": 0, "s_tmax": 0, "s_noise": 1, "eta": 1.0, "seed": -1}
    assert read_text_call({**body, "sampler_index": "DPM++ 2M"}, None).fields == {
        "prompt": "a", "negative": "", "count": 1, "sampler": "dpmpp-2m",
    }  # fmt: skip
    assert read_text_call({**body, "sampler_index": "DDIM"}, "x").fields["eta"] == 1.0


def test_a_mask_is_blurred_before_it_is_cut() -> None:
    """A dot that is small against the blur is gone; with none it stays."""
    mask = Image.new("L", (16, 16))
    ImageDraw.Draw(mask).rectangle((6, 6, 9, 9), fill=255)
    body = {"prompt": "a", "init_images": [base64_png(picture())], "mask": base64_png(mask)}
    areas = [
        np.asarray(read_image_call({**body, "mask_blur": blur}, None).images["mask"].convert("L")).astype(bool).sum()
        for blur in (0, 8)
    ]
    assert areas == [16, 0]


def test_an_infotext_is_read_as_it_was_written() -> None:
    found = parse_infotext(infotext(ROW))
    assert (found["Prompt"], found["Negative prompt"]) == ("a red apple", "green, worms")
    assert (found["Size-1"], found["Size-2"], found["Model"]) == ("64", "32", "apple, red")
    assert parse_infotext("only words, with: a colon") == {
        "Prompt": "only words, with: a colon", "Negative prompt": "",
    }  # fmt: skip


def test_numbers_that_are_none_are_refused() -> None:
    for wrong in ({"steps": True}, {"seed": 0.5}, {"cfg_scale": float("nan")}, {"steps": 10**400}, {"n_iter": 0}):
        with pytest.raises(FieldError):
            read_text_call({"prompt": "a", **wrong}, None)
