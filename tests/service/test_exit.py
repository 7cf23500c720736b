"""The exit's process, in this one: its start and undo, the peers it lets in, its metrics, its end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.changes import NoChanges
from cryprq_proxy.base.sockets import set_reset_on_close
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.cli import cli
from cryprq_proxy.commands import run
from cryprq_proxy.config import exit as config_exit
from cryprq_proxy.config.authorized import PeersFile, revoked_beside
from cryprq_proxy.config.exit import ExitConfig, load_exit
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import ConfigError, CryprqError
from cryprq_proxy.exit.egress_policy import EgressPolicy
from cryprq_proxy.exit.exit import Exit
from cryprq_proxy.exit.providers import NO_PACKETS, NoPacketNetwork, PacketNetwork, Redeemed
from cryprq_proxy.fronts import listener
from cryprq_proxy.outbound.relays import Patience
from cryprq_proxy.process import file_watch, lifecycle
from cryprq_proxy.process.control import ControlServer
from cryprq_proxy.process.file_watch import FileWatch
from cryprq_proxy.process.lifecycle import Stop
from cryprq_proxy.process.peers_pages import query_peers
from cryprq_proxy.process.recent_errors import RecentErrors
from cryprq_proxy.process.sd_notify import Notifier
from cryprq_proxy.service import exit as exit_module
from cryprq_proxy.service.client import run_client
from cryprq_proxy.service.exit import RunningExit, no_network, nobody_waits, run_exit
from cryprq_proxy.service.exit_files import MAX_PEERS_NAMED, LoadedExit
from cryprq_proxy.status import ClientStatus, ExitStatus, PeerStatus
from cryprq_proxy.web import server as web_server
from tests.support.roles import Role, RoleFiles, RunningRole, running
from tests.support.settle import settle, until
from tests.support.targets import echo
from tests.support.visits import ALICE, BOB, Visit, open_exit


class FakeNetwork(NoPacketNetwork):
    """Records what the exit is like when the network is released."""

    def __init__(self, config: ExitConfig, policy: EgressPolicy) -> None:
        self.config = config
        self.policy = policy
        self.judged_anew = asyncio.Event()
        self.gone = asyncio.Event()
        self.socket_at_start = os.path.lexists(config.control_socket)
        self.socket_at_release: bool | None = None
        self.ends: list[str] = []

    def policy_changed(self) -> None:
        self.judged_anew.set()

    async def lost(self) -> None:
        await self.gone.wait()

    async def release(self) -> None:
        self.ends.append("released")
        self.socket_at_release = os.path.lexists(self.config.control_socket)

    async def succeeded(self) -> None:
        self.ends.append("succeeded")

    async def close(self) -> None:
        self.ends.append("closed")


class Starts:
    """The `start_network` of a test; `made` are the networks that were started."""

    def __init__(self) -> None:
        self.made: list[FakeNetwork] = []

    async def __call__(self, config: ExitConfig, policy: EgressPolicy) -> PacketNetwork:
        self.made.append(FakeNetwork(config, policy))
        return self.made[-1]


def role(files: RoleFiles, more: str = "", tables: str = "", starts: Starts | None = None) -> Role:
    def read() -> ExitConfig:
        return files.exit(more, tables)

    return lambda stop: run_exit(read(), read, stop, starts or no_network, files.authorized)


async def told(files: RoleFiles) -> ExitStatus:
    status = await files.status("exit")
    assert isinstance(status, ExitStatus)
    return status


async def port_of(files: RoleFiles) -> int:
    return int((await told(files)).listen[0].rpartition(":")[2])


@asynccontextmanager
async def linked(files: RoleFiles, caplog: pytest.LogCaptureFixture) -> AsyncIterator[int]:
    """A client with a link to the running exit; the port of its proxy."""
    config = files.client(port=await port_of(files))
    async with running(partial(run_client, config, lambda: config)):
        await until(lambda: "link up: " in caplog.text)
        status = await files.status("client")
        assert isinstance(status, ClientStatus)
        yield int(status.listen[0].rpartition(":")[2])


@asynccontextmanager
async def echo_target() -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await echo(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def socks(proxy: int, target: int) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
    """The reply of SOCKS5 to CONNECT 127.0.0.1:`target`, and the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
    writer.write(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + target.to_bytes(2))
    assert await reader.readexactly(2) == b"\x05\x00"
    return (await reader.readexactly(10))[1], reader, writer


# --- start and undo ---


async def test_the_network_starts_first_and_ends_last(files: RoleFiles) -> None:
    starts = Starts()
    async with running(role(files, starts=starts)):
        (network,) = starts.made
        assert not network.socket_at_start
        assert network.socket_at_release is None
        port = await port_of(files)
    assert network.socket_at_release is False, "the control socket was gone before"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.parametrize("which", ["listen", "metrics"])
async def test_a_port_in_use_leaves_nothing_behind(files: RoleFiles, which: str) -> None:
    starts = Starts()
    tasks = asyncio.all_tasks()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        flag = "--listen" if which == "listen" else "metrics in the configuration"
        with pytest.raises(CryprqError, match=f"^{where} is in use by another program; .* with {flag}$"):
            await RunningRole(role(files, f'{which} = "{where}"', starts=starts)).started()
    assert [network.socket_at_release for network in starts.made] == [False]
    assert not os.path.lexists(files.directory / "exit.sock")
    await until(lambda: asyncio.all_tasks() == tasks)
    async with running(role(files)):
        assert (await told(files)).listen


async def test_a_second_exit_changes_nothing(files: RoleFiles) -> None:
    async def nothing() -> ExitStatus:
        return ExitStatus()

    first = ControlServer(files.directory / "exit.sock", nothing)
    await first.start()
    starts = Starts()
    with pytest.raises(ConfigError, match="another cryprq-proxy is running"):
        await RunningRole(role(files, starts=starts)).task
    assert starts.made == []
    assert (await told(files)).pid == 0
    await first.stop()


async def test_a_lost_device_ends_the_exit(files: RoleFiles) -> None:
    starts = Starts()
    exit = RunningRole(role(files, starts=starts))
    await exit.started()
    starts.made[0].gone.set()
    with pytest.raises(CryprqError, match="the task 'own addresses' ended unexpectedly"):
        await exit.task
    assert starts.made[0].socket_at_release is False


class ToldChanges(NoChanges):
    """Changes of addresses that the test tells."""

    def tell(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()


@pytest.mark.parametrize("told_by_kernel", [True, False])
async def test_own_addresses_are_followed(
    files: RoleFiles, monkeypatch: pytest.MonkeyPatch, told_by_kernel: bool
) -> None:
    own = {"192.0.2.1"}
    made: list[ToldChanges] = []

    def changes(*, routes: bool) -> ToldChanges:
        if not told_by_kernel:
            raise OSError(errno.EAFNOSUPPORT, "no netlink")
        made.append(ToldChanges())
        return made[-1]

    monkeypatch.setattr(exit_module, "own_addresses", lambda before=frozenset(): frozenset(own))
    monkeypatch.setattr(exit_module, "address_changes", changes)
    monkeypatch.setattr(exit_module, "OWN_ADDRESSES_SECONDS", 3600 if told_by_kernel else 0.001)
    starts = Starts()
    async with running(role(files, starts=starts)):
        network = starts.made[0]
        await network.judged_anew.wait()
        network.judged_anew.clear()
        assert network.policy.check_address("8.8.8.8", 443)
        own.add("8.8.8.8")
        for told in made:
            told.tell()
        await network.judged_anew.wait()
        assert not network.policy.check_address("8.8.8.8", 443)


# --- peers ---


async def test_a_reload_names_what_needs_a_restart(files: RoleFiles) -> None:
    """The list of peers, the limits and the log level are in force at once."""
    now = files.exit()
    async with running(lambda stop: run_exit(files.exit(), lambda: now, stop, no_network, files.authorized)):
        now = files.exit('log_level = "error"\nkeepalive = 7\n', "[limits]\nstreams_per_peer = 7\n")
        said = str((await files.command("exit", "reload"))["reloaded"])
    assert said.startswith("1 peer allowed, other limits; ")
    assert said.endswith("needs a restart: keepalive")


async def test_a_reload_lets_peers_in_and_ends_the_links_of_others(
    files: RoleFiles, caplog: pytest.LogCaptureFixture
) -> None:
    guest = files.identity("guest")

    async def sessions() -> list[tuple[str, str, int]]:
        return [(peer.peer_id, peer.name, peer.sessions) for peer in (await told(files)).peers]

    laptop = (str(files.client_id), "laptop", 1)
    async with running(role(files)) as exit, linked(files, caplog):
        assert await sessions() == [laptop]

        files.authorize("nonsense")
        with pytest.raises(CryprqError, match=r"everything stays as it was: .*authorized: line 1: "):
            await files.command("exit", "reload")
        assert await sessions() == [laptop]
        assert len((await told(files)).sessions) == 1

        files.authorize(f"{guest} guest")
        exit.stop.reload()
        await until(lambda: "reloaded: 1 peer allowed" in caplog.text)
        status = await told(files)
        assert status.peers == (PeerStatus(peer_id=str(guest), name="guest"),)
        assert (status.authorized, status.sessions) == (1, ())
        await until(lambda: "not authorized" in caplog.text)

        files.authorize(f"{files.client_id} laptop", str(guest))
        assert await files.command("exit", "reload") == {"reloaded": "2 peers allowed"}
        assert (await told(files)).authorized == 2


async def test_a_list_that_the_first_invite_made_needs_no_restart(files: RoleFiles) -> None:
    bare = msgspec.structs.replace(files.exit(), authorized=None, allow=())
    async with running(lambda stop: run_exit(bare, files.exit, stop, no_network, files.authorized)):
        assert await files.command("exit", "reload") == {"reloaded": "1 peer allowed"}


async def test_a_peer_taken_off_the_list_during_the_start_is_out(
    files: RoleFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.01)

    async def start(config: ExitConfig, policy: EgressPolicy) -> PacketNetwork:
        files.authorize(str(files.exit_id))
        return NO_PACKETS

    async with running(lambda stop: run_exit(files.exit(), files.exit, stop, start, files.authorized)):
        await until(lambda: "reloaded: 1 peer allowed" in caplog.text)
        assert [peer.peer_id for peer in (await told(files)).peers] == [str(files.exit_id)]


async def test_a_list_that_a_reload_names_is_watched_too(
    files: RoleFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.01)
    other = files.directory / "other"
    now = files.exit()
    async with running(lambda stop: run_exit(files.exit(), lambda: now, stop, no_network, files.authorized)):
        now = msgspec.structs.replace(files.exit(), authorized=other)
        with pytest.raises(CryprqError, match="does not exist"):
            await files.command("exit", "reload")
        other.write_text("")
        await until(lambda: "reloaded: 0 peers allowed" in caplog.text)


@pytest.mark.parametrize("changed", ["exit.toml", "authorized"])
async def test_the_command_marks_its_files_before_it_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.01)
    started: list[FileWatch] = []
    file = tmp_path / "exit.toml"
    file.write_text("")

    def load(*arguments: Any) -> ExitConfig:
        loaded = load_exit(*arguments)
        (tmp_path / changed).write_text("# changed")
        return loaded

    monkeypatch.setattr(config_exit, "load_exit", load)
    monkeypatch.setattr(exit_module, "run_exit", lambda *arguments, **_: started.append(arguments[-1]))
    monkeypatch.setattr(lifecycle, "run", lambda role: role(None))
    monkeypatch.setattr(run, "setup", lambda *_: None)
    cli.main(["exit", "--config", str(file)], standalone_mode=False)
    told = asyncio.Event()

    async def tell() -> None:
        told.set()

    watching = spawn(started[0].run(tell), "watch")
    await told.wait()
    watching.cancel()


async def test_an_emptied_list_is_warned_about(files: RoleFiles, caplog: pytest.LogCaptureFixture) -> None:
    async with running(role(files)), linked(files, caplog):
        files.authorize()
        assert await files.command("exit", "reload") == {
            "reloaded": "0 peers allowed, 1 session of unlisted peers ended"
        }
        assert ("cryprq_proxy.service.exit", logging.WARNING) in [entry[:2] for entry in caplog.record_tuples]
        assert "the list of peers, which had 1, is empty now, and 1 session ended" in caplog.text
        caplog.clear()
        await files.command("exit", "reload")
        assert "empty now" not in caplog.text


async def test_a_list_emptied_beside_allow_is_warned_about(
    files: RoleFiles, caplog: pytest.LogCaptureFixture
) -> None:
    allowed = f'allow = ["{PeerId(bytes(32))}"]'
    async with running(role(files, allowed)), linked(files, caplog):
        files.authorize()
        await files.command("exit", "reload")
        assert (
            "cryprq_proxy.service.exit",
            logging.WARNING,
            "the list of peers, which had 1 more, is empty now, and 1 session ended: "
            "only 1 peer of `allow` may come in",
        ) in caplog.record_tuples


async def test_a_peer_that_was_revoked_stays_out_when_the_list_goes_away(
    files: RoleFiles, caplog: pytest.LogCaptureFixture
) -> None:
    both = f'allow = ["{PeerId(bytes(32))}", "{files.client_id}"]'
    now = files.exit(both)
    async with running(
        lambda stop: run_exit(files.exit(both), lambda: now, stop, no_network, files.authorized)
    ):
        PeersFile(files.authorized).revoke(str(files.client_id), [files.client_id])
        files.authorized.unlink()
        now = msgspec.structs.replace(now, authorized=None)
        told = await files.command("exit", "reload")
        assert str(told["reloaded"]).startswith("1 peer allowed")


async def test_an_old_copy_of_the_list_brings_no_revoked_peer_back(
    files: RoleFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.01)
    peers = PeersFile(files.authorized)
    others = [PeerId(bytes([number]) * 32) for number in range(MAX_PEERS_NAMED)]
    files.authorize(f"{files.client_id} laptop", *map(str, others))
    old = files.authorized.read_text()
    async with running(role(files)):
        peers.revoke("laptop")
        await until(lambda: "reloaded: 5 peers allowed" in caplog.text)
        files.authorized.write_text(old)
        await until(lambda: "1 peer is listed but revoked, and not let in: laptop;" in caplog.text)
        await until(lambda: caplog.text.count("reloaded: 5 peers allowed") == 2)
        # Only the file of revocations changes.
        peers.add(files.client_id, "any")
        await until(lambda: "reloaded: 6 peers allowed" in caplog.text)
        for peer in (files.client_id, *others):
            peers.revoke(str(peer))
        files.authorized.write_text(old)
        await until(lambda: "6 peers are listed but revoked, and not let in: " in caplog.text)
        assert " and 1 more; to let one in again, run: cryprq-proxy peers add PEERID NAME" in caplog.text


async def test_peers_that_are_listed_more_than_once_are_said_with_their_lines(
    files: RoleFiles, caplog: pytest.LogCaptureFixture
) -> None:
    others = [PeerId(bytes([number]) * 32) for number in range(MAX_PEERS_NAMED)]
    files.authorize(f"{files.client_id} laptop", *map(str, others), f"{files.client_id} desk")
    async with running(role(files)):
        assert caplog.text.count("listed more than once") == 1
        assert (
            f"{files.authorized}: 1 peer is listed more than once, and the name of the last line counts: desk (lines 1"
            " and 7)\n"
        ) in caplog.text
        assert (await told(files)).authorized == 6
        files.authorize(*[f"{files.client_id} laptop", *map(str, others)] * 2)
        await files.command("exit", "reload")
        assert ": 6 peers are listed more than once, and " in caplog.text
        assert caplog.text.count(" and 1 more\n") == 1


async def test_a_list_of_revoked_peers_that_has_gone_brings_nobody_back(files: RoleFiles) -> None:
    peers = PeersFile(files.authorized)
    files.authorize(f"{files.client_id} laptop")
    old = files.authorized.read_text()
    async with running(role(files)):
        peers.revoke("laptop")
        await files.command("exit", "reload")
        files.authorized.write_text(old)
        revoked_beside(files.authorized).unlink()
        for _ in range(2):
            with pytest.raises(CryprqError, match="has gone; put it back, or make an empty file"):
                await files.command("exit", "reload")
        assert (await told(files)).authorized == 0
        revoked_beside(files.authorized).touch(0o600)
        assert await files.command("exit", "reload") == {"reloaded": "1 peer allowed"}


async def test_twenty_thousand_peers_are_let_in(files: RoleFiles) -> None:
    many = [f"{PeerId(number.to_bytes(32))} peer {number}" for number in range(20_000)]
    files.authorize(*many, f"{files.client_id} laptop")
    async with running(role(files)):
        status = await told(files)
        assert (status.authorized, len(status.peers)) == (20_001, 1000)
        everybody = await asyncio.to_thread(lambda: list(query_peers(files.directory / "exit.sock")))
        assert {peer.peer_id for peer in everybody} == {line.split()[0] for line in many} | {
            str(files.client_id)
        }
        assert everybody[-1].name == "laptop"
        assert len((await files.command("exit", "peers", "19999"))["peers"]) == 2
        for start in ("-1", "x", "٣", "9" * 10):
            with pytest.raises(CryprqError, match="begins at a number of at most 9 digits"):
                await files.command("exit", "peers", start)


# --- dead applications and targets ---


@asynccontextmanager
async def unread_target() -> AsyncIterator[tuple[int, list[asyncio.StreamWriter]]]:
    """A target that reads nothing: its port, and its connections."""
    taken: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        taken.append(writer)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        try:
            yield server.sockets[0].getsockname()[1], taken
        finally:
            for writer in taken:
                writer.transport.abort()


@pytest.mark.parametrize("reset", [True, False])
async def test_a_dead_application_is_seen_while_its_target_does_not_read(
    files: RoleFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reset: bool
) -> None:
    monkeypatch.setattr(listener, "APPLICATIONS", Patience(look=0.01, over=0.01, gone=0.05))
    async with (
        running(role(files, "allow_private = true")),
        linked(files, caplog) as proxy,
        unread_target() as (port, _),
    ):
        reply, _, writer = await socks(proxy, port)
        assert reply == 0
        application = writer.transport.get_extra_info("socket").dup()
        writer.transport.abort()
        await fill(application)
        assert (await told(files)).targets == 1
        if reset:
            set_reset_on_close(application)
        application.close()
        while (await told(files)).targets:
            await asyncio.sleep(0.01)


async def fill(sock: socket.socket) -> None:
    """Send until nobody takes more."""
    loop, more = asyncio.get_running_loop(), True
    while more:
        try:
            async with asyncio.timeout(0.3):
                await loop.sock_sendall(sock, bytes(1 << 16))
        except TimeoutError:
            more = False


@pytest.mark.parametrize("which", ["exit", "client"])
async def test_the_idle_limit_of_either_role(
    files: RoleFiles, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    limit = "[limits]\nidle_timeout = 0.2\n"
    exit = role(files, "allow_private = true", limit if which == "exit" else "")
    async with running(exit), echo_target() as target:
        config = files.client(tables=limit if which == "client" else "", port=await port_of(files))
        async with running(partial(run_client, config, lambda: config)):
            await until(lambda: "link up: " in caplog.text)
            status = await files.status("client")
            assert isinstance(status, ClientStatus)
            reply, reader, writer = await socks(int(status.listen[0].rpartition(":")[2]), target)
            assert reply == 0
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()


# --- metrics ---


@pytest.mark.parametrize("token", [None, "0123456789abcdef"])
async def test_metrics_need_the_token_of_the_file(
    files: RoleFiles, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    bound: list[Destination] = []

    class Metrics(web_server.MetricsServer):
        async def start(self) -> Destination:
            bound.append(await super().start())
            return bound[-1]

    monkeypatch.setattr(web_server, "MetricsServer", Metrics)
    text = 'metrics = "127.0.0.1:0"'
    if token is not None:
        (files.directory / "token").write_text(f"{token}\n")
        (files.directory / "token").chmod(0o600)
        text = 'metrics = "0.0.0.0:0"\nmetrics_token_file = "token"'

    async def get(authorization: str = "") -> bytes:
        port = bound[0].port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n{authorization}\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
        return answer

    async with running(role(files, text)):
        if token is None:
            assert b" 200 OK\r\n" in await get()
        else:
            assert b" 401 " in await get()
            assert b" 401 " in await get("Authorization: Bearer 0123456789abcdeg\r\n")
            assert b"cryprq" in (found := await get(f"Authorization: Bearer {token}\r\n"))
            assert b" 200 OK\r\n" in found
    with pytest.raises(ConnectionRefusedError):
        await get()


# --- the end ---


class Stopping(NamedTuple):
    """An exit that is asked to stop while a client has a stream to the echo target."""

    exit: RunningRole
    proxy: int
    target: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


PRIVATE = "allow_private = true\nshutdown_grace = 3600\n"


@asynccontextmanager
async def stopping(
    files: RoleFiles, caplog: pytest.LogCaptureFixture, exit_role: Role | None = None
) -> AsyncIterator[Stopping]:
    exit = RunningRole(exit_role or role(files, PRIVATE))
    await exit.started()
    async with echo_target() as target, linked(files, caplog) as proxy:
        reply, reader, writer = await socks(proxy, target)
        assert reply == 0
        exit.stop.asked.set()
        await until(lambda: "stopping: open streams have 3600 s to end" in caplog.text)
        assert not exit.task.done()
        yield Stopping(exit, proxy, target, reader, writer)


async def test_open_streams_have_their_time(files: RoleFiles, caplog: pytest.LogCaptureFixture) -> None:
    async with stopping(files, caplog) as (exit, _, _, reader, writer):
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        assert not exit.task.done()
        writer.close()
        await exit.task
    assert "stopping at once" not in caplog.text


async def test_what_one_exit_has_alone_is_released_while_streams_go_on(
    files: RoleFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """So the next one starts beside it, and the client's new streams go there."""
    starts, released = Starts(), asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as other:
        listen, metrics = free.getsockname()[1], other.getsockname()[1]
    config = files.exit(f'listen = "127.0.0.1:{listen}"\nmetrics = "127.0.0.1:{metrics}"\n{PRIVATE}')

    def start(stop: Stop) -> Coroutine[Any, Any, None]:
        return run_exit(config, lambda: config, stop, starts, files.authorized, released=released.set)

    async with stopping(files, caplog, start) as (exit, proxy, target, reader, writer):
        await released.wait()
        assert starts.made[0].socket_at_release is False, "the control socket was gone before the network"
        async with running(start):
            reply, new_reader, new_writer = await socks(proxy, target)
            assert reply == 0
            new_writer.write(b"new")
            assert await new_reader.readexactly(3) == b"new"
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
            assert len((await told(files)).sessions) == 1
            assert not exit.task.done()
            writer.close()
            await exit.task
            assert "stopping at once" not in caplog.text
            new_writer.close()


async def test_what_cannot_be_undone_ends_no_stream(
    files: RoleFiles, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(network: FakeNetwork) -> None:
        raise CryprqError("the table stays")

    monkeypatch.setattr(FakeNetwork, "release", fail)
    async with stopping(files, caplog, role(files, PRIVATE, starts=Starts())) as (
        exit,
        _,
        _,
        reader,
        writer,
    ):
        await until(lambda: "the table stays" in caplog.text)
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        writer.close()
        with pytest.raises(CryprqError, match="the table stays"):
            await exit.task


@pytest.mark.parametrize("replaced", [True, False])
async def test_the_network_is_given_up_first_and_undone_last(
    files: RoleFiles, caplog: pytest.LogCaptureFixture, replaced: bool
) -> None:
    """Only an exit whose successor is started at once waits for it."""
    starts, config, told = Starts(), files.exit(PRIVATE), asyncio.Event()

    def begin(stop: Stop) -> Coroutine[Any, Any, None]:
        released = told.set if replaced else nobody_waits
        return run_exit(config, lambda: config, stop, starts, released=released)

    async with stopping(files, caplog, begin) as (exit, *_, writer):
        await until(lambda: "released: another exit can start here" in caplog.text)
        assert starts.made[0].ends == ["released"]
        writer.close()
        await exit.task
    ends = starts.made[0].ends
    assert ends[-1] == "closed" and ("succeeded" in ends) == replaced


async def test_a_second_signal_ends_open_streams(files: RoleFiles, caplog: pytest.LogCaptureFixture) -> None:
    async with stopping(files, caplog) as (exit, *_, writer):
        exit.stop.urgent.set()
        await exit.task
        assert "stopping at once" in caplog.text
        assert not os.path.lexists(files.directory / "exit.sock")
        writer.close()


# --- an invite that is used while the list is read again ---


class OnDisk:
    """The list of peers as a file, and an invite for Alice. `gate`: a reading goes on when it is set, `reading`: one
    has the list already."""

    def __init__(self, config: ExitConfig) -> None:
        self.listed = {BOB.peer_id: "bob"}
        self.gate = threading.Event()
        self.reading = threading.Event()
        self._config = config

    async def redeem(self, secret: bytes, peer: PeerId) -> tuple[Redeemed, str]:
        self.listed[peer] = "alice"
        await asyncio.sleep(0)
        return Redeemed.NOW, "alice"

    def close(self) -> None:
        """Nothing is open."""

    def read(self) -> LoadedExit:
        found = dict(self.listed)
        self.reading.set()
        assert self.gate.wait(20)
        return LoadedExit(self._config, found, None)


@asynccontextmanager
async def inviting(files: RoleFiles) -> AsyncIterator[tuple[OnDisk, Exit, RunningExit]]:
    config = files.exit()
    disk = OnDisk(config)
    async with open_exit(BOB, invites=disk) as exit:
        yield (
            disk,
            exit,
            RunningExit(config, exit, dict(disk.listed), None, disk.read, Notifier(), RecentErrors()),
        )


async def test_a_peer_whose_invite_is_used_during_a_reload_stays_in(files: RoleFiles) -> None:
    """The list was read before the peer was on it, and putting it in force ended the peer's new session."""
    async with inviting(files) as (disk, exit, running):
        reload = spawn(running.reloader.reload(), "reload")
        await asyncio.to_thread(disk.reading.wait)
        redeem = spawn(exit._redeem(bytes(16), ALICE.peer_id), "invite")
        await settle()
        disk.gate.set()
        await asyncio.gather(reload, redeem)
        assert (await exit.status()).authorized == 2
        await Visit(exit, ALICE).admit()


async def test_a_reload_waits_for_an_invite_that_is_being_used(files: RoleFiles) -> None:
    """A peer that is revoked meanwhile does not come back: the list is read afterwards."""
    async with inviting(files) as (disk, exit, running):
        disk.gate.set()
        redeem = spawn(exit._redeem(bytes(16), ALICE.peer_id), "invite")
        await until(lambda: ALICE.peer_id in disk.listed)
        del disk.listed[ALICE.peer_id]
        await running.reloader.reload()
        await redeem
        assert (await exit.status()).authorized == 1


async def test_a_start_that_is_refused_leaves_no_keys(files: RoleFiles) -> None:
    def started_by(config: ExitConfig) -> Role:
        return lambda stop: run_exit(config, lambda: config, stop)

    config = msgspec.structs.replace(files.exit(), identity=files.directory / "new" / "identity")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = (Destination("127.0.0.1", taken.getsockname()[1]),)
        with pytest.raises(CryprqError, match="in use by another program"):
            await RunningRole(started_by(msgspec.structs.replace(config, listen=listen))).task
    assert not config.identity.exists()
    exit = RunningRole(started_by(config))
    await exit.started()
    assert config.identity.exists()
    await exit.end()
