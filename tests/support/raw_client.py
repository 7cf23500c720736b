"""A program's connection to a server in this process."""

from __future__ import annotations

import asyncio
import socket

from cryprq_proxy.address import Destination
from tests.support.settle import settle


class RawClient:
    """A connection of which every byte is the test's own. Close `sock` in the end."""

    def __init__(self, address: Destination) -> None:
        self.sock = socket.create_connection(address)
        self.sock.setblocking(False)

    def send(self, data: bytes) -> None:
        assert self.sock.send(data) == len(data)

    async def read(self, size: int) -> bytes:
        """`size` bytes, or all up to the end."""
        loop, got = asyncio.get_running_loop(), bytearray()
        while len(got) < size and (data := await loop.sock_recv(self.sock, size - len(got))):
            got += data
        return bytes(got)

    async def is_ignored(self) -> bool:
        """Whether neither an answer nor the end has come, though the listener had its turns."""
        await settle()
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False
