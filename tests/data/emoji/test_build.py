import json
import subprocess
import tarfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import UserError
from diptych.data import DataConfig, open_dataset
from diptych.data.emoji import build as emoji
from diptych.data.emoji import icon_sources as sources
from diptych.data.emoji import parallel_render as emoji_parts
from diptych.data.emoji.build import build, build_from, select_held_out
from diptych.data.emoji.drawing_names import drawings
from diptych.data.emoji.render import draw, on_white, resolve
from tests.data.tiny import tiny_sources

pytest.importorskip("resvg")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("emoji") / "out"
    return out, build_from(tiny_sources(), out, size=32, scenes=180, seed=1, workers=1)


def everything(out, **options):
    data = open_dataset(DataConfig(path=str(out), size=32, split="all", **options))
    return [data[i] for i in range(len(data))]


def test_the_same_arguments_give_the_same_bytes(built, tmp_path):
    out, manifest = built
    again = build_from(tiny_sources(), tmp_path / "again", size=32, scenes=180, seed=1, workers=2)
    assert again == manifest
    for path in sorted(out.iterdir()):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    other = build_from(tiny_sources(), tmp_path / "other", size=32, scenes=180, seed=2, workers=1)
    assert other["sha256"] != manifest["sha256"]
    assert other["held_out"] == manifest["held_out"]  # fixed whatever the seed


def test_a_build_that_was_cut_off_goes_on(built, tmp_path, monkeypatch):
    out, manifest = built
    wrote: list[str] = []
    write = emoji_parts.write_shard

    def cut(path, samples):
        if len(wrote) == 3:
            raise KeyboardInterrupt
        wrote.append(path.name)
        return write(path, samples)

    again = {"size": 32, "scenes": 180, "seed": 1, "workers": 1}
    monkeypatch.setattr(emoji_parts, "write_shard", cut)
    with pytest.raises(KeyboardInterrupt):
        build_from(tiny_sources(), tmp_path / "again", **again)
    assert wrote == ["cutouts-0000.tar", "drawings-0000.tar", "cutouts-0001.tar"]
    wrote.clear()
    monkeypatch.setattr(
        emoji_parts, "write_shard", lambda path, samples: wrote.append(path.name) or write(path, samples)
    )
    assert build_from(tiny_sources(), tmp_path / "again", **again) == manifest
    assert wrote == ["cutouts-0001.tar", "drawings-0001.tar", "scenes-0000.tar", "scenes-0001.tar"]
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(path.name for path in out.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_different_build_does_not_resume(built, tmp_path, monkeypatch):
    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(emoji, "render_scenes", cut)
        build_from(tiny_sources(), tmp_path / "again", size=16, scenes=180, seed=1, workers=1)
    assert build_from(tiny_sources(), tmp_path / "again", size=32, scenes=180, seed=1, workers=1) == built[1]


def test_manifest_counts_the_examples(built):
    out, manifest = built
    assert json.loads((out / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    examples = everything(out)
    assert len(examples) == sum(shard["samples"] for shard in manifest["shards"])
    assert manifest["counts"]["kind"] == Counter(e.meta["kind"] for e in examples)
    assert manifest["counts"]["split"] == Counter(f"{e.meta['kind']} {e.meta['split']}" for e in examples)
    assert manifest["counts"]["kind"]["scene"] == 180
    assert {one["licence"]["spdx"] for one in manifest["sets"]} == {"MIT"}
    assert all(e.meta["licence"] == "MIT" for e in examples)


def test_icons_that_fail_to_render_are_listed(built):
    _, manifest = built
    assert {(one["style"], one["icon"]) for one in manifest["failures"]} == {
        (style, "broken") for style in ("noto", "twemoji", "openmoji", "fluent")
    }
    assert all(one["error"] for one in manifest["failures"])


def test_skin_tones_and_region_flags_are_left_out(built):
    codes = {e.meta["codepoints"] for e in everything(built[0], kinds=("single",))}
    assert codes
    assert not any("1f3fd" in code or code.startswith("1f1e9") for code in codes)


def test_held_out_pairs_are_never_trained_on(built):
    out, manifest = built
    singles = everything(out, kinds=("single",))
    held = {(e.meta["codepoints"], e.meta["style"]) for e in singles if e.meta["split"] == "held-out"}
    assert held == {tuple(pair) for pair in manifest["held_out"]}
    assert held
    styled = {e.captions[1] for e in singles if e.meta["split"] == "held-out"}
    names = {e.meta["codepoints"]: e.meta["concept"] for e in singles}
    drawn = {(names[codes], style) for codes, style in held}
    for example in everything(out):
        if example.meta["split"] == "train":
            assert not styled & set(example.captions)
        for thing in example.meta.get("objects", ()):  # scenes use trained drawings only
            assert (thing["concept"], thing["style"]) not in drawn
    trained = Counter(e.meta["codepoints"] for e in singles if e.meta["split"] == "train")
    assert all(trained[codes] >= 3 for codes, _ in held)


def test_held_out_does_not_change_with_unrelated_drawings():
    whole, part = tiny_sources(count=40), tiny_sources(count=20)
    few = select_held_out(part, drawings(part))
    known = {drawing.codes for drawing in drawings(part)}
    assert {pair for pair in select_held_out(whole, drawings(whole)) if pair[0] in known} == few


def test_look_alikes_are_not_held_out():
    toy = tiny_sources()
    before = select_held_out(toy, drawings(toy))
    codes, style = sorted(before)[0]
    icons = toy.icons[style]["icons"]
    icon = toy.icons[style]["chars"][codes]
    twin = next(name for name in icons if name not in (icon, "broken"))
    icons[twin] = dict(icons[icon])
    assert (codes, style) not in select_held_out(toy, drawings(toy))


def test_an_alias_is_drawn_mirrored():
    icon_set = {
        "icons": {"left": {"body": '<rect x="0" y="0" width="16" height="32" fill="red"/>'}},
        "aliases": {"right": {"parent": "left", "hFlip": True}, "again": {"parent": "right", "hFlip": False}},
        "width": 32,
        "height": 32,
    }
    left, right = (np.asarray(on_white(draw(*resolve(icon_set, name), 32, 0.0))) for name in ("left", "right"))
    np.testing.assert_array_equal(right, left[:, ::-1])
    assert left[16, 4].tolist() == [255, 0, 0]
    assert left[16, 28].tolist() == [255, 255, 255]


def test_a_margin_stays_free():
    icon_set = {"icons": {"full": {"body": '<rect width="20" height="10" fill="blue"/>', "width": 20, "height": 10}}}
    image = draw(*resolve(icon_set, "full"), 100, 0.1)
    rows, columns = np.nonzero(np.asarray(image)[..., 3] > 128)
    x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert abs(x0 - 10) <= 1
    assert abs(x1 - 90) <= 1
    assert abs(y0 - 30) <= 1
    assert abs(y1 - 70) <= 1


@pytest.mark.parametrize("body", ["<circle", "", '<rect width="5" height="5" fill="none"/>'])
def test_empty_and_broken_icons_raise(body):
    with pytest.raises(ValueError):
        draw(*resolve({"icons": {"x": {"body": body}}}, "x"), 16, 0.0)


def test_an_earlier_build_is_replaced_and_other_folders_are_not(tmp_path):
    out = tmp_path / "out"
    build_from(tiny_sources(("noto",)), out, size=16, scenes=0, seed=0, workers=1)
    build_from(tiny_sources(("noto", "fluent")), out, size=16, scenes=0, seed=0, workers=1)
    assert {e.meta["style"] for e in everything(out)} == {"noto", "fluent"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for place in ("mine", ".new.partial"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "thesis.txt").write_text("precious")
    (tmp_path / "mine" / "manifest.json").write_text("{}")
    (out / "cat.png").write_text("precious")
    for name, says in (("mine", "not emoji shards"), ("new", "not an unfinished build"), ("out", r"holds cat\.png")):
        with pytest.raises(UserError, match=says):
            build(tmp_path / name, size=32)
    assert (out / "cat.png").is_file() and len(list(tmp_path.rglob("thesis.txt"))) == 2
    (out / "cat.png").unlink()
    with pytest.raises(UserError, match="size must be between"):
        build(out, size=4)


# Sources


def test_names_are_joined_across_sets():
    toy = tiny_sources(("noto",))
    names, icons = dict(toy.names), dict(toy.icons)
    names |= {"2604": ("comet tail", ()), "1f600": ("grinning face", ())}
    icons["noto"]["chars"] |= {"2604-fe0f": "comet-tail", "1f600": "grinning"}
    icons["fxemoji"] = {
        **icons["noto"],
        "chars": {},
        "icons": {name: {"body": "x"} for name in ("comettail", "grinningface", "heartblue", "2hearts", "unheardof")},
    }
    found = {
        drawing.icon: drawing
        for drawing in drawings(replace(toy, names=names, icons=icons))
        if drawing.style == "fxemoji"
    }
    assert found["comettail"].codes == "2604"
    assert found["grinningface"].name == "grinning face"
    assert found["2hearts"].by_hand
    assert "unheardof" not in found


class Npm:
    """Stands for npm: writes what it is told to, or fails."""

    def __init__(self, files, code=0, stderr=""):
        self.files, self.code, self.stderr, self.calls = files, code, stderr, []

    def __call__(self, command, **_):
        self.calls.append(command)
        for name, data in self.files.items():
            (Path(command[-1]) / name).write_bytes(data)
        return subprocess.CompletedProcess(command, self.code, "", self.stderr)


def test_a_package_is_fetched_once_and_whole(tmp_path, monkeypatch):
    npm = Npm({"noto.tgz": b"data"})
    monkeypatch.setattr(sources.shutil, "which", lambda _: "/usr/bin/npm")
    monkeypatch.setattr(sources.subprocess, "run", npm)
    path = sources.fetch("@iconify-json/noto", "1.2.9", tmp_path / "cache")
    assert path.read_bytes() == b"data"
    assert path == sources.fetch("@iconify-json/noto", "1.2.9", tmp_path / "cache")
    assert len(npm.calls) == 1
    assert "@iconify-json/noto@1.2.9" in npm.calls[0]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["iconify-json-noto-1.2.9.tgz"]


def test_errors_without_npm_or_network(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="npm is needed to download left-pad"):
        sources.fetch("left-pad", "1", tmp_path)
    monkeypatch.setattr(sources.shutil, "which", lambda _: "/usr/bin/npm")
    monkeypatch.setattr(sources.subprocess, "run", Npm({}, 1, "npm error code ENOTFOUND\n"))
    with pytest.raises(UserError, match=r"could not download left-pad@1: npm error code ENOTFOUND"):
        sources.fetch("left-pad", "1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_download_is_named(tmp_path):
    (tmp_path / sources.SETS[0].file).write_bytes(b"not a tarball")
    with pytest.raises(UserError, match=r"noto-.*\.tgz is damaged .*delete it"):
        sources.load_sources(tmp_path)


def test_the_cache_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    assert sources.npm_folder() == tmp_path / "npm"
    assert sources.npm_folder(tmp_path / "x") == tmp_path / "x"


def test_images_are_rgb_pngs(built):
    with tarfile.open(sorted(built[0].glob("single-*.tar"))[0]) as tar:
        members = tar.getmembers()
        file = tar.extractfile(members[0])
        assert file
        image = Image.open(file)
        image.load()
        assert image.mode == "RGB"
        assert image.size == (32, 32)
        assert {m.mtime for m in members} == {0}
        assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "", "")}
    per_key = defaultdict(set)
    for member in members:
        key, _, extension = member.name.partition(".")
        per_key[key].add(extension)
    assert all(extensions == {"png", "json", "txt"} for extensions in per_key.values())
