"""Checks of every request before any handler sees it, and headers of every answer: pure ASGI, for any application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from diptych.serving.addresses import Address

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ErrorBody = Callable[[str, int, str], tuple[bytes, bytes]]
"""Path, status and reason of a refusal -> its body and content type."""
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

HEADERS = {
    # Nothing is loaded from elsewhere, and no inline script runs: text that slipped through unescaped stays text.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cache-control": "no-store",
}
READING = ("GET", "HEAD")


class TooLarge(Exception):
    """A request's body is longer than is allowed."""


class Guard:
    """Wraps an application. Refuses requests for another host (DNS rebinding), requests from pages of another origin
    (cross-site request forgery), methods other than `methods`, and bodies above `most` bytes, whether announced or not.
    """

    def __init__(
        self,
        application: Application,
        address: Address,
        most: int = 2**20,
        methods: tuple[str, ...] = (*READING, "POST"),
        error: ErrorBody | None = None,
    ) -> None:
        self.application, self.address, self.most, self.methods = application, address, most, methods
        self.error = error or plain

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.application(scope, receive, send)
        if scope["type"] != "http":  # no page here opens a web socket
            return await send({"type": "websocket.close", "code": 1008})
        if refused := self.refusal(scope):
            return await self.answer(send, scope, *refused)
        taken, refusing = 0, False

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.most:
                raise TooLarge
            return message

        async def with_headers(message: Message) -> None:
            nonlocal refusing
            if message["type"] == "http.response.start":
                refusing = taken > self.most  # whatever the application made of it
                if refusing:
                    await self.answer(send, scope, 413, f"at most {self.most} bytes")
                message = {**message, "headers": complete(message.get("headers", []))}
            if not refusing:
                await send(message)

        try:
            await self.application(scope, bounded, with_headers)
        except TooLarge:
            if not refusing:
                await self.answer(send, scope, 413, f"at most {self.most} bytes")
        return None

    async def answer(self, send: Send, scope: MutableMapping[str, Any], status: int, reason: str) -> None:
        """A short answer with the reason."""
        body, kind = self.error(scope.get("path", "/"), status, reason)
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": complete(headers)})
        await send({"type": "http.response.body", "body": body})

    def refusal(self, scope: MutableMapping[str, Any]) -> tuple[int, str] | None:
        """Status and reason where a request is refused by its head alone."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        single = {name: values[0].decode("latin-1") for name, values in headers.items()}
        hosts, origins = headers.get(b"host", []), headers.get(b"origin", [])
        if len(hosts) != 1 or not self.address.allows(single[b"host"]):
            return 421, "this server does not answer to that host"
        if scope["method"] not in self.methods:
            return 405, "no such method"
        if len(origins) > 1 or (origins and not self.address.allows_origin(single[b"origin"])):
            return 403, "the request comes from another site"
        site = single.get(b"sec-fetch-site", "none")
        if scope["method"] not in READING and not origins and site not in ("none", "same-origin"):
            return 403, "the request comes from another site"
        length = single.get(b"content-length", "0")
        if not length.isascii() or not length.isdigit():
            return 400, "no length"
        if int(length[:20]) > self.most:
            return 413, f"at most {self.most} bytes"
        return None


def complete(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers with those of `HEADERS` that are not among them."""
    known = {name.lower() for name, _ in headers}
    more = ((name.encode(), value.encode()) for name, value in HEADERS.items())
    return [*headers, *((name, value) for name, value in more if name not in known)]


def plain(path: str, status: int, reason: str) -> tuple[bytes, bytes]:
    return reason.encode(), b"text/plain; charset=utf-8"
