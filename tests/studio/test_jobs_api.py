"""The studio's own API, and the engine behind it."""

from __future__ import annotations

import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import UserError
from diptych.studio.engine import Engine
from diptych.studio.image_request import ImageRequest
from diptych.studio.limits import FieldError
from diptych.studio.model_pool import file_bytes, own_styles
from diptych.studio.styles import read_styles
from tests.models.latents import same_image
from tests.studio.conftest import LIMITS, pool

RED = {"prompt": "a red apple", "seed": 3, "options": {"steps": 3, "guidance": 2.0}}


def done(client: Any, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    """The job of a request when it has ended."""
    answer = client.post("/api/jobs", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    with client.stream("GET", f"/api/jobs/{answer.json()['id']}/events") as events:
        assert "data:" in "".join(events.iter_text())
    return client.get(f"/api/jobs/{answer.json()['id']}").json()


def fetched(client: Any, id: str) -> Image.Image:
    answer = client.get(f"/api/images/{id}.png")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(answer.content))


def test_images_are_those_of_generate(client: Any) -> None:
    job = done(client, {**RED, "count": 2})
    assert job["state"] == "done" and [one["seed"] for one in job["images"]] == [3, 4]
    expected = pool().open("latent").generate(["a red apple"] * 2, seeds=[3, 4], steps=3, guidance=2.0)
    for one, image in zip(job["images"], expected.images, strict=True):
        png = fetched(client, one["id"])
        assert same_image(png, image)
        assert json.loads(png.info["diptych"])["seed"] == one["seed"]


def test_events_come_in_order_and_can_be_taken_up(client: Any) -> None:
    job = client.post("/api/jobs", json=RED).json()
    with client.stream("GET", f"/api/jobs/{job['id']}/events") as events:
        text = "".join(events.iter_text())
    seen = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert [one["number"] for one in seen] == list(range(1, len(seen) + 1))
    assert [one["type"] for one in seen] == ["queued", "started", "step", "step", "step", "image", "done"]
    assert seen[2]["preview"].startswith("data:image/webp;base64,") and seen[2]["guidance_delta"] > 0
    with client.stream("GET", f"/api/jobs/{job['id']}/events", headers={"last-event-id": "5"}) as events:
        again = [line for line in "".join(events.iter_text()).splitlines() if line.startswith("id: ")]
    assert again == ["id: 6", "id: 7"]


def test_wrong_fields_are_named(client: Any) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"options": {"steps": 0}}, "steps"),
        ({"options": {"stepz": 1}}, "stepz"),
        ({"options": {"size": [17, 16]}}, "size"),
        ({"options": {"threshold": "static"}}, "threshold"),
        ({"options": {"sampler": "none"}}, "sampler"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "word " * 5000}, "prompt"),
        ({"count": 9}, "count"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"model": "other"}, "model"),
        ({"model": "/etc/passwd"}, "model"),
        ({"image": "../../etc/passwd"}, "image"),
        ({"options": {"strength": 0.5}}, "strength"),
        ({"options": {"steps": 500}}, "steps"),
        ({"options": {"size": [512, 512]}}, "size"),
    ]
    for change, field in wrong:
        answer = client.post("/api/jobs", json={**RED, **change})
        assert answer.status_code == 422, (change, answer.text)
        assert answer.json()["error"]["field"] == field, (change, answer.text)


def test_image_to_image_and_its_metadata(client: Any) -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(file, "PNG")
    sent = client.post("/api/uploads", content=file.getvalue()).json()
    assert (sent["width"], sent["height"]) == (16, 16)
    job = done(client, {**RED, "image": sent["id"], "options": {"steps": 4, "strength": 0.5}})
    metadata = json.loads(fetched(client, job["images"][0]["id"]).info["diptych"])
    assert metadata["image"]["file"] == f"inputs/{sent['id']}.png"  # no path of the server
    fields = client.post("/api/read", content=client.get(f"/api/images/{job['images'][0]['id']}.png").content).json()
    assert fields["image"] == sent["id"] and fields["options"]["strength"] == 0.5 and fields["missing"] == []
    again = done(client, {name: value for name, value in fields.items() if name != "missing"})
    assert same_image(*(fetched(client, one["images"][0]["id"]) for one in (job, again)))


def test_a_cascade_keeps_its_stages(client: Any) -> None:
    job = done(client, {"model": "cascade", "prompt": "a red apple", "seed": 1, "options": {"steps": 2}})
    id = job["images"][0]["id"]
    row = client.get(f"/api/images/{id}").json()
    assert row["stages"] == 2
    small = Image.open(io.BytesIO(client.get(f"/api/images/{id}.png?stage=1").content))
    assert small.width < fetched(client, id).width


def test_history(client: Any, engine: Engine) -> None:
    job = done(client, {**RED, "prompt": "a quite special lamp", "count": 2})
    ids = [one["id"] for one in job["images"]]
    assert [row["id"] for row in client.get("/api/images?search=special LAMP").json()] == ids[::-1]
    assert client.patch(f"/api/images/{ids[0]}", json={"favourite": True}).status_code == 200
    assert [row["id"] for row in client.get("/api/images?favourite=true").json()] == ids[:1]
    bundle = client.post("/api/images/zip", json={"ids": ids})
    with zipfile.ZipFile(io.BytesIO(bundle.content)) as archive:
        assert archive.testzip() is None and archive.namelist() == [f"{id}.png" for id in ids]
    assert client.get(f"/api/images/{ids[0]}/thumbnail").content[8:12] == b"WEBP"
    assert len(client.get(f"/api/images/{ids[0]}/steps").json()) >= 1
    assert client.delete(f"/api/images/{ids[1]}").status_code == 200
    assert client.get(f"/api/images/{ids[1]}.png").status_code == 404
    assert not list(engine.history.folder.rglob(f"{ids[1]}*"))


def test_cancel_stops_at_the_next_step(client: Any, engine: Engine) -> None:
    steps = engine.counts["steps"]
    job = client.post("/api/jobs", json={**RED, "options": {"steps": 200}}).json()
    while client.get(f"/api/jobs/{job['id']}").json()["images"][0]["step"] < 2:
        time.sleep(0.005)
    client.delete(f"/api/jobs/{job['id']}")
    while client.get(f"/api/jobs/{job['id']}").json()["state"] != "cancelled":
        time.sleep(0.005)
    assert engine.counts["steps"] - steps < 150
    assert client.get(f"/api/jobs/{job['id']}").json()["images"][0]["id"] is None


def test_prompt_check(client: Any) -> None:
    checked = client.post("/api/check", json={"prompt": "a red apple", "size": [64, 64]}).json()
    assert checked["tokens"] > 0 and checked["limit"] and any("far from" in text for text in checked["warnings"])


def test_styles_are_words_around_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "styles.csv"
    file.write_text(
        '\ufeffname,prompt,negative_prompt\nNoto,"{prompt}, in the style of Noto",\nflat,flat colours,shadow\n'
    )
    models = pool(styles=read_styles(file))

    def read(**fields: Any) -> tuple[str, str]:
        request = ImageRequest.read(models, LIMITS, {"prompt": "a red apple", **fields})
        return request.prompt, request.negative

    assert read(style="Noto") == ("a red apple, in the style of Noto", "")
    assert read(style=["Noto", "flat"], negative="blur") == (
        "a red apple, in the style of Noto, flat colours",
        "blur, shadow",
    )
    assert read(style="") == read() == ("a red apple", "")
    for wrong in ("other", 3, [None]):
        with pytest.raises(FieldError) as error:
            read(style=wrong)
        assert error.value.field == "style"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="name,prompt,negative_prompt"):
        read_styles(file)


def test_the_styles_of_the_package_are_words_of_its_training_captions() -> None:
    from diptych.data.emoji.icon_sources import SETS

    for name in ("latent", "cascade"):
        styles = own_styles(name)
        assert [one.apply("x", "")[0] for one in styles.values()] == [
            f"x, in the style of {one.caption_name}" for one in SETS
        ]


@pytest.mark.parametrize("place", [".", "model"], ids=["a model folder", "a run"])
def test_a_folder_with_a_lora_has_the_styles_and_the_size_of_its_base(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "run" / place
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"kind": "latent-lora", "base": "latent"}))
    (folder / "pytorch_lora_weights.safetensors").write_bytes(bytes(100))
    assert list(own_styles(str(tmp_path / "run"))) == list(own_styles("latent"))
    assert file_bytes(str(tmp_path / "run")) == 100 + file_bytes("latent")
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "one.safetensors").write_bytes(bytes(10))
    (folder / "config.json").write_text(json.dumps({"kind": "latent-lora", "base": str(tmp_path / "beside")}))
    assert file_bytes(str(tmp_path / "run")) == 110 and not own_styles(str(tmp_path / "run"))


def test_large_seeds_are_text_which_no_client_rounds(client: Any) -> None:
    seed = 2**53 + 1
    job = done(client, {**RED, "seed": str(seed)})
    assert job["images"][0]["seed"] == str(seed)
    png = client.get(f"/api/images/{job['images'][0]['id']}.png").content
    assert json.loads(Image.open(io.BytesIO(png)).info["diptych"])["seed"] == seed
    assert client.post("/api/read", content=png).json()["seed"] == str(seed)
    assert client.post("/api/jobs", json={**RED, "seed": "9" * 19}).json()["error"]["field"] == "seed"


def test_who_comes_late_sees_each_stage_of_a_cascade(client: Any) -> None:
    job = done(client, {"model": "cascade", "prompt": "a red apple", "seed": 2, "options": {"steps": 6}})
    with client.stream("GET", f"/api/jobs/{job['id']}/events") as events:
        lines = "".join(events.iter_text()).splitlines()
    seen = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert {one["stage"] for one in seen if one.get("preview")} == {8, 16, 32}
