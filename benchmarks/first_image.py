"""How long a first image takes, from the start of a process to the PNG, and in which phases.

    python -m benchmarks.first_image --runs 9 --out benchmarks/results/first-image/results.json

Each way to ask for an image of the embedded models runs in processes of its own, in turn with the others:

- generate, cascade: `diptych generate "a red apple"`, the latter with `--model cascade`; until the process has ended;
- python: `diptych.load().generate(...)` and writing the PNG, likewise;
- demo: `diptych demo`, an image of each model and the sheet of both;
- serve: `diptych serve`, until the PNG that was asked for as soon as it listens has come.

and in these states:

- warm: with the caches of an earlier run, compiled networks among them;
- cold: with an empty folder for caches;
- new: as cold, and without compiled Python modules, as after an install that makes none.

`phases` are of further, warm runs of `generate` and `cascade` in which the time is taken between: interpreter (until
the first line runs), torch (reading the command, and the import of PyTorch), loading (our own modules, and opening the
model), text, sampling, decoding, writing (from pixels to the file), end (until the process has ended).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common import processor
from diptych.core.processors import cores

PROMPT = "a red apple"
PYTHON = f"import diptych; diptych.load().generate({PROMPT!r}, seeds=[0]).images[0].save('apple.png')"
STATES = ("warm", "cold", "new")
CACHES = "DIPTYCH_CACHE"
"""The variable with the folder for all caches of diptych, that of compiled networks included."""

PROBE = """
import contextlib, json, sys, time
marks, spent = {"interpreter": time.monotonic()}, {"loading": 0.0, "text": 0.0, "decoding": 0.0}
from diptych.cli import generate_commands
from diptych.cli.main import main

def timed(owner, name, phase):
    function = getattr(owner, name)
    def wrapper(*args, **kwargs):
        began = time.monotonic()
        try:
            return function(*args, **kwargs)
        finally:
            spent[phase] = spent.get(phase, 0.0) + time.monotonic() - began
    setattr(owner, name, wrapper)

@contextlib.contextmanager
def loading(*args, original=generate_commands.loading, **kwargs):
    with original(*args, **kwargs):  # what opens ahead, does so from here on
        import torch
        marks["torch"] = time.monotonic()
        import diptych.pretrained.load
        from diptych.encoders import prompt_weights
        from diptych.models.cascade import Cascade
        from diptych.networks.autoencoder import Autoencoder

        def opened(*args, load=diptych.pretrained.load.load, **kwargs):
            model = load(*args, **kwargs)
            marks["loading"] = time.monotonic()
            spent["loading"] = 0.0  # a cascade opens its stages later, when each is needed
            timed(type(model), "generate", "generate")
            if hasattr(model, "autoencoder"):  # or what an engine has put in its place
                timed(model.autoencoder, "decode", "decoding")
            return model

        diptych.pretrained.load.load = opened
        for owner, name, phase in (
            (Cascade, "stage", "loading"), (Cascade, "encoder", "loading"), (prompt_weights, "encode_prompts", "text"),
        ):
            timed(owner, name, phase)
        yield

generate_commands.loading = loading
assert main(sys.argv[1:]) == 0
marks["writing"] = time.monotonic()
print("PHASES" + json.dumps([marks, spent]), file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs of each way in each state (default: 5)")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--states", nargs="+", choices=STATES, default=list(STATES))
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="of the warm runs (default: a new one, filled first)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))
    text = json.dumps(found, indent=2) + "\n"
    print(text, end="")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All runs, in turn: what else the machine does meets every way and state alike."""
    warm = (arguments.cache or folder / "warm").resolve()
    found: dict[str, Any] = {"machine": machine(), "runs": arguments.runs}
    pairs = [(way, state) for way in arguments.ways for state in arguments.states]
    probed = [way for way in ("generate", "cascade") if way in arguments.ways]
    for way in arguments.ways:
        WAYS[way](environment(warm), folder)  # fills the cache, and compiles Python modules
    seconds: dict[tuple[str, str], list[float]] = {pair: [] for pair in pairs}
    phases: dict[str, list[dict[str, float]]] = {way: [] for way in probed}
    for _ in range(arguments.runs):
        for way, state in pairs:
            with tempfile.TemporaryDirectory() as empty:
                caches = warm if state == "warm" else Path(empty) / "caches"
                modules = Path(empty) / "modules" if state == "new" else None
                seconds[way, state].append(WAYS[way](environment(caches, modules), folder))
        for way in probed:
            phases[way].append(probe(way, environment(warm), folder))
    found["load after"] = [round(load, 1) for load in os.getloadavg()]
    found["seconds"] = {
        way: {state: spread(seconds[way, state]) for state in arguments.states} for way in arguments.ways
    }
    found["phases"] = {
        way: {phase: spread([run[phase] for run in phases[way]]) for phase in phases[way][0]} for way in probed
    }
    return found


def environment(caches: Path, modules: Path | None = None) -> dict[str, str]:
    """Of a process: the folder of its caches, and a folder for compiled modules where it is not to find others."""
    values = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    values[CACHES] = str(caches)
    return values if modules is None else {**values, "PYTHONPYCACHEPREFIX": str(modules)}


def spread(seconds: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds), 3), "least": round(min(seconds), 3)}


def command(*words: str) -> Callable[[Mapping[str, str], Path], float]:
    """A way that is a command: the seconds until it has ended."""

    def run(values: Mapping[str, str], folder: Path) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            began = time.monotonic()
            done = subprocess.run([sys.executable, *words], env=values, cwd=out, capture_output=True, text=True)
            took = time.monotonic() - began
            if done.returncode or not any(Path(out).rglob("*.png")):
                sys.exit(f"{' '.join(words[:3])} failed: {done.stderr}")
        return took

    return run


def serve(values: Mapping[str, str], folder: Path) -> float:
    """Seconds until the first image of a new server has come."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        words = [sys.executable, "-m", "diptych", "serve", "--port", "0", "--folder", out, "--model", "latent"]
        began = time.monotonic()
        with subprocess.Popen(
            words, env=values, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            assert server.stdout is not None
            try:
                address = server.stdout.readline().split()[-1].rstrip("/")
                body = json.dumps({"prompt": PROMPT, "response_format": "b64_json"}).encode()
                request = urllib.request.Request(
                    f"{address}/v1/images/generations", body, {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(request, timeout=600) as answer:
                    assert json.load(answer)["data"][0]["b64_json"]
                return time.monotonic() - began
            finally:
                server.terminate()


WAYS: dict[str, Callable[[Mapping[str, str], Path], float]] = {
    "generate": command("-m", "diptych", "generate", PROMPT, "--out", "."),
    "cascade": command("-m", "diptych", "generate", PROMPT, "--out", ".", "--model", "cascade"),
    "python": command("-c", PYTHON),
    "demo": command("-m", "diptych", "demo", PROMPT, "--out", "."),
    "serve": serve,
}


def probe(way: str, values: Mapping[str, str], folder: Path) -> dict[str, float]:
    """The phases of one run, in seconds."""
    model = ["--model", "cascade"] if way == "cascade" else []
    with tempfile.TemporaryDirectory(dir=folder) as out:
        began = time.monotonic()
        words = [sys.executable, "-c", PROBE, "generate", PROMPT, "--out", out, *model]
        done = subprocess.run(words, env=values, capture_output=True, text=True)
        ended = time.monotonic()
    if done.returncode:
        sys.exit(f"{way} failed: {done.stderr}")
    marks, spent = json.loads(done.stderr.rpartition("PHASES")[2])
    inside = spent["loading"] + spent["text"] + spent["decoding"]
    return {
        "interpreter": marks["interpreter"] - began,
        "torch": marks["torch"] - marks["interpreter"],
        "loading": marks["loading"] - marks["torch"] + spent["loading"],
        "text": spent["text"],
        "sampling": spent["generate"] - inside,
        "decoding": spent["decoding"],
        "writing": marks["writing"] - marks["loading"] - spent["generate"],
        "end": ended - marks["writing"],
        "all but sampling": ended - began - (spent["generate"] - inside),
    }


def machine() -> dict[str, Any]:
    packages = ("torch", "numpy", "tokenizers", "Pillow")
    return {
        "processor": processor(),
        "cores": cores(),
        "load before": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
