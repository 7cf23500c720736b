"""The layout of a lane datagram.

    kind u8 = 0x01 | index u32 | counter u64 | ciphertext | tag 16
    |<------ associated data, 13 bytes ----->|
              |<-- nonce, 12 bytes --------->|

The receiver draws `index` at random for one epoch and sends it over the link. Under one key the index never changes
and the counter never repeats, so the nonce is unique; the next key goes on counting where the last one stopped, so a
counter names one datagram of the session. The plaintext begins with the type of the message: a SLICE of a packet
(slices.py), or one of DATAGRAM to ACK.

    STREAM, STREAM_ASK  type u8 | index u8 | stream u32 | offset u64 | bytes of the stream from `offset` on
    FRAMES, FRAMES_ASK  type u8 | frames of the session
"""

from __future__ import annotations

import struct
from typing import Final

KIND: Final = 0x01
"""First byte of a lane datagram."""
EXPRESS_KIND: Final = 0x02
"""The same for a datagram that may be opened before earlier ones. It holds a whole packet that depends on no order and
is so small that an observer learns nothing from this byte."""
FIELDS: Final = "BIQ"
LANE_HEADER: Final = struct.Struct("!" + FIELDS)
HEADER: Final = LANE_HEADER.size
TAG: Final = 16
OVERHEAD: Final = HEADER + TAG
"""Bytes of a UDP payload that are not plaintext."""
MAX_TRAIN: Final = 64
"""Largest number of datagrams in one send: the limit of older kernels for UDP_SEGMENT."""

SLICE: Final = 0x01
DATAGRAM: Final = 0x02
PROBE: Final = 0x03
PROBE_ACK: Final = 0x04
CHALLENGE: Final = 0x05
RESPONSE: Final = 0x06
KEEPALIVE: Final = 0x07
STREAM: Final = 0x08
STREAM_ASK: Final = 0x09
"""STREAM that asks for an ACK at once; so is FRAMES_ASK."""
FRAMES: Final = 0x0A
FRAMES_ASK: Final = 0x0B
ACK: Final = 0x0C

STREAM_FIELDS: Final = "BBIQ"
STREAM_HEADER: Final = struct.Struct("!" + STREAM_FIELDS)
"""The `index` in it: how many datagrams directly before this one carry the bytes directly before, each as many as the
datagram of this size holds."""
STREAM_SIZE: Final = STREAM_HEADER.size
STREAM_OVERHEAD: Final = OVERHEAD + STREAM_SIZE
"""Bytes of a UDP payload that are not the stream's."""
MAX_STREAM: Final = 128 * 1024
"""Largest number of a stream's bytes that are sealed in one go."""
MAX_STREAM_SLICES: Final = 255
"""Largest number of datagrams for them, since their index is a byte."""
