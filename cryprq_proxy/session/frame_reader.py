"""How frames are read: each layout of wire.py has a decoder here. Nothing but PeerError comes out."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from struct import error as StructError

from ..address import ATYP_NAME, AddressError
from ..address import decode as decode_destination
from ..errors import CloseReason, PeerError, StreamReason
from ..rules.ranges import IPNetwork
from . import wire
from .wire import (
    BOUND_LAYOUT,
    BYTE_LAYOUT,
    DATA,
    DATA_HEADER,
    DATAGRAM_LAYOUT,
    EPOCH_LAYOUT,
    JOINED_LAYOUT,
    LANE_LAYOUT,
    MAPPED,
    MAX_DATA,
    MAX_DATAGRAM,
    MAX_OFFSET,
    MAX_PART,
    MAX_TAKEN,
    NETWORK_LAYOUT,
    NUMBER_LAYOUT,
    PACKET_LAYOUT,
    PAIR_LAYOUT,
    PART_LAYOUT,
    PARTS,
    PREFIX_LAYOUT,
    RESET_LAYOUT,
    STREAM_BYTE_LAYOUT,
    STREAM_LAYOUT,
    TAKEN_LAYOUT,
    Frame,
    Kind,
    LaneUse,
    StreamProtocol,
)


def read_frames(plaintext: bytes) -> Iterator[Frame]:
    """The frames of one record, each decoded when it is asked for.

    Payloads are views of `plaintext`, not copies. Raises PeerError (PROTOCOL) for an empty record, an unknown kind, a
    frame cut short, a stream 0 that is none, an unknown flag, protocol, use or reason, or a malformed
    destination.
    """
    position, end = 0, len(plaintext)
    if not end:
        raise PeerError(CloseReason.PROTOCOL, "the peer sent an empty record")
    view = memoryview(plaintext)
    while position < end:
        kind = plaintext[position]
        try:
            decoder = DECODERS[kind]
        except KeyError:
            raise PeerError(
                CloseReason.PROTOCOL, f"the peer sent a frame of unknown kind {kind:#04x}"
            ) from None
        try:
            frame, position = decoder(plaintext, view, position)
        except (IndexError, ValueError, StructError, AddressError) as error:
            raise PeerError(
                CloseReason.PROTOCOL, f"the peer sent a malformed {Kind(kind).name} frame"
            ) from error
        yield frame


def read_data(plaintext: bytes | bytearray | memoryview) -> tuple[int, int, memoryview]:
    """Stream, offset and data of a record whose first byte is DATA, so that it is this one frame.

    As `read_frames`, but from any buffer: the record layer uses that of large records again.
    """
    try:
        _, stream, offset = BOUND_LAYOUT.unpack_from(plaintext)
        payload = memoryview(plaintext)[DATA_HEADER:]
        size = len(payload)
        if not stream or not 0 < size <= MAX_DATA or offset + size > MAX_OFFSET:
            raise ValueError("out of range")
    except (ValueError, StructError) as error:
        raise PeerError(CloseReason.PROTOCOL, "the peer sent a malformed DATA frame") from error
    return stream, offset, payload


def decode_frames(plaintext: bytes) -> list[Frame]:
    """All frames of one short record, in order; as `read_frames`."""
    return list(read_frames(plaintext))


# Decoders, one per layout. A frame cut short ends in struct.error, an IndexError or one of the explicit ValueErrors.


def _open(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, protocol = STREAM_BYTE_LAYOUT.unpack_from(data, at)
    destination, at = decode_destination(data, at + STREAM_BYTE_LAYOUT.size)
    return (kind, _one(stream), (StreamProtocol(protocol), destination)), at


def _opened(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream = STREAM_LAYOUT.unpack_from(data, at)
    return (kind, _one(stream), None), at + STREAM_LAYOUT.size


def _refused(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, reason = STREAM_BYTE_LAYOUT.unpack_from(data, at)
    return (kind, _one(stream), StreamReason(reason)), at + STREAM_BYTE_LAYOUT.size


def _data(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    stream, offset, payload = read_data(view[at:])
    return (DATA, stream, (offset, payload)), len(data)


def _fin(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, final = BOUND_LAYOUT.unpack_from(data, at)
    if final > MAX_OFFSET:
        raise ValueError("out of range")
    return (kind, _one(stream), final), at + BOUND_LAYOUT.size


def _reset(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, reason, final = RESET_LAYOUT.unpack_from(data, at)
    if final > MAX_OFFSET:
        raise ValueError("out of range")
    return (kind, _one(stream), (StreamReason(reason), final)), at + RESET_LAYOUT.size


def _one(stream: int) -> int:
    if not stream:
        raise ValueError("no stream has the number 0")
    return stream


def _window(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, limit = BOUND_LAYOUT.unpack_from(data, at)
    return (kind, stream, limit), at + BOUND_LAYOUT.size


def _records(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, path, records = BOUND_LAYOUT.unpack_from(data, at)
    return (kind, 0, (path, records)), at + BOUND_LAYOUT.size


def _number(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, value = NUMBER_LAYOUT.unpack_from(data, at)
    return (kind, 0, value), at + NUMBER_LAYOUT.size


def _epoch(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, epoch = EPOCH_LAYOUT.unpack_from(data, at)
    return (kind, 0, epoch), at + EPOCH_LAYOUT.size


def _pair(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, first, second = PAIR_LAYOUT.unpack_from(data, at)
    return (kind, 0, (first, second)), at + PAIR_LAYOUT.size


def _part(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, epoch, part, length = PART_LAYOUT.unpack_from(data, at)
    start = at + PART_LAYOUT.size
    if part >= PARTS or length > MAX_PART or start + length > len(data):
        raise ValueError("no such part, too long, or cut short")
    return (kind, 0, (epoch, part, data[start : start + length])), start + length


def _bare(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    return (data[at], 0, None), at + 1


def _datagram(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, length = DATAGRAM_LAYOUT.unpack_from(data, at)
    destination, start = decode_destination(data, at + DATAGRAM_LAYOUT.size)
    end = start + length
    if end > len(data) or length > MAX_DATAGRAM:
        raise ValueError("wrong length")
    return (kind, stream, (destination, view[start:end])), end


def _packet(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, flags, segment, header, length = PACKET_LAYOUT.unpack_from(data, at)
    start = at + PACKET_LAYOUT.size
    end = start + length
    if not start < end <= len(data):
        raise ValueError("wrong length")
    return (kind, 0, (flags, segment, header, view[start:end])), end


def _lane(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, epoch, index, use = LANE_LAYOUT.unpack_from(data, at)
    return (kind, 0, (epoch, index, LaneUse(use))), at + LANE_LAYOUT.size


def _network(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, serial, ipv4, ipv6 = NETWORK_LAYOUT.unpack_from(data, at)
    return (kind, 0, (serial, ipv4, ipv6)), at + NETWORK_LAYOUT.size


def _taken(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, serial, count = TAKEN_LAYOUT.unpack_from(data, at)
    if not 0 < count <= MAX_TAKEN:
        raise ValueError("wrong count")
    at += TAKEN_LAYOUT.size
    networks: list[IPNetwork] = []
    for _ in range(count):
        length, address = PREFIX_LAYOUT.unpack_from(data, at)
        at += PREFIX_LAYOUT.size
        if length >= 96 and address[:12] == MAPPED:
            networks.append(IPv4Network((address[12:], length - 96)))
        else:
            networks.append(IPv6Network((address, length)))
    return (kind, 0, (serial, tuple(networks))), at


def _advertise(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    if data[at + 1] == ATYP_NAME:
        raise ValueError("a name")
    destination, end = decode_destination(data, at + 1)
    if not destination.port:
        raise ValueError("no port")
    return (data[at], 0, destination), end


def _close(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, reason = BYTE_LAYOUT.unpack_from(data, at)
    return (kind, 0, CloseReason(reason)), at + BYTE_LAYOUT.size


def _joined(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, proof = JOINED_LAYOUT.unpack_from(data, at)
    return (kind, 0, proof), at + JOINED_LAYOUT.size


DECODERS = {
    wire.OPEN: _open,
    wire.OPENED: _opened,
    wire.REFUSED: _refused,
    wire.DATA: _data,
    wire.FIN: _fin,
    wire.RESET: _reset,
    wire.WINDOW: _window,
    wire.STREAMS: _number,
    wire.REKEY: _part,
    wire.REKEY_ANSWER: _part,
    wire.REKEY_PLEASE: _epoch,
    wire.LANE: _lane,
    wire.NETWORK: _network,
    wire.TAKEN: _taken,
    wire.GOAWAY: _bare,
    wire.PREFER: _pair,
    wire.ABANDON: _records,
    wire.ACK: _records,
    wire.PING: _number,
    wire.PONG: _number,
    wire.SWITCH: _epoch,
    wire.DATAGRAM: _datagram,
    wire.PACKET: _packet,
    wire.ADVERTISE: _advertise,
    wire.CLOSE: _close,
    wire.ACCEPT: _bare,
    wire.NO_SESSION: _bare,
    wire.JOINED: _joined,
}
