"""`cryprq-proxy status --watch`: the same figures at intervals, and the rates between them."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ...base.log import one_line
from ...base.text import size
from ...errors import CryprqError
from ...status import Status, Traffic
from .view import view

type Answers = Sequence[Status]


class Rates:
    """Bytes per second between two answers of the same process."""

    def __init__(self) -> None:
        self._last: dict[tuple[type, int], tuple[float, Traffic]] = {}

    def row(self, status: Status, now: float) -> dict[str, str]:
        """A row for the table; empty at the first answer."""
        process, total = (type(status), status.pid), status.bytes
        then, before = self._last.get(process, (now, total))
        self._last[process] = (now, total)
        seconds = now - then
        if seconds <= 0:
            return {}
        sent = max(0, total.sent - before.sent) / seconds
        received = max(0, total.received - before.received) / seconds
        return {"now": f"{size(sent)}/s sent, {size(received)}/s received"}


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Leave the block at SIGINT or SIGTERM. The value tells a loop that is still running whether one came.

    A plain KeyboardInterrupt does not always end a loop: background jobs of shells inherit an ignored SIGINT, and
    Python drops an exception that is raised inside a finalizer.
    """
    asked = False

    def end(*_: object) -> None:
        nonlocal asked
        asked = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(
    ask: Callable[[], Answers],
    seconds: float,
    console: Console,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Show the answer of `ask` at intervals, until Ctrl-C. Also shows a CryprqError of `ask`: a process may start
    again."""
    rates = Rates()
    with (
        interruptible() as ended,
        Live(console=console, screen=True, auto_refresh=False, vertical_overflow="ellipsis") as live,
    ):
        while not ended():
            live.update(_screen(ask, console.width, rates, now), refresh=True)
            sleep(seconds)


def repeat(
    ask: Callable[[], Iterable[object]], seconds: float, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Print the answer of `ask` as a line of JSON, at intervals, until Ctrl-C."""
    with interruptible() as ended:
        while not ended():
            for answer in ask():
                click.echo(json.dumps(answer))
            sleep(seconds)


def _screen(ask: Callable[[], Answers], width: int, rates: Rates, now: Callable[[], float]) -> Group:
    try:
        answers = ask()
    except CryprqError as error:
        return Group(Text(one_line(str(error))))
    at = now()
    pieces: list[RenderableType] = []
    for answer in answers:
        pieces += [view(answer, width, rates.row(answer, at)), Text()]
    return Group(*pieces)
