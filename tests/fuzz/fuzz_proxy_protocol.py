"""Invariant: a PROXY header gives a valid address or HandshakeError, the same in any pieces, and is bounded."""

from __future__ import annotations

import sys
from ipaddress import ip_address
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.errors import HandshakeError
    from cryprq_proxy.exit.proxy_protocol import MAX_HEADER, ProxyHeader


def read(data: bytes, size: int) -> tuple[str, int] | None:
    """The address and the header's length; None for what is refused, or not whole."""
    header, taken = ProxyHeader(), 0
    try:
        while header.missing:
            piece = data[taken : taken + min(size, header.missing)]
            if not piece:
                return None
            header.feed(piece)
            taken += len(piece)
    except HandshakeError:
        return None
    return header.client("192.0.2.1"), taken


def fuzz(data: bytes) -> None:
    whole = read(data, MAX_HEADER)
    for size in (1, 3, 17):
        if read(data, size) != whole:
            raise RuntimeError("pieces change what is read")
    if whole is not None:
        ip_address(whole[0])
        if whole[1] > MAX_HEADER:
            raise RuntimeError("a header was longer than the bound")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
