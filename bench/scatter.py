"""What one read of several pieces costs against a read of each: CPU seconds per GB, on loopback.

Run it as `python bench/scatter.py`. The relay (cryprq_proxy/outbound/relay.py) reads up to four pieces at a time from a
socket that keeps up; this is why.
"""

from __future__ import annotations

import os
import resource
import socket
import statistics
import threading

PIECE = 65_536
TOTAL = 2 << 30
ROUNDS = 5


def send(listener: socket.socket) -> None:
    """Send TOTAL bytes of zeros straight out of the page cache, which costs the sender next to nothing."""
    sock, _ = listener.accept()
    page = os.memfd_create("zeros")
    os.ftruncate(page, 1 << 20)
    left = TOTAL
    while left:
        left -= os.sendfile(sock.fileno(), page, 0, min(left, 1 << 20))
    os.close(page)
    sock.close()


def cost(pieces: int) -> float:
    """CPU seconds of the reading thread per GB."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = threading.Thread(target=send, args=(listener,))
        sender.start()
        slots = [memoryview(bytearray(PIECE)) for _ in range(pieces)]
        with socket.create_connection(listener.getsockname()) as sock:
            before = resource.getrusage(resource.RUSAGE_THREAD)
            while sock.recvmsg_into(slots)[0] if pieces > 1 else sock.recv_into(slots[0]):
                pass
            after = resource.getrusage(resource.RUSAGE_THREAD)
        sender.join()
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / (TOTAL / 1e9)


def main() -> None:
    costs: dict[int, list[float]] = {pieces: [] for pieces in (1, 2, 4, 8, 16)}
    for _ in range(ROUNDS):
        for pieces, seen in costs.items():
            seen.append(cost(pieces))
    for pieces, seen in costs.items():
        ratios = [one / many for one, many in zip(costs[1], seen, strict=True)]
        print(f"{pieces:3} pieces  {statistics.median(seen):.3f} s/GB  {statistics.median(ratios):.2f}x")


if __name__ == "__main__":
    main()
