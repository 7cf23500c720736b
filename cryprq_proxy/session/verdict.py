"""The exit's verdict on a handshake: its first record, which holds one frame (docs/protocol.md, section 5).

A client that resumes reads it before it has a carrier (carriers/admission.py), one that begins a session on the carrier
(`Session.attach` with `admitted`), since OPEN and first data may leave before it has come.
"""

from __future__ import annotations

from typing import Final

from ..errors import CarrierError, CloseReason, NotAdmitted, PeerError, words_of
from . import wire
from .frame_reader import decode_frames
from .records import HEADER, TAG, RecordOpener

MAX_VERDICT: Final = 64
"""Bytes of frames in the exit's first record at most."""


def open_verdict(opener: RecordOpener, data: memoryview, *kinds: int) -> tuple[wire.Frame | None, int]:
    """The verdict's frame, of one of `kinds`, and where the next record begins; position 0 while `data` does not hold
    all of it.

    Raises CarrierError for a length out of range, before the bytes are there, and for a record that does not
    authenticate; NotAdmitted for CLOSE, and for whatever else is not one frame of these kinds.
    """
    if len(data) >= HEADER and not TAG < int.from_bytes(data[:HEADER]) <= TAG + MAX_VERDICT:
        raise CarrierError(CloseReason.BAD_RECORD, "the exit's first record has an impossible length")
    plaintext, position = opener.open(data, 0)
    if plaintext is None:
        return None, 0
    try:
        frames = decode_frames(bytes(plaintext))
    except PeerError:
        frames = []
    kind, _, value = frames[0] if len(frames) == 1 else (0, 0, None)
    if kind == wire.CLOSE and isinstance(value, CloseReason):
        raise NotAdmitted(value, f"the exit closed the link: {words_of(value)}")
    if kind not in kinds:
        text = "the exit's first record is not an answer to the handshake"
        raise NotAdmitted(CloseReason.PROTOCOL, text)
    return frames[0], position
