"""kqueue(2) of macOS, as far as the program uses it, made of Linux's epoll."""

from __future__ import annotations

import select
from collections.abc import Iterable
from typing import Final, NamedTuple

KQ_FILTER_READ: Final = -1
KQ_FILTER_WRITE: Final = -2
KQ_EV_ADD: Final = 1
KQ_EV_DELETE: Final = 2

_epoll = select.epoll
_IN, _OUT, _END = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR | select.EPOLLHUP
_MASKS: Final = {KQ_FILTER_READ: _IN, KQ_FILTER_WRITE: _OUT}


class kevent(NamedTuple):
    ident: int
    filter: int = KQ_FILTER_READ
    flags: int = KQ_EV_ADD


class kqueue:
    """One filter of a descriptor for each direction. The kernel forgets those of a closed descriptor."""

    def __init__(self) -> None:
        self._epoll = _epoll()
        self._masks: dict[int, int] = {}
        self.fileno = self._epoll.fileno
        self.close = self._epoll.close

    def control(
        self, changes: Iterable[kevent] | None, most: int, timeout: float | None = None
    ) -> list[kevent]:
        for change in changes or ():
            self._change(change)
        return self._ready(most, timeout) if most else []

    def _change(self, change: kevent) -> None:
        before, bit = self._masks.get(change.ident, 0), _MASKS[change.filter]
        after = before | bit if change.flags & KQ_EV_ADD else before & ~bit
        if before == after and not change.flags & KQ_EV_ADD:
            raise FileNotFoundError(2, "no such filter")
        if not after:
            self._masks.pop(change.ident)
            self._epoll.unregister(change.ident)
            return
        self._masks[change.ident] = after
        try:
            self._epoll.modify(change.ident, after)
        except FileNotFoundError:
            # A descriptor of this number that was closed took its filters along.
            self._masks[change.ident] = bit
            self._epoll.register(change.ident, bit)

    def _ready(self, most: int, timeout: float | None) -> list[kevent]:
        events = []
        for number, got in self._epoll.poll(-1 if timeout is None else timeout, most):
            wanted = self._masks.get(number, 0)
            for kind, bit in _MASKS.items():
                if wanted & bit and got & (bit | _END):
                    events.append(kevent(number, kind))
        return events[:most]
