"""Traffic that is checked while it runs: a TCP flow whose bytes are compared, and datagrams with numbers.

All of it starts inside a host, in threads of the test's process, against the echo services of the far server.

    with Flow(client, SERVER4) as flow:
        flow.moves()            # some more bytes came back, the right ones
        ...                     # something goes wrong with the network
        flow.moves()
        flow.finish()           # and all the rest of them
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from types import TracebackType
from typing import Any, Final, Self

from tests.support.lab.links import Links
from tests.support.lab.net import LONG, LabError, Namespace, until
from tests.support.lab.server import BLOCK, ECHO_PORT, RECEIVE_BUFFER, SO_RCVBUFFORCE

PIECE: Final = 16_384
PATIENCE: Final = 30.0
_TICK: Final = 0.2
"""Seconds after which a thread that waits for the network looks whether it is to end."""


def lane(links: Links, name: str = "client") -> dict[str, Any]:
    """The client's part about its lane; empty while there is no session."""
    packets = links.status(name)["packets"]
    found: dict[str, Any] = {} if packets is None else packets["lane"]
    return found


def lane_is(links: Links, up: bool, name: str = "client", seconds: float = PATIENCE) -> None:
    """Wait until the status says that packets go by the lane, or that they do not."""
    until(lambda: lane(links, name).get("up", False) is up, f"the lane is {'up' if up else 'down'}", seconds)


class Flow:
    """A TCP connection to the echo service: numbered pieces go out, and what comes back is compared byte by byte.

    `pause` is in seconds, between two pieces of 16 KiB; by default some 3 MB/s, so that two cores have time
    for the rest. A context manager; errors of the threads are raised by `moves`, `finish` and the end of the `with`.
    """

    def __init__(self, host: Namespace, address: str, pause: float = 0.005) -> None:
        self._pause = pause
        self._changed = threading.Condition()
        self._ending = False
        self._sent = self._back = 0
        self._error: BaseException | None = None
        with host.entered():
            self._sock = socket.create_connection((address, ECHO_PORT), 10)
        self._sock.settimeout(_TICK)
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True)
            for work in (self._send, self._receive)
        ]
        for thread in self._threads:
            thread.start()

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _send(self) -> None:
        while not self._ending and self._error is None:
            data = memoryview(_piece(self._sent // PIECE))
            while data and self._error is None:
                try:
                    taken = self._sock.send(data)
                except TimeoutError:
                    continue
                data = data[taken:]
                self._sent += taken
            time.sleep(self._pause)
        self._sock.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        waiting = b""
        while self._error is None:
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                continue
            if not data:
                break
            waiting += data
            while len(waiting) >= PIECE:
                number = self._back // PIECE
                if waiting[:PIECE] != _piece(number):
                    raise AssertionError(f"piece {number} came back changed")
                waiting = waiting[PIECE:]
                with self._changed:
                    self._back += PIECE
                    self._changed.notify_all()
        with self._changed:
            self._back += len(waiting)
            self._changed.notify_all()

    @property
    def back(self) -> int:
        """Bytes that came back, all of them right."""
        return self._back

    def moves(self, size: int = 256 * 1024, seconds: float = PATIENCE) -> None:
        """Wait until `size` more bytes have come back. Raises what the flow failed with, or LabError."""
        deadline = time.monotonic() + seconds
        with self._changed:
            goal = self._back + size
            while self._back < goal and self._error is None:
                if (
                    not self._changed.wait(max(0.0, deadline - time.monotonic()))
                    or time.monotonic() > deadline
                ):
                    raise LabError(
                        f"the flow stands still: {goal - self._back} of {size} bytes in {seconds:g} s"
                    )
            if self._error is not None:
                raise self._error

    def ends_or_moves(self, seconds: float = PATIENCE) -> bool:
        """Whether it goes on; False if it broke instead. Raises LabError if it does neither."""
        try:
            self.moves(seconds=seconds)
        except OSError:
            return False
        return True

    def finish(self, seconds: float = PATIENCE) -> int:
        """End it in good order; all bytes that went out have come back. Returns how many."""
        self._ending = True
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise LabError(
                    f"the flow did not end within {seconds:g} s: {self._sent - self._back} bytes are missing"
                )
        if self._error is not None:
            raise self._error
        assert self._back == self._sent, f"{self._sent - self._back} bytes did not come back"
        return self._back

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        self._ending = True
        self._error = self._error or LabError("the test is over")
        for thread in self._threads:
            thread.join(PATIENCE)
        self._sock.close()


def _piece(number: int) -> bytes:
    """Each differs from all others, so that one that is lost or doubled is noticed."""
    start = number * 7919 % (len(BLOCK) - PIECE)
    return number.to_bytes(8) + BLOCK[start : start + PIECE - 8]


class Numbers:
    """Numbered datagrams of `size` bytes to the echo service, one each `pause` seconds, and which came back."""

    def __init__(self, host: Namespace, address: str, size: int = 1000, pause: float = 0.01) -> None:
        self._size = size
        self._pause = pause
        self._ending = False
        self._end = math.inf
        self.sent = 0
        self.back: set[int] = set()
        with host.entered():
            self._sock = socket.socket(
                socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM
            )
        self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._sock.connect((address, ECHO_PORT))
        self._sock.settimeout(_TICK)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._ending:
            self._sock.send(self.sent.to_bytes(8).ljust(self._size, b"."))
            self.sent += 1
            time.sleep(self._pause)

    def _receive(self) -> None:
        while self._end == math.inf or (len(self.back) < self.sent and time.monotonic() < self._end):
            with contextlib.suppress(TimeoutError):
                self.back.add(int.from_bytes(self._sock.recv(65536)[:8]))

    def finish(self) -> list[int]:
        """End it; the numbers that did not come back, though they had all the time that a busy machine needs."""
        self._ending = True
        sender, receiver = self._threads
        sender.join(PATIENCE)
        self._end = min(self._end, time.monotonic() + LONG)
        receiver.join(PATIENCE)
        self._sock.close()
        return sorted(set(range(self.sent)) - self.back)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
