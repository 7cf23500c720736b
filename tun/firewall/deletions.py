"""Deletions of connections that the kernel remembers: beside the lock under which the filter is changed.

    change, under the lock  ->  soon  ->  choose, under the lock  ->  delete, beside it

To list connections may take longer than a repair of the filter, and repairs wait for the lock: so no deletion holds it.
One runs at a time, and each chooses by the settings in force when it begins, so that nothing can begin anew for the old
reason. Changes that come meanwhile have one more deletion in common.

Nothing is lost when the process ends. `close` waits for the deletion that runs. What a kill has left undone is done by
the next start, which deletes behind its new table, or by the journal's undo.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cryprq_proxy.base.faults import report_fault
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import CryprqError

_log = logging.getLogger(__name__)


class Deletions:
    """`delete` chooses and deletes once; it may raise CryprqError."""

    def __init__(self, delete: Callable[[], Awaitable[None]]) -> None:
        self._delete = delete
        self._due: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def due(self) -> bool:
        """Whether another one is to begin."""
        return self._due is not None

    @property
    def pending(self) -> bool:
        """Whether one is to begin, or runs."""
        return self.due or (self._task is not None and not self._task.done())

    def soon(self) -> asyncio.Future[None]:
        """Delete once more. The future is done when a deletion that began after this call has ended, well or not;
        shield it, since others may wait for it too."""
        if self._due is None:
            self._due = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            self._task = spawn(self._run(), "deleting ended connections")
        return self._due

    async def close(self) -> None:
        """Begin no more, and wait for the end of one that runs."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while (done := self._due) is not None:
            self._due = None
            try:
                if not self._closed:
                    await self._delete()
            except CryprqError as error:
                _log.warning("connections from before may have to be opened anew: %s", error)
            except Exception as error:  # noqa: BLE001  those that come next are deleted all the same
                report_fault("leaves connections from before, which may have to be opened anew", error)
            finally:
                done.set_result(None)
