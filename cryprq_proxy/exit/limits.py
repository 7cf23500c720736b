"""Limits on what strangers can use: token buckets per prefix or peer.

Memory is bounded and each call takes constant time. There is no clock: `now` is a parameter, in seconds, and never
goes backwards. A full table forgets its oldest entry. So a flood from more prefixes than fit always gets new, full
buckets; the turns of the queue (fair_queue.py) still hold.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MAX_KEYS: Final = 65_536


class TokenBucket:
    """At most `burst` at once and `rate` a second in the long run; full at first."""

    __slots__ = ("_burst", "_rate", "_then", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._then = now

    def take_rate(self, rate: float, burst: float) -> None:
        """From now on. Of the tokens that are there it keeps `burst` at most."""
        self._rate, self._burst = rate, burst
        self._tokens = min(self._tokens, burst)

    def allow(self, now: float, amount: float = 1.0) -> bool:
        """Take `amount` tokens if that many are there; a refused call takes none."""
        if not self.would_allow(now, amount):
            return False
        self._tokens -= amount
        return True

    def would_allow(self, now: float, amount: float = 1.0) -> bool:
        """Whether `amount` tokens are there; takes none."""
        if now > self._then:
            self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate)
            self._then = now
        return self._tokens >= amount

    def give_back(self) -> None:
        """Return one token; the bucket is never more than full."""
        self._tokens = min(self._burst, self._tokens + 1.0)


class TokenBuckets:
    """A token bucket for each key: a prefix, or a peer.

    Above `max_keys` the least recently used one is forgotten. Takes about 250 bytes per key.
    """

    __slots__ = ("_buckets", "_burst", "_max_keys", "_rate")

    def __init__(self, rate: float, burst: float, max_keys: int = MAX_KEYS) -> None:
        self._rate = rate
        self._burst = burst
        self._max_keys = max_keys
        self._buckets: OrderedDict[bytes, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take_rate(self, rate: float, burst: float) -> None:
        """From now on. A bucket that is there takes it when it is asked next: there may be very many."""
        self._rate, self._burst = rate, burst

    def _known(self, key: bytes) -> TokenBucket | None:
        bucket = self._buckets.get(key)
        if bucket is not None:
            bucket.take_rate(self._rate, self._burst)
        return bucket

    def allow(self, key: bytes, now: float) -> bool:
        """Take a token of `key`, if one is left."""
        bucket = self._known(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate, self._burst, now)
            if len(self._buckets) > self._max_keys:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket.allow(now)

    def would_allow(self, key: bytes, now: float) -> bool:
        """Whether `key` has a token left; takes and remembers nothing."""
        bucket = self._known(key)
        return bucket is None or bucket.would_allow(now)

    def give_back(self, key: bytes) -> None:
        """Return a token that was taken."""
        bucket = self._known(key)
        if bucket is not None:
            bucket.give_back()
