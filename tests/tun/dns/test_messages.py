"""Questions as clients send them, answers as upstreams do, and what becomes of both."""

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

from tests.support.dns_fakes import SOA, inquiry, query, record, reply
from tun.dns import messages
from tun.dns.messages import (
    BADVERS,
    FORMERR,
    NOTIMP,
    NXDOMAIN,
    PAYLOAD,
    REFUSED,
    SERVFAIL,
    Answer,
    BadAnswer,
    BadQuery,
    Inquiry,
    digest,
    encode,
    error,
    parse_query,
    synthesise,
)

HEADER = struct.Struct("!6H")
QUESTION = b"\x03www\x07example\x00\x00\x01\x00\x01"


def head(
    flags: int = 0x0100, questions: int = 1, answers: int = 0, authorities: int = 0, additional: int = 0
) -> bytes:
    return HEADER.pack(0x1234, flags, questions, answers, authorities, additional)


def refused(wire: bytes) -> dns.message.Message:
    """The reply to a message that is not answered."""
    with pytest.raises(BadQuery) as caught:
        parse_query(wire)
    assert caught.value.reply is not None
    message = dns.message.from_wire(caught.value.reply)
    assert message.id == int.from_bytes(wire[:2])
    assert message.flags & dns.flags.QR
    return message


def answered(
    *records: str, rdtype: str = "A", name: str = "www.example.", ipv6: bool = True, **more: str
) -> Answer:
    asked = inquiry(name, rdtype)
    return digest(reply(dns.message.from_wire(asked.wire()), *records, **more), asked, ipv6=ipv6)  # type: ignore[arg-type]


def text(answer: Answer, asked: bytes, limit: int = 65_535, **options: object) -> dns.message.Message:
    return dns.message.from_wire(encode(answer, parse_query(asked), limit, **options))  # type: ignore[arg-type]


# --- questions -----------------------------------------------------------------------------------------------------


def test_a_plain_question() -> None:
    asked = parse_query(head() + QUESTION)
    assert asked.id == 0x1234
    assert asked.question == QUESTION
    assert asked.name == b"\x03www\x07example\x00"
    assert (asked.rdtype, asked.edns, asked.do, asked.payload) == (1, False, False, 512)
    assert asked.key == (b"\x03www\x07example\x00", 1, 0)


def test_the_name_is_compared_without_case_and_echoed_with_it() -> None:
    asked = parse_query(head() + QUESTION.replace(b"www", b"wWw"))
    assert asked.key == parse_query(head() + QUESTION).key
    assert asked.question[1:4] == b"wWw"


@pytest.mark.parametrize(
    ("offered", "used"), [(0, 512), (511, 512), (600, 600), (1232, 1232), (65_535, 1232)]
)
def test_the_udp_size_of_a_client_is_honoured_within_bounds(offered: int, used: int) -> None:
    assert parse_query(query(use_edns=0, payload=offered)).payload == used


def test_dnssec_and_checking_disabled_belong_to_the_key() -> None:
    keys = {
        parse_query(query(want_dnssec=do, flags=0x0100 | cd)).key for do in (False, True) for cd in (0, 0x10)
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    "wire",
    [b"", b"\x12", head()[:11], head(0x8180) + QUESTION],
    ids=["empty", "one byte", "header cut", "an answer"],
)
def test_what_gets_no_reply(wire: bytes) -> None:
    with pytest.raises(BadQuery) as caught:
        parse_query(wire)
    assert caught.value.reply is None


LONG = b"".join(b"\x3f" + b"a" * 63 for _ in range(5)) + b"\0" + QUESTION[-4:]


@pytest.mark.parametrize(
    ("wire", "rcode"),
    [
        (head(0x2900) + QUESTION, NOTIMP),  # UPDATE
        (head(0x1000) + QUESTION, NOTIMP),  # STATUS
        (head(0x7800) + QUESTION, NOTIMP),
        (head(questions=0), FORMERR),
        (head(questions=2) + QUESTION * 2, FORMERR),
        (head(questions=65_535) + QUESTION, FORMERR),
        (head(), FORMERR),
        (head() + QUESTION[:-1], FORMERR),
        (head() + QUESTION + b"\0", FORMERR),
        (head() + b"\xc0\x0c\0\1\0\1", FORMERR),  # a name that points to itself
        (head() + b"\xc0\x0e\xc0\x0c\0\1\0\1", FORMERR),
        (head() + b"\xc0\x04\0\1\0\1", FORMERR),  # into the header
        (head() + b"\x01a\xc0\x00\0\1\0\1", FORMERR),
        (head() + b"\x40a\0\0\1\0\1", FORMERR),  # label types nobody has
        (head() + LONG, FORMERR),
        (head() + b"\x3f" + b"a" * 20, FORMERR),
        (head(additional=1) + QUESTION + b"\0\0\x29\x04", FORMERR),
        (head(additional=65_535) + QUESTION, FORMERR),
        (head(answers=1) + QUESTION, FORMERR),
        (head() + QUESTION + bytes(5000), FORMERR),
        (head(additional=2) + QUESTION + b"\0\0\x29\x04\xd0\0\0\0\0\0\0" * 2, FORMERR),  # two OPT records
        (head() + QUESTION[:-4] + b"\0\x29\0\1", FORMERR),  # OPT as a question
        (head() + QUESTION[:-4] + b"\0\0\0\1", FORMERR),
        (head() + QUESTION[:-4] + b"\0\xfc\0\1", REFUSED),  # AXFR
        (head(authorities=1) + QUESTION[:-4] + b"\0\xfb\0\1", REFUSED),  # IXFR
        (head() + QUESTION[:-4] + b"\0\xfd\0\1", REFUSED),  # MAILB
        (head() + QUESTION[:-1] + b"\3", REFUSED),  # CHAOS
        (head() + QUESTION[:-1] + b"\xff", REFUSED),
        (head(additional=1) + QUESTION + b"\0\0\x29\x04\xd0\0\1\0\0\0\0", BADVERS),
    ],
)
def test_what_is_refused(wire: bytes, rcode: int) -> None:
    assert refused(wire).rcode() == rcode


def test_a_refusal_repeats_the_question_and_speaks_edns_as_asked() -> None:
    message = refused(head(additional=1) + QUESTION + b"\0\0\x29\x04\xd0\0\1\0\0\0\0")
    assert str(message.question[0]) == "www.example. IN A"
    assert message.edns == 0
    assert message.payload == PAYLOAD


@given(st.binary(max_size=600))
def test_random_bytes_raise_nothing_else(wire: bytes) -> None:
    try:
        asked = parse_query(wire)
    except BadQuery as bad:
        if bad.reply is not None:
            assert bad.reply[:2] == wire[:2]
            dns.message.from_wire(bad.reply)
    else:
        assert error(asked, SERVFAIL)[:2] == wire[:2]


@given(
    st.binary(max_size=300), st.integers(0, 3), st.integers(0, 3), st.sampled_from([0, 0x100, 0x8180, 0x83])
)
def test_random_bytes_behind_a_good_header_raise_nothing_else(
    tail: bytes, n: int, more: int, flags: int
) -> None:
    for rest in (tail, QUESTION + tail):
        try:
            parse_query(head(flags, n, 0, 0, more) + rest)
        except BadQuery as bad:
            assert bad.reply is None or bad.reply[:2] == b"\x12\x34"


names = st.lists(st.binary(min_size=1, max_size=63), max_size=3).map(
    lambda labels: dns.name.Name([*labels, b""])
)
types = st.integers(1, 127).filter(lambda number: number != 41)


@given(names, types, st.integers(0, 65_535), st.booleans(), st.booleans(), st.integers(0, 65_535))
def test_any_question_is_understood_and_echoed(
    name: dns.name.Name, rdtype: int, id_: int, edns: bool, do: bool, payload: int
) -> None:
    kind = dns.rdatatype.RdataType.make(rdtype)
    sent = dns.message.make_query(
        name, kind, id=id_, use_edns=0 if edns else None, payload=payload if edns else None, want_dnssec=do
    )
    asked = parse_query(sent.to_wire())
    wire = Inquiry(asked.key).wire()
    back = dns.message.from_wire(
        encode(digest(reply(dns.message.from_wire(wire)), Inquiry(asked.key), ipv6=True), asked, 512)
    )
    assert sent.is_response(back)
    assert back.question[0].name.labels == name.labels  # to the case
    assert (back.edns >= 0) == (edns or do)


# --- what upstreams get --------------------------------------------------------------------------------------------


def test_nothing_of_the_client_reaches_an_upstream() -> None:
    options = [dns.edns.ECSOption("198.51.100.0", 24), dns.edns.GenericOption(10, b"8 octets")]
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


# --- what upstreams say --------------------------------------------------------------------------------------------


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


def test_errors_of_a_server_have_no_records_and_are_not_kept() -> None:
    answer = answered("www.example. 300 IN A 192.0.2.1", rcode=REFUSED)  # type: ignore[arg-type]
    assert (answer.rcode, answer.ttls, answer.lifetime) == (REFUSED, (), 0)


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


# --- without IPv6 --------------------------------------------------------------------------------------------------


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


def test_an_answer_made_here() -> None:
    asked = query("Ads.example.", id=3)
    message = text(synthesise(parse_query(asked), 0, messages.A, ("0.0.0.0",)), asked, ede=15)
    assert str(message.answer[0]) == "Ads.example. 60 IN A 0.0.0.0"
    assert text(synthesise(parse_query(asked), NXDOMAIN), asked).rcode() == NXDOMAIN


def test_an_extended_error_goes_to_who_speaks_edns() -> None:
    asked = query(use_edns=0)
    message = text(synthesise(parse_query(asked), NXDOMAIN), asked, ede=messages.EDE_BLOCKED)
    assert [entry.code for entry in message.extended_errors()] == [15]
    assert text(synthesise(parse_query(query()), NXDOMAIN), query(), ede=15).extended_errors() == []
