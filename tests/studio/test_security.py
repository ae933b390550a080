"""What an attacker sends, to the application in process: each rule of a server that faces browsers and networks."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import socket
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diptych.core.errors import UserError
from diptych.serving.addresses import Address, read_address
from diptych.serving.guard import HEADERS
from diptych.studio import application, jobs_api
from diptych.studio.engine import Engine
from diptych.studio.history import History
from diptych.studio.limits import FieldError
from diptych.studio.public_text import without_paths
from diptych.studio.read_upload import read_upload
from diptych.studio.sent_images import alpha_mask
from tests.studio.conftest import ADDRESS, LIMITS, opened
from tests.studio.test_jobs_api import RED, done

TOKEN = "t0ken-of-22-letters-abc"
SECRET = "what no client may see"
Sent = tuple[int, dict[str, str], bytes]


def ask(
    app: Any,
    method: str,
    path: str,
    body: bytes | Iterable[bytes] = b"",
    headers: Iterable[tuple[str, str]] = (),
    query: bytes = b"",
    host: str = "127.0.0.1",
) -> Sent:
    """Status, headers and body. Without a client library between, which would put things right."""
    parts = [body] if isinstance(body, bytes) else list(body)
    messages = [{"type": "http.request", "body": part, "more_body": n < len(parts) - 1} for n, part in enumerate(parts)]
    sent: list[Any] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "client": ("10.0.0.9", 1),
        "headers": [(key.lower().encode(), value.encode("latin-1")) for key, value in (("host", host), *headers)],
        "server": ("127.0.0.1", 80),
    }

    async def receive() -> Any:
        if not messages:
            await asyncio.sleep(60)  # the client waits for the answer
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        await app(scope, receive, send)

    asyncio.run(run())
    starts = [one for one in sent if one["type"] == "http.response.start"]
    assert len(starts) == 1
    named = {key.decode().lower(): value.decode("latin-1") for key, value in starts[0]["headers"]}
    for name, value in HEADERS.items():
        assert name == "cache-control" or named[name] == value, (path, name)
    return starts[0]["status"], named, b"".join(one.get("body", b"") for one in sent)


@pytest.fixture(scope="module")
def app(engine: Engine) -> Any:
    return application.studio_application(engine, ADDRESS)


@pytest.fixture(scope="module")
def image(client: Any) -> str:
    """The id of an image in the history."""
    return done(client, {**RED, "prompt": "<script>alert(1)</script>"})["images"][0]["id"]


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Engine]:
    """An engine that is not started: jobs wait."""
    engine = opened(tmp_path / "studio")
    yield engine
    engine.history.close()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, pixels: bytes | None = None) -> bytes:
    """A PNG of 8-bit RGB that states a size; its pixels may be missing."""
    rows = zlib.compress(pixels if pixels is not None else b"\0" * (height * (3 * width + 1)))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def small_png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


# Ids

BAD_IDS = [
    *("..", "../../studio.sqlite", "..%2f..%2fstudio.sqlite", "%2e%2e", "....//", "/etc/passwd", "\\..\\x", "C:\\x"),
    *("a\0b", "\0", "a" * 300, "a" * 5000, "~root", "file:///etc/passwd", "http://127.0.0.1/x", "*", "?", "ａ", "-rf"),
    *(
        "%00",
        ".",
        "studio.sqlite",
        "inputs",
        "a.png",
        "' OR 1=1 --",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ),
]


@pytest.mark.parametrize("path", ["images/{}", "images/{}.png", "images/{}/thumbnail", "images/{}/steps", "uploads/{}"])
@pytest.mark.parametrize("id", BAD_IDS)
def test_no_id_leads_out_of_the_history(app: Any, engine: Engine, path: str, id: str) -> None:
    status, _, body = ask(app, "GET", "/api/" + path.format(id))
    assert status in (200, 404, 422) and (status != 200 or body == b"[]"), (status, body)
    assert str(engine.history.folder).encode() not in body


@pytest.mark.parametrize("id", BAD_IDS)
def test_no_id_of_any_other_route_leads_out(app: Any, id: str) -> None:
    for method, path in (("GET", "jobs/{}"), ("DELETE", "jobs/{}"), ("GET", "jobs/{}/events"), ("DELETE", "images/{}")):
        assert ask(app, method, "/api/" + path.format(id))[0] in (404, 405), (method, path)
    for method, path in (("GET", "models/{}"), ("GET", "../pages/{}")):
        assert ask(app, method, "/api/" + path.format(id))[0] in (404, 422)
    assert ask(app, "GET", f"/pages/{id}")[0] == 404
    for key in ("image", "mask", "low_res"):
        status, _, body = ask(app, "POST", "/api/jobs", json.dumps({**RED, key: id}).encode())
        assert status == 422 and json.loads(body)["error"]["field"] == key
    assert ask(app, "POST", "/api/images/zip", json.dumps({"ids": [id]}).encode())[0] == 404


@pytest.mark.parametrize("stage", ["-1", "0", "1/../../x", "9" * 300, "9" * 5000, "1e3"])
def test_stages_are_numbers(app: Any, image: str, stage: str) -> None:
    assert ask(app, "GET", f"/api/images/{image}.png", query=f"stage={stage}".encode())[0] in (404, 422)


# Links in the folder


def test_links_in_the_history_are_not_followed(client: Any, app: Any, engine: Engine, tmp_path: Path) -> None:
    id = done(client, RED)["images"][0]["id"]
    sent = client.post("/api/uploads", content=small_png()).json()["id"]
    folder = engine.history.folder
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps([SECRET]))
    files = (
        folder / "images" / f"{id}.png",
        folder / "images" / "inputs" / f"{sent}.png",
        folder / "strips" / f"{id}.json",
    )
    for file in files:
        file.unlink()
        file.symlink_to(secret)
    for path in (f"images/{id}.png", f"images/{id}/thumbnail", f"images/{id}/steps", f"uploads/{sent}"):
        status, _, body = ask(app, "GET", f"/api/{path}")
        assert SECRET.encode() not in body and (status in (404, 422) or body == b"[]"), path
    bundle = ask(app, "POST", "/api/images/zip", json.dumps({"ids": [id]}).encode())
    assert SECRET.encode() not in bundle[2]
    assert ask(app, "POST", "/api/jobs", json.dumps({**RED, "image": sent}).encode())[0] == 422
    assert client.post("/api/uploads", content=small_png()).json()["id"] == sent  # put in the link's place
    assert not files[1].is_symlink() and json.loads(secret.read_text()) == [SECRET]
    client.delete(f"/api/images/{id}")
    assert secret.exists()


@pytest.mark.parametrize("name", ["studio.sqlite", "images", "strips", "images/inputs"])
def test_a_history_whose_parts_are_links_is_not_opened(tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "studio" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere / "other.sqlite" if name.endswith("sqlite") else elsewhere)
    with pytest.raises(UserError, match="is a link"):
        History(tmp_path / "studio")
    assert not list(elsewhere.iterdir())


def test_the_whole_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "studio").symlink_to(tmp_path / "disk")
    History(tmp_path / "studio").close()
    assert (tmp_path / "disk" / "studio.sqlite").exists()


def test_prompts_are_nobody_elses_to_read(idle: Engine) -> None:
    """They stand in the database, in every PNG and in its strip."""
    for name in ("studio.sqlite", "images", "images/inputs", "strips"):
        assert (idle.history.folder / name).stat().st_mode & 0o077 == 0, name


# Host and Origin


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "127.0.0.1.evil.example", "127.0.0.1:8080", "localhost:81", "[::1]:81", "10.0.0.1", ""),
        *("[::2]", "[::ffff:10.0.0.1]", "127.0.0.1@evil.example", "localhost.", "0.0.0.0", "2130706433.evil", "[::1"),
    ],
)
def test_rebound_names_are_refused(app: Any, host: str) -> None:
    assert ask(app, "GET", "/api/images", host=host)[0] == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:80", "localhost", "[::1]", "[::1]:80"])
def test_this_machine_may_ask(app: Any, host: str) -> None:
    assert ask(app, "GET", "/api/models", host=host)[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:81", "file://", ""]
)
@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "GET"])
def test_other_origins_are_refused(app: Any, origin: str, method: str) -> None:
    """A form of another site can post text/plain without asking first."""
    headers = [("origin", origin), ("content-type", "text/plain")]
    assert ask(app, method, "/api/jobs", b"{}", headers)[0] == 403


def test_no_permission_for_other_origins_is_ever_given(app: Any) -> None:
    status, headers, _ = ask(app, "OPTIONS", "/api/jobs", headers=[("access-control-request-method", "POST")])
    assert status == 405 and not [name for name in headers if name.startswith("access-control")]


# Tokens


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "10.0.0.1", "example.org", "[::]", "0"])
def test_other_machines_need_a_token(host: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--token"):
        application.serve_studio({"latent": "latent"}, tmp_path, host, 0)
    assert not list(tmp_path.iterdir())


def test_a_public_address_needs_a_token(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--token"):
        application.serve_studio({"latent": "latent"}, tmp_path, "127.0.0.1", 0, public="https://studio.example.org")


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.fixture(scope="module")
def locked(engine: Engine) -> Any:
    return application.studio_application(engine, ADDRESS, TOKEN)


@pytest.mark.parametrize(
    "header",
    [
        ("authorization", f"Bearer {TOKEN}"),
        ("authorization", f"bearer {TOKEN}"),
        ("authorization", basic(f"anyone:{TOKEN}")),
        ("cookie", f"a=b; diptych-token={TOKEN}"),
    ],
)
def test_the_token_opens(locked: Any, header: tuple[str, str]) -> None:
    assert ask(locked, "GET", "/api/models", headers=[header])[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", f"Bearer {TOKEN}x")],
        [("authorization", f"Bearer {TOKEN[:-1]}")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer \xff\xfe")],
        [("authorization", TOKEN)],
        [("authorization", f"Digest {TOKEN}")],
        [("authorization", basic(TOKEN))],
        [("authorization", basic(f"{TOKEN}:"))],
        [("authorization", "Basic !!!")],
        [("authorization", "Basic \xff")],
        [("authorization", "Basic " + "gIA=")],
        [("cookie", "diptych-token=")],
        [("cookie", f"diptych-token={TOKEN}x")],
        [("cookie", 'diptych-token="\\400"; =;;')],
        [("cookie", f"other={TOKEN}")],
        [("x-token", TOKEN)],
    ],
)
def test_nothing_else_does(locked: Any, headers: list[tuple[str, str]]) -> None:
    assert ask(locked, "GET", "/pages/../api/images", headers=headers)[0] == 404  # no path is resolved
    for method, path in (("GET", "/api/images"), ("POST", "/api/jobs"), ("GET", "/openapi.json")):
        status, named, body = ask(locked, method, path, b"{}", headers)
        assert status == 401 and "www-authenticate" in named and TOKEN.encode() not in body, path
    assert ask(locked, "GET", "/api/images", headers=headers, query=f"token={TOKEN}".encode())[0] == 401


def test_tokens_are_compared_in_constant_time(locked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from diptych.studio import access

    compared = []
    monkeypatch.setattr(access.hmac, "compare_digest", lambda one, other: compared.append((one, other)))
    assert ask(locked, "GET", "/api/models", headers=[("authorization", f"Bearer {TOKEN}")])[0] == 401
    assert compared == [(TOKEN.encode(), TOKEN.encode())]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{}", b"[]", b"null", b'"x"', b"\xff", b'{"token": 1}', b'{"token": null}', b'{"token": "\\ud800"}'),
        *(b"[" * 4000, b'{"token": "' + b"a" * 4000 + b'"}', b"1" * 4090, b'{"token": "a\\u0000"}'),
        [b"a" * 1000] * 2000,
    ],
)
def test_what_is_no_login(locked: Any, body: Any) -> None:
    status, headers, answer = ask(locked, "POST", "/api/login", body)
    assert status == 401 and "set-cookie" not in headers and len(answer) < 200


def test_a_login_gives_a_cookie_that_scripts_cannot_read(locked: Any) -> None:
    status, headers, _ = ask(locked, "POST", "/api/login", json.dumps({"token": TOKEN}).encode())
    assert status == 200 and headers["set-cookie"].startswith(f"diptych-token={TOKEN}; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(headers["set-cookie"].split("; "))


@pytest.mark.parametrize(("public", "secure"), [("https://studio.example.org", True), (None, False)])
def test_the_cookie_of_an_https_address_is_never_sent_without(engine: Engine, public: str | None, secure: bool) -> None:
    app = application.studio_application(engine, Address("127.0.0.1", 80, public), TOKEN)
    headers = ask(app, "POST", "/api/login", json.dumps({"token": TOKEN}).encode())[1]
    assert ("Secure" in headers["set-cookie"].split("; ")) == secure


# Sizes of requests


def test_bodies_are_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "limits", LIMITS.__class__(upload_bytes=50_000))
    app = application.studio_application(engine, ADDRESS)
    for path in ("/api/uploads", "/api/read", "/api/jobs", "/api/images/zip"):
        assert ask(app, "POST", path, b"", [("content-length", "50001")])[0] == 413  # before any of it came
        assert ask(app, "POST", path, [b"a" * 10_000] * 6)[0] == 413  # chunked, of no stated length
        assert ask(app, "POST", path, b"a" * 50_001, [("content-length", "10")])[0] == 413  # a lie
    for length in ("-1", "1e3", "９", "9" * 400, "+5", "0x10"):
        length = length.encode().decode("latin-1")
        assert ask(app, "POST", "/api/uploads", b"", [("content-length", length)])[0] in (400, 413)


def test_json_is_bounded_below_what_images_are(app: Any) -> None:
    assert ask(app, "POST", "/api/jobs", b'{"prompt": "' + b"a" * 2**20 + b'"}')[0] == 413


# JSON

DEEP = "[" * 900 + "]" * 900
JSON = [
    ('{"prompt": "a", "prompt": "b"}', "prompt"),
    ('{"prompt": "a", "options": {"steps": 1, "steps": 2}}', "steps"),
    ('{"prompt": "a", "options": {"guidance": NaN}}', "body"),
    ('{"prompt": "a", "options": {"guidance": Infinity}}', "body"),
    ('{"prompt": "a", "options": {"guidance": 1e999}}', "guidance"),
    ('{"prompt": "a", "options": {"steps": 1e999}}', "steps"),
    ('{"prompt": "a", "seed": %s}' % ("9" * 4000), "seed"),
    ('{"prompt": "a", "seed": %s}' % ("9" * 5000), "body"),
    ('{"prompt": "a", "options": {"steps": %s}}' % ("9" * 4000), "steps"),
    ('{"prompt": "a", "options": {"size": [%s, 16]}}' % ("9" * 4000), "size"),
    ('{"prompt": "a", "count": 1e0}', "count"),
    ('{"prompt": "\\ud800"}', "prompt"),
    ('{"prompt": "a", "negative": "\\udfff"}', "negative"),
    ('{"prompt": "a", "model": "\\ud800"}', "model"),
    ('{"prompt": "a", "options": {"sampler": "\\ud800"}}', "sampler"),
    ('{"prompt": "a", "\\ud800": 1}', "body"),
    ('{"prompt": "a", "options": {"\\ud800": 1}}', "body"),
    (f'{{"prompt": "a", "options": {{"size": {DEEP}}}}}', "body"),
    (f'{{"prompt": "a", "options": {{"steps": {DEEP}}}}}', "body"),
    (f'{{"prompt": "a", "image": {DEEP}}}', "body"),
    ("[" * 100_000, "body"),
    ('{"a":' * 50_000, "body"),
    ("[1]", "body"),
    ("", "body"),
    ("{} x", "body"),
    ('{"prompt": "a", "options": []}', "options"),
    ('{"prompt": "a", "options": {"__class__": 1}}', "__class__"),
    ('{"prompt": "a", "options": {"decoder": "/etc/passwd"}}', "decoder"),
    ('{"prompt": "a", "options": {"image": "/etc/passwd"}}', "image"),
    ('{"prompt": "a", "options": {"noise": 1}}', "noise"),
    ('{"prompt": "a", "options": {"guides": []}}', "guides"),
    ('{"prompt": "a", "options": {"model": "/etc"}}', "model"),
    ('{"prompt": "a", "image": "http://127.0.0.1:1/x.png"}', "image"),
    ('{"prompt": "a", "image": "data:image/png;base64,AAAA"}', "image"),
    ('{"prompt": "a", "image": {"url": "http://x"}}', "image"),
]


@pytest.mark.parametrize(("text", "field"), JSON)
def test_hostile_json_is_refused_by_its_field(app: Any, text: str, field: str) -> None:
    status, headers, body = ask(app, "POST", "/api/jobs", text.encode())
    assert status == 422 and headers["content-type"] == "application/json", body
    error = json.loads(body)["error"]
    assert error["field"] == field and len(error["message"]) < 500, error


@pytest.mark.parametrize(
    "path",
    [
        *("/api/check", "/api/images/zip", "/api/jobs", "/v1/images/generations", "/sdapi/v1/txt2img"),
        *("/sdapi/v1/img2img", "/sdapi/v1/options", "/sdapi/v1/png-info"),
    ],
)
@pytest.mark.parametrize(
    "text", ["[" * 100_000, f'{{"ids": [{DEEP}]}}', "\ufeff{}", '{"ids": ["\\ud800"], "prompt": 1}', "\0"]
)
def test_every_route_that_reads_json_is_safe(app: Any, path: str, text: str) -> None:
    allowed = (200, 422) if path in ("/api/check", "/api/images/zip", "/sdapi/v1/options") else (400, 422)
    assert ask(app, "POST", path, text.encode())[0] in allowed


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/x.png", "file:///etc/passwd", "//evil.example/x", "ftp://x/y"])
def test_no_address_is_fetched(app: Any, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for path, body in (
        ("/api/jobs", {**RED, "image": address}),
        ("/sdapi/v1/img2img", {"prompt": "a", "init_images": [address]}),
        ("/sdapi/v1/img2img", {"prompt": "a", "init_images": ["AAAA"], "mask": address}),
        ("/sdapi/v1/png-info", {"image": address}),
    ):
        assert ask(app, "POST", path, json.dumps(body).encode())[0] == 422, path


@pytest.mark.parametrize(
    "setting", ["outdir_samples", "outdir_txt2img_samples", "samples_format", "sd_vae", "__proto__"]
)
def test_settings_of_the_web_ui_are_not_written(app: Any, setting: str) -> None:
    assert ask(app, "POST", "/sdapi/v1/options", json.dumps({setting: "/tmp/x"}).encode())[0] == 422
    assert b"/tmp/x" not in ask(app, "GET", "/sdapi/v1/options")[2]


def test_a_search_of_many_words_is_answered(app: Any) -> None:
    for query in (b"search=" + b"a%20" * 333, b"search=%00", b"search=%ff%fe", b"search=%25_%5C'%22"):
        assert ask(app, "GET", "/api/images", query=query)[0] in (200, 422)
    for query in (b"limit=999999999999", b"limit=-1", b"before=99999999999999999999", b"favourite=maybe"):
        assert ask(app, "GET", "/api/images", query=query)[0] == 422


# Prompts


def test_what_stands_in_a_prompt_is_text_alone(client: Any, app: Any, image: str) -> None:
    for path in (f"images/{image}", "images", f"images/{image}/steps"):
        status, headers, _ = ask(app, "GET", f"/api/{path}")
        assert status == 200 and headers["content-type"] == "application/json"
    headers = ask(app, "GET", f"/api/images/{image}.png")[1]
    assert headers["content-type"] == "image/png" and "alert" not in str(headers)
    names = ask(app, "POST", "/api/images/zip", json.dumps({"ids": [image]}).encode())[1]["content-disposition"]
    assert names == 'attachment; filename="diptych-images.zip"'


@pytest.mark.parametrize(
    "prompt", ["a\0b", "\0", "a\r\nSet-Cookie: x=y", "\u202e\u2066", "\x1b]0;x\x07", "'; DROP TABLE images; --"]
)
def test_control_characters_in_prompts_harm_nothing(client: Any, prompt: str) -> None:
    answer = client.post("/api/jobs", json={**RED, "prompt": prompt, "options": {"steps": 1}})
    assert answer.status_code in (202, 422) and "set-cookie" not in answer.headers
    if answer.status_code == 202:
        job = done(client, {**RED, "prompt": prompt, "options": {"steps": 1}})
        id = job["images"][0]["id"]
        assert job["state"] == "done" and client.get(f"/api/images/{id}").json()["prompt"] == prompt
        assert client.post("/api/read", content=client.get(f"/api/images/{id}.png").content).json()["prompt"] == prompt


# Images that clients send


def webp_header(width: int, height: int, animated: bool) -> bytes:
    """A WebP of one pixel's data whose canvas states a size."""
    canvas = (
        bytes([2 if animated else 0, 0, 0, 0]) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    )
    inner = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + canvas
    if animated:
        inner += b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def jpeg(width: int, height: int) -> bytes:
    """A JPEG of 8 px whose header states another size."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each is decoded over the whole image."""
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


def text_bomb(kind: bytes, size: int, count: int = 1) -> bytes:
    packed = zlib.compress(bytes(size))
    head = b"\0\0" if kind == b"zTXt" else b"\0\1\0\0\0"
    return png(16, 16, *(png_chunk(kind, b"k%d" % n + head + packed) for n in range(count)))


BOMBS = {
    "pixels of a PNG": png(30_000, 30_000, pixels=b""),
    "pixels of a PNG at the limit of its sides": png(2**31 - 1, 2**31 - 1, pixels=b""),
    "pixels of a JPEG": jpeg(65_000, 65_000),
    "pixels of a WebP": webp_header(16_383, 16_383, False),
    "pixels of an animated WebP": webp_header(16_383, 16_383, True),
    "aspect": png(4096, 16, pixels=b""),
    "aspect of a line": png(4096, 1),
    "no pixels": png(0, 0, pixels=b""),
    "text of a zTXt": text_bomb(b"zTXt", 2**26),
    "text of an iTXt": text_bomb(b"iTXt", 2**26),
    "texts of many zTXt": text_bomb(b"zTXt", 2**20, 65),
    "profile of a PNG": png(16, 16, png_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(2**26)))),
    "scans of a JPEG": scans(5000),
    "cut PNG": small_png()[:-40],
    "cut PNG header": small_png()[:20],
    "PNG without pixels": png(16, 16, pixels=b""),
    "wrong checksum": small_png().replace(b"IDAT", b"IDAX"),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "GIF": b"GIF89a" + bytes(40),
    "HTML": b"<html><script>alert(1)</script>",
    "zip": b"PK\3\4" + bytes(100),
    "pickle": b"\x80\x04cposix\nsystem\n.",
    "PDF": b"%PDF-1.4",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_hostile_images_are_refused(app: Any, name: str) -> None:
    assert len(BOMBS[name]) < LIMITS.upload_bytes
    for path in ("/api/uploads", "/api/read"):
        status, _, body = ask(app, "POST", path, BOMBS[name])
        assert status == 422 and json.loads(body)["error"]["field"] == "image", body
        assert len(body) < 300


@pytest.mark.parametrize("name", ["pixels of a PNG", "aspect", "text of an iTXt", "scans of a JPEG", "cut PNG", "SVG"])
def test_hostile_images_in_base64_are_refused(app: Any, name: str) -> None:
    bomb, good = (base64.b64encode(data).decode() for data in (BOMBS[name], small_png()))
    for path, body in (
        ("img2img", {"prompt": "a", "init_images": [bomb]}),
        ("img2img", {"prompt": "a", "init_images": [good], "mask": bomb}),
        ("extra-single-image", {"image": bomb, "upscaler_1": "cascade"}),
        ("png-info", {"image": bomb}),
    ):
        assert ask(app, "POST", f"/sdapi/v1/{path}", json.dumps(body).encode())[0] == 422, path


@pytest.mark.parametrize("name", ["pixels of a PNG", "aspect", "text of an iTXt", "cut PNG", "scans of a JPEG"])
def test_hostile_masks_are_refused(name: str) -> None:
    """By the transparency of which OpenAI's clients say where to generate."""
    with pytest.raises(FieldError) as raised:
        alpha_mask("mask", BOMBS[name])
    assert raised.value.field == "mask"


def test_what_is_hidden_in_an_image_is_not_kept(client: Any, app: Any) -> None:
    """Polyglots, texts and places: what is kept is made anew from the pixels."""
    exif = Image.Exif()
    exif[0x010E] = SECRET
    file, info = io.BytesIO(), PngInfo()
    info.add_text("diptych", SECRET)
    Image.open(io.BytesIO(small_png())).save(file, "PNG", pnginfo=info, exif=exif)
    data = file.getvalue() + b"<script>alert(1)</script>PK\3\4" + SECRET.encode()
    sent = client.post("/api/uploads", content=data).json()
    status, headers, kept = ask(app, "GET", f"/api/uploads/{sent['id']}")
    assert status == 200 and len(kept) == int(headers["content-length"]), (len(kept), headers, kept[:20])
    assert SECRET.encode() not in kept and b"<script>" not in kept and headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(kept))), np.asarray(Image.open(io.BytesIO(small_png()))))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_of_animations_the_first_frame_is_taken(client: Any, format: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue", "lime")]
    file = io.BytesIO()
    frames[0].save(file, format, save_all=True, append_images=frames[1:], lossless=True)
    sent = client.post("/api/uploads", content=file.getvalue()).json()
    with Image.open(io.BytesIO(client.get(f"/api/uploads/{sent['id']}").content)) as image:
        assert getattr(image, "n_frames", 1) == 1 and image.getpixel((8, 8)) == (255, 0, 0)


def test_decoding_does_not_change_the_filters_of_warnings() -> None:
    import warnings

    before = list(warnings.filters)
    read_upload("image", small_png())
    assert warnings.filters == before


# Work


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"options": {"steps": 201}}, "steps"),
        ({"count": 9}, "count"),
        ({"options": {"size": [264, 256]}}, "size"),
        ({"options": {"size": [100_000, 100_000]}}, "size"),
        ({"options": {"size": [-16, 16]}}, "size"),
        ({"model": "cascade", "options": {"steps": 100}}, "steps"),
        ({"model": "cascade", "options": {"steps": [100, 100, 100]}}, "steps"),
        ({"model": "cascade", "options": {"steps": [200, None, None]}}, "steps"),
        ({"count": 8, "options": {"steps": 200, "size": [256, 256]}}, "count"),
    ],
)
def test_work_is_bounded_one_by_one_and_together(idle: Engine, change: Any, field: str) -> None:
    idle.limits = LIMITS.__class__(**{**vars(LIMITS), "work": 256 * 256 * 200 * 4})
    app = application.studio_application(idle, ADDRESS)
    status, _, body = ask(app, "POST", "/api/jobs", json.dumps({**RED, **change}).encode())
    assert status == 422 and json.loads(body)["error"]["field"] == field, body


def test_an_image_of_a_long_shape_counts_as_what_is_made_of_it(idle: Engine) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 16)).save(file, "PNG")
    idle.limits = LIMITS.__class__(**{**vars(LIMITS), "pixels": 16 * 16})
    app = application.studio_application(idle, ADDRESS)
    sent = json.loads(ask(app, "POST", "/api/uploads", file.getvalue())[2])["id"]
    status, _, body = ask(app, "POST", "/api/jobs", json.dumps({**RED, "image": sent}).encode())
    assert status == 422 and json.loads(body)["error"]["field"] == "size", body


def test_a_full_queue_says_when_to_come_back(idle: Engine) -> None:
    app = application.studio_application(idle, ADDRESS)
    body = json.dumps({**RED, "count": 8}).encode()
    answers = [ask(app, "POST", "/api/jobs", body, [("x-client", f"client{n}")]) for n in range(6)]
    assert [status for status, _, _ in answers] == [202] * 5 + [429]  # whatever a client calls itself
    assert int(answers[-1][1]["retry-after"]) >= 1
    assert len(idle.jobs) == 5


def test_what_a_waiting_job_needs_is_not_dropped(idle: Engine) -> None:
    app = application.studio_application(idle, ADDRESS)
    sent = json.loads(ask(app, "POST", "/api/uploads", small_png())[2])["id"]
    assert ask(app, "POST", "/api/jobs", json.dumps({**RED, "image": sent}).encode())[0] == 202
    os.utime(idle.history.folder / "images" / "inputs" / f"{sent}.png", (1, 1))
    for shade in range(LIMITS.uploads + 2):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (shade, 0, 0)).save(file, "PNG")
        assert ask(app, "POST", "/api/uploads", file.getvalue())[0] == 200
    kept = {path.stem for path in (idle.history.folder / "images" / "inputs").glob("*.png")}
    assert sent in kept and len(kept) <= LIMITS.uploads + 1


def test_followers_are_bounded(idle: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_api, "FOLLOWERS", 2)
    app = application.studio_application(idle, ADDRESS)
    id = json.loads(ask(app, "POST", "/api/jobs", json.dumps(RED).encode())[2])["id"]
    job = idle.jobs[id]

    async def followers(count: int) -> int:
        streams = [job.follow() for _ in range(count)]
        for stream in streams:
            await anext(stream)
        return await asyncio.to_thread(lambda: ask(app, "GET", f"/api/jobs/{id}/events")[0])

    assert asyncio.run(followers(2)) == 429


def test_events_of_ended_jobs_take_no_memory(idle: Engine) -> None:
    app = application.studio_application(idle, ADDRESS)
    job = idle.jobs[json.loads(ask(app, "POST", "/api/jobs", json.dumps(RED).encode())[2])["id"]]
    for step in range(50):
        job.publish("step", image=0, step=step, steps=50, preview="data:x")
    job.end("cancelled")
    job.forget_steps()
    assert [(one["type"], one["number"]) for one in job.events()] == [("queued", 1), ("cancelled", 52)]
    assert [one["number"] for one in job.events(1)] == [52] and not job.events(52)


# Errors and settings


def test_errors_name_no_path_of_this_machine(idle: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "models" / "my secret.safetensors"

    def fail(*_: Any) -> Any:
        raise UserError(f"{place} is damaged: see '{idle.history.folder}/images/x.png' (in {Path(__file__).resolve()})")

    idle.pool.sources["broken"], idle.pool.styles["broken"] = str(place), idle.pool.styles["latent"]
    monkeypatch.setattr(idle.pool, "_open_source", fail)
    app = application.studio_application(idle, ADDRESS)
    for method, path, body in (
        ("GET", "/api/models/broken", b""),
        ("POST", "/api/check", b'{"prompt": "a", "model": "broken"}'),
        ("POST", "/api/jobs", b'{"prompt": "a", "model": "broken"}'),
    ):
        status, _, answer = ask(app, method, path, body)
        assert 400 <= status < 500 and b"is damaged" in answer
        assert str(tmp_path).encode() not in answer and b"my secret.safetensors" in answer
        assert str(Path(__file__).resolve().parent).encode() not in answer


def test_an_error_that_nobody_foresaw_says_nothing(idle: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(idle.history, "images", fail)
    app = application.studio_application(idle, ADDRESS)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/api/images",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
    }
    with pytest.raises(RuntimeError):  # for the server's log
        asyncio.run(app(scope, receive, send))
    headers = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    assert sent[0]["status"] == 500 and headers.items() >= HEADERS.items()
    assert SECRET.encode() not in sent[1]["body"] and b"Traceback" not in sent[1]["body"]


def test_a_job_that_fails_names_no_path(client: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise UserError(f"{engine.history.folder}/images/inputs/0.png is damaged")

    monkeypatch.setattr(engine.pool.open("latent"), "generate", fail)
    job = done(client, RED)
    assert job["state"] == "failed" and job["error"]["message"] == "0.png is damaged"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/etc/passwd is no file", "passwd is no file"),
        (
            "no 1/2 of a/b at http://x/etc/y or /nowhere-at-all/x",
            "no 1/2 of a/b at http://x/etc/y or /nowhere-at-all/x",
        ),
        ("send it to /api/uploads first", "send it to /api/uploads first"),
        ("see '/usr/lib/x', /usr/lib/y.", "see 'x', y."),
    ],
)
def test_paths_are_cut_to_their_last_part(text: str, expected: str) -> None:
    assert without_paths(text) == expected


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/api/images/x"),
        ("TRACE", "/"),
        ("POST", "/api/images"),
        ("GET", "/api/nothing"),
        ("GET", "/pages/../../setup"),
        ("POST", "/api/models"),
        ("PATCH", "/api/settings"),
        ("POST", "/api/settings"),
    ],
)
def test_there_are_no_other_routes(app: Any, method: str, path: str) -> None:
    """Every answer has all headers, which `ask` sees to; and nothing is set over HTTP."""
    assert ask(app, method, path, b"{}")[0] in (404, 405)


def test_no_route_writes_settings_or_reads_paths(app: Any) -> None:
    """What may change something is a list that is looked at: a new route is a decision."""
    paths = json.loads(ask(app, "GET", "/openapi.json")[2])["paths"]
    changing = {f"{method} {path}" for path, methods in paths.items() for method in methods if method != "get"}
    ours = {one for one in changing if one.split()[1].startswith("/api/")}
    assert ours == {
        *("post /api/check", "post /api/uploads", "post /api/jobs", "delete /api/jobs/{id}", "post /api/images/zip"),
        *("patch /api/images/{id}", "delete /api/images/{id}", "post /api/read"),
    }


def test_jobs_of_others_are_found_by_unguessable_ids_alone(idle: Engine) -> None:
    app = application.studio_application(idle, ADDRESS)
    id = json.loads(ask(app, "POST", "/api/jobs", json.dumps(RED).encode(), [("x-client", "one")])[2])["id"]
    assert len(bytes.fromhex(id)) == 12  # 96 random bits
    assert json.loads(ask(app, "GET", "/api/jobs", headers=[("x-client", "two")])[2]) == []
    assert [one["id"] for one in json.loads(ask(app, "GET", "/api/jobs", headers=[("x-client", "one")])[2])] == [id]


@pytest.mark.parametrize("name", ["a\r\nx: y", "../x", "a" * 65, "ｘ", "<b>", ""])
def test_names_of_clients_are_letters_or_nothing(name: str) -> None:
    request = SimpleNamespace(headers={"x-client": name}, client=None)
    assert jobs_api.client_of(request) == "unknown"


def test_addresses_are_those_that_can_be_listened_at() -> None:
    for host in ("", "a b", "evil@127.0.0.1", "127.0.0.1/x", "a\r\nb"):
        with pytest.raises(UserError):
            read_address(host, 1)
