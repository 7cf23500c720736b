"""The TCP carrier: runs a path of a session over one connected socket.

There is one callback chain per wake-up, and an idle carrier has no buffer. What arrives is read into one buffer of the
process and opened there; what leaves is sealed into another one and handed to the kernel. A carrier keeps two things
only: the start of a record whose rest has not come, and bytes that the kernel did not take. And where a peer's work for
this turn of the loop is done (session/turns.py), the records that were read and not yet opened; until they are, the
carrier reads no more.

The kernel keeps few unsent bytes (TCP_NOTSENT_LOWAT), a few milliseconds at the measured rate, so that what the
scheduler puts first also leaves first.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from ..base.buffers import SHARED
from ..base.clock import clock
from ..base.linger import Farewell
from ..errors import CarrierError, CloseReason, PeerError
from ..session.path import SessionPath
from ..session.records import HEADER, MAX_RECORD
from .carrier import Carrier, CarrierOwner, broken

RECEIVE_SIZE: Final = 4 * (HEADER + MAX_RECORD)
"""Bytes read from the socket in one wake-up."""


class TcpCarrier(Carrier):
    """A path of a session on `sock`: connected, non-blocking; the carrier closes it. Call `start`."""

    kind = "tcp"

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, path: SessionPath, owner: CarrierOwner
    ) -> None:
        super().__init__(loop, sock, path, owner)
        self._fd = sock.fileno()
        self._incoming = SHARED.scratch("arriving records", HEADER + MAX_RECORD + RECEIVE_SIZE)
        self._partial = b""
        self._buffer = memoryview(b"")
        self._unsent: memoryview | None = None
        """What the kernel has not taken of `_buffer`."""
        self._behind = False
        """Whether `_partial` has records that wait for a later turn."""
        self._flush_due = False
        self._record = 0
        """Bytes of the last record that a read did not end with."""
        self._taken = 0

    def start(self) -> None:
        self.path.ready = self._ready
        self._loop.add_reader(self._fd, self._on_readable)
        self._flush()

    # --- out -------------------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        # Each fill may ask for the next one. One callback answers all, so that the next wake-up is no larger than this.
        if not self._flush_due and self._unsent is None:
            self._flush_due = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flush_due = False
        self._flush()

    def _flush(self) -> None:
        if not self.open:
            return
        try:
            if self._unsent is None:
                self._send()
            self._after()
        except PeerError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001  see carrier.py
            self.crash(error)

    def _send(self) -> None:
        path, turn = self.path, self._session.turn
        while turn.left > 0:
            now = clock()
            buffer = self._buffers.take()
            size = path.fill(buffer, path.queue_target, now)
            self._buffer, self._unsent = buffer, buffer[:size]
            if not size:
                self._release()
            elif not self._push():
                self._loop.add_writer(self._fd, self._on_writable)
                self._measure(self._taken, now)
                return
            if not size or not self._flush_due:
                # The path has nothing more: else it would have called `ready` again.
                self._meter.idle()
                return
        if not self._flush_due:
            self._flush_due = True
            turn.wait(self._flush_soon)

    def _push(self) -> bool:
        """Hand `_unsent` to the kernel; True if it took all. Raises CarrierError."""
        assert self._unsent is not None
        try:
            taken = self._sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise broken(error) from None
        self._taken += taken
        if taken < len(self._unsent):
            self._unsent = self._unsent[taken:]
            return False
        self._release()
        return True

    def _release(self) -> None:
        """Give the buffer back: the kernel has taken all of it."""
        self._buffers.give(self._buffer)
        self._unsent = None

    def _on_writable(self) -> None:
        try:
            if self._unsent is not None and not self._push():
                return
        except CarrierError as error:
            self.fail(error)
            return
        except Exception as error:  # noqa: BLE001  see carrier.py
            self.crash(error)
            return
        self._flush()
        if self.open and self._unsent is None:
            self._loop.remove_writer(self._fd)

    # --- in --------------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        if self._behind:
            return
        try:
            start = len(self._partial)
            self._incoming[:start] = self._partial
            size = self._sock.recv_into(self._incoming[start : start + self._next_read(start)])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.fail(broken(error))
            return
        except Exception as error:  # noqa: BLE001  see carrier.py
            self.crash(error)
            return
        if not size:
            self.fail(CarrierError(CloseReason.TIMED_OUT, "the peer ended the connection"))
            return
        try:
            used = self.path.receive(self._incoming[: start + size], clock())
            self._partial = bytes(self._incoming[used : start + size])
            self._received()
            self._after()
        except PeerError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001  see carrier.py
            self.crash(error)

    def _next_read(self, partial: int) -> int:
        """Bytes to read behind the `partial` ones that wait.

        If all records are as long as the last one, the read ends where a record ends. So a steady transfer cuts no
        record in two, which would have to be kept and put in front of the next read.
        """
        if partial >= HEADER:
            self._record = HEADER + int.from_bytes(self._partial[:HEADER])
        if partial < self._record <= HEADER + MAX_RECORD:
            return RECEIVE_SIZE - RECEIVE_SIZE % self._record - partial
        return RECEIVE_SIZE

    def _received(self) -> None:
        """The session took what it could: read no more until the peer's next turn if this one is used up."""
        turn = self._session.turn
        if turn.left <= 0 and not self._behind:
            self._behind = True
            turn.wait(self._next_turn)

    def _take_rest(self) -> None:
        """Give to the session again what it left."""
        rest = self._partial
        self._partial = rest[self.path.receive(memoryview(rest), clock()) :]
        self._received()

    def _next_turn(self) -> None:
        self._behind = False
        if not self.open:
            return
        try:
            self._take_rest()
            self._after()
        except PeerError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001  see carrier.py
            self.crash(error)

    # --- end -------------------------------------------------------------------------------------------------------

    def _finish(self, last: bytes | None, error: PeerError | None) -> None:
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        if last is None:
            self._sock.close()
        else:
            Farewell(self._loop, self._sock, bytes(self._unsent or b"") + last)

    def _abandon(self) -> None:
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._sock.close()
