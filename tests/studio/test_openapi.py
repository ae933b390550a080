"""The studio's OpenAPI: it is whole, and nothing that follows it or nearly does makes the server fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from diptych.studio.engine import Engine
from tests.studio.conftest import ADDRESS, opened
from tests.studio.live import live_studio


def test_every_route_of_other_apis_has_an_example(client: Any) -> None:
    schema = client.get("/openapi.json").json()
    for path in ("/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"):
        route = schema["paths"][path]["post"]
        ((_, body),) = route["requestBody"]["content"].items()
        assert set(body["example"]) <= set(body["schema"]["properties"]) >= set(body["schema"]["required"])
        assert "example" in route["responses"]["429"]["content"]["application/json"]
    ids = [route["operationId"] for routes in schema["paths"].values() for route in routes.values()]
    assert len(ids) == len(set(ids))


def test_the_examples_work(client: Any) -> None:
    schema = client.get("/openapi.json").json()
    for path, status in (("/v1/images/generations", 200), ("/sdapi/v1/txt2img", 200), ("/sdapi/v1/options", 200)):
        ((_, body),) = schema["paths"][path]["post"]["requestBody"]["content"].items()
        answer = client.post(path, json=body["example"])
        assert answer.status_code == status, answer.text


def test_metrics_count_what_was_made(client: Any, engine: Engine) -> None:
    def values() -> dict[str, float]:
        text = client.get("/metrics")
        assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = [line.split(" ") for line in text.text.splitlines() if not line.startswith("#")]
        assert all(len(line) == 2 for line in lines)
        return {name: float(value) for name, value in lines}

    before = values()
    assert client.post("/v1/images/generations", json={"prompt": "a red apple", "n": 2}).status_code == 200
    after = values()
    assert after["diptych_images_total"] == before["diptych_images_total"] + 2
    assert after["diptych_steps_total"] == before["diptych_steps_total"] + 6
    assert after["diptych_models_loaded"] >= 1 and after["diptych_models_bytes"] > 0
    assert after["diptych_queue_images"] == after["diptych_jobs_running"] == 0


def test_health_is_that_of_the_thread(client: Any, tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from diptych.studio.application import studio_application

    assert client.get("/healthz").json()["status"] == "ok"
    stopped = studio_application(opened(tmp_path), ADDRESS, "s" * 22)
    with TestClient(stopped, base_url="http://127.0.0.1") as other:  # type: ignore[arg-type]
        assert other.get("/healthz").status_code == 503 and other.get("/metrics").status_code == 401


FIELDS: dict[str, list[Any]] = {
    "prompt": ["a", "\0", "\ud800", "x" * 9000, 5, None, ["a"], {}],
    "n": [0, -1, 10**30, 1.5, True, "2", None],
    "size": ["0x0", "99999x99999", "x", 16, [16, 16], "16x16\n", "１６x１６"],
    "seed": [-1, 2**63, 2**64, 1.0, "a", None],
    "model": ["../x", "", 5, {}, "latent\0", None],
    "num_inference_steps": [0, 10**9, "3", 2.5, [1, 2], None],
    "guidance_scale": [1e308, "x", None, True, []],
    "stream": ["true", 1, None],
    "sampler": ["x", 5, None, ["ddim"]],
    "callback": ["x"],
    "noise": [[1]],
    "threshold": ["x", 5],
}


@pytest.mark.parametrize("route", ["/v1/images/generations", "/sdapi/v1/txt2img"])
def test_odd_values_are_answered_with_an_error_of_the_client(client: Any, route: str) -> None:
    theirs = {"n": "n_iter", "num_inference_steps": "steps", "guidance_scale": "cfg_scale", "size": "width"}
    theirs |= {"sampler": "sampler_name"}
    for field, values in FIELDS.items():
        field = theirs.get(field, field) if route.startswith("/sdapi") else field
        for value in values:
            body = json.dumps({"prompt": "a", "steps": 1, "num_inference_steps": 1, field: value})
            answer = client.post(route, content=body)
            assert answer.status_code in (200, 400, 404, 422), (field, value, answer.text)


@pytest.mark.slow
def test_no_request_by_the_schema_makes_the_server_fail(tmp_path: Path) -> None:
    """schemathesis draws requests that follow the schema and such that nearly do."""
    schemathesis = pytest.importorskip("schemathesis")
    hypothesis = pytest.importorskip("hypothesis")
    from schemathesis.generation import GenerationMode

    with live_studio(tmp_path) as live:
        schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
        tried = 0
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            for found in schema.get_all_operations():
                operation = found.ok()
                try:
                    strategy = operation.as_strategy(generation_mode=mode)
                except Exception as error:  # nothing can be wrong in a route without parameters
                    assert mode == GenerationMode.NEGATIVE, error
                    continue

                @hypothesis.settings(
                    max_examples=20, deadline=None, database=None, derandomize=True,
                    suppress_health_check=list(hypothesis.HealthCheck),
                )  # fmt: skip
                @hypothesis.given(case=strategy)
                def call(case: Any) -> None:
                    nonlocal tried
                    tried += 1
                    answer = case.call(timeout=60)
                    assert answer.status_code < 500, f"{case.method} {case.path}: {answer.text}"

                try:
                    call()
                except hypothesis.errors.Unsatisfiable:
                    continue
        assert tried > 200
