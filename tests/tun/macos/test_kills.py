"""A client on macOS that is killed at any command of its start, its run or its stop, and what cleanup, the next start
or a reboot make of it: the Mac is as it was before."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base import leftovers
from tests.support.macos import disturbances, packet
from tests.support.macos.kernel import Fate, Kernel
from tests.support.macos.mac_tunnel import stand_in, start
from tests.support.macos.machine import FakeMac
from tests.support.macos.packet import End
from tests.support.macos.utun_pair import UtunPair
from tests.support.settings import tunnel_settings
from tun.cleanup import clean
from tun.macos.programs import Command, ProgramAnswer
from tun.macos.system import MacOS
from tun.settings import CLIENT_JOURNAL

DOCS = Path(__file__).parents[3] / "docs" / "macos.md"
OWN6 = "2001:db8:1:2:1c2f:11ff:fe22:3344"


class Killed(BaseException):
    """Nothing that the process would do afterwards happens."""


class Mortal:
    """A Run whose process is killed at its command number `last` that changes something: before it, or `after` it."""

    def __init__(self, mac: FakeMac, journal: Path, last: int, *, after: bool) -> None:
        self._mac = mac
        self._journal = journal
        self._last = last
        self._after = after
        self.count = 0
        self.left: bytes | None = None
        """The journal at the kill."""

    def __call__(self, command: Command) -> ProgramAnswer:
        if self.left is not None:
            raise Killed
        if not command.changes:
            return self._mac.run(command)
        self.count += 1
        if self.count < self._last:
            return self._mac.run(command)
        if self._after:
            self._mac.run(command)
        self.left = self._journal.read_bytes()
        raise Killed


class Machine:
    """A fake Mac with a state directory, and a client that lives and dies on it."""

    def __init__(self, place: Path) -> None:
        self.mac = FakeMac(place / "mac")
        self.settings = tunnel_settings(state=place / "state")
        self.journal = place / "state" / CLIENT_JOURNAL

    async def live(self, run: Callable[[Command], ProgramAnswer]) -> None:
        """Start, run through changes of the network, stop."""
        pair = UtunPair(self.mac)
        try:
            tunnel = await start(MacOS(run, pair), self.settings)
            try:
                disturbances.roam(self.mac)
                await tunnel._foundation.routes.look()
                await tunnel.follow_exits([Destination("203.0.113.10", 4433)])
            finally:
                await tunnel.close(None, None, None)
        finally:
            pair.end()
            disturbances.come_home(self.mac)

    async def die(self, last: int, *, after: bool) -> bool:
        """Be killed at that command. Returns whether there is such a one."""
        mortal = Mortal(self.mac, self.journal, last, after=after)
        with contextlib.suppress(Killed):
            await self.live(mortal)
        if mortal.left is None:
            return False
        self.journal.write_bytes(mortal.left)
        self.journal.chmod(0o600)
        return True

    def clean(self) -> None:
        clean(MacOS(self.mac.run), self.settings.state)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    stand_in(monkeypatch)
    monkeypatch.setattr(leftovers, "cleaning_up", contextlib.nullcontext)
    return Machine(tmp_path)


def differences(before: str, after: str) -> list[str]:
    lines = set(before.splitlines()) ^ set(after.splitlines())
    return sorted(line.strip() for line in lines)


async def test_a_life_that_ends_in_order_leaves_nothing(machine: Machine) -> None:
    before = machine.mac.snapshot()
    await machine.live(machine.mac.run)
    assert differences(before, machine.mac.snapshot()) == []
    assert not machine.journal.exists() or not machine.journal.read_bytes()


@pytest.mark.parametrize("after", [False, True], ids=["before it", "after it"])
@pytest.mark.parametrize(("then", "step"), [("cleanup", 2), ("next start", 6), ("reboot", 6)])
async def test_killed_at_each_command(machine: Machine, then: str, step: int, after: bool) -> None:
    """After one command it is as before the next one, so each half of the test has every second command."""
    before = machine.mac.snapshot()
    for last in range(1 + after, 1000, step):
        if not await machine.die(last, after=after):
            break
        if then == "next start":
            await machine.live(machine.mac.run)
        elif then == "reboot":
            boot = machine.mac.read().boot_id
            disturbances.reboot(machine.mac)
            machine.clean()
            with machine.mac.change() as state:
                state.sysctls["kern.bootsessionuuid"] = boot
        else:
            machine.clean()
        assert differences(before, machine.mac.snapshot()) == [], f"killed at command {last}"
        assert not machine.journal.exists() or not machine.journal.read_bytes()
    assert last > 20


def by_hand(mac: FakeMac) -> None:
    """Do what the three lines of docs/macos.md say; some of it is not there, which they may be told."""
    lines = re.search(r"these three open the machine by hand.*?```sh\n(.*?)```", DOCS.read_text(), re.S)
    assert lines is not None
    commands = {line.split()[0]: line for line in lines[1].splitlines()}
    assert set(commands) == {"sudo", "echo", "for"}
    mac.run(Command(tuple(commands["sudo"].split()[1:])))
    removal = re.fullmatch(r"echo '(.*)' \| sudo scutil", commands["echo"])
    loop = re.fullmatch(r"for half in (.*); do sudo (.*) \$half; done", commands["for"])
    assert removal is not None and loop is not None
    mac.run(Command(("scutil",), stdin=removal[1] + "\n"))
    for half in loop[1].split():
        mac.run(Command((*loop[2].split(), half)))


@pytest.mark.parametrize("after", [False, True], ids=["before it", "after it"])
async def test_three_commands_by_hand_open_what_a_killed_run_has_closed(
    machine: Machine, after: bool
) -> None:
    resolver = machine.mac.read().store["State:/Network/Global/DNS"]
    with Kernel(machine.mac) as kernel:
        for last in range(1 + after, 1000, 2):
            if not await machine.die(last, after=after):
                break
            by_hand(machine.mac)
            for own, there in (("192.168.1.23", "198.51.100.80"), (OWN6, "2001:db8:80::80")):
                sent = packet.udp(End(own, 40_000), End(there, 443))
                assert kernel.fate(sent) == Fate("en0"), f"killed at command {last}"
            assert machine.mac.read().store["State:/Network/Global/DNS"] == resolver
            machine.clean()
    assert last > 20
