"""Decisions that are read from bytes, for generators that a fuzzer and the unit tests share.

A fuzzer mutates the bytes, the unit tests make them from a seed or read them from the corpus. Each decision takes as
few bytes as it needs, so that a small change of the input is a small change of what is generated. After the last byte
every decision is the first one of its kind.
"""

from __future__ import annotations

from collections.abc import Sequence


class Choices:
    """A source of decisions. `left`: bytes that are not used yet."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def left(self) -> int:
        return max(len(self._data) - self._position, 0)

    def number(self, below: int) -> int:
        """0 to `below` - 1, at most 2**32."""
        size = 1 if below <= 1 << 8 else 2 if below <= 1 << 16 else 4
        value = int.from_bytes(self._data[self._position : self._position + size])
        self._position += size
        return value % below

    def pick[T](self, options: Sequence[T]) -> T:
        return options[self.number(len(options))]

    def once_in(self, number: int) -> bool:
        """True for one value in `number`; False after the last byte."""
        return self.number(number) == number - 1
