"""Provenance: what says to any program that an image was generated, as XMP with IPTC's digital source type.

It has no time and no id, so that the same image gives the same file.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Protocol

from PIL.Image import Image

from diptych.core.images import png_info, save_png
from diptych.core.version import version

XMP_KEY = "XML:com.adobe.xmp"
"""Of the text in a PNG that holds XMP."""
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED, COMPOSITE = f"{SOURCE_TYPES}trainedAlgorithmicMedia", f"{SOURCE_TYPES}compositeWithTrainedAlgorithmicMedia"
GIVEN = ("image", "mask", "low")
"""Entries of an image's metadata that name an image which it was made from."""
PACKET = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" \
xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">\
<xmp:CreatorTool>{tool}</xmp:CreatorTool>\
<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>\
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


def tool() -> str:
    """What made the image: "diptych 0.1.0"."""
    return f"diptych {version()}"


def source_type(row: Mapping[str, Any]) -> str:
    """IPTC's digital source type of an image, from its metadata: generated, or a composite of that and what was
    given."""
    return COMPOSITE if any(row.get(name) is not None for name in GIVEN) else GENERATED


def xmp(row: Mapping[str, Any]) -> str:
    """The XMP packet of an image with this metadata."""
    return PACKET.format(tool=tool(), source_type=source_type(row))


def save_generated(image: Image, path: Any, texts: Mapping[str, str] | None = None, **options: Any) -> None:
    """Write, or replace, a PNG of generated images without metadata of their own. `texts` are further ones, `options`
    those of Pillow."""
    save_png(image, path, pnginfo=png_info({**(texts or {}), XMP_KEY: xmp({})}), **options)


def png_bytes(image: Image, texts: Mapping[str, str], signer: Signer | None = None) -> bytes:
    """The PNG of an image with its texts, signed where there is a signer."""
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=png_info(texts))
    return file.getvalue() if signer is None else signer.sign(file.getvalue(), "png")


class Signer(Protocol):
    """What signs images: `CertificateSigner`."""

    def sign(self, image: bytes, format: str) -> bytes:
        """The bytes of an image ("png", "jpeg", "webp"), signed."""
        ...
