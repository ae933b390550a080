"""`diptych serve`: the studio, a web page and HTTP APIs."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from diptych.cli.arguments import add_checks, add_device, add_integer, add_opening, opening_given
from diptych.core.errors import UserError

PORT = 8765
BATCH = 8
FOLDER = "~/.local/share/diptych/studio"
EXAMPLES = """\
examples:
  diptych serve
  diptych serve --model latent --model sd=runwayml/stable-diffusion-v1-5 --memory 8
  diptych serve --host 0.0.0.0 --token new

The page is at the printed address. OpenAI's images API is at /v1, A1111's at /sdapi/v1: docs/serving.md.
"""


def add_commands(commands: Any) -> None:
    """Add `serve`."""
    command = commands.add_parser(
        "serve",
        help="serve a web page and HTTP APIs to generate images",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    command.add_argument(
        "--model",
        metavar="[NAME=]MODEL",
        action="append",
        dest="models",
        help="a model to offer, as `generate` takes it; may be repeated (default: the package's own)",
    )
    command.add_argument("--host", metavar="H", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    add_integer(command, "--port", 0, 65535, default=PORT, help=f"0 takes any that is free (default: {PORT})")
    command.add_argument("--url", metavar="URL", help="address that users see, where a proxy or tunnel leads here")
    command.add_argument(
        "--token",
        metavar="T",
        help="what clients must know; `new` makes one; also as DIPTYCH_TOKEN; needed where other machines can connect",
    )
    command.add_argument(
        "--folder", metavar="DIR", type=Path, help=f"where images, history and jobs are kept (default: {FOLDER})"
    )
    command.add_argument("--styles", metavar="FILE", type=Path, help="styles.csv: name,prompt,negative_prompt")
    add_integer(command, "--batch", 1, 64, default=BATCH, help=f"images generated together (default: {BATCH})")
    add_integer(command, "--memory", 1, 4096, metavar="GB", help="weights open at a time (default: all)")
    add_device(command)
    add_checks(command)
    add_opening(command)
    command.set_defaults(command=serve, warns=True)


def serve(arguments: argparse.Namespace) -> None:
    from diptych.core.startup import collector_paused
    from diptych.models.content_credentials import open_signer
    from diptych.models.safety_check import SafetyCheck
    from diptych.serving.tokens import new_token

    with collector_paused():
        from diptych.studio.application import serve_studio

    token = arguments.token or os.environ.get("DIPTYCH_TOKEN") or None
    if token == "new":
        token = new_token()
    if token is not None and not re.fullmatch(r"[A-Za-z0-9_-]{16,128}", token):
        raise UserError("a token has 16 to 128 letters, digits, - and _: --token new makes one")
    folder = arguments.folder or Path(FOLDER).expanduser()
    safety = None if arguments.safety is None else SafetyCheck.load(arguments.safety)
    serve_studio(
        read_models(arguments.models),
        folder,
        arguments.host,
        arguments.port,
        public=arguments.url,
        token=token,
        device=arguments.device,
        batch=arguments.batch,
        styles=arguments.styles,
        memory=None if arguments.memory is None else arguments.memory * 2**30,
        opening=opening_given(arguments),
        safety=safety,
        signer=open_signer(arguments.c2pa_certificate, arguments.c2pa_key),
    )


def read_models(named: list[str] | None) -> dict[str, str]:
    """Models by the name that clients use: `NAME=MODEL`, or the last part of where it lies."""
    from diptych.pretrained.load import EMBEDDED

    if not named:
        found = {name: name for name, folder in EMBEDDED.items() if (folder / "config.json").is_file()}
        if not found:
            raise UserError("this package has no default model: name one as --model")
        return found
    models: dict[str, str] = {}
    for one in named:
        name, equals, source = one.partition("=")
        if not equals:
            name, source = Path(one.rstrip("/")).name.removesuffix(".safetensors"), one
        if not name or not source:
            raise UserError(f"--model is MODEL or NAME=MODEL, not {one!r}")
        if source.startswith(("/", "./", "../")) and not Path(source).exists():  # others may be names on the hub
            raise UserError(f"--model {one}: there is nothing at {source}")
        if name in models:
            raise UserError(f"two models are named {name}: name one otherwise, as --model NAME={source}")
        models[name] = source
    return models
