"""Split DNS: the servers of the longest domain that covers a name are asked for it."""

from __future__ import annotations

from collections.abc import Mapping

from .names import suffixes


class SuffixTable[T]:
    """Values by domain, in wire form; one look-up costs as many dictionary look-ups as the name has labels."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[bytes, T]) -> None:
        self._values = dict(values)

    def get(self, name: bytes) -> T | None:
        """The value of the longest domain that is `name` or above it."""
        if not self._values:
            return None
        return next((self._values[suffix] for suffix in suffixes(name) if suffix in self._values), None)

    def items(self) -> list[tuple[bytes, T]]:
        return list(self._values.items())
