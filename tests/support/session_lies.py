"""Frames of a peer that lies: a grammar of all kinds, with values just inside and outside of what its victim allows.

`ForgivingDirection` is how that peer reads the answers.
"""

from __future__ import annotations

from typing import Final

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import CarrierError, CloseReason, PeerError, StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.records import HEADER
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.windows import INITIAL_WINDOW
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.choices import Choices
from tests.support.memory import Direction

ADDRESSES: Final = (
    Destination("192.0.2.1", 443),
    Destination("2001:db8::1", 53),
    Destination("target.example", 80),
)
DEADLY: Final = (
    wire.Kind.CLOSE, wire.Kind.ACCEPT, wire.Kind.RESUMED, wire.Kind.NO_SESSION, wire.Kind.SWITCH, wire.Kind.REKEY,
    wire.Kind.REKEY_ANSWER, wire.Kind.LANE, wire.Kind.PACKET, wire.Kind.NETWORK, wire.Kind.TAKEN,
)  # fmt: skip
"""Kinds that end most plays."""
LIVELY: Final = tuple(kind for kind in wire.Kind if kind not in DEADLY)


def stream_id(choices: Choices, victim: Session, kind: wire.Kind) -> int:
    """A stream that lives, has ended, comes next, or cannot be."""
    last = victim._last_id
    if kind is wire.Kind.OPEN and not choices.once_in(8):
        return min(last + 1, wire.MAX_STREAM)
    known = [*victim.streams, *sorted(victim._awaited)[:3]]
    if known and not choices.once_in(8):
        return choices.pick(known)
    return choices.pick((last, 1, last + 5, 0, wire.MAX_STREAM))


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
        case wire.Kind.RESET:
            return wire.encode_reset(id, choices.pick(tuple(StreamReason)))
        case wire.Kind.FIN:
            return wire.encode_fin(id)
        case wire.Kind.DATA:
            left = INITIAL_WINDOW if stream is None else stream.announced - stream.received
            size = choices.pick((1, 1, left, left, left, left + 1, wire.MAX_DATA, 0))
            return wire.encode_data_header(kind, id) + bytes(min(max(size, 0), wire.MAX_DATA))
        case wire.Kind.WINDOW:
            limit = INITIAL_WINDOW if stream is None else stream.send_limit
            return wire.encode_window(
                id, min(max(choices.pick((limit + 5_000, limit - 1, 0, 2**64 - 1)), 0), 2**64 - 1)
            )
        case wire.Kind.ACK:
            log = victim.log
            count = choices.pick((log.sent, log.sent, log.acknowledged, log.sent + 1, 2**64 - 1))
            return wire.encode_number(kind, max(count, 0))
        case wire.Kind.PING | wire.Kind.PONG:
            return wire.encode_number(kind, choices.pick((0, 1, victim.liveness.ping or 2, 2**64 - 1)))
        case wire.Kind.REKEY | wire.Kind.REKEY_ANSWER:
            return wire.encode_message(kind, bytes(choices.pick((0, 32, 1_200, 1_216, 3_000))))
        case wire.Kind.DATAGRAM:
            payload = bytes(choices.pick((0, 1, 1_200, wire.MAX_DATAGRAM)))
            return wire.encode_datagram(id, choices.pick(ADDRESSES), payload)
        case wire.Kind.LANE:
            return wire.encode_lane(choices.pick((0, 1, 2**32 - 1)), choices.pick((0, 1, 2**32 - 1)))
        case wire.Kind.PACKET:
            return wire.encode_packet(choices.number(256), 0, 65_535, bytes(choices.pick((1, 40, 65_535))))
        case wire.Kind.NETWORK:
            return wire.encode_network(bytes(4), bytes(16))
        case wire.Kind.TAKEN:
            count = choices.pick((1, wire.MAX_TAKEN, wire.MAX_TAKEN + 1, 0))
            return bytes((kind, count)) + (bytes((choices.number(140),)) + bytes(16)) * count
        case wire.Kind.ADVERTISE:
            return wire.encode_advertise(choices.pick(ADDRESSES[:2]))
        case wire.Kind.CLOSE:
            return wire.encode_close(choices.pick(tuple(CloseReason)))
        case wire.Kind.RESUMED:
            return wire.encode_resumed(victim.log.sent, bytes(32))
        case _:
            return wire.encode_bare(kind)


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
        self._unused += self.in_flight
        moved = bool(self.in_flight)
        self.in_flight.clear()
        while not self.target.paused and len(self._unused) >= HEADER and self.target.closed is None:
            end = HEADER + int.from_bytes(self._unused[:HEADER])
            if len(self._unused) < end:
                break
            record = bytes(self._unused[:end])
            self.target.turn.renew()
            try:
                if not self.target.receive(memoryview(record), now):
                    break
            except CarrierError:
                raise
            except PeerError:
                pass
            del self._unused[:end]
            moved = True
        return moved
