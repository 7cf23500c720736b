"""When bytes may leave, so that they leave evenly (RFC 9002 section 7.7)."""

from __future__ import annotations


class Pacer:
    """That of one path."""

    __slots__ = ()

    def __init__(self, now: float) -> None:
        """`now`: seconds; it starts with one quantum to send."""

    def allowance(self, now: float, rate: float, datagram: int) -> int:
        """Bytes that may leave now: 0, or at least one quantum. `rate`: bytes a second, or infinite; `datagram`: bytes
        of a full one."""
        return 1 << 30

    def sent(self, size: int, now: float, rate: float) -> None:
        """`size` bytes leave; it may be more than the allowance, which is then paid back."""

    def next_at(self, now: float, rate: float, datagram: int) -> float:
        """The time at which a quantum may leave; in the past or `now` if it may at once."""
        return now
