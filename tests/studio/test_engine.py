"""The engine: turns among clients, batches, failures, memory, and what outlives a killed server."""

from __future__ import annotations

import asyncio
import errno
import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diptych.core.errors import UserError
from diptych.studio import previews
from diptych.studio.engine import Engine
from diptych.studio.fair_queue import FairQueue
from diptych.studio.history import DATABASE, History
from diptych.studio.image_request import ImageRequest
from diptych.studio.job import Job, QueuedImage
from diptych.studio.limits import Limits, QueueFull
from diptych.studio.model_pool import ModelPool, model_bytes
from tests.models import latents, stages
from tests.models.latents import same_image
from tests.studio.conftest import opened, pool


def wanted(engine: Engine, prompt: str = "a red picture", **fields: Any) -> ImageRequest:
    return ImageRequest.read(engine.pool, engine.limits, {"prompt": prompt, "seed": 1, "steps": 2, **fields})


def ended(*jobs: Job) -> None:
    limit = time.monotonic() + 60
    while not all(job.ended for job in jobs):
        assert time.monotonic() < limit, [job.state for job in jobs]
        time.sleep(0.002)


def made(engine: Engine, job: Job) -> Image.Image:
    path = engine.history.png(job.images[0].id or "")
    assert path is not None
    return Image.open(path)


def started(folder: Path, **options: Any) -> Engine:
    engine = opened(folder, **options)
    engine.start()
    return engine


def test_who_follows_while_the_end_is_written_hears_of_it(engine: Engine) -> None:
    """A slow disk must not close a stream that was not told how its job ended."""
    writing, written = threading.Event(), threading.Event()

    def slow(job: Job) -> None:
        writing.set()
        assert written.wait(20)

    job = Job(wanted(engine), "slow", on_end=slow)

    async def heard() -> list[str]:
        ending = asyncio.create_task(asyncio.to_thread(job.end, "cancelled"))
        await asyncio.to_thread(writing.wait, 20)
        asyncio.get_running_loop().call_later(0.2, written.set)
        told = [event["type"] async for event in job.follow()]
        await ending
        return told

    assert asyncio.run(heard()) == ["cancelled"]


def test_clients_take_turns(engine: Engine) -> None:
    """One image of each client, then the next of each; images of another kind wait, and none is lost."""
    queue = FairQueue(40, 20)
    jobs = {
        name: Job(wanted(engine, count=count, steps=steps), name)
        for name, count, steps in (("many", 6, 2), ("few", 2, 2), ("other", 1, 3))
    }
    for name, job in jobs.items():
        queue.put(name, job.images)

    def key(image: QueuedImage) -> Any:
        return image.job.request.batch_key

    taken = [[(image.job.client, image.index) for image in queue.take(4, key)] for _ in range(3)]
    assert taken[0] == [("many", 0), ("few", 0), ("many", 1), ("few", 1)]
    assert sorted(taken[1:]) == [[("many", 2), ("many", 3), ("many", 4), ("many", 5)], [("other", 0)]]
    assert len(queue) == 0


def test_images_of_several_clients_are_generated_together_and_as_alone(tmp_path: Path) -> None:
    engine = opened(tmp_path, batch=8)
    prompts = ["a red picture", "a blue picture", "picture", "red", "blue", "a blue red picture of red"]
    jobs = [
        engine.submit(wanted(engine, prompt, seed=seed, negative="red" if seed % 2 else ""), f"client-{seed}")
        for seed, prompt in enumerate(prompts)
    ]
    engine.start()
    ended(*jobs)
    assert engine.counts["batches"] == 1 and [job.state for job in jobs] == ["done"] * 6
    model = pool().open("latent")
    for seed, (prompt, job) in enumerate(zip(prompts, jobs, strict=True)):
        alone = model.generate(prompt, seeds=[seed], negative="red" if seed % 2 else None, steps=2).images[0]
        assert same_image(alone, made(engine, job)), prompt
    engine.close()


def test_a_full_queue_refuses_all_of_a_request_and_says_when(tmp_path: Path) -> None:
    engine = opened(tmp_path, limits=Limits(queue=6, client_queue=4, count=8))
    engine.submit(wanted(engine, count=4), "one")
    for client, count in (("one", 1), ("two", 3)):
        with pytest.raises(QueueFull) as refused:
            engine.submit(wanted(engine, count=count), client)
        assert refused.value.retry_after >= 1
    assert len(engine.queue) == 4 and len(engine.jobs) == 1
    engine.submit(wanted(engine, count=2), "two")


def test_one_image_that_fails_does_not_fail_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(tmp_path)
    model = engine.pool.open("latent")
    generate = type(model).generate

    raised: list[Exception] = []

    def failing(self: Any, prompts: list[str], **options: Any) -> Any:
        if "blue" in prompts:
            raise raised[-1]
        return generate(self, prompts, **options)

    monkeypatch.setattr(type(model), "generate", failing)
    errors = (UserError("not this one"), ValueError("secret /path"), OSError(errno.ENOSPC, "full", "/x"))
    for number, error in enumerate(errors):
        raised.append(error)
        jobs = [engine.submit(wanted(engine, prompt), prompt) for prompt in ("red", "blue", "picture")]
        if number == 0:
            engine.start()
        ended(*jobs)
        assert [job.state for job in jobs] == ["done", "failed", "done"]
        assert jobs[1].error is not None and "/" not in jobs[1].error["message"].replace("/dev", "")
    engine.close()


def test_a_job_that_waits_is_cancelled_at_once(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    jobs = [engine.submit(wanted(engine, seed=seed), "one") for seed in range(3)]
    engine.cancel(jobs[1])
    assert jobs[1].state == "cancelled" and len(engine.queue) == 2
    engine.start()
    ended(*jobs)
    assert [job.state for job in jobs] == ["done", "cancelled", "done"]
    engine.close()


def test_memory_is_bounded_by_closing_what_was_used_least_recently() -> None:
    opened_names: list[str] = []

    def open_source(source: str) -> Any:
        opened_names.append(source)
        return latents.system()

    size = model_bytes(latents.system())
    models = ModelPool(dict.fromkeys("abc", "") | {name: name for name in "abc"}, open_source, memory=2 * size + 10)
    for name in "abacab":
        models.open(name)
        assert models.used() <= 2 * size + 10
    assert opened_names == ["a", "b", "c", "b"] and models.loaded() == ["a", "b"]


def test_the_memory_of_a_model_is_that_of_all_its_networks_and_of_what_was_compiled() -> None:
    def weights(*networks: Any) -> int:
        return sum(t.numel() * t.element_size() for network in networks for t in network.state_dict().values())

    class Compiled:
        compiled_bytes = 1000

    model = latents.system("minilm")
    size = weights(model, model.autoencoder, model.text.model)
    assert model_bytes(model) == size
    vars(model.unet)["forward"] = vars(model.autoencoder)["decode"] = Compiled()
    assert model_bytes(model) == size + 1000
    vars(model.autoencoder)["decode"] = Compiled()
    assert model_bytes(model) == size + 2000

    stage = stages.stage(stages.base())
    words = weights(stage.text.model)
    assert model_bytes(stage) == weights(stage) + words
    stage.set_frozen(text=None)
    stage.open_encoder = lambda config: pytest.fail("a text encoder is opened to be counted")  # type: ignore
    assert model_bytes(stage) == weights(stage)
    cascade = stages.cascade()
    assert model_bytes(cascade) == weights(*map(cascade.stage, range(3))) + words


def test_the_first_preview_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what an engine compiles for it."""
    now, cost, model = [0.0], [30.0], latents.system()
    monkeypatch.setattr(previews.time, "monotonic", lambda: now[0])

    def decode(latents: Any, **how: Any) -> Any:
        now[0] += cost[0]
        return torch.zeros(1, 3, 16, 16)

    monkeypatch.setattr(model, "decode", decode)
    previewer, x0 = previews.Previewer(model), torch.zeros(1, 4, 8, 8)
    previewer.images(x0)
    assert previewer.due(x0)
    cost[0] = 1.0
    previewer.images(x0)
    assert not previewer.due(x0), "a second of one"
    now[0] += 4
    assert previewer.due(x0), "a second of five"


def test_what_a_killed_server_leaves(tmp_path: Path) -> None:
    """Finished images stay; jobs that were not done are lost, and named."""
    engine = started(tmp_path)
    job = engine.submit(wanted(engine, "a red picture"), "one")
    ended(job)
    engine.close()
    waiting = opened(tmp_path)
    waiting.history.close()
    waiting.history = History(tmp_path)
    unfinished = waiting.submit(wanted(waiting, "blue"), "one")
    again = History(tmp_path)  # as after kill -9: nothing was closed
    assert [row["id"] for row in again.jobs("lost")] == [unfinished.id]
    assert again.jobs("lost")[0]["request"]["prompt"] == "blue"
    assert [row["prompt"] for row in again.images()] == ["a red picture"]
    assert again.png(again.images()[0]["id"])
    assert again.forget_lost(unfinished.id) and not again.jobs("lost")


def test_a_closed_engine_marks_jobs_lost(tmp_path: Path) -> None:
    engine = started(tmp_path)
    job = engine.submit(wanted(engine, steps=200), "one")
    while not job.images[0].step:
        time.sleep(0.002)
    engine.close()
    assert job.state == "lost" and [row["id"] for row in engine.history.jobs("lost")] == [job.id]


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=DATABASE):
        History(tmp_path)


def test_many_threads_write_and_read(tmp_path: Path) -> None:
    engine = started(tmp_path)
    failures: list[BaseException] = []

    def ask(client: int) -> None:
        try:
            for seed in range(4):
                job = engine.submit(wanted(engine, seed=seed), f"c{client}")
                ended(job)
                engine.history.images(search="red")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert not failures and len(engine.history.images(limit=100)) == 24
    rows = sqlite3.connect(tmp_path / DATABASE).execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()
    assert rows == [("done", 24)]


def test_the_request_is_kept_as_json(engine: Engine) -> None:
    request = wanted(engine, guidance=2.5, size=[32, 16], sampler="ddim")
    assert json.loads(json.dumps(request.to_json()))["options"] == {
        "steps": 2, "guidance": 2.5, "size": [32, 16], "sampler": "ddim",
    }  # fmt: skip


def test_a_lack_of_memory_says_what_needs_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    engine = opened(tmp_path)
    model = engine.pool.open(engine.pool.default)

    def fail(*given: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 1 GiB.")

    monkeypatch.setattr(model, "generate", fail)
    try:
        engine.start()
        job = engine.submit(wanted(engine), "someone")
        ended(job)
        assert job.state == "failed" and job.error is not None
        assert job.error["message"].startswith("cuda:0 has no memory left for 2.00 GiB more: make fewer images at once")
    finally:
        engine.close()
