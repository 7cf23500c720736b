"""`cryprq-proxy status --watch`: the same figures, asked for again and again, and what moved in between."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

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
        """A row for the table; nothing at the first answer."""
        process, total = (type(status), status.pid), status.bytes
        then, before = self._last.get(process, (now, total))
        self._last[process] = (now, total)
        seconds = now - then
        if seconds <= 0:
            return {}
        sent = max(0, total.sent - before.sent) / seconds
        received = max(0, total.received - before.received) / seconds
        return {"now": f"{size(sent)}/s sent, {size(received)}/s received"}


def watch(
    ask: Callable[[], Answers],
    seconds: float,
    console: Console,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Show what `ask` answers every so many seconds, until Ctrl-C. Also that nothing runs, which is a CryprqError of
    `ask`: something may come back."""
    rates = Rates()
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(console=console, screen=True, auto_refresh=False, vertical_overflow="ellipsis") as live,
    ):
        while True:
            live.update(_screen(ask, console.width, rates, now), refresh=True)
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
