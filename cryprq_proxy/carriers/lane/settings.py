"""What a configuration says of the lane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...recovery.congestion import CongestionControl
from .batch import UdpOffload

type MakeControl = Callable[[float, int, float], CongestionControl]
"""Makes one from the time, the size of a datagram in bytes, and the round trip in seconds, 0 if it is not known."""


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """`offload`: what the kernel's batching can do; `control`: of streams that are sent."""

    offload: UdpOffload
    control: MakeControl
