"""What training does not see is told; what is hostile costs neither time nor memory nor a run."""

import errno
import io
import json
import os
import resource
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from diptych.cli import main as cli
from diptych.core.errors import UserError
from diptych.data import DataConfig, open_dataset
from diptych.data.decode import decode
from diptych.data.openfiles import OpenFiles
from diptych.data.paths import is_system_file
from diptych.data.quarantine import BrokenExample
from diptych.data.shard_scan import IMAGE_EXTENSIONS, UNSUPPORTED_EXTENSIONS
from tests.data.tiny import foreign_shard, image_dataset, png


def check(capsys, path, *words):
    """Exit code and report of `data check`."""
    code = cli.main(["data", "check", str(path), "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def put(folder, **files):
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)


def test_whole_data_is_whole(tmp_path, capsys):
    put(tmp_path, a__png=png(), a__txt=b"x", README__txt=b"about", LICENSE=b"", manifest__json=b"{}")
    put(tmp_path, **{"._a.png": b"\0\5\x16\7", "._a.txt": b"\0", "Thumbs.db": b"", ".DS_Store": b""})
    code, report = check(capsys, tmp_path)
    assert (code, report["readable"], report["whole"]) == (0, 1, True)
    assert is_system_file("._x.png") and not is_system_file(".")


LEFT = {
    "b.txt": b"a caption alone",
    "a.caption": b"another",
    "A.TXT": b"another",
    "IMG_0001": png(),
    "b.png.bak": png(),
    "b.jpg_large": png(),
    "c.gif": b"",
    "d.avif": b"",
    "metadata.parquet": b"PAR1",
    "shards.tar.gz": b"",
    "captions.csv": b"file_name,text\ngone.png,x\n",
}


@pytest.mark.parametrize("name", LEFT)
def test_unused_files_are_listed(tmp_path, capsys, name):
    put(tmp_path, a__png=png(), a__txt=b"x", **{name: LEFT[name]})
    code, report = check(capsys, tmp_path)
    assert code == 1 and report["readable"] == 1
    assert name in report["left_out"][0]["name"] and report["left_out"][0]["reason"]


@pytest.mark.parametrize("extension", sorted({*IMAGE_EXTENSIONS, *UNSUPPORTED_EXTENSIONS}))
def test_every_image_extension_is_read_or_listed(tmp_path, capsys, extension):
    put(tmp_path, a__png=png(), a__txt=b"x", **{f"b.{extension.upper()}": png(), "b.txt": b"y"})
    _, report = check(capsys, tmp_path)
    told = [one["name"] for one in report["left_out"]]
    assert report["readable"] == 2 or f"b.{extension.upper()}" in told


def test_links_and_pipes(tmp_path, capsys):
    put(tmp_path, a__png=png(), a__txt=b"x")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "again").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "root").symlink_to("/")
    put(tmp_path / "other", b__png=png(), b__txt=b"y")
    (tmp_path / "linked.png").symlink_to(tmp_path / "other" / "b.png")
    (tmp_path / "linked.txt").write_text("z")
    _, report = check(capsys, tmp_path)
    assert report["readable"] == 3
    assert {one["name"] for one in report["left_out"]} == {"gone.png", "again", "pipe.png", "other/root"}


def test_names_that_are_no_utf_8_or_hold_escape_codes(tmp_path, capsys):
    for name in (b"caf\xe9", b"red\x1b[31m", "日本".encode()):
        for end, data in ((b".png", png()), (b".txt", b"x")):
            (tmp_path / os.fsdecode(name + end)).write_bytes(data)
    code, report = check(capsys, tmp_path)
    assert (code, report["readable"]) == (0, 3)
    data = open_dataset(DataConfig(path=str(tmp_path), size=8, held_out=0.5, split="all"))
    keys = [data[i].key for i in range(3)]
    assert sorted(keys) == ["caf\\xe9.png", "red\\x1b[31m.png", "日本.png"]
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).unlink()
    assert cli.main(["data", "check", str(tmp_path)]) == 1
    assert "caf\\xe9.png" in capsys.readouterr().out


SHARDS = {
    "a dot in the name": ([("22.05.png", png()), ("22.05.txt", b"x")], "a dot in its name"),
    "twice": ([("1.png", png()), ("1.txt", b"x"), ("1.png", png())], "the same name twice"),
    "another format": ([("1.gif", b"GIF89a"), ("1.txt", b"x")], ".gif images are not read"),
    "two images": ([("1.jpg", png()), ("1.png", png()), ("1.txt", b"x")], "another image of its example"),
    "two captions": ([("1.png", png()), ("1.txt", b"x"), ("1.caption", b"y")], "another caption of its example"),
}


@pytest.mark.parametrize("what", SHARDS)
def test_skipped_members_are_listed(tmp_path, capsys, what):
    members, reason = SHARDS[what]
    foreign_shard(tmp_path / "a.tar", [("0.png", png()), ("0.txt", b"x"), *members, ("._0.png", b""), ("0.cls", b"1")])
    code, report = check(capsys, tmp_path)
    assert code == 1
    assert any(reason in one["reason"] for one in report["left_out"])


def test_members_that_do_not_stand_together(tmp_path, capsys):
    foreign_shard(
        tmp_path / "a.tar", [(f"{i}.{e}", png() if e == "png" else b"x") for e in ("png", "txt") for i in (0, 1)]
    )
    code, report = check(capsys, tmp_path)
    assert (code, report["readable"], len(report["broken"])) == (1, 0, 2)
    assert all("do not stand together" in one["reason"] for one in report["broken"])


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_shard_and_images_beside_shards(tmp_path, capsys, kind):
    image_dataset(tmp_path / "whole.tar", 2)
    with tarfile.open(tmp_path / "packed.tar", f"w:{kind}") as tar:
        tar.addfile(tarfile.TarInfo("x.png"))
    put(tmp_path, loose__png=png(), empty__tar=b"")
    code, report = check(capsys, tmp_path)
    assert code == 1 and report["readable"] == 2
    reasons = sorted(one["reason"] for one in [*report["broken"], *report["left_out"]])
    assert [reason.split(":")[0].split(" with")[0] for reason in reasons] == [
        "an image beside shards",
        "it is compressed",
        "the file is empty",
    ]


@pytest.mark.parametrize("names", [["a.png"], [f"{i}.png" for i in range(5)]])
def test_a_small_unreadable_set_lists_the_reasons(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(png())
    more = f", and {len(names) - 1} more" if len(names) > 1 else ""
    with pytest.raises(
        UserError, match=f"none of {len(names)} examples can be read .*{names[0]} in .*: no caption{more}"
    ):
        open_dataset(DataConfig(path=str(tmp_path), size=8))


# Hostile files


@pytest.mark.parametrize("shape", [(30000, 1), (1, 30000), (340, 20), (20, 340)])
@pytest.mark.parametrize("square", [True, False])
def test_a_strip_is_left_out_before_it_is_enlarged(shape, square):
    with pytest.raises(BrokenExample, match=f"{shape[0]} x {shape[1]} pixels: its longer side is more than 16 times"):
        decode(png(shape), 512, square=square)


def test_an_enlargement_has_a_limit():
    with pytest.raises(BrokenExample, match=r"16 x 256 pixels: more than 67,108,864 once resized to 4096"):
        decode(png((16, 256)), 4096)
    assert decode(png((20, 320)), 8).shape == (8, 8, 3)


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENOMEM, "")]
)
def test_a_machine_that_has_no_more_sets_nothing_aside(tmp_path, monkeypatch, error):
    image_dataset(tmp_path / "a.tar", 3)
    data = open_dataset(DataConfig(path=str(tmp_path), size=8))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("diptych.data.dataset.decode_image", fail)
    with pytest.raises(UserError, match=r"out of memory while|too many open files while"):
        data[0]
    assert not data.quarantine.broken


def test_more_shards_than_files_may_be_open(tmp_path):
    """Also from several threads; a shard that was replaced meanwhile is not mixed in."""
    for number in range(40):
        foreign_shard(tmp_path / f"{number:02d}.tar", [("0.png", png()), ("0.txt", b"%d" % number)])
    few = OpenFiles(most=4)
    where = {path: few.identify(path) for path in sorted(tmp_path.glob("*.tar"))}
    assert len(few._open) <= 4
    for path, identity in where.items():
        with few.opened(path, identity) as number:
            assert os.pread(number, 5, 0) == b"0.png"
    assert len(few._open) <= 4
    first = next(iter(where))
    foreign_shard(first, [("other.png", png())])
    with pytest.raises(UserError, match="was replaced while it was read"), few.opened(first, where[first]):
        pass
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 12, hard))
    try:
        data = open_dataset(DataConfig(path=str(tmp_path), size=8, max_failure_rate=0.0))
        assert sorted(int(data[i].captions[0]) for i in range(1, 40)) == list(range(1, 40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def pax(records: bytes) -> bytes:
    """A tar whose first header is of pax, with these records, before a file."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    body = records + bytes(-len(records) % 512)
    return info.tobuf(tarfile.USTAR_FORMAT) + body + tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT) + bytes(1024)


def test_headers_take_linear_time(tmp_path):
    for records in (
        b"8 a=bb\n\n" * 2**17,
        b"8 a=bb\n\n" * 2**19,
        b"\0" * 2**22,
        b"9" * 2**22,
        b"0 a=b\n" * 9,
        b"1 a=b\n",
    ):
        (tmp_path / "a.tar").write_bytes(pax(records))
        began = time.perf_counter()
        with pytest.raises(UserError):
            open_dataset(DataConfig(path=str(tmp_path), size=8))[0]
        assert time.perf_counter() - began < 2


def test_sizes_beyond_the_file_are_never_read(tmp_path):
    members = [("0.png", png()), ("0.txt", b"x"), ("1.png", png())]
    for size in (2**40, 2**62, 8**11 - 1):
        info = tarfile.TarInfo("2.png")
        info.size = size
        foreign_shard(tmp_path / "a.tar", members)
        data = (tmp_path / "a.tar").read_bytes().rstrip(b"\0")
        data += bytes(-len(data) % 512) + info.tobuf(tarfile.GNU_FORMAT)
        (tmp_path / "a.tar").write_bytes(data)
        opened = open_dataset(DataConfig(path=str(tmp_path), size=8))
        assert opened[0].captions == ("x",)
        assert any("cut off within '2.png'" in reason for reason in opened.quarantine.broken.values())


def test_sparse_members_and_links_are_named(tmp_path, capsys):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind in (("s.png", tarfile.GNUTYPE_SPARSE), ("h.png", tarfile.LNKTYPE), ("l.txt", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "0.png", 600 if kind == tarfile.GNUTYPE_SPARSE else 0
            tar.addfile(info, io.BytesIO(bytes(600)) if info.size else None)
        for name, data in (("0.png", png()), ("0.txt", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    code, report = check(capsys, tmp_path)
    assert (code, report["readable"]) == (1, 1)
    assert [one["name"].split()[0] for one in report["left_out"]] == ["s.png", "h.png", "l.txt"]


@pytest.mark.parametrize("name", ["a.txt", "a.json"])
def test_a_huge_sparse_file_is_not_read(tmp_path, name):
    put(tmp_path, a__png=png(), b__png=png(), b__txt=b"x")
    with open(tmp_path / name, "wb") as file:
        file.truncate(2**40)
    data = open_dataset(DataConfig(path=str(tmp_path), size=8))
    assert [data[i].captions for i in range(len(data))] == [("x",)]
    assert "larger than 16 MiB" in data.quarantine.reasons()


def test_the_same_array_whatever_the_extension(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.full((9, 9, 3), 77, np.uint8)).save(buffer, "JPEG")
    for name in ("a.jfif", "b.JPE", "c.png"):
        put(tmp_path, **{name: buffer.getvalue(), name.split(".")[0] + ".txt": b"x"})
    data = open_dataset(DataConfig(path=str(tmp_path), size=8))
    assert len({data[i].image.tobytes() for i in range(3)}) == 1


def test_shards_and_examples_of_one_name_are_distinct(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    foreign_shard(tmp_path / "a.TAR", [("0.png", b"broken"), ("0.txt", b"x"), ("1.png", png()), ("1.txt", b"y")])
    twice = [("0.png", png()), ("0.txt", b"x"), ("1.png", png()), ("1.txt", b"y"), ("0.png", b""), ("0.txt", b"z")]
    foreign_shard(tmp_path / "sub" / "a.TAR", twice)
    code, report = check(capsys, tmp_path)
    assert (code, report["readable"]) == (1, 3)
    assert {one["shard"] for one in report["broken"]} == {"a.TAR", "sub/a.TAR"}


def test_a_pipe_named_as_a_shard_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "a.tar")
    assert cli.main(["data", "check", str(tmp_path / "a.tar")]) == 2
    assert "give a folder" in capsys.readouterr().err


def test_the_limit_on_pixels_holds_in_every_thread(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)

    def refused(_: int) -> None:
        with pytest.raises(BrokenExample, match="more than 200 pixels"):
            decode(png(), 8)

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(refused, range(200)))) == 200


@pytest.mark.filterwarnings("error")
def test_damaged_exif_is_no_noise():
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(data.getvalue(), 8).shape == (8, 8, 3)


TABLES = {
    "semicolons": ("metadata.csv", "file_name;text\na.png;x\n"),
    "Excel": ("metadata.csv", "sep=;\r\nfile_name;text\r\na.png;x\r\n"),
    "tabs": ("captions.tsv", "file_name\ttext\na.png\tx\n"),
    "blanks": ("metadata.csv", "\n\nfile_name, text\na.png, x\n"),
    "another case": ("metadata.csv", "file_name,text\nA.PNG,x\n"),
}


@pytest.mark.parametrize("what", TABLES)
def test_tables_as_programs_write_them(tmp_path, what):
    name, text = TABLES[what]
    put(tmp_path, a__png=png(), **{name: text.encode()})
    assert open_dataset(DataConfig(path=str(tmp_path), size=8))[0].captions == ("x",)


BROKEN_TABLES = {
    "no head": ("metadata.csv", "z.png,x\nq.png,y\n", "metadata.csv", "its first line names no field"),
    "an open quote": ("metadata.csv", 'file_name,text\na.png,"x\nz.png,y\n', "metadata.csv, line 2", "never closed"),
    "a list": ("metadata.jsonl", '[\n{"file_name": "a.png", "text": "x"}\n]', "metadata.jsonl", "a list over several"),
    "two tables": (
        *("metadata.csv", "file_name,text\nz.png,other\n", "metadata.csv, z.png"),
        "another caption of it is in metadata.jsonl",
    ),
}


@pytest.mark.parametrize("what", BROKEN_TABLES)
def test_skipped_rows_of_a_table_are_listed_once(tmp_path, capsys, what):
    name, text, where, reason = BROKEN_TABLES[what]
    rest = {"captions.csv": b"file_name,text\nz.png,x\n"}
    if what == "two tables":
        rest = {"metadata.jsonl": b'{"file_name": "z.png", "text": "x"}'}
    put(tmp_path, a__png=png(), a__txt=b"x", z__png=png(), **{name: text.encode()}, **rest)
    code, report = check(capsys, tmp_path)
    assert (code, report["readable"], len(report["left_out"])) == (1, 2, 1)
    assert report["left_out"][0]["name"] == where and reason in report["left_out"][0]["reason"]


@pytest.mark.parametrize("caption", ["\u200b\u200d", "\x00\x07", "\ufeff \n"])
def test_a_caption_in_which_nothing_is_to_be_seen_is_none(tmp_path, capsys, caption):
    put(tmp_path, a__png=png(), a__txt=caption.encode(), b__png=png(), b__txt="❤\ufe0f".encode())
    code, report = check(capsys, tmp_path)
    assert (code, report["readable"]) == (1, 1) and "no caption" in report["broken"][0]["reason"]


def test_classes_of_shards(tmp_path):
    members = [("0.png", png()), ("0.cls", b"3\n"), ("1.png", png()), ("1.cls", b"\x80\x04N.")]
    foreign_shard(tmp_path / "a.tar", members)
    config = DataConfig(path=str(tmp_path), size=8, caption_field="cls", split="all")
    data = open_dataset(config)
    assert [one.captions for one in data.readable()] == [("3",)]
    assert [one.captions for one in open_dataset(DataConfig(path=str(tmp_path), size=8), captions=False).readable()]


@pytest.mark.parametrize("change", ["cut", "written over", "removed", "its folder removed"])
@pytest.mark.parametrize("opened", [True, False])
def test_a_shard_that_changes_under_a_run_stops_it_and_loses_nothing(tmp_path, monkeypatch, change, opened):
    """What is damaged since the opening is no broken example: it would be left out without need."""
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(2):
        image_dataset(shards / f"{number}.tar", 30)
    data = open_dataset(DataConfig(path=str(shards), size=8))
    if opened:
        assert data[40].key == f"{10:09d}"
    else:
        monkeypatch.setattr("diptych.data.shard_files.FILES", OpenFiles())  # as in a process that has read nothing yet
    if change == "cut":
        os.truncate(shards / "1.tar", 512)
    elif change == "written over":
        (shards / "1.tar").write_bytes(b"x" * (shards / "1.tar").stat().st_size)
    elif change == "removed":
        os.remove(shards / "1.tar")
    else:
        os.rename(shards, tmp_path / "away")
    if opened and "removed" in change:
        assert data[41].key == f"{11:09d}"  # a file that is open stays whole
    else:
        with pytest.raises(
            UserError, match=r"1\.tar (was replaced while it was read|cannot be read any more \(No such)"
        ):
            data[41]
    assert not data.quarantine.broken


def test_a_disk_that_does_not_answer_sets_nothing_aside(tmp_path, monkeypatch):
    for number in range(30):
        put(tmp_path, **{f"{number}.png": png(), f"{number}.txt": b"x"})
    data = open_dataset(DataConfig(path=str(tmp_path), size=8))

    def stale(index):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(data.source, "image_bytes", stale)
    with pytest.raises(UserError, match=r"its disk does not answer \(Stale file handle\); a rerun goes on"):
        data[3]
    monkeypatch.undo()
    os.rename(tmp_path, f"{tmp_path}-away")
    try:
        with pytest.raises(UserError, match="is not there any more: bring it back"):
            data[4]
    finally:
        os.rename(f"{tmp_path}-away", tmp_path)
    assert not data.quarantine.broken and data[4].key == "12.png"
