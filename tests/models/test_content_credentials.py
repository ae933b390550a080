"""Signed images: a manifest that verifies, metadata that stay readable, and keys that do not fit named at once."""

from __future__ import annotations

import datetime
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.cli.output import save_image
from diptych.core.errors import UserError
from diptych.models import content_credentials
from diptych.models.content_credentials import open_signer
from diptych.models.exif import encoded
from diptych.models.metadata import png_texts, read_metadata
from diptych.models.provenance import COMPOSITE, GENERATED, png_bytes

ROW: dict[str, Any] = {"prompt": "ein Äpfel 猫", "seed": 3, "size": [16, 16]}
signing = pytest.mark.skipif(
    importlib.util.find_spec("c2pa") is None or importlib.util.find_spec("cryptography") is None,
    reason="the extra `c2pa` is not installed",
)


def write_chain(folder: Path, first: int = -1, last: int = 30, mail: bool = True) -> tuple[Path, Path]:
    """A certificate of its own authority, valid from day `first` to day `last` from now, and its key, as PEM files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.datetime.now(datetime.UTC)
    root, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    uses = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )

    def certificate(name: str, key: Any, begin: int, end: int, authority: bool) -> Any:
        names = [
            x509.Name(
                [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "test"), x509.NameAttribute(NameOID.COMMON_NAME, one)]
            )
            for one in (name, "root")
        ]
        usage = x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **uses)
        builder = (
            x509.CertificateBuilder(names[1], names[0], key.public_key(), x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=begin))
            .not_valid_after(now + datetime.timedelta(days=end))
            .add_extension(x509.BasicConstraints(authority, 0 if authority else None), True)
            .add_extension(usage, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        )
        if not authority:
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key())
            purpose = ExtendedKeyUsageOID.EMAIL_PROTECTION if mail else ExtendedKeyUsageOID.SERVER_AUTH
            builder = builder.add_extension(issuer, False).add_extension(x509.ExtendedKeyUsage([purpose]), False)
        return builder.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    folder.mkdir(exist_ok=True)
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(certificate("leaf", leaf, first, last, False) + certificate("root", root, -400, 400, True))
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(leaf.private_bytes(serialization.Encoding.PEM, *form))
    return chain, key


def manifest_of(data: bytes, format: str = "png") -> tuple[str, dict[str, Any]]:
    """Whether the manifest of an image is valid, and the action in it."""
    import c2pa

    with c2pa.Reader(f"image/{format}", io.BytesIO(data)) as reader:
        manifest = json.loads(reader.json())
        state = reader.get_validation_state()
    active = manifest["manifests"][manifest["active_manifest"]]
    (actions,) = [one["data"]["actions"] for one in active["assertions"] if one["label"].startswith("c2pa.actions")]
    return str(state), actions[0]


@signing
@pytest.mark.parametrize(("row", "source_type"), [(ROW, GENERATED), ({**ROW, "image": {"file": "a.png"}}, COMPOSITE)])
def test_a_signed_png_verifies_and_keeps_its_metadata(tmp_path: Path, row: Any, source_type: str) -> None:
    signer = open_signer(*write_chain(tmp_path))
    image = Image.effect_noise((16, 16), 50).convert("RGB")
    data, plain = png_bytes(image, png_texts(row), signer), png_bytes(image, png_texts(row))
    state, action = manifest_of(data)
    assert state == "Valid" and action["action"] == "c2pa.created" and action["digitalSourceType"] == source_type
    (tmp_path / "a.png").write_bytes(data)
    assert read_metadata(tmp_path / "a.png").items() >= row.items()
    with Image.open(io.BytesIO(data)) as signed, Image.open(io.BytesIO(plain)) as unsigned:
        assert signed.tobytes() == unsigned.tobytes() and signed.info == unsigned.info


@signing
def test_a_changed_pixel_is_seen(tmp_path: Path) -> None:
    data = bytearray(
        png_bytes(Image.effect_noise((16, 16), 50).convert("RGB"), png_texts(ROW), open_signer(*write_chain(tmp_path)))
    )
    data[data.index(b"IDAT") + 20] ^= 1
    assert manifest_of(bytes(data))[0] == "Invalid"


@signing
@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_other_formats_are_signed(tmp_path: Path, format: Any) -> None:
    signer = open_signer(*write_chain(tmp_path))
    assert signer is not None
    state, action = manifest_of(
        signer.sign(encoded(png_bytes(Image.new("RGB", (16, 16)), png_texts(ROW)), format), format), format
    )
    assert state == "Valid" and action["digitalSourceType"] == GENERATED


@signing
def test_what_cannot_sign_is_named_before_anything_is_made(tmp_path: Path) -> None:
    chain, key = write_chain(tmp_path / "good")
    other_chain, other_key = write_chain(tmp_path / "other")
    (tmp_path / "text.pem").write_text("x")
    for pair, problem in (
        (write_chain(tmp_path / "old", -300, -1), "it signs nothing now"),
        (write_chain(tmp_path / "early", 1, 9), "it signs nothing now"),
        (write_chain(tmp_path / "web", mail=False), "cannot sign"),
        ((chain, other_key), "is not the key of the first certificate"),
        ((other_chain, key), "is not the key of the first certificate"),
        ((key, key), "holds no certificate"),
        ((chain, chain), "holds no private key"),
        ((tmp_path / "none.pem", key), "cannot be read"),
        ((chain, tmp_path), "cannot be read"),
        ((chain, tmp_path / "text.pem"), "is no PEM file"),
    ):
        with pytest.raises(UserError, match=problem) as raised:
            open_signer(*pair)
        assert "\n" not in str(raised.value) and "--c2pa-" in str(raised.value)


def test_without_the_package_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_credentials.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"c2pa-python: pip install 'diptych\[c2pa\]'"):
        open_signer(tmp_path, tmp_path)


def test_certificate_and_key_go_together(tmp_path: Path) -> None:
    assert open_signer(None, None) is None
    with pytest.raises(UserError, match="--c2pa-key goes with --c2pa-certificate"):
        open_signer(None, tmp_path)
    with pytest.raises(UserError, match="--c2pa-certificate goes with --c2pa-key"):
        open_signer(tmp_path, None)


@signing
def test_the_command_line_signs_what_it_writes(tmp_path: Path) -> None:
    path = save_image(Image.new("RGB", (16, 16)), tmp_path, "a", ROW, open_signer(*write_chain(tmp_path / "keys")))
    assert manifest_of(path.read_bytes())[0] == "Valid" and read_metadata(path).items() >= ROW.items()
