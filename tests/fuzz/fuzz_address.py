"""Invariant: `decode` and `parse_host_port` raise AddressError or nothing, and what they yield encodes to itself."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.address import AddressError, decode, encode, parse_host_port


def fuzz(data: bytes) -> None:
    try:
        destination, end = decode(data)
    except AddressError:
        pass
    else:
        wire = encode(destination)
        if end > len(data) or decode(wire) != (destination, len(wire)):
            raise RuntimeError(f"{destination!r} is not canonical")
    try:
        destination = parse_host_port(data.decode("utf-8", "surrogateescape"), 80)
    except AddressError:
        return
    if decode(encode(destination))[0] != destination or parse_host_port(str(destination)) != destination:
        raise RuntimeError(f"{destination!r} is not canonical")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
