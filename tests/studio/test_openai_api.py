"""OpenAI's images API, driven by its own client, unchanged."""

from __future__ import annotations

import base64
import functools
import http.client
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("python_multipart")
pytest.importorskip("openai")

import httpx2
import openai

from diptych.cli import main as cli
from diptych.models.metadata import read_metadata
from diptych.studio.limits import FieldError
from diptych.studio.openai_answers import Partials
from diptych.studio.openai_fields import read_call
from diptych.studio.sent_images import alpha_mask
from tests.models import latents
from tests.studio.conftest import pool
from tests.studio.live import Live, live_studio

MORE = {"seed": 3, "num_inference_steps": 3, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_studio(tmp_path_factory.mktemp("studio")) as live:
        yield live


@pytest.fixture(scope="module")
def client(live: Live) -> Any:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)


def opened(one: Any) -> Image.Image:
    """An image of an answer, or of an event."""
    image = Image.open(io.BytesIO(base64.b64decode(one.b64_json)))
    image.load()
    return image


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    return Image.fromarray(values)


def hole() -> Image.Image:
    """A mask of OpenAI's: transparent in the middle."""
    mask = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    ImageDraw.Draw(mask).rectangle((4, 4, 11, 11), fill=(0, 0, 0, 0))
    return mask


def test_the_models_are_those_of_the_server(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["latent", "cascade"]
    assert client.models.retrieve("cascade").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-image-1")
    assert caught.value.code == "model_not_found" and "latent, cascade" in str(caught.value)


def test_an_image_is_that_of_generate(client: Any) -> None:
    """Seeds count up, and fields that mean nothing here are ignored."""
    answer = client.images.generate(
        prompt="a red picture", model="latent", n=2, quality="high", moderation="low", user="me", extra_body=MORE
    )
    expected = pool().open("latent").generate("a red picture", seeds=[3, 4], steps=3, guidance=2.0)
    assert all(latents.same_image(opened(one), image) for one, image in zip(answer.data, expected.images, strict=True))
    assert answer.size == "16x16" and answer.output_format == "png" and answer.background == "opaque"
    assert answer.usage.input_tokens == answer.usage.total_tokens > 0


def test_a_png_says_how_it_was_made(client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    latents.system().save(tmp_path / "model")
    answer = client.images.generate(
        prompt="a red picture", size="24x16", extra_body={**MORE, "negative_prompt": "blue"}
    )
    (tmp_path / "a.png").write_bytes(base64.b64decode(answer.data[0].b64_json))
    row = read_metadata(tmp_path / "a.png")
    assert (row["negative"], row["size"], row["steps"], row["seed"]) == ("blue", [24, 16], 3, 3)
    words = ["generate", "--from", str(tmp_path / "a.png"), "--model", str(tmp_path / "model"), "--out", str(tmp_path)]
    assert cli.main(words) == 0
    again = Image.open(capsys.readouterr().out.strip())
    assert np.array_equal(np.asarray(again), np.asarray(opened(answer.data[0])))


@pytest.mark.parametrize(("format", "quality"), [("webp", 80), ("jpeg", 60)])
def test_other_formats_keep_the_settings(client: Any, tmp_path: Path, format: Any, quality: int) -> None:
    answer = client.images.generate(
        prompt="a red picture", output_format=format, output_compression=quality, extra_body=MORE
    )
    (tmp_path / "a").write_bytes(base64.b64decode(answer.data[0].b64_json))
    assert opened(answer.data[0]).format == format.upper() == answer.output_format.upper()
    assert read_metadata(tmp_path / "a")["seed"] == 3


def test_a_url_leads_to_the_png(client: Any, live: Live) -> None:
    answer = client.images.generate(prompt="a red picture", response_format="url", extra_body=MORE)
    url = answer.data[0].url
    assert url.startswith(f"{live.url}/api/images/") and answer.data[0].b64_json is None
    assert Image.open(io.BytesIO(httpx2.get(url).content)).size == (16, 16)


def test_a_mask_says_by_its_alpha_where_to_generate(client: Any) -> None:
    image = picture()
    answer = client.images.edit(
        image=("a.png", png(image)), mask=("mask.png", png(hole())), prompt="a red picture", extra_body={"seed": 1}
    )
    before, after = np.asarray(image), np.asarray(opened(answer.data[0]))
    inside = np.asarray(hole().getchannel("A")) == 0
    assert np.array_equal(before[~inside], after[~inside]) and (before[inside] != after[inside]).mean() > 0.5


def test_an_edit_without_a_mask_changes_the_image_by_strength(client: Any) -> None:
    """Several parts, as the client names them; JPEG; an enlarging stage is none of it."""
    file = io.BytesIO()
    picture().save(file, "JPEG")
    answer = client.images.edit(
        image=[("a.jpg", file.getvalue())], prompt="a red picture", n=2, extra_body={"strength": 0.5, "sampler": "ddim"}
    )
    row = json.loads(opened(answer.data[1]).info["diptych"])
    assert len(answer.data) == 2 and (row["strength"], row["sampler"]) == (0.5, "ddim")
    assert client.images.with_raw_response.edit(image=("a.png", png(picture())), prompt="a", n=1).status_code == 200


def test_variations_need_no_prompt(client: Any) -> None:
    answer = client.images.create_variation(image=("a.png", png(picture())), n=2, response_format="b64_json")
    assert [opened(one).size for one in answer.data] == [(16, 16)] * 2


@pytest.mark.parametrize("edit", [False, True])
def test_a_stream_has_partial_images_and_then_the_image(client: Any, edit: bool) -> None:
    kind = "image_edit" if edit else "image_generation"
    call = functools.partial(client.images.edit, image=("a.png", png(picture()))) if edit else client.images.generate
    more = {"seed": 3, "num_inference_steps": 12}
    events = list(call(prompt="a red picture", stream=True, partial_images=2, extra_body=more))
    *partial, last = events
    assert [event.type for event in partial] == [f"{kind}.partial_image"] * len(partial) and partial
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert last.type == f"{kind}.completed" and last.usage.total_tokens > 0 and last.size == "16x16"
    assert opened(last).info["diptych"] and all(opened(event).format == "PNG" for event in partial)


def test_partial_images_are_spread_over_the_steps() -> None:
    partials = Partials(3)
    steps = [{"image": 0, "step": step, "steps": 8, "preview": f"{step}" if step % 2 else None} for step in range(1, 9)]
    found = [(step["step"], partials.of_step(step)) for step in steps]
    assert [(step, one) for step, one in found if one] == [(2, (0, "1")), (4, (1, "3")), (6, (2, "5"))]


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"background": "transparent"}, "background", "must be auto or opaque"),
        ({"output_format": "svg"}, "output_format", "png or webp or jpeg"),
        ({"size": "1024"}, "size", "as 64x64"),
        ({"size": "17x17"}, "size", "multiple"),
        ({"size": "4096x4096"}, "size", "65,536 pixels"),
        ({"n": 99}, "n", "n must be a whole number from 1 to 8"),
        ({"partial_images": 9, "stream": True}, "partial_images", "from 0 to 3"),
        ({"extra_body": {"num_inference_steps": 0}}, "num_inference_steps", "steps"),
        ({"extra_body": {"guidance_scale": "much"}}, "guidance_scale", "number"),
        ({"extra_body": {"seed": -1}}, "seed", "whole number"),
        ({"extra_body": {"decoder": "/etc/passwd"}}, "decoder", "cannot be set here"),
        ({"response_format": "url", "output_format": "webp"}, "response_format", "b64_json"),
    ],
)
def test_errors_name_the_clients_field(client: Any, fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a red picture", **fields)
    error = caught.value
    assert error.param == param and says in error.body["message"] and error.type == "invalid_request_error"


def test_errors_of_edits_name_the_part(client: Any) -> None:
    small, opaque = Image.new("RGBA", (8, 8)), Image.new("RGB", (16, 16))
    for files, param, says in (
        ({"mask": ("m.png", png(small))}, "mask", "they must be the same"),
        ({"mask": ("m.png", png(opaque))}, "mask", "nothing of the mask is transparent"),
        ({"image": ("a.png", b"no image")}, "image", "not a PNG, JPEG or WebP"),
        ({"image": [("a.png", png(small)), ("b.png", png(small))]}, "image", "give one image, not 2"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.edit(**{"image": ("a.png", png(picture())), "prompt": "a", **files})
        assert caught.value.param == param and says in str(caught.value)


def test_a_full_queue_says_when_to_come_back(client: Any, live: Live) -> None:
    limits = live.engine.queue.most_of_client
    live.engine.queue.most_of_client = 0
    try:
        with pytest.raises(openai.RateLimitError) as caught:
            client.images.generate(prompt="a red picture")
    finally:
        live.engine.queue.most_of_client = limits
    assert caught.value.code == "rate_limit_exceeded" and int(caught.value.response.headers["retry-after"]) >= 1


def test_what_no_route_answers_has_the_same_form(live: Live) -> None:
    for answer, status in (
        (httpx2.get(f"{live.url}/v1/images/generations"), 405),
        (httpx2.get(f"{live.url}/v1/chat/completions"), 404),
        (httpx2.post(f"{live.url}/v1/images/generations", content=b"{"), 400),
        (httpx2.post(f"{live.url}/v1/images/generations", content=b"[1]"), 400),
        (httpx2.post(f"{live.url}/v1/images/edits", json={"prompt": "a"}), 400),
        (httpx2.post(f"{live.url}/v1/images/generations", json={}, headers={"origin": "http://evil.example"}), 403),
    ):
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "code", "param"}
    connection = http.client.HTTPConnection(live.address.host, live.address.port)
    connection.putrequest("POST", "/v1/images/generations")
    connection.putheader("content-length", "99999999999")
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413 and json.loads(answer.read())["error"]["code"] == "request_too_large"
    connection.close()


def test_a_client_that_leaves_takes_its_job_along(live: Live) -> None:
    before = live.engine.counts["cancelled"]
    body = {"prompt": "a red picture", "num_inference_steps": 200, "n": 8}
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{live.url}/v1/images/generations", json=body, timeout=0.3)
    for _ in range(100):
        if live.engine.counts["cancelled"] > before:
            break
        time.sleep(0.02)
    assert live.engine.counts["cancelled"] == before + 1


def test_a_key_is_asked_for_where_there_is_a_token(tmp_path: Path) -> None:
    with live_studio(tmp_path, token="s" * 22) as live:
        with pytest.raises(openai.AuthenticationError) as caught:
            openai.OpenAI(base_url=f"{live.url}/v1", api_key="other", max_retries=0).models.list()
        assert caught.value.code == "invalid_api_key"
        found = openai.OpenAI(base_url=f"{live.url}/v1", api_key="s" * 22).models.list()
        assert [model.id for model in found] == ["latent", "cascade"]


# Without a server.


def test_fields_of_forms_are_read_from_text() -> None:
    form = {"prompt": "a", "n": "2", "seed": "5", "num_inference_steps": "7", "guidance_scale": "2.5", "paste": "false",
            "stream": "True", "partial_images": "1", "size": "auto", "sampler": "ddim"}  # fmt: skip
    call = read_call(form, text=True)
    assert call.fields == {
        "prompt": "a", "count": 2, "seed": 5, "steps": 7, "guidance": 2.5, "paste": False, "sampler": "ddim",
    }  # fmt: skip
    assert call.stream and call.partial_images == 1
    for wrong in ({"n": "two"}, {"guidance_scale": "x"}, {"stream": "perhaps"}):
        with pytest.raises(FieldError) as caught:
            read_call({"prompt": "a", **wrong}, text=True)
        assert caught.value.field == next(iter(wrong))


def test_half_transparent_counts_as_transparent() -> None:
    mask = Image.new("RGBA", (8, 8), (255, 255, 255, 128))
    mask.putpixel((0, 0), (0, 0, 0, 127))
    found = np.asarray(alpha_mask("mask", png(mask)))
    assert found[0, 0] == 255 and found.sum() == 255
