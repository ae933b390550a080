"""`make gpu` without a GPU: its list of jobs, with jobs that need none."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks import gpu, jobs, task_jobs
from benchmarks.gpu import Bench, Job
from diptych import recipes
from diptych.cli import main as cli


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def told(results: Path, job: Job) -> dict:
    return json.loads((results / f"{job.name}.json").read_text())


def counting() -> tuple[list[str], Job]:
    calls: list[str] = []

    def count() -> dict:
        calls.append("called")
        return {"calls": len(calls)}

    return calls, Job(name="count", minutes=0, run=count)


def test_a_job_is_done_once(results: Path) -> None:
    calls, job = counting()
    assert Bench([job], 1, results, {"device": "none"}).run()
    assert Bench([job], 1, results).run()
    assert len(calls) == 1
    record = told(results, job)
    assert (record["status"], record["result"], record["device"]) == ("done", {"calls": 1}, "none")


def test_a_job_that_has_changed_is_done_again(results: Path) -> None:
    first = Job(name="a", minutes=0, run=("--version",))
    assert Bench([first], 1, results).run()
    assert Bench([Job(name="a", minutes=0, run=("recipes",))], 1, results).state(first) == "done"
    assert Bench([], 1, results).state(Job(name="a", minutes=0, run=("recipes",))) == "to do"


def test_a_command_of_diptych_is_run_and_its_output_kept(results: Path) -> None:
    job = Job(name="version", minutes=0, run=("--version",))
    assert Bench([job], 1, results).run()
    assert (results / "version.log").read_text().startswith("diptych ")


def test_a_failure_is_told_tried_again_and_holds_up_only_what_needs_it(results: Path, capsys) -> None:
    bad = Job(name="bad", minutes=0, run=("generate", ""))
    calls, good = counting()
    later = Job(name="later", minutes=0, run=("--version",), needs=("bad",))
    assert not Bench([bad, later, good], 1, results).run()
    out = capsys.readouterr().out
    assert "bad: failed: diptych: the prompt is empty" in out
    assert "later: waits for bad" in out
    assert calls and not (results / "later.json").exists()
    assert not Bench([bad], 1, results).run()
    assert (results / "bad.log").read_text().count("the prompt is empty") == 2


def test_an_exception_in_a_job_is_a_failure_too(results: Path) -> None:
    def broken() -> dict:
        raise ValueError("no good")

    job = Job(name="broken", minutes=0, run=broken)
    assert not Bench([job], 1, results).run()
    assert told(results, job)["error"] == "ValueError: no good"


def test_a_job_that_does_not_fit_the_budget_is_left(results: Path, capsys) -> None:
    calls, quick = counting()
    long = Job(name="long", minutes=5, run=("--version",))
    assert not Bench([long, quick], 1, results).run()
    assert "long: takes about 5 minutes, 1.0 are left" in capsys.readouterr().out
    assert calls and not (results / "long.json").exists()


def test_a_job_that_saves_its_state_is_stopped_in_time_and_gone_on_with(results: Path, tmp_path, monkeypatch) -> None:
    script, state = tmp_path / "job.py", tmp_path / "state"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "state = pathlib.Path(sys.argv[1])\n"
        "if state.exists(): sys.exit(print('going on'))\n"
        "def stop(*_): state.touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('starting', flush=True)\n"
        "time.sleep(60)\n"
    )
    real = gpu.run_command

    def run_script(command, log, seconds) -> str:  # 58 of the 60 seconds are over
        return real((sys.executable, *command[3:]), log, seconds - 58)

    monkeypatch.setattr(gpu, "run_command", run_script)
    job = Job(name="slow", minutes=60, run=(str(script), str(state)), resumes=True)
    began = time.monotonic()
    assert not Bench([job], 1.001, results).run()
    assert time.monotonic() - began < 30
    assert (told(results, job)["status"], state.exists()) == ("stopped", True)
    assert Bench([job], 1.2, results).run()
    assert (results / "slow.log").read_text().split("\n") == ["starting", "going on", ""]


def test_results_and_models_travel_in_small_pieces(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "model").mkdir(parents=True)
    (root / "model" / "weights").write_bytes(bytes(range(256)) * 400)
    count = gpu.pack(tmp_path / "out", [root / "model", root / "absent"], root, piece=30_000)
    pieces = sorted((tmp_path / "out").iterdir())
    assert [piece.name for piece in pieces] == [f"gpu.tar.{i:03d}" for i in range(count)]
    assert count > 3 and all(piece.stat().st_size <= 30_000 for piece in pieces)
    with tarfile.open(fileobj=io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))) as tar:
        assert tar.getnames() == ["model", "model/weights"]
        assert tar.extractfile("model/weights").read() == bytes(range(256)) * 400  # type: ignore[union-attr]


@pytest.mark.parametrize(("new", "kept"), [(0.6, "new"), (0.4, "shipped"), (0.5, "shipped")])
@pytest.mark.parametrize("panel", [jobs.LATENT_PANEL, jobs.CASCADE_PANEL], ids=lambda panel: panel.name)
def test_the_better_model_is_shipped(tmp_path: Path, monkeypatch, new: float, kept: str, panel: jobs.Panel) -> None:
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    monkeypatch.setattr(jobs, "ASSETS", tmp_path / "assets")
    for folder, text in ((tmp_path / panel.model, "new"), (tmp_path / "assets" / panel.name, "shipped")):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(text)
    (tmp_path / jobs.JUDGE_RUN / "model").mkdir(parents=True)
    for study, value in ((panel.new_study, new), (panel.old_study, 0.5)):
        (tmp_path / study).mkdir(parents=True)
        groups = {"seen": {"generated": {"top5": {"value": value + 0.1}}}}
        groups["held-out"] = {"generated": {"top5": {"value": value - 0.1}}}
        (tmp_path / study / "results.json").write_text(json.dumps({"groups": groups}))
    result = jobs.keep_the_better(panel)
    assert result["kept"] == kept
    assert result["scores"] == pytest.approx({"new": new, "shipped": 0.5})
    assert (tmp_path / "assets" / panel.name / "config.json").read_text() == kept


def test_the_list_of_jobs_is_sound() -> None:
    before: set[str] = set()
    for job in task_jobs.JOBS:
        assert set(job.needs) <= before, f"{job.name} needs a job that comes later"
        assert job.name not in before
        before.add(job.name)


@pytest.mark.parametrize("job", [job for job in task_jobs.JOBS if isinstance(job.run, tuple)], ids=lambda job: job.name)
def test_each_command_can_be_read_and_its_recipe_takes_the_settings(job: Job) -> None:
    assert isinstance(job.run, tuple)
    arguments = cli.parse(job.run)
    if "assignments" in arguments:
        recipe = recipes.get(arguments.recipe).override(arguments.assignments)
        assert recipe.data.path in (jobs.DATA, jobs.LARGE_DATA, "data/emoji-64")


def test_the_large_latent_model_stands_on_the_large_autoencoder() -> None:
    commands = {job.name: cli.parse(job.run) for job in task_jobs.JOBS if isinstance(job.run, tuple)}
    first, painter = (
        recipes.get(commands[name].recipe).override(commands[name].assignments) for name in ("autoencoder", "latent")
    )
    assert painter.system.model.autoencoder == first.system.network  # type: ignore[union-attr]
    assert painter.system.precomputed == str(commands["precompute"].out)  # type: ignore[union-attr]
    assert painter.data.size == first.data.size == painter.system.model.size == 128  # type: ignore[union-attr]
    assert 2 * sum(job.minutes for job in jobs.FIRST) > 25 >= sum(job.minutes for job in jobs.FIRST)


def test_without_a_gpu_it_says_so(monkeypatch, results: Path, capsys) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([], results=results) == 2
    assert "no GPU that PyTorch can use" in capsys.readouterr().err
    assert not results.exists()
    assert gpu.main(["--list"], results=results) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [job.name for job in task_jobs.JOBS]


def test_with_a_device_it_does_its_jobs(monkeypatch, results: Path, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(gpu, "device", lambda: {"device": "pretended"})
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    _, job = counting()
    assert gpu.main(["--budget", "1", "--pack", str(tmp_path / "packed")], [job], results) == 0
    assert "all jobs are done" in capsys.readouterr().out
    assert (tmp_path / "packed" / "gpu.tar.000").exists()
    bad = Job(name="bad", minutes=0, run=("generate", ""))
    assert gpu.main([], [bad], results) == 1
