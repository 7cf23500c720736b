"""A service manager's end of sd_notify(3), for processes that are started by a test instead of by one."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Self

from tests.support.background import PATIENCE


class NotifySocket:
    """Receives what is sent to NOTIFY_SOCKET. With an `address` that begins with "@" in the abstract namespace."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(PATIENCE)

    @classmethod
    def within(cls, directory: Path) -> NotifySocket:
        return cls(str(directory / "notify"))

    def environment(self, **more: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, **more}

    def next(self) -> dict[str, str]:
        """The fields of the next message."""
        lines = self._socket.recv(65536).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def wait(self, field: str, value: str | None = None) -> dict[str, str]:
        """The next message with this field, passing over others."""
        while True:
            message = self.next()
            if field in message and value in (None, message[field]):
                return message

    def drain(self) -> None:
        """Forget what has arrived."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(65536)
        except BlockingIOError:
            pass
        finally:
            self._socket.settimeout(PATIENCE)

    def silent_for(self, seconds: float) -> bool:
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(65536)
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(PATIENCE)
        return False

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
