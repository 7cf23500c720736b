"""Which acknowledgements take the place of earlier ones: tun/device/acks.py, without a device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.lane.slices import HEADROOM
from tun.device.acks import LEAST_ACK, MAX_ACK, MAX_FLOWS, AckFilter
from tun.device.packets import TCP, UDP, Packet, parse

HERE4, THERE4 = bytes((10, 0, 0, 1)), bytes((192, 0, 2, 9))
HERE6, THERE6 = bytes(15) + b"\1", bytes(15) + b"\2"
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
SACK = pack(">BBBBII", 1, 1, 5, 10, 900, 950)


@dataclass(frozen=True)
class Segment:
    """A TCP packet, with all in it that can matter."""

    version: int = 4
    port: int = 5000
    sequence: int = 1000
    ack: int = 100
    window: int = 500
    stamps: tuple[int, int] | None = (70, 80)
    options: bytes = b""
    flags: int = ACK
    reserved: int = 0
    payload: bytes = b""
    tos: int = 0
    fragment: int = 0x4000
    ip_options: bytes = b""
    protocol: int = TCP
    length: int = 0
    """What the length field says too much."""

    def bytes(self) -> bytes:
        options = b"" if self.stamps is None else pack(">BBBBII", 1, 1, 8, 10, *self.stamps)
        options += self.options
        words = 20 + len(options) << 2
        tcp = pack(">HHIIBB", self.port, 443, self.sequence, self.ack, words | self.reserved, self.flags)
        tcp += pack(">HHH", self.window, 0, 0) + options + self.payload
        if self.version == 6:
            head = 6 << 28 | self.tos << 20
            length = len(tcp) + self.length
            return pack(">IHBB16s16s", head, length, self.protocol, 64, HERE6, THERE6) + tcp
        header = 20 + len(self.ip_options)
        first, total = 0x40 | header >> 2, header + len(tcp) + self.length
        ip = pack(">BBHHHBBH", first, self.tos, total, 7, self.fragment, 64, self.protocol, 0)
        return ip + HERE4 + THERE4 + self.ip_options + tcp


class Queue:
    """Packets that wait, as a device keeps them."""

    def __init__(self) -> None:
        self.acks = AckFilter()
        self.waiting: list[Segment] = []
        self.gone: list[Segment] = []

    def put(self, *segments: Segment) -> None:
        for segment in segments:
            packet = segment.bytes()
            assert LEAST_ACK <= len(packet) <= MAX_ACK
            buffer = memoryview(bytes(HEADROOM) + packet)
            first = len(self.gone)
            behind = first + len(self.waiting)
            place = self.acks.place(buffer, HEADROOM, len(buffer), first, behind)
            assert first <= place <= behind
            self.waiting[place - first : place - first + 1] = [segment]

    def take(self) -> None:
        self.gone.append(self.waiting.pop(0))


def wait(*segments: Segment) -> list[Segment]:
    queue = Queue()
    queue.put(*segments)
    return queue.waiting


def test_the_packets_are_what_they_should_be() -> None:
    for segment in (Segment(), Segment(version=6, stamps=None)):
        packet = segment.bytes()
        parsed = parse(packet, 0, len(packet))
        assert isinstance(parsed, Packet) and (parsed.protocol, parsed.source_port) == (TCP, 5000)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("stamps", [None, (70, 80)])
def test_the_last_of_several_takes_the_place_of_the_first(
    version: int, stamps: tuple[int, int] | None
) -> None:
    one, two, three = (Segment(version=version, stamps=stamps, ack=number) for number in (100, 101, 5000))
    other = replace(one, port=5001)
    assert wait(one, other, two, three) == [three, other]


def test_numbers_begin_anew_behind_the_last_one() -> None:
    one = Segment(ack=0xFFFFFF00, stamps=(0xFFFFFFFF, 0xFFFFFFF0))
    two = Segment(ack=0x00000100, stamps=(0, 1))
    assert wait(one, two) == [two]


BASE = Segment()
NEXT = Segment(ack=200)
KEPT = {
    "duplicate": Segment(),
    "older": Segment(ack=99),
    "half round": Segment(ack=100 + (1 << 31)),
    "SACK": replace(NEXT, options=SACK),
    "SACK instead of timestamps": replace(NEXT, stamps=None, options=SACK),
    "other options": replace(NEXT, stamps=None, options=bytes((30, 12)) + bytes(10)),
    "no timestamps": replace(NEXT, stamps=None),
    "older timestamp": replace(NEXT, stamps=(69, 80)),
    "older echo": replace(NEXT, stamps=(70, 79)),
    "smaller window": replace(NEXT, window=499),
    "data": replace(NEXT, payload=b"x"),
    "sequence number": replace(NEXT, sequence=1001),
    "keep-alive": replace(NEXT, sequence=999),
    "TOS": replace(NEXT, tos=2),
    "reserved bit": replace(NEXT, reserved=1),
    "fragment": replace(NEXT, fragment=0x2000),
    "last fragment": replace(NEXT, fragment=0x0001),
    "IP options": replace(NEXT, ip_options=bytes((1, 1, 1, 0))),
    "port": replace(NEXT, port=5001),
    "version": replace(NEXT, version=6),
    "protocol": replace(NEXT, protocol=UDP),
    "length": replace(NEXT, length=1),
    **{f"flags {flag:#x}": replace(NEXT, flags=flag | ACK) for flag in (FIN, SYN, RST, PSH, URG, ECE, CWR)},
    "no ACK": replace(NEXT, flags=0),
}


@pytest.mark.parametrize("other", KEPT.values(), ids=KEPT.keys())
def test_what_differs_is_kept_and_keeps_what_was_before(other: Segment) -> None:
    assert wait(BASE, other) == [BASE, other]


REPLACED = {
    *("no timestamps", "older timestamp", "older echo", "sequence number", "keep-alive", "TOS", "port"),
    "version",
}
"""Those of KEPT that are plain themselves."""


@pytest.mark.parametrize("name", KEPT)
def test_only_what_is_plain_gives_its_place_to_a_later_one(name: str) -> None:
    other = KEPT[name]
    later = replace(other, ack=(other.ack + 500) & 0xFFFFFFFF)
    assert (other not in wait(BASE, other, later)) == (name in REPLACED)


def test_a_smaller_window_is_kept_and_no_later_one_takes_its_place() -> None:
    smaller, later = Segment(ack=200, window=0), Segment(ack=300)
    assert wait(BASE, smaller, later) == [BASE, smaller, later]


def test_duplicates_are_kept_with_what_they_repeat() -> None:
    """Three of them make the sender send again (RFC 5681 section 3.2)."""
    again = replace(BASE, stamps=(71, 80))
    assert wait(BASE, again, again, NEXT) == [BASE, again, again, NEXT]


def test_what_has_gone_is_neither_replaced_nor_forgotten() -> None:
    queue = Queue()
    queue.put(BASE)
    queue.take()
    queue.put(BASE, NEXT)
    assert (queue.gone, queue.waiting) == ([BASE], [BASE, NEXT])
    last = Segment(ack=300)
    queue.put(last)
    assert queue.waiting == [BASE, last]


def test_the_place_of_one_that_has_gone_is_nobody_s() -> None:
    queue = Queue()
    queue.put(BASE)
    queue.take()
    queue.put(NEXT)
    assert (queue.gone, queue.waiting) == ([BASE], [NEXT])


def test_one_that_others_replace_again_and_again_gets_its_turn() -> None:
    """At the end of a queue that never ends, it would wait for ever."""
    queue = Queue()
    queue.put(*(Segment(port=number) for number in range(5)))
    for number in range(200, 205):
        queue.put(Segment(port=4, ack=number))
        queue.take()
    assert queue.gone[-1] == Segment(port=4, ack=204)


def test_packets_between_them_of_their_own_flow_stay_between() -> None:
    push = replace(NEXT, payload=b"x", flags=ACK | PSH)
    last = Segment(ack=300)
    assert wait(BASE, push, last) == [BASE, push, last]


def test_a_packet_shorter_than_its_header_is_left_alone() -> None:
    acks = AckFilter()
    for first in (0x45, 0x60, 0x46, 0x00):
        packet = memoryview(bytes((first, *[TCP] * (LEAST_ACK - 1))))
        assert [acks.place(packet, 0, len(packet), 0, place) for place in (0, 1)] == [0, 1]


def test_flows_that_are_known_are_bounded() -> None:
    queue = Queue()
    for port in range(3 * MAX_FLOWS):
        queue.put(Segment(port=port))
        assert len(queue.acks._flows) <= MAX_FLOWS
    last = 3 * MAX_FLOWS - 1
    queue.put(Segment(port=last, ack=200))
    assert queue.waiting[last] == Segment(port=last, ack=200)


SEGMENTS = st.builds(
    Segment,
    version=st.sampled_from([4, 6]),
    port=st.integers(1, 2),
    sequence=st.sampled_from([1000] * 4 + [1001]),
    ack=st.integers(0, 6),
    window=st.sampled_from([500] * 4 + [0, 400, 600]),
    stamps=st.sampled_from([(70, 80)] * 3 + [(71, 81), None]),
    options=st.sampled_from([b""] * 4 + [SACK]),
    flags=st.sampled_from([ACK] * 6 + [ACK | PSH, ACK | ECE, ACK | FIN, ACK | SYN]),
    payload=st.sampled_from([b""] * 6 + [b"x"]),
)


@given(st.lists(st.tuples(SEGMENTS, st.integers(0, 2)), max_size=60))
def test_a_sender_hears_all_that_matters(steps: list[tuple[Segment, int]]) -> None:
    """Of each flow: the order, the highest acknowledgement, every duplicate, and whatever says something else."""
    queue = Queue()
    for segment, taken in steps:
        queue.put(replace(segment))
        for _ in range(min(taken, len(queue.waiting))):
            queue.take()
    read = [segment for segment, _ in steps]
    for flow in {(segment.version, segment.port) for segment in read}:
        here = [each for each in read if (each.version, each.port) == flow]
        there = [each for each in queue.gone + queue.waiting if (each.version, each.port) == flow]
        assert max(each.ack for each in there) == max(each.ack for each in here)
        left = iter(there)
        expected = next(left, None)
        for before, each, after in zip([None, *here], here, [*here[1:], None], strict=False):
            if each == expected:
                expected = next(left, None)
                continue
            # It is gone: a plain one, no duplicate, and what comes next says more.
            assert each.flags == ACK and not each.options and not each.payload
            assert before is None or before.ack != each.ack
            assert after is not None and after.ack > each.ack
            assert after.window >= each.window and after.flags == ACK and not after.options
        assert expected is None
