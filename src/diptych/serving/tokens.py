"""Tokens: unguessable words in a link, which stand for whoever it was given to."""

from __future__ import annotations

import re
import secrets

TOKEN = re.compile(r"[A-Za-z0-9_-]{22,64}")


def new_token() -> str:
    """128 random bits as 22 letters that may stand in a link."""
    return secrets.token_urlsafe(16)


def bearer(header: str | None) -> str | None:
    """The token of an `Authorization: Bearer ...` header; none where there is none or it cannot be one."""
    scheme, _, token = (header or "").partition(" ")
    return token if scheme.lower() == "bearer" and TOKEN.fullmatch(token) else None
