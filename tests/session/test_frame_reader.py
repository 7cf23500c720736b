"""What is encoded is decoded, and of everything else only PeerError comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.address import encode as encode_destination
from cryprq_proxy.errors import CloseReason, PeerError, StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.frame_reader import DECODERS, decode_frames, read_data
from cryprq_proxy.session.wire import Kind, StreamProtocol
from tests.support.frames import (
    LONGEST_NAME,
    NAME,
    NETWORKS,
    OFFSETS,
    SMALL_FRAMES,
    STREAMS,
    V4,
    V6,
    WORKED,
    Expected,
)


def encode_data(stream: int, offset: int, payload: bytes) -> bytes:
    return wire.encode_data_header(wire.DATA, stream, offset) + payload


FRAMES: list[tuple[bytes, Expected]] = [
    *((worked.encoded, worked.decoded) for worked in WORKED),
    (wire.encode_open(7, StreamProtocol.TCP, V4), (wire.OPEN, 7, (StreamProtocol.TCP, V4))),
    (wire.encode_open(7, StreamProtocol.UDP, V6), (wire.OPEN, 7, (StreamProtocol.UDP, V6))),
    (wire.encode_opened(wire.MAX_STREAM), (wire.OPENED, wire.MAX_STREAM, None)),
    (encode_data(1, wire.MAX_OFFSET - 3, b"abc"), (wire.DATA, 1, (wire.MAX_OFFSET - 3, b"abc"))),
    (wire.encode_fin(wire.MAX_STREAM, 0), (wire.FIN, wire.MAX_STREAM, 0)),
    (wire.encode_fin(1, wire.MAX_OFFSET), (wire.FIN, 1, wire.MAX_OFFSET)),
    (
        wire.encode_reset(11, StreamReason.GENERAL, wire.MAX_OFFSET),
        (wire.RESET, 11, (StreamReason.GENERAL, wire.MAX_OFFSET)),
    ),
    (wire.encode_number(wire.STREAMS, 2**64 - 1), (wire.STREAMS, 0, 2**64 - 1)),
    (wire.encode_window(12, 2**40), (wire.WINDOW, 12, 2**40)),
    (wire.encode_part(wire.REKEY, 2**32 - 1, 2, b"m" * 416), (wire.REKEY, 0, (2**32 - 1, 2, b"m" * 416))),
    (wire.encode_part(wire.REKEY_ANSWER, 0, 0, b""), (wire.REKEY_ANSWER, 0, (0, 0, b""))),
    (wire.encode_records(wire.ACK, 2**32 - 1, 2**64 - 1), (wire.ACK, 0, (2**32 - 1, 2**64 - 1))),
    (wire.encode_datagram(13, V4, b"payload"), (wire.DATAGRAM, 13, (V4, b"payload"))),
    (wire.encode_datagram(13, NAME, b""), (wire.DATAGRAM, 13, (NAME, b""))),
    (wire.encode_packet(3, 1400, 52, b"packet"), (wire.PACKET, 0, (3, 1400, 52, b"packet"))),
    (wire.encode_taken(9, [*NETWORKS, *NETWORKS]), (wire.TAKEN, 0, (9, (*NETWORKS, *NETWORKS)))),
    (wire.encode_advertise(V6), (wire.ADVERTISE, 0, V6)),
]
BY_KIND = [pytest.param(*frame, id=f"{Kind(frame[1][0]).name}-{index}") for index, frame in enumerate(FRAMES)]


def refusal(plaintext: bytes) -> PeerError:
    with pytest.raises(PeerError) as caught:
        decode_frames(plaintext)
    assert type(caught.value) is PeerError
    assert caught.value.reason is CloseReason.PROTOCOL
    return caught.value


def test_every_kind_is_here() -> None:
    assert {expected[0] for _, expected in FRAMES} == set(DECODERS) == set(Kind)


@pytest.mark.parametrize(("encoded", "expected"), BY_KIND)
def test_a_frame_comes_back(encoded: bytes, expected: Expected) -> None:
    assert decode_frames(encoded) == [expected]


@pytest.mark.parametrize(("encoded", "expected"), BY_KIND)
def test_a_frame_cut_short_is_refused(encoded: bytes, expected: Expected) -> None:
    shortest = len(encoded)
    if expected[0] == wire.DATA:
        # Less data is a shorter frame, not a broken one.
        shortest = wire.DATA_HEADER + 1
    for size in range(1, shortest):
        error = refusal(encoded[:size])
        assert Kind(expected[0]).name in str(error)
        # also behind a whole frame
        refusal(wire.encode_opened(1) + encoded[:size])


@pytest.mark.parametrize(("encoded", "expected"), BY_KIND)
def test_what_follows_a_frame_is_the_next_one(encoded: bytes, expected: Expected) -> None:
    if expected[0] == wire.DATA:
        offset, payload = expected[2]
        if offset + len(payload) < wire.MAX_OFFSET:
            longer = (wire.DATA, expected[1], (offset, payload + b"\xff"))
            assert decode_frames(encoded + b"\xff") == [longer]
        else:
            refusal(encoded + b"\xff")
        return
    assert decode_frames(encoded + wire.encode_opened(3)) == [expected, (wire.OPENED, 3, None)]
    refusal(encoded + b"\x00")
    refusal(encoded + b"\xff")


def test_an_empty_record_is_refused() -> None:
    refusal(b"")


@pytest.mark.parametrize("kind", sorted(set(range(256)) - set(Kind)))
def test_unknown_kinds_are_refused(kind: int) -> None:
    assert f"{kind:#04x}" in str(refusal(bytes((kind,)) + bytes(300)))


@pytest.mark.parametrize(
    "frame",
    [
        "01 00000001 05 01 000000000000",
        "01 00000001 01 02 000000000000",
        "01 00000001 01 03 00 0000",
        "01 00000001 01 03 03612062 0000",
        "03 00000001 ff",
        "05 00000001 ff 0000000000000000",
        "05 00000001 00 4000000000000001",
        "11 00000001 4000000000000001",
        "11 00000001 ffffffffffffffff",
        "27 ff",
        "24 00000001 0001 01 000000000000",
        "25 00 0000 0000 0000",
        "25 00 0000 0000 0002 78",
        "24 00000001 ffff 01 000000000000" + "00" * 65_535,
        "08 00000001 0002 78",
        "0b 00000001 00000002 03",
        "0b 00000001 00000002",
    ],
    ids=[
        "an unknown stream protocol",
        "an unknown type of address",
        "an empty name",
        "no name at all",
        "an unknown reason of REFUSED",
        "an unknown reason of RESET",
        "a final offset of RESET out of range",
        "a final offset of FIN out of range",
        "the highest final offset",
        "an unknown reason of CLOSE",
        "no payload",
        "no packet",
        "half a packet",
        "more than a UDP packet holds",
        "half a message",
        "an unknown use of the lane",
        "no use of the lane",
    ],
)
def test_malformed_fields_are_refused(frame: str) -> None:
    refusal(bytes.fromhex(frame))


@pytest.mark.parametrize(
    "frame",
    [
        wire.encode_open(0, StreamProtocol.TCP, V4),
        wire.encode_opened(0),
        wire.encode_refused(0, StreamReason.GENERAL),
        encode_data(0, 0, b"abc"),
        wire.encode_fin(0, 0),
        wire.encode_reset(0, StreamReason.GENERAL, 0),
    ],
    ids=lambda frame: Kind(frame[0]).name,
)
def test_no_stream_has_the_number_0(frame: bytes) -> None:
    refusal(frame)


@pytest.mark.parametrize("read", [decode_frames, read_data], ids=["among others", "alone"])
@pytest.mark.parametrize(
    "frame",
    [
        encode_data(1, 0, b""),
        encode_data(0, 0, b"abc"),
        encode_data(1, 0, bytes(wire.MAX_DATA + 1)),
        encode_data(1, wire.MAX_OFFSET - 2, b"abc"),
        encode_data(1, wire.MAX_OFFSET, b"a"),
        encode_data(1, 2**64 - 1, b"abc"),
        encode_data(1, 0, b"")[:-1],
        b"\x04",
    ],
    ids=[
        "nothing",
        "stream 0",
        "too many",
        "beyond the last offset",
        "behind the last offset",
        "the highest offset",
        "half a header",
        "a kind alone",
    ],
)
def test_malformed_data_are_refused(frame: bytes, read: Callable[[bytes], object]) -> None:
    with pytest.raises(PeerError, match="malformed DATA") as caught:
        read(frame)
    assert caught.value.reason is CloseReason.PROTOCOL


def test_data_have_a_largest_size() -> None:
    encoded = encode_data(1, 5, bytes(wire.MAX_DATA))
    assert decode_frames(encoded) == [(wire.DATA, 1, (5, bytes(wire.MAX_DATA)))]


@given(STREAMS, OFFSETS, st.binary(max_size=40))
def test_data_alone_are_read_as_among_others(stream: int, offset: int, payload: bytes) -> None:
    encoded = bytearray(encode_data(stream, offset, payload))
    try:
        ((_, *frame),) = decode_frames(bytes(encoded))
    except PeerError:
        with pytest.raises(PeerError):
            read_data(encoded)
        return
    read_stream, *value = read_data(memoryview(encoded))
    assert [read_stream, tuple(value)] == frame
    encoded[-1] ^= 0xFF
    assert value[1] == encoded[wire.DATA_HEADER :], "the data are where they were"


def test_the_largest_frames_fit_a_record() -> None:
    payload = bytes(wire.MAX_DATAGRAM)
    frame = wire.encode_datagram(1, LONGEST_NAME, payload)
    assert decode_frames(frame) == [(wire.DATAGRAM, 1, (LONGEST_NAME, payload))]
    assert len(frame) <= wire.MAX_PLAINTEXT
    assert wire.DATA_HEADER + wire.MAX_DATA <= wire.MAX_PLAINTEXT


def test_payloads_are_not_copied() -> None:
    data = encode_data(1, 0, b"abc")
    value: Any = decode_frames(data)[0][2]
    assert isinstance(value[1], memoryview) and value[1].obj is data


@given(st.binary(max_size=600))
def test_only_peer_errors_come_out(plaintext: bytes) -> None:
    try:
        frames = decode_frames(plaintext)
    except PeerError as error:
        assert error.reason is CloseReason.PROTOCOL
    else:
        assert frames and all(kind in set(Kind) for kind, _, _ in frames)


@given(
    st.lists(st.sampled_from([encoded for encoded, _ in FRAMES]), min_size=1, max_size=4),
    st.data(),
)
def test_a_changed_frame_decodes_or_is_refused(encoded: list[bytes], data: st.DataObject) -> None:
    plaintext = bytearray(b"".join(encoded))
    for _ in range(data.draw(st.integers(1, 3))):
        plaintext[data.draw(st.integers(0, len(plaintext) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_frames(bytes(plaintext))
    except PeerError as error:
        assert error.reason is CloseReason.PROTOCOL


@given(st.lists(SMALL_FRAMES, min_size=1, max_size=8), STREAMS, st.binary(max_size=40))
def test_decoding_undoes_encoding(frames: list[tuple[bytes, Expected]], stream: int, payload: bytes) -> None:
    if payload:
        frames = [*frames, (encode_data(stream, 7, payload), (wire.DATA, stream, (7, payload)))]
    assert decode_frames(b"".join(encoded for encoded, _ in frames)) == [expected for _, expected in frames]


@pytest.mark.parametrize(
    "prefixes",
    [
        b"\x00",
        b"\x11" + bytes(17) * 17,
        b"\x01" + bytes([129]) + bytes(16),
        b"\x01" + bytes([64]) + bytes(15) + b"\x01",
        b"\x01" + bytes([104]) + bytes(10) + b"\xff\xff\x0a\0\0\x01",
    ],
    ids=["none", "too many", "too long", "a bit behind the length", "the same for IPv4"],
)
def test_prefixes_that_are_none_are_refused(prefixes: bytes) -> None:
    refusal(bytes([wire.TAKEN]) + bytes(4) + prefixes)


@pytest.mark.parametrize(
    "address",
    [
        encode_destination(NAME),
        b"\x03\x09127.0.0.1\x11\x51",
        encode_destination(Destination("192.0.2.1", 0)),
        b"\x02" + bytes(6),
    ],
    ids=["a name", "an address as a name", "no port", "another type"],
)
def test_an_exit_advertises_an_address_and_no_name(address: bytes) -> None:
    assert "ADVERTISE" in str(refusal(bytes([wire.ADVERTISE]) + address))


@pytest.mark.parametrize("kind", [wire.REKEY, wire.REKEY_ANSWER])
def test_parts_of_a_rotation_are_few_and_small(kind: int) -> None:
    assert decode_frames(wire.encode_part(kind, 1, wire.PARTS - 1, bytes(wire.MAX_PART)))
    for part, size in ((wire.PARTS, 0), (0, wire.MAX_PART + 1)):
        with pytest.raises(PeerError):
            decode_frames(wire.encode_part(kind, 1, part, bytes(size)))
