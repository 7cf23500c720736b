"""The filter of the kill switch inside the client's namespace, on the topology of paths.py.

`counted` holds what a test tries against a table's counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Protocol

from tests.support.lab.net import until
from tests.support.lab.paths import EXIT4, EXIT6, MARK, TUN, TUNNEL4, TUNNEL6, WORLD4, Paths
from tun.firewall.filter_settings import ExitEndpoint, FilterSettings
from tun.linux.firewall.filter import Filter

DNS_PORT = 5300
UID = 4711
SETTINGS = FilterSettings(
    tun=TUN,
    mark=MARK,
    exits=frozenset({ExitEndpoint(ip_address(EXIT4), 443), ExitEndpoint(ip_address(EXIT6), 443)}),
    tunnel4=ip_address(TUNNEL4),  # type: ignore[arg-type]
    tunnel6=ip_address(TUNNEL6),  # type: ignore[arg-type]
    dns_port=DNS_PORT,
    lan=frozenset(map(ip_network, ("192.168.77.0/24", "172.20.0.0/24", "fe80::/10", "fd20::/64"))),
    guests=frozenset(map(ip_network, ("172.20.0.0/24", "fd20::/64"))),
    uplinks=frozenset({"eth0"}),
    portal_resolvers=(ip_address(WORLD4),),
)


class CountsDrops(Protocol):
    """A table with a counter for each cause of a drop."""

    def dropped(self, cause: str) -> int:
        """Packets, since the table stands."""


@contextmanager
def counted(table: CountsDrops, cause: str) -> Iterator[None]:
    """The attempt inside is dropped for this cause: the counter rises.

    By how much is not judged. TCP sends a segment again whose answer is late, and each kernel says things of its own
    at times of its own (IGMP, MLD, ICMP errors), so one more packet says nothing about the table.
    """
    before = table.dropped(cause)
    yield
    until(lambda: table.dropped(cause) > before, f"it is counted as {cause}")


class Journal(list[Mapping[str, object]]):
    """In place of the file."""


class Client:
    """A filter whose every method works inside the client's namespace."""

    def __init__(self, paths: Paths, settings: FilterSettings = SETTINGS, *, keep: bool = False) -> None:
        self.paths = paths
        self.journal = Journal()
        self.keep = keep
        self.settings = settings

    def do[Result](self, method: Callable[[Filter], Result]) -> Result:
        with self.paths.client.entered():
            return method(self.filter)

    def up(self) -> Client:
        with self.paths.client.entered():
            self.filter = Filter.up(self.settings, self.journal.append, ours=False, keep_inbound=self.keep)
        return self

    def change(self, **changes: object) -> None:
        """The settings with these changes; connections whose reason has ended with them are deleted."""
        self.do(lambda each: each.update(replace(each.settings, **changes)))  # type: ignore[arg-type]
        self.do(lambda each: each.ended()())

    def dropped(self, cause: str) -> int:
        return self.do(Filter.counters)[cause].packets
