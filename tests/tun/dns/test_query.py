"""Questions as clients send them, and what is refused or dropped."""

from __future__ import annotations

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

from tests.support.dns_fakes import query, reply
from tun.dns.answer import encode
from tun.dns.codes import BADVERS, FORMERR, NOTIMP, PAYLOAD, REFUSED, SERVFAIL
from tun.dns.inquiry import Inquiry, digest
from tun.dns.query import BadQuery, error_reply, parse_query

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
        assert error_reply(asked, SERVFAIL)[:2] == wire[:2]


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
