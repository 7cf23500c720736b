"""What it costs to watch a socket, by asyncio's loop and by a SocketGroup: microseconds.

Run it as `python bench/sockets.py`. See cryprq_proxy/outbound/socket_group.py.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from cryprq_proxy.outbound.socket_group import DIRECT, SocketGroup, SocketLoop
from cryprq_proxy.session.turns import TurnBudget

COUNT = 4_000
ROUNDS = 7


def cost(work: Callable[[], object]) -> float:
    """Microseconds of one call, the best of a few rounds."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(COUNT):
            work()
        times.append(time.perf_counter() - start)
    return min(times) / COUNT * 1e6


def nothing() -> None:
    pass


def show(name: str, sockets: SocketLoop, fd: int) -> None:
    def once() -> None:
        sockets.add_reader(fd, nothing)
        sockets.remove_reader(fd)

    begin_and_end = cost(once)
    sockets.add_reader(fd, nothing)
    replace = cost(lambda: sockets.add_reader(fd, nothing))
    sockets.remove_reader(fd)
    print(f"{name:8} begin and end {begin_and_end:4.1f}   another callback {replace:4.1f}")


async def main() -> None:
    loop = asyncio.get_running_loop()
    group = SocketGroup(loop, TurnBudget(loop.call_soon))
    pairs = [socket.socketpair() for _ in range(DIRECT + 1)]
    first = [pair[0].fileno() for pair in pairs]
    for fd in first[:DIRECT]:
        group.add_reader(fd, nothing)
    show("asyncio", loop, first[DIRECT])
    show("group", group, first[DIRECT])
    for fd in first[:DIRECT]:
        group.remove_reader(fd)
    group.retire()
    for here, there in pairs:
        here.close()
        there.close()


if __name__ == "__main__":
    asyncio.run(main())
