"""The exit's part of the kernel on a fake Mac: what is set, kept, follows the network, and is gone after the undo."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.base.changes import Changes, NoChanges
from cryprq_proxy.errors import CryprqError
from tests.support.macos import disturbances
from tests.support.macos.disturbances import CAFE
from tests.support.macos.machine import HOME, FakeMac
from tests.support.macos.utun_pair import UtunPair
from tun.journal import Journal, undo
from tun.macos import exit_kernel, exit_routes, pfctl, sysctl, wanted_routes
from tun.macos.device import Utun
from tun.macos.exit_kernel import MacExitKernel, read_occupied
from tun.macos.programs import Command, ProgramAnswer, Run
from tun.reconciler import Fact
from tun.routing.address_pool import free_pools
from tun.settings import MTU, ExitNetworkSettings

ANCHOR = pfctl.ANCHORS["exit"]


class Asked(Changes):
    """Changes that a test tells."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._lost = False

    def tell(self) -> None:
        self._event.set()

    def close(self) -> None:
        pass


class Exit:
    """One exit's kernel part on a fake Mac."""

    def __init__(self, mac: FakeMac, state: Path, **changes: Any) -> None:
        self.mac = mac
        self.run: Run = mac.run
        self.pair = UtunPair(mac)
        self.journal = Journal(state / "exit.journal")
        self.told: list[bool] = []
        self.changes = Asked()
        values: dict[str, Any] = {
            "device": "utun",
            "offload": False,
            "pool4": IPv4Network("198.18.0.0/16"),
            "pool6": IPv6Network("fd63:7279:7071::/64"),
            "isolate": True,
            "state": state,
        }
        self.settings = ExitNetworkSettings(**values | changes)

    async def up(self) -> MacExitKernel:
        recorded = {entry["kind"] for entry in self.journal.entries()}
        self.device = Utun.open("utun", mtu=MTU, run=self.run, control=self.pair)
        self.settings = ExitNetworkSettings(
            device=self.device.name,
            **{
                name: getattr(self.settings, name)
                for name in ("offload", "pool4", "pool6", "isolate", "state")
            },
        )
        self.kernel = await MacExitKernel.up(
            self.settings,
            self.device,
            self.journal.record,
            recorded=recorded,
            run=self.run,
            changes=lambda: self.changes,
        )
        self.kernel.tell_of_table(self.told.append)
        return self.kernel

    def die(self) -> None:
        """As by kill -9: the device goes, nothing is undone."""
        self.device.close()
        self.pair.end()

    def undo(self) -> None:
        undo(self.journal, exit_kernel.undoers(self.mac.run))

    async def kept(self) -> list[str]:
        """What each fact finds, and puts back."""
        found = []
        for fact in self.kernel.facts():
            if said := await fact.look():
                found.append(f"{fact.name}: {said}")
                await fact.put_back()
                assert await fact.look() == ""
        return found


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMac:
    return FakeMac(tmp_path / "mac")


@pytest.fixture
def exit(mac: FakeMac, tmp_path: Path) -> Iterator[Exit]:
    tmp_path.chmod(0o700)
    made = Exit(mac, tmp_path)
    yield made
    with contextlib.suppress(OSError, AttributeError):
        made.die()
    made.journal.close()


def routes(mac: FakeMac) -> dict[str, str]:
    """Destination -> interface and flags of what leads to the pools."""
    return {
        each.destination: f"{each.interface} {each.flags}"
        for each in mac.read().routes
        if each.destination.startswith(("198.1", "fd63:"))
    }


async def test_all_of_it_is_set_and_undone(exit: Exit, mac: FakeMac) -> None:
    before = mac.snapshot()
    kernel = await exit.up()
    name = exit.device.name
    state = mac.read()
    assert kernel.ipv6
    assert state.pf.enabled
    assert f"-> {HOME.address.partition('/')[0]}" in state.pf.anchors[ANCHOR].nat
    assert (state.sysctls[sysctl.FORWARD4], state.sysctls[sysctl.FORWARD6]) == ("1", "1")
    found = routes(mac)
    for half in ("198.18.0.0/17", "198.18.128.0/17", "fd63:7279:7071::/65", "fd63:7279:7071:0:8000::/65"):
        assert found[half].startswith(f"{name} ")
    for pool in ("198.18.0.0/16", "fd63:7279:7071::/64"):
        assert found[pool].startswith("lo0 ") and "R" in found[pool]
    assert await exit.kept() == []
    exit.die()
    # As after a kill: answers for clients have no other route.
    assert set(routes(mac)) == {"198.18.0.0/16", "fd63:7279:7071::/64"}
    exit.undo()
    assert mac.snapshot() == before
    exit.undo()
    assert mac.snapshot() == before


async def test_without_ipv6_here_none_is_carried(exit: Exit, mac: FakeMac) -> None:
    with mac.change() as state:
        state.routes = [each for each in state.routes if each.destination != "::/0" or "I" in each.flags]
    kernel = await exit.up()
    assert not kernel.ipv6
    assert mac.read().sysctls[sysctl.FORWARD6] == "0"
    assert "fd63:7279:7071::/65" not in routes(mac)
    assert "inet6 all" in mac.read().pf.anchors[ANCHOR].rules


async def test_what_other_programs_do_is_put_back(exit: Exit, mac: FakeMac) -> None:
    await exit.up()
    disturbances.anchor_flushed(mac, ANCHOR)
    assert await exit.kept() == [f"packet filter: the rules of {ANCHOR} were removed"]
    assert exit.told[-1] is False and True in exit.told
    disturbances.pf_disabled(mac)
    assert await exit.kept() == ["packet filter: pf was disabled"]
    disturbances.delete_routes(mac, ["198.18.0.0/17", "198.18.0.0/16"])
    assert await exit.kept() == [
        "routes to clients: the route to 198.18.0.0/16 was removed, the route to 198.18.0.0/17 was removed"
    ]
    disturbances.sysctl_set(mac, sysctl.FORWARD4, "0")
    assert await exit.kept() == [f"IPv4 forwarding: {sysctl.FORWARD4} was 0"]


async def test_a_route_of_another_program_into_the_pool_is_named(exit: Exit, mac: FakeMac) -> None:
    kernel = await exit.up()
    disturbances.replace_route(mac, "198.18.7.0/24", "192.168.1.1", "en0")
    fact = next(fact for fact in kernel.facts() if fact.name == "routes to clients")
    assert await fact.look() == "there was a route to 198.18.7.0/24 past the device"
    with pytest.raises(CryprqError, match=r"198\.18\.7\.0/24 past the device: clients there get no answers"):
        await fact.put_back()


async def test_a_value_that_a_person_sets_meanwhile_stays(exit: Exit, mac: FakeMac) -> None:
    await exit.up()
    disturbances.sysctl_set(mac, sysctl.FORWARD4, "0")
    exit.die()
    exit.undo()
    assert mac.read().sysctls[sysctl.FORWARD4] == "0"


async def test_a_start_after_a_kill_takes_over_and_the_end_undoes_both(exit: Exit, mac: FakeMac) -> None:
    before = mac.snapshot()
    await exit.up()
    exit.die()
    # As ExitNetwork.start: what the rules and routes need stays.
    undo(exit.journal, exit_kernel.undoers(mac.run), keep={pfctl.KIND, wanted_routes.KIND})
    assert mac.read().pf.anchors[ANCHOR].rules and mac.read().pf.enabled
    await exit.up()
    assert await exit.kept() == []
    exit.die()
    exit.undo()
    assert mac.snapshot() == before


async def test_nothing_is_undone_after_a_reboot_but_the_journal_is_empty(
    exit: Exit, mac: FakeMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    await exit.up()
    exit.die()
    disturbances.reboot(mac)
    before = mac.snapshot()
    monkeypatch.setattr("tun.journal.boot_id", lambda: "another boot")
    exit.undo()
    assert mac.snapshot() == before
    assert exit.journal.entries() == []


async def test_a_main_ruleset_that_does_not_ask_us_changes_nothing(exit: Exit, mac: FakeMac) -> None:
    disturbances.pf_conf_loaded(mac, "pass all\n")
    before = mac.read().pf
    with pytest.raises(CryprqError, match="does not evaluate"):
        await exit.up()
    exit.die()
    exit.undo()
    assert mac.read().pf == before


async def test_routes_that_no_journal_names_are_found(exit: Exit, mac: FakeMac) -> None:
    assert exit_routes.delete_left(mac.run) == ""
    await exit.up()
    exit.die()
    assert exit_routes.delete_left(mac.run) == "routes to clients"
    assert routes(mac) == {}
    exit.undo()
    assert exit_routes.delete_left(mac.run) == ""


class Killed(Exception):
    """The process ends here."""


class Mortal:
    """Runs programs until the one with this number among those that change something; it is killed before or after
    that one has had its effect."""

    def __init__(self, mac: FakeMac, last: int, *, after: bool) -> None:
        self._mac = mac
        self._left = last
        self._after = after

    def __call__(self, command: Command) -> ProgramAnswer:
        if not command.changes:
            return self._mac.run(command)
        self._left -= 1
        if self._left < 0 and not self._after:
            raise Killed
        answer = self._mac.run(command)
        if self._left < 0:
            raise Killed
        return answer


CHANGES = 18
"""More than a start makes; that many are tried, so that a later change is tried too."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(CHANGES))
async def test_a_start_that_is_killed_anywhere_is_undone_whole(
    number: int, after: bool, exit: Exit, mac: FakeMac
) -> None:
    before = mac.snapshot()
    real = mac.run
    exit.run = Mortal(mac, number, after=after)
    try:
        await exit.up()
    except Killed:
        assert number < CHANGES - 1
    else:
        # A start makes fewer changes than are tried.
        assert number > CHANGES // 2
    exit.run = real
    exit.die()
    exit.undo()
    assert mac.snapshot() == before


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(8))
async def test_an_undo_that_is_killed_anywhere_ends_the_next_time(
    number: int, after: bool, exit: Exit, mac: FakeMac
) -> None:
    before = mac.snapshot()
    await exit.up()
    exit.die()
    entries = exit.journal.entries()
    mortal = exit_kernel.undoers(Mortal(mac, number, after=after))
    with contextlib.suppress(Killed):
        for entry in reversed(entries):
            mortal[entry["kind"]](entry)
    exit.undo()
    assert mac.snapshot() == before


# --- following the network ---


async def follow(exit: Exit, told: list[bool]) -> asyncio.Task[None]:
    return asyncio.create_task(exit.kernel.follow_uplinks(lambda: told.append(exit.kernel.ipv6)))


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_another_network_gives_another_translation(exit: Exit, mac: FakeMac) -> None:
    await exit.up()
    following = await follow(exit, [])
    disturbances.roam(mac)
    exit.changes.tell()
    address = CAFE.address.partition("/")[0]
    await until(lambda: f"-> {address}" in mac.read().pf.anchors[ANCHOR].nat)
    assert HOME.address.partition("/")[0] not in mac.read().pf.anchors[ANCHOR].nat
    following.cancel()
    await asyncio.wait([following])
    assert await exit.kept() == []


async def test_ipv6_that_goes_is_waited_for_and_then_told_and_it_comes_again(
    exit: Exit, mac: FakeMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exit_kernel, "LOSS_SECONDS", 0.2)
    await exit.up()
    told: list[bool] = []
    following = await follow(exit, told)

    def lose() -> None:
        with mac.change() as state:
            kept = [each for each in state.routes if each.destination != "::/0" or "I" in each.flags]
            gone.extend(each for each in state.routes if each not in kept)
            state.routes = kept

    gone: list[Any] = []
    lose()
    exit.changes.tell()
    await until(lambda: told == [False])
    assert "inet6 all" in mac.read().pf.anchors[ANCHOR].rules
    assert "fd63:7279:7071::/65" not in routes(mac)
    with mac.change() as state:
        state.routes.extend(gone)
    exit.changes.tell()
    await until(lambda: told == [False, True])
    following.cancel()
    await asyncio.wait([following])
    assert await exit.kept() == []


async def test_a_kernel_that_tells_no_changes_is_asked(exit: Exit, caplog: pytest.LogCaptureFixture) -> None:
    kernel = await exit.up()

    def refuse() -> Changes:
        raise OSError("no descriptors")

    kernel._changes = refuse
    changes, most = kernel._listen()
    assert isinstance(changes, NoChanges) and most == exit_kernel.POLL_SECONDS
    assert "the kernel tells no changes" in caplog.text


async def test_pools_that_are_in_use_here(exit: Exit, mac: FakeMac) -> None:
    kernel = await exit.up()
    assert free_pools(exit.settings, await read_occupied(exit.device.name, mac.run)) == exit.settings
    exit.die()
    # The refusing routes of an earlier exit occupy nothing.
    assert free_pools(exit.settings, await read_occupied("utun", mac.run)).pool4 == exit.settings.pool4
    disturbances.replace_route(mac, "198.18.0.0/16", "192.168.1.1", "en0")
    assert free_pools(exit.settings, await read_occupied("utun", mac.run)).pool4 != exit.settings.pool4
    assert all(isinstance(fact, Fact) for fact in kernel.facts())
