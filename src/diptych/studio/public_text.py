"""What errors and warnings tell clients: nothing of where things lie on this machine."""

from __future__ import annotations

import os
import re

PATH = re.compile(r"(?<![\w/:.])(?:/[^\s/:'\",;()]+)+/?")


def without_paths(text: str) -> str:
    """A text whose absolute paths are cut to their last part. A path is what begins with a folder that there is: the
    address of a route is none."""

    def cut(match: re.Match[str]) -> str:
        parts = match[0].rstrip("/").split("/")
        return parts[-1] if os.path.isdir(f"/{parts[1]}") else match[0]

    return PATH.sub(cut, text)
