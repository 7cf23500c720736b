"""Whether this kernel's UDP offloads work: checked at the start by sending batches to this host itself.

Some kernels (6.17 to release candidates of 7.0) damage batches of datagrams of one size. Damaged datagrams do
not authenticate, so a lane would be up and carry nothing. The check sends random batches over the loopback device and
compares every byte and every size. It cannot see faults of a network card; the path's probes can, and the configuration
can switch the offloads off.
"""

from __future__ import annotations

import logging
import os
import select
import time
from contextlib import ExitStack, closing
from typing import Final, Literal

from .batch import RECEIVE_SIZE, UdpOffload
from .udp_options import LINUX
from .udp_socket import UdpSocket, error_name

CHECK_SECONDS: Final = 0.5
"""Bound of the whole check, which needs a few milliseconds."""
CHECK_SHAPES: Final = (
    ((1_400, 40 * 1_400),),
    ((1_200, 10 * 1_200 + 77),),
    ((1_372, 2 * 1_372), (900, 900), (64, 63 * 64 + 1), (1_400, 46 * 1_400), (1_400, 1)),
)
"""Batches (segment, size) that are in flight together."""

_log = logging.getLogger(__name__)

type OffloadSetting = Literal["auto", "off"]


def check_offload(setting: OffloadSetting = "auto") -> UdpOffload:
    """Find out which offloads work. Takes a few milliseconds, and CHECK_SECONDS at most.

    Call it once, before the event loop runs: it blocks.
    """
    if setting == "off":
        return UdpOffload(False, False, "switched off in the configuration")
    if not LINUX:
        return UdpOffload(False, False, "this system has none")
    deadline = time.monotonic() + CHECK_SECONDS
    found = UdpOffload(True, True)
    for gro in (True, False):  # without it, the kernel itself must cut the batch
        try:
            problem, found = _compare(found._replace(gro=gro and found.gro), found, deadline)
        except OSError as error:
            problem = f"the check on the loopback device failed ({error_name(error)})"
        if problem:
            _log.warning("UDP datagrams are sent and received one by one: %s", problem)
            return UdpOffload(False, False, problem)
    return found


def _compare(use: UdpOffload, found: UdpOffload, deadline: float) -> tuple[str, UdpOffload]:
    """Send all shapes with `use`. Return a sentence part if something differs, and what is left of `found`. Raises
    OSError."""
    with ExitStack() as stack:
        sender = stack.enter_context(closing(UdpSocket(("127.0.0.1", 0), use)))
        receiver = stack.enter_context(closing(UdpSocket(("127.0.0.1", 0), use)))
        sender.connect(receiver.address)
        receiver.connect(sender.address)
        for shape in CHECK_SHAPES:
            expected: list[bytes] = []
            for segment, size in shape:
                data = os.urandom(size)
                sender.send(memoryview(data), segment)
                expected += (data[start : start + segment] for start in range(0, size, segment))
            arrived = _collect(receiver, sum(map(len, expected)), deadline)
            if len(b"".join(arrived)) != len(b"".join(expected)):
                return "batches sent to this host itself did not arrive whole", found
            if arrived != expected:
                return "this kernel damages batches", found
        gso, gro = found.gso and sender.offload.gso, found.gro and (receiver.offload.gro or not use.gro)
        return "", UdpOffload(gso, gro, found.reason or sender.offload.reason or receiver.offload.reason)


def _collect(sock: UdpSocket, size: int, deadline: float) -> list[bytes]:
    """Receive datagrams until `size` bytes have come, or until the deadline."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    datagrams: list[bytes] = []
    buffer = memoryview(bytearray(RECEIVE_SIZE))
    while size > 0:
        batch = sock.receive(buffer)
        if batch is not None:
            data = bytes(batch.data[: batch.size])
            datagrams += (data[start : start + batch.segment] for start in range(0, len(data), batch.segment))
            size -= len(data)
        elif (left := deadline - time.monotonic()) <= 0 or not poll.poll(left * 1_000):
            break
    return datagrams
