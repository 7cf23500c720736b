"""The numbers of DNS: sizes, times, flags, response codes, types and extended errors."""

from __future__ import annotations

import struct
from typing import Final

HEADER: Final = struct.Struct("!6H")
MAX_QUERY: Final = 4096
"""Bytes; a question and an OPT record with all options in use are far smaller."""
MAX_MESSAGE: Final = 65_535
MIN_PAYLOAD: Final = 512
PAYLOAD: Final = 1232
"""What fits unfragmented everywhere; the largest UDP answer given, and the size offered to upstreams."""
PADDING: Final = 128
"""Queries on encrypted streams are padded to a multiple of this (RFC 8467 section 4.1)."""
DAY: Final = 86_400
NEGATIVE_SECONDS: Final = 3600
"""RFC 2308 section 5 suggests one to three hours at most."""
STALE_TTL: Final = 30
"""RFC 8767 section 4."""
LOCAL_TTL: Final = 60
"""Of answers made here, in seconds."""

QR: Final = 0x8000
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
AD: Final = 0x0020
CD: Final = 0x0010
DO: Final = 0x8000
OPCODE: Final = 0x7800

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
YXDOMAIN: Final = 6
BADVERS: Final = 16

A: Final = 1
SOA: Final = 6
PTR: Final = 12
AAAA: Final = 28
OPT: Final = 41
RRSIG: Final = 46
ANY: Final = 255
META_TYPES: Final = range(128, 255)
"""RFC 6895 section 3.1: types of questions and of transfers (AXFR, IXFR), but for ANY."""

# Extended errors: options of EDNS (RFC 8914 section 2), with the codes of section 5.2.
EDE_OPTION: Final = 15
MAX_EDE_TEXT: Final = 255
"""Bytes of an upstream's text that is passed on; of a longer one only the code is."""
MAX_EDES: Final = 4
"""Extended errors of one answer that are passed on."""
EDE_STALE: Final = 3
EDE_BLOCKED: Final = 15
EDE_STALE_NXDOMAIN: Final = 19
EDE_NO_REACHABLE: Final = 22

QUESTION: Final = struct.Struct("!HH")
"""Type and class, behind the name."""

type Key = tuple[bytes, int, int]
"""What the cache knows an answer by: name, type, and the DO and CD bits."""
