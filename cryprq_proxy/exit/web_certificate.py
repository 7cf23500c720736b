"""The certificate of an exit at whose second entrance TLS ends: read at the start, and at each reload."""

from __future__ import annotations

import hashlib
import os
import ssl
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ..base.file_access import open_own, path_again
from ..base.paths import MAX_FILE
from ..errors import ConfigError, reason_of


@dataclass(frozen=True, slots=True)
class WebCertificate:
    """A certificate with its key, for TLS handshakes. Two are the same if they are of the same files' content."""

    context: ssl.SSLContext = field(compare=False, repr=False)
    digest: bytes = field(repr=False)


def read_certificate(certificate: Path | None, key: Path | None) -> WebCertificate | None:
    """Of these PEM files, which may be one; None without a certificate. Takes a few milliseconds. Raises ConfigError
    for a certificate or a key that cannot be used."""
    if certificate is None:
        return None
    context, digest = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), hashlib.sha256()
    try:
        with ExitStack() as opened:

            def again(path: Path, what: str) -> str:
                file = opened.enter_context(open_own(path, what))
                if os.fstat(file.fileno()).st_size > MAX_FILE:
                    raise ConfigError(f"{what} {path} is larger than {MAX_FILE >> 20} MiB")
                digest.update(hashlib.sha256(file.read(MAX_FILE)).digest())
                return path_again(file, path)

            chain = again(certificate, "the certificate")
            private = None if key is None else again(key, "the key")
            context.load_cert_chain(chain, private, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the certificate {certificate} and its key cannot be used: {reason_of(error)}; "
            "mend certificate and key in [websocket]"
        ) from None
    context.set_alpn_protocols(["http/1.1"])
    return WebCertificate(context, digest.digest())
