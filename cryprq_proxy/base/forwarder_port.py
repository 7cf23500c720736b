"""The port of the DNS forwarder of system-wide mode, and whether this machine keeps other users from it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

FORWARDER_PORT: Final = 1022
"""Where the forwarder is asked, on the tunnel addresses. The same in every run, so that a redirection which outlives
its run (a killed process) leads to no other; below 1024, so that meanwhile no other user can bind it. One of the two
for experiments (RFC 4727 section 6); not 53, which a resolver on every address of this machine may have."""
PROTECT: Final = "sysctl -w net.ipv4.ip_unprivileged_port_start=1024"
"""The command that keeps all users but root from it."""
_ROOT: Final = Path("/")
_SETTING: Final = "proc/sys/net/ipv4/ip_unprivileged_port_start"
"""The first port that every user may bind (ip-sysctl); of a network namespace, and for IPv6 too."""


def open_to_all(root: Path = _ROOT) -> str:
    """Why any user of this machine may bind the port, in one sentence; empty where only root may."""
    try:
        first = int((root / _SETTING).read_text("ascii"))
    except (OSError, ValueError):
        # A kernel before 4.11, where it is 1024.
        return ""
    if first > FORWARDER_PORT:
        return ""
    return (
        f"every user may listen on port {FORWARDER_PORT} here (net.ipv4.ip_unprivileged_port_start is {first}), and "
        "so be asked for this machine's names after this program is killed"
    )
