"""A safety check in front of every API: nothing that it refuses is queued, kept, or shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.models.safety_check import BROKEN, SafetyCheck
from diptych.studio.application import studio_application
from diptych.studio.engine import Engine
from tests.studio.conftest import ADDRESS, opened
from tests.studio.test_jobs_api import RED, done


class Check:
    """Refuses what the test says, and notes what it has seen."""

    check_previews = False

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.images: list[Image.Image] = []
        self.refused: list[bool] = []

    def check_prompt(self, prompt: str) -> str | None:
        self.prompts.append(prompt)
        if prompt == "broken":
            raise RuntimeError("secret")
        return "no weapons" if "weapon" in prompt else None

    def check_image(self, image: Image.Image) -> str | None:
        self.images.append(image)
        return "not nice" if self.refused and self.refused.pop(0) else None


@pytest.fixture
def check() -> Check:
    return Check()


@pytest.fixture
def engine(tmp_path: Path, check: Check) -> Iterator[Engine]:
    engine = opened(tmp_path / "studio", safety=SafetyCheck(check))
    engine.start()
    yield engine
    engine.close()
    engine.history.close()


@pytest.fixture
def client(engine: Engine) -> Iterator[Any]:
    from starlette.testclient import TestClient

    with TestClient(studio_application(engine, ADDRESS), base_url="http://127.0.0.1") as client:  # type: ignore[arg-type]
        yield client


def test_refused_prompts_are_not_queued_by_any_api(client: Any, engine: Engine, check: Check) -> None:
    for path, body in (
        ("/api/jobs", {"prompt": "a weapon"}),
        ("/v1/images/generations", {"prompt": "a weapon"}),
        ("/sdapi/v1/txt2img", {"prompt": "a weapon"}),
        ("/api/jobs", {"prompt": "broken"}),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code in (400, 422) and "prompt" in answer.text, path
        assert ("no weapons" if "weapon" in body["prompt"] else BROKEN) in answer.text and "secret" not in answer.text
    assert not engine.jobs and not engine.history.images() and len(check.prompts) == 4


def test_a_negative_prompt_that_an_image_follows_is_checked(client: Any) -> None:
    asked = {**RED, "negative": "a weapon", "options": {"steps": 1, "guidance": 0.5}}
    assert client.post("/api/jobs", json=asked).json()["error"]["field"] == "negative"
    asked["options"]["guidance"] = 2.0
    assert done(client, asked)["state"] == "done"


def test_of_several_images_the_refused_one_is_left_out(client: Any, engine: Engine, check: Check) -> None:
    check.refused = [False, True, False]
    job = done(client, {**RED, "count": 3})
    assert job["state"] == "done" and [one["state"] for one in job["images"]] == ["done", "failed", "done"]
    assert job["warnings"] == ["image 2 of 3 was refused: not nice"] and job["images"][1]["id"] is None
    assert len(list((engine.history.folder / "images").glob("*.png"))) == len(engine.history.images()) == 2
    assert engine.counts["refused"] == 1


def test_a_job_of_which_nothing_is_left_says_why(client: Any, engine: Engine, check: Check) -> None:
    check.refused = [True]
    job = done(client, RED)
    assert job["state"] == "failed" and job["error"] == {
        "message": "refused: not nice",
        "field": "prompt",
        "code": "refused",
    }
    check.refused = [True, True]
    for path in ("/v1/images/generations", "/sdapi/v1/txt2img"):
        answer = client.post(path, json={"prompt": "a red apple", "steps": 1, "num_inference_steps": 1})
        assert answer.status_code in (400, 422) and "not nice" in answer.text
    check.refused = [False, True]
    answer = client.post("/v1/images/generations", json={"prompt": "a red apple", "num_inference_steps": 1, "n": 2})
    assert answer.status_code == 200 and len(answer.json()["data"]) == 1
    assert len(list(engine.history.folder.rglob("*.png"))) == 1


def test_of_a_refused_cascade_no_stage_is_kept(client: Any, engine: Engine, check: Check) -> None:
    check.refused = [False, False, True]
    job = done(client, {"model": "cascade", "prompt": "a red apple", "options": {"steps": 1}})
    assert job["state"] == "failed" and not list(engine.history.folder.rglob("*.png"))
    assert len({image.size for image in check.images}) == 3


def previews_of(client: Any) -> list[Any]:
    id = client.post("/api/jobs", json=RED).json()["id"]
    with client.stream("GET", f"/api/jobs/{id}/events") as events:
        rows = [json.loads(line[6:]) for line in "".join(events.iter_text()).splitlines() if line.startswith("data: ")]
    return [row["preview"] for row in rows if row["type"] == "step"]


def test_images_that_are_not_checked_yet_are_not_shown(client: Any, engine: Engine, check: Check) -> None:
    assert previews_of(client) == [None, None, None]
    assert engine.history.strip(engine.history.images()[0]["id"]) == []
    assert len(check.images) == 1  # the image itself


def test_previews_that_are_checked_are_shown(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    class Previews(Check):
        check_previews = True

    check = Previews()
    engine = opened(tmp_path / "studio", safety=SafetyCheck(check))
    engine.start()
    with TestClient(studio_application(engine, ADDRESS), base_url="http://127.0.0.1") as client:  # type: ignore[arg-type]
        assert any(previews_of(client)) and len(check.images) > 1
        check.refused = [True] * 3 + [False]
        assert not any(previews_of(client)[:1])
    engine.close()
    engine.history.close()
