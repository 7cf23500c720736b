"""The buffers that all connections of a process share, and their one owner.

A callback of the event loop ends before the next one starts. A buffer that is used only within a callback is therefore
needed once per process, however many connections there are. There are two kinds:

    scratch   one buffer for each purpose; its content is invalid as soon as the callback returns
    pool      buffers of one size, each held while data waits in it and given back afterwards

A buffer is allocated on first use. Objects that use one for every packet get it once, in their `__init__`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast


class BufferPool:
    """Buffers of `size` bytes. At most `most` idle ones are kept; the allocator frees the others."""

    __slots__ = ("_idle", "_most", "size")

    def __init__(self, size: int, most: int) -> None:
        self._idle: list[memoryview] = []
        self._most = most
        self.size = size

    def take(self) -> memoryview:
        """A buffer for the caller alone, with arbitrary content."""
        return self._idle.pop() if self._idle else memoryview(bytearray(self.size))

    def give(self, buffer: memoryview) -> None:
        """Take back a buffer that holds no waiting data."""
        if len(self._idle) < self._most:
            self._idle.append(buffer)


class SharedBuffers:
    """Owns the shared buffers. One purpose always gets the same object."""

    def __init__(self) -> None:
        self._scratch: dict[str, memoryview] = {}
        self._pools: dict[str, BufferPool] = {}
        self._objects: dict[Callable[[], object], object] = {}

    def scratch(self, purpose: str, size: int) -> memoryview:
        """The buffer of `size` bytes for `purpose`."""
        if purpose not in self._scratch:
            self._scratch[purpose] = memoryview(bytearray(size))
        return self._scratch[purpose]

    def pool(self, purpose: str, size: int, most: int) -> BufferPool:
        """The pool for `purpose`; see BufferPool."""
        if purpose not in self._pools:
            self._pools[purpose] = BufferPool(size, most)
        return self._pools[purpose]

    def one[T](self, kind: Callable[[], T]) -> T:
        """The process's only object of `kind`, for buffers with a state of their own."""
        if kind not in self._objects:
            self._objects[kind] = kind()
        return cast("T", self._objects[kind])


SHARED: Final = SharedBuffers()
"""The owner in this process, which has one event loop."""
