"""What a front-end that waits (the HTTP proxy) sees of the rest: byte streams, and someone who opens them.

Both are protocols, so that tests put lists of bytes in their place. Front-ends whose bytes only pass through do not
use them: a relay on callbacks is several times faster.
"""

from __future__ import annotations

from typing import Protocol

from ..address import Destination


class ByteStream(Protocol):
    """Two directions of bytes, each with an end of its own: an application's connection or a stream of the link."""

    async def read(self) -> bytes:
        """Some bytes, or b"" at the end and ever after. A cancelled `read` has consumed nothing.

        Raises StreamReset; a stream on which a `write` raised it raises it here too, once what came before is read.
        """

    async def write(self, data: bytes) -> None:
        """Take all of `data`, return when there is room for more. Raises StreamReset."""

    def write_eof(self) -> None:
        """End this direction; the other one goes on."""

    def abort(self) -> None:
        """End both directions at once, as a reset that the other side sees. Harmless when all has ended."""


class Opener(Protocol):
    """Opens streams to targets."""

    async def open(self, destination: Destination) -> ByteStream:
        """A stream to `destination`, within a bounded time. Raises StreamRefused."""
