"""Each request is checked before the application sees it, and each answer carries the headers."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from diptych.serving.addresses import Address, read_address
from diptych.serving.guard import HEADERS, Guard

HERE = Address("127.0.0.1", 8000)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Reads the whole body and answers how long it was, whatever goes wrong on the way."""
    length, more, status = 0, True, 200
    while more:
        try:
            message = await receive()
        except Exception:  # as frameworks do
            status = 400
            break
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(length).encode()})


def ask(
    guard: Guard,
    method: str = "GET",
    parts: tuple[bytes, ...] = (b"",),
    host: str | None = "127.0.0.1:8000",
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    named = {**({} if host is None else {"host": host}), **{key.replace("_", "-"): one for key, one in headers.items()}}
    scope = {
        "type": "http",
        "method": method,
        "path": "/",
        "headers": [(key.encode(), one.encode()) for key, one in named.items()],
    }
    waiting = [{"type": "http.request", "body": part, "more_body": n < len(parts) - 1} for n, part in enumerate(parts)]
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    assert [one["type"] for one in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, sent[1]["body"]


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST:8000", "[::1]:8000", "127.0.0.2:8000"])
def test_names_of_this_machine_are_answered(host: str) -> None:
    assert ask(Guard(echo, HERE), host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *(None, "", "evil.example:8000", "127.0.0.1", "127.0.0.1:8001", "127.0.0.1.evil.example:8000"),
        *("localhost:8000@evil", "evil@127.0.0.1:8000", "10.0.0.1:8000", "127.0.0.1:8000/x", "127.0.0.1:99999"),
    ],
)
def test_other_hosts_are_refused(host: str | None) -> None:
    """A name of an attacker's that leads to 127.0.0.1 (DNS rebinding) is one of them."""
    assert ask(Guard(echo, HERE), host=host)[0] == 421


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:8000"}, 200),
        ({"origin": "http://localhost:8000", "sec_fetch_site": "same-origin"}, 200),
        ({"origin": "https://127.0.0.1:8000"}, 403),
        ({"origin": "http://127.0.0.1:8001"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
    ],
)
def test_only_pages_of_this_server_may_post(headers: dict[str, str], status: int) -> None:
    assert ask(Guard(echo, HERE), "POST", (b"x",), **headers)[0] == status


def test_two_hosts_or_origins_are_refused() -> None:
    scope = {"type": "http", "method": "GET", "headers": [(b"host", b"127.0.0.1:8000"), (b"Host", b"evil")]}
    assert Guard(echo, HERE).refusal(scope) is not None
    scope["headers"] = [(b"host", b"127.0.0.1:8000"), *[(b"origin", b"http://127.0.0.1:8000")] * 2]
    assert Guard(echo, HERE).refusal(scope) is not None


@pytest.mark.parametrize(
    ("parts", "headers", "status"),
    [
        ((b"x" * 10,), {"content_length": "10"}, 200),
        ((b"x" * 5, b"x" * 5), {}, 200),
        ((b"x" * 11,), {"content_length": "11"}, 413),
        ((b"x" * 5, b"x" * 6), {}, 413),  # not announced
        ((b"x" * 5, b"x" * 6), {"content_length": "5"}, 413),  # announced as less
        ((b"",), {"content_length": "-1"}, 400),
        ((b"",), {"content_length": "9" * 30}, 413),
    ],
)
def test_bodies_are_limited(parts: tuple[bytes, ...], headers: dict[str, str], status: int) -> None:
    assert ask(Guard(echo, HERE, most=10), "POST", parts, **headers)[0] == status


def test_no_more_than_is_allowed_is_read() -> None:
    """The application gets no piece of a body that is too long, and nothing of what follows is asked for."""
    read: list[int] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        while True:
            read.append(len((await receive())["body"]))

    assert ask(Guard(application, HERE, most=10), "POST", (b"x" * 6, b"x" * 6, b"x" * 6))[0] == 413
    assert read == [6]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(method: str) -> None:
    assert ask(Guard(echo, HERE), method)[0] == 405


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "evil"])
def test_every_answer_has_the_headers(host: str) -> None:
    """Those of refusals too. Nothing is loaded from elsewhere, no inline script runs, no page frames this one."""
    _, headers, _ = ask(Guard(echo, HERE), host=host)
    assert HEADERS.items() <= headers.items()
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert (
        policy["default-src"] == "'none'" and policy["script-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
    )
    assert not re.search(r"unsafe|\*|http", headers["content-security-policy"])


def test_a_server_for_all_addresses_answers_to_addresses_and_its_own_name() -> None:
    """An IP address cannot be rebound; a name can."""
    address = read_address("0.0.0.0", 8000)
    assert not address.local
    assert address.allows("192.168.1.7:8000") and address.allows("localhost:8000")
    assert not address.allows("evil.example:8000") and not address.allows("192.168.1.7:80")


def test_a_public_address_is_answered_too() -> None:
    address = read_address("127.0.0.1", 8000, "https://study.example.org/")
    assert address.url == "https://study.example.org"
    assert address.allows("study.example.org") and address.allows_origin("https://study.example.org")
    assert not address.allows_origin("http://study.example.org") and not address.allows("other.example.org")
