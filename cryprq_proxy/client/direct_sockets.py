"""The sockets of direct connections beside the one that each application's connection has room for.

A name with several addresses is dialled at up to eight of them at once, and a UDP association has a socket for each
family. With thousands of applications these would be all descriptors of the process.
"""

from __future__ import annotations


class DirectSockets:
    """`free` of them, for all direct connections together. A SocketRoom (outbound/address_race.py)."""

    def __init__(self, free: int) -> None:
        self.free = free

    def take(self, count: int) -> bool:
        """Whether `count` more are the caller's now."""
        if count > self.free:
            return False
        self.free -= count
        return True

    def give_back(self, count: int) -> None:
        self.free += count

    def more(self) -> bool:
        return self.take(1)

    def less(self) -> None:
        self.give_back(1)
