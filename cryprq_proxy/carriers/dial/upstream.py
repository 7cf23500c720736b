"""The proxy through which a client reaches its exit, where one is configured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...address import Destination
from ...errors import CarrierError, CloseReason


@dataclass(frozen=True, slots=True)
class UpstreamProxy:
    """A proxy between here and the exit: SOCKS5 (RFC 1928, 1929), or HTTP with CONNECT (RFC 9110 section 9.3.6).

    User and password have 1 to 255 bytes of UTF-8 each where they are given.
    """

    address: Destination
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    kind: Literal["socks5", "http"] = "socks5"

    def __repr__(self) -> str:
        return f"UpstreamProxy({self.address})"

    def failed(self, why: str) -> CarrierError:
        """The error of a proxy that did not connect; `why` is a sentence part."""
        return CarrierError(
            CloseReason.TIMED_OUT, f"the upstream proxy at {self.address} did not connect to the exit: {why}"
        )
