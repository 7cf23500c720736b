"""Records of BPF devices, as net/bpf.h of macOS lays them out: one, many, cut, damaged, of either age."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.bpf_records import ETHERNET4, ETHERNET6, NULL4, NULL6, record
from tests.support.canary_packets import packet
from tun.device.packets import UDP
from tun.macos.bpf import (
    DLT_EN10MB,
    DLT_IEEE1394,
    DLT_LOOP,
    DLT_NULL,
    DLT_PPP,
    DLT_RAW,
    LINK_SIZE,
    is_known,
    network_packet,
    parse_records,
)

PACKET4 = packet(UDP, "192.0.2.1", 53, b"four", 1234)
PACKET6 = packet(UDP, "2001:db8::1", 53, b"sixty", 1234)


def test_one_read_gives_many_records_and_what_comes_in_is_left_out() -> None:
    frames = [ETHERNET4 + PACKET4, ETHERNET6 + PACKET6, ETHERNET4 + PACKET4 + b"x"]
    given = b"".join(record(frame) for frame in frames) + record(ETHERNET4 + PACKET4, outgoing=False)
    assert parse_records(given) == (frames, False)


def test_flags_of_before_macos_11() -> None:
    given = record(b"abcdef", old=True) + record(b"ghi", outgoing=False, old=True)
    assert parse_records(given) == ([b"abcdef"], False)


def test_a_recorded_record() -> None:
    """Laid out byte by byte: little-endian, 20 bytes of header, a packet of 5 bytes, 3 of padding, another one."""
    first = bytes.fromhex("78563412 01000000 05000000 40000000 1400 00 01 4142434445 000000")
    second = bytes.fromhex("78563412 02000000 01000000 01000000 1400 00 01 46")
    assert parse_records(first + second) == ([b"ABCDE", b"F"], False)


@pytest.mark.parametrize(
    "rest",
    [
        b"\x01",
        record(b"abcd")[:20],
        record(b"abcd")[:-3],
        record(b"", size=19),
        record(b"abcd")[:8] + b"\xff\xff\xff\xff" + record(b"abcd")[12:],
        record(b"abcd")[:12] + b"\x03\x00\x00\x00" + record(b"abcd")[16:],
    ],
    ids=["too short", "without its packet", "cut off", "header too small", "too much", "more than there was"],
)
def test_a_damaged_record_ends_the_read_and_is_told(rest: bytes) -> None:
    assert parse_records(record(b"good") + rest) == ([b"good"], True)


@given(st.lists(st.tuples(st.binary(max_size=90), st.booleans(), st.integers(20, 90), st.booleans())))
def test_what_was_put_in_comes_out(given_records: list[tuple[bytes, bool, int, bool]]) -> None:
    data = b"".join(
        record(frame, outgoing=outgoing, size=size, old=old) for frame, outgoing, size, old in given_records
    )
    wanted = [frame for frame, outgoing, _, _ in given_records if outgoing]
    assert parse_records(data) == (wanted, False)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_records_or_damaged(data: bytes, at: int) -> None:
    whole = record(b"first")
    packets, _ = parse_records(whole + data)
    assert packets[0] == b"first"
    assert sum(map(len, packets)) <= len(whole + data)
    parse_records((whole + data)[:at])


def test_what_stands_in_front_of_ip() -> None:
    tag = bytes.fromhex("8100 0005")
    tagged = ETHERNET4[:12] + tag + ETHERNET4[12:]
    twice = ETHERNET4[:12] + bytes.fromhex("88a8 0007") + tag + ETHERNET4[12:]
    for link, frame in (
        (DLT_EN10MB, ETHERNET4 + PACKET4),
        (DLT_EN10MB, tagged + PACKET4),
        (DLT_EN10MB, twice + PACKET4),
        (DLT_NULL, NULL4 + PACKET4),
        (DLT_LOOP, b"\0\0\0\x02" + PACKET4),
        (DLT_PPP, b"\xff\x03\x00\x21" + PACKET4),
        (DLT_IEEE1394, bytes(16) + b"\x08\x00" + PACKET4),
        (DLT_RAW, PACKET4),
    ):
        assert network_packet(link, frame) == PACKET4
        assert len(frame) - len(PACKET4) <= LINK_SIZE
    assert network_packet(DLT_NULL, NULL6 + PACKET6) == PACKET6
    assert network_packet(DLT_EN10MB, b"short") == b""
    assert not is_known(105)
