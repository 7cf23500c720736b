"""`receive_behind` for sockets that tests make up, as that of UdpSocket; its own tests are in test_udp_socket.py."""

from __future__ import annotations

from collections.abc import Callable

from cryprq_proxy.carriers.lane.batch import Batch


def read_behind(
    receive: Callable[[memoryview, int], Batch | None], batch: Batch, most: int
) -> tuple[Batch, Batch | None, bool]:
    while batch.size + batch.segment <= most:
        other = receive(batch.data, batch.size)
        if other is None:
            return batch, None, True
        alike = (other.segment, other.peer, other.marked) == (other.size, batch.peer, batch.marked)
        if not alike or other.size > batch.segment or other.data[batch.size] != batch.data[0]:
            return batch, other, False
        batch = batch._replace(size=batch.size + other.size)
        if other.size < batch.segment:
            break
    return batch, None, False
