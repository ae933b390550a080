"""Figures from stored results: points and errors are those of the files, repeats are averaged, and what does not
compare is refused."""

from __future__ import annotations

import copy
import csv
import json
import math
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from PIL import Image

from diptych.cli import curves_commands
from diptych.cli.main import main
from diptych.core.errors import UserError
from diptych.evaluation.curves import draw_curves as drawing
from diptych.evaluation.curves.curve_page import Curve
from diptych.evaluation.curves.draw_curves import FIGURES, draw_curves
from diptych.evaluation.curves.stored_results import read_stored
from diptych.evaluation.plots import PointName, name_points, page_of, shared

COMMITTED = Path(__file__).resolve().parents[3] / "benchmarks" / "results"


def curve(name: str, *paths: Path) -> Curve | None:
    return FIGURES[name].draw(read_stored(paths))


def drawn(name: str, *paths: Path) -> Curve:
    found = curve(name, *paths)
    assert found is not None
    return found


def sweep(
    folder: Path,
    *,
    name: str = "a",
    seed: int = 0,
    text: int | None = 10,
    unet: int = 100,
    weights: tuple[float, ...] = (1.0, 4.0),
    error: float | None = None,
    change: tuple[str, str, Any] | None = None,
) -> Path:
    """A guidance sweep of a latent model, whose distance is 10 times the weight plus the seed."""
    values: dict[str, Any] = {
        "sweep": "guidance",
        "model": {"name": name, "fingerprint": name, "config": "c"},
        "judge": {"fingerprint": "j", "resize": "bilinear"},
        "data": {"name": "emoji", "manifest": "m", "prompts": f"p{seed}"},
        "settings": {"pictures": 8, "seed": seed, "steps": None, "stop": None},
        "concepts": 9,
        "references": {"real": {"pictures": 8, "alignment": {"value": 0.8, "error": 0.1}, "saturated": 0.5}},
        "cells": [
            {"guidance": weight, "pictures": 8, "saturated": 0.25, "told": {"size": [64, 64]}}
            | {"alignment": {"value": weight / 10, "error": 0.01}, "frechet": 10 * weight + seed}
            | ({} if error is None else {"frechet_error": error})
            for weight in weights
        ],
    }
    if text is not None:
        values["model"] |= {"networks": {"unet": unet, "text": text}, "text": "bert"}
    if change is not None:
        entry, key, value = change
        values[entry][key] = value
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(values))
    return folder


def test_points_are_those_of_the_stored_sweep() -> None:
    folder = COMMITTED / "sweep-guidance"
    cells = json.loads((folder / "results.json").read_text())["cells"]
    points = drawn("thresholding", folder).points
    assert len(points) == len(cells) == 21
    for cell in cells:
        (point,) = [p for p in points if (p["line"], p["guidance"]) == (cell["threshold"], cell["guidance"])]
        assert (point["alignment"], point["alignment_error"]) == tuple(cell["alignment"][k] for k in ("value", "error"))
        assert point["frechet"] == cell["frechet"] and point["saturated"] == 100 * cell["saturated"]
        assert point["frechet_error"] is None  # these were stored without
    static = drawn("guidance", folder)
    assert [p["frechet"] for p in static.points] == [c["frechet"] for c in cells if c["threshold"] == "static"]
    assert "none, dynamic:0.95" in static.caption and "no error was stored" in static.caption


def test_seeds_are_averaged_with_their_standard_error() -> None:
    folder = COMMITTED / "guidance"  # its own results.json is a summary: the seeds below it are read
    seeds = [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*/results.json"))]
    found = drawn("guides", folder)
    assert len(found.sources) == len(seeds) == 3 and "over 3 seeds" in found.caption
    key = {"way": "classifier", "free": 2.0, "scale": 10.0}
    values = [next(cell["frechet"] for cell in one["cells"] if key.items() <= cell.items()) for one in seeds]
    (point,) = [p for p in found.points if p["line"] == "classifier, with classifier-free 2" and p["scale"] == 10]
    assert point["frechet"] == pytest.approx(mean(values))
    assert point["frechet_error"] == pytest.approx(stdev(values) / math.sqrt(3))
    summary = json.loads((folder / "results.json").read_text())  # computed by the benchmark itself
    (row,) = [row for row in summary["rows"] if key.items() <= row.items()]
    assert [point["alignment"], point["alignment_error"]] == pytest.approx([*row["alignment"].values()])


def test_what_may_not_be_compared_is_refused_with_the_reason(tmp_path: Path) -> None:
    first = sweep(tmp_path / "a")
    for number, (change, words) in enumerate(
        (
            (("judge", "fingerprint", "k"), "features.fingerprint j and k"),
            (("judge", "resize", None), "features.resize bilinear and not said"),
            (("data", "manifest", "n"), "reference.data m and n"),
            (("data", "prompts", "q"), "drawn by seed 0, prompts p0 and seed 0, prompts q"),
            (("settings", "seed", 5), "drawn by seed 0, prompts p0 and seed 5, prompts p0"),
        )
    ):
        other = sweep(tmp_path / f"b{number}", name="b", change=change)
        with pytest.raises(UserError, match=words) as refused:
            draw_curves([first, other], tmp_path / "out")
        assert str(first) in str(refused.value) and str(other) in str(refused.value)
    fewer = json.loads((first / "results.json").read_text())
    fewer["model"]["fingerprint"] = "c"
    for cell in fewer["cells"]:
        cell["pictures"] = 4
    (tmp_path / "fewer.json").write_text(json.dumps(fewer))
    with pytest.raises(UserError, match=r"generated\.images 8 and 4"):
        draw_curves([first, tmp_path / "fewer.json"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_weights_of_one_seed_join_and_the_same_twice_are_refused(tmp_path: Path) -> None:
    paths = [sweep(tmp_path / "a"), sweep(tmp_path / "b", weights=(2.0,), error=3.0)]
    found = drawn("guidance", *paths)
    assert [(p["guidance"], p["frechet"], p["frechet_error"]) for p in found.points] == [
        (1, 10, None), (2, 20, 3), (4, 40, None),
    ]  # fmt: skip
    with pytest.raises(UserError, match="same point"):
        curve("guidance", paths[0], sweep(tmp_path / "c", weights=(4.0, 7.0)))
    # Of several seeds only what all of them have is drawn, and the rest is named.
    found = drawn("guidance", *paths, sweep(tmp_path / "d", seed=2, weights=(1.0, 2.0)))
    assert [(p["guidance"], p["frechet"]) for p in found.points] == [(1, 11), (2, 21)]
    assert "a at 4, which not all seeds have" in found.caption
    with pytest.raises(UserError, match="no point in common"):
        curve("guidance", paths[0], sweep(tmp_path / "e", seed=3, weights=(9.0,)))


def test_sizes_of_text_encoder_and_unet(tmp_path: Path) -> None:
    small, large = sweep(tmp_path / "s", name="s"), sweep(tmp_path / "l", name="l", text=1000)
    found = drawn("text-encoder", large, small)
    assert [(p["parameters"], p["guidance"]) for p in found.points] == [(10, 1), (10, 4), (1000, 1), (1000, 4)]
    assert curve("unet", small, large) is None
    wide = sweep(tmp_path / "w", name="w", unet=500)
    assert {p["parameters"] for p in drawn("unet", small, wide).points} == {100, 500}
    both = sweep(tmp_path / "b", name="b", text=1000, unet=500)
    with pytest.raises(UserError, match="differ in other networks too: unet 100 and unet 500"):
        draw_curves([small, both], tmp_path / "out", ["text-encoder"])
    with pytest.raises(UserError, match=r"diptych sweep guidance .* stored before the sizes"):
        draw_curves([sweep(tmp_path / "o", text=None)], tmp_path / "out", ["unet"])


def test_augmentation_of_stages_trained_with_and_without(tmp_path: Path) -> None:
    values = json.loads((COMMITTED / "sweep-augmentation-truth" / "results.json").read_text())
    without = copy.deepcopy(values)
    values["model"]["augmented"], without["model"]["augmented"] = True, False
    without["model"]["fingerprint"], without["cells"] = "other", without["cells"][:1]
    for name, one in (("with", values), ("without", without)):
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
    found = drawn("augmentation", tmp_path / "with.json", tmp_path / "without.json")
    lines = [point["line"].partition(", ")[2] for point in found.points]
    assert lines == ["trained with augmentation"] * 6 + ["trained without"]
    assert [point["level"] for point in found.points] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0]
    alone = drawn("augmentation", tmp_path / "with.json")
    assert "no stage that was trained without" in alone.caption.casefold()
    with pytest.raises(UserError, match=r"settings\.truth"):
        curve("augmentation", COMMITTED / "sweep-augmentation", tmp_path / "without.json")


def measured(path: Path, weight: Any, fid: float, *, seed: int = 0, model: str = "m", reference: str = "val") -> Path:
    """As `diptych evaluate fid-30k --metrics fid,clip-score` writes it."""
    generated = {"images": 50, "processing": {"size": 64}, "name": "x", "sha256": str(fid)}
    settings = {"seed": seed} | ({} if weight is None else {"guidance": weight})
    common = {"generated": generated, "made_with": {"model": {"sha256": model, "device": "cpu"}, "settings": settings}}
    common |= {"model": model, "protocol": {"name": "fid-30k", "per_image": 1, "seed": seed, "sha256": str(seed)}}
    fids = {"metric": "fid", "value": fid, "features": {"network": "I"}, "reference": {"sha256": reference}}
    clip = {"metric": "clip-score", "value": 20 + fid, "error": 0.5, "features": {"network": "C"}}
    clip["settings"] = {"captions_sha256": str(seed)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([fids | common, clip | common]))
    return path


def test_measured_sets_are_points_at_their_guidance_weight(tmp_path: Path) -> None:
    files = [
        measured(tmp_path / f"{weight}-{seed}" / "results.json", weight, 3.0 * weight + seed, seed=seed)
        for seed in (0, 2)
        for weight in (4, 1)
    ]
    found = drawn("guidance", tmp_path)  # a folder of such folders
    assert len(found.sources) == len(files)
    assert [(p["guidance"], p["fid"], p["fid_error"], p["seeds"]) for p in found.points] == [
        (1, 4, 1, 2),
        (4, 13, 1, 2),
    ]
    other = measured(tmp_path / "o.json", [1.0, 8.0], 9.0, model="n", reference="train")
    with pytest.raises(UserError, match=r"reference\.fid\.sha256 val and train"):
        curve("guidance", files[1], other)
    with pytest.raises(UserError, match="does not say the guidance weight"):
        curve("guidance", measured(tmp_path / "p.json", None, 1.0))


def run(folder: Path, losses: list[float], rate: float, path: str = "data") -> Path:
    folder.mkdir()
    config = {"system": {"kind": "latent", "model": {"prediction": "v"}}, "data": {"path": path, "size": 8}}
    (folder / "config.json").write_text(json.dumps({**config, "training": {"batch_size": 4}}))
    lines = []
    for step, loss in enumerate(losses, 1):
        lines.append({"step": 10 * step, "kind": "train", "loss": loss, "images_per_second": rate})
        lines.append({"step": 10 * step, "kind": "validation", "loss": loss})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "ki')
    return folder


def test_convergence_of_trainings_by_step_and_seconds(tmp_path: Path) -> None:
    fast, slow = run(tmp_path / "fast", [0.5, 0.25], 20.0), run(tmp_path / "slow", [0.4, 0.1], 5.0)
    points = drawn("training", fast, slow).points
    assert [(p["line"], p["step"], p["seconds"], p["validation_loss"]) for p in points] == [
        ("fast", 10, 2, 0.5), ("fast", 20, 4, 0.25), ("slow", 10, 8, 0.4), ("slow", 20, 16, 0.1),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"reference\.path data and other"):
        curve("training", fast, run(tmp_path / "o", [0.3], 5.0, path="other"))


def test_efficient_unet_compression_and_unseen_words_of_the_repository() -> None:
    stored = json.loads((COMMITTED / "efficient-unet" / "results.json").read_text())
    points = drawn("efficient-unet", COMMITTED / "efficient-unet").points
    (rates,) = [p for p in points if p["line"] == "plain U-Net" and "step" not in p]
    assert rates["images_per_second_training"] == 16 / stored["networks"]["plain"]["training_step_seconds"]
    assert [p["factor"] for p in drawn("compression", COMMITTED / "compression").points] == [1, 4, 8, 16]
    assert len(drawn("unseen", COMMITTED / "unseen").points) == 4


def test_command_writes_png_points_and_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = sweep(tmp_path / "a", error=2.0)
    out = tmp_path / "out"
    assert main(["evaluate", "curves", str(first), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"guidance.png", "guidance.json", "guidance.csv"}
    with Image.open(out / "guidance.png") as image:
        assert image.width > 500 and len(image.convert("RGB").getcolors(1 << 20) or ()) > 10
    content = json.loads((out / "guidance.json").read_text())
    assert [source["file"] for source in content["sources"]] == [(first / "results.json").as_posix()]
    rows = list(csv.DictReader((out / "guidance.csv").open()))
    assert [float(row["frechet"]) for row in rows] == [point["frechet"] for point in content["points"]] == [10, 40]
    said = capsys.readouterr().out
    assert "Drawn from" in said and "bootstrap over images" in said and str(first) in said
    assert tuple(FIGURES) == curves_commands.FIGURES


def test_texts_of_points_that_lie_together_do_not_cover_each_other() -> None:
    """Points as in the figure of the repository, two of which nearly are one: boxes as matplotlib draws them."""
    figure, (axis,) = page_of(1.5)
    places = [(0.630, 42.0), (0.670, 38.2), (0.6925, 43.9), (0.7005, 41.7), (0.693, 44.4), (0.6931, 44.2)]
    axis.plot(*zip(*places, strict=True), "s", markersize=5)
    name_points(axis, [PointName(*place, f"{7 + n}", 1, "k") for n, place in enumerate(places)])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent().extents.tolist() for text in axis.texts]
    assert [text.get_text() for text in axis.texts] == [f"{7 + n}" for n in range(6)]
    assert all(shared(one, other) == 0 for n, one in enumerate(boxes) for other in boxes[:n])
    marks = [axis.transData.transform(place) for place in places]
    assert not any(left < x < right and low < y < up for left, low, right, up in boxes for x, y in marks)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (None, (), "no .*absent"),
        ("{", (), "not readable JSON"),
        ('{"groups": {}}', (), "holds no results that curves are drawn from"),
        ('{"sweep": "guidance", "cells": [{"guidance": 1}]}', (), "lacks what its kind"),
        (json.dumps([{"metric": "fid", "value": 1.0}]), (), "clip-score"),
        ("sweep", ("--figure", "augmentation"), "diptych sweep augmentation"),
        ("sweep", ("--figure", "efficient-unet"), r"python -m benchmarks\.efficient_unet"),
        ("sweep", ("--figure", "pies"), "pies"),
    ],
)
def test_missing_and_damaged_results_name_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, options: tuple[str, ...], words: str
) -> None:
    path = tmp_path / "absent"
    if content == "sweep":
        path = sweep(tmp_path / "a")
    elif content is not None:
        path = tmp_path / "results.json"
        path.write_text(content)
    assert main(["evaluate", "curves", str(path), "--out", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(words, said), said
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "require", lambda: (_ for _ in ()).throw(UserError("plots need matplotlib")))
    with pytest.raises(UserError, match="matplotlib"):
        draw_curves([tmp_path], tmp_path / "out")
