"""The layout of a lane datagram.

    kind u8 = 0x01 | index u32 | counter u64 | ciphertext | tag 16
    |<------ associated data, 13 bytes ----->|
              |<-- nonce, 12 bytes --------->|

The receiver draws `index` at random for one epoch and sends it over the link. Under one key the index never changes
and the counter never repeats, so the nonce is unique. The plaintext begins with the type of the message: a SLICE of a
packet (slices.py), or one of DATAGRAM to KEEPALIVE.
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
