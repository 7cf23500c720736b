"""One of the client's exits: as it is planned, and as it runs.

Each has a Client of its own, and in system-wide mode a port to the network interface (packet_ports.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ..base.text import counted
from ..carriers.dial.tcp import Resolve, by_system
from ..crypto.identity import Identity
from ..crypto.primitives import Provider
from ..session.retention import SlotPool
from .client import Client
from .packet_ports import NO_NETWORK, ClientNetwork, ExitPort
from .selection import ExitState
from .settings import ClientSettings


class PlannedExit(NamedTuple):
    """One exit of the configuration; the smaller `priority` is preferred."""

    name: str
    priority: int
    settings: ClientSettings


class ExitEntry:
    """One exit. `healthy` says whether new streams may go there, `failure` why not if the link is not the reason."""

    def __init__(self, name: str, priority: int, client: Client, port: ExitPort | None = None) -> None:
        self.name = name
        self.priority = priority
        self.client = client
        self.port = port
        self.healthy = False
        self.failure: str | None = None

    @property
    def problem(self) -> str | None:
        """Why it cannot be used though its link may be up."""
        return self.failure or (None if self.port is None else self.port.complaint)

    def state(self) -> ExitState:
        client = self.client
        up = client.up and self.failure is None and (self.port is None or self.port.usable)
        return ExitState(up, client.heard, client.round_trip, client.least_round_trip)

    def serves(self, plan: PlannedExit) -> bool:
        """Whether its link can stay for `plan`, which may have another priority and other limits."""
        own = self.client.settings
        return self.name == plan.name and replace(own, limits=plan.settings.limits) == plan.settings


type MakeEntry = Callable[[PlannedExit], ExitEntry]


def entry_maker(
    identity: Identity,
    provider: Provider,
    slots: SlotPool,
    network: ClientNetwork = NO_NETWORK,
    resolve: Resolve = by_system,
) -> MakeEntry:
    """Makes the entries of one client, which share a pool of buffers. Each session keeps its own bound of bytes, so an
    exit that has fallen silent takes nothing from the others."""

    def make(plan: PlannedExit) -> ExitEntry:
        port = None if network is NO_NETWORK else ExitPort(network)
        client = Client(identity, plan.settings, provider, port or network, resolve, slots)
        return ExitEntry(plan.name, plan.priority, client, port)

    return make


class ExitChange(NamedTuple):
    """What has become of the exits with another configuration: their names."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    renewed: tuple[str, ...]
    """With another identity, other addresses or other secrets: they have a new link."""
    number: int
    """Exits there are now."""

    def __str__(self) -> str:
        """ "3 exits (new: a; removed: b)"."""
        told = (("new", self.added), ("removed", self.removed), ("dialled anew", self.renewed))
        changed = "; ".join(f"{word}: {', '.join(names)}" for word, names in told if names)
        return counted(self.number, "exit") + (f" ({changed})" if changed else "")
