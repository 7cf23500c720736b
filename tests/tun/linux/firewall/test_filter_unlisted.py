"""The client's filter where nft cannot list its table, or fails after the kernel took it: nothing is open unsaid."""

from __future__ import annotations

from collections.abc import Callable, Container
from ipaddress import ip_address
from typing import Any

import pytest

from tests.support.nft_fakes import Kernel
from tun.firewall.filter_settings import ExitEndpoint, FilterSettings
from tun.linux.firewall.filter import Filter
from tun.linux.firewall.nft import CLIENT, NftError
from tun.system import Count

SETTINGS = FilterSettings(
    tun="cryprq0", mark=0x6372, exits=frozenset({ExitEndpoint(ip_address("5.75.10.2"), 443)})
)


def up(kernel: Kernel, run: Callable[[str], None] | None = None) -> Filter:
    return Filter.up(
        SETTINGS,
        lambda entry: None,
        ours=True,
        run=run or kernel.run,
        ask=kernel.ask,
        clock=lambda: kernel.now,
    )


class Busy(Kernel):
    """Whose nft cannot list a table."""

    def __init__(self) -> None:
        super().__init__()
        self.begin(())

    def begin(self, busy: Container[int]) -> None:
        """`busy`: which of the listings from now on fail, from 0."""
        self._busy, self._listings = busy, -1

    def ask(self, *command: str) -> list[dict[str, Any]] | None:
        if command[:2] == ("list", "table"):
            self._listings += 1
            if self._listings in self._busy:
                raise NftError("nft timed out")
        return super().ask(*command)


@pytest.mark.parametrize("busy", [{0}, {1}, {0, 1}])
def test_a_pause_whose_table_cannot_be_listed_is_open_and_told(busy: set[int]) -> None:
    kernel = Busy()
    client = up(kernel)
    kernel.begin(busy)
    client.pause(60)
    kernel.begin(())
    assert (client.paused(), client.pause_left()) == (60, 60)
    client.restore()
    assert client.paused() == 60
    client.end_pause()
    assert client.paused() == 0


@pytest.mark.parametrize("before", [0, 20])
def test_a_pause_that_fails_after_the_kernel_took_it_is_closed_again(before: int) -> None:
    """As where nft is ended at its time limit. What was open before stays open."""
    kernel = Kernel()
    failing = [False]

    def run(script: str) -> None:
        kernel.run(script)
        if failing.pop():
            raise NftError("nft timed out")
        failing.append(False)

    client = up(kernel, run)
    if before:
        client.pause(before)
    failing.extend([False, True])
    with pytest.raises(NftError, match="timed out"):
        client.pause(60)
    assert (client.paused(), client.pause_left()) == (before, before)
    assert kernel.open(CLIENT, "open").get("ipv4", 0) == before


def test_counters_go_on_through_a_repair_that_sees_nothing() -> None:
    """With what was last read of them."""
    kernel = Busy()
    client = up(kernel)
    kernel.counters["dns"] = (3, 99)
    client.counters()
    kernel.begin(range(100))
    for _ in range(2):
        client.restore()
        assert client.counters()["dns"] == Count(3, 99)
    kernel.begin(())
    kernel.tables.clear()
    client.restore()
    assert client.counters()["dns"] == Count(0, 0), "what another program removed counts anew"
