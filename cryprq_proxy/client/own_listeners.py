"""Where direct connections may go: everywhere but to the proxy itself, and by a name not to this machine.

A connection to the proxy would be a loop. The proxy is reached at the address on which it listens; at the unspecified
address, which Linux takes for loopback; as an IPv4 address mapped into IPv6; and, if it listens on all addresses, at
each one that this machine has.

The owner of a name decides what it resolves to. A web page whose name resolves to this machine a moment later (DNS
rebinding) could talk to each service here, and the browser would take it for the page's own. So such a name is
refused, unless the rule that sends it past the exit has the address in its own `cidrs`. Only localhost and the names
below it have no owner (RFC 6761 section 6.3): they may mean loopback.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from ..address import Destination, is_localhost
from ..base.descriptors import EXHAUSTED
from ..base.own_addresses import local_networks
from ..rules.engine import EVERYTHING, RuleSet


class DirectPolicy:
    """The policy (dialer.TargetPolicy) of direct connections."""

    def __init__(self) -> None:
        self.listening: list[Destination] = []
        self.rules: RuleSet = EVERYTHING
        """Those in force."""

    def check_name(self, name: str, port: int) -> bool:
        """What it resolves to is judged."""
        return True

    def check_address(self, ip: str, port: int, name: str | None = None) -> bool:
        if any(port == own.port and _reaches(ip, own.host) for own in self.listening):
            return False
        return name is None or not is_this_machine(ip) or self._may_mean(name, port, ip)

    def _may_mean(self, name: str, port: int, ip: str) -> bool:
        """Whether `name` may stand for `ip`, an address of this machine."""
        ip = _plain(ip).partition("%")[0]
        if is_localhost(name) and ip_address(ip).is_loopback:
            return True
        return self.rules.agrees(name, port, ip)


def is_this_machine(ip: str) -> bool:
    """Whether a connection to `ip` stays here: loopback, 0.0.0.0/8, ::, each own address, and prefixes of local routes
    (AnyIP). An IPv6 address around an IPv4 address is that one."""
    address = ip_address(_plain(ip).partition("%")[0])
    if (
        address.is_loopback
        or address.is_unspecified
        or (isinstance(address, IPv4Address) and not address.packed[0])
    ):
        return True
    try:
        return any(address in network for network in local_networks())
    except OSError:
        # Only where the kernel has no netlink, or no descriptor is left.
        return _is_local(str(address))


def _reaches(ip: str, listening: str) -> bool:
    """Whether a connection to `ip` may arrive at a socket that listens on the address `listening`."""
    target, own = _plain(ip), _plain(listening)
    if target == own:
        return True
    if ip_address(own.partition("%")[0]).is_unspecified:
        return _is_local(target)
    # Linux connects the unspecified address to this machine.
    return ip_address(target.partition("%")[0]).is_unspecified


def _plain(ip: str) -> str:
    """Without the IPv6 around an IPv4 address."""
    address = ip_address(ip)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _is_local(ip: str) -> bool:
    """Whether this machine has the address; the kernel lets a socket be bound to no other one. Without a descriptor for
    the probe: True, since a loop would take the others."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((ip, 0))
    except OSError as error:
        return error.errno in EXHAUSTED
    return True
