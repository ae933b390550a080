"""A safety check of the user's own: hooks that see each prompt and each image, and may refuse them. None by default.

    class Check:
        def check_prompt(self, prompt: str) -> str | None: ...
        def check_image(self, image: PIL.Image.Image) -> str | None: ...

Either may be left out. What they return is the reason of a refusal, which the user is shown; none allows. An exception
refuses too. A server calls `check_prompt` from several threads.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any

from PIL.Image import Image

from diptych.core.errors import UserError

LOG = logging.getLogger("diptych.safety")
BROKEN = "the safety check failed, so it is refused"
HOOKS = ("check_prompt", "check_image")


class SafetyCheck:
    """The hooks of an object."""

    def __init__(self, hooks: Any, name: str = "the safety check") -> None:
        found = {hook: getattr(hooks, hook, None) for hook in HOOKS}
        wrong = [hook for hook, call in found.items() if call is not None and not callable(call)]
        if wrong or not any(found.values()):
            problem = f"{wrong[0]} cannot be called" if wrong else f"has neither {' nor '.join(HOOKS)}"
            raise UserError(f"{name}: {problem}: a safety check is an object with one of these methods, or both")
        self._prompt, self._image = found.values()
        self.previews = bool(getattr(hooks, "check_previews", False))
        """Whether previews are shown once `check_image` has allowed each; without it there are none."""

    @classmethod
    def load(cls, stated: str) -> SafetyCheck:
        """From `module:object`, of what is installed or lies in the current folder. A class is called for its object.

        Raises a `UserError` for what cannot be imported, or has no hooks.
        """
        module, colon, name = stated.partition(":")
        if not colon or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
            raise UserError(f"--safety is module:object, such as my_checks:Check, not {stated!r}")
        if "" not in sys.path:
            sys.path.append("")  # last: nothing that is installed is replaced
        try:
            hooks: Any = importlib.import_module(module)
            for part in name.split("."):
                hooks = getattr(hooks, part)
            hooks = hooks() if isinstance(hooks, type) else hooks
        except Exception as error:  # whatever the user's module raises
            raise UserError(f"--safety {stated} cannot be opened: {type(error).__name__}: {one_line(error)}") from None
        return cls(hooks, f"--safety {stated}")

    @property
    def sees_images(self) -> bool:
        """Whether there is a hook for images."""
        return self._image is not None

    def refuses_prompt(self, prompt: str) -> str | None:
        """The reason why a prompt is refused; none where it is not."""
        return None if self._prompt is None else ask(self._prompt, prompt)

    def refuses_images(self, images: Iterable[Image]) -> str | None:
        """The reason why the first of some images that is refused is; none where none is."""
        if self._image is None:
            return None
        return next((reason for image in images if (reason := ask(self._image, image.copy())) is not None), None)


def ask(hook: Callable[[Any], Any], subject: Any) -> str | None:
    """What a hook says, in one line. What fails, or returns anything but a text or None, refuses."""
    try:
        reason = hook(subject)
    except Exception:
        LOG.exception("the safety check failed: refused")
        return BROKEN
    if reason is None:
        return None
    if not isinstance(reason, str):
        LOG.error("the safety check returned %s, neither a text nor None: refused", type(reason).__name__)
        return BROKEN
    return one_line(reason) or "refused by the safety check"


def one_line(text: Any) -> str:
    return " ".join(str(text).split())[:300]
