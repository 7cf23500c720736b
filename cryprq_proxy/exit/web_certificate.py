"""The certificate of an exit at whose second entrance TLS ends: read at the start, and at each reload."""

from __future__ import annotations

import hashlib
import os
import ssl
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..base.file_access import open_own, path_again
from ..base.paths import MAX_FILE
from ..errors import ConfigError, reason_of


@dataclass(frozen=True, slots=True)
class WebCertificate:
    """A certificate with its key, for TLS handshakes. Two are the same if they are of the same files' content."""

    context: ssl.SSLContext = field(compare=False, repr=False)
    digest: bytes = field(repr=False)


_REMEDY: Final = "mend certificate and key in [websocket]"


def _wrong(error: ssl.SSLError, certificate: Path, key: Path | None) -> str:
    """What OpenSSL found, without the words of its library."""
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the key {key or 'in it'} does not belong to the certificate {certificate}"
    files = f"{certificate}" if key is None else f"{certificate} or {key}"
    return (
        f"{files} is no file in PEM format that can be used: one has a chain of certificates, the other a key "
        "without a passphrase"
    )


def read_certificate(certificate: Path | None, key: Path | None) -> WebCertificate | None:
    """Of these PEM files, which may be one; None without a certificate. Takes a few milliseconds. Raises ConfigError
    for a certificate or a key that cannot be used."""
    if certificate is None:
        return None
    context, digest = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), hashlib.sha256()
    try:
        with ExitStack() as opened:

            def again(path: Path, what: str) -> str:
                try:
                    file = opened.enter_context(open_own(path, what))
                except OSError as error:
                    raise ConfigError(
                        f"{what} {path} cannot be read: {reason_of(error)}; {_REMEDY}"
                    ) from None
                if os.fstat(file.fileno()).st_size > MAX_FILE:
                    raise ConfigError(f"{what} {path} is larger than {MAX_FILE >> 20} MiB")
                digest.update(hashlib.sha256(file.read(MAX_FILE)).digest())
                return path_again(file, path)

            chain = again(certificate, "the certificate")
            private = None if key is None else again(key, "the key")
            context.load_cert_chain(chain, private, password=lambda: "")
    except ssl.SSLError as error:
        raise ConfigError(f"{_wrong(error, certificate, key)}; {_REMEDY}") from None
    except OSError as error:
        raise ConfigError(
            f"the certificate {certificate} cannot be read: {reason_of(error)}; {_REMEDY}"
        ) from None
    context.set_alpn_protocols(["http/1.1"])
    return WebCertificate(context, digest.digest())
