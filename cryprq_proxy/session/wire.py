"""The frames inside a record: every layout of the link's inner protocol, declared once, and how frames are written.

They are read in frame_reader.py.

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
                  kind | epoch u32 | part u8 | length u16 | a third of the handshake message
    REKEY_PLEASE  kind | epoch u32
    LANE          kind | epoch u32 | index u32 | use u8
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

from collections.abc import Sequence
from enum import IntEnum
from ipaddress import IPv4Network
from struct import Struct
from typing import Final

from ..address import Destination
from ..address import encode as encode_destination
from ..errors import CloseReason, StreamReason
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
PARTS: Final = 3
"""Frames of one message of the rotation: so each reliable frame, apart from DATA, fits the smallest datagram of the
lane."""
MAX_PART: Final = 416
"""Bytes of a part: a third of the longer message."""
MAPPED: Final = bytes(10) + b"\xff\xff"


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
    """What an OPEN requests. TCP: a connection to the destination. UDP: an association; RESOLVER: the exit's own
    DNS resolver, as over TCP (RFC 7766). REPORT: what the exit tells about itself. All but TCP ignore the
    destination."""

    TCP = 1
    UDP = 2
    RESOLVER = 3
    REPORT = 4


class LaneUse(IntEnum):
    """What streams may use, as the client is set: what is better, TCP, or the lane while it is up. The exit, whose
    setting it is not, says AUTO."""

    AUTO = 0
    TCP = 1
    UDP = 2


# Plain integers for the data path: each use of an IntEnum member costs a look-up in the dictionary of its class.
OPEN, OPENED, REFUSED, DATA, RESET, WINDOW, STREAMS, REKEY, REKEY_ANSWER, REKEY_PLEASE = range(0x01, 0x0B)
LANE, NETWORK, TAKEN, GOAWAY, PREFER, ABANDON, FIN = range(0x0B, 0x12)
ACK, PING, PONG, SWITCH, DATAGRAM, PACKET, ADVERTISE, CLOSE = range(0x20, 0x28)
ACCEPT, NO_SESSION, JOINED = range(0x28, 0x2B)

STREAM_LAYOUT = Struct("!BI")
STREAM_BYTE_LAYOUT = Struct("!BIB")
RESET_LAYOUT = Struct("!BIBQ")
BOUND_LAYOUT = Struct("!BIQ")
NUMBER_LAYOUT = Struct("!BQ")
EPOCH_LAYOUT = Struct("!BI")
PAIR_LAYOUT = Struct("!BII")
LANE_LAYOUT = Struct("!BIIB")
BYTE_LAYOUT = Struct("!BB")
PART_LAYOUT = Struct("!BIBH")
DATAGRAM_LAYOUT = Struct("!BIH")
PACKET_LAYOUT = Struct("!BBHHH")
NETWORK_LAYOUT = Struct("!BI4s16s")
TAKEN_LAYOUT = Struct("!BIB")
PREFIX_LAYOUT = Struct("!B16s")
JOINED_LAYOUT = Struct("!B32s")

type Frame = tuple[int, int, object]
"""A decoded frame: kind, stream id (0 for frames of no one stream), and a value that depends on the kind:
`(StreamProtocol, Destination)` for OPEN, `StreamReason` for REFUSED, `(offset, memoryview)` for DATA,
`(StreamReason, final offset)` for RESET, an int for FIN, WINDOW, STREAMS, PING, PONG, REKEY_PLEASE and SWITCH,
`(epoch, part, bytes)` for REKEY and REKEY_ANSWER, `(epoch, index, LaneUse)` for LANE, `(serial, bytes, bytes)` for
NETWORK, `(serial, tuple of networks)` for TAKEN, `(serial, path)` for PREFER, `(path, records)` for ABANDON and
ACK, `(Destination, memoryview)` for DATAGRAM, `(int, int, int, memoryview)` for PACKET, a Destination for ADVERTISE,
`CloseReason` for CLOSE, bytes for JOINED, None for the rest."""


def encode_open(stream: int, protocol: StreamProtocol, destination: Destination) -> bytes:
    return STREAM_BYTE_LAYOUT.pack(OPEN, stream, protocol) + encode_destination(destination)


def encode_opened(stream: int) -> bytes:
    return STREAM_LAYOUT.pack(OPENED, stream)


def encode_refused(stream: int, reason: StreamReason) -> bytes:
    return STREAM_BYTE_LAYOUT.pack(REFUSED, stream, reason)


encode_data_header = BOUND_LAYOUT.pack
"""`encode_data_header(DATA, stream, offset)`: the 13 bytes in front of stream data."""


def encode_fin(stream: int, final: int) -> bytes:
    """`final`: how many bytes the stream has in all, in this direction."""
    return BOUND_LAYOUT.pack(FIN, stream, final)


def encode_reset(stream: int, reason: StreamReason, final: int) -> bytes:
    """`final`: how many bytes of the stream this side has sent in all."""
    return RESET_LAYOUT.pack(RESET, stream, reason, final)


def encode_window(stream: int, limit: int) -> bytes:
    return BOUND_LAYOUT.pack(WINDOW, stream, limit)


def encode_number(kind: int, value: int) -> bytes:
    """STREAMS, PING or PONG."""
    return NUMBER_LAYOUT.pack(kind, value)


def encode_part(kind: int, epoch: int, part: int, data: bytes) -> bytes:
    """REKEY or REKEY_ANSWER: part number `part`, from 0, of a message of the rotation."""
    return PART_LAYOUT.pack(kind, epoch, part, len(data)) + data


def encode_message(kind: int, epoch: int, message: bytes) -> list[bytes]:
    """The frames of a whole message of the rotation."""
    size = -(-len(message) // PARTS)
    return [encode_part(kind, epoch, part, message[part * size : (part + 1) * size]) for part in range(PARTS)]


def encode_epoch(kind: int, epoch: int) -> bytes:
    """REKEY_PLEASE or SWITCH."""
    return EPOCH_LAYOUT.pack(kind, epoch)


def encode_bare(kind: int) -> bytes:
    """GOAWAY, ACCEPT or NO_SESSION."""
    return bytes((kind,))


def encode_prefer(serial: int, path: int) -> bytes:
    return PAIR_LAYOUT.pack(PREFER, serial, path)


def encode_records(kind: int, path: int, records: int) -> bytes:
    """ACK or ABANDON: how many records have come on `path` in all."""
    return BOUND_LAYOUT.pack(kind, path, records)


def encode_datagram(stream: int, destination: Destination, payload: bytes | memoryview) -> bytes:
    address = encode_destination(destination)
    return b"".join((DATAGRAM_LAYOUT.pack(DATAGRAM, stream, len(payload)), address, payload))


def encode_lane(epoch: int, index: int, use: LaneUse = LaneUse.AUTO) -> bytes:
    return LANE_LAYOUT.pack(LANE, epoch, index, use)


def encode_packet(flags: int, segment: int, header: int, packet: bytes | memoryview) -> bytes:
    """`packet` has 1 to 65,535 bytes; lane/slices.py explains the other fields."""
    return b"".join((PACKET_LAYOUT.pack(PACKET, flags, segment, header, len(packet)), packet))


def encode_network(serial: int, ipv4: bytes, ipv6: bytes) -> bytes:
    """The client's addresses inside the tunnel, 4 and 16 bytes; zeros if the exit has no address of that family."""
    return NETWORK_LAYOUT.pack(NETWORK, serial, ipv4, ipv6)


def encode_taken(serial: int, networks: Sequence[IPNetwork]) -> bytes:
    """Prefixes in which the client can take no address, 1 to MAX_TAKEN."""
    parts = [TAKEN_LAYOUT.pack(TAKEN, serial, len(networks))]
    for network in networks:
        if isinstance(network, IPv4Network):
            parts.append(PREFIX_LAYOUT.pack(96 + network.prefixlen, MAPPED + network.network_address.packed))
        else:
            parts.append(PREFIX_LAYOUT.pack(network.prefixlen, network.network_address.packed))
    return b"".join(parts)


def encode_advertise(address: Destination) -> bytes:
    """Where the exit is reached itself; an address literal with a port above 0."""
    return bytes((ADVERTISE,)) + encode_destination(address)


def encode_close(reason: CloseReason) -> bytes:
    return BYTE_LAYOUT.pack(CLOSE, reason)


def encode_joined(proof: bytes) -> bytes:
    return JOINED_LAYOUT.pack(JOINED, proof)
