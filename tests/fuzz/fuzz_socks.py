"""Invariant: SocksServer and parse_datagram raise nothing else, keep a bounded amount, splits do not matter, and they
accept and understand what asyncio-socks-server does, but for reasons that are known; also on inputs of a grammar."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.fronts.credentials import Credentials
    from cryprq_proxy.fronts.socks import (
        MAX_NEGOTIATION,
        DatagramError,
        SocksServer,
        encode_datagram,
        parse_datagram,
    )

from tests.support import socks_grammar
from tests.support.choices import Choices
from tests.support.socks_oracle import compare_datagram, compare_negotiation

USER = Credentials.parse("u:p")


def negotiate(pieces: list[bytes], credentials: Credentials | None) -> tuple[object, ...]:
    server = SocksServer(credentials)
    output = b""
    for piece in pieces:
        server.receive(piece)
        output += server.take_output()
    if not server.request and not server.failed and sum(map(len, pieces)) > MAX_NEGOTIATION:
        raise RuntimeError("the negotiation has no bound")
    return output, server.request, bool(server.failed), server.leftover


def fuzz(data: bytes) -> None:
    credentials = USER if data[:1] > b"\x80" else None
    rest = data[1:]
    whole = negotiate([rest], credentials)
    if whole != negotiate([rest[i : i + 1] for i in range(len(rest))], credentials):
        raise RuntimeError("the result depends on how the bytes are split")
    for negotiation in (rest, socks_grammar.negotiation(Choices(rest))):
        compare_negotiation(negotiation, credentials)
    for datagram in (rest, socks_grammar.datagram(Choices(rest))):
        compare_datagram(datagram)
    try:
        destination, payload = parse_datagram(rest)
    except DatagramError:
        return
    if parse_datagram(encode_datagram(destination, payload)) != (destination, payload):
        raise RuntimeError("a datagram does not survive its own encoding")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
