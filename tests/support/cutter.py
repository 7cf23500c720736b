"""A TCP forwarder that misbehaves when told to: it stands between a client and its exit as a bad network does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable

from cryprq_proxy.base.sockets import set_reset_on_close
from cryprq_proxy.session.records import HEADER
from tests.support.background import PATIENCE, Background

UP, DOWN = 0, 1
"""From the client to the exit, and back."""
PIECE = 262_144


class Cutter:
    """Listens on `port` and forwards to `target`. All methods may be called from the test's thread.

    `bytes` counts what has passed in each direction, `connections` how many there have been. Where `kept` is set to
    an array, it gets all that passes.
    """

    def __init__(self, background: Background, target: int) -> None:
        self._background = background
        self._target = target
        self._links: dict[asyncio.Task[None], asyncio.Event] = {}
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._corrupt: dict[int, Callable[[bytearray], None]] = {}
        self._cuts = 0
        self._cut_every = 0
        self._reset = True
        self._cuts_done = threading.Event()
        self._corrupted = threading.Event()
        self.bytes = [0, 0]
        self.kept: bytearray | None = None
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._accepting = background.call(background.loop.create_task, self._accept())

    # --- what a test does ------------------------------------------------------------------------------------------

    def cut(self, *, reset: bool = True) -> None:
        """End all connections, by RST or by FIN."""
        self._background.run(self._cut_all(reset))

    def cut_every(self, size: int, times: int, *, reset: bool = True) -> None:
        """Cut each connection when `size` bytes have come down through it, `times` times in all."""
        self._cut_every, self._cuts, self._reset = size, times, reset
        self._cuts_done.clear()

    def wait_cuts(self) -> None:
        """Until all cuts of `cut_every` have been made."""
        assert self._cuts_done.wait(PATIENCE), "the cuts have not all been made"

    def stall(self) -> None:
        """Forward nothing more, and close nothing."""
        self._background.call(self._flowing.clear)

    def release(self) -> None:
        """The end of `stall`."""
        self._background.call(self._flowing.set)

    def corrupt(self, direction: int) -> None:
        """Change one bit of the next piece that passes in `direction`."""
        self._damage(direction, _flip_middle)

    def corrupt_length(self, direction: int) -> None:
        """Add 4096 to the length of the record at the start of the next piece that passes in `direction`."""
        self._damage(direction, _enlarge)

    def _damage(self, direction: int, how: Callable[[bytearray], None]) -> None:
        self._corrupted.clear()
        self._background.call(self._corrupt.__setitem__, direction, how)

    def wait_corrupted(self) -> None:
        """Until it has."""
        assert self._corrupted.wait(PATIENCE), "nothing came by that could be corrupted"

    def close(self) -> None:
        self._background.run(self._close())

    # --- what it does ----------------------------------------------------------------------------------------------

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            exit = socket.socket()
            exit.setblocking(False)
            try:
                await loop.sock_connect(exit, ("127.0.0.1", self._target))
            except OSError:
                client.close()
                exit.close()
                continue
            for sock in (client, exit):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            cut = asyncio.Event()
            task = loop.create_task(self._serve(client, exit, cut))
            self._links[task] = cut
            task.add_done_callback(self._links.pop)

    async def _serve(self, client: socket.socket, exit: socket.socket, cut: asyncio.Event) -> None:
        reset = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(client, exit, UP))
                group.create_task(self._forward(exit, client, DOWN))
                await cut.wait()
                raise _Cut
        except* _Cut:
            reset = self._reset
        except* _Ended:
            reset = False
        except* OSError:
            pass
        finally:
            for sock in (client, exit):
                if reset:
                    set_reset_on_close(sock)
                else:
                    await self._see_off(sock)
                sock.close()

    async def _see_off(self, sock: socket.socket) -> None:
        """Send FIN, and read until the other side does: closing with unread data would send RST."""
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
            while await asyncio.get_running_loop().sock_recv(sock, PIECE):
                pass

    async def _forward(self, source: socket.socket, sink: socket.socket, direction: int) -> None:
        loop = asyncio.get_running_loop()
        passed = 0
        while True:
            data = bytearray(await loop.sock_recv(source, PIECE))
            await self._flowing.wait()
            if not data:
                raise _Ended
            if direction in self._corrupt:
                self._corrupt.pop(direction)(data)
                self._corrupted.set()
            if self.kept is not None:
                self.kept += data
            await loop.sock_sendall(sink, data)
            passed += len(data)
            self.bytes[direction] += len(data)
            if direction == DOWN and self._cuts and passed >= self._cut_every:
                self._cuts -= 1
                if not self._cuts:
                    self._cuts_done.set()
                raise _Cut

    async def _cut_all(self, reset: bool) -> None:
        self._reset = reset
        for cut in self._links.values():
            cut.set()
        if self._links:
            await asyncio.wait(list(self._links))

    async def _close(self) -> None:
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._listener.close()
        self._flowing.set()
        await self._cut_all(True)


def _flip_middle(data: bytearray) -> None:
    data[len(data) // 2] ^= 1


def _enlarge(data: bytearray) -> None:
    data[HEADER - 2] ^= 0x10


class _Cut(Exception):
    """It is time to cut."""


class _Ended(Exception):
    """A side has closed."""
