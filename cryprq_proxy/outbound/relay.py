"""The relay: one TCP socket and one stream, each feeding the other.

The socket is read only if the stream can take the bytes, and the stream gets credit only after the socket has taken
them. So a slow side slows down the other one, and no bytes collect here. Each direction ends by itself: an end becomes
a half-close on the other side, and a reset becomes a reset.

Until both directions have ended, closing the socket resets its connection, also when this process is killed: half of a
file is not taken for the whole.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Final

from ..base.faults import report_fault
from ..base.sockets import set_end_on_close, set_reset_on_close
from ..errors import StreamReason
from ..session.retention import SLOT_HEADROOM, SlotPool
from ..session.streams import AnyStream, Half, StreamHandler
from .backlog import Backlog
from .socket_group import SocketLoop

READS: Final = 2
"""Reads in one wake-up."""
SLOTS: Final = 2
"""Pieces of up to 128 KiB in one read from a fast socket."""


class Relay(StreamHandler):
    """Handler of a `stream` and owner of `sock`, which is connected and non-blocking.

    `start` begins. `ended` is called once, when both have ended. At the client the stream may not be opened yet, whose
    application was told that it is: then a refusal is a reset, and the stream may be replaced until something was sent.
    """

    __slots__ = (
        "_armed",
        "_backlog",
        "_ended",
        "_fd",
        "_flowing",
        "_loop",
        "_slots",
        "_sock",
        "_stream",
        "_without_room",
    )

    def __init__(
        self,
        loop: SocketLoop,
        sock: socket.socket,
        stream: AnyStream,
        slots: SlotPool,
        ended: Callable[[Relay], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._stream = stream
        self._slots = slots
        self._ended = ended
        self._backlog: Backlog | None = None
        self._armed = False
        self._flowing = False
        self._without_room = False
        """Whether the stream had no room when the socket was to be read last."""
        set_reset_on_close(sock)

    def start(self, early: bytes = b"", received: Backlog | None = None, ended: bool = False) -> None:
        """Begin to relay. `early` was read from the socket before and goes first: at most INITIAL_WINDOW bytes.
        `received` came from the stream before and is not yet consumed. `ended`: the stream's end came too."""
        self._stream.handler = self
        try:
            self._arm()
            if early:
                self._stream.send(early)
            while received:
                self.data_received(received.pop())
            if ended:
                self.eof_received()
        except Exception as error:  # noqa: BLE001  nobody else would end the two
            self._crash(error)

    @property
    def sock(self) -> socket.socket:
        return self._sock

    @property
    def unwatched(self) -> bool:
        """Whether no event of the socket would be noticed, since the relay neither reads nor writes now."""
        return not self._armed and self._backlog is None

    def progress(self) -> int:
        """A number that changes whenever the stream moves in either direction."""
        return self._stream.progress()

    def abort(self, reason: StreamReason) -> None:
        """End both sides at once, with resets."""
        self._stream.reset(reason)
        self._close()

    def _crash(self, error: Exception) -> None:
        """End both sides because of a fault of this program."""
        report_fault("ends a connection", error)
        self.abort(StreamReason.GENERAL)

    def moved(self, stream: AnyStream) -> None:
        if self._fd < 0:
            stream.reset(StreamReason.CANCELLED)
            return
        self._stream = stream
        self._arm()

    # --- socket to stream ------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._loop.add_reader(self._fd, self._on_readable)

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            self._loop.remove_reader(self._fd)

    def _on_readable(self) -> int:
        """Read a few times. Returns the number of bytes."""
        before = self._stream.progress()
        try:
            for _ in range(READS):
                if not self._read():
                    break
        except Exception as error:  # noqa: BLE001  the socket stays readable: the loop would call again at once
            self._crash(error)
        return self._stream.progress() - before

    def _read(self) -> bool:
        """Read once. True if there may be more to read and the stream may take it."""
        stream, pool = self._stream, self._slots
        room = stream.request_room()
        if not room:
            # Room mostly comes before the loop looks at the socket again, and to end and begin watching it costs more
            # than being called in vain once.
            if self._without_room:
                self._disarm()
            self._without_room = True
            return False
        self._without_room = False
        # One slot until a read fills it, then several at a time (bench/scatter.py).
        piece = min(room, stream.frame_limit)
        slots = [pool.take() for _ in range(min(SLOTS, room // piece) if self._flowing else 1)]
        ends = SLOT_HEADROOM + piece
        try:
            if len(slots) == 1:
                size = self._sock.recv_into(slots[0][SLOT_HEADROOM:ends])
            else:
                size = self._sock.recvmsg_into([slot[SLOT_HEADROOM:ends] for slot in slots])[0]
        except (BlockingIOError, InterruptedError):
            self._flowing = False
            pool.give_all(slots)
            return False
        except OSError:
            pool.give_all(slots)
            self.abort(StreamReason.CONNECTION_RESET)
            return False
        if not size:
            pool.give_all(slots)
            self._disarm()
            stream.finish()
            self._close_if_done()
            return False
        used = 0
        for start in range(0, size, piece):
            stream.send_slot(slots[used], min(piece, size - start))
            used += 1
        pool.give_all(slots[used:])
        self._flowing = size >= piece
        return used == len(slots) and self._flowing

    def writable(self) -> None:
        """The stream has room again and it is its turn: read now, and again by turns while there is more."""
        if self._read():
            self._stream.wait_for_turn()
        elif self._fd >= 0 and self._stream.send_half is Half.OPEN and not self._stream.waits():
            self._arm()

    # --- stream to socket ------------------------------------------------------------------------------------------

    def data_received(self, data: bytes | bytearray | memoryview) -> None:
        if self._backlog is not None:
            self._backlog.append(data)
            return
        size = len(data)
        try:
            taken = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            taken = 0
        except OSError:
            self.abort(StreamReason.CONNECTION_RESET)
            return
        if taken:
            self._stream.consumed(taken)
        if taken < size:
            self._backlog = Backlog()
            self._backlog.append(data[taken:])
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> int:
        try:
            return self._write_backlog()
        except Exception as error:  # noqa: BLE001  as in _on_readable
            self._crash(error)
            return 0

    def _write_backlog(self) -> int:
        """Write some of what waits. Returns the number of bytes."""
        assert self._backlog is not None
        try:
            taken = self._backlog.write(self._sock)
        except OSError:
            self.abort(StreamReason.CONNECTION_RESET)
            return 0
        if taken:
            self._stream.consumed(taken)
        if self._backlog:
            return taken
        self._backlog = None
        self._loop.remove_writer(self._fd)
        if self._stream.receive_half is Half.CLOSED:
            self._shut_down()
        return taken

    def eof_received(self) -> None:
        if self._backlog is None:
            self._shut_down()

    def _shut_down(self) -> None:
        if self._close_if_done():
            return
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    # --- the end ---------------------------------------------------------------------------------------------------

    def reset(self, reason: StreamReason) -> None:
        self._close()

    def refused(self, reason: StreamReason) -> None:
        self.reset(reason)

    def _close_if_done(self) -> bool:
        """Close the socket if both directions have ended, which ends ours too. Returns whether they have."""
        done = (
            self._backlog is None
            and self._stream.receive_half is Half.CLOSED
            and self._stream.send_half is not Half.OPEN
        )
        if done:
            set_end_on_close(self._sock)
            self._close()
        return done

    def _close(self) -> None:
        if self._fd < 0:
            return
        self._disarm()
        if self._backlog is not None:
            self._backlog = None
            self._loop.remove_writer(self._fd)
        self._fd = -1
        self._sock.close()
        self._ended(self)
