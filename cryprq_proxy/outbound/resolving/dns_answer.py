"""Questions for the addresses of a name, and what an answer says (RFC 1035 section 4).

A message is read here and not by dnspython, since the peer of an exit may be the one who answers: dnspython takes 50 us
for each record of a message, this reader 3 us, and it stops after `MAX_RECORDS`. tests/ compare the two.

A name is its wire form in lower case: a length and so many bytes for each label, a zero at the end.
"""

from __future__ import annotations

import secrets
import socket
import struct
from typing import Final, NamedTuple

from ...errors import CryprqError
from .hosts_file import MAX_ADDRESSES

A: Final = 1
CNAME: Final = 5
SOA: Final = 6
AAAA: Final = 28
IN: Final = 1

MAX_NAME: Final = 255
MAX_LABEL: Final = 63
MAX_RECORDS: Final = 64
"""Records of a message that are read; those behind them are ignored."""
MAX_LINKS: Final = 16
"""CNAMEs from the name asked for to the one with the addresses, in one message."""

_HEADER: Final = struct.Struct("!6H")
_QUESTION: Final = struct.Struct("!HH")
_RECORD: Final = struct.Struct("!HHIH")
_RECURSION: Final = 0x0100
_TRUNCATED: Final = 0x0200
_NOERROR, _NXDOMAIN = 0, 3
_RCODES: Final = {1: "FORMERR", 2: "SERVFAIL", 4: "NOTIMP", 5: "REFUSED"}
_FAMILIES: Final = {A: (socket.AF_INET, 4), AAAA: (socket.AF_INET6, 16)}


class AnswerError(CryprqError):
    """A server's message that is malformed, answers another question, or says that the server failed."""


class NameAnswer(NamedTuple):
    """Addresses for `seconds`, a name to ask for next, or neither (the name does not exist or has no such address)."""

    addresses: tuple[str, ...] = ()
    seconds: int = 0
    alias: bytes | None = None


class Question(NamedTuple):
    """`kind` is A or AAAA."""

    name: bytes
    kind: int

    def wire(self) -> bytes:
        """The message, with a random id."""
        id = secrets.randbits(16)
        return _HEADER.pack(id, _RECURSION, 1, 0, 0, 0) + self.name + _QUESTION.pack(self.kind, IN)


def encode_name(name: str) -> bytes | None:
    """The wire form of a name with or without the dot at its end; None if DNS cannot hold it."""
    try:
        labels = name.removesuffix(".").encode("ascii").lower().split(b".")
    except UnicodeEncodeError:
        return None
    if not all(0 < len(label) <= MAX_LABEL for label in labels):
        return None
    wire = b"".join([bytes((len(label),)) + label for label in labels]) + b"\0"
    return wire if len(wire) <= MAX_NAME else None


def is_answer(message: bytes, asked: bytes) -> bool:
    """Whether `message` begins like the answer to `asked`: its id, QR set, and exactly its question (in any case)."""
    end = len(asked)
    return (
        len(message) >= end
        and message[:2] == asked[:2]
        and message[2] & 0xF8 == 0x80  # QR, and opcode QUERY
        and message[4:6] == b"\0\1"
        and message[12 : end - 4].lower() == asked[12 : end - 4]
        and message[end - 4 : end] == asked[end - 4 :]
    )


def read_answer(message: bytes, asked: bytes) -> NameAnswer:
    """Read `message` as the answer to `asked`, the wire form of a Question. Raises AnswerError."""
    if not is_answer(message, asked):
        raise AnswerError("an answer to another question")
    _, flags, _, answers, authorities, _ = _HEADER.unpack_from(message)
    if flags & _TRUNCATED:
        raise AnswerError("a cut answer over TCP")
    rcode = flags & 15
    if rcode == _NXDOMAIN:
        return NameAnswer()
    if rcode != _NOERROR:
        raise AnswerError(_RCODES.get(rcode, f"error {rcode}"))
    name, (kind, _) = asked[12:-4], _QUESTION.unpack_from(asked, len(asked) - _QUESTION.size)
    try:
        return _Records(message, len(asked), kind).read(answers, authorities).follow(name)
    except (IndexError, struct.error, ValueError) as error:
        raise AnswerError(f"a malformed answer ({error})") from None


class _Records:
    """The records of one message that count: addresses of the family asked for, CNAMEs, and whether there is a SOA."""

    def __init__(self, message: bytes, at: int, kind: int) -> None:
        self._message = message
        self._at = at
        self._kind = kind
        self._addresses: dict[bytes, tuple[int, list[str]]] = {}
        self._aliases: dict[bytes, tuple[int, bytes]] = {}
        self._complete = False
        self._pointed: dict[bytes, bytes] = {}
        """The pointers of compressed names, and what they point to: most owners are the same name, read once."""

    def read(self, answers: int, authorities: int) -> _Records:
        for number in range(min(answers + authorities, MAX_RECORDS)):
            owner, at = self._name(self._at)
            kind, rdclass, ttl, length = _RECORD.unpack_from(self._message, at)
            begin = at + _RECORD.size
            self._at = begin + length
            if self._at > len(self._message):
                raise ValueError("cut short")
            if rdclass != IN:
                continue
            if number >= answers:
                # RFC 2308 section 2.2: the SOA says that the end of the chain has no such address.
                self._complete = self._complete or kind == SOA
            elif kind == self._kind:
                self._add_address(owner, ttl, self._message[begin : self._at])
            elif kind == CNAME:
                self._aliases.setdefault(owner, (ttl, self._name(begin)[0]))
        return self

    def _name(self, at: int) -> tuple[bytes, int]:
        pointer = self._message[at : at + 2]
        if pointer < b"\xc0":
            return read_name(self._message, at)
        name = self._pointed.get(pointer)
        if name is None:
            name = self._pointed[pointer] = read_name(self._message, at)[0]
        return name, at + 2

    def _add_address(self, owner: bytes, ttl: int, data: bytes) -> None:
        family, size = _FAMILIES[self._kind]
        if len(data) != size:
            raise ValueError("an address of wrong length")
        shortest, addresses = self._addresses.get(owner, (ttl, []))
        if len(addresses) < MAX_ADDRESSES:
            addresses.append(socket.inet_ntop(family, data))
        self._addresses[owner] = min(shortest, ttl), addresses

    def follow(self, name: bytes) -> NameAnswer:
        """What the records say about `name`, at the end of its chain of CNAMEs."""
        asked, seconds = name, (1 << 32) - 1
        for _ in range(MAX_LINKS):
            if name in self._addresses:
                ttl, addresses = self._addresses[name]
                return NameAnswer(tuple(dict.fromkeys(addresses)), min(seconds, ttl))
            if name not in self._aliases:
                return NameAnswer() if name == asked or self._complete else NameAnswer((), seconds, name)
            ttl, name = self._aliases[name]
            seconds = min(seconds, ttl)
        raise ValueError("too many CNAMEs")


def read_name(message: bytes, at: int) -> tuple[bytes, int]:
    """The name at `at`, and where what follows it begins. Raises IndexError or ValueError.

    A compressed name points to an earlier place (RFC 1035 section 4.1.4), each time to one before the last.
    """
    labels: list[bytes] = []
    size, end, before = 1, 0, at
    while length := message[at]:
        if length >= 0xC0:
            end = end or at + 2
            at = (length & 0x3F) << 8 | message[at + 1]
            if at >= before:
                raise ValueError("a name that points forward")
            before = at
            continue
        size += length + 1
        if length > MAX_LABEL or size > MAX_NAME:
            raise ValueError("a name that is too long")
        labels.append(message[at : at + 1 + length])
        at += length + 1
    return b"".join(labels).lower() + b"\0", end or at + 1
