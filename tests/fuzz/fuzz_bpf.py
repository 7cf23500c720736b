"""Invariant: whatever a BPF device gives, reading it raises nothing, and what it gives are pieces of it, in order."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["tun"]):
    from tun.leaktest.packets import parse_packet
    from tun.macos.bpf import is_known, network_packet, parse_records

LINKS = [link for link in range(256) if is_known(link)]


def fuzz(data: bytes) -> None:
    link, data = LINKS[data[0] % len(LINKS)] if data else 0, data[1:]
    packets, _ = parse_records(data)
    position = 0
    for packet in packets:
        found = data.find(packet, position)
        if found < 0:
            raise RuntimeError("a packet that is not there")
        position = found + len(packet)
        parse_packet(network_packet(link, packet))


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
