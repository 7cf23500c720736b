"""The client's filter on a kernel in memory, whose clock the tests turn: what is open, and what closes it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from cryprq_proxy.errors import ConfigError, LocalError
from cryprq_proxy.process.actions import MAX_PAUSE
from cryprq_proxy.rules.syntax import Verdict
from tests.support.nft_fakes import Kernel
from tun.firewall.filter_rules import FilterRule, FilterRules
from tun.firewall.filter_settings import Cgroup, ExitEndpoint, FilterSettings
from tun.linux.firewall.client_table import COUNTERS
from tun.linux.firewall.filter import RESOLVING, Filter
from tun.linux.firewall.nft import CLIENT, NftError, UnreadableAnswer
from tun.system import Count

SETTINGS = FilterSettings(
    tun="cryprq0", mark=0x6372, exits=frozenset({ExitEndpoint(ip_address("5.75.10.2"), 443)})
)
OTHER = replace(SETTINGS, lan_allowed=False)
ONE, TWO, SIX = map(ip_address, ("192.0.2.1", "192.0.2.2", "2001:db8::1"))


def up(kernel: Kernel, *, keep_inbound: bool = False) -> Filter:
    return Filter.up(
        SETTINGS,
        lambda entry: None,
        ours=True,
        keep_inbound=keep_inbound,
        run=kernel.run,
        ask=kernel.ask,
        clock=lambda: kernel.now,
    )


def asked(kernel: Kernel) -> set[str]:
    """The resolvers that marked sockets may ask now."""
    return {*kernel.open(CLIENT, "bootstrap4"), *kernel.open(CLIENT, "bootstrap6")}


def test_the_journal_is_written_before_the_change() -> None:
    kernel = Kernel()
    written: list[Mapping[str, object]] = []

    def record(entry: Mapping[str, object]) -> None:
        assert not kernel.scripts
        written.append(entry)

    Filter.up(SETTINGS, record, ours=False, run=kernel.run, ask=kernel.ask)
    assert written == [{"kind": "nft_table", "table": CLIENT}]
    assert len(kernel.scripts) == 1


def test_a_table_of_our_own_is_replaced_and_not_journalled_again() -> None:
    kernel = Kernel()
    up(kernel)
    written: list[Mapping[str, object]] = []
    Filter.up(SETTINGS, written.append, ours=True, run=kernel.run, ask=kernel.ask)
    assert not written
    assert len(kernel.scripts) == 2


def test_a_table_of_another_program_is_left_alone() -> None:
    kernel = Kernel()
    kernel.tables[CLIENT] = {}
    written: list[Mapping[str, object]] = []
    with pytest.raises(ConfigError, match="has not recorded"):
        Filter.up(SETTINGS, written.append, ours=False, run=kernel.run, ask=kernel.ask)
    assert not written
    assert not kernel.scripts


def test_a_table_whose_journal_is_lost_is_recorded_again_and_replaced() -> None:
    kernel = Kernel()
    up(kernel)
    written: list[Mapping[str, object]] = []
    Filter.up(SETTINGS, written.append, ours=False, run=kernel.run, ask=kernel.ask)
    assert written == [{"kind": "nft_table", "table": CLIENT}]
    assert len(kernel.scripts) == 2


def test_a_table_of_an_earlier_run_that_nft_cannot_list_is_replaced() -> None:
    kernel = Kernel()
    up(kernel)
    kernel.unreadable.add(CLIENT)
    client = Filter.up(SETTINGS, lambda entry: None, ours=False, run=kernel.run, ask=kernel.ask)
    assert len(kernel.scripts) == 2
    assert client.difference() == ""


def test_connections_from_outside_are_kept_only_on_demand() -> None:
    for keep in (True, False):
        kernel = Kernel()
        up(kernel, keep_inbound=keep)
        assert (
            "@kept4 ct mark set" in kernel.scripts[0].partition("chain mark_in")[2].partition("}\n")[0]
        ) == keep


def test_what_changes_nothing_asks_the_kernel_nothing() -> None:
    kernel = Kernel()
    client = up(kernel)
    client.update(replace(SETTINGS))
    assert len(kernel.scripts) == 1
    client.update(OTHER)
    assert client.settings == OTHER
    assert len(kernel.scripts) == 2


def test_a_pause_closes_by_itself() -> None:
    kernel = Kernel()
    client = up(kernel)
    client.pause(60)
    assert kernel.open(CLIENT, "open") == {"ipv4": 60, "ipv6": 60}
    assert client.paused() == 60
    kernel.now = 59.5
    assert client.paused() == 0
    kernel.now = 60
    assert not kernel.open(CLIENT, "open")


def test_updates_never_make_a_pause_longer() -> None:
    """Each replaces the table: what is left of the pause goes on, rounded down."""
    kernel = Kernel()
    client = up(kernel)
    client.pause(10)
    for step in range(40):
        kernel.now = step * 0.7
        client.update(OTHER if step % 2 == 0 else SETTINGS)
        assert all(left <= max(10 - kernel.now, 0) for left in kernel.open(CLIENT, "open").values())
    assert not kernel.open(CLIENT, "open")


@pytest.mark.parametrize("seconds", [-1, 0, MAX_PAUSE + 1])
def test_a_pause_has_a_longest_time(seconds: int) -> None:
    kernel = Kernel()
    client = up(kernel)
    with pytest.raises(LocalError, match="1 to 3600 seconds"):
        client.pause(seconds)
    assert not kernel.open(CLIENT, "open")
    client.pause(MAX_PAUSE)
    assert kernel.open(CLIENT, "open")["ipv4"] == MAX_PAUSE


def test_resolvers_are_open_while_an_exit_is_resolved() -> None:
    kernel = Kernel()
    client = up(kernel)
    client.pause(60)
    with client.resolving([ONE, SIX]):
        assert kernel.open(CLIENT, "bootstrap4") == {str(ONE): RESOLVING}
        assert kernel.open(CLIENT, "bootstrap6") == {str(SIX): RESOLVING}
        assert kernel.open(CLIENT, "open")["ipv4"] == 60
    assert not asked(kernel)
    assert kernel.open(CLIENT, "open")["ipv4"] == 60


@pytest.mark.parametrize("by", ["restore", "update"])
def test_a_question_goes_on_where_another_program_removed_the_table(by: str) -> None:
    """For as long as it may, and no longer."""
    kernel = Kernel()
    client = up(kernel)
    with client.resolving([ONE]):
        for now, left in ((10.5, {str(ONE): RESOLVING - 11}), (40.0, {})):
            kernel.now = now
            kernel.tables.clear()
            if by == "restore":
                client.restore()
            else:
                client.update(OTHER if client.settings == SETTINGS else SETTINGS)
            assert kernel.open(CLIENT, "bootstrap4") == left
    assert not asked(kernel)


def test_the_last_one_out_closes() -> None:
    kernel = Kernel()
    client = up(kernel)
    first, second = client.resolving([ONE]), client.resolving([ONE, TWO])
    first.__enter__()
    second.__enter__()
    assert asked(kernel) == {str(ONE), str(TWO)}
    second.__exit__(None, None, None)
    assert asked(kernel) == {str(ONE)}
    first.__exit__(None, None, None)
    assert not asked(kernel)


def test_an_opening_is_closed_after_a_failure() -> None:
    kernel = Kernel()
    client = up(kernel)
    with pytest.raises(RuntimeError), client.resolving([ONE]):
        raise RuntimeError
    assert not asked(kernel)


def test_an_opening_that_the_kernel_refuses_is_not_remembered() -> None:
    kernel = Kernel()
    client = up(kernel)

    def refuse() -> None:
        raise NftError("no")

    kernel.before_run = refuse
    with pytest.raises(NftError), client.resolving([ONE]):
        pass
    kernel.before_run = lambda: None
    with client.resolving([TWO]):
        assert asked(kernel) == {str(TWO)}


def test_an_opening_that_nobody_closes_ends_in_the_kernel() -> None:
    kernel = Kernel()
    client = up(kernel)
    client.resolving([ONE]).__enter__()
    for step in range(100):
        kernel.now = step * 0.5
        client.update(OTHER if step % 2 == 0 else SETTINGS)
    assert not asked(kernel)


def test_a_removed_table_is_noticed_and_put_back() -> None:
    kernel = Kernel()
    client = up(kernel)
    assert client.standing()
    kernel.tables.clear()
    assert not client.standing()
    assert client.counters() == dict.fromkeys(COUNTERS, Count(0, 0))
    assert client.paused() == 0
    client.restore()
    assert client.standing()
    assert kernel.scripts[-1] == kernel.scripts[0]


@pytest.mark.parametrize("failure", [UnreadableAnswer, NftError])
@pytest.mark.parametrize("by", ["restore", "update"])
def test_a_table_that_nft_cannot_list_is_replaced(by: str, failure: type[NftError]) -> None:
    """With the pause that was asked for."""
    kernel = Kernel()
    client = up(kernel)
    client.pause(60)
    kernel.now = 10.5
    kernel.unreadable.add(CLIENT)
    kernel.failure = failure
    with suppress(NftError):
        assert client.difference()
    if by == "restore":
        client.restore()
    else:
        client.update(OTHER)
    assert client.difference() == ""
    assert client.paused() == 49


@pytest.mark.parametrize("failure", [UnreadableAnswer, NftError])
def test_a_pause_is_open_and_told_although_nft_lists_nothing(failure: type[NftError]) -> None:
    """An error would say that nothing is open."""
    kernel = Kernel()
    client = up(kernel)
    kernel.unreadable.add(CLIENT)
    kernel.failure, kernel.lasting = failure, True
    client.pause(60)
    assert client.paused() == client.pause_left() == 60
    client.restore()
    assert client.paused() == 60
    client.end_pause()
    assert client.paused() == client.pause_left() == 0
    kernel.unreadable.clear()
    assert client.difference(), "it is written once more, since nobody knows what stands"
    client.restore()
    assert client.difference() == ""


@pytest.mark.parametrize("by", ["restore", "update"])
def test_a_pause_goes_on_where_another_program_removed_the_table(by: str) -> None:
    """To the end that was asked for, and with its number, so that its connections go on."""
    kernel = Kernel()
    client = up(kernel)
    client.pause(60)
    accepted = marked(kernel)
    for now, left in ((10.5, 49), (20.25, 39), (59.5, 0), (61.0, 0)):
        kernel.now = now
        kernel.tables.clear()
        if by == "restore":
            client.restore()
        else:
            client.update(OTHER if client.settings == SETTINGS else SETTINGS)
        assert client.paused() == left
        assert kernel.open(CLIENT, "open").get("ipv4", 0) == left
        assert (marked(kernel) == accepted) == (left > 0)
    assert "@open accept" not in kernel.scripts[-1]


def test_a_pause_goes_on_where_another_program_loaded_a_table_from_before_it() -> None:
    kernel = Kernel()
    client = up(kernel)
    old = kernel.tables[CLIENT]
    client.pause(60)
    kernel.tables = {CLIENT: old}
    kernel.now = 10.5
    client.restore()
    assert client.paused() == 49


def test_after_its_end_a_pause_is_not_put_back() -> None:
    """Nor is one that an old table says is still on: another program may have loaded it again."""
    kernel = Kernel()
    client = up(kernel)
    client.pause(60)
    old = kernel.tables[CLIENT]
    kernel.now = 30
    client.end_pause()
    kernel.tables = {CLIENT: {**old, "open": {"ipv4": 90.0, "ipv6": 90.0}}}
    client.restore()
    assert client.paused() == 0
    kernel.tables = {CLIENT: {**old, "open": {"ipv4": 90.0, "ipv6": 90.0}}}
    client.update(OTHER)
    assert client.paused() == 0
    assert "@open accept" not in kernel.scripts[-1]


def test_a_pause_that_was_closed_early_stays_closed() -> None:
    """As with `nft flush set inet cryprq open`."""
    kernel = Kernel()
    client = up(kernel)
    client.pause(60)
    kernel.tables[CLIENT]["open"].clear()
    client.update(OTHER)
    assert client.paused() == 0
    client.pause(60)
    assert client.paused() == 60


def marked(kernel: Kernel) -> str:
    """The mark of the pause that the filter lets out now."""
    return kernel.scripts[-1].partition("chain marked")[2].partition(" meta nfproto @open accept")[0]


def test_other_rules_have_another_run_and_other_settings_the_same() -> None:
    kernel = Kernel()
    client = up(kernel)

    def run() -> str:
        return kernel.scripts[-1].partition("set run")[2].partition("}")[0]

    first = run()
    client.update(OTHER)
    assert run() == first
    rules = FilterRules((FilterRule(Verdict.DIRECT, (ip_network("192.0.2.0/24"),)),))
    client.update(replace(OTHER, rules=rules))
    assert run() != first


def test_each_pause_has_a_number_of_its_own_and_one_that_is_prolonged_keeps_it() -> None:
    kernel = Kernel()
    client = up(kernel)

    client.pause(10)
    first = marked(kernel)
    client.pause(20)
    assert marked(kernel) == first
    kernel.now = 20
    client.end_pause()
    assert "@open accept" not in kernel.scripts[-1]
    client.pause(10)
    assert marked(kernel) != first


def test_counters_go_on_through_an_update() -> None:
    kernel = Kernel()
    client = up(kernel)
    kernel.counters["dns"] = (3, 99)
    client.update(OTHER)
    assert client.counters() == dict.fromkeys(COUNTERS, Count(0, 0)) | {"dns": Count(3, 99)}


def test_a_cgroup_that_has_just_gone_does_not_keep_the_filter_from_standing() -> None:
    kernel = Kernel()
    wanted = replace(SETTINGS, lan_allowed=False, excluded_cgroups=frozenset({Cgroup("a.slice", 1, 7)}))
    refusals = []

    def run(script: str) -> None:
        if "cgroupv2" in script:
            refusals.append(script)
            raise NftError("cgroupv2 path fails")
        kernel.run(script)

    client = Filter.up(wanted, lambda entry: None, ours=True, run=run, ask=kernel.ask)
    assert len(refusals) == 1
    assert client.settings == OTHER
    # With the next look at what is there it is tried again.
    client.update(wanted)
    assert len(refusals) == 2
    assert client.settings == OTHER
