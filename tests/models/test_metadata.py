"""What a PNG says of itself, and that `--from` makes it again from that to the bit."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diptych.cli import main as cli
from diptych.cli.output import write_png
from diptych.cli.regenerate import IMAGES, OPTIONS, SPECIAL, WITHOUT_EFFECT
from diptych.core.errors import UserError
from diptych.models.exif import encoded, exif_of, texts_of
from diptych.models.metadata import infotext, png_texts, read_metadata
from diptych.models.option_registry import all_options
from diptych.weights.file_hash import file_sha256
from tests.models import codes, latents, stages

ROW: dict[str, Any] = {
    "prompt": "a red apple",
    "negative": "green, worms",
    "seed": 2**62,
    "steps": 24,
    "guidance": 7.5,
    "sampler": "euler-ancestral",
    "size": [64, 32],
    "strength": 0.6,
    "model": {"kind": "latent", "source": "runs/apple, red.safetensors", "sha256": "0123456789abcdef" * 4},
    "lora": [
        {"file": "style.pt", "sha256": "f" * 64, "scale": 0.5},
        {"file": "other.safetensors", "sha256": "f" * 64, "tensors_sha256": "e" * 64, "scale": 0.5},
    ],
}


def black() -> Image.Image:
    return Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    "prompt",
    [
        "-minus",
        'a "quoted"\nline\r\n',
        "x" * 10_000,
        "ein Äpfel 猫 🦄",
        "Negative prompt: \nSteps: 3, Seed: 4",
        "\0a",
        "\ud800",
    ],
)
def test_any_prompt_survives(tmp_path: Path, prompt: str) -> None:
    path = write_png(black(), tmp_path, "a", png_texts({**ROW, "prompt": prompt}))
    found = read_metadata(path)
    assert found.pop("diptych") and found == {**ROW, "prompt": prompt}


def test_galleries_read_the_settings() -> None:
    *words, last = infotext(ROW).splitlines()
    assert words == ["a red apple", "Negative prompt: green, worms"]
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)  # as the web UIs read it
    assert dict(pairs) == {
        "Steps": "24",
        "Sampler": "Euler a",
        "CFG scale": "7.5",
        "Seed": str(2**62),
        "Size": "64x32",
        "Model hash": "0123456789",
        "Model": '"apple, red"',
        "Denoising strength": "0.6",
        "Lora hashes": '"style: ffffffffff, other: eeeeeeeeeeee"',
        "Version": last.rpartition("Version: ")[2],
    }


def test_what_else_decides_an_image_is_in_the_settings() -> None:
    model = {**ROW["model"], "precision": "int8", "weight_precision": "float8"}
    last = infotext({**ROW, "model": model, "cache_interval": 3, "guidance_interval": "0.25:1.0"}).splitlines()[-1]
    said = 'Guidance interval: "0.25:1.0", Cache interval: 3, Precision: int8, Weight precision: float8, Version: '
    assert said in last


@pytest.mark.parametrize("format", ["webp", "jpeg"])
def test_other_formats_hold_the_same_texts(tmp_path: Path, format: Any) -> None:
    """And what they say of the image's source: XMP is carried over."""
    row, xmp = {**ROW, "prompt": "ein Äpfel 猫 🦄\n<script>"}, b"<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>"
    texts = PngInfo()
    for key, text in png_texts(row).items():
        texts.add_text(key, text)
    texts.add_itxt("XML:com.adobe.xmp", xmp.decode())
    black().save(tmp_path / "a.png", pnginfo=texts)
    path = tmp_path / f"a.{format}"
    path.write_bytes(encoded((tmp_path / "a.png").read_bytes(), format))
    assert read_metadata(path) == read_metadata(tmp_path / "a.png")
    with Image.open(path) as image:
        assert image.format == format.upper() and image.size == (8, 8)
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment == b"UNICODE\0" + infotext(row).encode("utf-16-be") and image.info["xmp"] == xmp


def test_exif_that_has_no_place_in_a_jpeg_is_left_out() -> None:
    """The JSON first: galleries then still read the prompt."""
    for length, kept in ((1_000, {"parameters", "diptych"}), (25_000, {"parameters"}), (40_000, set())):
        file = io.BytesIO()
        black().save(file, "JPEG", exif=exif_of(png_texts({**ROW, "prompt": "x" * length})))
        assert texts_of(Image.open(file)).keys() == kept


def test_damaged_exif_is_no_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0x9286: b"UNICODE\0\xd8", 0x927C: b"diptych\0\xff"})
    black().save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(UserError, match="may have been stripped"):
        read_metadata(tmp_path / "a.jpg")


def test_of_a_cascade_they_read_the_first_stage() -> None:
    row = {"prompt": "a", "seed": 0, "stages": [{"steps": 5, "guidance": 2.0, "sampler": "ddim"}, {"steps": 9}]}
    assert infotext(row).startswith("a\nSteps: 5, Sampler: DDIM, CFG scale: 2, Seed: 0")


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"parameters": "a cat\nSteps: 3, Seed: 4"}, "another program made it"),
        ({}, "may have been stripped"),
        ({"diptych": "[1]", "parameters": "{}"}, "another program made it"),
        (png_texts({"models": ["latent"], "pictures": [["a cat", 0]]}), "is a sheet of several images"),
    ],
)
def test_what_diptych_did_not_write_is_refused(tmp_path: Path, texts: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_metadata(write_png(black(), tmp_path, "a", texts))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_info_shows_how_an_image_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = write_png(black(), tmp_path, "a", png_texts(ROW))
    if name != "a.png":
        data, path = path.read_bytes(), tmp_path / name
        path.write_bytes(encoded(data, "webp" if name == "a.webp" else "jpeg", 80))
    assert cli.main(["info", str(path)]) == 0
    assert capsys.readouterr().out == infotext(ROW) + "\n"
    assert cli.main(["info", str(path), "--json"]) == 0
    assert ROW.items() <= json.loads(capsys.readouterr().out).items()


def test_a_sheet_says_no_prompt_seed_or_sampler() -> None:
    assert "parameters" not in png_texts({"models": ["latent"], "pictures": [["a cat", 0]]})


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    for name, says in (("a.png", "cannot be read as an image"), ("b.png", "is no file")):
        with pytest.raises(UserError, match=says):
            read_metadata(tmp_path / name)


# `--from`.

WORDS = ["--steps", "2", "--seed", "4294967301"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    latents.system().save(folder / "small")
    stages.stage(stages.wordless()).save(folder / "stage")
    codes.system("class").save(folder / "codes")
    stages.cascade_of_pixels().save(folder / "three")
    return folder


@pytest.fixture
def here(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("small", "stage", "codes", "three"):
        (tmp_path / name).symlink_to(models / name)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "init.png")
    Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), 4)).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(capsys: pytest.CaptureFixture[str], *words: str) -> Path:
    assert cli.main(["generate", *words]) == 0
    return Path(capsys.readouterr().out.split("\n")[0])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["generate", *words]) == 2
    return capsys.readouterr().err


def same(a: Path, b: Path) -> bool:
    return a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ["a red picture", "--model", "small", *WORDS, "--negative", 'a cat\n"-"', "--size", "24x16", "--tile", "16"],
        ["a red picture", "--model", "small", *WORDS, "--image", "init.png", "--mask", "mask.png", "--paste"],
        ["--image", "init.png", "--model", "small", "--sampler", "ddpm", "--steps", "4"],
        ["--image", "init.png", "--model", "small", "--size", "24x16", "--fit", "pad", "--schedule-type", "karras"],
        ["a (red:1.4) picture", "--model", "small", *WORDS, "--weights", "--guidance", "-2.5"],
        ["--low", "init.png", "--model", "stage", *WORDS, "--threshold", "dynamic:0.9", "--augmentation", "0"],
        ["--low", "init.png", "--model", "three", "--steps", "5", "--schedule-type", ",karras", "--fit", "pad"],
        ["green", "--model", "codes", "--top-k", "3", "--temperature", "0.5", "--guidance", "1.5"],
    ],
)
def test_an_image_is_made_again_to_the_bit(here: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    first = made(capsys, *words)
    assert cli.main(["generate", "--from", str(first), "--out", "again"]) == 0
    found = capsys.readouterr()
    assert same(first, Path(found.out.strip())) and "warning" not in found.err


def test_a_jpeg_is_made_again_without_its_loss(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = made(capsys, "a red picture", "--model", "small", *WORDS)
    lossy = here / "lossy.jpg"
    lossy.write_bytes(encoded(first.read_bytes(), "jpeg", 50))
    assert cli.main(["generate", "--from", str(lossy), "--out", "again"]) == 0
    found = capsys.readouterr()
    assert same(first, Path(found.out.strip())) and "warning" not in found.err


def test_every_stage_that_was_kept_is_made_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where an image was handed in, which is brought to the size of the last stage that ran."""
    for more in ([], ["--image", "init.png", "--mask", "mask.png"]):
        words = ["a", "--model", "three", "--keep-stages", *more]
        assert cli.main(["generate", *words]) == 0
        for path in map(Path, capsys.readouterr().out.split()):
            again = made(capsys, "--from", str(path), "--out", "again")
            assert read_metadata(path) == read_metadata(again)
            assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(again)))


def test_every_setting_that_is_recorded_is_read_again() -> None:
    options = [name for name, option in all_options().items() if option.arguments]
    assert sorted((*OPTIONS, *IMAGES, *SPECIAL, *WITHOUT_EFFECT)) == sorted(options)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": -1}, "seed cannot be -1"),
        ({"seed": True}, "seed cannot be True"),
        ({"size": None}, "size cannot be None"),
        ({"model": [1]}, "model cannot be [1]"),
        ({"model": {"tokenizer": 5}}, "model.tokenizer cannot be 5"),
        ({"stages": [1]}, "stages cannot be 1"),
        ({"image": {"file": ["a"]}}, "image.file cannot be ['a']"),
        ({"lora": [{"file": "a"}]}, "lora has no scale"),
        ({"guides": [{"guide": "a", "scale": "x"}]}, "guides.scale cannot be 'x'"),
        ({"decoder": {"source": {}}}, "decoder.source cannot be {}"),
    ],
)
def test_damaged_metadata_are_named(here: Path, capsys: pytest.CaptureFixture[str], changes: Any, says: str) -> None:
    write_png(black(), here, "a", {"diptych": json.dumps({"prompt": "a", "seed": 0, **changes})})
    assert f"the metadata of a.png are damaged: {says}" in refused(capsys, "--from", "a.png")


def test_other_options_change_it_without_a_word(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = made(capsys, "a red picture", "--model", "small", *WORDS)
    assert cli.main(["generate", "--from", str(first), "--seed", "5,6", "--steps", "3"]) == 0
    found = capsys.readouterr()
    assert found.out.split() == [f"out/a-red-picture-s{seed}.png" for seed in (5, 6)] and "warning" not in found.err
    row = read_metadata(Path("out/a-red-picture-s5.png"))
    assert (row["prompt"], row["steps"], row["model"]["source"]) == ("a red picture", 3, "small")


def test_a_file_that_is_missing_or_another_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = made(capsys, "a red picture", "--model", "small", *WORDS, "--image", "init.png")
    assert read_metadata(first)["image"] == {"file": "init.png", "sha256": file_sha256(here / "init.png")}
    (here / "init.png").rename(here / "elsewhere.png")
    assert "the image init.png (SHA-256 " in refused(capsys, "--from", str(first))
    again = made(capsys, "--from", str(first), "--image", "elsewhere.png", "--out", "again")
    assert np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(again)))
    Image.new("RGB", (16, 16)).save(here / "init.png")
    assert "init.png is another file: give the right one as --image" in refused(capsys, "--from", str(first))
    assert cli.main(["generate", "--from", str(first), "--image", "init.png"]) == 0
    found = capsys.readouterr().err
    assert "init.png is another file than the image" in found and "differs" not in found
    (here / "out" / "init.png").write_bytes((here / "elsewhere.png").read_bytes())
    made(capsys, "--from", str(first), "--out", "again-2")  # beside the image that was made from it


def test_another_model_under_the_recorded_name_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = made(capsys, "a red picture", "--model", "small", *WORDS)
    (here / "small").unlink()
    latents.system(steps=9).save(here / "small")
    assert "the model small is another than the one that made" in refused(capsys, "--from", str(first))
    assert cli.main(["generate", "--from", str(first), "--model", "small"]) == 0
    assert "the model small is another than" in capsys.readouterr().err


def test_old_metadata_are_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = made(capsys, "a red picture", "--model", "small", *WORDS)
    row = {**read_metadata(first), "model": "small"}
    del row["diptych"]
    text = PngInfo()
    text.add_text("parameters", json.dumps(row))
    Image.open(first).save("old.png", pnginfo=text)
    again = made(capsys, "--from", "old.png", "--out", "again")
    assert np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(again)))
    text = PngInfo()
    text.add_text("parameters", json.dumps({**row, "image": "given", "strength": 0.5}))
    Image.open(first).save("old.png", pnginfo=text)
    assert "does not say which image to take" in refused(capsys, "--from", "old.png")


def test_regenerating_another_image_warns(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = made(capsys, "a red picture", "--model", "small", *WORDS)
    texts, values = dict(Image.open(first).text), np.asarray(Image.open(first)).copy()  # type: ignore[attr-defined]
    values[0, 0, 0] ^= 1
    touched = write_png(Image.fromarray(values), here, "touched", texts)
    assert cli.main(["generate", "--from", str(touched)]) == 0
    assert "the image differs from" in capsys.readouterr().err
