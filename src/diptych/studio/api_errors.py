"""Errors as each API writes them, by the path of the request."""

from __future__ import annotations

import json
from typing import Any

OPENAI, A1111 = "/v1/", "/sdapi/"
"""What the paths of the others' APIs begin with."""
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""OpenAI's type of an error by its status."""
CODES = {401: "invalid_api_key", 413: "request_too_large", 429: "rate_limit_exceeded"}
"""Its code."""
NAMES = {400: "BadRequest", 401: "Unauthorized", 404: "NotFound", 413: "TooLarge", 422: "Unprocessable", 429: "Busy"}
"""Of errors in A1111's API, which has the name of an exception."""


def error_status(path: str, status: int, field: str | None) -> int:
    """The status with which an API answers what the studio answers with `status`: OpenAI's has 400 for any wrong
    field, and 404 for a model that is not there."""
    if status == 422 and path.startswith(OPENAI):
        return 404 if field == "model" else 400
    return status


def error_body(path: str, status: int, message: str, field: str | None = None) -> dict[str, Any]:
    """The JSON of an error; status as `error_status` gives it."""
    if path.startswith(OPENAI):
        missing = status == 404 and field == "model"
        code = "model_not_found" if missing else CODES.get(status)
        kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        kind = "invalid_request_error" if missing else kind
        return {"error": {"message": message, "type": kind, "code": code, "param": field}}
    if path.startswith(A1111):
        name = NAMES.get(status, "Failed" if status >= 500 else "Refused")
        return {"error": name, "detail": message, "body": field or "", "errors": message}
    return {"error": {"message": message, "field": field, "code": status}}


def error_json(path: str, status: int, message: str) -> tuple[bytes, bytes]:
    """The body and content type of an error that no route answers."""
    return json.dumps(error_body(path, status, message)).encode(), b"application/json"
