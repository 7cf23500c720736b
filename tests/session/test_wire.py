"""Frames: what is encoded is decoded, and of everything else only PeerError comes out."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.address import encode as encode_destination
from cryprq_proxy.errors import CloseReason, PeerError, StreamReason
from cryprq_proxy.rules.ranges import IPNetwork
from cryprq_proxy.session import wire
from cryprq_proxy.session.wire import Kind, StreamProtocol, decode_frames
from tests.support.frames import LONGEST_NAME, NAME, SMALL_FRAMES, STREAMS, V4, V6, Expected

EDGES: list[IPNetwork] = [
    *(IPv4Network(text) for text in ("0.0.0.0/0", "192.168.77.0/24", "255.255.255.255/32", "10.0.0.0/8")),
    *(IPv6Network(text) for text in ("::/0", "fd00::/8", "::fffe:0:0/95", "::1/128")),
]
FRAMES: list[tuple[bytes, Expected]] = [
    (wire.encode_open(7, StreamProtocol.TCP, NAME), (wire.OPEN, 7, (StreamProtocol.TCP, NAME))),
    (wire.encode_open(7, StreamProtocol.TCP, V4), (wire.OPEN, 7, (StreamProtocol.TCP, V4))),
    (wire.encode_open(7, StreamProtocol.UDP, V6), (wire.OPEN, 7, (StreamProtocol.UDP, V6))),
    (wire.encode_opened(8), (wire.OPENED, 8, None)),
    (wire.encode_refused(9, StreamReason.NAME_NOT_FOUND), (wire.REFUSED, 9, StreamReason.NAME_NOT_FOUND)),
    (wire.encode_data_header(wire.DATA, 10) + b"abc", (wire.DATA, 10, b"abc")),
    (wire.encode_fin(2**32 - 1), (wire.FIN, 2**32 - 1, None)),
    (wire.encode_reset(11, StreamReason.CANCELLED), (wire.RESET, 11, StreamReason.CANCELLED)),
    (wire.encode_number(wire.ACK, 2**64 - 1), (wire.ACK, 0, 2**64 - 1)),
    (wire.encode_window(12, 2**40), (wire.WINDOW, 12, 2**40)),
    (wire.encode_number(wire.PING, 1), (wire.PING, 0, 1)),
    (wire.encode_number(wire.PONG, 1), (wire.PONG, 0, 1)),
    (wire.encode_message(wire.REKEY, b"m" * 1248), (wire.REKEY, 0, b"m" * 1248)),
    (wire.encode_message(wire.REKEY_ANSWER, b""), (wire.REKEY_ANSWER, 0, b"")),
    (wire.encode_bare(wire.SWITCH), (wire.SWITCH, 0, None)),
    (wire.encode_bare(wire.REKEY_PLEASE), (wire.REKEY_PLEASE, 0, None)),
    (wire.encode_datagram(13, V4, b"payload"), (wire.DATAGRAM, 13, (V4, b"payload"))),
    (wire.encode_datagram(13, NAME, b""), (wire.DATAGRAM, 13, (NAME, b""))),
    (wire.encode_lane(7, 2**32 - 1), (wire.LANE, 0, (7, 2**32 - 1))),
    (wire.encode_packet(3, 1400, 52, b"packet"), (wire.PACKET, 0, (3, 1400, 52, b"packet"))),
    (wire.encode_network(bytes(4), bytes(16)), (wire.NETWORK, 0, (bytes(4), bytes(16)))),
    (wire.encode_taken(EDGES[:1]), (wire.TAKEN, 0, (EDGES[0],))),
    (wire.encode_taken([*EDGES, *EDGES]), (wire.TAKEN, 0, (*EDGES, *EDGES))),
    (wire.encode_bare(wire.GOAWAY), (wire.GOAWAY, 0, None)),
    (wire.encode_advertise(V4), (wire.ADVERTISE, 0, V4)),
    (wire.encode_advertise(V6), (wire.ADVERTISE, 0, V6)),
    (wire.encode_close(CloseReason.LIMIT), (wire.CLOSE, 0, CloseReason.LIMIT)),
    (wire.encode_bare(wire.ACCEPT), (wire.ACCEPT, 0, None)),
    (wire.encode_resumed(5, bytes(range(32))), (wire.RESUMED, 0, (5, bytes(range(32))))),
    (wire.encode_bare(wire.NO_SESSION), (wire.NO_SESSION, 0, None)),
]
BY_KIND = [pytest.param(*frame, id=f"{Kind(frame[1][0]).name}-{index}") for index, frame in enumerate(FRAMES)]


def refusal(plaintext: bytes) -> PeerError:
    with pytest.raises(PeerError) as caught:
        decode_frames(plaintext)
    assert type(caught.value) is PeerError
    assert caught.value.reason is CloseReason.PROTOCOL
    return caught.value


def test_every_kind_is_here() -> None:
    assert {expected[0] for _, expected in FRAMES} == set(Kind)
    assert set(wire._DECODERS) == set(Kind)


@pytest.mark.parametrize(("encoded", "expected"), BY_KIND)
def test_a_frame_comes_back(encoded: bytes, expected: Expected) -> None:
    assert decode_frames(encoded) == [expected]


@pytest.mark.parametrize(("encoded", "expected"), BY_KIND)
def test_a_frame_cut_short_is_refused(encoded: bytes, expected: Expected) -> None:
    # Less data is a shorter frame, not a broken one.
    shortest = wire.DATA_HEADER + 1 if expected[0] == wire.DATA else len(encoded)
    for size in range(1, shortest):
        error = refusal(encoded[:size])
        assert Kind(expected[0]).name in str(error)
        # also behind a whole frame
        refusal(wire.encode_fin(1) + encoded[:size])


@pytest.mark.parametrize(("encoded", "expected"), BY_KIND)
def test_what_follows_a_frame_is_the_next_one(encoded: bytes, expected: Expected) -> None:
    if expected[0] == wire.DATA:
        assert decode_frames(encoded + b"\xff") == [(wire.DATA, expected[1], expected[2] + b"\xff")]
        return
    assert decode_frames(encoded + wire.encode_fin(3)) == [expected, (wire.FIN, 3, None)]
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
        b"\x01" + bytes(4) + b"\x04" + b"\x01" + bytes(6),  # unknown stream protocol
        b"\x01" + bytes(4) + b"\x01" + b"\x02" + bytes(6),  # unknown address type
        b"\x01" + bytes(4) + b"\x01" + b"\x03\x00" + bytes(2),  # empty name
        b"\x01" + bytes(4) + b"\x01" + b"\x03\x03a b" + bytes(2),  # no name at all
        b"\x03" + bytes(4) + b"\xff",  # unknown reasons
        b"\x06" + bytes(4) + b"\xff",
        b"\x1f\xff",
        b"\x04" + bytes(4),  # no data
        b"\x18" + bytes(4) + b"\x00\x01" + b"\x01" + bytes(6),  # payload missing
        b"\x1a" + bytes(5) + b"\x00\x00",  # no packet
        b"\x1a" + bytes(5) + b"\x00\x02x",  # half a packet
        b"\x18" + bytes(4) + b"\xff\xff" + b"\x01" + bytes(6) + bytes(65_535),  # more than a UDP packet holds
    ],
)
def test_malformed_fields_are_refused(frame: bytes) -> None:
    refusal(frame)


def test_data_has_a_largest_size() -> None:
    header = wire.encode_data_header(wire.DATA, 1)
    assert len(decode_frames(header + bytes(wire.MAX_DATA))[0][2]) == wire.MAX_DATA  # type: ignore[arg-type]
    refusal(header + bytes(wire.MAX_DATA + 1))


def test_the_largest_frames_fit_a_record() -> None:
    payload = bytes(wire.MAX_DATAGRAM)
    frame = wire.encode_datagram(1, LONGEST_NAME, payload)
    assert decode_frames(frame) == [(wire.DATAGRAM, 1, (LONGEST_NAME, payload))]
    assert len(frame) <= wire.MAX_PLAINTEXT
    assert wire.DATA_HEADER + wire.MAX_DATA <= wire.MAX_PLAINTEXT


def test_payloads_are_not_copied() -> None:
    data = wire.encode_data_header(wire.DATA, 1) + b"abc"
    payload = decode_frames(data)[0][2]
    assert isinstance(payload, memoryview) and payload.obj is data


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
        frames = [
            *frames,
            (wire.encode_data_header(wire.DATA, stream) + payload, (wire.DATA, stream, payload)),
        ]
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
    refusal(bytes([wire.TAKEN]) + prefixes)


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
