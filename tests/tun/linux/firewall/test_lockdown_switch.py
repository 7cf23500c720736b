"""`lockdown on` and `off`: each step in its order, and what a process that ends between them has left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base import leftovers
from cryprq_proxy.base.linux_marks import LOCKDOWN
from cryprq_proxy.errors import ConfigError
from tests.support.settings import tunnel_settings
from tun.firewall.policy import Policy
from tun.journal import Journal
from tun.linux.firewall import conntrack, lockdown_switch, nft
from tun.linux.firewall.lockdown import FILE
from tun.linux.firewall.lockdown_switch import turn_off, turn_on
from tun.routing.lan import Lan
from tun.settings import CLIENT_JOURNAL

LITERAL, NAMED = Destination("5.75.10.2", 4433), Destination("exit.example", 443)
LAN = Lan((ip_network("192.168.1.0/24"),), (), frozenset({"eth0"}))


@dataclass
class Machine:
    """The kernel's tables as scripts change them; `runs`: a client lives."""

    state: Path
    tables: set[str] = field(default_factory=set)
    runs: bool = False
    foreign: bool = False
    addresses: tuple[str, ...] = ("203.0.113.5",)
    asked: list[str] = field(default_factory=list)
    loaded: str = ""
    ends_at: str = ""
    """A table at whose change this process is killed."""

    def run(self, script: str) -> None:
        for line in script.splitlines():
            match line.split():
                case [verb, "table", "inet", table] if verb in ("add", "delete"):
                    if table == self.ends_at:
                        raise KeyboardInterrupt
                    (self.tables.add if verb == "add" else self.tables.discard)(table)
                case ["table", "inet", table, "{"]:
                    self.tables.add(table)
                    self.loaded = script

    @contextlib.contextmanager
    def claimed(self, role: str) -> Iterator[None]:
        if self.runs:
            raise ConfigError("another cryprq-proxy runs")
        yield

    async def ask(self, name: str) -> tuple[str, ...]:
        self.asked.append(name)
        if not self.addresses:
            raise OSError("no such name")
        return self.addresses

    async def on(self, *exits: Destination, **changes: object) -> bool:
        settings = tunnel_settings(state=self.state, **changes)
        return await turn_on(settings, exits or (LITERAL,), Policy())

    @property
    def file(self) -> Path:
        return self.state / FILE


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "state")

    async def read_lan(own: str) -> Lan:
        return LAN

    monkeypatch.setattr(nft, "run", machine.run)
    monkeypatch.setattr(nft, "check", lambda script: None)
    monkeypatch.setattr(nft, "exists", lambda table, ask=None: table in machine.tables)
    monkeypatch.setattr(nft, "is_left_over", lambda table, ask=None: not machine.foreign)
    monkeypatch.setattr(nft, "_forget", lambda port: None)
    monkeypatch.setattr(conntrack, "seen_runs", frozenset)
    monkeypatch.setattr(leftovers, "claimed", machine.claimed)
    monkeypatch.setattr(leftovers, "lockdown", lambda: LOCKDOWN in machine.tables)
    monkeypatch.setattr(lockdown_switch, "read_lan", read_lan)
    monkeypatch.setattr(lockdown_switch, "by_system", machine.ask)
    return machine


BOTH = {"cryprq", "cryprq_lockdown"}


async def test_on_and_off(machine: Machine) -> None:
    assert await machine.on()
    assert machine.tables == BOTH and machine.file.read_text() == machine.loaded
    assert await machine.on(), "as often as it is said"
    assert turn_off(machine.state)
    assert not machine.tables and not machine.file.exists()
    assert not turn_off(machine.state)


@pytest.mark.parametrize("ends_at", sorted(BOTH))
async def test_a_crash_half_way_is_finished_by_the_next_call(machine: Machine, ends_at: str) -> None:
    machine.ends_at = ends_at
    with pytest.raises(KeyboardInterrupt):
        await machine.on()
    assert machine.file.exists(), "it is on, whatever stands: the next boot loads it"
    machine.ends_at = ""
    assert await machine.on() and machine.tables == BOTH
    machine.ends_at = ends_at
    with pytest.raises(KeyboardInterrupt):
        turn_off(machine.state)
    assert not machine.file.exists(), "it is off: no boot loads anything"
    machine.ends_at = ""
    assert turn_off(machine.state), "what is left is lifted now"
    assert not machine.tables


async def test_while_a_client_runs_its_filter_stands(machine: Machine) -> None:
    machine.tables = {"cryprq"}
    machine.runs = True
    assert not await machine.on()
    assert machine.tables == BOTH and machine.file.exists() and not machine.loaded
    assert turn_off(machine.state)
    assert machine.tables == {"cryprq"} and not machine.file.exists()


async def test_the_filter_of_a_killed_client_is_not_lifted_by_the_way(machine: Machine) -> None:
    await machine.on()
    with Journal(machine.state / CLIENT_JOURNAL) as journal:
        journal.record({"kind": nft.KIND, "table": "cryprq"})
    assert turn_off(machine.state)
    assert machine.tables == {"cryprq"}, "for the next start, or cleanup"


async def test_the_filter_of_another_program_stays(machine: Machine) -> None:
    machine.tables, machine.foreign = {"cryprq"}, True
    with pytest.raises(ConfigError, match="nft delete table inet cryprq"):
        await machine.on()
    assert not machine.file.exists()


async def test_a_kill_switch_that_is_off_is_a_contradiction(machine: Machine) -> None:
    with pytest.raises(ConfigError, match="remove kill_switch"):
        await machine.on(kill_switch=False)
    assert not machine.file.exists()


async def test_a_name_is_asked_for_before_the_block_and_remembered_behind_it(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    await machine.on(NAMED)
    assert machine.asked == ["exit.example"] and "203.0.113.5 . 443" in machine.loaded
    await machine.on(NAMED)
    assert machine.asked == ["exit.example"], "nobody could answer now"
    assert "203.0.113.5 . 443" in machine.loaded
    turn_off(machine.state)
    machine.addresses = ()
    await machine.on(NAMED)
    assert "203.0.113.5 . 443" in machine.loaded, "the last one is better than none"
    assert not caplog.messages
    turn_off(machine.state)
    await machine.on(Destination("other.example", 443))
    assert "other.example" in caplog.messages[-1]
