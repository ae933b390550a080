"""Who may use a studio that has a token: as a bearer, as the password of Basic authentication, or by a cookie."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import MutableMapping
from http.cookies import SimpleCookie
from typing import Any

from diptych.serving.guard import Application, Receive, Send, complete
from diptych.studio.api_errors import error_body

COOKIE = "diptych-token"
OPEN = ("/", "/healthz", "/api/login")
"""Paths that need no token; the page's own files neither."""
MOST_BYTES = 4096


class Access:
    """Wraps an application; without a token lets everything through. secure: whether users come by https."""

    def __init__(self, application: Application, token: str | None, secure: bool = False) -> None:
        self.application, self.token, self.secure = application, token, secure

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.token is None:
            return await self.application(scope, receive, send)
        if scope["path"] == "/api/login" and scope["method"] == "POST":
            return await self.log_in(receive, send)
        if scope["path"] in OPEN or scope["path"].startswith("/pages/") or self.allowed(scope):
            return await self.application(scope, receive, send)
        asked = [(b"www-authenticate", b'Bearer, Basic realm="diptych"')]
        return await answer(send, 401, "a token is needed", asked, scope["path"])

    def allowed(self, scope: MutableMapping[str, Any]) -> bool:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        scheme, _, rest = headers.get(b"authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.is_token(rest.strip())
        if scheme.lower() == "basic":
            try:
                _, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
            except ValueError:
                return False
            return self.is_token(password)
        try:
            cookie = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
        except Exception:  # malformed
            return False
        return cookie is not None and self.is_token(cookie.value)

    def is_token(self, given: str) -> bool:
        return self.token is not None and hmac.compare_digest(given.encode(errors="replace"), self.token.encode())

    async def log_in(self, receive: Receive, send: Send) -> None:
        """Exchange the token for a cookie that scripts cannot read and other sites cannot use."""
        body, more = b"", True
        while more and len(body) <= MOST_BYTES:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        try:
            given = json.loads(body)["token"]
        except (ValueError, KeyError, TypeError, RecursionError):
            given = None
        if not isinstance(given, str) or not self.is_token(given):
            return await answer(send, 401, "this token is not known", [])
        cookie = f"{COOKIE}={given}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000{'; Secure' * self.secure}"
        return await answer(send, 200, "", [(b"set-cookie", cookie.encode())])


async def answer(
    send: Send, status: int, message: str, headers: list[tuple[bytes, bytes]], path: str = "/api/login"
) -> None:
    body = json.dumps(error_body(path, status, message) if message else {}).encode()
    sent = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": complete(sent)})
    await send({"type": "http.response.body", "body": body})
