"""Where the slow computations of a rotation run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from ..crypto.primitives import Provider
from ..errors import PeerError
from ..session.rotation import Offload, inline


def executor_offload(provider: Provider, executor: Executor, failed: Callable[[PeerError], None]) -> Offload:
    """Inline for a fast provider; for a slow one on `executor`, and `failed` gets what the peer did wrong."""
    if provider.fast:
        return inline
    loop = asyncio.get_running_loop()

    def offload(job: Callable[[], Any], done: Callable[[Callable[[], Any]], None]) -> None:
        def finished(future: asyncio.Future[Any]) -> None:
            if future.cancelled():
                return
            try:
                done(future.result)
            except PeerError as error:
                failed(error)

        loop.run_in_executor(executor, job).add_done_callback(finished)

    return offload
