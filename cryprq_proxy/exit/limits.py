"""Limits on what strangers can use: token buckets per address prefix, and a memory of first flights.

Memory is bounded and each call takes constant time. There is no clock: `now` is a parameter, in seconds, and never
goes backwards. A full table forgets its oldest entry. So a flood from more prefixes than fit always gets new, full
buckets; the bound on handshakes in flight stops it.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from typing import Final

MAX_PREFIXES: Final = 65_536

REPLAY_SECONDS: Final = 600.0
MAX_FLIGHTS: Final = 65_536


class TokenBucket:
    """At most `burst` at once and `rate` a second in the long run; full at first."""

    __slots__ = ("_burst", "_rate", "_then", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._then = now

    def allow(self, now: float, amount: float = 1.0) -> bool:
        """Take `amount` tokens if that many are there; a refused call takes none."""
        if now > self._then:
            self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate)
            self._then = now
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True


class PrefixLimiter:
    """A token bucket for each /32 of IPv4 and each /64 of IPv6: the smallest prefix of one customer.

    Above `max_prefixes` the least recently used one is forgotten. Takes about 250 bytes per prefix.
    """

    __slots__ = ("_buckets", "_burst", "_max_prefixes", "_rate")

    def __init__(self, rate: float, burst: float, max_prefixes: int = MAX_PREFIXES) -> None:
        self._rate = rate
        self._burst = burst
        self._max_prefixes = max_prefixes
        self._buckets: OrderedDict[bytes, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, ip: str, now: float) -> bool:
        """Whether the prefix of `ip` (as `getpeername` gives it) has a token left. Takes it."""
        prefix = prefix_of(ip)
        bucket = self._buckets.get(prefix)
        if bucket is None:
            bucket = self._buckets[prefix] = TokenBucket(self._rate, self._burst, now)
            if len(self._buckets) > self._max_prefixes:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(prefix)
        return bucket.allow(now)


def prefix_of(ip: str) -> bytes:
    """The four bytes of an IPv4 address (also if v4-mapped), or the first eight of an IPv6 address.

    Text that is no address gives the empty prefix.
    """
    try:
        if ":" not in ip:
            return socket.inet_pton(socket.AF_INET, ip)
        address = socket.inet_pton(socket.AF_INET6, ip.partition("%")[0])
    except (OSError, ValueError):
        return b""
    return address[12:] if address.startswith(_V4_MAPPED) else address[:8]


_V4_MAPPED: Final = bytes(10) + b"\xff\xff"


class ReplayMemory:
    """Recognizes a first flight that was seen within the last `seconds`, by its hash.

    All entries live equally long, so they expire in their order of arrival. Each call drops at most two expired
    ones: entries go faster than they come, and no call takes long. Above `max_entries` the oldest is forgotten
    early. Takes about 200 bytes per entry.
    """

    __slots__ = ("_ends", "_max_entries", "_seconds")

    def __init__(self, seconds: float = REPLAY_SECONDS, max_entries: int = MAX_FLIGHTS) -> None:
        self._seconds = seconds
        self._max_entries = max_entries
        self._ends: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ends)

    def seen(self, flight_hash: bytes, now: float) -> bool:
        """Whether the hash is a repeat. A new one is remembered; a repeat does not live longer."""
        ends = self._ends
        end = ends.get(flight_hash)
        if end is not None:
            if now < end:
                return True
            del ends[flight_hash]
        for _ in range(2):
            if ends and ends[next(iter(ends))] <= now:
                ends.popitem(last=False)
        if len(ends) >= self._max_entries:
            ends.popitem(last=False)
        ends[flight_hash] = now + self._seconds
        return False
