"""Invariant: `decode_frames` raises PeerError (PROTOCOL) or nothing, and what it yields encodes to something equal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.errors import CloseReason, PeerError
    from cryprq_proxy.session import wire
    from cryprq_proxy.session.frame_reader import decode_frames


def encode(kind: int, stream: int, value: Any) -> bytes:  # noqa: C901  a case a frame
    if kind == wire.OPEN:
        return wire.encode_open(stream, *value)
    if kind == wire.OPENED:
        return wire.encode_opened(stream)
    if kind == wire.REFUSED:
        return wire.encode_refused(stream, value)
    if kind == wire.DATA:
        offset, payload = value
        return wire.encode_data_header(kind, stream, offset) + bytes(payload)
    if kind == wire.FIN:
        return wire.encode_fin(stream, value)
    if kind == wire.RESET:
        return wire.encode_reset(stream, *value)
    if kind == wire.WINDOW:
        return wire.encode_window(stream, value)
    if kind in (wire.STREAMS, wire.PING, wire.PONG):
        return wire.encode_number(kind, value)
    if kind in (wire.REKEY, wire.REKEY_ANSWER):
        return wire.encode_part(kind, *value)
    if kind in (wire.REKEY_PLEASE, wire.SWITCH):
        return wire.encode_epoch(kind, value)
    if kind in (wire.ABANDON, wire.ACK):
        return wire.encode_records(kind, *value)
    if kind == wire.PREFER:
        return wire.encode_prefer(*value)
    if kind == wire.DATAGRAM:
        return wire.encode_datagram(stream, *value)
    if kind == wire.LANE:
        return wire.encode_lane(*value)
    if kind == wire.PACKET:
        return wire.encode_packet(*value)
    if kind == wire.NETWORK:
        return wire.encode_network(*value)
    if kind == wire.TAKEN:
        return wire.encode_taken(*value)
    if kind == wire.ADVERTISE:
        return wire.encode_advertise(value)
    if kind == wire.CLOSE:
        return wire.encode_close(value)
    if kind == wire.JOINED:
        return wire.encode_joined(value)
    return wire.encode_bare(kind)


def fuzz(data: bytes) -> None:
    try:
        frames = decode_frames(data)
    except PeerError as error:
        if error.reason is not CloseReason.PROTOCOL:
            raise RuntimeError(f"{error.reason} is not the reason for bad frames") from error
        return
    if decode_frames(b"".join(encode(*frame) for frame in frames)) != frames:
        raise RuntimeError(f"{frames!r} do not encode to themselves")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
