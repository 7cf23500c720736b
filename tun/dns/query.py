"""What clients send: a message's bytes to a `Query`, and the replies that need no answer.

dnspython reads the messages. What this file adds is the judgement: what is refused, and what is dropped. The reading of
a question is remembered by its bytes behind the id, since clients repeat themselves and reading takes 150 us.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

import dns.exception
import dns.message

from cryprq_proxy.errors import CryprqError

from . import codes
from .codes import HEADER, QUESTION, Key

_OPT: Final = struct.Struct("!BHHBBHH")
"""Owner (the root), type, payload size, upper rcode bits, version, flags, length: RFC 6891 section 6.1.2."""
_MEMORABLE: Final = 256
"""Bytes of the longest query whose reading is remembered."""


class BadQuery(CryprqError):
    """Not a question that is answered; `reply` is what its sender gets, or nothing."""

    def __init__(self, text: str, reply: bytes | None) -> None:
        super().__init__(text)
        self.reply = reply


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
        return self.name, self.rdtype, self.do << 1 | bool(self.flags & codes.CD)


def parse_query(wire: bytes) -> Query:
    """Read a client's message. Raises `BadQuery` with the reply, if there is one: FORMERR, NOTIMP, REFUSED, BADVERS.

    Neither a message too short for a header nor one that is an answer itself gets a reply: two servers could go on
    like that for ever.
    """
    if len(wire) < HEADER.size:
        raise BadQuery("the message is too short", None)
    id_, flags, questions, answers, authorities, _ = HEADER.unpack_from(wire)
    if flags & codes.QR:
        raise BadQuery("the message is an answer", None)
    if flags & codes.OPCODE:
        raise _refusal(id_, flags, codes.NOTIMP, "the operation is not a query")
    if questions != 1:
        raise _refusal(id_, flags, codes.FORMERR, "the message has not one question")
    if len(wire) > codes.MAX_QUERY:
        raise _refusal(id_, flags, codes.FORMERR, "the message is too long")
    transfer = bool(answers or authorities)  # IXFR carries a record, RFC 1995 section 3
    if len(wire) <= _MEMORABLE:
        name, question, rdtype, opt = _read_remembered(wire[2:], transfer)
    else:
        name, question, rdtype, opt = _read(wire[2:], transfer)
    if not question:
        raise _refusal(id_, flags, codes.FORMERR, "the message is malformed")
    edns = opt is not None
    payload, do, version = opt or (codes.MIN_PAYLOAD, False, 0)
    query = Query(
        id_, flags, question, name, rdtype, edns, do, min(max(payload, codes.MIN_PAYLOAD), codes.PAYLOAD)
    )
    if version:
        raise BadQuery("the version of EDNS is unknown", error_reply(query, codes.BADVERS))
    if question[-2:] != b"\0\1" or rdtype in codes.META_TYPES:
        raise BadQuery("the class or type is not answered", error_reply(query, codes.REFUSED))
    if transfer or rdtype in (0, codes.OPT):
        raise BadQuery("the message is malformed", error_reply(query, codes.FORMERR))
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
    question = tail[start : start + len(name) + QUESTION.size]
    # A name in the question can only be compressed by pointing into the header, which makes no sense.
    if question[: len(name)].lower() != name or question[len(name) :] != QUESTION.pack(
        asked.rdtype, asked.rdclass
    ):
        return _MALFORMED
    opt = None if message.opt is None else (message.payload, bool(message.ednsflags & codes.DO), message.edns)
    return name, question, int(asked.rdtype), opt


_read_remembered = lru_cache(maxsize=2048)(_read)


def _refusal(id_: int, flags: int, rcode: int, text: str) -> BadQuery:
    return BadQuery(
        text, HEADER.pack(id_, codes.QR | flags & (codes.OPCODE | codes.RD) | codes.RA | rcode, 0, 0, 0, 0)
    )


def error_reply(query: Query, rcode: int, ede: int | None = None) -> bytes:
    """A reply without records."""
    flags = codes.QR | codes.RA | query.flags & (codes.RD | codes.CD) | rcode & 15
    opt = opt_record(query, rcode, () if ede is None else (ede.to_bytes(2),))
    return HEADER.pack(query.id, flags, 1, 0, 0, query.edns) + query.question + opt


def opt_record(query: Query, rcode: int, edes: Iterable[bytes]) -> bytes:
    """The OPT record of a reply; none for a client that sent none (RFC 6891 section 7).

    `edes` are extended errors: a code in two bytes, then perhaps a text.
    """
    if not query.edns:
        return b""
    options = b"".join([QUESTION.pack(codes.EDE_OPTION, len(ede)) + ede for ede in edes])
    return _OPT.pack(0, codes.OPT, codes.PAYLOAD, rcode >> 4, 0, codes.DO * query.do, len(options)) + options
