"""The exit's table as text."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from cryprq_proxy.base import leftovers
from cryprq_proxy.errors import ConfigError
from tests.support.nft_fakes import Kernel
from tests.support.settings import exit_network_settings
from tests.support.settle import settle, until
from tun.linux.firewall import exit_table, nft
from tun.linux.firewall.conntrack import Choose, CtEntry, Flow
from tun.linux.firewall.exit_table import COUNTERS, Delete, ExitFilter, script, warnings
from tun.linux.firewall.standing import Standing

SETTINGS = exit_network_settings(pool4=IPv4Network("198.18.0.0/16"), pool6=IPv6Network("fd63::/64"))

EXPECTED = """\
add table inet cryprq_exit
delete table inet cryprq_exit
table inet cryprq_exit {
    counter spoofed { packets 0 bytes 0; }
    counter isolated { packets 0 bytes 0; }
    counter local { packets 0 bytes 0; }
    counter unsolicited { packets 0 bytes 0; }
    counter guard { packets 0 bytes 0; }
    counter misrouted { packets 0 bytes 0; }
    counter invalid { packets 0 bytes 0; }
    chain refuse {
        meta l4proto tcp reject with tcp reset
        reject with icmpx admin-prohibited
    }
    chain guard {
        type filter hook prerouting priority raw; policy accept;
        iifname != { "cryprq-exit0", "lo" } ip daddr 198.18.0.0/16 counter name guard drop
    }
    chain from_clients {
        ip saddr != 198.18.0.0/16 counter name spoofed drop
        meta nfproto ipv6 counter name spoofed drop
        oifname "cryprq-exit0" counter name isolated goto refuse
        ct state invalid counter name invalid drop
        tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
    }
    chain to_clients {
        ct state != { established, related } counter name unsolicited drop
        tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
    }
    chain input {
        type filter hook input priority filter; policy accept;
        iifname != "cryprq-exit0" accept
        ip saddr != 198.18.0.0/16 counter name spoofed drop
        meta nfproto ipv6 counter name spoofed drop
        ct state established,related accept
        ip daddr 198.18.0.1 icmp type echo-request accept
        counter name local goto refuse
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        oifname != "cryprq-exit0" ip daddr 198.18.0.0/16 counter name misrouted drop
        iifname "cryprq-exit0" goto from_clients
        oifname "cryprq-exit0" goto to_clients
    }
    chain sources {
        type nat hook postrouting priority 95; policy accept;
        oifname != { "cryprq-exit0", "lo" } ip saddr 198.18.0.0/16 masquerade
    }
}
"""


def test_the_whole_script() -> None:
    assert script(SETTINGS, ipv6=False) == EXPECTED


def test_both_families() -> None:
    text = script(SETTINGS, ipv6=True)
    assert "meta nfproto ipv6" not in text
    assert text.count("ip6 saddr != fd63::/64 counter name spoofed drop") == 2
    assert 'oifname != { "cryprq-exit0", "lo" } ip6 saddr fd63::/64 masquerade' in text
    assert "ip6 daddr fd63::1 icmpv6 type echo-request accept" in text
    assert 'iifname != { "cryprq-exit0", "lo" } ip6 daddr fd63::/64 counter name guard drop' in text
    assert all(f"counter {cause} {{" in text for cause in COUNTERS)


def test_clients_that_may_reach_each_other() -> None:
    text = script(replace(SETTINGS, isolate=False), ipv6=True)
    assert 'oifname "cryprq-exit0" accept' in text
    assert "counter name isolated goto" not in text


def test_a_device_name_that_would_match_others_is_refused() -> None:
    with pytest.raises(ConfigError):
        script(replace(SETTINGS, device="x*"), ipv6=False)


def test_the_table_is_journalled_and_put_up() -> None:
    kernel = Kernel()
    written: list[Mapping[str, object]] = []
    ExitFilter.up(SETTINGS, written.append, ipv6=False, ours=False, run=kernel.run, ask=kernel.ask)
    ExitFilter.up(SETTINGS, written.append, ipv6=True, ours=True, run=kernel.run, ask=kernel.ask)
    assert written == [{"kind": "nft_table", "table": "cryprq_exit"}]
    assert kernel.scripts == [script(SETTINGS, ipv6=False), script(SETTINGS, ipv6=True)]


def test_a_table_of_another_program_is_left_alone() -> None:
    kernel = Kernel()
    kernel.tables["cryprq_exit"] = {}
    with pytest.raises(ConfigError, match="has not recorded"):
        ExitFilter.up(SETTINGS, lambda entry: None, ipv6=False, ours=False, run=kernel.run, ask=kernel.ask)
    assert not kernel.scripts


def ct_entry(source: str, destination: str, *, translated: bool) -> CtEntry:
    one, other = ip_address(source), ip_address(destination)
    return CtEntry(
        2, Flow(one, other, 17, 5000, 53), Flow(other, one, 17, 53, 5000), 0, 1 << 4 if translated else 0, b""
    )


def table_in(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, delete: Delete) -> ExitFilter:
    """One that stands, without IPv6. The kernel in memory has no generations, so each look lists the table."""
    monkeypatch.setattr(exit_table, "Standing", partial(Standing, generation=lambda: None))
    return ExitFilter.up(
        SETTINGS,
        lambda entry: None,
        ipv6=False,
        ours=False,
        run=kernel.run,
        ask=kernel.ask,
        delete=delete,
    )


async def test_a_table_that_goes_or_changes_is_put_back_as_it_is_wanted_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = Kernel()
    chosen: list[Choose] = []
    table = table_in(kernel, monkeypatch, chosen.append)
    assert await table.look() == ""
    kernel.counters["local"] = (9, 900)
    assert await table.look() == "", "counters change by themselves"
    await table.follow(ipv6=True)
    assert await table.look() == ""
    del kernel.tables["cryprq_exit"]
    assert await table.look() == "the table inet cryprq_exit was removed"
    await table.put_back()
    assert kernel.scripts == [script(SETTINGS, ipv6=False), *[script(SETTINGS, ipv6=True)] * 2]
    await until(lambda: len(chosen) == 2)
    is_chosen = chosen[-1]
    assert [
        is_chosen(ct_entry("198.18.0.7", "8.8.8.8", translated=False)),
        is_chosen(ct_entry("198.18.0.7", "8.8.8.8", translated=True)),
        is_chosen(ct_entry("198.18.0.7", "198.18.0.1", translated=False)),
        is_chosen(ct_entry("192.168.0.7", "8.8.8.8", translated=False)),
        is_chosen(ct_entry("fd63::7", "2001:db8::8", translated=False)),
    ] == [True, False, False, False, True]
    del kernel.counters["local"]
    assert await table.look() == "the table inet cryprq_exit was changed"
    await table.put_back()
    assert await table.look() == ""


@pytest.mark.parametrize("seen", [True, False, None])
async def test_who_sends_is_told_when_the_table_goes_and_when_it_is_back(
    seen: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`seen`: what the kernel says before nft is asked; None where it says nothing."""
    monkeypatch.setattr(leftovers, "table_stands", lambda role: seen)
    kernel = Kernel()
    told: list[bool] = []
    table = table_in(kernel, monkeypatch, lambda choose: None)
    table.tell(told.append)
    assert not await table.look()
    assert told == ([True, False] if seen is False else [False])
    del kernel.tables["cryprq_exit"]
    assert await table.look() and told[-1]

    def refuse() -> None:
        raise nft.NftError("no")

    kernel.before_run = refuse
    with pytest.raises(nft.NftError):
        await table.put_back()
    assert told[-1], "nothing is sent while it is not back"
    kernel.before_run = lambda: None
    await table.put_back()
    await until(lambda: not told[-1])


async def test_a_table_that_cannot_be_looked_at_is_withheld_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "table_stands", lambda role: True)
    kernel = Kernel()
    told: list[bool] = []
    table = table_in(kernel, monkeypatch, lambda choose: None)
    table.tell(told.append)
    kernel.unreadable.add("cryprq_exit")
    kernel.failure = nft.NftError
    with pytest.raises(nft.NftError):
        await table.look()
    assert told == [True]
    kernel.unreadable.clear()
    assert not await table.look() and told == [True, False]


async def test_a_look_that_fails_once_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "table_stands", lambda role: True)
    kernel = Kernel()
    told: list[bool] = []
    table = table_in(kernel, monkeypatch, lambda choose: None)
    table.tell(told.append)
    answers: list[str | nft.NftError] = [
        nft.NftError("busy"),
        "",
        nft.NftError("busy"),
        "the table inet cryprq_exit was removed",
    ]

    def look() -> str:
        answer = answers.pop(0)
        if isinstance(answer, nft.NftError):
            raise answer
        return answer

    monkeypatch.setattr(table._standing, "look", look)
    assert not await table.look() and told == [False]
    assert await table.look() and told == [False, True]


async def test_packets_are_withheld_until_what_began_without_the_table_is_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those would leave with the clients' own addresses. A second flush is repaired meanwhile."""
    kernel = Kernel()
    deletes, deletions = threading.Event(), 0
    deletes.set()

    def delete(choose: Choose) -> None:
        nonlocal deletions
        deletions += 1
        assert deletes.wait(20)

    table = table_in(kernel, monkeypatch, delete)
    assert deletions == 1, "an exit that was killed may have left some"
    told: list[bool] = []
    table.tell(told.append)
    deletes.clear()
    for _ in range(2):
        del kernel.tables["cryprq_exit"]
        assert await table.look() and told[-1]
        await table.put_back()
        await until(lambda: deletions == 2)
    assert not await table.look()
    assert told[-1]
    closing = asyncio.ensure_future(table.close())
    await settle()
    assert not closing.done()
    deletes.set()
    await closing
    assert told[-1] and deletions == 2, "at the end no other deletion begins"


def test_only_other_tables_that_drop_forwarded_packets_are_named() -> None:
    kernel = Kernel()
    drops = {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}
    kernel.chains = [
        drops | {"policy": "accept"},
        drops | {"hook": "input"},
        drops | {"table": "cryprq_exit"},
        {"family": "ip", "table": "filter", "name": "DOCKER"},
    ]
    assert warnings("cryprq-exit0", kernel.ask) == []
    kernel.chains.append(drops)
    (warning,) = warnings("cryprq-exit0", kernel.ask)
    assert "FORWARD of table ip filter" in warning and "cryprq-exit0" in warning
