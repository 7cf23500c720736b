"""Answers as they are kept, and as clients get them.

An `Answer` is the bytes that dnspython wrote, with the places of its TTLs. To give it to a client, `encode` overwrites
the id, the flags, the question (the client's own spelling, so that its 0x20 bits survive) and the TTLs, and appends an
OPT record. That takes 6 us; parsing and writing anew takes 150.

    0        2        4                 12                 required       len(wire)
    | id     | flags  | four counts     | question | answer, authority | additional |
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.wire

from .codes import AD, CD, HEADER, LOCAL_TTL, MAX_MESSAGE, QR, QUESTION, RA, RD, STALE_TTL, TC
from .query import Query, opt_record

_TTL: Final = struct.Struct("!I")


class Answer(NamedTuple):
    """An answer as it is kept; see the top of this file."""

    wire: bytes
    """Without id, without OPT record, the question in lower case."""
    ttls: tuple[tuple[int, int], ...]
    """Offset and value of each TTL."""
    required: int
    """Where the additional section begins, which may be left out."""
    lifetime: int
    """Seconds that it may be kept; 0 for not at all."""
    edes: tuple[bytes, ...] = ()
    """The upstream's extended errors, as in `opt_record`."""

    @property
    def rcode(self) -> int:
        return self.wire[3] & 15


def encode(
    answer: Answer, query: Query, limit: int, *, age: int = 0, stale: bool = False, ede: int | None = None
) -> bytes:
    """`answer` as the reply to `query`, at most `limit` bytes: its additional section goes first, then TC is set.

    `age` is in seconds and comes off all TTLs; a stale answer gets TTLs of 30. `ede` is an extended error of our own
    beside the upstream's, whose texts go before any record does.
    """
    edes = answer.edes if ede is None else (ede.to_bytes(2), *answer.edes)
    opt = opt_record(query, answer.rcode, edes)
    wire = bytearray(answer.wire)
    if edes and len(wire) + len(opt) > limit:
        opt = opt_record(query, answer.rcode, [code[:2] for code in edes])
    flags = QR | RA | query.flags & (RD | CD) | answer.rcode
    if query.do or query.flags & AD:  # RFC 6840 section 5.8
        flags |= wire[3] & AD
    additional = int.from_bytes(wire[10:12])
    if len(wire) + len(opt) > limit:
        del wire[answer.required :]
        additional = 0
        if len(wire) + len(opt) > limit:
            del wire[HEADER.size + len(query.question) :]
            wire[6:10] = bytes(4)
            flags |= TC
    end = len(wire)
    for offset, ttl in answer.ttls:
        if offset < end:
            _TTL.pack_into(wire, offset, min(ttl, STALE_TTL) if stale else max(ttl - age, 0))
    wire[0:4] = QUESTION.pack(query.id, flags)
    wire[10:12] = (additional + query.edns).to_bytes(2)
    wire[HEADER.size : HEADER.size + len(query.question)] = query.question
    return bytes(wire + opt)


def synthesise(query: Query, rcode: int, rdtype: int = 0, texts: Sequence[str] = ()) -> Answer:
    """An answer made here: records of `rdtype` with `texts` as their values, or none."""
    if not texts:
        return empty(query.name, query.rdtype, rcode, LOCAL_TTL)
    name, _ = dns.name.from_wire(query.name, 0)
    message = dns.message.QueryMessage(id=0)
    message.flags = dns.flags.Flag(QR | RA)
    message.set_rcode(dns.rcode.Rcode(rcode))
    kind = dns.rdatatype.RdataType.make(query.rdtype)
    message.question.append(dns.rrset.RRset(name, dns.rdataclass.IN, kind))
    kind = dns.rdatatype.RdataType.make(rdtype)
    message.answer.append(dns.rrset.from_text_list(name, LOCAL_TTL, dns.rdataclass.IN, kind, texts))
    return keep(message, LOCAL_TTL)


def empty(name: bytes, rdtype: int, rcode: int, lifetime: int) -> Answer:
    """An answer without records: half of all answers where there is no IPv6, so no detour by dnspython."""
    wire = HEADER.pack(0, QR | RA | rcode, 1, 0, 0, 0) + name + QUESTION.pack(rdtype, 1)
    return Answer(wire, (), len(wire), lifetime)


def keep(message: dns.message.Message, lifetime: int) -> Answer:
    """Write `message`, and find the places of its TTLs in what was written. Raises `DNSException`."""
    message.id = 0
    message.flags &= dns.flags.Flag(0xFFFF ^ (TC | int(dns.flags.AA)))
    wire = message.to_wire(max_size=MAX_MESSAGE)
    _, _, _, answers, authorities, additional = HEADER.unpack_from(wire)
    parser = dns.wire.Parser(wire, HEADER.size)
    parser.get_name(decompress=True)
    parser.seek(parser.current + QUESTION.size)
    ttls = []
    required = parser.current
    for number in range(answers + authorities + additional):
        parser.get_name(decompress=True)
        _, _, ttl, length = parser.get_struct("!HHIH")
        ttls.append((parser.current - 6, ttl))
        parser.seek(parser.current + length)
        if number < answers + authorities:
            required = parser.current
    return Answer(wire, tuple(ttls), required, lifetime)
