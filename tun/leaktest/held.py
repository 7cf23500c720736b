"""Flows that a leak test opens first and keeps: what the kernel remembers of them outlives a pause, rules, a restart.

hold            open a socket for each canary, and send on all of them while a person pauses, reloads, restarts
HeldFlow.send   afterwards, under the capture: what such a socket sends must not be outside
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ..device.packets import TCP, UDP
from .canaries import Canary, CanaryTargets, canaries

PAUSE: Final = 0.5
"""Seconds between two rounds while the flows are held; far below any time-out of the kernel."""


@dataclass(frozen=True, slots=True)
class HeldFlow:
    """One socket and what it sends."""

    canary: Canary
    sock: socket.socket

    def send(self) -> None:
        """Raises OSError."""
        if self.canary.protocol == UDP:
            # Not connected, so that the route decides about each datagram anew.
            self.sock.sendto(self.canary.payload, (self.canary.address, self.canary.port))
        else:
            self.sock.send(self.canary.payload)


def hold(
    targets: CanaryTargets, seconds: float, sleep: Callable[[float], object] = time.sleep
) -> list[HeldFlow]:
    """Open the flows, and send on them for so long; blocks. What cannot be sent now is sent in the next round."""
    # Other texts for the judgement: those from before may have left in a pause, or while nothing ran.
    pairs = [
        (flow, judged)
        for canary, judged in zip(_kept(targets), _kept(targets), strict=True)
        if (flow := _open(canary)) is not None
    ]
    flows = [flow for flow, _ in pairs]
    for _ in range(max(1, round(seconds / PAUSE))):
        for flow in flows:
            with contextlib.suppress(OSError):
                flow.send()
        sleep(PAUSE)
        _drain(flows)
    return [HeldFlow(replace(judged, name=f"{judged.name}, kept"), flow.sock) for flow, judged in pairs]


def _kept(targets: CanaryTargets) -> Sequence[Canary]:
    return [canary for canary in canaries(replace(targets, devices=())) if canary.protocol in (TCP, UDP)]


def _open(canary: Canary) -> HeldFlow | None:
    """None where the kernel has no such socket, as without IPv6: then nothing can leak by one."""
    family = socket.AF_INET6 if ":" in canary.address else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM if canary.protocol == UDP else socket.SOCK_STREAM)
    except OSError:
        return None
    sock.setblocking(False)
    sock.bind(("", 0))
    if canary.protocol == TCP:
        with contextlib.suppress(OSError):
            sock.connect((canary.address, canary.port))
    return HeldFlow(canary, sock)


def _drain(flows: Sequence[HeldFlow]) -> None:
    """Drop the answers so far: later ones are answers to what is judged."""
    with selectors.DefaultSelector() as selector:
        for flow in flows:
            selector.register(flow.sock, selectors.EVENT_READ, flow.sock)
        for key, _ in selector.select(0):
            sock: socket.socket = key.data
            with contextlib.suppress(OSError):
                for _ in range(16):
                    if not sock.recv(65536):
                        break
