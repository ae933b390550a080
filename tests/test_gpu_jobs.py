"""`make gpu` without a GPU: its list of jobs, with jobs that need none."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import gpu, jobs, loan, schedule, task_jobs
from benchmarks.parcel import Parcel, collect
from benchmarks.schedule import Job, Schedule
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
    assert Schedule([job], 1, results, {"device": "none"}).run()
    assert Schedule([job], 1, results).run()
    assert len(calls) == 1
    record = told(results, job)
    assert (record["status"], record["result"], record["device"]) == ("done", {"calls": 1}, "none")


def test_a_job_that_has_changed_is_done_again(results: Path) -> None:
    first = Job(name="a", minutes=0, run=("--version",))
    assert Schedule([first], 1, results).run()
    assert Schedule([Job(name="a", minutes=0, run=("recipes",))], 1, results).state(first) == "done"
    assert Schedule([], 1, results).state(Job(name="a", minutes=0, run=("recipes",))) == "to do"


def test_a_command_of_diptych_is_run_and_its_output_kept(results: Path) -> None:
    job = Job(name="version", minutes=0, run=("--version",))
    assert Schedule([job], 1, results).run()
    assert (results / "version.log").read_text().startswith("diptych ")


def test_a_failed_job_is_reported_retried_and_blocks_only_its_dependents(results: Path, capsys) -> None:
    bad = Job(name="bad", minutes=0, run=("generate", ""))
    calls, good = counting()
    later = Job(name="later", minutes=0, run=("--version",), needs=("bad",))
    assert not Schedule([bad, later, good], 1, results).run()
    out = capsys.readouterr().out
    assert "bad: failed: diptych: the prompt is empty" in out
    assert "later: waits for bad" in out
    assert calls and not (results / "later.json").exists()
    assert not Schedule([bad], 1, results).run()
    assert (results / "bad.log").read_text().count("the prompt is empty") == 2


def test_an_exception_in_a_job_is_a_failure_too(results: Path) -> None:
    def broken() -> dict:
        raise ValueError("no good")

    job = Job(name="broken", minutes=0, run=broken)
    assert not Schedule([job], 1, results).run()
    assert told(results, job)["error"] == "ValueError: no good"


def test_a_job_that_does_not_fit_the_budget_is_left(results: Path, capsys) -> None:
    calls, quick = counting()
    long = Job(name="long", minutes=5, run=("--version",))
    early = Job(name="early", minutes=0.5, run=("--version",), by=0.2)
    trained = Job(name="trained", minutes=0, run=("train", "training.minutes={minutes}"), by=0.5, gpu=0)
    assert not Schedule([long, early, trained, quick], 1, results).run()
    out = capsys.readouterr().out
    assert "long: takes about 5 minutes, 1.0 are left" in out
    assert "early: takes about 0.5 minutes, 0.2 are left" in out
    assert "trained: too little time is left to train" in out
    assert calls and not (results / "long.json").exists()


def test_a_training_job_gets_the_minutes_until_its_deadline(results: Path, monkeypatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(schedule, "command_of", lambda words: asked.append(words) or (sys.executable, "-c", ""))
    job = Job(name="a", minutes=1, run=("training.minutes={minutes}", "{cores}"), by=0.5, cores=64)
    assert Schedule([job], 13, results, cores=3).run()
    minutes, cores = asked[0]
    assert (float(minutes.partition("=")[2]), cores) == (pytest.approx(6.5 - schedule.RESERVE, abs=0.05), "3")


FAKE = """
import pathlib, signal, sys, time
name, what, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
def note(line):
    with (folder / "events").open("a") as file: file.write(f"{name} {line}\\n")
def stop(*_):
    (folder / f"{name}.state").touch(); note("saved"); sys.exit(143)
signal.signal(signal.SIGTERM, stop)
note("went on" if (folder / f"{name}.state").exists() else "began")
if what == "fail": sys.exit("no good")
if what == "long" and not (folder / f"{name}.state").exists():
    (folder / f"{name}.ready").touch()
    time.sleep(60)
while what.startswith("until:") and not (folder / what[6:]).exists(): time.sleep(0.02)
note("ended")
"""


@pytest.fixture
def fake(tmp_path: Path):
    """Makes jobs that begin, wait, fail, save their state when stopped, and note all of it."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE.replace("\\\\n", "\\n"))

    def make(name: str, what: str = "", **more) -> Job:
        options = {"minutes": 0.0, "cores": 1, "gpu": 0.3, "resumes": True} | more
        return Job(name=name, run=(str(script), name, what, str(tmp_path)), **options)

    make.events = lambda: (tmp_path / "events").read_text().splitlines()  # type: ignore[attr-defined]
    return make


def test_what_fits_runs_side_by_side_and_a_failure_holds_up_nothing_else(results: Path, fake) -> None:
    jobs = [
        fake("bad", "fail"),
        fake("slow", "until:go"),  # ends when `late` has ended
        fake("wide", gpu=0.9),
        fake("cores", cores=3),
        fake("after-bad", needs=("bad",)),
        fake("chain", needs=("cores",)),
        fake("go", needs=("chain",)),
    ]
    released = fake("go")
    jobs[-1] = Job(name="go", minutes=0, cores=1, gpu=0.1, run=("-m", "pathlib"), needs=("chain",))
    place = Path(released.run[3])  # type: ignore[index]

    def release() -> dict:
        (place / "go").touch()
        return {}

    jobs[-1] = Job(name="go", minutes=0, cores=1, gpu=0.1, run=release, needs=("chain",))
    assert not Schedule(jobs, 5, results, cores=4).run()
    states = {job.name: told(results, job)["status"] for job in jobs if job.name != "after-bad"}
    assert states == {**dict.fromkeys(("slow", "wide", "cores", "chain", "go"), "done"), "bad": "failed"}
    events = fake.events()
    assert (
        events.index("chain ended") < events.index("slow ended") < events.index("wide began")
    )  # 0.9 + 0.3 is too much
    assert not any(event.startswith("after-bad") for event in events)


def test_jobs_are_stopped_at_their_deadline_and_gone_on_with(results: Path, fake, tmp_path: Path) -> None:
    late, other = fake("late", "long", by=0.5, minutes=0), fake("other", "until:late.state")
    plan = Schedule([late, other], 10, results, cores=2)
    turn = plan.turn

    def turned() -> bool:  # the first half of the time is over once it has begun
        if (tmp_path / "late.ready").exists() and plan.began > time.monotonic() - 300:
            plan.began -= 301
        return turn()

    plan.turn = turned  # type: ignore[method-assign]
    assert not plan.run()
    assert (told(results, late)["status"], told(results, other)["status"]) == ("stopped", "done")
    assert Schedule([late, other], 10, results, cores=2).run()
    assert [event for event in fake.events() if event.startswith("late")] == [
        *("late began", "late saved", "late went on", "late ended")
    ]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_schedule_that_is_cut_goes_on(results: Path, fake, tmp_path: Path, how: int) -> None:
    job = fake("long", "long")
    program = (
        "import sys; from pathlib import Path; from benchmarks.schedule import Job, Schedule\n"
        f"Schedule([Job(name='long', minutes=0, run={job.run!r}, resumes=True)], 5, Path({str(results)!r})).run()"
    )
    root = str(Path(gpu.__file__).resolve().parent.parent)
    process = subprocess.Popen([sys.executable, "-c", program], cwd=root, stderr=subprocess.DEVNULL)
    while not (tmp_path / "long.ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    with pytest.raises(BlockingIOError):
        Schedule([job], 5, results).run()  # one at a time
    assert gpu.running(results)
    process.send_signal(how)
    process.wait()
    assert told(results, job)["status"] == ("running" if how == signal.SIGKILL else "stopped")
    again = Schedule([Job(name="long", minutes=0, run=job.run, resumes=True)], 5, results)
    assert again.run()
    assert fake.events() == ["long began", "long saved", "long went on", "long ended"]
    assert not gpu.running(results)


def unpacked(folder: Path) -> dict[str, bytes]:
    pieces = sorted(folder.glob("gpu.tar.*"))
    with tarfile.open(fileobj=io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        return {name: file.read() for name, file in files.items() if file}


def test_results_and_models_travel_in_small_pieces_most_important_first(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    (root / "model").mkdir(parents=True)
    (root / "later").mkdir()
    tensors = {"a": torch.linspace(-2, 2, 20_000), "b": torch.full((3,), 1e6), "n": torch.arange(4)}
    save_file(tensors, root / "model" / "weights.safetensors", {"format": "pt"})
    (root / "later" / "big").write_bytes(bytes(90_000))
    (root / "later" / "small").write_bytes(b"small")
    packer = Parcel(out, [root / "model", root / "absent", root / "later"], root, piece=30_000, total=100_000)
    count = packer.pack()
    pieces = sorted(out.glob("gpu.tar.*"))
    assert [piece.name for piece in pieces] == [f"gpu.tar.{i:03d}" for i in range(count)]
    assert count > 1 and all(piece.stat().st_size <= 30_000 for piece in pieces)
    assert sum(piece.stat().st_size for piece in pieces) <= 100_000
    held = unpacked(out)
    assert list(held) == ["model/weights.safetensors", "later/small"]
    (tmp_path / "half").write_bytes(held["model/weights.safetensors"])
    half = load_file(tmp_path / "half")
    assert {name: tensor.dtype for name, tensor in half.items()} == {
        "a": torch.float16,
        "b": torch.bfloat16,
        "n": torch.int64,
    }
    torch.testing.assert_close(half["a"].float(), tensors["a"], atol=1e-3, rtol=0)
    listed = json.loads((out / "packed.json").read_text())
    assert listed["files"] == list(held) and "90000 bytes, beyond the limit" in listed["left out"]["later/big"]
    copied = collect(out, tmp_path / "home")
    assert sorted(path.name for path in copied) == [*(piece.name for piece in pieces), "packed.json"]
    assert unpacked(tmp_path / "home") == held
    (root / "later" / "big").unlink()
    assert packer.pack() == count
    assert json.loads((out / "packed.json").read_text())["left out"] == {}


def test_packing_goes_on_beside_the_jobs_and_never_holds_them_up(results: Path, fake, tmp_path: Path) -> None:
    packer = Parcel(tmp_path / "packed", [results], tmp_path)

    def packed() -> dict:  # while `slow` still runs
        limit = time.monotonic() + 60
        while "results/quick.json" not in (unpacked(tmp_path / "packed") if any(packer.folder.glob("*.000")) else {}):
            assert time.monotonic() < limit
            time.sleep(0.05)
        (tmp_path / "seen").touch()
        return {}

    jobs = [fake("slow", "until:seen"), fake("quick"), Job(name="look", minutes=0, run=packed, needs=("quick",), gpu=0)]
    with packer:
        assert Schedule(jobs, 5, results, cores=8, changed=packer.changed).run()
    assert {"results/slow.json", "results/look.json", "results/slow.log"} <= set(unpacked(tmp_path / "packed"))
    packer.paths = [Path("/proc/self/mem")]  # what cannot be packed is told, and ends nothing
    packer._try()
    assert packer.problem


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


@pytest.mark.every(3)
@pytest.mark.parametrize("job", [job for job in task_jobs.JOBS if isinstance(job.run, tuple)], ids=lambda job: job.name)
def test_each_command_can_be_read_and_its_recipe_takes_the_settings(job: Job) -> None:
    assert isinstance(job.run, tuple)
    if job.run[0] == "-m" or job.run[0].endswith(".py"):
        return
    arguments = cli.parse(job.arguments(5, 4))
    if "assignments" in arguments:
        recipe = recipes.get(arguments.recipe).override(arguments.assignments)
        assert recipe.data.path in (jobs.DATA, jobs.LARGE_DATA, "data/emoji-64")


def test_the_large_latent_model_stands_on_the_large_autoencoder() -> None:
    commands = {job.name: cli.parse(job.arguments(5, 4)) for job in jobs.LOAN if job.run[0] != "-m"}  # type: ignore[index]
    first, painter = (
        recipes.get(commands[name].recipe).override(commands[name].assignments) for name in ("autoencoder", "latent")
    )
    assert painter.system.model.autoencoder == first.system.network  # type: ignore[union-attr]
    assert painter.system.precomputed == str(commands["precompute"].out)  # type: ignore[union-attr]
    assert painter.data.size == first.data.size == painter.system.model.size == 128  # type: ignore[union-attr]


def test_the_loan_has_room_for_what_runs_at_once() -> None:
    by_name = {job.name: job for job in jobs.LOAN}
    early = [by_name[name] for name in ("autoencoder", "judge", "emoji-base", "emoji-sr-128")]
    late = [by_name[name] for name in ("latent", *loan.CASCADE)]
    for together in (early, late, [by_name["study-latent"], by_name["study-cascade"]]):
        assert sum(job.gpu for job in together) <= 1
        assert sum(job.cores for job in together) <= 16
    first = jobs.LOAN[:2]
    assert [job.name for job in first] == ["measure-sampling", "measure-training"] and all(
        job.gpu == 1 for job in first
    )
    for job in jobs.LOAN:
        assert all(by_name[need].by <= job.by for need in job.needs), job.name


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
    assert gpu.main(["--pack", str(tmp_path / "packed"), "--collect", str(tmp_path / "home")], [job], results) == 0
    assert "results/count.json" in unpacked(tmp_path / "home")
    bad = Job(name="bad", minutes=0, run=("generate", ""))
    assert gpu.main([], [bad], results) == 1
