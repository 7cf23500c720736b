"""TCP sockets that no process has any more, and whose last bytes the kernel still repeats.

A client that ends leaves one where its exit has not acknowledged all of it: for some minutes its segments are sent
again, also in the capture of a later test, whose client may have another exit.
"""

from __future__ import annotations

from typing import Final

from tests.support.lab.net import Namespace

_REPEATING: Final = ("fin-wait-1", "closing", "last-ack")
"""The states of RFC 9293, section 3.3.2, in which a closed socket waits for an acknowledgement."""


def end_orphans(host: Namespace, port: int | None = None) -> None:
    """Ends all of them in a host, or those to one port. Each says so to its other side, with one segment (RST)."""
    states = [word for state in _REPEATING for word in ("state", state)]
    to = [] if port is None else ["dport", "=", f":{port}"]
    for line in host.run(["ss", "-Htane", *states, *to]).splitlines():
        if " ino:0 " in line:
            _, _, _, local, remote, *_ = line.split()
            host.attempt(["ss", "-HKtn", "src", local, "dst", remote])
