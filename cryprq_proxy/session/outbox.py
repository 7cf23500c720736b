"""Where the streams of a session put their frames."""

from __future__ import annotations

from typing import Final, Protocol

from ..address import Destination
from .streams import Stream


class Outbox(Protocol):
    """Session is one."""

    def send(self, frame: bytes, /) -> None:
        """A frame of a stream, in its turn."""

    def send_control(self, frame: bytes, /) -> None:
        """A control frame of the session, next."""

    def forget(self, stream: int, /) -> None:
        """What was sent of a stream that is reset need not come."""

    def send_datagram(
        self, stream: Stream, destination: Destination, payload: bytes | memoryview, /
    ) -> None: ...
    def wake(self) -> None: ...


class _Nowhere:
    """The Outbox of a session that has ended."""

    def send(self, frame: bytes, /) -> None: ...
    def send_control(self, frame: bytes, /) -> None: ...
    def forget(self, stream: int, /) -> None: ...
    def send_datagram(
        self, stream: Stream, destination: Destination, payload: bytes | memoryview, /
    ) -> None: ...
    def wake(self) -> None: ...


NOWHERE: Final = _Nowhere()
