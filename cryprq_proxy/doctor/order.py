"""All checks in their order: for a client and for an exit."""

from __future__ import annotations

from typing import Final

from . import beyond, exit_machine, link, machine, reach, speed, start
from . import exit as exit_side
from .algorithms import algorithms
from .checks import Check
from .congestion import congestion
from .other_exits import other_exits

LEFTOVERS: Final = Check("leftovers", machine.leftovers)

CLIENT: Final = (
    LEFTOVERS,
    Check("configuration", start.client_configuration),
    Check("identity", start.identity, ("configuration",)),
    Check("clock", start.clock),
    Check("algorithms", algorithms),
    Check("disk", start.disk, ("configuration",)),
    Check("running", start.running, ("configuration",)),
    Check("rules", machine.rules, ("configuration",)),
    Check("name", reach.name, ("configuration",)),
    Check("reach", reach.reach, ("configuration",)),
    Check("handshake", reach.handshake, ("identity", "reach")),
    Check("link", link.link, ("handshake",)),
    Check("exit", beyond.asked, ("link",)),
    Check("exit's clock", beyond.clocks, ("exit",)),
    Check("exit's routes", beyond.routes, ("exit",)),
    Check("exit's names", beyond.names, ("exit",)),
    Check("other exits", other_exits, ("link",)),
    Check("system's names", beyond.system_names, ("link",)),
    Check("target", beyond.target, ("link",)),
    Check("UDP", link.lane, ("link",)),
    Check("MTU", link.mtu, ("link",)),
    Check("round trip", link.round_trip, ("link",)),
    Check("congestion", congestion, ("configuration",)),
    Check("throughput", speed.throughput, ("link",)),
    Check("port", machine.port, ("configuration",)),
    Check("PAC", machine.pac, ("configuration",)),
    Check("variables", machine.variables, ("configuration",)),
    Check("desktop", machine.desktop, ("configuration",)),
    Check("system-wide", machine.tun, ("configuration",)),
)

EXIT: Final = (
    LEFTOVERS,
    Check("configuration", start.exit_configuration),
    Check("identity", start.identity, ("configuration",)),
    Check("clock", start.clock),
    Check("algorithms", algorithms),
    Check("disk", start.disk, ("configuration",)),
    Check("running", start.running, ("configuration",)),
    Check("peers", exit_side.peers, ("configuration",)),
    Check("invites", exit_side.invites, ("configuration",)),
    Check("listeners", exit_side.listeners, ("configuration",)),
    Check("public address", exit_side.public, ("configuration",)),
    Check("firewall", exit_machine.firewall, ("configuration",)),
    Check("routes", exit_machine.routes),
    Check("names", exit_machine.names),
    Check("target", exit_machine.target, ("configuration",)),
    Check("peers' clocks", exit_machine.clocks),
    Check("descriptors", exit_machine.descriptors),
    Check("congestion", congestion),
    Check("UDP buffers", exit_machine.buffers, ("configuration",)),
    Check("system-wide", machine.tun, ("configuration",)),
)
