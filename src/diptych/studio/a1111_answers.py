"""Answers of A1111's API: images with their `info`, progress, lists."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import time
from typing import Any

from PIL import Image

from diptych.core.version import version
from diptych.models.metadata import SAMPLERS, infotext
from diptych.studio.a1111_fields import WebUICall
from diptych.studio.client_jobs import image_bytes
from diptych.studio.engine import Engine
from diptych.studio.job import ENDED, Job


def images_answer(engine: Engine, job: Job, call: WebUICall) -> dict[str, Any]:
    """The answer of txt2img and img2img: the images that are done, of a job that was interrupted as of any other."""
    done = [image for image in job.images if image.id is not None]
    files = [base64.b64encode(image_bytes(engine, image.id)).decode("ascii") for image in done]
    rows = [engine.history.image(image.id) for image in done if image.id is not None]
    rows = [row["metadata"] for row in rows if row is not None]
    return {
        "images": files if call.send_images else [],
        "parameters": dict(call.echo),
        "info": json.dumps(info(job, call, rows)),
    }


def info(job: Job, call: WebUICall, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the web UI says of the images that it made, of the metadata of ours."""
    request, first = job.request, rows[0] if rows else {}
    shown = {**first, **(first["stages"][0] if first.get("stages") else {})}
    stated = first.get("model")
    model: dict[str, Any] = stated if isinstance(stated, dict) else {}
    width, height = first.get("size") or (0, 0)
    count, sampler = max(len(rows), 1), shown.get("sampler", "")
    seeds = [row["seed"] for row in rows]
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * count,
        "negative_prompt": request.negative,
        "all_negative_prompts": [request.negative] * count,
        "seed": request.seeds[0],
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * len(seeds),
        "subseed_strength": 0,
        "width": width,
        "height": height,
        "sampler_name": SAMPLERS.get(sampler, sampler),
        "cfg_scale": shown.get("guidance"),
        "steps": shown.get("steps"),
        "batch_size": call.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": request.model,
        "sd_model_hash": (model.get("sha256") or "")[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": first.get("strength"),
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [infotext(row) for row in rows],
        "styles": [],
        "job_timestamp": timestamp(job.created),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": f"diptych {version()}",
        "warnings": list(job.warnings),
        "ignored": list(call.ignored),
    }


def timestamp(when: float) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.localtime(when))


def progress(jobs: list[Job], with_image: bool) -> dict[str, Any]:
    """Of a client's jobs that have not ended: the share that is done of the one that runs, and its latest preview."""
    current = next((job for job in jobs if job.state == "running"), jobs[0] if jobs else None)
    state = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "" if current is None else current.id,
        "job_count": len(jobs),
        "job_timestamp": timestamp(0 if current is None else current.created),
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0 if current is None else current.request.steps,
    }
    share, shown = 0.0, None
    if current is not None:
        steps = max(current.request.steps, 1)
        done = [steps if image.state in ENDED else min(image.step, steps) for image in current.images]
        share = sum(done) / (steps * len(done))
        state["job_no"] = sum(image.state in ENDED for image in current.images)
        state["sampling_step"] = next((image.step for image in current.images if image.state == "running"), 0)
        state["interrupted"] = current.cancelled.is_set()
        previews = [event["preview"] for event in current.events() if event.get("preview")]
        shown = png_of(previews[-1]) if previews and with_image else None
    left = 0.0 if current is None or current.seconds_left is None else current.seconds_left
    text = None if current is None or current.state != "queued" else "Waiting..."
    return {"progress": share, "eta_relative": left, "state": state, "current_image": shown, "textinfo": text}


def png_of(preview: str) -> str:
    """A preview, which is a `data:` URL, as a PNG in base64."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(preview.partition(",")[2]))) as image:
        image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def model_row(name: str, sha256: str | None) -> dict[str, Any]:
    """A model as `/sdapi/v1/sd-models` lists it. Its title is its name, whether it is open, and its hash known, or
    not: clients keep titles. No path of this machine is given."""
    hash = None if sha256 is None else sha256[:10]
    return {"title": name, "model_name": name, "hash": hash, "sha256": sha256, "filename": name, "config": None}


def memory() -> dict[str, Any]:
    """Bytes of memory, of the machine and of its GPU."""
    import torch

    row: dict[str, Any] = {"ram": {"error": "not known"}, "cuda": {"error": "no CUDA"}}
    with contextlib.suppress(ValueError, OSError):  # macOS does not say what is free
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
        row["ram"] = {"free": free, "used": total - free, "total": total}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        row["cuda"] = {"system": {"free": free, "used": total - free, "total": total}}
    return row
