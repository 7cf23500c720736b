"""Where the computations of a rotation run: at once, or on another thread where they are slow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from ..base.faults import report_fault
from ..crypto.primitives import Provider
from ..errors import CarrierFault, CloseReason, PeerError
from ..session.rotation import Offload, inline


def executor_offload(provider: Provider, executor: Executor, failed: Callable[[PeerError], None]) -> Offload:
    """The Offload of a session: inline for a fast provider, on `executor` for a slow one.

    `failed` gets the PeerError of a peer whose answer is wrong; inline it is raised. It gets one for a fault of this
    program too: the session goes on from path to path, and would wait for its keys on each of them.
    """
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
            except Exception as error:  # noqa: BLE001  the session would wait for its key for ever
                report_fault("ends the session with the peer", error)
                failed(PeerError(CloseReason.REKEY, str(CarrierFault())))

        loop.run_in_executor(executor, job).add_done_callback(finished)

    return offload
