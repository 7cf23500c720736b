"""The frames inside a record: every layout of the link's inner protocol, declared once.

A record's plaintext is a sequence of frames without padding. All integers are big-endian. Every frame starts with
one byte, its kind. A DATA frame is the last of its record and takes the rest: 128 KiB of stream data cost one header
of 13 bytes and one seal.

*Reliable*, kinds below 0x20: kept until the path on which they went has acknowledged the record, and sent again on the
next path when that one is lost. Each is absolute and idempotent, so a second copy changes nothing.

    OPEN          kind | stream u32 | protocol u8 | destination (RFC 1928 section 5)
    OPENED        kind | stream u32
    REFUSED       kind | stream u32 | reason u8
    DATA          kind | stream u32 | offset u64 | rest of the record, 1 to 131,072 bytes
    FIN           kind | stream u32 | final offset u64
    RESET         kind | stream u32 | reason u8 | final offset u64
    WINDOW        kind | stream u32, 0: all streams together | bytes that may be sent in all u64
    STREAMS       kind | streams that may be opened in all u64
    REKEY, REKEY_ANSWER
                  kind | epoch u32 | length u16 | handshake message
    REKEY_PLEASE  kind | epoch u32
    LANE          kind | epoch u32 | index u32
    NETWORK       kind | serial u32 | IPv4 address, 4 bytes | IPv6 address, 16 bytes
    TAKEN         kind | serial u32 | count u8
                  | count times: prefix length u8, IPv6 address (IPv4 as ::ffff:0:0/96), 16 bytes
    GOAWAY        kind
    PREFER        kind | serial u32 | path u32
    ABANDON       kind | path u32 | records received u64

Of one path, and never sent again:

    ACK           kind | path u32 | records received u64
    PING, PONG    kind | token u64
    SWITCH        kind | epoch u32
    DATAGRAM      kind | stream u32 | length u16 | destination | payload, `length` bytes
    PACKET        kind | flags u8 | segment size u16 | header size u16 | length u16 | IP packet, `length` bytes
    ADVERTISE     kind | destination, an address and no name
    CLOSE         kind | reason u8
    ACCEPT, NO_SESSION
                  kind
    JOINED        kind | proof, 32 bytes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network
from struct import Struct
from struct import error as StructError
from typing import Final

from ..address import ATYP_NAME, AddressError, Destination
from ..address import decode as decode_destination
from ..address import encode as encode_destination
from ..errors import CloseReason, PeerError, StreamReason
from ..rules.ranges import IPNetwork

MAX_DATA: Final = 131_072
"""Largest number of bytes of stream data in one DATA frame."""
DATA_HEADER: Final = 13
MAX_OFFSET: Final = 1 << 62
"""No stream of bytes is longer."""
MAX_PLAINTEXT: Final = MAX_DATA + 512
"""Largest number of bytes of frames in one record: a full DATA or DATAGRAM frame with its header and address."""
MAX_STREAM: Final = 0xFFFF_FFFF
"""The last stream id of a session; no id is used twice."""
MAX_DATAGRAM: Final = 65_507
"""Largest number of bytes of payload in one DATAGRAM frame: what fits into one UDP packet over IPv4."""

RELIABLE: Final = 0x20
"""Kinds below it are reliable."""
MAX_TAKEN: Final = 16
"""Prefixes in one TAKEN frame."""
_MAPPED: Final = bytes(10) + b"\xff\xff"


class Kind(IntEnum):
    """First byte of a frame."""

    OPEN = 0x01
    OPENED = 0x02
    REFUSED = 0x03
    DATA = 0x04
    RESET = 0x05
    WINDOW = 0x06
    STREAMS = 0x07
    REKEY = 0x08
    REKEY_ANSWER = 0x09
    REKEY_PLEASE = 0x0A
    LANE = 0x0B
    NETWORK = 0x0C
    TAKEN = 0x0D
    GOAWAY = 0x0E
    PREFER = 0x0F
    ABANDON = 0x10
    FIN = 0x11
    ACK = 0x20
    PING = 0x21
    PONG = 0x22
    SWITCH = 0x23
    DATAGRAM = 0x24
    PACKET = 0x25
    ADVERTISE = 0x26
    CLOSE = 0x27
    ACCEPT = 0x28
    NO_SESSION = 0x29
    JOINED = 0x2A


class StreamProtocol(IntEnum):
    """What an OPEN requests. TCP: a connection to the destination. UDP: an association; RESOLVER: a TCP connection to
    the exit's own DNS resolver (RFC 7766); both ignore the destination."""

    TCP = 1
    UDP = 2
    RESOLVER = 3


# Plain integers for the data path: each use of an IntEnum member costs a look-up in the dictionary of its class.
OPEN, OPENED, REFUSED, DATA, RESET, WINDOW, STREAMS, REKEY, REKEY_ANSWER, REKEY_PLEASE = range(0x01, 0x0B)
LANE, NETWORK, TAKEN, GOAWAY, PREFER, ABANDON, FIN = range(0x0B, 0x12)
ACK, PING, PONG, SWITCH, DATAGRAM, PACKET, ADVERTISE, CLOSE = range(0x20, 0x28)
ACCEPT, NO_SESSION, JOINED = range(0x28, 0x2B)

_STREAM = Struct("!BI")
_STREAM_BYTE = Struct("!BIB")
_RESET = Struct("!BIBQ")
_BOUND = Struct("!BIQ")
_NUMBER = Struct("!BQ")
_EPOCH = Struct("!BI")
_PAIR = Struct("!BII")
_BYTE = Struct("!BB")
_MESSAGE = Struct("!BIH")
_DATAGRAM = Struct("!BIH")
_PACKET = Struct("!BBHHH")
_NETWORK = Struct("!BI4s16s")
_TAKEN = Struct("!BIB")
_PREFIX = Struct("!B16s")
_JOINED = Struct("!B32s")

type Frame = tuple[int, int, object]
"""A decoded frame: kind, stream id (0 for frames of no one stream), and a value that depends on the kind:
`(StreamProtocol, Destination)` for OPEN, `StreamReason` for REFUSED, `(offset, memoryview)` for DATA,
`(StreamReason, final offset)` for RESET, an int for FIN, WINDOW, STREAMS, PING, PONG, REKEY_PLEASE and SWITCH,
`(epoch, bytes)` for REKEY and REKEY_ANSWER, `(epoch, index)` for LANE, `(serial, bytes, bytes)` for NETWORK,
`(serial, tuple of networks)` for TAKEN, `(serial, path)` for PREFER, `(path, records)` for ABANDON and ACK,
`(Destination, memoryview)` for DATAGRAM, `(int, int, int, memoryview)` for PACKET, a Destination for ADVERTISE,
`CloseReason` for CLOSE, bytes for JOINED, None for the rest."""


def encode_open(stream: int, protocol: StreamProtocol, destination: Destination) -> bytes:
    return _STREAM_BYTE.pack(OPEN, stream, protocol) + encode_destination(destination)


def encode_opened(stream: int) -> bytes:
    return _STREAM.pack(OPENED, stream)


def encode_refused(stream: int, reason: StreamReason) -> bytes:
    return _STREAM_BYTE.pack(REFUSED, stream, reason)


encode_data_header = _BOUND.pack
"""`encode_data_header(DATA, stream, offset)`: the 13 bytes in front of stream data."""


def encode_fin(stream: int, final: int) -> bytes:
    """`final`: how many bytes the stream has in all, in this direction."""
    return _BOUND.pack(FIN, stream, final)


def encode_reset(stream: int, reason: StreamReason, final: int) -> bytes:
    """`final`: how many bytes of the stream this side has sent in all."""
    return _RESET.pack(RESET, stream, reason, final)


def encode_window(stream: int, limit: int) -> bytes:
    return _BOUND.pack(WINDOW, stream, limit)


def encode_number(kind: int, value: int) -> bytes:
    """STREAMS, PING or PONG."""
    return _NUMBER.pack(kind, value)


def encode_message(kind: int, epoch: int, message: bytes) -> bytes:
    """REKEY or REKEY_ANSWER."""
    return _MESSAGE.pack(kind, epoch, len(message)) + message


def encode_epoch(kind: int, epoch: int) -> bytes:
    """REKEY_PLEASE or SWITCH."""
    return _EPOCH.pack(kind, epoch)


def encode_bare(kind: int) -> bytes:
    """GOAWAY, ACCEPT or NO_SESSION."""
    return bytes((kind,))


def encode_prefer(serial: int, path: int) -> bytes:
    return _PAIR.pack(PREFER, serial, path)


def encode_records(kind: int, path: int, records: int) -> bytes:
    """ACK or ABANDON: how many records have come on `path` in all."""
    return _BOUND.pack(kind, path, records)


def encode_datagram(stream: int, destination: Destination, payload: bytes | memoryview) -> bytes:
    address = encode_destination(destination)
    return b"".join((_DATAGRAM.pack(DATAGRAM, stream, len(payload)), address, payload))


def encode_lane(epoch: int, index: int) -> bytes:
    return _PAIR.pack(LANE, epoch, index)


def encode_packet(flags: int, segment: int, header: int, packet: bytes | memoryview) -> bytes:
    """`packet` has 1 to 65,535 bytes; lane/slices.py explains the other fields."""
    return b"".join((_PACKET.pack(PACKET, flags, segment, header, len(packet)), packet))


def encode_network(serial: int, ipv4: bytes, ipv6: bytes) -> bytes:
    """The client's addresses inside the tunnel, 4 and 16 bytes; zeros if the exit has no address of that family."""
    return _NETWORK.pack(NETWORK, serial, ipv4, ipv6)


def encode_taken(serial: int, networks: Sequence[IPNetwork]) -> bytes:
    """Prefixes in which the client can take no address, 1 to MAX_TAKEN."""
    parts = [_TAKEN.pack(TAKEN, serial, len(networks))]
    for network in networks:
        if isinstance(network, IPv4Network):
            parts.append(_PREFIX.pack(96 + network.prefixlen, _MAPPED + network.network_address.packed))
        else:
            parts.append(_PREFIX.pack(network.prefixlen, network.network_address.packed))
    return b"".join(parts)


def encode_advertise(address: Destination) -> bytes:
    """Where the exit is reached itself; an address literal with a port above 0."""
    return bytes((ADVERTISE,)) + encode_destination(address)


def encode_close(reason: CloseReason) -> bytes:
    return _BYTE.pack(CLOSE, reason)


def encode_joined(proof: bytes) -> bytes:
    return _JOINED.pack(JOINED, proof)


def read_frames(plaintext: bytes) -> Iterator[Frame]:
    """The frames of one record, each decoded when it is asked for.

    Payloads are views of `plaintext`, not copies. Raises PeerError (PROTOCOL) for an empty record, an unknown kind, a
    frame cut short, a stream 0 that is none, an unknown flag, protocol or reason, or a malformed destination.
    """
    position, end = 0, len(plaintext)
    if not end:
        raise PeerError(CloseReason.PROTOCOL, "the peer sent an empty record")
    view = memoryview(plaintext)
    while position < end:
        kind = plaintext[position]
        try:
            decoder = _DECODERS[kind]
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
        _, stream, offset = _BOUND.unpack_from(plaintext)
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
    kind, stream, protocol = _STREAM_BYTE.unpack_from(data, at)
    destination, at = decode_destination(data, at + _STREAM_BYTE.size)
    return (kind, _one(stream), (StreamProtocol(protocol), destination)), at


def _opened(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream = _STREAM.unpack_from(data, at)
    return (kind, _one(stream), None), at + _STREAM.size


def _refused(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, reason = _STREAM_BYTE.unpack_from(data, at)
    return (kind, _one(stream), StreamReason(reason)), at + _STREAM_BYTE.size


def _data(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    stream, offset, payload = read_data(view[at:])
    return (DATA, stream, (offset, payload)), len(data)


def _fin(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, final = _BOUND.unpack_from(data, at)
    if final > MAX_OFFSET:
        raise ValueError("out of range")
    return (kind, _one(stream), final), at + _BOUND.size


def _reset(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, reason, final = _RESET.unpack_from(data, at)
    if final > MAX_OFFSET:
        raise ValueError("out of range")
    return (kind, _one(stream), (StreamReason(reason), final)), at + _RESET.size


def _one(stream: int) -> int:
    if not stream:
        raise ValueError("no stream has the number 0")
    return stream


def _window(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, limit = _BOUND.unpack_from(data, at)
    return (kind, stream, limit), at + _BOUND.size


def _records(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, path, records = _BOUND.unpack_from(data, at)
    return (kind, 0, (path, records)), at + _BOUND.size


def _number(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, value = _NUMBER.unpack_from(data, at)
    return (kind, 0, value), at + _NUMBER.size


def _epoch(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, epoch = _EPOCH.unpack_from(data, at)
    return (kind, 0, epoch), at + _EPOCH.size


def _pair(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, first, second = _PAIR.unpack_from(data, at)
    return (kind, 0, (first, second)), at + _PAIR.size


def _message(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, epoch, length = _MESSAGE.unpack_from(data, at)
    start = at + _MESSAGE.size
    if start + length > len(data):
        raise ValueError("cut short")
    return (kind, 0, (epoch, data[start : start + length])), start + length


def _bare(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    return (data[at], 0, None), at + 1


def _datagram(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, length = _DATAGRAM.unpack_from(data, at)
    destination, start = decode_destination(data, at + _DATAGRAM.size)
    end = start + length
    if end > len(data) or length > MAX_DATAGRAM:
        raise ValueError("wrong length")
    return (kind, stream, (destination, view[start:end])), end


def _packet(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, flags, segment, header, length = _PACKET.unpack_from(data, at)
    start = at + _PACKET.size
    end = start + length
    if not start < end <= len(data):
        raise ValueError("wrong length")
    return (kind, 0, (flags, segment, header, view[start:end])), end


def _network(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, serial, ipv4, ipv6 = _NETWORK.unpack_from(data, at)
    return (kind, 0, (serial, ipv4, ipv6)), at + _NETWORK.size


def _taken(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, serial, count = _TAKEN.unpack_from(data, at)
    if not 0 < count <= MAX_TAKEN:
        raise ValueError("wrong count")
    at += _TAKEN.size
    networks: list[IPNetwork] = []
    for _ in range(count):
        length, address = _PREFIX.unpack_from(data, at)
        at += _PREFIX.size
        if length >= 96 and address[:12] == _MAPPED:
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
    kind, reason = _BYTE.unpack_from(data, at)
    return (kind, 0, CloseReason(reason)), at + _BYTE.size


def _joined(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, proof = _JOINED.unpack_from(data, at)
    return (kind, 0, proof), at + _JOINED.size


_DECODERS = {
    OPEN: _open,
    OPENED: _opened,
    REFUSED: _refused,
    DATA: _data,
    FIN: _fin,
    RESET: _reset,
    WINDOW: _window,
    STREAMS: _number,
    REKEY: _message,
    REKEY_ANSWER: _message,
    REKEY_PLEASE: _epoch,
    LANE: _pair,
    NETWORK: _network,
    TAKEN: _taken,
    GOAWAY: _bare,
    PREFER: _pair,
    ABANDON: _records,
    ACK: _records,
    PING: _number,
    PONG: _number,
    SWITCH: _epoch,
    DATAGRAM: _datagram,
    PACKET: _packet,
    ADVERTISE: _advertise,
    CLOSE: _close,
    ACCEPT: _bare,
    NO_SESSION: _bare,
    JOINED: _joined,
}
