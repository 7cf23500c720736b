"""The system's resolver as a fact that is kept, whatever it is set by."""

from __future__ import annotations

from collections.abc import Sequence

from ..reconciler import Fact


class ResolverSetting(Fact):
    """Sends the DNS questions of all programs to given addresses. Made by `choose`; the journal undoes it."""

    name = "system resolver"
    polled = True
    kind: str
    """For people: "systemd-resolved", "resolv.conf" or "left alone"."""

    async def set(self, addresses: Sequence[str], index: int, name: str) -> None:
        """Resolve everything at `addresses` (IP literals) from now on.

        `index` and `name` are the tunnel's interface. May be called again with other addresses. Raises ConfigError,
        with nothing changed.
        """
        raise NotImplementedError

    def upstreams(self) -> tuple[str, ...]:
        """The earlier resolvers, as known now: IP literals, IPv6 ones perhaps with a zone; may be empty."""
        raise NotImplementedError

    async def out_of_reach(self, addresses: Sequence[str]) -> str:
        """Why programs' questions would not reach a forwarder at `addresses` if nothing were set; empty if they would.

        The filter brings what goes to port 53 on the network. Raises ConfigError.
        """
        return ""

    async def close(self) -> None:
        """Look after it no more; what is set stays until the journal is undone."""
