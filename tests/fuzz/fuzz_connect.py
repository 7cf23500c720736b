"""Invariant: an upstream HTTP proxy's answer and a person's endpoint give a value or the one error that each documents,
and an answer that is read in pieces is judged as it is in one."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.address import AddressError
    from cryprq_proxy.carriers.dial.endpoint import CarrierKind, parse_endpoint
    from cryprq_proxy.carriers.dial.http_connect import answer

KINDS: tuple[CarrierKind, ...] = ("tcp", "ws", "wss")


def status(head: bytes) -> int | str | None:
    try:
        return answer(head)
    except ValueError as error:
        return str(error)


def fuzz(data: bytes) -> None:
    whole = status(data)
    for size in range(min(len(data), 64)):
        if isinstance(status(data[:size]), str) and isinstance(whole, int):
            raise RuntimeError("an answer was refused before it was whole, and good after")
    try:
        endpoint = parse_endpoint(KINDS[len(data) % 3], data.decode("latin-1"))
    except AddressError:
        return
    if not str(endpoint).isprintable():
        raise RuntimeError("control characters in an endpoint")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
