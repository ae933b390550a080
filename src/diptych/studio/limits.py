"""What one request may ask for, so that no client can take the machine, and the errors that say so."""

from __future__ import annotations

from dataclasses import dataclass

from diptych.core.errors import UserError


class FieldError(UserError):
    """A value in a request that cannot be taken."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        """Its name in the request: "steps"."""


class QueueFull(UserError):
    """No further image can wait; the client may try again in `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many images are waiting: try again in {retry_after} s")
        self.retry_after = retry_after


class StorageError(UserError):
    """The folder of the history cannot be written to or read from: a full disk, say."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of requests and of the queue."""

    pixels: int = 2048 * 2048
    """Of one image."""
    steps: int = 1000
    """Of all stages together."""
    count: int = 16
    """Images of one request."""
    work: int = 16 * 1024 * 1024 * 200
    """Pixels times steps times images of one request."""
    prompt_bytes: int = 8192
    """Of a prompt or negative prompt in UTF-8."""
    upload_bytes: int = 24 * 2**20
    """Of one request's body."""
    uploads: int = 500
    """Images kept that clients sent; the oldest that no job needs go first."""
    queue: int = 256
    """Images that wait, of all clients."""
    client_queue: int = 64
    """Images that wait, of one client."""

    def check_work(self, count: int, pixels: int, steps: int) -> None:
        """Raise a `FieldError` where images are too many, too large or take too many steps."""
        if count > self.count:
            raise FieldError("count", f"at most {self.count} images at a time, not {count:,}")
        if pixels > self.pixels:
            raise FieldError("size", f"at most {self.pixels:,} pixels an image, not {short(pixels)}")
        if steps > self.steps:
            raise FieldError("steps", f"at most {self.steps:,} steps, not {short(steps)}")
        if count * pixels * steps > self.work:
            raise FieldError(
                "count", f"{count} images of {pixels:,} pixels in {steps} steps are too much at once: ask for fewer"
            )

    def check_prompt(self, field: str, text: str) -> None:
        """Raise a `FieldError` where a prompt is too long for any encoder."""
        if len(text.encode(errors="replace")) > self.prompt_bytes:
            raise FieldError(field, f"at most {self.prompt_bytes:,} bytes of UTF-8")


def short(number: int) -> str:
    """A number, which may have thousands of digits, for an error."""
    return f"{number:,}" if number < 10**12 else "that many"
