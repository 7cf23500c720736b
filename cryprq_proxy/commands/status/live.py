"""`cryprq-proxy status --watch`: the same figures, asked for again and again, and what moved in between."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ...base.log import one_line
from ...base.text import part, size
from ...errors import CryprqError
from .view import view

type Answers = Sequence[Mapping[str, Any]]

_WAYS: Final = ("sent", "received")


class Rates:
    """Bytes per second between two answers of the same process."""

    def __init__(self) -> None:
        self._last: dict[tuple[object, object], tuple[float, dict[str, int]]] = {}

    def row(self, status: Mapping[str, Any], now: float) -> dict[str, str]:
        """A row for the table; nothing at the first answer, or where there are no counts."""
        total, who = part(status, "bytes"), (status.get("role"), status.get("pid"))
        counts = {way: count for way in _WAYS if isinstance(count := total.get(way), int)}
        before = self._last.get(who)
        self._last[who] = (now, counts)
        if (
            before is None
            or now <= before[0]
            or before[1].keys() != set(_WAYS)
            or counts.keys() != set(_WAYS)
        ):
            return {}
        seconds = now - before[0]
        moved = {way: max(0, counts[way] - before[1][way]) / seconds for way in _WAYS}
        return {"now": f"{size(moved['sent'])}/s sent, {size(moved['received'])}/s received"}


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
    pieces: list[Any] = []
    for answer in answers:
        pieces += [view(answer, width, rates.row(answer, at)), Text()]
    return Group(*pieces)
