"""What upstreams are asked, and what of their answers is believed, passed on and kept."""

from __future__ import annotations

import contextlib
import struct

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.dns_fakes import answered, inquiry, query, reply, text
from tun.dns.answer import encode
from tun.dns.codes import DAY, FORMERR, REFUSED
from tun.dns.inquiry import BadAnswer, Inquiry, digest
from tun.dns.query import parse_query

HEADER = struct.Struct("!6H")
QUESTION = b"\x03www\x07example\x00\x00\x01\x00\x01"


def head(
    flags: int = 0x0100, questions: int = 1, answers: int = 0, authorities: int = 0, additional: int = 0
) -> bytes:
    return HEADER.pack(0x1234, flags, questions, answers, authorities, additional)


def test_nothing_of_the_client_reaches_an_upstream() -> None:
    options = [dns.edns.ECSOption("198.51.100.0", 24), dns.edns.GenericOption(10, b"8 octets")]  # type: ignore[arg-type]
    asked = parse_query(query("wWw.eXample.", use_edns=0, options=options, flags=0))
    sent = dns.message.from_wire(Inquiry(asked.key).wire())
    assert sent.options == ()
    assert str(sent.question[0].name) == "www.example."
    assert sent.payload == 1232
    assert sent.flags & dns.flags.RD
    assert sent.id == 0


def test_questions_in_tls_have_sizes_that_tell_little() -> None:
    assert (
        len(inquiry("a.example.").wire(128)) == len(inquiry("a.much.longer.name.example.").wire(128)) == 128
    )


def test_errors_of_a_server_have_no_records_and_are_not_kept() -> None:
    answer = answered("www.example. 300 IN A 192.0.2.1", rcode=REFUSED)  # type: ignore[arg-type]
    assert (answer.rcode, answer.ttls, answer.lifetime) == (REFUSED, (), 0)


def test_extended_errors_are_bounded() -> None:
    asked = inquiry()
    question = dns.message.from_wire(asked.wire())
    many = [(code, "x" * length) for code, length in ((1, 255), (2, 256), (3, 0), (4, 1), (5, 1))]
    edes = digest(reply(question, rcode=REFUSED, edes=many), asked, ipv6=True).edes
    assert edes == (b"\0\1" + b"x" * 255, b"\0\2", b"\0\3", b"\0\4x")


def test_a_text_that_is_no_utf8_does_not_cost_the_answer() -> None:
    asked = inquiry()
    wire = reply(dns.message.from_wire(asked.wire()), "www.example. 300 IN A 192.0.2.1", edes=[(3, "bad")])
    answer = digest(wire.replace(b"bad", b"b\xffd"), asked, ipv6=True)
    assert answer.lifetime == 300
    assert answer.edes == (b"\0\3" + "b\ufffdd".encode(),)


def test_an_error_may_come_without_a_question() -> None:
    assert digest(HEADER.pack(0, 0x8001, 0, 0, 0, 0), inquiry(), ipv6=True).rcode == FORMERR
    with pytest.raises(BadAnswer):
        digest(HEADER.pack(0, 0x8000, 0, 0, 0, 0), inquiry(), ipv6=True)


GOOD = reply(dns.message.from_wire(inquiry().wire()), "www.example. 300 IN A 192.0.2.1")


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        GOOD[:5],
        GOOD[:20],
        GOOD[:40],
        GOOD[:2] + b"\0" + GOOD[3:],  # a question
        GOOD[:2] + b"\x83" + GOOD[3:],  # truncated
        GOOD[:2] + b"\xa8" + GOOD[3:],  # the answer to an UPDATE
        GOOD.replace(b"\x03www", b"\x03wwx", 1),
        GOOD.replace(b"\x07example\0\0\1", b"\x07example\0\0\x1c", 1),
        GOOD.replace(b"\xc0\x0c", b"\xc0\xff", 1),
        GOOD.replace(b"\xc0\x0c", b"\xc0\x1d", 1),
        GOOD[:7] + b"\xff" + GOOD[8:],
    ],
)
def test_what_is_no_answer_to_the_question(wire: bytes) -> None:
    with pytest.raises(BadAnswer):
        digest(wire, inquiry(), ipv6=True)


def test_types_that_differ_by_a_case_bit_are_not_confused() -> None:
    https = inquiry(rdtype="HTTPS")  # 65, the code of "A"
    other = Inquiry((https.key[0], 97, 0))
    assert not https.is_answered_by(reply(dns.message.from_wire(other.wire())))


@given(st.binary(max_size=300), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.booleans())
def test_random_answers_raise_nothing_else(tail: bytes, a: int, b: int, c: int, ipv6: bool) -> None:
    for wire in (tail, HEADER.pack(0, 0x8180, 1, a, b, c) + QUESTION + tail):
        try:
            answer = digest(wire, inquiry(), ipv6=ipv6)
        except BadAnswer:
            continue
        dns.message.from_wire(encode(answer, parse_query(query()), 512, age=3))


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4))
def test_damaged_answers_raise_nothing_else(changes: list[tuple[int, int]]) -> None:
    wire = bytearray(GOOD)
    for at, value in changes:
        wire[at] = value
    with contextlib.suppress(BadAnswer):
        digest(bytes(wire), inquiry(), ipv6=False)


def test_a_bomb_of_pointers_costs_little() -> None:
    """Names that lead through thousands of pointers, each record again."""
    chain = b"".join((0xC000 | 12 + len(QUESTION) + 10 + 2 * i - 2).to_bytes(2) for i in range(1, 4000))
    first = b"\0\0\x10\0\1\0\0\0\0"  # a TXT record to hold them
    wire = HEADER.pack(0, 0x8180, 1, 400, 0, 0) + QUESTION + first + len(chain).to_bytes(2) + chain
    wire += ((0xC000 | (len(wire) - 2) & 0x3FFF).to_bytes(2) + b"\0\1\0\1\0\0\0\0\0\0") * 399
    with pytest.raises(BadAnswer):
        digest(wire, inquiry(), ipv6=True)


def test_no_ipv6_address_passes_where_there_is_no_ipv6() -> None:
    everything = answered(
        "www.example. 300 IN A 192.0.2.1", "www.example. 300 IN AAAA 2001:db8::1", rdtype="ANY", ipv6=False
    )
    assert [rrset.rdtype for rrset in text(everything, query(rdtype="ANY")).answer] == [1]
    binding = '1 . alpn="h2" ipv4hint="192.0.2.1" ipv6hint="2001:db8::1"'
    https = answered(f"www.example. 300 IN HTTPS {binding}", rdtype="HTTPS", ipv6=False)
    assert "ipv6hint" not in str(text(https, query(rdtype="HTTPS")).answer[0])
    assert "ipv4hint" in str(text(https, query(rdtype="HTTPS")).answer[0])
    untouched = answered(f"www.example. 300 IN HTTPS {binding}", rdtype="HTTPS")
    assert "ipv6hint" in str(text(untouched, query(rdtype="HTTPS")).answer[0])


def test_a_binding_that_needs_its_ipv6_hint_goes() -> None:
    bindings = '1 . mandatory="ipv6hint" ipv6hint="2001:db8::1"|2 . alpn="h2"'
    answer = answered(f"www.example. 300 IN HTTPS {bindings}", rdtype="HTTPS", ipv6=False)
    assert str(text(answer, query(rdtype="HTTPS")).answer[0]).endswith('HTTPS 2 . alpn="h2"')


def test_signatures_go_with_what_they_signed() -> None:
    signature = "5 2 300 20300101000000 20200101000000 1 example. AAAA"
    answer = answered(
        "www.example. 300 IN A 192.0.2.1",
        f"www.example. 300 IN RRSIG A {signature}",
        f"www.example. 300 IN RRSIG AAAA {signature}",
        'www.example. 300 IN HTTPS 1 . ipv6hint="2001:db8::1"',
        f"www.example. 300 IN RRSIG HTTPS {signature}",
        rdtype="ANY",
        ipv6=False,
    )
    kept = text(answer, query(rdtype="ANY")).answer
    assert [(rrset.rdtype, rrset.covers) for rrset in kept] == [(1, 0), (46, 1), (65, 0)]


# --- made here -----------------------------------------------------------------------------------------------------


def test_no_answer_lives_longer_than_a_day() -> None:
    found = answered("www.example. 604800 IN A 192.0.2.1")
    assert found.lifetime == DAY
    assert [ttl for _, ttl in found.ttls] == [DAY]
