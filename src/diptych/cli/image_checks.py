"""What sees to each image that the command line writes: a safety check and a signature, where there are any."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from diptych.cli.output import file_stem
from diptych.core.errors import UserError
from diptych.core.terminal import print_err
from diptych.core.values import short_repr
from diptych.models.safety_check import SafetyCheck

Generated = tuple[Image, dict[str, Any], list[Image]]
"""An image, its metadata, and the images of earlier stages."""


@dataclass
class ImageChecks:
    """What the arguments of `add_checks` name."""

    safety: SafetyCheck | None = None
    signer: Any = None
    """A `CertificateSigner`."""

    @classmethod
    def open(cls, arguments: argparse.Namespace, wanted: Sequence[tuple[str, int]]) -> ImageChecks:
        """Before anything is generated. Raises a `UserError` for what cannot be opened, and for a prompt (of `wanted`,
        with seeds) that the safety check refuses."""
        safety = None if arguments.safety is None else SafetyCheck.load(arguments.safety)
        for prompt in dict.fromkeys(prompt for prompt, _ in wanted) if safety else ():
            if (reason := safety.refuses_prompt(prompt)) is not None:  # type: ignore[union-attr]
                raise UserError(f"the prompt {short_repr(prompt)} is refused: {reason}")
        if arguments.c2pa_certificate is None and arguments.c2pa_key is None:
            return cls(safety)
        from diptych.models.content_credentials import open_signer

        return cls(safety, open_signer(arguments.c2pa_certificate, arguments.c2pa_key))

    def allowed(self, generated: Iterable[Generated]) -> Iterator[Generated]:
        """The images that the safety check allows. The others are named, and a `UserError` at the end counts them."""
        refused = total = 0
        for image, metadata, earlier in generated:
            total += 1
            reason = None if self.safety is None else self.safety.refuses_images((*earlier, image))
            if reason is None:
                yield image, metadata, earlier
            else:
                refused += 1
                print_err(f"diptych: {file_stem(metadata)} is refused and not written: {reason}")
        if refused:
            raise UserError(f"the safety check refused {refused} of {total} images")
