"""No name leads out of a folder; addresses that cannot be listened at are refused in one line."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from diptych.core.errors import UserError
from diptych.serving.addresses import listen, read_address
from diptych.serving.safe_files import page_files, read_inside
from diptych.serving.tokens import bearer, new_token


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.png").write_bytes(b"secret")
    images = tmp_path / "study" / "images"
    (images / "deeper").mkdir(parents=True)
    (images / "a1.png").write_bytes(b"image")
    (images / "deeper" / "b.png").write_bytes(b"deeper")
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    (images / "inside.png").symlink_to(images / "a1.png")
    (images / ".hidden").write_bytes(b"hidden")
    os.mkfifo(images / "pipe.png")
    return images


def test_a_file_is_read(folder: Path) -> None:
    assert read_inside(folder, "a1.png") == b"image"


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.png", "../../secret.png", "/etc/passwd", "deeper/b.png", "deeper", "link.png", "inside.png"),
        *(".hidden", "pipe.png", "a1.png\0", "a1.png/", "..", ".", "", "none.png", "%2e%2e/secret.png"),
    ],
)
def test_nothing_else_is(folder: Path, name: str) -> None:
    assert read_inside(folder, name) is None


def test_a_folder_that_is_a_link_elsewhere_holds_nothing(folder: Path) -> None:
    elsewhere = folder.parent.parent / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    assert read_inside(folder, "a1.png") is None


def test_pages_are_those_with_a_known_end() -> None:
    pages = page_files("diptych.evaluation.human", "pages")
    assert {"index.html", "study.js", "study.css"} <= pages.keys()
    assert all(name.endswith((".html", ".js", ".css")) for name in pages)


def test_a_token_is_what_can_be_one() -> None:
    token = new_token()
    assert len({new_token() for _ in range(100)}) == 100
    assert bearer(f"Bearer {token}") == token == bearer(f"bearer {token}")
    for wrong in (
        None,
        "",
        token,
        f"Basic {token}",
        "Bearer ",
        f"Bearer {token[:10]}",
        f"Bearer {token}\n",
        "Bearer a b",
    ):
        assert bearer(wrong) is None


def test_a_port_that_is_taken_is_one_line() -> None:
    first, address = listen(read_address("127.0.0.1", 0))
    with first, pytest.raises(UserError, match="another --port"):
        assert address.port
        listen(address)


@pytest.mark.parametrize("host", ["", "a/b", "user@host", "a b", "no.such.name.invalid"])
def test_a_host_that_is_none_is_one_line(host: str) -> None:
    with pytest.raises(UserError):
        listen(read_address(host, 0))[0].close()


@pytest.mark.parametrize(
    "url", ["study.example.org", "ftp://x", "https://", "https://a/path", "https://u:p@a", "https://a?b"]
)
def test_a_public_url_is_an_origin(url: str) -> None:
    with pytest.raises(UserError, match="--url"):
        read_address("127.0.0.1", 0, url)


def test_the_socket_of_a_loopback_address_is_on_loopback() -> None:
    made, address = listen(read_address("127.0.0.1", 0))
    with made:
        assert made.getsockname()[0] == "127.0.0.1" and address.local
        assert isinstance(made, socket.socket) and address.url == f"http://127.0.0.1:{address.port}"
