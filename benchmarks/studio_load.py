"""A studio under load: many clients at once, errors, memory, pictures compared, batches against one at a time.

    python -m benchmarks.studio_load --clients 64 --minutes 10

starts `diptych serve` with the package's model, lets clients ask for one image after another, each with its own prompt,
seed and guidance, and counts: images a second, answers by status, the time an image takes, the server's memory. Then it
makes some of the images again by `generate`, alone, and compares their pixels. At last it serves for a while with
`--batch 1`, for what batching gains, and measures the time from a request to the first preview of an idle server.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import processor

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple")
THINGS = ("apple", "car", "cat face", "tree", "star", "fish", "house", "dog", "pizza", "rose")
GUIDANCES = (3.0, 5.0)
STEPS = 12


class Server:
    """`diptych serve` as a process of its own."""

    def __init__(self, folder: Path, batch: int) -> None:
        command = [sys.executable, "-m", "diptych", "serve", "--port", "0", "--folder", str(folder)]
        command += ["--batch", str(batch), "--model", "latent"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1].strip(" /\n"))

    def ask(self, method: str, path: str, body: Any = None, client: str = "load") -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"x-client": client})
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    def follow(self, job: str) -> Iterator[dict[str, Any]]:
        """The events of a job."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("GET", f"/api/jobs/{job}/events")
        try:
            for line in connection.getresponse():
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
        finally:
            connection.close()

    def memory(self) -> float:
        """Resident MiB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Clients:
    """Clients in threads of their own, each asking for the next image when it has the last one."""

    def __init__(self, server: Server, count: int, seconds: float) -> None:
        self.server, self.end = server, time.monotonic() + seconds
        self.statuses: Counter[int] = Counter()
        self.states: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.made: list[tuple[dict[str, Any], str]] = []
        self.failures: list[str] = []
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(number,)) for number in range(count)]
        for thread in self.threads:
            thread.start()

    def run(self, number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < self.end:
            body = {
                "prompt": f"a {draw.choice(COLOURS)} {draw.choice(THINGS)}",
                "seed": draw.randrange(2**32),
                "options": {"steps": STEPS, "guidance": draw.choice(GUIDANCES)},
            }
            try:
                self.one(body, f"client-{number}")
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")

    def one(self, body: dict[str, Any], client: str) -> None:
        began = time.monotonic()
        status, answer, headers = self.server.ask("POST", "/api/jobs", body, client)
        with self.lock:
            self.statuses[status] += 1
        if status == 429:
            time.sleep(min(float(headers["retry-after"]), max(0.0, self.end - time.monotonic())))
            return
        if status != 202:
            self.failures.append(f"{status}: {answer[:200]!r}")
            return
        last: dict[str, Any] = {}
        images = []
        for last in self.server.follow(json.loads(answer)["id"]):
            images += [last["id"]] if last["type"] == "image" else []
        with self.lock:
            self.states[last.get("type", "nothing")] += 1
            self.seconds.append(time.monotonic() - began)
            self.made += [(body, id) for id in images]

    def join(self, memory: list[float]) -> None:
        while any(thread.is_alive() for thread in self.threads):
            memory.append(self.server.memory())
            time.sleep(1.0)


@contextlib.contextmanager
def serving(batch: int) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), batch)
        try:
            yield server
        finally:
            server.close()


def load(clients: int, seconds: float, batch: int, compare: int) -> dict[str, Any]:
    """One server under load; some of its images are made again and compared."""
    with serving(batch) as server:
        server.ask("GET", "/api/models/latent")
        memory: list[float] = []
        began = time.monotonic()
        asking = Clients(server, clients, seconds)
        asking.join(memory)
        took = time.monotonic() - began
        row: dict[str, Any] = {"batch": batch, "clients": clients, "seconds": round(took, 1)}
        row |= {"images": len(asking.made), "images_per_second": round(len(asking.made) / took, 3)}
        row |= {"statuses": dict(asking.statuses), "ended": dict(asking.states), "failures": asking.failures[:5]}
        row["seconds_per_image"] = spread(asking.seconds)
        quarter = max(1, len(memory) // 4)
        row["memory_MiB"] = {
            "after_a_quarter": round(max(memory[:quarter])),
            "at_the_end": round(max(memory[-quarter:])),
            "most": round(max(memory)),
        }
        if compare:
            row["compared"] = compared(server, random.Random(0).sample(asking.made, min(compare, len(asking.made))))
        return row


def compared(server: Server, made: list[tuple[dict[str, Any], str]]) -> dict[str, Any]:
    """Largest difference, of 255, between images of the server and those of `generate`, each alone."""
    import diptych

    model, most, values, exact = diptych.load("latent"), 0, 0, 0
    for body, id in made:
        _, data, _ = server.ask("GET", f"/api/images/{id}.png")
        image = np.asarray(Image.open(io.BytesIO(data)), np.int16)
        alone = model.generate(body["prompt"], seeds=[body["seed"]], **body["options"]).images[0]
        difference = np.abs(image - np.asarray(alone, np.int16))
        most, values = max(most, int(difference.max())), values + int((difference > 0).sum())
        exact += not difference.any()
    return {"images": len(made), "largest_difference": most, "equal_to_the_bit": exact, "values_that_differ": values}


def first_preview(times: int) -> dict[str, float]:
    """Milliseconds from a request to its first preview, of a warm and idle server."""
    seconds = []
    with serving(8) as server:
        for seed in range(times + 2):
            began = time.monotonic()
            _, answer, _ = server.ask("POST", "/api/jobs", {"prompt": "a red apple", "seed": seed})
            for event in server.follow(json.loads(answer)["id"]):
                if event["type"] == "step" and event["preview"]:
                    seconds.append(time.monotonic() - began)
                    break
            while json.loads(server.ask("GET", f"/api/jobs/{json.loads(answer)['id']}")[1])["state"] != "done":
                time.sleep(0.05)
    return {name: round(1000 * value) for name, value in spread(seconds[2:]).items()}


def spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    most = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    return {"least": round(ordered[0], 3), "median": round(statistics.median(ordered), 3), "p95": round(most, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--single-minutes", type=float, default=2.0, help="with --batch 1")
    parser.add_argument("--compare", type=int, default=64, help="images made again")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/studio-load/results.json"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": f"{processor()}, {os.cpu_count()} cores", "steps": STEPS}
    print(json.dumps(result))
    result["first_preview_ms"] = first_preview(10)
    print(json.dumps({"first_preview_ms": result["first_preview_ms"]}), flush=True)
    for name, minutes, batch in (("batches", arguments.minutes, 8), ("one_at_a_time", arguments.single_minutes, 1)):
        result[name] = load(arguments.clients, 60 * minutes, batch, arguments.compare if batch > 1 else 0)
        print(json.dumps({name: result[name]}), flush=True)
    result["gain"] = round(
        result["batches"]["images_per_second"] / max(result["one_at_a_time"]["images_per_second"], 1e-9), 2
    )
    print(json.dumps({"gain": result["gain"]}))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
