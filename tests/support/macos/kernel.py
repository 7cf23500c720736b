"""The tiny kernel of the fake Mac: where a packet goes, by its routing table and by pf.

A program sends a packet (`send`): the table chooses the interface, pf is asked, and the packet leaves, enters a utun,
comes back to this machine or is refused. What comes out of a utun is asked of pf too and goes to the machine's own
sockets (`on_local`). What leaves by the hardware is kept in `left`. Answers from outside are handed in by `arrive`.

States of pf are kept as long as they match both directions of a conversation; `nat` is not played.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import NamedTuple

from tests.support.macos.machine import FakeMac
from tests.support.macos.packet import read_packet
from tests.support.macos.pf_model import PfPacket, judge
from tests.support.macos.state import Route, State
from tests.support.macos.utun_hub import UtunHub

LOOPBACK = "lo0"


class Left(NamedTuple):
    """A packet that has left by the hardware."""

    interface: str
    packet: PfPacket


class Fate(NamedTuple):
    """What became of a packet."""

    where: str
    """The interface by which it left or that it entered, lo0 for this machine itself; empty if it was refused."""
    refused: str = ""
    """no route, reject, pf, or the device is gone."""


class Kernel:
    """A context manager."""

    def __init__(self, mac: FakeMac) -> None:
        self.mac = mac
        self.hub = UtunHub(mac, self._from_utun)
        self.left: list[Left] = []
        self.on_local: Callable[[str, bytes], None] = lambda interface, packet: None
        """Gets the interface and each packet to an address of this machine; called in the hub's thread as well."""
        self._states: set[tuple[str, str, str, int, str, int]] = set()
        self._lock = threading.RLock()

    def __enter__(self) -> Kernel:
        self.hub.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.hub.__exit__()

    def fate(self, packet: bytes, *, uid: int | None = 501, scope: str = "") -> Fate:
        """What would become of a packet, with nothing sent. `scope`: the socket is bound to this interface."""
        return self._decide(self.mac.read(), packet, uid, scope)[0]

    def send(self, packet: bytes, *, uid: int | None = 501, scope: str = "") -> Fate:
        """A program of this user sends a packet."""
        state = self.mac.read()
        fate, seen = self._decide(state, packet, uid, scope)
        if fate.where == LOOPBACK:
            self.on_local(LOOPBACK, packet)
        elif fate.where.startswith("utun"):
            if not self.hub.write(fate.where, packet) and not _foreign(state, fate.where):
                return Fate("", "the device is gone")
        elif fate.where:
            self.left.append(Left(fate.where, seen))
        return fate

    def arrive(self, interface: str, packet: bytes) -> bool:
        """A packet comes in by an interface, for this machine. Returns whether pf lets it in."""
        state = self.mac.read()
        seen = replace(read_packet(packet), direction="in", interface=interface)
        return self._passes(state, seen)

    def _from_utun(self, name: str, packet: bytes) -> None:
        state = self.mac.read()
        seen = replace(read_packet(packet), direction="in", interface=name)
        if _own(state, str(seen.destination)) and self._passes(state, seen):
            self.on_local(name, packet)

    def _decide(self, state: State, packet: bytes, uid: int | None, scope: str) -> tuple[Fate, PfPacket]:
        seen = replace(read_packet(packet), direction="out", uid=uid)
        found = lookup(state, seen.destination, scope)
        if found is None:
            return Fate("", "no route"), seen
        if "R" in found.flags or "B" in found.flags:
            return Fate("", "reject"), seen
        seen = replace(seen, interface=found.interface)
        if not self._passes(state, seen):
            return Fate("", "pf"), seen
        return Fate(found.interface), seen

    def _passes(self, state: State, seen: PfPacket) -> bool:
        """Raises AssertionError for a rule that this kernel cannot play."""
        if not state.pf.enabled or seen.interface in state.pf.skipped:
            return True
        here = (str(seen.source), seen.source_port)
        there = (str(seen.destination), seen.destination_port)
        with self._lock:
            if (seen.interface, seen.proto, *here, *there) in self._states:
                return True
            judgement = judge(state.pf, seen)
            if judgement.passes and judgement.keeps:
                self._states |= {
                    (seen.interface, seen.proto, *here, *there),
                    (seen.interface, seen.proto, *there, *here),
                }
        return judgement.passes

    def forget_states(self) -> None:
        with self._lock:
            self._states.clear()


def lookup(state: State, address: IPv4Address | IPv6Address, scope: str = "") -> Route | None:
    """The longest prefix wins. A route in the scope of its interface is for sockets that are bound to that alone, or
    for link-local addresses."""
    best: tuple[int, Route] | None = None
    for route in state.routes:
        network = ip_network(route.destination)
        if network.version != address.version or address not in network:
            continue
        if "I" in route.flags and route.interface != scope and not address.is_link_local:
            continue
        if scope and route.interface != scope:
            continue
        if best is None or network.prefixlen > best[0]:
            best = (network.prefixlen, route)
    return best[1] if best else None


def _own(state: State, address: str) -> bool:
    return any(each.address == address for one in state.interfaces for each in one.addresses)


def _foreign(state: State, name: str) -> bool:
    """A utun of others, whose packets nobody reads here."""
    interface = state.interface(name)
    return interface is not None and interface.owner != "a control socket"
