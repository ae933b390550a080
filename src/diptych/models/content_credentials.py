"""Content credentials (C2PA): a signed statement within an image that it was generated, by a certificate of the user's.

The signature is by c2pa-python (`pip install 'diptych[c2pa]'`). It holds an id of its own, so that signed files differ
from one time to the next; their pixels and metadata do not. Nothing is sent anywhere: there is no time stamp of an
authority.
"""

from __future__ import annotations

import datetime
import importlib.util
import io
import json
from pathlib import Path

from PIL import Image

from diptych.core.errors import UserError
from diptych.core.version import version
from diptych.models.provenance import COMPOSITE, GENERATED, XMP_KEY, png_bytes, xmp
from diptych.models.safety_check import one_line

HOW = "pip install 'diptych[c2pa]'"
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
"""Elliptic curves -> algorithms."""
SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"ocsp_fetch": False, "remote_manifest_fetch": False},
}
OPTIONS = ("--c2pa-certificate", "--c2pa-key")


class CertificateSigner:
    """Signs images by a chain of certificates and the private key of the first, both PEM."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Reads both, and signs an image to see that they do. Raises a `UserError` in one line where they do not."""
        if any(importlib.util.find_spec(name) is None for name in ("c2pa", "cryptography")):
            raise UserError(f"content credentials need c2pa-python: {HOW}")
        self.certificate, self.key = read_pem(OPTIONS[0], certificate), read_pem(OPTIONS[1], key)
        self.algorithm = algorithm_of(self.certificate, self.key, certificate, key)
        self.sign(png_bytes(Image.new("RGB", (16, 16)), {XMP_KEY: xmp({})}), "png")

    def sign(self, image: bytes, format: str) -> bytes:
        """An image of ours ("png", "jpeg", "webp") with its statement: made by a model, from nothing or from an image
        that was given, as its XMP says. Raises a `UserError` where that fails: the certificate may expire meanwhile."""
        import c2pa  # type: ignore[import-not-found]

        with Image.open(io.BytesIO(image)) as opened:
            stated = opened.info.get("xmp", b"")
        tool = {"name": "diptych", "version": version()}
        source_type = COMPOSITE if COMPOSITE.encode() in stated else GENERATED
        action = {"action": "c2pa.created", "digitalSourceType": source_type, "softwareAgent": tool}
        manifest = {
            "claim_generator_info": [tool],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
        }
        info = c2pa.C2paSignerInfo(self.algorithm, self.certificate, self.key, None)
        signed = io.BytesIO()
        try:
            context = c2pa.Context(c2pa.Settings.from_dict(SETTINGS))
            with c2pa.Signer.from_info(info) as signer, c2pa.Builder(json.dumps(manifest), context) as builder:
                builder.sign(signer, f"image/{format}", io.BytesIO(image), signed)
        except Exception as error:  # c2pa's own, of many kinds
            raise UserError(f"the certificate of {OPTIONS[0]} cannot sign: {one_line(error)}") from None
        return signed.getvalue()


def open_signer(certificate: Path | None, key: Path | None) -> CertificateSigner | None:
    """What the command line names; none where it names neither."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing, given = OPTIONS if certificate is None else OPTIONS[::-1]
        raise UserError(f"{given} goes with {missing}: give both")
    return CertificateSigner(certificate, key)


def read_pem(name: str, path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{name} {path} cannot be read: {error.strerror}") from None
    if b"-----BEGIN " not in data:
        raise UserError(f"{name} {path} is no PEM file")
    return data


def algorithm_of(chain: bytes, key: bytes, chain_path: Path, key_path: Path) -> str:
    """The algorithm by the kind of the key. Raises a `UserError` for a chain and a key that cannot sign, or not now."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    try:
        first = x509.load_pem_x509_certificates(chain)[0]
    except ValueError:
        raise UserError(f"{OPTIONS[0]} {chain_path} holds no certificate") from None
    try:
        private = serialization.load_pem_private_key(key, None)
    except TypeError:
        raise UserError(f"{OPTIONS[1]} {key_path} is encrypted: give it without a password") from None
    except Exception:  # of several kinds
        raise UserError(f"{OPTIONS[1]} {key_path} holds no private key") from None
    now = datetime.datetime.now(datetime.UTC)
    if not first.not_valid_before_utc <= now <= first.not_valid_after_utc:
        began, ends = (f"{when:%Y-%m-%d}" for when in (first.not_valid_before_utc, first.not_valid_after_utc))
        raise UserError(f"{OPTIONS[0]} {chain_path} is valid from {began} to {ends}: it signs nothing now")
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if private.public_key().public_bytes(*form) != first.public_key().public_bytes(*form):
        raise UserError(f"{OPTIONS[1]} {key_path} is not the key of the first certificate in {chain_path}")
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in CURVES:
        return CURVES[private.curve.name]
    if isinstance(private, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise UserError(f"{OPTIONS[1]} {key_path}: C2PA has P-256, P-384, P-521, RSA and Ed25519 keys, not this one")
