"""`/metrics` in Prometheus' text format, and `/healthz`."""

# Without annotations as strings: FastAPI could not look up what is named within a function.
import os
from collections.abc import Iterator
from typing import Any

from diptych.core.version import version
from diptych.studio.engine import Engine

TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_metrics_routes(application: Any, engine: Engine) -> None:
    """Add both to a FastAPI application."""
    from fastapi.responses import JSONResponse, Response

    @application.get("/healthz", tags=["operation"])
    def healthz() -> Response:
        """Whether images can be made: 200, or 503 where the thread that makes them has ended."""
        alive = engine.alive
        return JSONResponse({"status": "ok" if alive else "stopped", "version": version()}, 200 if alive else 503)

    @application.get("/metrics", tags=["operation"])
    def metrics() -> Response:
        """Counters and gauges for Prometheus."""
        return Response("".join(lines(engine)), media_type=TYPE)


def lines(engine: Engine) -> Iterator[str]:
    """The metrics. Names have the unit, and counters end in _total, as Prometheus wants them."""
    states = dict.fromkeys(("queued", "running"), 0)
    for job in list(engine.jobs.values()):
        if job.state in states:
            states[job.state] += 1
    counts = engine.counts
    yield from counter("images_total", "Images that were made.", counts["images"])
    yield from counter("images_refused_total", "Images that the safety check refused.", counts["refused"])
    yield from counter("batches_total", "Calls of generate that ended well.", counts["batches"])
    yield from counter("steps_total", "Sampling steps, counted for each image.", counts["steps"])
    for state in ("failed", "cancelled"):
        yield from counter(f"jobs_{state}_total", f"Jobs that ended {state}.", counts[state])
    yield from counter("busy_seconds_total", "Seconds spent generating.", engine.busy_seconds)
    yield from gauge("queue_images", "Images that wait.", len(engine.queue))
    yield from gauge("queue_limit_images", "Images that may wait.", engine.limits.queue)
    yield from gauge("running_images", "Images that are being made.", len(engine.running))
    for state, number in states.items():
        yield from gauge(f"jobs_{state}", f"Jobs that are {state}.", number)
    yield from gauge("seconds_per_image", "Recent mean of the seconds that an image takes.", engine.seconds_per_image)
    yield from gauge("models_loaded", "Models in memory.", len(engine.pool.loaded()))
    yield from gauge("models_bytes", "Bytes of their weights.", engine.pool.used())
    if (resident := resident_bytes()) is not None:
        yield metric("process_resident_memory_bytes", "Bytes of the server's memory.", "gauge", resident, own=False)
    yield (
        f"# HELP diptych_info What serves.\n# TYPE diptych_info gauge\n"
        f'diptych_info{{version="{escaped(version())}"}} 1\n'
    )


def counter(name: str, what: str, value: float) -> Iterator[str]:
    yield metric(name, what, "counter", value)


def gauge(name: str, what: str, value: float) -> Iterator[str]:
    yield metric(name, what, "gauge", value)


def metric(name: str, what: str, kind: str, value: float, own: bool = True) -> str:
    name = f"diptych_{name}" if own else name
    return f"# HELP {name} {what}\n# TYPE {name} {kind}\n{name} {value}\n"


def escaped(text: str) -> str:
    """Of the value of a label."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def resident_bytes() -> int | None:
    """Bytes of this process in memory; none where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
