"""Answers as clients get them: whose id, flags, case and TTLs they have, and how they are cut."""

from __future__ import annotations

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

from tests.support.dns_fakes import SOA, answered, inquiry, query, record, reply, text
from tun.dns import codes
from tun.dns.answer import encode, synthesise
from tun.dns.codes import NXDOMAIN
from tun.dns.inquiry import digest
from tun.dns.query import parse_query


def test_ids_flags_case_and_ttls_are_those_of_the_asker() -> None:
    answer = answered(
        "www.example. 300 IN CNAME other.example.", "other.example. 90000 IN A 192.0.2.1|192.0.2.2"
    )
    assert answer.lifetime == 300
    message = text(answer, query("WWW.exAmple.", id=7), age=100)
    assert message.id == 7
    assert str(message.question[0].name) == "WWW.exAmple."
    assert str(message.answer[0]) == "WWW.exAmple. 200 IN CNAME other.exAmple."  # by compression
    assert message.answer[1].ttl == 86_300  # a day at most, and 100 seconds less
    assert message.flags == dns.flags.QR | dns.flags.RD | dns.flags.RA
    assert not text(answer, query(flags=0)).flags & dns.flags.RD
    assert text(answer, query(flags=0x0110)).flags & dns.flags.CD
    assert text(answer, query()).edns == -1


def test_the_smallest_ttl_of_a_set_counts() -> None:
    asked = inquiry()
    one = reply(dns.message.from_wire(asked.wire()), "www.example. 300 IN A 192.0.2.1")
    two = bytearray(one)
    two[7] = 2  # a second record of the set, with another TTL
    opt = two.index(b"\0\0\x29")
    two[opt:opt] = b"\xc0\x0c\0\1\0\1\0\0\0\x07\0\4\xc0\0\2\2"
    answer = digest(bytes(two), asked, ipv6=True)
    assert answer.lifetime == 7
    assert str(text(answer, query()).answer[0]).count(" 7 IN A ") == 2


def test_ttls_do_not_fall_below_zero_and_stale_ones_are_thirty() -> None:
    answer = answered("www.example. 300 IN A 192.0.2.1")
    assert text(answer, query(), age=400).answer[0].ttl == 0
    assert text(answer, query(), age=400, stale=True).answer[0].ttl == 30


def test_an_authenticated_answer_says_so_to_who_asks() -> None:
    asked = inquiry()
    wire = bytearray(reply(dns.message.from_wire(asked.wire()), "www.example. 300 IN A 192.0.2.1"))
    wire[3] |= 0x20
    answer = digest(bytes(wire), asked, ipv6=True)
    assert not text(answer, query()).flags & dns.flags.AD
    assert text(answer, query(flags=0x0120)).flags & dns.flags.AD
    assert text(answer, query(want_dnssec=True)).flags & dns.flags.AD


def test_absences_live_as_long_as_their_soa_says() -> None:
    for rcode in (0, NXDOMAIN):
        answer = answered(authority=SOA, rcode=rcode)  # type: ignore[arg-type]
        assert answer.lifetime == 60
        assert text(answer, query()).authority[0].ttl == 60
    assert answered(authority=SOA.replace(" 60", " 90000").replace(" 900 ", " 90000 ")).lifetime == 3600
    assert answered(authority=SOA.replace(" 60", " 90000")).lifetime == 900
    assert answered().lifetime == 0
    assert answered("www.example. 30 IN CNAME gone.example.", authority=SOA).lifetime == 30


def test_an_answer_that_is_too_large_for_udp_is_cut() -> None:
    answer = answered("www.example. 300 IN TXT " + "|".join(f'"{i:0100}"' for i in range(20)), rdtype="TXT")
    asked = query(rdtype="TXT", use_edns=0, payload=1232)
    cut = encode(answer, parse_query(asked), 1232)
    assert len(cut) <= 1232
    message = dns.message.from_wire(cut)
    assert message.flags & dns.flags.TC
    assert message.answer == []
    assert message.edns == 0
    whole = text(answer, asked)
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == 20


def test_texts_of_errors_are_left_out_before_records() -> None:
    answer = answered("www.example. 300 IN TXT " + "|".join(f'"{i:0100}"' for i in range(3)), rdtype="TXT")
    answer = answer._replace(edes=(b"\0\x06" + b"x" * 200,))
    asked = query(rdtype="TXT", use_edns=0, payload=512)
    for limit, said in ((512, None), (1232, "x" * 200)):
        message = text(answer, asked, limit)
        assert len(message.answer[0]) == 3
        assert [(int(ede.code), ede.text) for ede in message.extended_errors()] == [(6, said)]


def test_the_additional_section_is_left_out_first() -> None:
    asked = inquiry(rdtype="MX")
    message = dns.message.make_response(dns.message.from_wire(asked.wire()))
    message.answer.append(record("www.example. 300 IN MX 10 mx.example."))
    message.additional.append(record("mx.example. 300 IN A " + "|".join(f"192.0.2.{i}" for i in range(60))))
    answer = digest(message.to_wire(), asked, ipv6=True)
    assert len(text(answer, query(rdtype="MX")).additional[0]) == 60
    small = text(answer, query(rdtype="MX"), 512)
    assert small.additional == []
    assert len(small.answer) == 1
    assert not small.flags & dns.flags.TC


def test_an_answer_made_here() -> None:
    asked = query("Ads.example.", id=3)
    message = text(synthesise(parse_query(asked), 0, codes.A, ("0.0.0.0",)), asked, ede=15)
    assert str(message.answer[0]) == "Ads.example. 60 IN A 0.0.0.0"
    assert text(synthesise(parse_query(asked), NXDOMAIN), asked).rcode() == NXDOMAIN


def test_an_extended_error_goes_to_who_speaks_edns() -> None:
    asked = query(use_edns=0)
    message = text(synthesise(parse_query(asked), NXDOMAIN), asked, ede=codes.EDE_BLOCKED)
    assert [entry.code for entry in message.extended_errors()] == [15]
    assert text(synthesise(parse_query(query()), NXDOMAIN), query(), ede=15).extended_errors() == []
