"""Measuring sets of images: what is read, what is refused before any work, what is kept on disk."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from diptych.cli import main as cli
from diptych.core.errors import UserError
from diptych.data import remote
from diptych.metrics import feature_files
from diptych.metrics.feature_files import extract
from diptych.metrics.feature_networks import FeatureNetwork, open_features
from diptych.metrics.frechet import Gaussian, frechet_error
from diptych.metrics.image_set import ImageSet, Processing
from diptych.metrics.measure import MeasureConfig, measure_images
from diptych.metrics.npz_files import SamplesFile
from diptych.metrics.records import differing
from tests.data.tiny import image_dataset

JUDGE = MeasureConfig(features="judge", subset_size=4, subsets=3)


class Colours(FeatureNetwork):
    """A stub: means of colours over quarters of an image, and what they are multiplied by."""

    kind, resizes = "colours", ("torch-bilinear",)

    def __init__(self, gain: float = 1.0) -> None:
        self.calls = 0
        network = nn.Linear(1, 1, bias=False)
        nn.init.constant_(network.weight, gain)
        super().__init__(network, "colours", 8, 12)

    def _features(self, images: Tensor) -> Tensor:
        self.calls += 1
        weight: Any = self.network.weight
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) * weight[0, 0]


def image(seed: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


def folder(path: Path, count: int, start: int = 0, **about: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image(start + i, **about).save(path / f"{i:03d}.png")
    return path


def values_of(results: list[dict[str, Any]]) -> dict[str, float]:
    return {result["metric"]: result["value"] for result in results}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["evaluate", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command ends with."""
    code, _, error = run(capsys, *arguments)
    assert code == 2 and error.startswith("diptych: ") and error.count("\n") == 1, error
    return error


def test_a_set_and_its_copy_are_the_same(tmp_path: Path) -> None:
    real, copy = folder(tmp_path / "real", 9), folder(tmp_path / "copy", 9)
    results = measure_images(copy, real, ("fid", "kid", "precision-recall", "psnr", "ssim"), config=JUDGE)
    values = values_of(results)
    trace = float(np.trace(Gaussian.of(extract(ImageSet(real), open_judge()).values).covariance))
    assert values["fid"] <= 1e-6 * trace
    assert values["precision"] == values["recall"] == values["coverage"] == 1
    assert values["ssim"] == pytest.approx(1)
    assert results[0]["fewer_images_than_dimensions"] is True
    assert results[0]["generated"]["sha256"] == results[0]["reference"]["sha256"]


def open_judge() -> FeatureNetwork:
    from diptych.metrics.feature_networks import open_features

    return open_features("judge")


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("P", 0, (0, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("I;16", 100 * 256, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_modes_of_images_are_brought_to_rgb(tmp_path: Path, mode: str, colour: Any, expected: tuple[int, ...]) -> None:
    Image.new(mode, (31, 17), colour).save(tmp_path / "one.png")
    found, _ = ImageSet(tmp_path).read(0)
    assert found.mode == "RGB" and found.size == (31, 17) and found.getpixel((3, 3)) == expected


def test_cmyk_animated_and_turned_images(tmp_path: Path) -> None:
    Image.new("CMYK", (24, 24), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "b.webp", save_all=True, append_images=frames[1:], lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 10)).save(tmp_path / "c.jpg", exif=exif)
    images = ImageSet(tmp_path)
    assert images.read(0)[0].getpixel((5, 5)) == (255, 255, 255)
    assert images.read(1)[0].getpixel((5, 5)) == (255, 0, 0)
    assert images.read(2)[0].size == (10, 30)


def test_sizes_may_differ_and_are_cropped_from_the_centre(tmp_path: Path) -> None:
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    wide.save(tmp_path / "a.png")
    image(1, (7, 13)).save(tmp_path / "b.png")
    images = ImageSet(tmp_path, Processing(size=10))
    assert images.read(0)[0].getcolors() == [(100, (0, 0, 255))]
    assert images.read(1)[0].size == (10, 10)
    whole = ImageSet(tmp_path, Processing(size=10, crop="none"))
    assert len(whole.read(0)[0].getcolors() or []) > 1
    assert extract(images, Colours(), folder=tmp_path / "cache").values.shape == (2, 12)


def test_a_broken_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path / "set", 4)
    data = (path / "002.png").read_bytes()
    (path / "002.png").write_bytes(data[: len(data) // 2])
    error = refused(capsys, "images", path, path, "--features", "judge")
    assert "002.png" in error and "another set" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{empty}", "{real}"], "holds no .tar shards and no images"),
        (["{gone}", "{real}"], "no images at"),
        (["{empty}", "{real}"], "holds no .tar shards and no images\n"),
        (["{real}", "{empty}", "--metrics", "psnr"], "holds no .tar shards and no images\n"),
        (["{real}", "{one}"], "fid needs 2 images or more on each side, not 1"),
        (["{real}", "{real}", "--metrics", "ffid"], "did you mean fid"),
        (["{real}", "{real}", "--metrics", "kid"], "kid needs 1,000 images or more on each side, not 6, or a smaller"),
        (["{real}", "{real}", "--metrics", "precision-recall", "--k", "6"], "needs 7 images or more"),
        (["{real}", "--metrics", "is"], "is needs 10 images or more on each side, not 6, or fewer splits than 10"),
        (["{real}"], "is needs 10 images"),
        (["{real}", "--metrics", "fid"], "fid compares with a reference"),
        (["{real}", "{real}", "{real}"], "two sets are compared"),
        (["{real}", "{real}", "--limit", "7"], "has 6 images, fewer than the 7"),
        (["{real}", "{real}", "--reference-limit", "7"], "has 6 images, fewer than the 7"),
        (["{real}", "{real}", "--metrics", "lpips"], "lpips needs VGG16"),
        (["{real}", "{one}", "--metrics", "psnr"], "001 is on one alone (5 are)"),
        (["{real}", "{twice}", "--metrics", "psnr"], "have one name but for the ending"),
        (["{real}", "{small}", "--metrics", "psnr"], "has 9 x 9 pixels and its pair 20 x 16"),
        (["{small}", "{small}", "--metrics", "ssim"], "ssim needs 11 a side"),
        (["{real}", "{real}", "--metrics", "clip-score"], "clip features need a CLIP"),
        (["{real}", "{real}", "--network-resize", "tf1"], "choose one of torch-antialiased"),
        (["{real}", "{real}", "--crop", "none"], "--size"),
        (["{real}", "{real}", "--weights", "inception"], "NETWORK=PATH"),
        (["{real}", "{real}", "--weights", "inceptoin=a"], "did you mean inception"),
        (["{real}", "{real}", "--out", "{real}"], "is a folder: name a file"),
        (["{real}", "{real}", "--out", "{real}/000.png/a.json"], "there is a file where a folder is needed"),
        (["{real}", "{real}", "--statistics", "a.txt"], "writes an .npz"),
        (["{real}", "--metrics", "is", "--statistics", "a.npz"], "name both sets"),
    ],
)
def test_bad_input_is_refused_before_any_network_runs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    def extracted(*_: object, **__: object) -> None:
        raise AssertionError("features were computed")

    monkeypatch.setattr("diptych.metrics.measure.extract", extracted)
    places = {"real": folder(tmp_path / "real", 6), "one": folder(tmp_path / "one", 1), "gone": tmp_path / "gone"}
    places |= {"small": folder(tmp_path / "small", 6, size=(9, 9)), "twice": folder(tmp_path / "twice", 6)}
    image(1).save(tmp_path / "twice" / "000.jpg")
    (tmp_path / "empty").mkdir()
    places["empty"] = tmp_path / "empty"
    chosen = [] if "--metrics" in arguments and "clip-score" in arguments else ["--features", "judge"]
    error = refused(capsys, "images", *(part.format(**places) for part in arguments), *chosen)
    assert said in error, error


def test_a_read_only_place_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    real = folder(tmp_path / "real", 3)
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "permission" in refused(
        capsys, "images", real, real, "--features", "judge", "--out", tmp_path / "locked/a/b"
    )


def test_results_go_to_a_file_in_a_new_folder_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real, one, other = (folder(tmp_path / name, 6, start) for name, start in (("real", 0), ("one", 50), ("two", 90)))
    files = [tmp_path / "new" / f"{name}.json" for name in ("one", "two")]
    for made, file in zip((one, other), files, strict=True):
        code, shown, _ = run(
            capsys, "images", real, made, "--features", "judge", "--metrics", "fid,psnr", "--out", file, "--jpeg", "90"
        )
        assert code == 0 and "fewer images than the features have dimensions" in shown
    stored = json.loads(files[0].read_text())
    assert [result["metric"] for result in stored] == ["fid", "psnr"]
    assert stored[0]["generated"]["processing"] == {"size": None, "jpeg": 90}
    code, shown, _ = run(capsys, "compare", *files)
    assert code == 0 and f"{stored[0]['value']:.6g}" in shown and "does not compare" not in shown
    stored[0]["features"]["resize"] = "clean"
    stored[1]["generated"]["images"] = 5
    files[1].write_text(json.dumps(stored))
    error = refused(capsys, "compare", *files)
    assert "features.resize torch-antialiased and clean" in error and "generated.images 6 and 5" in error
    for text in ("[]", "{", '[{"metric": "fid"}]', '[{"metric": "fid", "value": 1, "features": 3}]', "[" * 100_000):
        files[1].write_text(text)
        refused(capsys, "compare", *files)
    assert "two files" in refused(capsys, "compare", files[0])


def test_bootstrap_error_and_what_made_the_images_are_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, made = folder(tmp_path / "real", 6), folder(tmp_path / "made", 5, 20)
    stated = {"model": {"sha256": "m"}, "settings": {"guidance": 4.0, "seed": 1}, "model_source": "runs/a"}
    (made / "set.json").write_text(json.dumps({"set": 1, **stated}))
    command = ("images", real, made, "--features", "judge", "--bootstrap", "8", "--seed", "3")
    code, _, _ = run(capsys, *command, "--out", tmp_path / "with.json")
    (result,) = json.loads((tmp_path / "with.json").read_text())
    network = open_features("judge")
    rows = [
        network(torch.stack([network.prepare(Image.open(path).convert("RGB")) for path in sorted(side.glob("*.png"))]))
        for side in (made, real)
    ]
    expected = frechet_error(*(side.numpy() for side in rows), resamples=8, seed=3)
    assert code == 0 and result["error"] == pytest.approx(expected, rel=1e-3) and "8 resamples" in result["error_by"]
    assert result["made_with"] == stated
    # An error is no setting: with and without one, values compare.
    (plain,) = measure_images(made, real, config=MeasureConfig(features="judge"))
    assert plain["value"] == result["value"] and "error" not in plain and differing(plain, result) == []


def test_limit_takes_the_first_images(tmp_path: Path) -> None:
    real, made = folder(tmp_path / "real", 8), folder(tmp_path / "made", 8, 20)
    part = folder(tmp_path / "part", 5, 20)
    limited = measure_images(made, real, ("fid", "psnr"), config=JUDGE, limit=5)
    assert limited[0]["value"] == measure_images(part, real, config=JUDGE)[0]["value"]
    assert limited[1]["generated"]["images"] == 5
    fewer = measure_images(part, real, config=JUDGE, reference_limit=6)
    assert fewer[0]["reference"]["images"] == 6 and fewer[0]["value"] != limited[0]["value"]


def test_folder_link_shards_and_samples_of_one_set_measure_the_same(tmp_path: Path) -> None:
    real = folder(tmp_path / "real", 6)
    shards = tmp_path / "shards"
    shards.mkdir()
    image_dataset(shards / "a.tar", 6)
    images = ImageSet(shards)
    np.savez(tmp_path / "plain.npz", np.stack([np.array(images.read(i)[0]) for i in range(6)]))
    np.savez_compressed(tmp_path / "packed.npz", np.stack([np.array(images.read(i)[0]) for i in range(6)]))
    loose = tmp_path / "loose"
    loose.mkdir()
    for i in range(6):
        images.read(i)[0].save(loose / f"{i:09d}.png")
    (tmp_path / "link").symlink_to(loose)
    sets = [shards, tmp_path / "plain.npz", tmp_path / "packed.npz", loose, tmp_path / "link"]
    results = [measure_images(one, real, config=JUDGE)[0] for one in sets]
    assert len({result["value"] for result in results}) == 1
    assert len({result["generated"]["sha256"] for result in results}) == 1
    paired = measure_images(tmp_path / "plain.npz", tmp_path / "packed.npz", ("ssim",), config=JUDGE)
    assert paired[0]["value"] == pytest.approx(1)


def test_samples_are_read_where_they_lie(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    np.savez(tmp_path / "a.npz", values, labels=np.arange(5))
    np.savez(tmp_path / "b.npz", np.asfortranarray(values))
    for name in ("a", "b"):
        samples = SamplesFile(tmp_path / f"{name}.npz")
        assert all(np.array_equal(samples[i], values[i]) for i in range(5))
        assert (samples._whole is None) == (name == "a")


def damaged(path: Path, kind: str) -> Path:
    values = np.zeros((3, 8, 8, 3), np.uint8)
    arrays: dict[str, dict[str, np.ndarray]] = {
        "floats": {"arr_0": values.astype(np.float32)},
        "grey": {"arr_0": values[..., 0]},
        "empty": {"arr_0": values[:0]},
        "other": {"images": values},
        "pickled": {"arr_0": np.array([{}], object)},
    }
    np.savez(path, **arrays.get(kind, {"arr_0": values}))  # type: ignore[arg-type]
    data = path.read_bytes()
    if kind == "cut":
        path.write_bytes(data[:200])
    elif kind == "text":
        path.write_text("no archive")
    elif kind == "nothing":
        path.write_bytes(b"")
    elif kind == "header":
        path.write_bytes(data.replace(b"'shape': (3, 8", b"'shape': (9, 8"))
    return path


@pytest.mark.parametrize(
    "kind", ["floats", "grey", "empty", "other", "pickled", "cut", "text", "nothing", "header", "gone"]
)
@pytest.mark.parametrize("side", ["generated", "real"])
def test_damaged_samples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, side: str) -> None:
    real, path = folder(tmp_path / "real", 3), tmp_path / "a.npz"
    if kind != "gone":
        damaged(path, kind)
    sets = (real, path) if side == "generated" else (path, real)
    assert "a.npz" in refused(capsys, "images", *sets, "--features", "judge")


def test_statistics_stand_for_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real, made = folder(tmp_path / "real", 8), folder(tmp_path / "made", 7, 30)
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    common = "--features", "judge", "--metrics", "fid"
    assert run(capsys, "images", real, made, *common, "--statistics", tmp_path / "s.npz", "--out", first)[0] == 0
    assert run(capsys, "images", tmp_path / "s.npz", made, *common, "--out", second)[0] == 0
    one, two = (json.loads(path.read_text())[0] for path in (first, second))
    assert one["value"] == pytest.approx(two["value"], rel=1e-9)
    assert one["reference"] | {"name": ""} == two["reference"] | {"name": ""}
    assert run(capsys, "compare", first, second)[0] == 0
    error = refused(capsys, "images", tmp_path / "s.npz", made, "--features", "judge", "--metrics", "kid")
    assert "holds statistics alone" in error
    assert "holds statistics" in refused(capsys, "images", tmp_path / "s.npz", made, *common, "--reference-limit", "3")
    error = refused(capsys, "images", tmp_path / "s.npz", made, *common, "--statistics", tmp_path / "t.npz")
    assert "holds statistics already" in error


def test_statistics_of_other_tools_compare_with_the_same_file_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, other = folder(tmp_path / "made", 7, 30), folder(tmp_path / "other", 7, 60)
    gaussian = Gaussian.of(extract(ImageSet(folder(tmp_path / "real", 8)), open_judge()).values)
    np.savez(tmp_path / "a.npz", mu=gaussian.mean, sigma=gaussian.covariance)
    np.savez(tmp_path / "b.npz", mu=gaussian.mean + 1, sigma=gaussian.covariance)
    for name, sets in {"1": ("a", made), "2": ("a", other), "3": ("b", made)}.items():
        file = tmp_path / f"{sets[0]}.npz"
        code, shown, _ = run(capsys, "images", file, sets[1], "--features", "judge", "--out", tmp_path / f"{name}.json")
        assert code == 0 and "not known: network, resize" in shown
    assert run(capsys, "compare", tmp_path / "1.json", tmp_path / "2.json")[0] == 0
    assert "reference.statistics" in refused(capsys, "compare", tmp_path / "1.json", tmp_path / "3.json")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": np.full(4, np.nan), "sigma": np.eye(4)}, "NaN"),
        ({"mu": np.zeros(4), "sigma": np.eye(5)}, "no mean and covariance"),
        ({"mu": np.zeros(4), "sigma": np.eye(4)}, "features of 192 and of 4 dimensions"),
        ({"mu": np.zeros(4), "sigma": -np.eye(4)}, "no covariance"),
        ({"mu": np.zeros(4), "sigma": np.triu(np.ones((4, 4)))}, "no covariance"),
        ({"mu": np.array(["a"] * 4), "sigma": np.eye(4)}, "must be numbers"),
        ({"mu": np.array([None] * 4, object), "sigma": np.eye(4)}, "cannot be read as .npz"),
        ({"mu": np.zeros(4), "sigma": np.eye(4), "diptych": np.array("{")}, "no JSON"),
        ({"mu": np.zeros(4), "sigma": np.eye(4), "diptych": np.array('{"features": 3}')}, "not written by diptych"),
        ({"mu": np.zeros(4), "sigma": np.eye(4), "diptych": np.array('{"features": {}}')}, "other features"),
    ],
)
def test_damaged_statistics_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: dict[str, np.ndarray], said: str
) -> None:
    np.savez(tmp_path / "s.npz", **arrays)  # type: ignore[arg-type]
    made = folder(tmp_path / "made", 3)
    assert said in refused(capsys, "images", tmp_path / "s.npz", made, "--features", "judge")


def test_features_are_kept_and_a_changed_image_is_read_anew(tmp_path: Path) -> None:
    path, cache, network = folder(tmp_path / "set", 5), tmp_path / "cache", Colours()

    def measured() -> tuple[np.ndarray, str, int]:
        network.calls = 0
        features = extract(ImageSet(path), network, 2, cache)
        return features.values[:], features.sha256, network.calls

    first, name, calls = measured()
    assert calls == 3
    again = measured()
    assert again[2] == 0 and np.array_equal(again[0], first) and again[1] == name
    time.sleep(0.01)
    changed = image(77)
    changed.save(tmp_path / "other.png")
    with open(path / "003.png", "wb") as file:  # in place: the time of its folder stays
        file.write((tmp_path / "other.png").read_bytes())
    third, other_name, calls = measured()
    assert calls == 3 and other_name != name
    assert np.array_equal(third[:3], first[:3]) and not np.array_equal(third[3], first[3])
    (path / "note.txt").write_text("no image")
    assert measured()[2] == 0, "another file beside the images says nothing of them"
    assert extract(ImageSet(path, Processing(size=6)), network, 2, cache).values[0, 0] != third[0, 0]


def test_a_changed_shard_and_changed_samples_are_read_anew(tmp_path: Path) -> None:
    shards, cache, network = tmp_path / "shards", tmp_path / "cache", Colours()
    shards.mkdir()
    image_dataset(shards / "a.tar", 3)
    np.savez(tmp_path / "a.npz", np.zeros((3, 8, 8, 3), np.uint8))
    for path, change in ((shards, shards / "a.tar"), (tmp_path / "a.npz", tmp_path / "a.npz")):
        before = extract(ImageSet(path), network, 2, cache).sha256
        time.sleep(0.01)
        if change.suffix == ".tar":
            other = image_dataset(tmp_path / "other.tar", 3, {0: data_of(image(5, (24, 20)))}).read_bytes()
            change.write_bytes(other)
        else:
            np.savez(change, np.full((3, 8, 8, 3), 7, np.uint8))
        assert extract(ImageSet(path), network, 2, cache).sha256 != before


def data_of(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG")
    return file.getvalue()


def test_features_with_nan_are_refused_and_not_kept(tmp_path: Path) -> None:
    path, cache = folder(tmp_path / "set", 3), tmp_path / "cache"
    with pytest.raises(UserError, match=r"colours gives NaN or Inf for 000\.png"):
        extract(ImageSet(path), Colours(float("inf")), 2, cache)
    assert all(file.stat().st_size == 0 for file in cache.rglob("features.f32"))


def test_what_a_kill_left_half_written_is_cut_off_and_gone_on_with(tmp_path: Path) -> None:
    path, cache, network = folder(tmp_path / "set", 7), tmp_path / "cache", Colours()
    whole = extract(ImageSet(path), network, 2, cache)
    expected, name = whole.values[:], whole.sha256
    for features, hashes in ((3 * 48 + 11, 4 * 32), (5 * 48, 2 * 32 + 1), (0, 7 * 32)):
        os.truncate(whole.values.path, features)
        os.truncate(whole.values.path.with_name("hashes.bin"), hashes)
        again = extract(ImageSet(path), network, 2, cache)
        assert np.array_equal(again.values[:], expected) and again.sha256 == name


class Together(Colours):
    """A feature's last bits depend on the batch that it is computed in, as with real networks."""

    left = -1

    def _features(self, images: Tensor) -> Tensor:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super()._features(images) * (1 + 1e-6 * images.mean())


def test_a_run_that_was_interrupted_ends_in_the_same_bits(tmp_path: Path) -> None:
    path = folder(tmp_path / "set", 7)
    whole = extract(ImageSet(path), Together(), 3, tmp_path / "whole")
    for rows in (0, 1, 2, 4, 5):
        network, cache = Together(), tmp_path / f"{rows}"
        network.left = 2
        with pytest.raises(KeyboardInterrupt):
            extract(ImageSet(path), network, 3, cache)
        (place,) = cache.glob("*/features.f32")
        assert place.stat().st_size == 6 * 48
        os.truncate(place, rows * 48 + 7)
        network.left = -1
        again = extract(ImageSet(path), network, 3, cache)
        assert again.values[:].tobytes() == whole.values[:].tobytes() and again.sha256 == whole.sha256


def test_what_changed_since_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, cache = folder(tmp_path / "set", 4), tmp_path / "cache"

    def said(network: FeatureNetwork, part: int | None = None) -> str:
        extract(ImageSet(path, limit=part), network, 2, cache)
        return capsys.readouterr().err

    assert said(Colours()) == said(Colours()) == said(Colours(), 2) == said(Colours(), 3) == ""
    assert f"{path}: the weights of colours changed since its features were computed: they are" in said(Colours(2))
    assert said(Colours()) == said(Colours(2)) == "", "both are there"
    image(50, (21, 16)).save(path / "001.png")
    assert f"{path}: its images changed since its features were computed: they are computed anew" in said(Colours(2))
    assert said(Colours(2)) == ""


KILLED = """
import sys, time
import diptych.metrics.measure as measure
from diptych.cli.main import main
from tests.metrics.test_measuring import Together

class Slow(Together):
    def _features(self, images):
        print("batch", flush=True)
        time.sleep(0.1)
        return super()._features(images)

gain = float(sys.argv[1])
measure.open_features = lambda *_, **__: Slow(gain)
sys.exit(main(["evaluate", "images", *sys.argv[2:], "--features", "judge", "--batch", "2"]))
"""


@pytest.mark.slow
def test_evaluate_images_goes_on_after_a_kill_and_says_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = folder(tmp_path / "real", 7), folder(tmp_path / "made", 9, 20)

    def command(out: str, gain: float, cache: str) -> subprocess.Popen[str]:
        monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / cache))
        words = [sys.executable, "-c", KILLED, str(gain), str(real), str(made), "--out", str(tmp_path / out)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def measured(gain: float, cache: str) -> tuple[Any, str, int]:
        process = command("r.json", gain, cache)
        shown, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        return json.loads((tmp_path / "r.json").read_text()), error, shown.count("batch\n")

    whole, _, batches = measured(1, "whole")
    assert batches == 5 + 4
    killed = command("r.json", 1, "cache")
    assert killed.stdout is not None
    for _ in range(4):
        assert killed.stdout.readline() == "batch\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    again, error, batches = measured(1, "cache")
    assert again == whole and "changed" not in error and 0 < batches <= 9 - 3
    image(90).save(made / "004.png")
    for number, (gain, said) in enumerate(((1, f"{made}: its images changed"), (2, "the weights of colours changed"))):
        found, error, batches = measured(gain, "cache")
        assert said in error and batches == (5, 9)[number]
        assert found == measured(gain, f"fresh-{number}")[0] and found != whole


SLOWLY = """
import sys, time
from pathlib import Path
from tests.metrics.test_measuring import Colours, ImageSet, extract

class Slow(Colours):
    def _features(self, images):
        print("batch", flush=True)
        time.sleep(0.05)
        return super()._features(images)

print(extract(ImageSet(sys.argv[1]), Slow(), 1, Path(sys.argv[2])).sha256, flush=True)
"""


@pytest.mark.slow
def test_killed_processes_and_two_at_once(tmp_path: Path) -> None:
    path, cache = folder(tmp_path / "set", 12), tmp_path / "cache"
    command = [sys.executable, "-c", SLOWLY, str(path), str(cache)]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    for _ in range(4):
        assert killed.stdout.readline() == "batch\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    two = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    shown = [process.communicate(timeout=60)[0].split() for process in two]
    assert [process.returncode for process in two] == [0, 0]
    batches = sum(lines.count("batch") for lines in shown)
    assert batches < 12, "what was killed is gone on with, and what one does the other waits for"
    names = {lines[-1] for lines in shown}
    network = Colours()
    fresh = extract(ImageSet(path), network, 5, tmp_path / "fresh")
    assert names == {fresh.sha256}
    assert np.array_equal(extract(ImageSet(path), network, 5, cache).values[:], fresh.values[:])
    assert network.calls == 3, "the second is read from disk"


def test_statistics_that_cannot_be_written_take_no_result_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = folder(tmp_path / "real", 4), folder(tmp_path / "made", 4, 9)
    words = ["images", real, made, "--features", "judge", "--metrics", "psnr"]

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("diptych.metrics.statistics_files.np.savez", full)
    code, shown, error = run(capsys, *words, "--out", tmp_path / "r.json", "--statistics", tmp_path / "s.npz")
    (one,) = json.loads((tmp_path / "r.json").read_text())
    assert code == 2 and f"| psnr    | {one['value']:.6g}" in shown and error.count("\n") == 1
    assert "the results are above, but not all was written" in error and "disk is full" in error and "s.npz" in error
    monkeypatch.undo()
    monkeypatch.setattr("diptych.cli.measure_report.write_text", full_text)
    code, shown, error = run(capsys, *words, "--out", tmp_path / "q.json", "--statistics", tmp_path / "t.npz")
    assert code == 2 and f"{one['value']:.6g}" in shown and "q.json" in error and (tmp_path / "t.npz").exists()


def full_text(path: Path, text: str) -> None:
    raise UserError(f"the disk is full: {path}")


def test_a_full_disk_is_said_and_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache, network = folder(tmp_path / "set", 6), tmp_path / "cache", Colours()
    real = open

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 2

        def write(self, data: bytes) -> int:
            self.left -= 1
            if self.left < 0:
                self.file.write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def opened(place: Any, mode: str = "r", *more: Any, **how: Any) -> Any:
        file = real(place, mode, *more, **how)
        return Full(file) if str(place).endswith("features.f32") else file

    with monkeypatch.context() as patch:
        patch.setattr(feature_files, "open", opened, raising=False)
        with pytest.raises(UserError, match="the disk is full"):
            extract(ImageSet(path), network, 1, cache)
    network.calls = 0
    found = extract(ImageSet(path), network, 1, cache)
    assert network.calls == 4 and found.sha256 == extract(ImageSet(path), network, 6, tmp_path / "fresh").sha256


def test_sets_in_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    application = pytest.importorskip("moto.server")
    make = pytest.importorskip("werkzeug.serving").make_server
    boto3 = pytest.importorskip("boto3")
    server = make(
        "127.0.0.1", 0, application.DomainDispatcherApplication(application.create_backend_app), threaded=True
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        names = {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}
        for name, value in {**names, "DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        remote._store.cache_clear()
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="bucket")
        (tmp_path / "local").mkdir()
        shard = image_dataset(tmp_path / "local" / "0.tar", 5)
        client.put_object(Bucket="bucket", Key="set/0.tar", Body=shard.read_bytes())
        network, cache = Colours(), tmp_path / "features"
        stored = extract(ImageSet("s3://bucket/set"), network, 2, cache)
        assert stored.sha256 == extract(ImageSet(tmp_path / "local"), Colours(), 2, cache).sha256
        network.calls = 0
        assert extract(ImageSet("s3://bucket/set"), network, 2, cache).sha256 == stored.sha256 and network.calls == 0
        other = image_dataset(shard, 5, {2: data_of(image(9, (24, 20)))}).read_bytes()
        client.put_object(Bucket="bucket", Key="set/0.tar", Body=other)
        assert extract(ImageSet("s3://bucket/set"), network, 2, cache).sha256 != stored.sha256
    finally:
        server.shutdown()
        remote._store.cache_clear()


def test_the_command_line_lists_what_there_is() -> None:
    """It has lists of its own, since --help imports nothing that takes long."""
    import argparse

    from diptych.cli import measure_commands
    from diptych.cli.parser import build_parser
    from diptych.metrics.feature_networks import NETWORKS
    from diptych.metrics.image_set import FILTERS
    from diptych.metrics.measure import METRICS
    from diptych.metrics.resizing import RESIZES

    assert set(measure_commands.METRICS) == set(METRICS)
    assert set(measure_commands.NETWORKS) == set(NETWORKS)
    assert set(measure_commands.RESIZES) == set(RESIZES)
    assert set().union(*(network.resizes for network in NETWORKS.values())) == set(RESIZES)
    subparsers = build_parser()._subparsers
    assert subparsers is not None
    commands = next(a for a in subparsers._group_actions if isinstance(a, argparse._SubParsersAction)).choices
    actions = {action.dest: action for action in commands["evaluate images"]._actions}
    assert set(actions["resize"].choices or ()) == set(FILTERS)
    usual, help_text = MeasureConfig(), re.sub(r"\s+", " ", commands["evaluate images"].format_help())
    for name in ("features", "splits", "subsets", "subset_size", "k", "seed", "batch"):
        assert f"(default: {getattr(usual, name)})" in (actions[name].help or ""), name
    assert "docs/evaluation.md" in help_text
