"""The frames inside a record: every layout of the link's inner protocol, declared once.

A record's plaintext is a sequence of frames without padding. All integers are big-endian. Every frame starts with
one byte, its kind. A DATA frame is the last of its record and takes the rest: 128 KiB of stream data cost one header
of five bytes and one seal.

    OPEN          kind | stream u32 | protocol u8 | destination (RFC 1928 section 5)
    OPENED        kind | stream u32
    REFUSED       kind | stream u32 | reason u8
    DATA          kind | stream u32 | rest of the record, 1 to 131,072 bytes
    FIN           kind | stream u32
    RESET         kind | stream u32 | reason u8
    ACK           kind | numbered frames received u64
    WINDOW        kind | stream u32 | bytes of the stream that may be sent in all u64
    PING, PONG    kind | token u64
    REKEY, REKEY_ANSWER
                  kind | length u16 | handshake message
    SWITCH, REKEY_PLEASE
                  kind
    DATAGRAM      kind | stream u32 | length u16 | destination | payload, `length` bytes
    LANE          kind | epoch u32 | index u32
    PACKET        kind | flags u8 | segment size u16 | header size u16 | length u16 | IP packet, `length` bytes
    NETWORK       kind | IPv4 address, 4 bytes | IPv6 address, 16 bytes
    TAKEN         kind | count u8 | count times: prefix length u8, IPv6 address (IPv4 as ::ffff:0:0/96), 16 bytes
    GOAWAY        kind
    ADVERTISE     kind | destination, an address and no name
    CLOSE         kind | reason u8
    ACCEPT, NO_SESSION
                  kind
    RESUMED       kind | numbered frames received u64 | proof, 32 bytes

The first six are *numbered*: both sides count them, and the sender keeps them until the ACK (see sendlog.py).
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
DATA_HEADER: Final = 5
MAX_PLAINTEXT: Final = MAX_DATA + 512
"""Largest number of bytes of frames in one record: a full DATA or DATAGRAM frame with its header and address."""
MAX_STREAM: Final = 0xFFFF_FFFF
"""The last stream id of a session; no id is used twice."""
MAX_DATAGRAM: Final = 65_507
"""Largest number of bytes of payload in one DATAGRAM frame: what fits into one UDP packet over IPv4."""

MAX_TAKEN: Final = 16
"""Prefixes in one TAKEN frame."""
_MAPPED: Final = bytes(10) + b"\xff\xff"


class Kind(IntEnum):
    """First byte of a frame."""

    OPEN = 0x01
    OPENED = 0x02
    REFUSED = 0x03
    DATA = 0x04
    FIN = 0x05
    RESET = 0x06
    ACK = 0x10
    WINDOW = 0x11
    PING = 0x12
    PONG = 0x13
    REKEY = 0x14
    REKEY_ANSWER = 0x15
    SWITCH = 0x16
    REKEY_PLEASE = 0x17
    DATAGRAM = 0x18
    LANE = 0x19
    PACKET = 0x1A
    NETWORK = 0x1B
    TAKEN = 0x1C
    GOAWAY = 0x1D
    ADVERTISE = 0x1E
    CLOSE = 0x1F
    ACCEPT = 0x20
    RESUMED = 0x21
    NO_SESSION = 0x22


class StreamProtocol(IntEnum):
    """What an OPEN requests. TCP: a connection to the destination. UDP: an association; RESOLVER: a TCP connection to
    the exit's own DNS resolver (RFC 7766); both ignore the destination."""

    TCP = 1
    UDP = 2
    RESOLVER = 3


# Plain integers for the data path: each use of an IntEnum member costs a look-up in the dictionary of its class.
OPEN, OPENED, REFUSED, DATA, FIN, RESET = range(0x01, 0x07)
ACK, WINDOW, PING, PONG, REKEY, REKEY_ANSWER, SWITCH, REKEY_PLEASE, DATAGRAM = range(0x10, 0x19)
LANE, PACKET, NETWORK, TAKEN, GOAWAY, ADVERTISE = range(0x19, 0x1F)
CLOSE, ACCEPT, RESUMED, NO_SESSION = 0x1F, 0x20, 0x21, 0x22

_STREAM = Struct("!BI")
_STREAM_BYTE = Struct("!BIB")
_WINDOW = Struct("!BIQ")
_NUMBER = Struct("!BQ")
_BYTE = Struct("!BB")
_LENGTH = Struct("!BH")
_DATAGRAM = Struct("!BIH")
_RESUMED = Struct("!BQ32s")
_LANE = Struct("!BII")
_PACKET = Struct("!BBHHH")
_NETWORK = Struct("!B4s16s")
_PREFIX = Struct("!B16s")

type Frame = tuple[int, int, object]
"""A decoded frame: kind, stream id (0 for frames of the whole session), and a value that depends on the kind:
`(StreamProtocol, Destination)` for OPEN, `StreamReason` for REFUSED and RESET, a memoryview for DATA, an int for ACK,
WINDOW, PING and PONG, bytes for REKEY and REKEY_ANSWER, `(Destination, memoryview)` for DATAGRAM, `(int, int)` for
LANE, `(int, int, int, memoryview)` for PACKET, `(bytes, bytes)` for NETWORK, a tuple of networks for TAKEN, a
Destination for ADVERTISE, `CloseReason` for CLOSE, `(int, bytes)` for RESUMED, None for the rest."""


def encode_open(stream: int, protocol: StreamProtocol, destination: Destination) -> bytes:
    return _STREAM_BYTE.pack(OPEN, stream, protocol) + encode_destination(destination)


def encode_opened(stream: int) -> bytes:
    return _STREAM.pack(OPENED, stream)


def encode_refused(stream: int, reason: StreamReason) -> bytes:
    return _STREAM_BYTE.pack(REFUSED, stream, reason)


encode_data_header = _STREAM.pack
"""`encode_data_header(DATA, stream)`: the five bytes in front of stream data."""


def encode_fin(stream: int) -> bytes:
    return _STREAM.pack(FIN, stream)


def encode_reset(stream: int, reason: StreamReason) -> bytes:
    return _STREAM_BYTE.pack(RESET, stream, reason)


def encode_window(stream: int, limit: int) -> bytes:
    return _WINDOW.pack(WINDOW, stream, limit)


def encode_number(kind: int, value: int) -> bytes:
    """ACK, PING or PONG."""
    return _NUMBER.pack(kind, value)


def encode_message(kind: int, message: bytes) -> bytes:
    """REKEY or REKEY_ANSWER."""
    return _LENGTH.pack(kind, len(message)) + message


def encode_bare(kind: int) -> bytes:
    """SWITCH, REKEY_PLEASE, GOAWAY, ACCEPT or NO_SESSION."""
    return bytes((kind,))


def encode_datagram(stream: int, destination: Destination, payload: bytes | memoryview) -> bytes:
    address = encode_destination(destination)
    return b"".join((_DATAGRAM.pack(DATAGRAM, stream, len(payload)), address, payload))


def encode_lane(epoch: int, index: int) -> bytes:
    return _LANE.pack(LANE, epoch, index)


def encode_packet(flags: int, segment: int, header: int, packet: bytes | memoryview) -> bytes:
    """`packet` has 1 to 65,535 bytes; lane/slices.py explains the other fields."""
    return b"".join((_PACKET.pack(PACKET, flags, segment, header, len(packet)), packet))


def encode_network(ipv4: bytes, ipv6: bytes) -> bytes:
    """The client's addresses inside the tunnel, 4 and 16 bytes; zeros if the exit has no address of that family."""
    return _NETWORK.pack(NETWORK, ipv4, ipv6)


def encode_taken(networks: Sequence[IPNetwork]) -> bytes:
    """Prefixes in which the client can take no address, 1 to MAX_TAKEN."""
    parts = [_BYTE.pack(TAKEN, len(networks))]
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


def encode_resumed(received: int, proof: bytes) -> bytes:
    return _RESUMED.pack(RESUMED, received, proof)


def read_frames(plaintext: bytes) -> Iterator[Frame]:
    """The frames of one record, each decoded when it is asked for.

    Payloads are views of `plaintext`, not copies. Raises PeerError (PROTOCOL) for an empty record, an unknown kind, a
    frame cut short, an unknown protocol or reason, or a malformed destination.
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


def decode_frames(plaintext: bytes) -> list[Frame]:
    """All frames of one short record, in order; as `read_frames`."""
    return list(read_frames(plaintext))


# Decoders, one per layout. A frame cut short ends in struct.error, an IndexError or one of the explicit ValueErrors.


def _open(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, protocol = _STREAM_BYTE.unpack_from(data, at)
    destination, at = decode_destination(data, at + _STREAM_BYTE.size)
    return (kind, stream, (StreamProtocol(protocol), destination)), at


def _stream(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream = _STREAM.unpack_from(data, at)
    return (kind, stream, None), at + _STREAM.size


def _reason(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, reason = _STREAM_BYTE.unpack_from(data, at)
    return (kind, stream, StreamReason(reason)), at + _STREAM_BYTE.size


def _data(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream = _STREAM.unpack_from(data, at)
    payload = view[at + DATA_HEADER :]
    if not 0 < len(payload) <= MAX_DATA:
        raise ValueError("wrong length")
    return (kind, stream, payload), len(data)


def _window(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, limit = _WINDOW.unpack_from(data, at)
    return (kind, stream, limit), at + _WINDOW.size


def _number(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, value = _NUMBER.unpack_from(data, at)
    return (kind, 0, value), at + _NUMBER.size


def _message(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, length = _LENGTH.unpack_from(data, at)
    start = at + _LENGTH.size
    if start + length > len(data):
        raise ValueError("cut short")
    return (kind, 0, data[start : start + length]), start + length


def _bare(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    return (data[at], 0, None), at + 1


def _datagram(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, stream, length = _DATAGRAM.unpack_from(data, at)
    destination, start = decode_destination(data, at + _DATAGRAM.size)
    end = start + length
    if end > len(data) or length > MAX_DATAGRAM:
        raise ValueError("wrong length")
    return (kind, stream, (destination, view[start:end])), end


def _lane(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, epoch, index = _LANE.unpack_from(data, at)
    return (kind, 0, (epoch, index)), at + _LANE.size


def _packet(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, flags, segment, header, length = _PACKET.unpack_from(data, at)
    start = at + _PACKET.size
    end = start + length
    if not start < end <= len(data):
        raise ValueError("wrong length")
    return (kind, 0, (flags, segment, header, view[start:end])), end


def _network(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, ipv4, ipv6 = _NETWORK.unpack_from(data, at)
    return (kind, 0, (ipv4, ipv6)), at + _NETWORK.size


def _taken(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, count = _BYTE.unpack_from(data, at)
    if not 0 < count <= MAX_TAKEN:
        raise ValueError("wrong count")
    at += _BYTE.size
    networks: list[IPNetwork] = []
    for _ in range(count):
        length, address = _PREFIX.unpack_from(data, at)
        at += _PREFIX.size
        if length >= 96 and address[:12] == _MAPPED:
            networks.append(IPv4Network((address[12:], length - 96)))
        else:
            networks.append(IPv6Network((address, length)))
    return (kind, 0, tuple(networks)), at


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


def _resumed(data: bytes, view: memoryview, at: int) -> tuple[Frame, int]:
    kind, received, proof = _RESUMED.unpack_from(data, at)
    return (kind, 0, (received, proof)), at + _RESUMED.size


_DECODERS = {
    OPEN: _open,
    OPENED: _stream,
    REFUSED: _reason,
    DATA: _data,
    FIN: _stream,
    RESET: _reason,
    ACK: _number,
    WINDOW: _window,
    PING: _number,
    PONG: _number,
    REKEY: _message,
    REKEY_ANSWER: _message,
    SWITCH: _bare,
    REKEY_PLEASE: _bare,
    DATAGRAM: _datagram,
    LANE: _lane,
    PACKET: _packet,
    NETWORK: _network,
    TAKEN: _taken,
    GOAWAY: _bare,
    ADVERTISE: _advertise,
    CLOSE: _close,
    ACCEPT: _bare,
    RESUMED: _resumed,
    NO_SESSION: _bare,
}
