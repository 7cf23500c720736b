"""Frames of a peer that lies: a grammar of all kinds, with values just inside and outside of what its victim allows.

`ForgivingDirection` is how that peer reads the answers.
"""

from __future__ import annotations

from typing import Final

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import CarrierError, CloseReason, NotAdmitted, PeerError, StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.records import HEADER
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.windows import INITIAL_WINDOW
from cryprq_proxy.session.wire import MAX_DATA, MAX_OFFSET, StreamProtocol
from tests.support.choices import Choices
from tests.support.memory import Direction

ADDRESSES: Final = (
    Destination("192.0.2.1", 443),
    Destination("2001:db8::1", 53),
    Destination("target.example", 80),
)
DEADLY: Final = (
    wire.Kind.CLOSE, wire.Kind.ACCEPT, wire.Kind.JOINED, wire.Kind.NO_SESSION, wire.Kind.SWITCH, wire.Kind.REKEY,
    wire.Kind.REKEY_ANSWER, wire.Kind.REKEY_PLEASE, wire.Kind.LANE, wire.Kind.PACKET, wire.Kind.NETWORK,
    wire.Kind.TAKEN, wire.Kind.STREAMS, wire.Kind.PREFER, wire.Kind.GOAWAY,
)  # fmt: skip
"""Kinds that end most plays."""
LIVELY: Final = tuple(kind for kind in wire.Kind if kind not in DEADLY)
MOST: Final = 2**64 - 1
MOST_32: Final = 2**32 - 1


def stream_id(choices: Choices, victim: Session, kind: wire.Kind) -> int:
    """A stream that lives, has ended, comes next or later, or cannot be."""
    table = victim.table
    last = table.numbers.last
    if kind is wire.Kind.OPEN and not choices.once_in(8):
        return min(last + choices.pick((1, 1, 1, 1, 2, 5)), wire.MAX_STREAM)
    known = [numbers for numbers in (list(table.live), list(table.numbers.awaited)[:5]) if numbers]
    if known and not choices.once_in(8):
        return choices.pick(choices.pick(known))
    return choices.pick(
        (table.numbers.last, 1, table.numbers.last + 5, 0, max(table.numbers.last - 1, 0), wire.MAX_STREAM)
    )


def bounds(victim: Session, id: int) -> tuple[int, int]:
    """How many bytes have come on a stream, and how many may."""
    table = victim.table
    stream, awaited = table.live.get(id), table.numbers.awaited.get(id)
    if stream is not None:
        return stream.received, stream.announced
    if awaited is not None:
        return awaited, awaited + table.received_credit.announced - table.received_credit.received
    return 0, INITIAL_WINDOW


def data(choices: Choices, victim: Session, id: int) -> bytes:
    """Bytes about the ends of what has come, what was delivered, and what is allowed, with content of its own."""
    came, allowed = bounds(victim, id)
    stream = victim.streams.get(id)
    delivered = came if stream is None else stream.delivered
    size = choices.pick((1, 1, 100, 5_000, 0, 70_000, MAX_DATA))
    match choices.number(12):
        case 0 | 1 | 2:
            offset = delivered
        case 3:
            offset, size = came, allowed - came
        case 4:
            offset, size = came, allowed - came + 1
        case 5 | 6:
            offset = came + choices.pick((1, 2, 100, 9_000))
        case 7:
            offset = allowed - size + choices.number(2)
        case 8 | 9:
            # What was delivered, what waits, and what is new, in one.
            offset = (delivered or came) - choices.pick((1, 50, 3_000))
        case 10:
            offset = choices.number(1 << 16)
        case _:
            offset = choices.pick((MAX_OFFSET - size, MAX_OFFSET - size + 1, allowed, MOST))
    size = min(max(size, 0), MAX_DATA)
    header = wire.encode_data_header(wire.DATA, id, min(max(offset, 0), MOST))
    return header + bytes((choices.number(256),)) * size


def final_offset(choices: Choices, victim: Session, id: int) -> int:
    """About the ends of what has come and of what is allowed."""
    came, allowed = bounds(victim, id)
    return choices.pick((came, came, came + 1, allowed, allowed + 1, max(came - 1, 0), 0, MAX_OFFSET, MOST))


def path_number(choices: Choices, victim: Session) -> int:
    """A path that lives, was lost, or never was."""
    last = victim.last_path
    return choices.pick((max(last, 0), *victim.paths, 0, last + 1, MOST_32))


def records(choices: Choices, victim: Session, number: int) -> int:
    """Counts about what a path has carried."""
    path = victim.paths.get(number)
    sent, acknowledged = (5, 0) if path is None else (path.keys.records_sent, path.log.acknowledged)
    return choices.pick((sent, sent, acknowledged, max(sent - 1, 0), sent + 1, 0, MOST))


def frame(choices: Choices, victim: Session) -> bytes:  # noqa: C901  a case a frame
    """One frame of any kind, mostly of one that a session may get at any time, with values about the allowed ones."""
    kind = choices.pick(DEADLY if choices.once_in(16) else LIVELY)
    id = stream_id(choices, victim, kind)
    stream = victim.streams.get(id)
    match kind:
        case wire.Kind.OPEN:
            return wire.encode_open(id, choices.pick(tuple(StreamProtocol)), choices.pick(ADDRESSES))
        case wire.Kind.OPENED:
            return wire.encode_opened(id)
        case wire.Kind.REFUSED:
            return wire.encode_refused(id, choices.pick(tuple(StreamReason)))
        case wire.Kind.DATA:
            return data(choices, victim, id)
        case wire.Kind.FIN:
            return wire.encode_fin(id, final_offset(choices, victim, id))
        case wire.Kind.RESET:
            final = final_offset(choices, victim, id)
            return wire.encode_reset(id, choices.pick(tuple(StreamReason)), final)
        case wire.Kind.WINDOW:
            limit = INITIAL_WINDOW if stream is None else stream.send_limit
            if choices.once_in(4):
                id, limit = 0, victim.table._credit_limit
            return wire.encode_window(
                id, min(max(choices.pick((limit + 5_000, limit - 1, 0, MOST)), 0), MOST)
            )
        case wire.Kind.STREAMS:
            return wire.encode_number(
                kind,
                choices.pick(
                    (0, victim.table.numbers.may_open, min(victim.table.numbers.may_open + 1, MOST), MOST)
                ),
            )
        case wire.Kind.ACK | wire.Kind.ABANDON:
            number = path_number(choices, victim)
            return wire.encode_records(kind, number, records(choices, victim, number))
        case wire.Kind.PREFER:
            serial = choices.pick((victim._prefer_serial + 1, victim._prefer_serial, 0, MOST_32))
            return wire.encode_prefer(min(serial, MOST_32), path_number(choices, victim))
        case wire.Kind.PING | wire.Kind.PONG:
            return wire.encode_number(kind, choices.pick((0, 1, victim.liveness.ping or 2, MOST)))
        case wire.Kind.REKEY | wire.Kind.REKEY_ANSWER:
            part, size = choices.pick((0, 1, 2, 3)), choices.pick((0, 32, 384, 416, 417))
            return wire.encode_part(kind, epoch(choices, victim), part, bytes(size))
        case wire.Kind.REKEY_PLEASE | wire.Kind.SWITCH:
            return wire.encode_epoch(kind, epoch(choices, victim))
        case wire.Kind.DATAGRAM:
            payload = bytes(choices.pick((0, 1, 1_200, wire.MAX_DATAGRAM)))
            return wire.encode_datagram(id, choices.pick(ADDRESSES), payload)
        case wire.Kind.LANE:
            return wire.encode_lane(
                epoch(choices, victim), choices.pick((0, 1, MOST_32)), choices.pick((*wire.LaneUse,))
            )
        case wire.Kind.PACKET:
            return wire.encode_packet(choices.number(256), 0, 65_535, bytes(choices.pick((1, 40, 65_535))))
        case wire.Kind.NETWORK:
            return wire.encode_network(choices.pick((0, 1, MOST_32)), bytes(4), bytes(16))
        case wire.Kind.TAKEN:
            count = choices.pick((1, wire.MAX_TAKEN, wire.MAX_TAKEN + 1, 0))
            return bytes((kind, *bytes(4), count)) + (bytes((choices.number(140),)) + bytes(16)) * count
        case wire.Kind.ADVERTISE:
            return wire.encode_advertise(choices.pick(ADDRESSES[:2]))
        case wire.Kind.CLOSE:
            return wire.encode_close(choices.pick(tuple(CloseReason)))
        case wire.Kind.JOINED:
            return wire.encode_joined(bytes(32))
        case _:
            return wire.encode_bare(kind)


def epoch(choices: Choices, victim: Session) -> int:
    """One that was, is, comes next, or later."""
    current = victim.rotation.current
    return choices.pick((current, current + 1, max(current - 1, 0), current + 2, 0, MOST_32))


def garbled(choices: Choices, victim: Session) -> bytes:
    """Frames that are cut short, changed, or followed by garbage."""
    data = bytearray(b"".join(frame(choices, victim) for _ in range(choices.number(3) + 1)))
    match choices.number(4):
        case 0:
            del data[max(len(data) - 1 - choices.number(12), 1) :]
        case 1:
            data[choices.number(min(len(data), 60))] = choices.number(256)
        case 2:
            data += bytes((choices.number(256),)) * (choices.number(20) + 1)
        case _:
            del data[choices.number(min(len(data), 20))]
    return bytes(data)


class ForgivingDirection(Direction):
    """To the liar: it reads one record at a time, and goes on after an error of what its lies have caused."""

    def deliver(self, now: float) -> bool:
        if not self.piece:
            return False
        self._unused += self.in_flight
        moved = bool(self.in_flight)
        self.in_flight.clear()
        target = self.target
        while not target.ended and target.session.closed is None and len(self._unused) >= HEADER:
            end = HEADER + int.from_bytes(self._unused[:HEADER])
            if len(self._unused) < end:
                break
            target.session.turn.renew()
            opened = target.keys.records_received
            try:
                used = target.receive(memoryview(bytes(self._unused[:end])), now)
            except (CarrierError, NotAdmitted):
                raise
            except PeerError:
                # Perhaps one of frames that were left of the record before.
                used = end if target.keys.records_received > opened else 0
            del self._unused[:used]
            moved = True
        return moved
