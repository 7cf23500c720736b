"""Invariant: any query gets its own id back or silence, and any answer is judged or refused."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["dns", "tun"]):
    import dns.message

    from tun.dns.answer import encode
    from tun.dns.codes import MAX_MESSAGE, SERVFAIL
    from tun.dns.inquiry import BadAnswer, Inquiry, digest
    from tun.dns.query import BadQuery, error_reply, parse_query

QUESTION = b"\3www\7example\0\0\1\0\1"
INQUIRY = Inquiry((QUESTION[:-4], 1, 0))
ASKED = parse_query(b"\0\1\1\0\0\1\0\0\0\0\0\0" + QUESTION)


def query(wire: bytes) -> None:
    try:
        asked = parse_query(wire)
    except BadQuery as bad:
        if bad.reply is None:
            return
        reply = bad.reply
    else:
        reply = error_reply(asked, SERVFAIL)
        if reply[12 : 12 + len(asked.question)] != asked.question:
            raise RuntimeError("the question is not echoed")
    if reply[:2] != wire[:2] or not dns.message.from_wire(reply).flags & 0x8000:
        raise RuntimeError("the reply is not one to this query")


def answer(wire: bytes, ipv6: bool) -> None:
    try:
        found = digest(wire, INQUIRY, ipv6=ipv6)
    except BadAnswer:
        return
    for limit in (512, MAX_MESSAGE):
        reply = encode(found, ASKED, limit, age=9)
        if len(reply) > limit:
            raise RuntimeError("the reply is larger than the client takes")
        dns.message.from_wire(reply)


def fuzz(data: bytes) -> None:
    kind, rest = data[:1], data[1:]
    if kind < b"\x40":
        query(rest)
    elif kind < b"\x80":  # most random bytes are no header
        query(b"\0\1\1\0\0\1\0\0\0\0\0" + rest)
    elif kind < b"\xc0":
        counts = b"".join(bytes((0, byte & 7)) for byte in rest[:3].ljust(3, b"\0"))
        answer(b"\0\0\x81\x80\0\1" + counts + QUESTION + rest[3:], kind < b"\xa0")
    else:
        answer(rest, True)


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
