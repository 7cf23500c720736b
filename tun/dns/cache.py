"""Answers until their time is over, and for a while beyond.

An answer may be given as it is for `lifetime` seconds. After that it stays for `stale` more, and is given only when
no upstream could be asked (RFC 8767). What was used least recently goes when there are too many entries or too many
bytes. That a question failed is remembered too, for seconds (RFC 9520): one dead server must not see every retry.

Time is a parameter. It should go on while the machine sleeps, or all answers would outlive the night.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from .answer import Answer
from .codes import Key

ENTRY_BYTES: Final = 600
"""Bytes that an entry takes beside its message, about: the objects, the key, the table."""
TTL_BYTES: Final = 120
"""What the place of a TTL takes beside that."""
MAX_FAILURES: Final = 1024
"""Failed questions remembered."""


class Hit(NamedTuple):
    """What the cache knows of a question."""

    answer: Answer
    age: int
    """Seconds since it came."""
    fresh: bool
    """Else it is stale."""


class _Entry(NamedTuple):
    answer: Answer
    born: float
    size: int


class Cache:
    """At most `entries` answers, and `size` bytes counted about right."""

    def __init__(self, entries: int, size: int, stale: float) -> None:
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._failures: OrderedDict[Key, tuple[float, Answer | None]] = OrderedDict()
        self._most = entries
        self._most_bytes = size
        self._stale = stale
        self.bytes = 0
        """What all entries take, about."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key, now: float) -> Hit | None:
        """The answer, fresh or stale."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        age = now - entry.born
        lifetime = entry.answer.lifetime
        if age >= lifetime + self._stale:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return Hit(entry.answer, int(age), fresh=age < lifetime)

    def put(self, key: Key, answer: Answer, now: float) -> None:
        """Keep an answer in place of an earlier one, unless its lifetime is 0; the failure is forgotten."""
        self._failures.pop(key, None)
        self._drop(key)
        size = ENTRY_BYTES + len(key[0]) + len(answer.wire) + TTL_BYTES * len(answer.ttls)
        size += sum(map(len, answer.edes))
        if answer.lifetime <= 0 or size > self._most_bytes:
            return
        self._entries[key] = _Entry(answer, now, size)
        self.bytes += size
        while len(self._entries) > self._most or self.bytes > self._most_bytes:
            self._drop(next(iter(self._entries)))

    def fail(self, key: Key, now: float, seconds: float, said: Answer | None = None) -> None:
        """Remember for `seconds` that no server could answer. `said`: a server's answer that reports its failure."""
        self._failures[key] = now + seconds, said
        self._failures.move_to_end(key)
        if len(self._failures) > MAX_FAILURES:
            self._failures.popitem(last=False)

    def failed(self, key: Key, now: float) -> bool:
        """Whether asking again is too early."""
        end, _ = self._failures.get(key, (now, None))
        if now < end:
            return True
        self._failures.pop(key, None)
        return False

    def said(self, key: Key) -> Answer | None:
        """What a server said when the question failed last."""
        _, said = self._failures.get(key, (0.0, None))
        return said

    def forget_failures(self) -> None:
        """The reason for them is gone."""
        self._failures.clear()

    def clear(self) -> None:
        self._entries.clear()
        self._failures.clear()
        self.bytes = 0

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry.size
