"""What asking `connect_ex` a second time saves for a target on the exit's own host: microseconds per connection.

Run it as `python bench/dial.py`. See `connect_literal` in cryprq_proxy/outbound/dialer.py.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import Callable

from cryprq_proxy.base.sockets import CONNECT_TIMEOUT
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.outbound import dialer
from cryprq_proxy.outbound.address_race import Done

COUNT = 200
ROUNDS = 15

type Connect = Callable[[asyncio.AbstractEventLoop, int, Done], object]


def with_second_ask(loop: asyncio.AbstractEventLoop, port: int, done: Done) -> object:
    return dialer.connect_literal(loop, "127.0.0.1", port, done)


def through_selector(loop: asyncio.AbstractEventLoop, port: int, done: Done) -> object:
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.connect_ex(("127.0.0.1", port))
    return dialer._Connecting(loop, sock, done, CONNECT_TIMEOUT)


async def cost(connect: Connect, listener: socket.socket) -> float:
    """Microseconds per connection, COUNT at a time."""
    loop = asyncio.get_running_loop()
    finished = loop.create_future()
    sockets: list[socket.socket] = []

    def done(sock: socket.socket | None, reason: StreamReason | None) -> None:
        if sock is None:
            raise RuntimeError(f"no connection: {reason}")
        sockets.append(sock)
        if len(sockets) == COUNT:
            finished.set_result(None)

    start = time.perf_counter()
    for _ in range(COUNT):
        connect(loop, listener.getsockname()[1], done)
    await finished
    elapsed = time.perf_counter() - start
    for sock in sockets:
        sock.close()
        listener.accept()[0].close()
    return elapsed / COUNT * 1e6


async def main() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=COUNT) as listener:
        costs: dict[str, list[float]] = {"second ask": [], "selector": []}
        for _ in range(ROUNDS):
            costs["second ask"].append(await cost(with_second_ask, listener))
            costs["selector"].append(await cost(through_selector, listener))
    for name, seen in costs.items():
        print(f"{name:12} {statistics.median(seen):5.1f} us")
    ratios = [b / a for a, b in zip(costs["second ask"], costs["selector"], strict=True)]
    print(f"ratio        {statistics.median(ratios):.2f}x")


if __name__ == "__main__":
    asyncio.run(main())
