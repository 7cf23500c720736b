"""The frames of the second client: docs/protocol.md, section 7, as far as a client without packets needs them."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Kind(IntEnum):
    OPEN, OPENED, REFUSED, DATA, RESET, WINDOW, STREAMS = range(0x01, 0x08)
    REKEY, REKEY_ANSWER, REKEY_PLEASE, LANE, NETWORK, TAKEN, GOAWAY, PREFER, ABANDON, FIN = range(0x08, 0x12)
    ACK, PING, PONG, SWITCH, DATAGRAM, PACKET, ADVERTISE, CLOSE = range(0x20, 0x28)
    ACCEPT, NO_SESSION, JOINED = range(0x28, 0x2B)


class Close(IntEnum):
    NORMAL, NOT_AUTHORIZED, PROTOCOL, CREDIT, RESUME, REKEY, BAD_RECORD, TIMED_OUT, SHUTTING_DOWN, LIMIT = (
        range(10)
    )


CONNECTION_REFUSED, CANCELLED, SESSION_LOST = 4, 11, 13
TCP, UDP = 1, 2
FIXED = {
    Kind.OPENED: ">I",
    Kind.REFUSED: ">IB",
    Kind.FIN: ">IQ",
    Kind.RESET: ">IBQ",
    Kind.WINDOW: ">IQ",
    Kind.STREAMS: ">Q",
    Kind.REKEY_PLEASE: ">I",
    Kind.LANE: ">IIB",
    Kind.GOAWAY: ">",
    Kind.ABANDON: ">IQ",
    Kind.ACK: ">IQ",
    Kind.PING: ">Q",
    Kind.PONG: ">Q",
    Kind.SWITCH: ">I",
    Kind.CLOSE: ">B",
    Kind.ACCEPT: ">",
    Kind.NO_SESSION: ">",
    Kind.JOINED: ">32s",
}
"""The frames of fixed size that an exit may send to a client without packets."""
Address = tuple[str, int]


@dataclass(eq=False)
class Unit:
    """A reliable frame, as its sender keeps it, and the stream of which it is."""

    frame: bytes
    stream: Any = None


class Violation(Exception):
    """The exit broke the protocol; the argument is the reason for CLOSE."""


def frame(kind: Kind, layout: str = "", *values: object) -> bytes:
    return struct.pack(">B" + layout, kind, *values)


def data_frame(stream: int, offset: int, data: bytes) -> bytes:
    return frame(Kind.DATA, "IQ", stream, offset) + data


def rekey_frame(epoch: int, part: int, third: bytes) -> bytes:
    return frame(Kind.REKEY, "IBH", epoch, part, len(third)) + third


def fin_frame(stream: int, final: int) -> bytes:
    return frame(Kind.FIN, "IQ", stream, final)


def put_address(address: Address) -> bytes:
    host, port = address
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return bytes([3, len(host)]) + host.encode("ascii") + struct.pack(">H", port)
    return bytes([1 if ip.version == 4 else 4]) + ip.packed + struct.pack(">H", port)


def take_address(data: bytes, at: int) -> tuple[Address, int]:
    """The address, which is none of a name, and the place behind it."""
    size = {1: 4, 4: 16}[data[at]]
    host = str(ipaddress.ip_address(data[at + 1 : at + 1 + size]))
    return (host, struct.unpack_from(">H", data, at + 1 + size)[0]), at + 3 + size


def frames(plaintext: bytes) -> Iterator[tuple[Kind, tuple[Any, ...]]]:
    """Each frame of a record with its fields."""
    at = 0
    if not plaintext:
        raise Violation(Close.PROTOCOL)
    while at < len(plaintext):
        try:
            kind = Kind(plaintext[at])
            if layout := FIXED.get(kind):
                yield kind, struct.unpack_from(layout, plaintext, at + 1)
                at += 1 + struct.calcsize(layout)
            elif kind == Kind.DATA:
                stream, offset = struct.unpack_from(">IQ", plaintext, at + 1)
                data, at = plaintext[at + 13 :], len(plaintext)
                if not 0 < len(data) <= 131_072 or offset + len(data) > 1 << 62:
                    raise ValueError("DATA")
                yield kind, (stream, offset, data)
            elif kind == Kind.REKEY_ANSWER:
                epoch, part, length = struct.unpack_from(">IBH", plaintext, at + 1)
                if part > 2 or length > 416:
                    raise ValueError("REKEY_ANSWER")
                yield kind, (epoch, part, plaintext[at + 8 : at + 8 + length])
                at += 8 + length
            elif kind == Kind.DATAGRAM:
                stream, length = struct.unpack_from(">IH", plaintext, at + 1)
                source, begin = take_address(plaintext, at + 7)
                at = begin + length
                yield kind, (stream, source, plaintext[begin:at])
            elif kind == Kind.ADVERTISE:
                address, at = take_address(plaintext, at + 1)
                yield kind, (address,)
            else:
                raise ValueError(kind)
        except (ValueError, KeyError, IndexError, struct.error) as error:
            raise Violation(Close.PROTOCOL) from error
    if at > len(plaintext):
        raise Violation(Close.PROTOCOL)
