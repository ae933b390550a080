"""Protocols of papers as commands: draws, references, results beside published ones, going on after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diptych
from diptych.cli import main as cli
from diptych.cli import protocol_commands
from diptych.core.errors import UserError
from diptych.data.prompt_files import read_prompts
from diptych.evaluation import protocol_run
from diptych.evaluation.protocol_choices import KINDS, PRESETS, choose
from diptych.evaluation.published_results import (
    CHOICES,
    COLUMNS,
    PublishedGroup,
    comparison,
    datasets,
    differences,
    published_groups,
)
from diptych.metrics.image_set import ImageSet, Processing
from diptych.metrics.measure import MeasureConfig, measure_images
from tests.cli.test_cli import FakeModel, one_line
from tests.metrics.torchfidelity import inception_file
from tests.models.latents import system
from tests.models.test_stage import base, classes, plain, stage
from tests.test_torchrun import TORCHRUN

IMAGES, SIZE = 12, 24


def noise(seed: int, side: int = SIZE) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), np.uint8)
    return Image.fromarray(values)


class NoisyModel(FakeModel):
    """Its images are noise, by the seed. It stops where it is told to."""

    left = -1

    def generate(self, prompts, *, seeds, callback: Any, steps=7):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        result = super().generate(prompts, seeds=seeds, callback=callback, steps=steps)
        result.images = [noise(seed) for seed in seeds]
        return result


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> NoisyModel:
    """A place with a COCO of twelve images and five captions each, and one image that is in no annotation."""
    model = NoisyModel()
    monkeypatch.setattr(diptych, "load", lambda source=None, device="auto", **how: model)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("val").mkdir()
    for i in range(IMAGES + 1):
        noise(1000 + i).save(f"val/{i}.png")
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(IMAGES)]
    captions = [{"id": 100 * c + i, "image_id": i, "caption": f"{i}: {c}"} for c in range(5) for i in range(IMAGES)]
    Path("captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return model


FID = ["evaluate", "fid-30k", "captions.json", "val", "--features", "judge", "--number", "6", "--batch", "2"]


def results(out: str) -> dict[str, dict[str, Any]]:
    return {one["metric"]: one for one in json.loads(Path(out, "results.json").read_text())}


def measured(made: str, real: Path) -> float:
    how = Processing(size=256)
    (one,) = measure_images(made, real, config=MeasureConfig(features="judge"), processing=how)
    return one["value"]


def test_a_preset_draws_generates_measures_and_says_what_its_paper_leaves_open(model: NoisyModel, capsys) -> None:
    assert cli.main([*FID, "--preset", "ldm", "--out", "o", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    (one,) = results("o").values()
    drawn = [row.fields["file_name"] for row in read_prompts(Path("o/prompts.jsonl"))]
    assert len(drawn) == len(set(drawn)) == 6 and "12.png" not in drawn
    Path("subset").mkdir()
    for name in drawn:
        shutil.copy(f"val/{name}", "subset")
    assert one["value"] == pytest.approx(measured("o/images", Path("subset")), rel=1e-6)
    assert one["protocol"].items() >= {"reference": "subset", "number": 6, "per_image": 1, "seed": 0}.items()
    assert one["reference"]["images"] == 6 and one["reference"]["processing"]["size"] == 256
    assert {"per_image", "crop", "resize", "seed"} <= set(one["preset"]["not_stated"])
    assert one["preset"]["changed"] == ["number"] and "number" not in one["preset"]["not_stated"]
    rows = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith("|")]
    heads, *table = [[cell.strip() for cell in row] for row in rows]
    by_name = {row[0]: dict(zip(heads, row, strict=True)) for row in table}
    ours = by_name["latent"]
    assert ours["FID, judge features"] == f"{one['value']:.2f}" and ours["FID"] == "" and ours["source"]
    assert by_name["Imagen"]["FID"] == "7.27" and by_name["LDM-KL-8-G"]["FID"] == "12.63"
    assert by_name["LDM-KL-8-G"]["IS"] == "30.29 ± 0.42" and "table 2" in by_name["LDM-KL-8-G"]["source"]
    assert "Features of judge compare with no published figure." in said
    assert "number of images 6, theirs 30,000; reference subset, theirs full" in said  # Imagen's
    assert "not stated there: number of images" not in said
    assert model.asked[0]["steps"] == 2 and "LDM-KL-8-G" in Path("o/results.md").read_text()


def test_the_full_reference_is_what_the_annotations_name(model: NoisyModel) -> None:
    assert cli.main([*FID, "--preset", "imagen", "--seed", "3", "--out", "o"]) == 0
    (one,) = results("o").values()
    shutil.copytree("val", "named", ignore=shutil.ignore_patterns("12.png"))
    assert one["value"] == pytest.approx(measured("o/images", Path("named")), rel=1e-6)
    assert one["reference"]["images"] == IMAGES and one["protocol"]["per_image"] == "all"


def test_a_run_that_was_stopped_goes_on(model: NoisyModel) -> None:
    model.left = 2
    assert cli.main([*FID, "--out", "o"]) == 130
    assert len(list(Path("o/images").rglob("*.png"))) in (2, 4) and not Path("o/results.json").exists()
    model.left, before = -1, len(model.asked)
    assert cli.main([*FID, "--out", "o"]) == 0
    assert len(model.asked) - before in (1, 2), "what was there is not made again"
    assert cli.main([*FID, "--out", "whole"]) == 0
    images = [{p.name: p.read_bytes() for p in Path(out, "images").rglob("*.png")} for out in ("o", "whole")]
    assert images[0] == images[1] and results("o")["fid"]["value"] == results("whole")["fid"]["value"]


def test_generated_images_are_measured_in_other_ways_and_compared_only_where_they_may_be(
    model: NoisyModel, capsys
) -> None:
    assert cli.main([*FID, "--out", "o"]) == 0
    again = [*FID[:-2], "--generated", "o/images"]
    assert cli.main([*again, "--out", "same"]) == 0
    asked = len(model.asked)
    assert cli.main([*again, "--reference", "subset", "--out", "subset"]) == 0
    assert cli.main([*again, "--resize", "box", "--jpeg", "20", "--out", "box"]) == 0
    assert len(model.asked) == asked
    assert results("same")["fid"]["value"] == results("o")["fid"]["value"] != results("box")["fid"]["value"]
    capsys.readouterr()
    files = [f"{out}/results.json" for out in ("o", "same", "subset", "box")]
    assert cli.main(["evaluate", "compare", *files]) == 0
    said = capsys.readouterr().out
    assert "same/results.json does not compare" not in said
    assert "subset/results.json does not compare" in said and "protocol.reference full and subset" in said
    assert "box/results.json does not compare" in said
    refused = one_line(capsys, *again, "--seed", "4", "--out", "other")
    assert "o/images is of captions drawn otherwise (seed 0, not 4)" in refused and not Path("other").exists()


def test_a_set_of_the_same_draw_is_the_same(model: NoisyModel, monkeypatch, capsys) -> None:
    assert cli.main(["prompts", "coco", "captions.json", "--number", "6", "--out", "p.jsonl"]) == 0
    assert cli.main(["generate", "--prompts", "p.jsonl", "--batch", "2", "--out", "set"]) == 0
    assert cli.main([*FID[:-2], "--generated", "set", "--out", "o"]) == 0
    assert cli.main([*FID, "--out", "whole"]) == 0
    one, other = results("o")["fid"], results("whole")["fid"]
    assert one["value"] == other["value"] and one["made_with"] == other["made_with"] and "unknown" not in one
    assert one["made_with"]["settings"]["seed"] == 0


class NoOthers:
    """Stands for `Shares` where processes run one after the other."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank

    def done(self, progress: Any) -> bool:
        progress()
        return self.rank == 0


def test_processes_make_shares_of_the_images_and_the_first_measures(model: NoisyModel, monkeypatch, capsys) -> None:
    monkeypatch.setattr("diptych.training.distributed.Shares", NoOthers)
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = [*FID, "--device", "cpu", "--out", "two"]
    for rank, made in (("1", 2), ("0", 6)):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(command) == 0
        assert len(list(Path("two/images").rglob("*.png"))) == made
        assert Path("two/results.json").exists() == bool(capsys.readouterr().out) == (rank == "0")
    again = ["evaluate", "unconditional", "val", "--features", "judge", "--metrics", "fid", "--number", "6"]
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert cli.main([*again, "--generated", "two/images", "--out", "samples"]) == 0
        assert Path("samples/results.json").exists() == (rank == "0")
    monkeypatch.delenv("WORLD_SIZE")
    assert cli.main([*FID, "--out", "one"]) == 0
    assert files_of("one") == files_of("two") and nameless("one") == nameless("two")


def nameless(out: str) -> dict[str, dict[str, Any]]:
    """Results without where the images lie."""
    return {name: {**one, "generated": one["generated"] | {"name": ""}} for name, one in results(out).items()}


def files_of(out: str | Path) -> dict[str, bytes]:
    """The images of a run and what lists them."""
    return {str(path.relative_to(out)): path.read_bytes() for path in Path(out, "images").rglob("*.*")}


def test_processes_without_a_shared_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 0 of 6 images, though all processes are done: give all of"):
        protocol_run.require_whole(tmp_path, 6, patience=0)


@pytest.mark.slow
def test_two_processes_that_are_killed_and_started_again_end_in_the_set_of_one(model: NoisyModel) -> None:
    system().save("model")
    words = ["evaluate", "fid-30k", "captions.json", "val", "--features", "judge", "--number", "6", "--batch", "1"]
    words += ["--model", "model", "--steps", "20", "--device", "cpu", "--out"]
    process = subprocess.Popen([*TORCHRUN, *words, "two"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(Path("two").rglob("*.png")):
        assert process.poll() is None
        time.sleep(0.02)
    for worker in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(worker), signal.SIGKILL)
    assert process.wait(120) != 0 and not Path("two/results.json").exists()
    ran = {}
    for start, out in ((TORCHRUN, "two"), ([sys.executable, "-m", "diptych"], "one")):
        ran[out] = subprocess.run([*start, *words, out], capture_output=True, text=True, timeout=300)
        assert ran[out].returncode == 0, ran[out].stderr
    assert ran["two"].stdout.count("measured here") == 1
    assert len(files_of("one")) == 8 and files_of("one") == files_of("two") and nameless("one") == nameless("two")
    samples = [
        "evaluate",
        "unconditional",
        "val",
        "--features",
        "judge",
        "--k",
        "1",
        "--number",
        "6",
        "--device",
        "cpu",
    ]
    for start, out in ((TORCHRUN, "samples"), ([sys.executable, "-m", "diptych"], "alone")):
        command = [*start, *samples, "--generated", "two/images", "--out", out]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and done.stdout.count("measured here") <= 1, done.stderr
    assert results("samples") == results("alone")


def test_images_of_elsewhere_do_not_say_how_they_were_drawn(model: NoisyModel, capsys) -> None:
    Path("made").mkdir()
    for i in range(6):
        noise(i).save(f"made/{i}.png")
    command = [*FID[:-2], "--generated", "made"]
    assert "which captions its images are of" in one_line(capsys, *command, "--reference", "subset", "--out", "o")
    assert cli.main([*command, "--out", "o"]) == 0
    assert "Not known of the generated images: how the captions were drawn." in capsys.readouterr().out
    assert results("o")["fid"]["unknown"] == ["how the captions were drawn"]
    Path("others").mkdir()
    for i in range(6):
        noise(20 + i).save(f"others/{i}.png")
    assert cli.main([*FID[:-2], "--generated", "others", "--out", "q"]) == 0
    capsys.readouterr()
    compare = ["evaluate", "compare", "o/results.json"]
    assert cli.main([*compare, "q/results.json"]) == 0
    assert "may differ, for it is not known how the captions were drawn" in capsys.readouterr().out
    assert cli.main([*compare, "o/results.json"]) == 0
    assert "may differ" not in capsys.readouterr().out, "the same images, however they were drawn"
    assert cli.main(["prompts", "coco", "captions.json", "--number", "6", "--seed", "5", "--out", "p.jsonl"]) == 0
    assert cli.main([*command, "--prompts", "p.jsonl", "--reference", "subset", "--out", "p"]) == 0
    one = results("p")["fid"]
    assert "unknown" not in one and one["protocol"]["seed"] == 5 and one["reference"]["images"] == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--features", "inception"], "inception features need InceptionV3's weights"),
        (["--number", "13"], "has 12 captions with 1 of each of 12 images, fewer than 13"),
        (["--metrics", "psnr"], "psnr compares pairs of images, and this protocol has none"),
        (["--metrics", "fidelity"], "unknown metric 'fidelity'"),
        (["--generated", "val", "--steps", "3"], "--steps is for a model: leave it out beside --generated"),
        (["--generated", "none"], "no images at none"),
        (["--preset", "glide"], "unknown choice 'glide'"),
        (["--prompts", "none.jsonl"], "none.jsonl is no file"),
        (["--weights", "inception"], "--weights takes NETWORK=PATH"),
        (["--out", "captions.json"], "captions.json is a file"),
    ],
)
def test_mistakes(model: NoisyModel, capsys, words: list[str], said: str) -> None:
    head = [*FID[:-2], *([] if "--generated" in words else ["--batch", "2"])]
    assert said in one_line(capsys, *head, "--out", "o", *words)
    assert not Path("o/results.json").exists() and model.asked == []


def test_a_missing_image_is_named_before_anything_is_generated(model: NoisyModel, capsys) -> None:
    Path("val/7.png").unlink()
    assert "val lacks 7.png (1 of 12 images are missing)" in one_line(capsys, *FID, "--out", "o")
    assert model.asked == [] and not Path("o").exists()


def test_a_file_name_of_two_images_is_named(model: NoisyModel, capsys) -> None:
    coco = json.loads(Path("captions.json").read_text())
    coco["images"][5]["file_name"] = "3.png"
    Path("captions.json").write_text(json.dumps(coco))
    said = "captions.json has one file name, 3.png, for two images, "
    assert f"{said}3 and 5" in one_line(capsys, *FID, "--out", "o")
    assert said in one_line(capsys, "prompts", "coco", "captions.json", "--number", "2", "--out", "p.jsonl")
    coco["images"][5] = {"id": 4, "file_name": "5.png"}
    Path("captions.json").write_text(json.dumps(coco))
    assert "image 4 has two file names, 4.png and 5.png" in one_line(capsys, *FID, "--out", "o")
    assert model.asked == [] and not Path("o").exists()


@pytest.mark.parametrize("images", ["val", "."])
def test_file_names_may_have_folders(model: NoisyModel, images: str) -> None:
    coco = json.loads(Path("captions.json").read_text())
    for one in coco["images"]:
        one["file_name"] = f"val/{one['file_name']}"
    Path("folders.json").write_text(json.dumps(coco))
    shutil.copytree("val", "other/train")  # of the same names, in a folder of another
    if images == "val":
        shutil.rmtree("other")
    assert cli.main([*FID[:2], "folders.json", images, *FID[4:], "--out", "/".join(["..", "o"])]) == 0
    assert cli.main([*FID, "--out", "../plain"]) == 0
    one, other = (results(out)["fid"] for out in ("../o", "../plain"))
    assert one["value"] == other["value"] and one["reference"]["sha256"] == other["reference"]["sha256"]


def test_a_folder_of_something_else_is_refused_before_a_model_is_opened(model: NoisyModel, monkeypatch, capsys) -> None:
    monkeypatch.setattr(diptych, "load", lambda *_, **__: pytest.fail("it was opened"))
    Path("o/images").mkdir(parents=True)
    assert "o holds images, and no results to go on with" in one_line(capsys, *FID, "--out", "o")


def test_results_that_cannot_be_written_are_printed(model: NoisyModel, monkeypatch, capsys) -> None:
    real = protocol_run.write_text

    def full(path: Path, text: str) -> None:
        if path.name == "results.json":
            raise UserError(f"the disk is full: {path}")
        real(path, text)

    monkeypatch.setattr(protocol_run, "write_text", full)
    assert cli.main([*FID, "--out", "o"]) == 2
    shown = capsys.readouterr()
    assert "measured here" in shown.out and Path("o/results.md").exists()
    assert "the results are above, but not all was written: the disk is full: o/results.json" in shown.err


def test_a_folder_of_other_results_is_refused(model: NoisyModel, capsys) -> None:
    assert cli.main([*FID, "--out", "o"]) == 0
    capsys.readouterr()
    before = Path("o/results.json").read_bytes()
    assert "o holds the results with other" in one_line(capsys, *FID, "--seed", "1", "--out", "o")
    assert Path("o/results.json").read_bytes() == before


# Samples without prompts, and of classes


def test_samples_of_classes(model: NoisyModel, monkeypatch, capsys) -> None:
    ours = classes(null=4)
    monkeypatch.setattr(diptych, "load", lambda *_, **__: ours)
    command = ["evaluate", "class-conditional", "val", "--features", "judge", "--number", "8", "--k", "1"]
    command += ["--steps", "1", "--device", "cpu"]
    assert cli.main([*command, "--classes", "balanced", "--dataset", "imagenet", "--out", "o"]) == 0
    said = capsys.readouterr().out
    assert results("o").keys() == {"fid", "precision", "recall", "density", "coverage"}
    manifest = [json.loads(line) for line in Path("o/images/manifest.jsonl").read_text().splitlines()]
    assert [row["class"] for row in manifest] == [0, 1, 2, 3] * 2
    assert results("o")["fid"]["protocol"]["classes"] == "balanced"
    assert "LDM-4-G" in said and "247.67 ± 5.59" in said and "reference 13 images of val, theirs the whole" in said
    Path("val/broken.gif").write_bytes(b"GIF89a")
    assert cli.main([*command, "--manifold-reference", "5", "--seed", "2", "--out", "few"]) == 0
    captured = capsys.readouterr()
    assert "val: 1 files are left out, such as broken.gif" in captured.err
    assert "No published rows: name the data set as --dataset, of imagenet" in captured.out
    few = results("few")
    assert few["fid"]["reference"]["images"] == 13 and few["recall"]["reference"]["images"] == 5
    drawn = [json.loads(line)["class"] for line in Path("few/images/manifest.jsonl").read_text().splitlines()]
    assert drawn == np.random.Generator(np.random.PCG64(2)).integers(0, 4, 8).tolist()


def test_samples_without_prompts(model: NoisyModel, monkeypatch, capsys) -> None:
    command = ["evaluate", "unconditional", "val", "--features", "judge", "--number", "4", "--k", "1"]
    monkeypatch.setattr(diptych, "load", lambda *_, **__: classes(null=4))
    assert "is for unconditional models, and the model takes prompts" in one_line(capsys, *command, "--out", "o")
    ours = stage(base(text=None, network=plain(context_width=None)))
    monkeypatch.setattr(diptych, "load", lambda *_, **__: ours)
    assert cli.main([*command, "--steps", "1", "--device", "cpu", "--dataset", "ffhq", "--out", "o"]) == 0
    assert "LDM-4" in capsys.readouterr().out and results("o")["fid"]["generated"]["images"] == 4
    fid = ["evaluate", "class-conditional", "val", "--features", "judge", "--number", "4"]
    assert "is for class-conditional models, and the model is none" in one_line(capsys, *fid, "--out", "p")
    assert "is for text-conditional models" in one_line(capsys, *FID, "--out", "p")


def test_statistics_measure_fid_alone(model: NoisyModel, capsys) -> None:
    words = ["evaluate", "images", "val", "val", "--features", "judge", "--size", "256", "--statistics", "val.npz"]
    assert cli.main(words) == 0
    command = ["evaluate", "unconditional", "val.npz", "--features", "judge", "--number", "13", "--generated", "val"]
    assert cli.main([*command, "--out", "o"]) == 0
    assert results("o").keys() == {"fid"} and abs(results("o")["fid"]["value"]) < 1e-3
    more = [*command, "--metrics", "precision-recall", "--out", "p"]
    capsys.readouterr()
    assert "val.npz holds statistics alone" in one_line(capsys, *more)
    resized = [*command, "--network-resize", "clean", "--out", "p"]
    assert "leave it out with --features judge" in one_line(capsys, *resized)


# Choices, and published results


def test_a_preset_keeps_what_its_paper_states_apart() -> None:
    choices, about = choose("fid-30k", "imagen", {"crop": "none"})
    assert (choices.number, choices.to_dict()["per_image"], choices.crop) == (30_000, None, "none")
    assert about["changed"] == ["crop"] and "per_image" in about["not_stated"] and "number" not in about["not_stated"]
    with pytest.raises(UserError, match="unknown preset"):
        choose("fid-30k", "dalle", {})
    with pytest.raises(UserError, match="number"):
        choose("fid-30k", "ldm", {"number": 0})


def test_the_command_line_names_what_there_is() -> None:
    assert {name: tuple(presets) for name, presets in PRESETS.items()} == protocol_commands.PRESETS
    for name, kind in KINDS.items():
        given = {*protocol_commands.CHOICES, *protocol_commands.OF_KIND[name], "size"}
        assert given == set(kind().to_dict())
    assert set(protocol_commands.TASKS) == {group.protocol for group in published_groups()}
    for name, known in protocol_commands.DATASETS.items():
        assert list(known) == datasets(name)


def test_published_rows_say_where_they_stand() -> None:
    seen = set()
    for group in published_groups():
        assert group.paper and "arXiv:" in group.paper and group.table.startswith("table") and group.rows
        assert set(group.states) <= set(CHOICES)
        for row in group.rows:
            figures = {key: value for key, value in row.items() if key.removesuffix("_deviation") in COLUMNS}
            assert figures and set(row) - set(figures) <= {"model", "note", "quoted"}
            assert all(isinstance(value, (int, float)) and value > 0 for value in figures.values())
            key = (group.protocol, group.dataset, row["model"], row.get("note"))
            assert key not in seen
            seen.add(key)


def test_differences_are_those_of_what_a_paper_states() -> None:
    group = PublishedGroup(protocol="p", dataset="d", paper="A", table="table 1", states={"number": 30_000, "size": 64})
    (line,) = differences({"number": 7, "size": 64, "crop": "none"}, [group])
    assert line == "A, table 1: differs: number of images 7, theirs 30,000. not stated there: crop."
    (line,) = differences({"number": 30_000, "size": 64}, [group])
    assert line == "A, table 1: nothing that the paper states differs."
    (line,) = differences({"size": 64}, [group])
    assert line == "A, table 1: not said of ours: number of images (theirs 30,000)."
    (line,) = differences({"size": 64}, [group], ["number"])
    assert line == "A, table 1: nothing that the paper states differs."


def test_what_a_result_does_not_say_is_not_taken_for_equal(model: NoisyModel, capsys) -> None:
    Path("r.json").write_text(json.dumps([{"metric": "fid", "value": 3.0}, {"metric": "psnr", "value": 20.0}]))
    assert cli.main(["evaluate", "published", "unconditional", "r.json", "--dataset", "ffhq"]) == 0
    said = capsys.readouterr().out
    assert "nothing that the paper states differs" not in said
    assert "not said of ours: number of images (theirs 50,000), reference (theirs the whole training set)" in said
    assert "r.json: fid may not compare with published figures: settings is not said, generated.images is not" in said
    assert "features is not said, reference.sha256 is not said" in said and "psnr may not" in said
    assert "| FID, a network that is not said features |" in said.replace("  ", " ")


def test_values_of_other_features_do_not_stand_in_the_published_column() -> None:
    group = PublishedGroup(protocol="p", dataset="d", paper="A", table="table 1", rows=[{"model": "M", "fid": 3.5}])
    ours = {"ours": {"fid": {"value": 1.234}}}
    heads = [column.header for column in comparison("t", ours, [group], "judge").columns]
    assert heads == ["", "FID, judge", "FID", "source"]
    assert list(comparison("t", ours, [group]).columns[1].cells) == ["1.23", "3.5"]


def test_pairs_stand_beside_the_published_figures_of_their_task(model: NoisyModel, capsys) -> None:
    shutil.copytree("val", "made")
    noise(99).save("made/3.png")
    words = ["evaluate", "images", "val", "made", "--metrics", "psnr,ssim,fid", "--features", "judge"]
    Path("made/5.png").write_bytes(Path("val/6.png").read_bytes())
    for i in range(IMAGES + 1):  # no pair is the same, whose PSNR would be infinite
        with Image.open(f"made/{i}.png") as image:
            image.point(lambda value: value // 2).save(f"made/{i}.png")
    assert cli.main([*words, "--out", "r.json"]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "published", "super-resolution", "r.json", "--dataset", "imagenet"]) == 0
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("|")]
    by_name = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    one = {result["metric"]: result["value"] for result in json.loads(Path("r.json").read_text())}
    assert by_name["r.json"]["PSNR, dB"].startswith(f"{one['psnr']:.2f} ± ") and by_name["r.json"]["FID"] == ""
    assert by_name["SR3"]["PSNR, dB"] == "26.4" and by_name["LDM-4"]["IS"] == "166.3"
    assert "size in pixels as it is, theirs 256" in said
    hard = ["evaluate", "published", "inpainting", "--hard", "r.json", "--dataset", "places"]
    assert cli.main(hard) == 0
    said = capsys.readouterr().out
    assert "LPIPS, 40-50 %" in said and "9.39" in said and "FID, 40-50 %, diptych's judge features" in said
    assert "--hard is for inpainting" in one_line(capsys, *hard[:2], "layout", *hard[3:5], "--dataset", "coco")
    assert "unknown data set" in one_line(capsys, "evaluate", "published", "layout", "--dataset", "places")


# Parts of a set of images


@pytest.fixture
def few(tmp_path: Path) -> Iterator[Path]:
    for i in range(6):
        (tmp_path / f"{i % 2}").mkdir(exist_ok=True)
        noise(i).save(tmp_path / f"{i % 2}" / f"{i}.png")
    yield tmp_path


def test_images_by_name_and_by_draw_have_features_of_their_own(few: Path) -> None:
    whole, named = ImageSet(few), ImageSet(few, only=["4.png", "1.png"])
    assert {Path(named.name(i)).name for i in range(len(named))} == {"1.png", "4.png"}
    first, again, other = whole.drawn(2, 0), whole.drawn(2, 0), whole.drawn(2, 1)
    assert len(first) == 2 and len(whole) == 6 and whole.drawn(None, 0) is whole.drawn(9, 0) is whole
    assert first.identity() == again.identity()
    assert len({part.identity() for part in (whole, named, first, other, named.drawn(1, 0))}) == 5
    with pytest.raises(UserError, match=r"lacks 9\.png \(1 of 2 images are missing\)"):
        ImageSet(few, only=["9.png", "1.png"])


@pytest.mark.slow
def test_inception_scores_stand_in_the_published_columns(model: NoisyModel, capsys) -> None:
    weights = inception_file(Path("inception.pth").absolute())
    command = [word for word in FID if word not in ("--features", "judge")]
    command += ["--weights", f"inception={weights}", "--allow-pickle", "--splits", "2", "--size", "64"]
    assert cli.main([*command, "--preset", "ldm", "--out", "o"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| latent"))
    one = results("o")
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[2] == f"{one['fid']['value']:.2f}" and cells[3].startswith(f"{one['is']['value']:.2f} ± ")
    assert one["fid"]["features"]["resize"] == "tf1" and one["is"]["preset"]["changed"] == ["number", "size"]
