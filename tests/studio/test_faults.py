"""What the studio does when a disk, a file, a model or a client fails: errors that say so, and nothing else is lost."""

from __future__ import annotations

import base64
import errno
import io
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diptych.cli.serve_commands import read_models
from diptych.core.errors import UserError
from diptych.studio.application import studio_application
from diptych.studio.engine import Engine
from diptych.studio.fair_queue import FairQueue
from diptych.studio.history import DATABASE, History
from diptych.studio.job import Job
from diptych.studio.limits import StorageError
from diptych.studio.model_pool import ModelPool
from tests.models import latents
from tests.models.latents import same_image
from tests.studio.conftest import ADDRESS, opened
from tests.studio.test_engine import ended, started, wanted


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Engine, Any]]:
    """An engine of the test's own and a client of it."""
    from starlette.testclient import TestClient

    engine = started(tmp_path / "studio")
    application: Any = studio_application(engine, ADDRESS)
    with TestClient(application, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield engine, client
    engine.close()
    engine.history.close()


BODY = {"prompt": "a red picture", "steps": 1}
ROUTES = (("/api/jobs", {"prompt": "red", "options": {"steps": 1}}), ("/v1/images/generations", BODY),
          ("/sdapi/v1/txt2img", BODY))  # fmt: skip


def message(answer: Any) -> str:
    """Of an error of any of the three APIs."""
    body = answer.json()
    return body["detail"] if isinstance(body["error"], str) else body["error"]["message"]


def test_a_disk_that_is_full_when_a_job_is_written(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each API says so in its own shape, no job stays behind as waiting for ever, and the next request is served."""
    engine, client = own
    full = StorageError("the history cannot be read or written: database or disk is full")
    with monkeypatch.context() as patch:
        patch.setattr(engine.history, "_execute", lambda *_: (_ for _ in ()).throw(full))
        for path, body in ROUTES:
            answer = client.post(path, json=body)
            assert answer.status_code == 507 and "disk is full" in message(answer), answer.text
    assert not engine.jobs and not len(engine.queue)
    assert client.post("/v1/images/generations", json=BODY).status_code == 200


def test_an_image_that_cannot_be_written_fails_its_job_alone(
    own: tuple[Engine, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that were generated with it are kept, once, and no part of a file is left."""
    engine, _ = own
    replace, calls = os.replace, itertools.count(1)

    def failing(source: Any, target: Any) -> None:
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("diptych.studio.atomic_write.os.replace", failing)
    jobs = [engine.submit(wanted(engine), str(client)) for client in range(3)]
    ended(*jobs)
    states = sorted(job.state for job in jobs)
    assert states == ["done", "done", "failed"]
    [failed] = [job for job in jobs if job.state == "failed"]
    assert failed.error is not None and "disk is full" in failed.error["message"]
    assert len(engine.history.images()) == 2
    assert not list(engine.history.folder.rglob("*.partial"))


def test_a_folder_that_is_removed_is_named_before_anything_is_generated(own: tuple[Engine, Any]) -> None:
    engine, client = own
    shutil.rmtree(engine.history.folder)
    for path, body in ROUTES:
        answer = client.post(path, json=body)
        assert answer.status_code == 507 and "was removed" in message(answer), answer.text


def test_damaged_files_of_images(own: tuple[Engine, Any]) -> None:
    """A file that was cut is no failure of the server, wherever it is used."""
    engine, client = own
    job = engine.submit(wanted(engine), "me")
    ended(job)
    path = engine.history.png(job.images[0].id or "")
    assert path is not None
    whole = path.read_bytes()
    for data in (b"", whole[: len(whole) // 2]):
        path.write_bytes(data)
        assert client.get(f"/api/images/{path.stem}/thumbnail").status_code == 404
        body = {"prompt": "x", "image": path.stem, "options": {"strength": 0.5}}
        answer = client.post("/api/jobs", json=body)
        assert answer.status_code == 422 and answer.json()["error"]["field"] == "image", answer.text
    assert client.post("/api/images/zip", json={"ids": ["0" * 24]}).status_code == 404


def test_a_failure_of_the_server_has_the_shape_of_the_api(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, client = own
    monkeypatch.setattr(engine, "submit", lambda *_: 1 / 0)
    for path, body in ROUTES:
        answer = client.post(path, json=body)
        assert answer.status_code == 500 and "ZeroDivisionError" in message(answer), answer.text


def test_a_database_damaged_within_is_named_at_the_start(tmp_path: Path) -> None:
    History(tmp_path).close()
    file = tmp_path / DATABASE
    data = file.read_bytes()
    file.write_bytes(data[:4096] + b"\x5a" * (len(data) - 4096))
    with pytest.raises(UserError, match=r"studio\.sqlite cannot be opened.*move it away"):
        History(tmp_path)


def test_parts_of_files_of_a_killed_server_are_removed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "ab.1234.partial").touch()
    History(tmp_path).close()
    assert not list(tmp_path.rglob("*.partial"))


def test_jobs_of_before_the_last_start_are_still_known(own: tuple[Engine, Any]) -> None:
    """Their state and images can be asked for, and who follows their events learns how they ended."""
    engine, client = own
    done, lost = engine.submit(wanted(engine), "me"), engine.submit(wanted(engine, steps=150), "me")
    ended(done)
    lost.cancelled.set()
    ended(lost)
    engine.history._execute("UPDATE jobs SET state = 'lost' WHERE id = ?", (lost.id,))
    engine.jobs.clear()
    row = client.get(f"/api/jobs/{done.id}").json()
    assert row["state"] == "done" and [one["id"] for one in row["images"]] == [done.images[0].id]
    assert client.get(f"/api/jobs/{lost.id}").json()["state"] == "lost"
    for job, kinds in ((done, ["image", "done"]), (lost, ["lost"])):
        text = client.get(f"/api/jobs/{job.id}/events", headers={"Last-Event-ID": "7"}).text
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
        assert [event["type"] for event in events] == kinds
        assert [event["number"] for event in events] == list(range(8, 8 + len(kinds)))
    assert client.delete(f"/api/jobs/{done.id}").json()["state"] == "done"
    assert client.get("/api/jobs/" + "0" * 24).status_code == 404


def test_who_cancels_does_not_wait_for_those_generated_together(tmp_path: Path) -> None:
    """A job ends at its next step, though the batch that it was in goes on for another client."""
    engine = opened(tmp_path)
    jobs = [engine.submit(wanted(engine, steps=60), client) for client in ("one", "other")]
    engine.start()
    while not jobs[0].images[0].step:
        time.sleep(0.001)
    engine.cancel(jobs[0])
    ended(jobs[0])
    assert jobs[0].state == "cancelled" and jobs[1].state == "running" and jobs[1].images[0].step < 50
    engine.close()
    engine.history.close()


def test_models_that_are_open_are_used_while_another_is_opened() -> None:
    opening, go = threading.Event(), threading.Event()

    def open_source(source: str) -> Any:
        if source == "slow":
            opening.set()
            assert go.wait(30)
        return latents.system()

    models = ModelPool({"fast": "fast", "slow": "slow"}, open_source)
    fast = models.open("fast")
    thread = threading.Thread(target=models.open, args=("slow",))
    thread.start()
    assert opening.wait(30)
    assert models.open("fast") is fast and models.loaded() == ["fast"] and models.used() > 0
    go.set()
    thread.join(30)
    assert models.loaded() == ["fast", "slow"]


def test_search_finds_letters_of_every_alphabet_in_either_case(own: tuple[Engine, Any]) -> None:
    engine, client = own
    for prompt in ("Äpfel 100% rot", "ÉCLAIR d'or", "МОСКВА", "under_score"):
        ended(engine.submit(wanted(engine, prompt), "me"))
    for search, count in (("äpfel", 1), ("ÄPFEL", 1), ("éclair", 1), ("москва", 1), ("100%", 1), ("%", 1), ("_", 1),
                          ("d'or", 1), ('"', 0), ("latent", 4)):  # fmt: skip
        assert len(client.get("/api/images", params={"search": search}).json()) == count, search


def test_streams_end_at_once_when_the_server_does(own: tuple[Engine, Any]) -> None:
    """Who waits for an image of OpenAI's API learns that the server ended."""
    engine, client = own
    answers: list[Any] = []
    body = {**BODY, "steps": 190}
    threads = [
        threading.Thread(target=lambda kw=kw, path=path: answers.append(client.post(path, json={**body, **kw})))
        for path, kw in (("/v1/images/generations", {}), ("/v1/images/generations", {"stream": True}),
                         ("/sdapi/v1/txt2img", {}))
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    while len(engine.jobs) < 3:
        time.sleep(0.001)
    engine.close()
    for thread in threads:
        thread.join(10)
    assert sorted(answer.status_code for answer in answers) == [200, 503, 503]
    assert all("the server was stopped" in answer.text for answer in answers)


def test_who_comes_last_waits_for_one_batch_at_most(own: tuple[Engine, Any]) -> None:
    """One image is next after those that are generated when it comes, however many another client has waiting."""
    engine, _ = own
    queue = FairQueue(40, 30)
    many, few, new = (
        Job(wanted(engine, count=n, steps=n + 1), name) for n, name in ((8, "many"), (1, "few"), (2, "new"))
    )
    key = lambda image: image.job.request.batch_key  # noqa: E731
    queue.put("many", many.images)
    assert len(queue.take(3, key)) == 3
    queue.put("few", few.images)
    assert queue.position(lambda image: image.job is few) == 0
    assert queue.take(3, key) == few.images
    queue.put("new", new.images)  # no flood of new clients holds up who waited longer
    assert [image.job for image in queue.take(3, key)] == [many] * 3
    assert queue.take(3, key) == new.images
    assert queue.take(3, key) == many.images[6:]


def test_an_image_may_be_deleted_while_another_is_made_from_it(own: tuple[Engine, Any]) -> None:
    """What was made from it can be made again."""
    engine, client = own
    job = engine.submit(wanted(engine), "me")
    ended(job)
    held = engine.submit(wanted(engine, steps=150), "me")
    first = job.images[0].id
    body = {"prompt": "a blue picture", "seed": 3, "image": first, "options": {"strength": 0.5, "steps": 2}}
    made = client.post("/api/jobs", json=body).json()
    assert client.delete(f"/api/images/{first}").status_code == 200
    engine.cancel(held)
    ended(engine.jobs[made["id"]])
    [image] = client.get(f"/api/jobs/{made['id']}").json()["images"]
    assert image["id"] is not None
    fields = client.post("/api/read", content=client.get(f"/api/images/{image['id']}.png").content).json()
    assert fields.pop("missing") == []
    assert client.post("/api/jobs", json=fields).status_code == 202


@pytest.mark.parametrize("options", [{"size": [24, 16]}, {"size": [16, 16], "fit": "pad"}, {}])
def test_restored_fields_make_an_image_of_the_same_size(own: tuple[Engine, Any], options: dict[str, Any]) -> None:
    """An init image of another size than the image that was made from it."""
    engine, client = own
    file = io.BytesIO()
    Image.effect_noise((48, 32), 90).convert("RGB").save(file, "PNG")
    sent = client.post("/api/uploads", content=file.getvalue()).json()["id"]
    fields = {"prompt": "x", "seed": 3, "image": sent, "options": {"strength": 0.5, "steps": 2, **options}}
    images = []
    for _ in range(2):
        job = engine.jobs[client.post("/api/jobs", json=fields).json()["id"]]
        ended(job)
        data = client.get(f"/api/images/{job.images[0].id}.png").content
        images.append(Image.open(io.BytesIO(data)))
        fields = client.post("/api/read", content=data).json()
        assert fields.pop("missing") == []
    assert same_image(*images)


def test_errors_about_a_dropped_image_name_no_temporary_file(own: tuple[Engine, Any]) -> None:
    _, client = own
    for text in (None, "[1, 2]", '{"prompt": "x", "seed": null, "model": "latent", "size": "big"}'):
        file, texts = io.BytesIO(), PngInfo()
        if text is not None:
            texts.add_text("diptych", text)
        Image.new("RGB", (16, 16)).save(file, "PNG", pnginfo=texts)
        answer = client.post("/api/read", content=file.getvalue())
        assert answer.status_code == 422 and "image.png" in message(answer), answer.text


def test_what_is_wrong_in_a_query_or_an_upscaler_is_named(own: tuple[Engine, Any]) -> None:
    _, client = own
    for field, value in (("limit", 0), ("limit", 501), ("before", -1), ("before", 10**30), ("search", "x" * 2000)):
        assert client.get("/api/images", params={field: value}).json()["error"]["field"] == field
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    body = {"image": base64.b64encode(file.getvalue()).decode(), "upscaler_1": "ESRGAN_4x"}
    answer = client.post("/sdapi/v1/extra-single-image", json=body)
    assert answer.status_code == 422 and answer.json()["body"] == "upscaler_1", answer.text


def test_a_model_that_is_not_there_is_named_at_the_start(tmp_path: Path) -> None:
    """The second too, which is not opened yet; what may be a name on the hub is not looked up."""
    with pytest.raises(UserError, match=f"nothing at {tmp_path}/gone"):
        read_models(["latent", f"second={tmp_path}/gone"])
    assert read_models(["latent", "sd=owner/name"]) == {"latent": "latent", "sd": "owner/name"}
