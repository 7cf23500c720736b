"""From an exit's endpoints to an admitted connection: the race between the endpoints, then the rest of the handshake.

Signatures and slow key exchanges run on a thread of the dialer's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ..carriers.admission import Admission, admit_client
from ..carriers.dial.connect import Dialling
from ..carriers.dial.endpoint import Endpoint
from ..carriers.dial.tcp import Resolve
from ..crypto.handshake import ClientHandshake
from ..crypto.identity import Identity
from ..crypto.payloads import Feature
from ..crypto.primitives import Provider
from ..errors import CarrierError
from ..session.session import Session
from .endpoints import HANDSHAKE_TIMEOUT, Endpoints, ReachedExit, handshake_late
from .settings import ClientSettings


class ExitDialer:
    """Owner of the choice among an exit's endpoints. `features` are asked of the exit. Call `close` in the end."""

    def __init__(
        self,
        identity: Identity,
        settings: ClientSettings,
        provider: Provider,
        features: Feature,
        resolve: Resolve,
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._provider = provider
        self._features = features
        dialling = Dialling(settings.upstream, resolve, settings.mark, settings.ca)
        self._endpoints = Endpoints(settings.endpoints, dialling, settings.memory.last)
        self.executor = ThreadPoolExecutor(1, "handshake")

    async def find(self) -> ReachedExit:
        """Reach the exit by one of its endpoints. Raises PeerError with the reason in a sentence, ConfigError for
        settings that do not work."""
        return await self._endpoints.race(self._handshake, self._offload)

    async def admit(
        self, reached: ReachedExit, session: Session | None, attempt: int, invite: bytes | None
    ) -> Admission:
        """The rest of the handshake: to resume `session`, with the number of this attempt (from 1, rising), or for a
        new session. Raises PeerError. The caller makes a carrier of the pipe, or calls `discard`."""
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                return await admit_client(
                    reached.pipe, reached.handshake, session, attempt, self._offload, invite
                )
        except TimeoutError:
            raise handshake_late() from None

    def discard(self, reached: ReachedExit, error: BaseException) -> None:
        """Nothing becomes of the connection because of `error`."""
        reached.pipe.close()
        if isinstance(error, CarrierError):
            self.shun(reached.endpoint)

    def worked(self, endpoint: Endpoint) -> None:
        """A link came up by `endpoint`."""
        if self._endpoints.worked(endpoint):
            self._settings.memory.remember(endpoint)

    def shun(self, endpoint: Endpoint) -> None:
        """The link by `endpoint` broke at once: in the next race the others come first."""
        self._endpoints.shun(endpoint)

    def close(self) -> None:
        self.executor.shutdown(wait=False, cancel_futures=True)

    async def _offload(self, job: Callable[[], bytes]) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self.executor, job)

    def _handshake(self) -> ClientHandshake:
        settings = self._settings
        return ClientHandshake(
            self._identity, settings.peer, self._provider, psk=settings.psk, features=self._features
        )
