from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy import __version__
from cryprq_proxy.address import Destination
from cryprq_proxy.base import files
from cryprq_proxy.errors import ConfigError, CryprqError
from cryprq_proxy.process import control
from cryprq_proxy.process.actions import Actions, commands
from cryprq_proxy.process.control import (
    ControlRequest,
    ControlServer,
    NotRunning,
    RequestError,
    parse_request,
    query,
    query_status,
)
from cryprq_proxy.process.recent_errors import RecentErrors
from cryprq_proxy.service.startup import ProcessStatus
from cryprq_proxy.service.tun_mode import NO_TUN, Confirmation
from cryprq_proxy.status import AskedExit, ClientStatus, SessionStatus
from tests.support.background import PATIENCE
from tests.support.descriptors import no_free_descriptor
from tests.support.turn_count import counted_turns

STATUS = ClientStatus(link="up", uptime=2.5, session=SessionStatus(streams=3, epoch=1))


async def told() -> ClientStatus:
    return STATUS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "client.sock"


@pytest.fixture
async def server(path: Path) -> AsyncIterator[ControlServer]:
    server = ControlServer(path, told)
    await server.start()
    yield server
    await server.stop()


async def ask(path: Path, line: bytes) -> object:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.endswith(b"\n")
    return json.loads(answer)


async def test_status_crosses_the_socket(server: ControlServer) -> None:
    assert await asyncio.to_thread(query_status, server.path) == STATUS


async def test_a_place_is_free_unless_somebody_answers(server: ControlServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another cryprq-proxy is running"):
        control.check_free(server.path)
    await server.stop()
    control.check_free(server.path)
    control.check_free(tmp_path / "missing" / "client.sock")


async def test_only_the_owner_may_connect(server: ControlServer) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.path.parent.stat().st_mode) == 0o700


async def test_an_unknown_command_gets_an_error(server: ControlServer) -> None:
    assert await ask(server.path, b'{"command":"dance"}\n') == {
        "error": "unknown command 'dance'; known: status"
    }
    with pytest.raises(CryprqError, match="unknown command 'dance'"):
        await asyncio.to_thread(query, server.path, "dance")


@pytest.mark.parametrize(
    "line", [b"\n", b"status\n", b"{}\n", b'{"command":1}\n', b"\xff\xfe\n", b'{"command":"s']
)
async def test_what_is_no_request_gets_an_error_or_nothing(server: ControlServer, line: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(server.path)
    writer.write(line)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    assert not answer or list(json.loads(answer)) == ["error"]


async def test_a_request_is_bounded(server: ControlServer) -> None:
    answer = await ask(server.path, b"x" * (control.MAX_REQUEST + 1))
    assert answer == {"error": "a request has at most 4096 bytes"}


@pytest.mark.parametrize("length", [control.MAX_ARGUMENT + 1, 300_000])
async def test_a_value_that_is_too_long_is_named(server: ControlServer, length: int) -> None:
    """And neither JSON nor the bytes of a request, which the person has not written."""
    with pytest.raises(CryprqError, match="a name or another value has at most 1024 characters"):
        await asyncio.to_thread(query, server.path, "exit", argument="x" * length)
    request = json.dumps({"command": "exit", "argument": "x" * (control.MAX_ARGUMENT + 1)}).encode() + b"\n"
    assert await ask(server.path, request) == {"error": "a name or another value has at most 1024 characters"}


async def test_a_slow_request_times_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "TIMEOUT", 0.01)
    server = ControlServer(path, told)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(path)
    with pytest.raises(ConnectionResetError):
        # A reset shows as such, or as an end without a byte.
        if not await reader.read():
            raise ConnectionResetError
    writer.close()
    await server.stop()


async def test_connections_are_bounded(server: ControlServer) -> None:
    idle = [await asyncio.open_unix_connection(server.path) for _ in range(control.MAX_CONNECTIONS)]
    while len(server._connections) < control.MAX_CONNECTIONS:
        await asyncio.sleep(0)
    waiting = [asyncio.create_task(asyncio.to_thread(query_status, server.path)) for _ in range(3)]
    assert server._acceptor is not None and not server._acceptor._reading
    for _, writer in idle:
        writer.close()
    assert await asyncio.gather(*waiting) == [STATUS] * 3


@pytest.mark.parametrize("early", [0, 1, control.MAX_CONNECTIONS])
async def test_silent_callers_give_place_to_those_that_wait(
    path: Path, monkeypatch: pytest.MonkeyPatch, early: int
) -> None:
    """Those that came while there was room, those that came all at once, and those that wait themselves."""
    monkeypatch.setattr(control, "TIMEOUT", 100 * PATIENCE)
    monkeypatch.setattr(control, "CROWDED_TIMEOUT", 0.01)
    server = ControlServer(path, told)
    await server.start()
    with ExitStack() as stack:
        for number in range(1, 2 * control.MAX_CONNECTIONS + 1):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            silent.connect(str(path))
            while len(server._requests) < min(number, early):
                await asyncio.sleep(0)
        assert await asyncio.to_thread(query_status, path, PATIENCE) == STATUS
    await server.stop()


async def test_a_silent_caller_may_take_its_time_while_there_is_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CROWDED_TIMEOUT", 0.0)
    server = ControlServer(path, told)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(path)
    assert await asyncio.to_thread(query_status, path) == STATUS
    writer.write(b'{"command": "status"}\n')
    assert (await reader.read()).startswith(b'{"ok":')
    writer.close()
    await server.stop()


async def test_all_of_many_callers_are_answered(server: ControlServer) -> None:
    with ThreadPoolExecutor(64) as callers:
        asked = [asyncio.wrap_future(callers.submit(query_status, server.path)) for _ in range(256)]
        assert await asyncio.gather(*asked) == [STATUS] * 256


async def test_who_asks_at_the_same_moment_shares_an_answer(path: Path) -> None:
    asked, ready = 0, asyncio.Event()

    async def slow() -> ClientStatus:
        nonlocal asked
        asked += 1
        await ready.wait()
        return ClientStatus(uptime=float(asked))

    server = ControlServer(path, slow)
    request = b'{"command":"status"}\n'
    first = [asyncio.create_task(server._answer(request)) for _ in range(5)]
    while not asked:
        await asyncio.sleep(0)
    # What the first one reads may be older than these questions.
    later = [asyncio.create_task(server._answer(request)) for _ in range(5)]
    await asyncio.sleep(0)
    ready.set()
    uptimes = [json.loads(answer)["ok"]["uptime"] for answer in await asyncio.gather(*first, *later)]
    assert uptimes == [1.0] * 5 + [2.0] * 5


async def test_one_request_is_carried_out_in_a_turn_of_the_loop(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of a thousand connections takes milliseconds, and sixteen may ask for it at once."""
    at: list[int] = []
    sent: list[int] = []
    send = ControlServer._send

    async def note(self: ControlServer, sock: socket.socket, answer: bytes) -> None:
        sent.append(turns.now)
        await send(self, sock, answer)

    monkeypatch.setattr(ControlServer, "_send", note)

    async def streams(_: str) -> dict[str, object]:
        at.append(turns.now)
        return {}

    server = ControlServer(path, told, {"streams": streams})
    await server.start()
    with counted_turns() as turns:
        await asyncio.gather(*(ask(path, b'{"command": "streams"}\n') for _ in range(12)))
        assert len(set(at)) == len(at) == 12
        await asyncio.gather(*(ask(path, b'{"command": "status"}\n') for _ in range(12)))
    await server.stop()
    assert len(set(sent)) == len(sent) == 24


async def test_a_caller_waits_while_the_queue_is_full(path: Path) -> None:
    """It is not told that nothing runs."""
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        asked = asyncio.create_task(asyncio.to_thread(query, path, timeout=PATIENCE))
        await asyncio.sleep(0)

        def serve() -> None:
            busy.accept()[0].close()
            with busy.accept()[0] as connection:
                connection.recv(control.MAX_REQUEST)
                connection.sendall(b'{"ok":{}}\n')

        await asyncio.to_thread(serve)
        assert await asked == {}


def test_a_process_that_does_not_answer_is_not_called_dead(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(path))
        stuck.listen()
        with pytest.raises(NotRunning, match=f"the cryprq-proxy at {path} did not answer within 0.01 s"):
            query(path, timeout=0.01)


def test_an_answer_that_trickles_has_an_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of the service's user could hold a command of root for ever."""
    monkeypatch.setattr(control, "WHOLE", 0.2)
    path.parent.mkdir()
    gone = threading.Event()

    def trickle(listener: socket.socket) -> None:
        with listener.accept()[0] as connection, contextlib.suppress(OSError):
            while not gone.wait(0.01):
                connection.send(b" ")

    with socket.socket(socket.AF_UNIX) as slow, ThreadPoolExecutor(1) as threads:
        slow.bind(str(path))
        slow.listen()
        serving = threads.submit(trickle, slow)
        asking = threading.Timer(PATIENCE, gone.set)
        asking.start()
        with pytest.raises(NotRunning, match="did not answer within"):
            query(path, timeout=0.1)
        asking.cancel()
        gone.set()
        serving.result(PATIENCE)


async def test_a_long_answer_arrives_and_one_beyond_the_bound_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = ClientStatus(last_error="x" * (5 << 20))

    async def tell() -> ClientStatus:
        return long

    server = ControlServer(path, tell)
    await server.start()
    assert await asyncio.to_thread(query_status, path) == long
    monkeypatch.setattr(control, "MAX_ANSWER", 4 << 20)
    with pytest.raises(CryprqError, match="the answer has 5 MiB, and 4 is the most"):
        await asyncio.to_thread(query, path)
    await server.stop()


async def test_it_answers_without_a_free_descriptor(server: ControlServer) -> None:
    """One after the other, and the spare descriptor is there again for the next one."""
    callers = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    with no_free_descriptor(), contextlib.ExitStack() as stack:
        for caller in callers:
            stack.enter_context(caller)
            caller.setblocking(False)
            caller.connect(str(server.path))
            caller.send(b'{"command":"status"}\n')
        loop = asyncio.get_running_loop()
        answers = [await asyncio.wait_for(loop.sock_recv(caller, 65_536), PATIENCE) for caller in callers]
    assert all(b'"ok"' in answer for answer in answers)


async def test_a_failing_status_leaves_the_server_alive(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> ClientStatus:
        raise ZeroDivisionError

    server = ControlServer(path, fail)
    await server.start()
    for _ in range(2):
        with pytest.raises(CryprqError, match="the command status failed"):
            await asyncio.to_thread(query, path)
    await server.stop()
    assert len(caplog.records) == 2


async def test_the_socket_is_gone_after_stop(server: ControlServer) -> None:
    _, writer = await asyncio.open_unix_connection(server.path)
    while not server._connections:
        await asyncio.sleep(0)
    await server.stop()
    await server.stop()
    assert not server.path.exists()
    writer.close()
    with pytest.raises(CryprqError, match=f"no cryprq-proxy is running .no answer at {server.path}"):
        query(server.path)


async def test_a_second_server_is_refused(server: ControlServer) -> None:
    with pytest.raises(ConfigError, match="another cryprq-proxy is running"):
        await ControlServer(server.path, told).start()
    assert await asyncio.to_thread(query_status, server.path) == STATUS


async def test_a_stale_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
    with pytest.raises(CryprqError, match="no cryprq-proxy is running"):
        query(path)
    server = ControlServer(path, told)
    await server.start()
    assert await asyncio.to_thread(query_status, path) == STATUS
    await server.stop()


async def test_a_server_with_a_full_backlog_counts_as_alive(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(ConfigError, match="another cryprq-proxy is running"):
            await ControlServer(path, told).start()


async def test_another_file_is_never_removed(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket"):
        await ControlServer(path, told).start()
    assert path.read_text() == "precious"


async def test_a_place_that_cannot_be_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long"):
        await ControlServer(tmp_path / ("x" * 120), told).start()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        await ControlServer(tmp_path / "file" / "client.sock", told).start()


async def test_two_that_start_together_wait_for_each_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    first = files.locked_directory(path.parent)
    first.__enter__()
    monkeypatch.setattr("cryprq_proxy.base.files.time.sleep", lambda _: first.__exit__(None, None, None))
    second = ControlServer(path, told)
    await second.start()
    await second.stop()


async def test_two_that_start_together_do_not_replace_each_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.0)
    with files.locked_directory(path.parent), pytest.raises(ConfigError, match="locked"):
        await ControlServer(path, told).start()


@pytest.mark.parametrize("answer", [b"", b"{", b"[]\n", b'{"ok":1}\n', b"\xff\n", b"[" * 100_000 + b"\n"])
async def test_a_strange_answer_is_one_sentence(tmp_path: Path, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    path = tmp_path / "odd.sock"
    async with await asyncio.start_unix_server(serve, path):
        with pytest.raises(CryprqError):
            await asyncio.to_thread(query, path)


def test_nobody_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CryprqError, match="no cryprq-proxy is running"):
        query(tmp_path / "nowhere.sock")


@given(st.binary() | st.dictionaries(st.text(), st.text()).map(json.dumps).map(str.encode))
def test_only_request_errors_leave_the_parser(line: bytes) -> None:
    with contextlib.suppress(RequestError):
        assert isinstance(parse_request(line), ControlRequest)


def test_a_request_is_read() -> None:
    assert parse_request(b'{"command": "status"}\n') == ControlRequest("status")
    assert parse_request(b'{"command": "pause", "argument": "30"}\n') == ControlRequest("pause", "30")


# --- commands ---


async def test_actions_are_done_and_refused(path: Path) -> None:
    done: list[str] = []

    async def pause(argument: str) -> dict[str, object]:
        if argument == "long":
            raise CryprqError("a pause lasts 100 seconds at most")
        done.append(argument)
        return {"paused": argument}

    server = ControlServer(path, told, {"pause": pause})
    await server.start()
    assert await asyncio.to_thread(query, path, "pause", argument="30") == {"paused": "30"}
    assert await asyncio.to_thread(query_status, path) == STATUS
    with pytest.raises(CryprqError, match="answers: a pause lasts 100 seconds at most"):
        await asyncio.to_thread(query, path, "pause", argument="long")
    with pytest.raises(CryprqError, match="unknown command 'confirm'; known: pause, status"):
        await asyncio.to_thread(query, path, "confirm")
    for line in (
        b'{"command":"pause","argument":1}\n',
        b'{"command":"pause","argument":"%b"}\n' % (b"1" * 1025),
    ):
        answer = await ask(path, line)
        assert isinstance(answer, dict) and list(answer) == ["error"]
    assert done == ["30"]
    await server.stop()


class FakeActions(Actions):
    """Writes down what was asked for."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def close(self, id: str) -> bool:
        self.asked.append(id)
        return id == "home/1"

    def choose_exit(self, name: str) -> None:
        self.asked.append(name)

    async def report(self, exit: str = "") -> AskedExit:
        return AskedExit(exit=exit or "home")

    async def pause(self, seconds: int) -> None:
        self.asked.append(seconds)

    def confirm(self) -> None:
        self.asked.append("confirm")


async def test_each_command_does_its_action() -> None:
    actions = FakeActions()
    known = commands(actions)
    assert await known["pause"]("5") == {"paused": 5}
    assert await known["confirm"]("") == {"confirmed": True}
    assert await known["report"]("") == AskedExit(exit="home")
    assert await known["report"]("far") == AskedExit(exit="far")
    assert await known["exit"]("auto") == {"exit": "auto"}
    assert await known["close"]("home/1") == {"closed": "home/1"}
    with pytest.raises(CryprqError, match=r"there is no open connection 'home/2'"):
        await known["close"]("home/2")
    assert actions.asked == [5, "confirm", "auto", "home/1", "home/2"]
    for wrong in ("", "0", "3601", "-1", "five", "\u0665", "9" * 1000, "9" * 5000):
        with pytest.raises(CryprqError, match="a pause has 1 to 3600 seconds"):
            await known["pause"](wrong)
    assert len(actions.asked) == 5


async def test_without_system_wide_mode_there_is_nothing_to_pause_or_confirm() -> None:
    nothing = "it does not run with --tun, so there is nothing to pause or confirm"
    with pytest.raises(CryprqError, match=nothing):
        await NO_TUN.pause(5)
    with pytest.raises(CryprqError, match=nothing):
        Confirmation(NO_TUN, 0).give()


def test_a_status_has_what_the_process_knows() -> None:
    with RecentErrors() as recent:
        process = ProcessStatus(recent)
        process.listen = (Destination("127.0.0.1", 1080),)
        logging.getLogger("test.report").warning("the exit is gone")
        status = process.add_to(STATUS)
    assert status.session == STATUS.session
    assert (status.pid, status.listen, status.version) == (os.getpid(), ("127.0.0.1:1080",), __version__)
    assert [error.text for error in status.errors] == ["the exit is gone"]
    assert status.logged == {"warning": 1, "error": 0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories away")
async def test_root_makes_no_socket_where_another_user_decides(tmp_path: Path) -> None:
    """That user could exchange the directory, and root would make or remove a socket elsewhere."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 4_321, 4_321)
    below = theirs / "cryprq" / "client.sock"
    with pytest.raises(ConfigError, match=r"lies where the user 4321 decides"):
        control.check_free(below)
    with pytest.raises(ConfigError, match=r"lies where the user 4321 decides"):
        await ControlServer(below, told).start()
    assert not below.parent.exists()
    server = ControlServer(theirs / "client.sock", told)
    await server.start()
    await server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories away")
async def test_root_says_nothing_where_a_link_or_another_user_leads_it(
    server: ControlServer, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 4_321, 4_321)
    (theirs / "link.sock").symlink_to(server.path)
    (theirs / "below").symlink_to(server.path.parent)
    os.lchown(theirs / "below", 4_321, 4_321)
    with pytest.raises(NotRunning, match="no cryprq-proxy is running"):
        await asyncio.to_thread(query, theirs / "link.sock")
    os.link(server.path, theirs / "second.sock")
    with pytest.raises(NotRunning, match="no cryprq-proxy is running"):
        await asyncio.to_thread(query, theirs / "second.sock")
    with pytest.raises(ConfigError, match=r"lies where the user 4321 decides"):
        await asyncio.to_thread(query, theirs / "below" / server.path.name)
    (theirs / "second.sock").unlink()
    assert (await asyncio.to_thread(query_status, server.path)) == STATUS
