"""Ordinary programs that ask name servers all the time, on threads of the test's process.

    with questions(client, [ROUTER_LAN4]):
        ...

A round begins every few milliseconds, so that also a short time without a filter is seen.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Collection, Iterator
from typing import Final

from tests.support.lab.net import Namespace

CLEAR_DNS: Final = (53, 853)
PAUSE: Final = 0.003
"""Seconds between two rounds."""


@contextlib.contextmanager
def questions(
    host: Namespace, servers: Collection[str], ports: Collection[int] = CLEAR_DNS
) -> Iterator[None]:
    """To these ports of the servers without end, by UDP and TCP, from sockets of before and from new ones."""
    over = threading.Event()
    kept = []
    with host.entered():
        for server in servers:
            for port in ports:
                sock = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
                sock.setblocking(False)
                sock.connect((server, port))
                kept.append((sock, (server, port)))

    def ask() -> None:
        with host.entered():
            while not over.wait(PAUSE):
                for sock, target in kept:
                    with contextlib.suppress(OSError):
                        sock.send(b"question")
                    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                        with socket.socket(sock.family, kind) as new, contextlib.suppress(OSError):
                            new.setblocking(False)
                            new.connect(target)
                            new.send(b"question")

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()
        for sock, _ in kept:
            sock.close()
