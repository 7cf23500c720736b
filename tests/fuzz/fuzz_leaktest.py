"""Invariant: whatever is captured, a packet comes out or None, and a canary's token in it is always found."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["tun"]):
    from tun.leaktest.canaries import CanaryTargets, canaries
    from tun.leaktest.packets import parse_packet
    from tun.leaktest.report import render
    from tun.leaktest.watch import Watch

SENT = canaries(CanaryTargets(dns=("192.0.2.53",), hosts=("192.0.2.1", "2001:db8::1")))


def fuzz(data: bytes) -> None:
    watch = Watch(SENT, tunnel="tun", exits=[("192.0.2.9", 443)])
    watch.frame("eth0", data)
    render(watch.report())
    packet = parse_packet(data)
    if packet is not None and len(packet.destination) not in (4, 16):
        raise RuntimeError(f"{packet!r} is no packet")
    watch.frame("eth0", data + SENT[0].token)
    if not watch.report().leaks:
        raise RuntimeError("a canary was overlooked")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
