"""The engine: one thread that generates what waits in the queue, images of several clients together where they may be.

Every API submits an `ImageRequest` and follows the `Job` that it gets. What a finished job has made is in the history.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

from diptych.core.errors import UserError, disk_error
from diptych.core.memory_use import lacks_memory, memory_error
from diptych.models.safety_check import SafetyCheck
from diptych.studio.fair_queue import FairQueue, QueueOverflow
from diptych.studio.history import History
from diptych.studio.image_request import ImageRequest, exact
from diptych.studio.job import Job, QueuedImage
from diptych.studio.limits import FieldError, Limits, QueueFull, StorageError
from diptych.studio.model_pool import ModelPool
from diptych.studio.previews import Previewer, data_url
from diptych.studio.public_text import without_paths
from diptych.studio.recorded_warnings import recorded_warnings
from diptych.studio.step_measures import StepMeasures

LOG = logging.getLogger("diptych.studio")
BATCH_PIXELS = 8 * 512 * 512
"""Pixels of the images that are generated together, at most."""
REFUSED = "refused"
"""Code of the error of a job whose images the safety check refused."""
FINISHED_KEPT = 200
"""Jobs that have ended and can still be asked for."""
STEPS_KEPT = 20
"""Those of them whose steps, with their last previews, can still be followed."""


class Cancelled(Exception):
    """Nobody waits for these images any more."""


class Engine:
    """Runs jobs. `batch` is the most images that are generated together. `safety` may refuse prompts and images."""

    def __init__(
        self,
        pool: ModelPool,
        history: History,
        limits: Limits | None = None,
        batch: int = 8,
        safety: SafetyCheck | None = None,
    ) -> None:
        self.pool, self.history, self.limits, self.batch = pool, history, limits or Limits(), batch
        self.safety = safety
        self.queue = FairQueue(self.limits.queue, self.limits.client_queue)
        self.jobs: dict[str, Job] = {}
        self.running: list[QueuedImage] = []
        self.seconds_per_image = 1.0
        self.counts = {"images": 0, "batches": 0, "failed": 0, "cancelled": 0, "steps": 0, "refused": 0}
        self.busy_seconds = 0.0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="diptych-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop what runs at its next step, and end the thread. Jobs that are not done are lost."""
        self.queue.close()
        for job in list(self.jobs.values()):
            job.error = job.error or {"message": "the server was stopped", "field": None, "code": "lost"}
            job.end("lost")
            job.cancelled.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    # What APIs call.

    def submit(self, request: ImageRequest, client: str) -> Job:
        """Queue the images of a request. Raises `QueueFull` where there is no place for them, and a `FieldError` for a
        prompt that the safety check refuses; that may take as long as the check does."""
        if self.safety is not None:
            check_prompts(self.safety, request)
        job = Job(request, client, self._ended)
        with self._lock:
            self._forget()
            self.jobs[job.id] = job
        try:
            self.history.add_job(job)
            self.queue.put(client, job.images)
        except QueueOverflow:
            self._drop(job)
            with contextlib.suppress(StorageError):  # it is lost at the next start
                self.history.remove_job(job.id)
            raise QueueFull(self.retry_after()) from None
        except BaseException:
            self._drop(job)
            raise
        job.publish("queued", position=self.position(job))
        return job

    def _drop(self, job: Job) -> None:
        with self._lock:
            self.jobs.pop(job.id, None)

    def cancel(self, job: Job) -> None:
        """Take a job's waiting images out of the queue; those that are being made stop at their next step."""
        job.cancelled.set()
        self.queue.remove(lambda image: image.job is job)
        if not any(image.job is job for image in list(self.running)):
            job.end("cancelled")

    def position(self, job: Job) -> int:
        """Images that come before the job's first."""
        return self.queue.position(lambda image: image.job is job) + len(self.running)

    def retry_after(self) -> int:
        """Seconds until about half of what waits is done."""
        return max(1, min(600, round(len(self.queue) * self.seconds_per_image / 2)))

    def _ended(self, job: Job) -> None:
        try:
            self.history.end_job(job)
        except Exception:  # a full disk, say: whoever waits is answered all the same
            LOG.exception("the end of a job could not be written")
        if job.state in ("failed", "cancelled"):
            self.counts[job.state] += 1

    def _forget(self) -> None:
        """Forget the oldest jobs that have ended, and of all but the latest what was seen on the way."""
        ended = [job for job in self.jobs.values() if job.ended]
        for job in ended[:-FINISHED_KEPT]:
            del self.jobs[job.id]
        for job in ended[:-STEPS_KEPT]:
            job.forget_steps()

    # The thread.

    def _work(self) -> None:
        while images := self.queue.take(self.batch, lambda image: image.job.request.batch_key):
            images = [image for image in images if not image.job.cancelled.is_set()]
            self._finish_cancelled()
            try:
                if images:
                    self._run(images)
            except Exception as error:  # whatever happens, the next images are generated
                LOG.exception("generating failed")
                self._fail(images, error)

    def _finish_cancelled(self) -> None:
        for job in list(self.jobs.values()):
            waiting = any(image.state == "queued" for image in job.images)
            if job.cancelled.is_set() and not job.ended and waiting:
                self.queue.remove(lambda image, job=job: image.job is job)
                job.end("cancelled")

    def _run(self, images: list[QueuedImage]) -> None:
        """Generate images of one batch key, each on its own where they cannot be made together."""
        request = images[0].job.request
        try:
            model = self.pool.open(request.model)
            most = max(1, min(self.batch, BATCH_PIXELS // request.pixels(model)))
            if request.inputs:
                most = len(images) if len({image.job for image in images}) == 1 else 1
        except UserError as error:
            return self._fail(images, error)
        for start in range(0, len(images), most):
            together = [image for image in images[start : start + most] if not image.job.ended]
            if together:
                self._run_together(model, together)
        return None

    def _run_together(self, model: Any, images: list[QueuedImage]) -> None:
        self.running = images
        for image in images:
            image.state = "running"
            if image.job.state == "queued":
                image.job.state = "running"
                image.job.publish("started")
        began = time.monotonic()
        try:
            self._generate(model, images)
        except Cancelled:
            for job in {image.job for image in images}:
                job.end("cancelled")
        except UserError as error:
            self._fail_or_retry(model, images, error)
        except Exception as error:
            LOG.exception("generating failed")
            self._fail_or_retry(model, images, error)
        finally:
            self.running = []
            spent = time.monotonic() - began
            self.busy_seconds += spent
            self.seconds_per_image += 0.3 * (spent / len(images) - self.seconds_per_image)

    def _generate(self, model: Any, images: list[QueuedImage]) -> None:
        request, jobs = images[0].job.request, list(dict.fromkeys(image.job for image in images))
        follower = Follower(self, model, images)
        with recorded_warnings() as warnings, StepMeasures(model, len(images)) as follower.measures:
            result = model.generate(
                [image.job.request.prompt for image in images],
                seeds=[image.seed for image in images],
                negative=[image.job.request.negative for image in images],
                callback=follower,
                **request.options,
                **request.inputs,
                **({"keep_stages": True} if len(getattr(model, "configs", ())) > 1 else {}),
            )
        if len(jobs) == 1:  # of several, no client reads of another's prompt
            jobs[0].warnings += [text for text in map(without_paths, warnings) if text not in jobs[0].warnings]
        self.counts["batches"] += 1
        for place, image in enumerate(images):
            if image.job.cancelled.is_set() or image.job.ended:
                continue
            earlier = [stage[place] for stage in result.stages[:-1]]
            if self.safety and (reason := self.safety.refuses_images((*earlier, result.images[place]))) is not None:
                self._refuse(image, reason)
                continue
            try:
                image.id = self.history.add_image(image, result.images[place], result.metadata[place], earlier)
            except Exception as error:  # generated well: to generate it again would not help
                LOG.exception("an image could not be kept")
                self._fail([image], error)
                continue
            image.state, image.strip = "done", []
            self.counts["images"] += 1
            image.job.publish("image", image=image.index, id=image.id, seed=exact(image.seed))
        for job in jobs:
            if job.cancelled.is_set():
                job.end("cancelled")
            elif all(image.state in ("done", "failed") for image in job.images):
                self._end_generated(job)

    def _refuse(self, image: QueuedImage, reason: str) -> None:
        """Drop an image that the safety check does not allow, and all that was seen of it."""
        image.state, image.strip, image.error = "failed", [], f"refused: {reason}"
        self.counts["refused"] += 1
        image.job.publish("refused", image=image.index, message=image.error)

    def _end_generated(self, job: Job) -> None:
        """End a job whose images are all generated, some of them refused maybe."""
        refused = [image for image in job.images if image.error is not None]
        if len(refused) < len(job.images):
            job.warnings += [f"image {image.index + 1} of {len(job.images)} was {image.error}" for image in refused]
            return job.end("done")
        job.error = {"message": refused[0].error, "field": "prompt", "code": REFUSED}
        return job.end("failed", error=job.error)

    def _fail_or_retry(self, model: Any, images: list[QueuedImage], error: Exception) -> None:
        """One image at fault does not fail the others that were made with it."""
        if len(images) == 1 or len({image.job for image in images}) == 1:
            return self._fail(images, error)
        for image in images:
            if not image.job.ended:
                self._run_together(model, [image])
        return None

    def _fail(self, images: Sequence[QueuedImage], error: Exception) -> None:
        if lacks_memory(error):
            error = memory_error(error)
        if isinstance(error, OSError) and error.errno is not None:
            error = disk_error(OSError(error.errno, error.strerror), "the image")  # without a path of this machine
        message = str(error) if isinstance(error, UserError) else f"generating failed ({type(error).__name__})"
        message = without_paths(message)
        for job in {image.job for image in images}:
            self.queue.remove(lambda image, job=job: image.job is job)
            job.error = {"message": message, "field": getattr(error, "field", None), "code": "failed"}
            job.end("failed", error=job.error)


class Follower:
    """The callback of `generate`: publishes each step, and stops where nobody waits any more."""

    looks_on = True
    """It changes no weights (`diptych.core.steady`)."""

    def __init__(self, engine: Engine, model: Any, images: list[QueuedImage]) -> None:
        self.engine, self.model, self.images = engine, model, images
        self.previewer = Previewer(model)
        self.measures: StepMeasures | None = None
        self.began = time.monotonic()
        self.done = 0

    def __call__(self, step: int, steps: int, x0: Any) -> None:
        if all(image.job.cancelled.is_set() for image in self.images):
            raise Cancelled
        for job in {image.job for image in self.images if image.job.cancelled.is_set()}:
            job.end("cancelled")  # the others go on
        self.done += 1
        self.engine.counts["steps"] += len(self.images)
        left = (time.monotonic() - self.began) / self.done * (steps - step - 1)
        shown = self.previews(x0)
        measured = self.measures.of_step(x0) if self.measures else {}
        for place, image in enumerate(self.images):
            if image.job.cancelled.is_set():
                continue
            image.step, image.job.seconds_left = step + 1, left
            small = shown[place]
            preview = None if small is None else data_url(small)
            row = {"step": step + 1, "steps": steps, "preview": preview}
            row |= {name: values[place] for name, values in measured.items()}
            if preview:
                image.strip.append(row)
            image.job.publish("step", image=image.index, seconds_left=round(left, 2), **row)

    def previews(self, x0: Any) -> Sequence[Image | None]:
        """A small image of each estimate; none where it is not due, or the safety check does not allow it."""
        safety = self.engine.safety
        hidden = safety is not None and safety.sees_images and not safety.previews
        if hidden or not self.previewer.due(x0):
            return [None] * len(self.images)
        shown = self.previewer.images(x0)
        if safety is None:
            return shown
        return [image if safety.refuses_images((image,)) is None else None for image in shown]


def check_prompts(safety: SafetyCheck, request: ImageRequest) -> None:
    """Raise a `FieldError` for a prompt that is refused. A negative prompt counts as one where the guidance is below 1:
    then the image follows it."""
    texts = {"prompt": request.prompt}
    given = request.options.get("guidance")
    if any(value is not None and value < 1 for value in (given if isinstance(given, (list, tuple)) else [given])):
        texts["negative"] = request.negative
    for field, text in texts.items():
        if (reason := safety.refuses_prompt(text)) is not None:
            raise FieldError(field, f"refused: {reason}")
