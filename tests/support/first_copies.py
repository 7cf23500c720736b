"""What a receiver of streams must make of pieces that come in any order, twice, or with other content: of each byte the
first copy counts, and as soon as there is no hole in front of it, the application has it.
"""

from __future__ import annotations

from cryprq_proxy.session.session import Session
from tests.support.frame_count import broken
from tests.support.links import App


class _Copies:
    """The first copy of each byte of one stream. `whole`: how many there are without a hole."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._here = bytearray()
        self.whole = 0

    def add(self, offset: int, payload: bytes) -> None:
        end = offset + len(payload)
        for each in (self.data, self._here):
            each += bytes(max(end - len(each), 0))
        at = offset
        while (start := self._here.find(0, at, end)) >= 0:
            at = self._here.find(1, start, end)
            at = end if at < 0 else at
            self.data[start:at] = payload[start - offset : at - offset]
            self._here[start:at] = b"\1" * (at - start)
        hole = self._here.find(0, self.whole)
        self.whole = len(self._here) if hole < 0 else hole


class FirstCopies:
    """Compares what the applications of `session` get with that, and raises RuntimeError if it is not the same."""

    def __init__(self, session: Session) -> None:
        self._table = session.table
        self._receive_data = session.receiver.receive_data
        session.receiver.receive_data = self._checked_data  # type: ignore[method-assign]
        self._copies: dict[int, _Copies] = {}

    def _checked_data(self, id: int, offset: int, payload: memoryview) -> None:
        stream, data = self._table.live.get(id), bytes(payload)
        app = None if stream is None else stream.handler
        self._receive_data(id, offset, payload)
        if stream is None or self._table.live.get(id) is not stream or not isinstance(app, App):
            self._copies.pop(id, None)
            return
        copies = self._copies.setdefault(id, _Copies())
        before = copies.whole
        copies.add(offset, data)
        if app.received[before:] != copies.data[before : copies.whole]:
            raise broken(f"{len(app.received)} bytes of a stream were delivered of {copies.whole}, or others")
