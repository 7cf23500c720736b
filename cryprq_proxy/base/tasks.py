"""Start of asyncio tasks: none is lost, none fails without a log line.

The event loop keeps only weak references to its tasks: a task without another reference may be collected before it is
done, together with its exception. All tasks of the program start here (tests/test_layers.py forbids the bare calls).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from .faults import is_fault

_log = logging.getLogger(__name__)
_running: set[asyncio.Task[Any]] = set()


def spawn[T](coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Start `coroutine` in the running loop as a task called `name`. An exception is logged with that name. A
    CryprqError other than LocalError is not: the code that awaits the task reports it.

    The task is held until it ends. Its owner cancels it, and may await it: the exception is raised there too.
    """
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if task.cancelled():
        return
    error = task.exception()
    if error is not None and (is_fault(error) or not isinstance(error, Exception)):
        _log.error("the task %r failed", task.get_name(), exc_info=error)
