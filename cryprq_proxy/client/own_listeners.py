"""Where direct connections may go: everywhere but to the proxy itself, which would be a loop.

The proxy is reached at the address on which it listens; at the unspecified address, which Linux takes for loopback; as
an IPv4 address mapped into IPv6; and, if it listens on all addresses, at each one that this machine has.
"""

from __future__ import annotations

import socket
from ipaddress import IPv6Address, ip_address

from ..address import Destination
from ..base.descriptors import EXHAUSTED


class DirectPolicy:
    """The policy (dialer.TargetPolicy) of direct connections: everywhere but to where the proxy listens."""

    def __init__(self) -> None:
        self.listening: list[Destination] = []

    def check_name(self, name: str, port: int) -> bool:
        """What it resolves to is judged."""
        return True

    def check_address(self, ip: str, port: int, name: str | None = None) -> bool:
        return not any(port == own.port and _reaches(ip, own.host) for own in self.listening)


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
