"""Invariant: whatever comes from a resolver, it is a NameAnswer with addresses or AnswerError; any hosts file reads."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["tun", "dns"]):
    import dns.message
    import dns.rdatatype

    from tun.resolver.bootstrap import AnswerError, from_hosts, read_answer
    from tun.resolver.known_addresses import MAX_ADDRESSES

QUERIES = [dns.message.make_query("exit.example.org", kind, id=7) for kind in ("A", "AAAA")]
HEADS = [query.to_wire()[:2] + b"\x80" + query.to_wire()[3:] for query in QUERIES]


def fuzz(data: bytes) -> None:
    for query, head in zip(QUERIES, HEADS, strict=True):
        # As it comes; and with what makes it an answer to the question, so that the rest is looked at.
        answered = (
            head[:2] + b"\x80" + data[:1] + head[4:6] + data[1:7].ljust(6, b"\x00") + head[12:] + data[7:]
        )
        for wire in (data, answered):
            try:
                addresses = read_answer(wire, query).addresses
            except AnswerError:
                continue
            version = 4 if query.question[0].rdtype == dns.rdatatype.A else 6
            if len(addresses) > MAX_ADDRESSES or any(
                ipaddress.ip_address(address).version != version for address in addresses
            ):
                raise RuntimeError(f"{addresses!r} is no answer")
    for address in from_hosts(data, "localhost"):
        ipaddress.ip_address(address)


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
