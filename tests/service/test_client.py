"""The client's process, in this one: its parts, its start and undo, its reload, what a person can ask of it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from itertools import cycle
from typing import Any

import pytest
from msgspec import structs

from cryprq_proxy.address import Destination
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.lane.batch import UdpOffload
from cryprq_proxy.client.dispatcher import Dispatcher
from cryprq_proxy.client.exits import Exits
from cryprq_proxy.config import both_roles
from cryprq_proxy.config.client import ClientConfig
from cryprq_proxy.errors import ConfigError, CryprqError
from cryprq_proxy.process import file_watch
from cryprq_proxy.process.control import ControlServer
from cryprq_proxy.process.file_watch import FileWatch
from cryprq_proxy.process.lifecycle import Stop
from cryprq_proxy.process.recent_errors import RecentErrors
from cryprq_proxy.process.sd_notify import Notifier
from cryprq_proxy.rules.engine import EVERYTHING, RuleSet
from cryprq_proxy.service import client as client_module
from cryprq_proxy.service.client import RunningClient, run_client
from cryprq_proxy.service.client_parts import ClientParts, Loaded, no_tun
from cryprq_proxy.service.tun_mode import NO_TUN, Confirmation, NoTun, TunMode
from cryprq_proxy.status import ClientStatus
from tests.support.fake_exits import FakeExits
from tests.support.roles import Role, RoleFiles, RunningRole, running
from tests.support.settle import until

DIRECT = 'default = "direct"\n'
BLOCKED = '[[rule]]\ndomains = ["blocked.example"]\nto = "block"\n'
TUN = "[tun]\nenabled = true\n"


class FakeTun(NoTun):
    """System-wide mode that changes nothing and records what is asked of it; it is its own plan, with a mark."""

    mark = 7

    def __init__(self, config: ClientConfig, rules: RuleSet) -> None:
        self.config = config
        self.rules = rules
        self.asked: list[str] = []
        self.gone = asyncio.Event()
        self.failing: CryprqError | None = None
        self.failure: object = None

    def _note(self, event: str) -> None:
        there = os.path.lexists(self.config.control_socket)
        self.asked.append(f"{event} {'with' if there else 'without'} control socket")

    async def start(self) -> TunMode:
        self._note("start")
        return self

    async def run(self, client: Exits) -> None:
        self._note("run")
        if self.failing is not None:
            raise self.failing

    async def lost(self) -> None:
        await self.gone.wait()

    async def pause(self, seconds: int) -> None:
        self.asked.append(f"pause {seconds}")

    async def follow_exits(self, exits: Sequence[Destination]) -> None:
        self.asked.append(" ".join(("exits", *(str(exit.port) for exit in exits))))

    async def apply_rules(self, rules: RuleSet) -> None:
        if self.failing is not None:
            raise self.failing
        self.rules = rules

    async def close(self, *failure: Any) -> None:
        self._note("close")
        self.failure = failure[1]


class Makes:
    """The `make_tun` of a test."""

    def __init__(self, failing: CryprqError | None = None) -> None:
        self.failing = failing
        self.made: list[FakeTun] = []

    def __call__(self, config: ClientConfig, rules: RuleSet) -> FakeTun:
        self.made.append(FakeTun(config, rules))
        self.made[-1].failing = self.failing
        return self.made[-1]


def role(config: ClientConfig, makes: Makes | None = None) -> Role:
    return lambda stop: run_client(config, lambda: config, stop, makes or no_tun)


async def told(files: RoleFiles) -> ClientStatus:
    status = await files.status("client")
    assert isinstance(status, ClientStatus)
    return status


async def proxy_port(files: RoleFiles) -> int:
    return int((await told(files)).listen[0].rpartition(":")[2])


async def socks(proxy: int, port: int, host: str = "127.0.0.1") -> int:
    """The reply of SOCKS5 to CONNECT `host`:`port`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
    name = host.encode()
    writer.write(b"\x05\x01\x00\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2))
    assert await reader.readexactly(2) == b"\x05\x00"
    reply = (await reader.readexactly(10))[1]
    writer.close()
    return reply


@pytest.fixture
def taken() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Destination(*server.getsockname())


# --- parts ---


async def test_the_parts_are_read_from_the_configuration(files: RoleFiles) -> None:
    makes = Makes()
    other = files.identity("other")
    config = files.client(
        tables=f'[[exit]]\nname = "other"\npeer = "cryprq://{other}@127.0.0.1:2"\n' + BLOCKED
    )
    parts, plan = await ClientParts.of(config, makes, FileWatch())
    assert plan is makes.made[0]
    assert makes.made[0].rules is parts.rules
    assert makes.made[0].asked == [], "nothing is started"
    assert parts.identity.identity.peer_id == files.client_id
    assert len(parts.rules.rules) == 1
    assert [exit.settings.peer for exit in parts.exits] == [files.exit_id, other]
    assert [exit.settings.mark for exit in parts.exits] == [FakeTun.mark, FakeTun.mark]
    assert parts.listening.listen == config.listen
    parts, plan = await ClientParts.of(files.client(), no_tun, FileWatch())
    assert plan is NO_TUN
    assert [exit.settings.mark for exit in parts.exits] == [0]


@pytest.mark.parametrize(
    ("more", "tables", "error"),
    [
        ('psk_file = "missing"\n', "", "missing"),
        ('user_file = "missing"\n', "", "missing"),
        ("", '[[rule]]\nlists = ["missing"]\nto = "block"\n', "missing"),
    ],
)
async def test_what_a_person_must_mend_comes_before_anything_starts(
    files: RoleFiles, more: str, tables: str, error: str
) -> None:
    makes = Makes()
    with pytest.raises(ConfigError, match=error):
        await RunningRole(role(files.client(more, tables), makes)).task
    assert not any(tun.asked for tun in makes.made)
    assert not os.path.lexists(files.directory / "client.sock")


# --- start and undo ---


async def test_system_wide_mode_starts_first_and_ends_last(files: RoleFiles) -> None:
    makes = Makes()
    async with running(role(files.client(), makes)):
        (tun,) = makes.made
        port = await proxy_port(files)
        assert tun.asked == ["start without control socket", "run with control socket"]
    assert tun.asked[2:] == ["close without control socket"]
    assert tun.failure is None
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.parametrize("which", ["listen", "admin"])
async def test_a_port_in_use_leaves_nothing_behind(files: RoleFiles, taken: Destination, which: str) -> None:
    makes = Makes()
    tasks = asyncio.all_tasks()
    flag = "--listen" if which == "listen" else "admin in the configuration"
    with pytest.raises(
        CryprqError, match=f"^{taken} is in use by another program; .* with {flag}$"
    ) as raised:
        await RunningRole(role(files.client(f'{which} = "{taken}"\n'), makes)).started()
    assert makes.made[0].asked == ["start without control socket", "close without control socket"]
    assert makes.made[0].failure is raised.value
    await until(lambda: asyncio.all_tasks() == tasks)
    async with running(role(files.client())):
        assert await proxy_port(files)


async def test_routes_that_cannot_be_set_undo_the_start(files: RoleFiles) -> None:
    makes = Makes(CryprqError("there is no route"))
    with pytest.raises(CryprqError, match="there is no route"):
        await RunningRole(role(files.client(), makes)).task
    assert makes.made[0].asked[-1] == "close without control socket"
    assert makes.made[0].failure is makes.failing


async def test_a_lost_device_ends_the_client(files: RoleFiles) -> None:
    makes = Makes()
    client = RunningRole(role(files.client(), makes))
    await client.started()
    makes.made[0].gone.set()
    with pytest.raises(CryprqError, match="the task 'link' ended unexpectedly"):
        await client.task
    assert makes.made[0].asked[-1] == "close without control socket"


async def test_a_second_client_changes_nothing(files: RoleFiles) -> None:
    async def nothing() -> ClientStatus:
        return ClientStatus()

    first = ControlServer(files.directory / "client.sock", nothing)
    await first.start()
    makes = Makes()
    with pytest.raises(ConfigError, match="another cryprq-proxy is running"):
        await RunningRole(role(files.client(), makes)).task
    assert makes.made[0].asked == []
    assert (await told(files)).pid == 0
    await first.stop()


async def test_a_stop_during_the_start_ends_it_in_good_order(files: RoleFiles) -> None:
    class Slow(FakeTun):
        async def run(self, client: Exits) -> None:
            self.asked.append("run")
            await asyncio.Event().wait()

    made: list[Slow] = []

    def make(config: ClientConfig, rules: RuleSet) -> Slow:
        made.append(Slow(config, rules))
        return made[-1]

    config = files.client()
    client = RunningRole(lambda stop: run_client(config, lambda: config, stop, make))
    await until(lambda: made and "run" in made[0].asked)
    client.stop.asked.set()
    await client.task
    assert made[0].asked[-1] == "close without control socket"


# --- addresses of its own ---


async def test_its_own_addresses_are_never_dialled_directly(files: RoleFiles, taken: Destination) -> None:
    async with running(role(files.client(DIRECT + 'admin = "127.0.0.1:0"\n'))):
        proxy = await proxy_port(files)
        admin = (await told(files)).admin
        assert admin is not None
        admin_port = int(admin.rpartition(":")[2].strip("/"))
        assert await socks(proxy, taken.port) == 0
        for host in ("127.0.0.1", "localhost"):
            assert await socks(proxy, proxy, host) != 0
            assert await socks(proxy, admin_port, host) != 0


async def test_the_default_port_of_the_dashboard_may_be_taken(
    files: RoleFiles, taken: Destination, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_module, "DEFAULT_ADMIN", taken)
    async with running(role(files.client(f'admin = "{taken}"\n'))):
        assert f"there is no dashboard and no PAC file: {taken} is in use" in caplog.text
        assert (await told(files)).admin is None
        with pytest.raises(CryprqError, match="there is no dashboard: set admin"):
            await files.command("client", "dashboard")


# --- reload ---


async def test_a_reload_that_fails_leaves_the_old_rules_in_force(
    files: RoleFiles, caplog: pytest.LogCaptureFixture
) -> None:
    now: list[Callable[[], ClientConfig]] = [lambda: files.client(DIRECT, BLOCKED)]
    makes = Makes()

    async def names() -> tuple[int, str]:
        status = await told(files)
        assert status.rules is not None
        return status.rules.rules, status.rules.default

    async with running(lambda stop: run_client(now[0](), lambda: now[0](), stop, makes)):
        (tun,) = makes.made
        kept = tun.rules
        assert await names() == (1, "direct")

        def broken() -> ClientConfig:
            raise ConfigError("client.toml: not valid")

        now[0] = broken
        with pytest.raises(CryprqError, match=r"everything stays as it was: client\.toml: not valid"):
            await files.command("client", "reload")
        status = await told(files)
        assert status.rules is not None and status.rules.error is not None
        assert await names() == (1, "direct")

        now[0] = files.client
        tun.failing = CryprqError("the filter cannot have them")
        with pytest.raises(CryprqError, match="everything stays as it was: the filter cannot have them"):
            await files.command("client", "reload")
        assert await names() == (1, "direct")
        assert tun.rules is kept

        tun.failing = None
        assert await files.command("client", "reload") == {"reloaded": "0 rules, 0 listed names, 1 exit"}
        assert await names() == (0, "tunnel")
        assert tun.rules is not kept

        now[0] = lambda: files.client(
            'log_level = "error"\nvia = true\n', '[tun.dns]\nsplit = ["corp.example=10.0.0.1"]\n'
        )
        said = str((await files.command("client", "reload"))["reloaded"])
        assert said.endswith("what else has changed in the configuration needs a restart: via, tun.dns.split")
        assert logging.getLogger().level == logging.ERROR


OTHER = """
[[exit]]
name = "other"
peer = "cryprq://{}@127.0.0.1:2"
"""


async def test_exits_and_limits_are_put_in_force_by_a_reload(files: RoleFiles) -> None:
    other = files.identity("other")
    now = files.client()
    makes = Makes()
    async with running(lambda stop: run_client(now, lambda: now, stop, makes)):
        (tun,) = makes.made
        asked = tun.asked

        async def said() -> str:
            return str((await files.command("client", "reload"))["reloaded"])

        async def names() -> list[str]:
            return [exit.name for exit in (await told(files)).exits]

        now = files.client(tables=OTHER.format(other) + '[[rule]]\nto = "exit:other"\nports = [22]\n')
        assert await said() == "1 rule, 0 listed names, 2 exits (new: other)"
        assert await names() == ["127.0.0.1", "other"]
        assert asked[-2:] == ["exits 1 1 2", "exits 1 2"]

        tun.failing = CryprqError("the filter cannot have them")
        now = files.client()
        with pytest.raises(CryprqError, match="everything stays as it was: the filter cannot"):
            await said()
        assert await names() == ["127.0.0.1", "other"]
        tun.failing = None

        now = files.client(tables="[limits]\nmax_connections = 3\nwindow_pool = 65536\n")
        assert await said() == "0 rules, 0 listed names, 1 exit (removed: other)"
        await until(lambda: asked[-1] == "exits 1")

        now = files.client("via = true\nkeepalive = 5.0\n" + 'connect = "exact"\n')
        assert (await said()).endswith(
            "1 exit; what else has changed in the configuration needs a restart: keepalive, connect, via"
        )


async def test_what_is_measured_of_the_kernel_dials_nothing_anew(
    files: RoleFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = cycle((UdpOffload(True, True), UdpOffload(False, False, "this time not")))
    monkeypatch.setattr(both_roles, "check_offload", lambda setting: next(results))
    config = files.client('carrier = "auto"\n')
    async with running(role(config)):
        for _ in range(2):
            assert await files.command("client", "reload") == {"reloaded": "0 rules, 0 listed names, 1 exit"}


async def test_a_pre_shared_key_is_watched_and_dials_anew(
    files: RoleFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.01)
    key = files.directory / "psk"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    config = files.client('psk_file = "psk"\n')
    with caplog.at_level(logging.INFO):
        async with running(lambda stop: run_client(config, lambda: config, stop)):
            key.write_text("cd" * 32)
            await until(lambda: "1 exit (dialled anew: 127.0.0.1)" in caplog.text)


# --- what a person can ask for ---


class Parts:
    """A RunningClient with fake exits."""

    def __init__(self, files: RoleFiles, tun: TunMode = NO_TUN) -> None:
        self.config = files.client()
        self.fake = FakeExits(2)
        self.read: Callable[[], Loaded] = lambda: Loaded(self.config, EVERYTHING, exits.plans)
        exits = self.fake.exits
        self.running = RunningClient(
            self.config,
            exits,
            self.fake.make,
            Dispatcher(exits, EVERYTHING),
            tun,
            lambda: self.read(),
            Notifier(),
            RecentErrors(),
        )


async def test_actions(files: RoleFiles) -> None:
    tun = FakeTun(files.client(), EVERYTHING)
    parts = Parts(files, tun)
    actions = parts.running
    assert (await actions.status()).listen == ()
    assert list(actions.streams()) == []
    assert not actions.close("a/1")
    await parts.running.make_pac(EVERYTHING)
    assert "FindProxyForURL" in actions.pac()
    parts.fake.up("a", "b")
    assert parts.fake.exits.active.name == "a"
    actions.choose_exit("b")
    assert parts.fake.exits.active.name == "b"
    with pytest.raises(CryprqError, match="there is no exit of that name"):
        actions.choose_exit("c")
    actions.choose_exit("auto")
    await actions.pause(5)
    assert tun.asked == ["pause 5"]
    assert await actions.reload() == "0 rules, 0 listed names, 2 exits"
    with pytest.raises(CryprqError, match="there is no dashboard"):
        actions.dashboard()


async def test_the_dashboards_url_has_the_token(files: RoleFiles) -> None:
    parts = Parts(files)
    parts.running._config = files.client('admin = "127.0.0.1:0"\n')
    async with AsyncExitStack() as stack:
        await parts.running.open_admin(stack)
        url = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/#token=(\S{20,})", parts.running.dashboard())
        assert url is not None
        status = await parts.running.status()
        assert status.admin == f"http://127.0.0.1:{url[1]}/"
        assert url[2] not in repr(status)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(url[1]))


async def test_a_list_is_watched_from_before_it_is_read(
    files: RoleFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also a list that could not be read: it is missing yet."""
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.01)
    names = files.directory / "list"
    rule = '[[rule]]\nlists = ["list"]\nto = "block"\n'
    now = files.client()
    with caplog.at_level(logging.INFO):
        async with running(lambda stop: run_client(now, lambda: now, stop)):
            now = files.client(tables=rule)
            with pytest.raises(CryprqError, match="list cannot be read"):
                await files.command("client", "reload")
            names.write_text("listed.example\n")
            await until(lambda: "reloaded: 1 rule, 1 listed name" in caplog.text)

    class ChangesList(Makes):
        def __call__(self, config: ClientConfig, rules: RuleSet) -> FakeTun:
            names.write_text("listed.example\nother.example\n")
            return super().__call__(config, rules)

    caplog.clear()
    with caplog.at_level(logging.INFO):
        async with running(lambda stop: run_client(now, lambda: now, stop, ChangesList())):
            await until(lambda: "reloaded: 1 rule, 2 listed names" in caplog.text)


# --- confirming ---


async def test_what_has_to_be_confirmed_in_time(files: RoleFiles, caplog: pytest.LogCaptureFixture) -> None:
    link = spawn(_never(), "link")
    tun, stop = FakeTun(files.client(), EVERYTHING), Stop()

    async def confirmed(seconds: float, *, given: bool = False) -> Confirmation:
        tun.fail_closed = False
        confirmation = Confirmation(tun, seconds)
        waiting = spawn(confirmation.wait(stop, link), "confirmation")
        await asyncio.sleep(0)
        if given:
            confirmation.give()
        await waiting
        assert tun.fail_closed, "the kill switch stays from now on"
        return confirmation

    with pytest.raises(CryprqError, match="there is nothing to confirm: it was started without --confirm"):
        (await confirmed(0)).give()
    with pytest.raises(CryprqError, match="it was not confirmed in time, so everything is undone"):
        await confirmed(0.001)
    assert not tun.fail_closed
    assert "everything is undone in 0.001 s unless you call: cryprq-proxy confirm" in caplog.text
    with pytest.raises(CryprqError, match="there is nothing to confirm: it is confirmed already"):
        (await confirmed(60, given=True)).give()
    stop.asked.set()
    await confirmed(60)
    link.cancel()


async def _never() -> None:
    await asyncio.Event().wait()


async def test_where_nothing_waits_for_it_a_confirmation_is_refused(files: RoleFiles) -> None:
    """Also before system-wide mode is up: nobody can know by then that it works."""
    tun = FakeTun(files.client(), EVERYTHING)
    with pytest.raises(CryprqError, match="there is nothing to confirm yet: system-wide mode is not up"):
        Confirmation(tun, 60).give()
    with pytest.raises(
        CryprqError, match="it does not run with --tun, so there is nothing to pause or confirm"
    ):
        Parts(files).running.confirm()
    with pytest.raises(CryprqError, match="there is nothing to confirm: it was started without --confirm"):
        Parts(files, tun).running.confirm()


async def test_the_kill_switch_stays_once_a_person_has_confirmed(files: RoleFiles) -> None:
    makes = Makes()
    async with running(role(files.client(tables=TUN + "confirm = 3600\n"), makes)):
        (tun,) = makes.made
        assert not tun.fail_closed
        assert await files.command("client", "confirm") == {"confirmed": True}
        await until(lambda: tun.fail_closed)


async def test_without_a_confirmation_everything_is_undone(files: RoleFiles) -> None:
    makes = Makes()
    with pytest.raises(CryprqError, match="it was not confirmed in time"):
        await RunningRole(role(files.client(tables=TUN + "confirm = 0.01\n"), makes)).task
    assert not makes.made[0].fail_closed
    assert makes.made[0].asked[-1] == "close without control socket"


async def test_a_start_that_is_refused_leaves_no_keys(files: RoleFiles) -> None:
    config = structs.replace(files.client(), identity=files.directory / "new" / "identity")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = Destination("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(CryprqError, match="in use by another program"):
            await RunningRole(role(structs.replace(config, listen=listen))).task
    assert not config.identity.exists()
    client = RunningRole(role(config))
    await client.started()
    assert config.identity.exists()
    await client.end()
