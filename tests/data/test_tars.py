import io
import tarfile

import pytest

from diptych.data.tars import members

NAMES = [
    "a.png",
    "deep/b.json",
    "é.txt",
    "x" * 99 + ".t",
    "long/" * 40 + "name.png",
    "y" * 150 + ".txt",
    "folder.d/z.png",
]


def archive(path, form, names=NAMES):
    with tarfile.open(path, "w", format=form) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = number * 300
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE):
                other = tarfile.TarInfo(f"other{number}")
                other.type, other.linkname = kind, "a.png"
                tar.addfile(other)
    return path


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_tarfile_says(tmp_path, form):
    path = archive(tmp_path / "a.tar", form)
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    assert list(members(path)) == expected
    assert len(expected) == len(NAMES)


def test_ustar_prefixes(tmp_path):
    names = ["long/" * 30 + "name.png", "short.png"]
    assert [name for name, _, _ in members(archive(tmp_path / "a.tar", tarfile.USTAR_FORMAT, names))] == names


def test_pax_headers_may_hold_the_size(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.bin")
        info.size, info.pax_headers = 700, {"size": "700", "comment": "x = y"}
        tar.addfile(info, io.BytesIO(b"a" * 700))
        tar.addfile(tarfile.TarInfo("b.bin"))
    assert [(name, size) for name, _, size in members(path)] == [("a.bin", 700), ("b.bin", 0)]


@pytest.mark.parametrize("at", [0, 512 * 3])
def test_a_broken_header_is_reported_with_its_offset(tmp_path, at):
    path = archive(tmp_path / "a.tar", tarfile.USTAR_FORMAT, ["a.png", "b.png", "c.png"])
    data = bytearray(path.read_bytes())
    data[at + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"broken header at byte {at}"):
        list(members(path))


@pytest.mark.parametrize("length", [0, 100, 700, 512 * 9 + 10])
def test_a_truncated_file_is_reported(tmp_path, length):
    path = archive(tmp_path / "a.tar", tarfile.USTAR_FORMAT, ["a.png", "b.png", "c.png"])
    assert path.stat().st_size > length
    path.write_bytes(path.read_bytes()[:length])
    if length in (700, 512 * 9 + 10):
        got = []
        with pytest.raises(ValueError, match=r"broken header|cut off"):
            for member in members(path):
                got.append(member)
        assert got
    else:
        with pytest.raises(ValueError, match=r"empty|broken header"):
            list(members(path))
