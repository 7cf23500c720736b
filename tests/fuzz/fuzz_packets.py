"""Invariant: `parse`, `describe`, `fit` and `split` never raise, and what `fit` lets pass splits into valid packets."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["tun"]):
    from cryprq_proxy.lane.slices import Run, Shape
    from tun.device.offload import VNET_SIZE, describe, fit, split
    from tun.device.packets import Drop, parse, prohibited

HEAD = struct.Struct(">BHHBBB")


def fuzz(data: bytes) -> None:
    if len(data) < HEAD.size + VNET_SIZE:
        return
    flags, gso_size, header, first, count, of = HEAD.unpack_from(data)
    start = 64
    room = bytearray(start - VNET_SIZE) + data[HEAD.size :]
    end = len(room)
    if flags & 0x80 and end - start >= 40:  # most inputs are no packets: make it one by its length
        room[start] = (room[start] & 0x0F) | (0x60 if flags & 0x40 else 0x40)
        at, total = (4, end - start - 40) if flags & 0x40 else (2, end - start)
        room[start + at : start + at + 2] = total.to_bytes(2)
    flags &= 0x0F
    parsed = parse(room, start, end)
    if not isinstance(parsed, Drop):
        prohibited(room, start, end, parsed, parsed.destination)
    read = memoryview(bytearray(room))
    received = memoryview(bytearray(room))
    shapes = (
        (read, describe(read, start, end)),
        (received, fit(received, start, end, Run(Shape(flags, gso_size, header), first, count, of))),
    )
    for buffer, shape in shapes:
        if isinstance(shape, Drop):
            continue
        if shape.gso_size and isinstance(parse(buffer, start, end), Drop):
            raise RuntimeError(f"{shape} of {bytes(buffer[start:end]).hex()}")
        for low, high in split(buffer, start, end, shape):
            if not start <= low < high <= end and low != high:
                raise RuntimeError(f"segment {low}:{high} of {start}:{end}")
            if shape.gso_size and isinstance(parse(buffer, low, high), Drop):
                raise RuntimeError(f"segment {bytes(buffer[low:high]).hex()}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
