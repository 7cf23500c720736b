"""What upstreams are asked and say: an `Inquiry` to bytes, and a server's bytes to an `Answer`.

dnspython reads and writes the messages. What this file adds is the judgement: whether a message answers the question,
what of it is passed on, and how long it lives.
"""

from __future__ import annotations

from collections.abc import Iterable

import dns.edns
import dns.exception
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.wire
from dns.rdtypes.svcbbase import ParamKey, SVCBBase

from cryprq_proxy.errors import CryprqError

from . import codes
from .answer import Answer, empty, keep
from .codes import HEADER, QUESTION, Key


class BadAnswer(CryprqError):
    """An upstream's message that is no answer to the question asked, or no message."""


class Inquiry:
    """A question as upstreams get it: name, type and the DO and CD bits, and nothing else of the client.

    So no cookie and no client subnet (RFC 7871) of an application ever reaches a server. Recursion is always desired,
    and AD asked for, whatever the client said, since the answer is kept for other clients too.
    """

    __slots__ = ("_written", "key", "question")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.question = key[0] + QUESTION.pack(key[1], 1)
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
                payload=codes.PAYLOAD,
                id=0,
                flags=codes.RD | codes.AD | codes.CD * (bits & 1),
                pad=padding,
            )
            found = self._written[padding] = message.to_wire()
        return found

    def is_answered_by(self, wire: bytes) -> bool:
        """Whether a message is an answer to this very question. An error may come without a question."""
        if len(wire) < HEADER.size or not wire[2] & 0x80 or wire[2] & 0x78:
            return False
        if wire[4:6] == b"\0\0":
            return wire[3] & 15 in (codes.FORMERR, codes.SERVFAIL, codes.NOTIMP, codes.REFUSED)
        end = HEADER.size + len(self.question)
        spelled = wire[HEADER.size : end]
        return (
            wire[4:6] == b"\0\1"
            and spelled[:-4].lower() == self.question[:-4]
            and spelled[-4:] == self.question[-4:]
        )


class _ExtendedError(dns.edns.EDEOption):
    """As dnspython has it, but a text that is no UTF-8, or was cut within a character, does not cost the answer."""

    @classmethod
    def from_wire_parser(cls, otype: dns.edns.OptionType | str, parser: dns.wire.Parser) -> dns.edns.Option:
        code = dns.edns.EDECode.make(parser.get_uint16())
        text = parser.get_remaining().removesuffix(b"\0").decode("utf-8", "replace")
        return cls(code, text or None)


dns.edns.register_type(_ExtendedError, dns.edns.OptionType.EDE)


def digest(wire: bytes, inquiry: Inquiry, *, ipv6: bool) -> Answer:
    """Judge an upstream's message: at most 65,535 bytes, any content. Raises `BadAnswer`.

    The answer may be an error of the server (`rcode` tells); it then has no records. The server's extended errors are
    kept with it. Without `ipv6` all AAAA records and all IPv6 hints of service bindings (RFC 9460) are taken out, and
    the signatures that no longer fit.
    """
    if not inquiry.is_answered_by(wire):
        raise BadAnswer("the server answered another question")
    if wire[2] & codes.TC >> 8:
        raise BadAnswer("the server cut its answer short on a stream")
    try:
        message = dns.message.from_wire(wire, keyring=False, ignore_trailing=True)
        rcode = int(message.rcode())
        edes = _extended_errors(message)
        if rcode not in (codes.NOERROR, codes.NXDOMAIN, codes.YXDOMAIN):
            answer = empty(*inquiry.key[:2], rcode if rcode < codes.BADVERS else codes.SERVFAIL, 0)
        else:
            answer = keep(message, _prepare(message, inquiry.key[1], ipv6))
        return answer._replace(edes=edes) if edes else answer
    except dns.exception.DNSException:
        raise BadAnswer("the server sent a malformed answer") from None


def _extended_errors(message: dns.message.Message) -> tuple[bytes, ...]:
    found = [option.to_wire() for option in message.options if isinstance(option, dns.edns.EDEOption)]
    return tuple(
        ede if len(ede) <= 2 + codes.MAX_EDE_TEXT else ede[:2]
        for ede in found[: codes.MAX_EDES]
        if ede is not None
    )


def _prepare(message: dns.message.Message, rdtype: int, ipv6: bool) -> int:
    """Take out what is not passed on, and bound all TTLs. Returns how long the answer lives, in seconds."""
    message.opt = None
    message.tsig = None
    for number in (1, 2, 3):
        section = [rrset for rrset in message.sections[number] if rrset.rdclass == dns.rdataclass.IN]
        message.sections[number] = section if ipv6 else _without_ipv6(section)
        for rrset in message.sections[number]:
            rrset.ttl = min(rrset.ttl, codes.DAY)
    if message.rcode() == codes.YXDOMAIN:
        return 0
    found = message.rcode() == codes.NOERROR and any(
        rdtype in (codes.ANY, rrset.rdtype) for rrset in message.answer
    )
    if not found:
        # RFC 2308 section 5: an absence lives as long as its SOA record says; without one it is not kept.
        soa = next((rrset for rrset in message.authority if rrset.rdtype == codes.SOA), None)
        if soa is None:
            return 0
        soa.ttl = min(soa.ttl, soa[0].minimum, codes.NEGATIVE_SECONDS)
    return min((rrset.ttl for section in message.sections[1:] for rrset in section), default=0)


def _without_ipv6(section: Iterable[dns.rrset.RRset]) -> list[dns.rrset.RRset]:
    kept = []
    changed: set[tuple[dns.name.Name | None, int]] = {(None, codes.AAAA)}
    for rrset in section:
        if any(isinstance(rd, SVCBBase) and ParamKey.IPV6HINT in rd.params for rd in rrset):
            changed.add((rrset.name, int(rrset.rdtype)))
            bindings = [binding for rd in rrset if (binding := _without_hint(rd)) is not None]
            if bindings:
                kept.append(dns.rrset.from_rdata_list(rrset.name, rrset.ttl, bindings))
        elif rrset.rdtype != codes.AAAA:
            kept.append(rrset)
    return [
        rrset
        for rrset in kept
        if rrset.rdtype != codes.RRSIG
        or changed.isdisjoint({(None, int(rrset.covers)), (rrset.name, int(rrset.covers))})
    ]


def _without_hint(rd: dns.rdata.Rdata) -> dns.rdata.Rdata | None:
    """A service binding without its IPv6 addresses; None if they are mandatory."""
    if not isinstance(rd, SVCBBase) or ParamKey.IPV6HINT not in rd.params:
        return rd
    params = {key: value for key, value in rd.params.items() if key != ParamKey.IPV6HINT}
    try:
        return type(rd)(rd.rdclass, rd.rdtype, rd.priority, rd.target, params)
    except ValueError:
        # The hint is among the mandatory keys.
        return None
