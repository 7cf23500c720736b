"""A resolver of the LAN, asked past the tunnel for the names that the configuration sends to it (`dns.split`).

The filter lets packets with the link's mark through to port 53 of the configured servers.
"""

from __future__ import annotations

import secrets
from typing import Final

from cryprq_proxy.errors import reason_of

from .framed import UpstreamError
from .inquiry import Inquiry
from .marked_server import marked_server

TRIES: Final = 3
TRY_SECONDS: Final = 1.2
"""Until the question is sent again."""
TCP_SECONDS: Final = 3.0
MAX_IN_FLIGHT: Final = 256
"""Questions at once, each with a socket."""


class LanServer:
    """An `Upstream`; `mark` is the link's."""

    def __init__(self, address: str, mark: int, port: int = 53) -> None:
        self._server = marked_server(address, mark, port)
        self._in_flight = 0

    async def ask(self, inquiry: Inquiry) -> bytes:
        """See `Upstream`."""
        if self._in_flight >= MAX_IN_FLIGHT:
            raise UpstreamError("too many questions wait for the server")
        self._in_flight += 1
        try:
            return await self._ask(inquiry)
        except TimeoutError:
            raise UpstreamError("the server did not answer") from None
        except EOFError:
            raise UpstreamError("the server closed the connection without an answer") from None
        except OSError as error:
            raise UpstreamError(
                f"the server cannot be reached: {reason_of(error)}", unreachable=True
            ) from None
        finally:
            self._in_flight -= 1

    def close(self) -> None:
        """See `Upstream`. No connection outlives its question."""

    async def _ask(self, inquiry: Inquiry) -> bytes:
        wire = inquiry.wire()
        question = secrets.token_bytes(2) + wire[2:]

        def is_answer(message: bytes) -> bool:
            return message[:2] == question[:2] and inquiry.is_answered_by(message)

        answer = await self._server.ask_over_udp(question, is_answer, TRY_SECONDS, TRIES)
        return answer or await self._server.ask_over_tcp(wire, TCP_SECONDS)
