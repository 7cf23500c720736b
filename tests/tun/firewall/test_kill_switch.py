"""The kill switch changes the filter and puts it back, as the reconciler lets it; the rest are fakes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.rules.engine import EVERYTHING, RuleSet
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict
from cryprq_proxy.status import KillSwitchStatus
from tests.support.fake_system import FakeSystem
from tests.support.settings import tunnel_settings
from tests.support.settle import settle, until
from tun import reconciler
from tun.firewall.deletions import Deletions
from tun.firewall.filter_settings import FilterSettings, PagePlace
from tun.firewall.kill_switch import KillSwitch
from tun.firewall.policy import Policy
from tun.journal import Record
from tun.linux.firewall.nft import NftError
from tun.reconciler import Reconciler
from tun.routing.exit_endpoints import ExitEndpoints
from tun.routing.lan import Lan
from tun.routing.tunnel_addresses import TunnelAddresses
from tun.system import Count

LAN = Lan((ip_network("192.168.1.0/24"),), (), frozenset({"eth0"}))
BLOCK = RuleSet(
    (Rule(action=RuleAction(Verdict.BLOCK), cidrs=(ip_network("192.0.2.0/24"),)),), RuleAction(Verdict.TUNNEL)
)


class FakeFilter:
    """As filter.Filter. `refusal` is raised by the next change."""

    def __init__(self, settings: FilterSettings) -> None:
        self.settings = settings
        self.steps: list[str] = []
        self.stands = True
        self.unseen: Exception | None = None
        """What each look at the difference raises."""
        self.refusal: CryprqError | None = None
        self.held: threading.Event | None = None
        self.deletes = threading.Event()
        self.deletes.set()
        self.deleted: list[int] = []
        """The number of steps before each deletion was chosen."""
        self.deletion_refusal: CryprqError | None = None

    def _step(self, what: str) -> None:
        if self.held is not None:
            assert self.held.wait(20)
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        self.steps.append(what)

    def update(self, settings: FilterSettings) -> bool:
        if settings == self.settings:
            return False
        self._step("update")
        self.settings = settings
        return True

    def difference(self) -> str:
        if self.unseen is not None:
            raise self.unseen
        return "" if self.stands else "it was removed"

    def restore(self) -> None:
        self._step("restore")
        self.stands = True

    def ended(self) -> Callable[[], object]:
        self.deleted.append(len(self.steps))
        return self._delete

    def _delete(self) -> None:
        assert self.deletes.wait(20)
        if self.deletion_refusal is not None:
            raise self.deletion_refusal

    def end_pause(self) -> None:
        self._step("end of the pause")

    def standing(self) -> bool:
        self._step("look")
        return self.stands

    def paused(self) -> int:
        return 7

    def pause_left(self) -> int:
        return 7

    def counters(self) -> dict[str, Count]:
        return {"dns": Count(3, 180)}

    def pause(self, seconds: int) -> None:
        self._step(f"pause {seconds}")

    @contextmanager
    def resolving(self, resolvers: list[Any]) -> Iterator[None]:
        self._step(f"open {' '.join(map(str, resolvers))}")
        yield
        self._step("close")


class OneFilter(FakeSystem):
    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self.made: FakeFilter

    def packet_filter(
        self, settings: FilterSettings, record: Record, *, ours: bool, keep_inbound: bool
    ) -> Any:
        record({"kind": "filter"})
        self.made = FakeFilter(settings)
        return self.made


class Guarded:
    """A kill switch with its filter."""

    def __init__(self, state: Path) -> None:
        system = OneFilter(state)
        self.recorded: list[object] = []
        exits = ExitEndpoints([Destination("exit.example", 443)])
        self.kill_switch = KillSwitch(
            system, tunnel_settings(), exits, Policy(EVERYTHING), LAN, self.recorded.append, ours=False
        )
        self.filter = system.made


@pytest.fixture
async def guarded(tmp_path: Path) -> Guarded:
    return Guarded(tmp_path)


async def test_the_filter_is_made_with_what_is_known_and_follows_the_rest(guarded: Guarded) -> None:
    switch, first = guarded.kill_switch, guarded.filter.settings
    assert guarded.recorded == [{"kind": "filter"}]
    assert (first.exits, first.tunnel4, first.dns_port, first.lan) == (
        frozenset(),
        None,
        None,
        {ip_network("192.168.1.0/24")},
    )
    await switch.follow_exit("exit.example", ["192.0.2.1"])
    await switch.follow_addresses(TunnelAddresses(IPv4Address("198.18.0.7"), IPv6Address("fd00::7")), 5300)
    await switch.follow_resolvers(lambda: ("192.168.1.1", "fe80::1%eth0"))
    await switch.follow_lan(Lan())
    await switch.follow_policy(Policy(BLOCK))
    now = guarded.filter.settings
    assert {(str(exit.address), exit.port) for exit in now.exits} == {("192.0.2.1", 443)}
    assert (str(now.tunnel4), str(now.tunnel6), now.dns_port) == ("198.18.0.7", "fd00::7", 5300)
    assert now.portal_resolvers == (ip_address("192.168.1.1"),)
    assert now.lan == frozenset()
    assert len(now.rules.rules) == 1
    assert guarded.filter.steps == ["update"] * 5


async def test_rules_that_cannot_be_set_leave_those_from_before(guarded: Guarded) -> None:
    before = guarded.kill_switch.policy
    guarded.filter.refusal = CryprqError("refused")
    with pytest.raises(CryprqError, match="refused"):
        await guarded.kill_switch.follow_policy(Policy(BLOCK))
    assert guarded.kill_switch.policy is before
    await guarded.kill_switch.update()
    assert guarded.filter.steps == []


async def test_the_opening_is_closed_also_after_a_failure(guarded: Guarded) -> None:
    with pytest.raises(CryprqError, match="no answer"):
        async with guarded.kill_switch.open_for(["192.168.1.1", "fe80::1%eth0"]):
            raise CryprqError("no answer")
    assert guarded.filter.steps == ["open 192.168.1.1 fe80::1", "close"]


async def test_after_the_end_nothing_is_changed(guarded: Guarded) -> None:
    """Also by a change that was asked for before, and waits for its turn."""
    guarded.filter.held = threading.Event()
    first = asyncio.ensure_future(guarded.kill_switch.pause(5))
    second = asyncio.ensure_future(guarded.kill_switch.pause(6))
    await asyncio.sleep(0)
    ending = asyncio.ensure_future(guarded.kill_switch.shut())
    await asyncio.sleep(0)
    assert not ending.done()
    guarded.filter.held.set()
    await ending
    await first
    for late in (second, guarded.kill_switch.update(), guarded.kill_switch.pause(7)):
        with pytest.raises(CryprqError, match="is being undone"):
            await late
    assert guarded.filter.steps == ["pause 5"]


async def test_who_is_cancelled_waits_for_the_end_of_the_change(guarded: Guarded) -> None:
    guarded.filter.held = threading.Event()
    change = asyncio.ensure_future(guarded.kill_switch.pause(5))
    await asyncio.sleep(0)
    change.cancel()
    done, _ = await asyncio.wait([change], timeout=0)
    assert not done
    guarded.filter.held.set()
    with pytest.raises(asyncio.CancelledError):
        await change
    assert guarded.filter.steps == ["pause 5"]


async def test_a_filter_that_others_removed_is_put_back(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    switch = guarded.kill_switch
    assert switch.vital
    assert await switch.look() == ""
    guarded.filter.stands = False
    assert await switch.look() == "it was removed"
    guarded.filter.refusal = CryprqError("refused")
    with pytest.raises(CryprqError, match="refused"):
        await switch.put_back()
    assert "the pause goes on" not in caplog.text
    await switch.put_back()
    assert "the pause goes on for 7 s" in caplog.text
    assert await switch.look() == ""
    assert guarded.filter.steps == ["restore"]


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (NftError("nft is gone"), "nft is gone"),
        (LookupError("no such thing"), "this is a bug: LookupError: no such thing"),
    ],
)
async def test_a_filter_that_cannot_be_looked_at_is_put_back_at_each_look(
    guarded: Guarded,
    error: Exception,
    trouble: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconciler, "LOOK_SECONDS", 0.0)
    guarded.filter.stands, guarded.filter.unseen = False, error
    kept = Reconciler([guarded.kill_switch])
    await until(lambda: guarded.filter.steps.count("restore") > 2)
    assert guarded.filter.stands
    guarded.filter.refusal = CryprqError("refused")
    await until(lambda: guarded.filter.refusal is None)
    assert [one.trouble for one in kept.status()] == [trouble]
    guarded.filter.unseen = None
    await until(lambda: not kept.status()[0].trouble)
    steps = len(guarded.filter.steps)
    kept.wake()
    await kept.stop()
    assert guarded.filter.steps[steps:] == []
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"kill switch: {trouble}"]


async def test_at_the_end_nothing_is_put_back_unseen(guarded: Guarded) -> None:
    await guarded.kill_switch.shut()
    guarded.filter.unseen = NftError("nft is gone")
    with pytest.raises(CryprqError, match="being undone"):
        await guarded.kill_switch.look()
    assert guarded.filter.steps == []


async def test_the_status_claims_nothing_where_nft_does_not_answer(guarded: Guarded) -> None:
    usual = guarded.kill_switch.status()
    assert usual == KillSwitchStatus(on=True, standing=True, paused=7, kept_in={"dns": 3})
    guarded.filter.refusal = NftError("nft is gone")
    assert guarded.kill_switch.status() == KillSwitchStatus(on=True)


async def test_a_look_follows_the_resolvers_from_before(guarded: Guarded) -> None:
    resolvers = ["192.168.1.1"]
    await guarded.kill_switch.follow_resolvers(lambda: tuple(resolvers))
    resolvers[0] = "192.168.1.9"
    assert await guarded.kill_switch.look() == ""
    assert guarded.filter.settings.portal_resolvers == (ip_address("192.168.1.9"),)


@pytest.mark.parametrize("first", ["repair", "settings", "pause"])
async def test_deletions_run_beside_further_repairs(
    guarded: Guarded, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A dump of conntrack takes long. Repairs are not held up by it, and are followed by one more deletion."""
    switch, filter = guarded.kill_switch, guarded.filter
    filter.deletes.clear()
    filter.deletion_refusal = CryprqError("no answer")
    if first == "repair":
        await switch.put_back()
    elif first == "settings":
        await switch.follow_resolvers(lambda: ("192.168.1.1",))
    else:
        await switch._end_pause(0.0)
    await until(lambda: filter.deleted)
    for _ in range(3):
        await switch.put_back()
    assert await switch.look() == ""
    assert filter.steps[1:] == ["restore"] * 3
    filter.deletes.set()
    await until(lambda: not switch._deletions.pending)
    assert filter.deleted == [1, 4]
    assert caplog.text.count("may have to be opened anew: no answer") == 2


async def test_what_changes_nothing_deletes_nothing(guarded: Guarded) -> None:
    await guarded.kill_switch.update()
    assert await guarded.kill_switch.look() == ""
    assert not guarded.filter.deleted


async def test_the_end_waits_for_a_deletion_and_begins_no_other(guarded: Guarded) -> None:
    switch, filter = guarded.kill_switch, guarded.filter
    filter.deletes.clear()
    await switch.put_back()
    await until(lambda: filter.deleted)
    await switch.put_back()
    ending = asyncio.ensure_future(switch.shut())
    await settle()
    assert not ending.done()
    filter.deletes.set()
    await ending
    assert len(filter.deleted) == 1


async def test_who_sets_other_rules_waits_until_they_hold_for_open_connections(guarded: Guarded) -> None:
    """Beside the lock: a repair comes in between."""
    switch, filter = guarded.kill_switch, guarded.filter
    filter.deletes.clear()
    setting = asyncio.ensure_future(switch.follow_policy(Policy(BLOCK)))
    await until(lambda: filter.deleted)
    await switch.put_back()
    assert not setting.done()
    filter.deletes.set()
    await setting
    assert filter.steps == ["update", "restore"]


async def test_a_fault_in_a_deletion_keeps_no_other_from_it(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    async def delete() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ZeroDivisionError

    deletions = Deletions(delete)
    await asyncio.shield(deletions.soon())
    await asyncio.shield(deletions.soon())
    assert calls == 2 and len(caplog.records) == 1


async def test_our_own_page_is_in_the_filter_as_long_as_it_is_there(guarded: Guarded) -> None:
    place = PagePlace(IPv4Address("127.8.7.6"), 4444)
    guarded.filter.refusal = NftError("no room")
    with pytest.raises(NftError):
        await guarded.kill_switch.follow_page(place)
    await guarded.kill_switch.follow_exit("exit.example", ["192.0.2.1"])
    assert guarded.filter.settings.page is None, "nobody listens there"
    await guarded.kill_switch.follow_page(place)
    assert guarded.filter.settings.page == place
    await guarded.kill_switch.follow_page(None)
    assert guarded.filter.settings.page is None
    await guarded.kill_switch.shut()
