"""DNS messages: a client's bytes to a `Query`, an upstream's bytes to an `Answer`, and an `Answer` to bytes.

dnspython reads and writes them. What this file adds is the judgement (what is refused, what is dropped, how long an
answer lives) and one short cut: an `Answer` is kept as the bytes that dnspython wrote, with the places of its TTLs.
Giving it to a client then means to overwrite the id, the flags, the question (the client's own spelling, so that its
0x20 bits survive) and the TTLs, and to append an OPT record: 6 us, where parsing and writing anew takes 150. For the
same reason the reading of a question is remembered by its bytes behind the id; clients repeat themselves.

    0        2        4                 12                 required       len(wire)
    | id     | flags  | four counts     | question | answer, authority | additional |
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.wire
from dns.rdtypes.svcbbase import ParamKey, SVCBBase

from cryprq_proxy.errors import CryprqError

HEADER: Final = struct.Struct("!6H")
MAX_QUERY: Final = 4096
"""Bytes; a question and an OPT record with all options in use are far smaller."""
MAX_MESSAGE: Final = 65_535
MIN_PAYLOAD: Final = 512
PAYLOAD: Final = 1232
"""What fits unfragmented everywhere; the largest UDP answer given, and the size offered to upstreams."""
PADDING: Final = 128
"""Queries on encrypted streams are padded to a multiple of this (RFC 8467 section 4.1)."""
DAY: Final = 86_400
NEGATIVE_SECONDS: Final = 3600
"""RFC 2308 section 5 suggests one to three hours at most."""
STALE_TTL: Final = 30
"""RFC 8767 section 4."""
LOCAL_TTL: Final = 60
"""Of answers made here, in seconds."""

QR: Final = 0x8000
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
AD: Final = 0x0020
CD: Final = 0x0010
DO: Final = 0x8000
_OPCODE: Final = 0x7800

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
YXDOMAIN: Final = 6
BADVERS: Final = 16

A: Final = 1
SOA: Final = 6
PTR: Final = 12
AAAA: Final = 28
OPT: Final = 41
RRSIG: Final = 46
ANY: Final = 255
_META_TYPES: Final = range(128, 255)
"""RFC 6895 section 3.1: types of questions and of transfers (AXFR, IXFR), but for ANY."""

# Extended errors, RFC 8914 section 5.2.
EDE_STALE: Final = 3
EDE_BLOCKED: Final = 15
EDE_STALE_NXDOMAIN: Final = 19
EDE_NO_REACHABLE: Final = 22

_OPT: Final = struct.Struct("!BHHBBHH")
"""Owner (the root), type, payload size, upper rcode bits, version, flags, length: RFC 6891 section 6.1.2."""
_EDE: Final = struct.Struct("!HHH")
_TTL: Final = struct.Struct("!I")
_QUESTION: Final = struct.Struct("!HH")
_MEMORABLE: Final = 256
"""Bytes of the longest query whose reading is remembered."""

type Key = tuple[bytes, int, int]
"""What the cache knows an answer by: name, type, and the DO and CD bits."""


class BadQuery(CryprqError):
    """Not a question that is answered; `reply` is what its sender gets, or nothing."""

    def __init__(self, text: str, reply: bytes | None) -> None:
        super().__init__(text)
        self.reply = reply


class BadAnswer(CryprqError):
    """An upstream's message that is no answer to the question asked, or no message."""


class Query(NamedTuple):
    """A question of a client."""

    id: int
    flags: int
    question: bytes
    """Name as spelled, type and class."""
    name: bytes
    """Lower-case wire form."""
    rdtype: int
    edns: bool
    do: bool
    """Whether DNSSEC records are wanted, RFC 3225."""
    payload: int
    """The largest UDP answer, in bytes: 512 to 1232."""

    @property
    def key(self) -> Key:
        return self.name, self.rdtype, self.do << 1 | bool(self.flags & CD)


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

    @property
    def rcode(self) -> int:
        return self.wire[3] & 15


# --- what clients send ---------------------------------------------------------------------------------------------


def parse_query(wire: bytes) -> Query:
    """Read a client's message. Raises `BadQuery` with the reply, if there is one: FORMERR, NOTIMP, REFUSED, BADVERS.

    Neither a message too short for a header nor one that is an answer itself gets a reply: two servers could go on
    like that for ever.
    """
    if len(wire) < HEADER.size:
        raise BadQuery("the message is too short", None)
    id_, flags, questions, answers, authorities, _ = HEADER.unpack_from(wire)
    if flags & QR:
        raise BadQuery("the message is an answer", None)
    if flags & _OPCODE:
        raise _refusal(id_, flags, NOTIMP, "the operation is not a query")
    if questions != 1:
        raise _refusal(id_, flags, FORMERR, "the message has not one question")
    if len(wire) > MAX_QUERY:
        raise _refusal(id_, flags, FORMERR, "the message is too long")
    transfer = bool(answers or authorities)  # IXFR carries a record, RFC 1995 section 3
    if len(wire) <= _MEMORABLE:
        name, question, rdtype, opt = _read_remembered(wire[2:], transfer)
    else:
        name, question, rdtype, opt = _read(wire[2:], transfer)
    if not question:
        raise _refusal(id_, flags, FORMERR, "the message is malformed")
    edns = opt is not None
    payload, do, version = opt or (MIN_PAYLOAD, False, 0)
    query = Query(id_, flags, question, name, rdtype, edns, do, min(max(payload, MIN_PAYLOAD), PAYLOAD))
    if version:
        raise BadQuery("the version of EDNS is unknown", error(query, BADVERS))
    if question[-2:] != b"\0\1" or rdtype in _META_TYPES:
        raise BadQuery("the class or type is not answered", error(query, REFUSED))
    if transfer or rdtype in (0, OPT):
        raise BadQuery("the message is malformed", error(query, FORMERR))
    return query


type _Read = tuple[bytes, bytes, int, tuple[int, bool, int] | None]
"""Name, question, type, and of EDNS: payload size, DO, version. No question: malformed."""
_MALFORMED: Final[_Read] = (b"", b"", 0, None)


def _read(tail: bytes, question_only: bool) -> _Read:
    """`tail` is the message behind its id."""
    try:
        message = dns.message.from_wire(b"\0\0" + tail, keyring=False, question_only=question_only)
    except dns.exception.DNSException:
        return _MALFORMED
    asked = message.question[0]
    name = asked.name.to_digestable()
    start = HEADER.size - 2
    question = tail[start : start + len(name) + _QUESTION.size]
    # A name in the question can only be compressed by pointing into the header, which makes no sense.
    if question[: len(name)].lower() != name or question[len(name) :] != _QUESTION.pack(
        asked.rdtype, asked.rdclass
    ):
        return _MALFORMED
    opt = None if message.opt is None else (message.payload, bool(message.ednsflags & DO), message.edns)
    return name, question, int(asked.rdtype), opt


_read_remembered = lru_cache(maxsize=2048)(_read)


def _refusal(id_: int, flags: int, rcode: int, text: str) -> BadQuery:
    return BadQuery(text, HEADER.pack(id_, QR | flags & (_OPCODE | RD) | RA | rcode, 0, 0, 0, 0))


# --- what clients get ----------------------------------------------------------------------------------------------


def encode(
    answer: Answer, query: Query, limit: int, *, age: int = 0, stale: bool = False, ede: int | None = None
) -> bytes:
    """`answer` as the reply to `query`, at most `limit` bytes: its additional section goes first, then TC is set.

    `age` is in seconds and comes off all TTLs; a stale answer gets TTLs of 30.
    """
    opt = _opt(query, answer.rcode, ede)
    wire = bytearray(answer.wire)
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
    wire[0:4] = _QUESTION.pack(query.id, flags)
    wire[10:12] = (additional + query.edns).to_bytes(2)
    wire[HEADER.size : HEADER.size + len(query.question)] = query.question
    return bytes(wire + opt)


def error(query: Query, rcode: int, ede: int | None = None) -> bytes:
    """A reply without records."""
    flags = QR | RA | query.flags & (RD | CD) | rcode & 15
    return HEADER.pack(query.id, flags, 1, 0, 0, query.edns) + query.question + _opt(query, rcode, ede)


def _opt(query: Query, rcode: int, ede: int | None) -> bytes:
    """The OPT record of a reply; none for a client that sent none (RFC 6891 section 7)."""
    if not query.edns:
        return b""
    options = b"" if ede is None else _EDE.pack(15, 2, ede)
    return _OPT.pack(0, OPT, PAYLOAD, rcode >> 4, 0, DO * query.do, len(options)) + options


def synthesise(query: Query, rcode: int, rdtype: int = 0, texts: Sequence[str] = ()) -> Answer:
    """An answer made here: records of `rdtype` with `texts` as their values, or none."""
    if not texts:
        return _empty(query.name, query.rdtype, rcode, LOCAL_TTL)
    name, _ = dns.name.from_wire(query.name, 0)
    message = dns.message.QueryMessage(id=0)
    message.flags = dns.flags.Flag(QR | RA)
    message.set_rcode(dns.rcode.Rcode(rcode))
    kind = dns.rdatatype.RdataType.make(query.rdtype)
    message.question.append(dns.rrset.RRset(name, dns.rdataclass.IN, kind))
    kind = dns.rdatatype.RdataType.make(rdtype)
    message.answer.append(dns.rrset.from_text_list(name, LOCAL_TTL, dns.rdataclass.IN, kind, texts))
    return _keep(message, LOCAL_TTL)


def _empty(name: bytes, rdtype: int, rcode: int, lifetime: int) -> Answer:
    """An answer without records: half of all answers where there is no IPv6, so no detour by dnspython."""
    wire = HEADER.pack(0, QR | RA | rcode, 1, 0, 0, 0) + name + _QUESTION.pack(rdtype, 1)
    return Answer(wire, (), len(wire), lifetime)


# --- what upstreams are asked and say ------------------------------------------------------------------------------


class Inquiry:
    """A question as upstreams get it: nothing of the client but name, type and the DO and CD bits.

    So no cookie and no client subnet (RFC 7871) of an application ever reaches a server. Recursion is always desired,
    and AD asked for, whatever the client said: the answer serves others too.
    """

    __slots__ = ("_written", "key", "question")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.question = key[0] + _QUESTION.pack(key[1], 1)
        self._written: dict[int, bytes] = {}

    def wire(self, padding: int = 0) -> bytes:
        """The message with the id 0, padded to a multiple of `padding` bytes."""
        found = self._written.get(padding)
        if found is None:
            name, rdtype, bits = self.key
            message = dns.message.make_query(
                dns.name.from_wire(name, 0)[0],
                dns.rdatatype.RdataType.make(rdtype),
                use_edns=0,
                want_dnssec=bool(bits & 2),
                payload=PAYLOAD,
                id=0,
                flags=RD | AD | CD * (bits & 1),
                pad=padding,
            )
            found = self._written[padding] = message.to_wire()
        return found

    def is_answered_by(self, wire: bytes) -> bool:
        """Whether a message is an answer to this very question. An error may come without a question."""
        if len(wire) < HEADER.size or not wire[2] & 0x80 or wire[2] & 0x78:
            return False
        if wire[4:6] == b"\0\0":
            return wire[3] & 15 in (FORMERR, SERVFAIL, NOTIMP, REFUSED)
        end = HEADER.size + len(self.question)
        spelled = wire[HEADER.size : end]
        return (
            wire[4:6] == b"\0\1"
            and spelled[:-4].lower() == self.question[:-4]
            and spelled[-4:] == self.question[-4:]
        )


def digest(wire: bytes, inquiry: Inquiry, *, ipv6: bool) -> Answer:
    """Judge an upstream's message: at most 65,535 bytes, any content. Raises `BadAnswer`.

    The answer may be an error of the server (`rcode` tells); it then has no records. Without `ipv6` all AAAA records
    and all IPv6 hints of service bindings (RFC 9460) are taken out, and the signatures that no longer fit.
    """
    if not inquiry.is_answered_by(wire):
        raise BadAnswer("the server answered another question")
    if wire[2] & TC >> 8:
        raise BadAnswer("the server cut its answer short on a stream")
    try:
        message = dns.message.from_wire(wire, keyring=False, ignore_trailing=True)
        rcode = int(message.rcode())
        if rcode not in (NOERROR, NXDOMAIN, YXDOMAIN):
            return _empty(*inquiry.key[:2], rcode if rcode < BADVERS else SERVFAIL, 0)
        return _keep(message, _prepare(message, inquiry.key[1], ipv6))
    except dns.exception.DNSException:
        raise BadAnswer("the server sent a malformed answer") from None


def _prepare(message: dns.message.Message, rdtype: int, ipv6: bool) -> int:
    """Take out what is not passed on, and bound all TTLs. Returns how long the answer lives, in seconds."""
    message.opt = None
    message.tsig = None
    for number in (1, 2, 3):
        section = [rrset for rrset in message.sections[number] if rrset.rdclass == dns.rdataclass.IN]
        message.sections[number] = section if ipv6 else _without_ipv6(section)
        for rrset in message.sections[number]:
            rrset.ttl = min(rrset.ttl, DAY)
    if message.rcode() == YXDOMAIN:
        return 0
    found = message.rcode() == NOERROR and any(rdtype in (ANY, rrset.rdtype) for rrset in message.answer)
    if not found:
        # RFC 2308 section 5: an absence lives as long as its SOA record says; without one it is not kept.
        soa = next((rrset for rrset in message.authority if rrset.rdtype == SOA), None)
        if soa is None:
            return 0
        soa.ttl = min(soa.ttl, soa[0].minimum, NEGATIVE_SECONDS)
    return min((rrset.ttl for section in message.sections[1:] for rrset in section), default=0)


def _without_ipv6(section: Iterable[dns.rrset.RRset]) -> list[dns.rrset.RRset]:
    kept = []
    changed: set[tuple[dns.name.Name | None, int]] = {(None, AAAA)}
    for rrset in section:
        if any(isinstance(rd, SVCBBase) and ParamKey.IPV6HINT in rd.params for rd in rrset):
            changed.add((rrset.name, int(rrset.rdtype)))
            bindings = [binding for rd in rrset if (binding := _without_hint(rd)) is not None]
            if bindings:
                kept.append(dns.rrset.from_rdata_list(rrset.name, rrset.ttl, bindings))
        elif rrset.rdtype != AAAA:
            kept.append(rrset)
    return [
        rrset
        for rrset in kept
        if rrset.rdtype != RRSIG
        or changed.isdisjoint({(None, int(rrset.covers)), (rrset.name, int(rrset.covers))})
    ]


def _without_hint(rd: dns.rdata.Rdata) -> dns.rdata.Rdata | None:
    """A service binding without its IPv6 addresses; None if it says that nobody may do without them."""
    if not isinstance(rd, SVCBBase) or ParamKey.IPV6HINT not in rd.params:
        return rd
    params = {key: value for key, value in rd.params.items() if key != ParamKey.IPV6HINT}
    try:
        return type(rd)(rd.rdclass, rd.rdtype, rd.priority, rd.target, params)
    except ValueError:  # it is among the mandatory keys
        return None


def _keep(message: dns.message.Message, lifetime: int) -> Answer:
    """Write `message`, and find the places of its TTLs in what was written. Raises `DNSException`."""
    message.id = 0
    message.flags &= dns.flags.Flag(0xFFFF ^ (TC | int(dns.flags.AA)))
    wire = message.to_wire(max_size=MAX_MESSAGE)
    _, _, _, answers, authorities, additional = HEADER.unpack_from(wire)
    parser = dns.wire.Parser(wire, HEADER.size)
    parser.get_name(decompress=True)
    parser.seek(parser.current + _QUESTION.size)
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
