"""How much one key may be used before it is rotated, and before nothing may use it any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class AgingKeys(Protocol):
    """What a rotation needs of the keys of a path (path_keys.py), or of the lane."""

    @property
    def since(self) -> float: ...
    @property
    def joined(self) -> float: ...
    def used(self, records: int, size: int, /) -> bool: ...
    def settled(self, epoch: int, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class RotationLimits:
    """When keys are rotated. `records`, `bytes` and `datagrams` are of one key. A path is closed at twice one of them,
    or after three missed intervals. Much may be on it already when a rotation begins, so no stream data is sent beyond
    one and a half of them: what is left is for the rotation.
    """

    interval: float
    """Seconds."""
    records: int
    bytes: int
    datagrams: int = 1 << 27
    """On the lane."""

    def presses(self, records: int, size: int) -> bool:
        """Whether no stream data may be sent any more under a key that has sealed so much."""
        return records >= 3 * self.records >> 1 or size >= 3 * self.bytes >> 1

    def lane_presses(self, datagrams: int) -> bool:
        """As `presses`, of a key of the lane."""
        return datagrams >= 3 * self.datagrams >> 1

    def used(self, keys: AgingKeys, datagrams: int) -> int:
        """How many times the keys of a path are used up, or those of a lane that has carried so many datagrams; counted
        up to 2."""
        if not keys.used(self.records, self.bytes) and datagrams < self.datagrams:
            return 0
        return 2 if keys.used(2 * self.records, 2 * self.bytes) or datagrams >= 2 * self.datagrams else 1
