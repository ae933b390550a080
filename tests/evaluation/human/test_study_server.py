"""The study's application, asked as a browser asks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from starlette.testclient import TestClient

from diptych.evaluation.human.answer_store import AnswerStore
from diptych.evaluation.human.make_study import make_coco
from diptych.evaluation.human.study_server import study_application
from diptych.serving.addresses import Address
from tests.evaluation.human.conftest import write_images

URL = "http://127.0.0.1:8760"
NONCE = "0123456789abcdef" * 2


def client(store: AnswerStore, number: int | None = 0) -> TestClient:
    """A browser with the link of a rater, or with none."""
    application = study_application(store, Address("127.0.0.1", 8760))
    headers = {} if number is None else {"authorization": f"Bearer {store.raters(number + 1)[number].token}"}
    return TestClient(application, base_url=URL, headers=headers, raise_server_exceptions=False)  # type: ignore[arg-type]


def an_answer(data: dict[str, Any], task: int = 0, **change: Any) -> dict[str, Any]:
    question = data["tasks"][task]["questions"][0]
    return {
        "nonce": f"{task:032x}",
        "question": question["id"],
        "choice": question["choices"][0]["value"],
        "milliseconds": 1,
        **change,
    }


def test_two_raters_answer_and_go_on_after_a_restart(coco: Path) -> None:
    store = AnswerStore(coco)
    one, two = client(store, 0), client(store, 4)
    screens = [browser.get("/api/study").json() for browser in (one, two)]
    assert [len(screen["tasks"]) for screen in screens] == [6, 6] and screens[0]["tasks"] != screens[1]["tasks"]
    for browser, screen in ((one, screens[0]), (two, screens[1])):
        for task in range(3):
            assert browser.post("/api/answers", json=an_answer(screen, task)).json() == {"saved": True, "new": True}
    store.close()
    store = AnswerStore(coco)
    for number, screen in ((0, screens[0]), (4, screens[1])):
        again = client(store, number).get("/api/study").json()
        assert again["tasks"] == screen["tasks"]
        assert again["answers"] == {
            an_answer(screen, task)["question"]: an_answer(screen, task)["choice"] for task in range(3)
        }


def test_a_double_post_is_stored_once(coco: Path) -> None:
    store = AnswerStore(coco)
    browser = client(store)
    answer = an_answer(browser.get("/api/study").json())
    assert [browser.post("/api/answers", json=answer).json()["new"] for _ in range(3)] == [True, False, False]
    assert len(store.last_answers()) == 1
    assert browser.post("/api/answers", json={**answer, "choice": "B"}).status_code == 422


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"question": "nothing"}, 422),
        ({"choice": "C"}, 422),
        ({"nonce": "x"}, 422),
        ({"milliseconds": "1"}, 422),
        ({"milliseconds": -1}, 422),
        ({"more": 1}, 422),
        ({"choice": "A" * 5000}, 413),
    ],
)
def test_answers_that_cannot_be_are_refused(coco: Path, change: dict[str, Any], status: int) -> None:
    store = AnswerStore(coco)
    browser = client(store)
    answer = an_answer(browser.get("/api/study").json(), **change)
    assert browser.post("/api/answers", json=answer).status_code == status
    assert not store.last_answers()


@pytest.mark.parametrize(
    "body", ["", "[]", "[" * 2000, '{"milliseconds": NaN}', '{"nonce": "\\ud800"}', '{"milliseconds": 1e999}']
)
def test_bodies_that_are_no_answers_are_refused_without_an_error_of_the_server(coco: Path, body: str) -> None:
    browser = client(AnswerStore(coco))
    answer = browser.post("/api/answers", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize("path", ["/api/study", "/api/images/{image}"])
@pytest.mark.parametrize("header", [None, "Bearer x", "Bearer " + "x" * 22, "Basic eDp5", "{code}"])
def test_without_a_token_the_server_answers_401(coco: Path, path: str, header: str | None) -> None:
    """The code of exported pages, which raters may see of each other, is no token."""
    store = AnswerStore(coco)
    header = header and header.format(code=f"Bearer {store.raters(1)[0].code}")
    headers = {} if header is None else {"authorization": header}
    answer = client(store, None).get(path.format(image=store.study.images[0]), headers=headers)
    assert answer.status_code == 401 and store.study.images[0] not in answer.text
    posted = client(store, None).post("/api/answers", json={}, headers=headers)
    assert posted.status_code in (401, 422) and not store.last_answers()


def test_images_are_those_of_the_study(coco: Path, tmp_path: Path) -> None:
    store = AnswerStore(coco)
    browser = client(store)
    (name, other), folder = store.study.images[:2], coco / "images"
    answer = browser.get(f"/api/images/{name}")
    assert answer.content == (folder / f"{name}.png").read_bytes() and answer.headers["content-type"] == "image/png"
    (folder / "unlisted.png").write_bytes(b"x")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / f"{other}.png").unlink()
    (folder / f"{other}.png").symlink_to(tmp_path / "secret.png")
    for wrong in ("unlisted", other, "..%2fstudy", "%2e%2e/answers", f"{name}.png", ""):
        assert browser.get(f"/api/images/{wrong}").status_code == 404, wrong


@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "/redoc", "/study.json", "/answers.sqlite", "/pages/../study.json"]
)
def test_there_is_nothing_else(coco: Path, path: str) -> None:
    assert client(AnswerStore(coco)).get(path).status_code == 404


def test_the_page_asks_nothing_of_other_servers(coco: Path) -> None:
    browser = client(AnswerStore(coco), None)
    index = browser.get("/")
    assert index.headers["content-type"].startswith("text/html") and "default-src 'none'" in str(index.headers)
    for name in ("study.js", "screen.js", "answers.js", "study.css"):
        text = browser.get(f"/pages/{name}").text
        assert text and "http:" not in text and "https:" not in text and "innerHTML" not in text
    assert "http" not in index.text.replace("http-equiv", "")


def test_a_prompt_that_is_html_stays_text(tmp_path: Path, folders: Path) -> None:
    prompt = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    images = write_images(tmp_path / "images", [prompt, "a cat"], 1, 0)
    reference = write_images(tmp_path / "reference", [prompt, "a cat"], 1, 1)
    make_coco(tmp_path / "study", {"m": images}, reference, pairs=2, controls=0)
    store = AnswerStore(tmp_path / "study")
    answer = client(store, 1).get("/api/study")
    assert (
        answer.headers["content-type"] == "application/json" and answer.headers["x-content-type-options"] == "nosniff"
    )
    assert prompt in [task["prompt"] for task in answer.json()["tasks"]]


def test_other_hosts_and_origins_are_refused(coco: Path) -> None:
    """That the guard stands before this application; tests/serving has the cases."""
    browser = client(AnswerStore(coco))
    assert browser.get("/api/study", headers={"host": "evil.example"}).status_code == 421
    assert browser.post("/api/answers", json={}, headers={"origin": "http://evil.example"}).status_code == 403
