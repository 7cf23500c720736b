"""The reader of answers: bounds, damage, and dnspython as a second opinion."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools

import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.outbound.resolving.dns_answer import (
    AAAA,
    MAX_LINKS,
    MAX_RECORDS,
    A,
    AnswerError,
    NameAnswer,
    Question,
    encode_name,
    is_answer,
    read_answer,
    read_name,
)
from cryprq_proxy.outbound.resolving.hosts_file import MAX_ADDRESSES

NAME = "exit.example.org"


def wire_of(name: str) -> bytes:
    wire = encode_name(name)
    assert wire is not None
    return wire


ASKED = Question(wire_of(NAME), A).wire()


def response(*records: str, asked: bytes = ASKED, authority: str = "", flags: int = 0) -> bytes:
    """An answer with records like "name 300 A 192.0.2.1"."""
    message = dns.message.make_response(dns.message.from_wire(asked))
    message.flags |= dns.flags.Flag(flags)
    for section, texts in ((message.answer, records), (message.authority, filter(None, [authority]))):
        for text in texts:
            name, ttl, kind, value = text.split(" ", 3)
            section.append(dns.rrset.from_text(name + ".", int(ttl), "IN", kind, *value.split("|")))
    return message.to_wire(max_size=65_535)


# --- questions ---


def test_a_question_is_what_dnspython_would_ask() -> None:
    message = dns.message.from_wire(ASKED)
    expected = dns.message.make_query(NAME, "A", id=message.id)
    assert expected.to_wire() == ASKED


def test_ids_are_random() -> None:
    assert len({Question(wire_of(NAME), A).wire()[:2] for _ in range(50)}) > 40


@pytest.mark.parametrize("name", ["example.com", "Example.COM.", "a_b.x", "a" * 63 + ".example", "intranet"])
def test_names_are_encoded_as_dnspython_does(name: str) -> None:
    assert encode_name(name) == dns.name.from_text(name).to_digestable()


@pytest.mark.parametrize(
    "name",
    ["a" * 64, "a..b", ".", "", ".a", "x" * 300, "\ud800.example", "b\u00fc.example", ".".join(["abc"] * 64)],
)
def test_what_dns_cannot_hold(name: str) -> None:
    assert encode_name(name) is None


# --- answers ---


def test_only_the_answer_to_the_question_counts() -> None:
    good = response(f"{NAME} 60 A 192.0.2.5")
    assert is_answer(good, ASKED)
    upper = good[:12] + good[12 : len(ASKED) - 4].upper() + good[len(ASKED) - 4 :]
    assert is_answer(upper, ASKED), "a server may answer in capitals"
    for bad in (
        b"",
        good[:11],
        bytes([good[0] ^ 1]) + good[1:],
        good[:1] + bytes([good[1] ^ 1]) + good[2:],
        good[:2] + bytes([good[2] & 0x7F]) + good[3:],
        good[:2] + bytes([good[2] | 0x08]) + good[3:],
        good[:4] + b"\0\0" + good[6:],
        good[:13] + b"y" + good[14:],
        good[: len(ASKED) - 3] + b"\x1c" + good[len(ASKED) - 2 :],
    ):
        assert not is_answer(bad, ASKED)
        with pytest.raises(AnswerError, match="another question"):
            read_answer(bad, ASKED)


def test_addresses_live_as_long_as_the_shortest_record_of_their_chain() -> None:
    wire = response(
        f"{NAME} 300 CNAME a.example.", "a.example 20 CNAME b.example.", "b.example 60 A 192.0.2.5|192.0.2.6"
    )
    answer = read_answer(wire, ASKED)
    assert (set(answer.addresses), answer.seconds) == ({"192.0.2.5", "192.0.2.6"}, 20)


def test_addresses_of_another_name_do_not_count() -> None:
    wire = response("evil.example 60 A 192.0.2.66", f"{NAME} 60 A 192.0.2.5", "a.example 60 AAAA ::66")
    assert read_answer(wire, ASKED).addresses == ("192.0.2.5",)
    assert read_answer(response("evil.example 60 A 192.0.2.66"), ASKED) == NameAnswer()


def test_an_answer_that_ends_with_an_alias() -> None:
    wire = response(f"{NAME} 30 CNAME A.Example.")
    assert read_answer(wire, ASKED) == NameAnswer((), 30, wire_of("a.example"))


def test_an_alias_without_such_an_address_is_told_by_the_soa() -> None:
    """So nobody asks again for the AAAA of each alias whose name has IPv4 only."""
    wire = response(
        f"{NAME} 30 CNAME a.example.", authority="example 60 SOA ns.example. admin.example. 1 2 3 4 5"
    )
    assert read_answer(wire, ASKED) == NameAnswer()


def test_failures_have_a_name() -> None:
    for rcode, text in ((2, "SERVFAIL"), (5, "REFUSED"), (9, "error 9")):
        wire = bytearray(response())
        wire[3] |= rcode
        with pytest.raises(AnswerError, match=text):
            read_answer(bytes(wire), ASKED)


def test_a_cut_answer() -> None:
    with pytest.raises(AnswerError, match="over TCP"):
        read_answer(response(flags=dns.flags.TC), ASKED)


def test_addresses_are_bounded() -> None:
    many = "|".join(f"192.0.2.{number}" for number in range(100))
    assert len(read_answer(response(f"{NAME} 60 A {many}"), ASKED).addresses) == MAX_ADDRESSES


def test_records_are_bounded() -> None:
    """What one message costs does not grow with its length."""
    texts = [f"{NAME} 60 TXT {number}" for number in range(MAX_RECORDS)]
    assert read_answer(response(*texts[1:], f"{NAME} 60 A 192.0.2.5"), ASKED).addresses
    assert not read_answer(response(*texts, f"{NAME} 60 A 192.0.2.5"), ASKED).addresses


def test_chains_are_bounded() -> None:
    def chain(links: int) -> bytes:
        names = [NAME, *(f"x{number}.example" for number in range(links))]
        pairs = itertools.pairwise(names)
        return response(*(f"{a} 60 CNAME {b}." for a, b in pairs), f"{names[-1]} 60 A 192.0.2.5")

    assert read_answer(chain(MAX_LINKS - 1), ASKED).addresses
    with pytest.raises(AnswerError, match="too many CNAMEs"):
        read_answer(chain(MAX_LINKS), ASKED)
    with pytest.raises(AnswerError, match="too many CNAMEs"):
        read_answer(response(f"{NAME} 60 CNAME a.example.", f"a.example 60 CNAME {NAME}."), ASKED)


def test_names_end() -> None:
    for name in (
        b"\xc0\x00",
        b"\1a\xc0\x00",
        b"\xc0\x02\xc0\x00",
        b"\xc0\x05\0\0\0\0",
        b"\x40" + b"a" * 64,
        b"\1",
    ):
        with pytest.raises((ValueError, IndexError)):
            read_name(name, 0)
    long = b"".join(b"\x3f" + bytes([97 + n]) * 63 for n in range(5)) + b"\0"
    with pytest.raises(ValueError, match="too long"):
        read_name(long, 0)
    assert read_name(b"\3COM\0\1x\xc0\0rest", 5) == (b"\1x\3com\0", 9)


# --- damage ---


def test_every_prefix_and_every_flip_of_an_answer() -> None:
    wire = response(f"{NAME} 60 CNAME a.example.", "a.example 60 A 192.0.2.5")
    assert read_answer(wire, ASKED).addresses == ("192.0.2.5",)
    assert read_answer(wire + b"trailing", ASKED).addresses == ("192.0.2.5",)
    for end in range(len(wire)):
        with pytest.raises(AnswerError):
            read_answer(wire[:end], ASKED)
    for position in range(len(wire)):
        for bit in range(8):
            flipped = bytearray(wire)
            flipped[position] ^= 1 << bit
            with contextlib.suppress(AnswerError):
                assert isinstance(read_answer(bytes(flipped), ASKED), NameAnswer)


@given(st.binary(max_size=300))
def test_only_answer_errors_leave_the_reader(tail: bytes) -> None:
    head = bytearray(ASKED)
    head[2] |= 0x80
    for wire in (
        tail,
        bytes(head) + tail,
        bytes(head[:6]) + tail[:6].ljust(6, b"\x01") + bytes(head[12:]) + tail,
    ):
        with contextlib.suppress(AnswerError):
            for address in read_answer(wire, ASKED).addresses:
                ipaddress.ip_address(address)


# --- a second opinion ---

_names = st.sampled_from([NAME, "a.example", "b.example", "c.Example.org"])
_ttls = st.integers(0, 100)
_records = st.one_of(
    st.builds(lambda name, ttl, to: f"{name} {ttl} CNAME {to}.", _names, _ttls, _names),
    st.builds(lambda name, ttl, host: f"{name} {ttl} A 192.0.2.{host}", _names, _ttls, st.integers(0, 255)),
    st.builds(
        lambda name, ttl, host: f"{name} {ttl} AAAA 2001:db8::{host:x}", _names, _ttls, st.integers(0, 255)
    ),
    st.builds(lambda name, ttl: f"{name} {ttl} TXT text", _names, _ttls),
)


def owner_and_kind(record: str) -> tuple[str, str]:
    words = record.lower().split(" ")
    return words[0], words[2]


@given(st.lists(_records, max_size=8, unique_by=owner_and_kind), st.sampled_from([A, AAAA]))
def test_dnspython_reads_the_same(records: list[str], kind: int) -> None:
    asked = Question(wire_of(NAME), kind).wire()
    wire = response(*records, asked=asked)
    try:
        chain = dns.message.from_wire(wire).resolve_chaining()  # type: ignore[attr-defined]
    except dns.exception.DNSException:
        chain = None
    try:
        answer = read_answer(wire, asked)
    except AnswerError:
        assert chain is None, "a circle, for both"
        return
    if chain is None:
        return  # dnspython also refuses what has no influence here, as a CNAME beside addresses
    assert set(answer.addresses) == {rdata.address for rdata in chain.answer or ()}
    if answer.addresses:
        assert answer.seconds == chain.minimum_ttl
    elif chain.cnames:
        assert answer.alias == chain.canonical_name.to_digestable()
