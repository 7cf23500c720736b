"""Any small frame, encoded and as it decodes, for hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.wire import StreamProtocol

NAME = Destination("example.com", 443)
V4 = Destination("192.0.2.1", 80)
V6 = Destination("2001:db8::1", 65535)
LONGEST_NAME = Destination(".".join(["a" * 63] * 3 + ["b" * 61]), 1)

STREAMS = st.integers(0, 2**32 - 1)
NUMBERS = st.integers(0, 2**64 - 1)
DESTINATIONS = st.sampled_from([NAME, V4, V6, LONGEST_NAME])
REASONS = st.sampled_from(StreamReason)

type Expected = tuple[int, int, Any]

SMALL_FRAMES = st.one_of(
    st.builds(
        lambda stream, protocol, destination: (
            wire.encode_open(stream, protocol, destination),
            (wire.OPEN, stream, (protocol, destination)),
        ),
        STREAMS,
        st.sampled_from(StreamProtocol),
        DESTINATIONS,
    ),
    st.builds(lambda stream: (wire.encode_opened(stream), (wire.OPENED, stream, None)), STREAMS),
    st.builds(lambda stream: (wire.encode_fin(stream), (wire.FIN, stream, None)), STREAMS),
    st.builds(
        lambda stream, reason: (wire.encode_refused(stream, reason), (wire.REFUSED, stream, reason)),
        STREAMS,
        REASONS,
    ),
    st.builds(
        lambda stream, reason: (wire.encode_reset(stream, reason), (wire.RESET, stream, reason)),
        STREAMS,
        REASONS,
    ),
    st.builds(
        lambda stream, limit: (wire.encode_window(stream, limit), (wire.WINDOW, stream, limit)),
        STREAMS,
        NUMBERS,
    ),
    st.builds(
        lambda kind, value: (wire.encode_number(kind, value), (kind, 0, value)),
        st.sampled_from([wire.ACK, wire.PING, wire.PONG]),
        NUMBERS,
    ),
    st.builds(
        lambda kind, message: (wire.encode_message(kind, message), (kind, 0, message)),
        st.sampled_from([wire.REKEY, wire.REKEY_ANSWER]),
        st.binary(max_size=40),
    ),
    st.builds(
        lambda stream, destination, payload: (
            wire.encode_datagram(stream, destination, payload),
            (wire.DATAGRAM, stream, (destination, payload)),
        ),
        STREAMS,
        DESTINATIONS,
        st.binary(max_size=40),
    ),
    st.builds(
        lambda epoch, index: (wire.encode_lane(epoch, index), (wire.LANE, 0, (epoch, index))),
        STREAMS,
        STREAMS,
    ),
    st.builds(
        lambda flags, segment, header, packet: (
            wire.encode_packet(flags, segment, header, packet),
            (wire.PACKET, 0, (flags, segment, header, packet)),
        ),
        st.integers(0, 255),
        st.integers(0, 65_535),
        st.integers(0, 65_535),
        st.binary(min_size=1, max_size=40),
    ),
    st.builds(
        lambda address: (wire.encode_advertise(address), (wire.ADVERTISE, 0, address)),
        st.sampled_from([V4, V6]),
    ),
    st.just((wire.encode_bare(wire.GOAWAY), (wire.GOAWAY, 0, None))),
    st.builds(
        lambda received, proof: (wire.encode_resumed(received, proof), (wire.RESUMED, 0, (received, proof))),
        NUMBERS,
        st.binary(min_size=32, max_size=32),
    ),
)
