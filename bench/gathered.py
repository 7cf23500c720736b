"""What reading many datagrams in one call costs against a call for each, where the kernel joins none: on loopback.

Run it as `python bench/gathered.py`. Both readers of cryprq_proxy/carriers/lane/gathered.py read behind a first
datagram, as the lane's inbox does; microseconds of a datagram of 1,443 bytes, in turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cryprq_proxy.carriers.lane import udp_socket
from cryprq_proxy.carriers.lane.batch import RECEIVE_SIZE, UdpOffload
from cryprq_proxy.carriers.lane.gathered import Gathered, OneByOne

SIZE = 1_443
TOGETHER = (4, 8, 16, 31, 45)
TRAINS = 400
ROUNDS = 7


def cost(kind: type[Gathered] | type[OneByOne], number: int) -> float:
    """Microseconds for each of `number` datagrams that wait."""
    off = UdpOffload(False, False, "off")
    one, other = (udp_socket.UdpSocket(("127.0.0.1", 0), off) for _ in range(2))
    one.connect(other.address)
    other.connect(one.address)
    buffer, datagram = memoryview(bytearray(2 * RECEIVE_SIZE)), memoryview(b"1" * SIZE)
    taken = 0.0
    for _ in range(TRAINS):
        for _ in range(number):
            one.send(datagram, SIZE)
        with patch.object(udp_socket, "make_reader", kind):
            began = time.perf_counter()
            first = other.receive(buffer)
            assert first is not None
            batch, _, _ = other.receive_behind(first, RECEIVE_SIZE)
            taken += time.perf_counter() - began
        assert batch.size == number * SIZE
    one.close()
    other.close()
    return 1e6 * taken / TRAINS / number


def main() -> None:
    for number in TOGETHER:
        costs: dict[type[Gathered] | type[OneByOne], list[float]] = {OneByOne: [], Gathered: []}
        for _ in range(ROUNDS):
            for kind, seen in costs.items():
                seen.append(cost(kind, number))
        single, many = (statistics.median(seen) for seen in costs.values())
        print(f"{number:3} datagrams  {single:.2f} us each, one by one  {many:.2f} us each, in one call")


if __name__ == "__main__":
    main()
