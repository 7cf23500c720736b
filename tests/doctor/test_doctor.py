"""`cryprq-proxy doctor`: each thing that can be wrong is wrong once here, with the real part where there is one."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import socketserver
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base import leftovers as marks
from cryprq_proxy.carriers.dial.endpoint import parse_endpoint
from cryprq_proxy.cli import run_command
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.doctor import link, reach, report
from cryprq_proxy.doctor import order as lists
from cryprq_proxy.doctor.checks import (
    Check,
    CheckState,
    CheckVerdict,
    Context,
    Finding,
    examine,
    fail,
    ok,
    skip,
    warn,
)
from cryprq_proxy.doctor.machine import desktop, leftovers, pac, tun, variables
from cryprq_proxy.doctor.report import lines, summary
from cryprq_proxy.doctor.start import client_configuration, clock
from cryprq_proxy.errors import CarrierError, CloseReason, ConfigError, PeerError
from cryprq_proxy.status import (
    ClientStatus,
    ExitStatus,
    KnownExit,
    LaneStatus,
    PacketLinkStatus,
    RepairStatus,
    TunNetworkStatus,
    TunStatus,
)
from tests.support.pairs import Setup, new_identity
from tests.support.processes import Program, call
from tests.support.programs import free_port

# --- the order of checks ---


def answering(verdict: CheckVerdict | Exception) -> Callable[[Context], object]:
    async def check(_: Context) -> CheckVerdict:
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    return check


async def states(*checks: tuple[str, CheckVerdict | Exception, tuple[str, ...]]) -> dict[str, Finding]:
    made = [Check(name, answering(verdict), needs) for name, verdict, needs in checks]  # type: ignore[arg-type]
    return {finding.name: finding for finding in await examine(made, Context())}


async def test_what_needs_a_failed_check_is_skipped_and_says_so() -> None:
    found = await states(
        ("a", ok("good"), ()),
        ("b", warn("so so", "try"), ("a",)),
        ("c", fail("bad", "mend"), ("b",)),
        ("d", ok("good"), ("c",)),
        ("e", ok("good"), ("a", "d")),
        ("f", skip("not here"), ("a",)),
        ("g", ok("good"), ("f",)),
        ("h", ok("good"), ("b",)),
    )
    assert {name: str(finding.state) for name, finding in found.items()} == {
        "a": "ok", "b": "warn", "c": "fail", "d": "skip", "e": "skip", "f": "skip", "g": "skip", "h": "ok",
    }  # fmt: skip
    assert found["d"].text == "not tried: it needs 'c' to be in order first"
    assert found["e"].text == "not tried: it needs 'd' to be in order first"


async def test_an_error_is_a_finding_and_carries_no_control_characters() -> None:
    found = await states(
        ("a", ConfigError("bad \x1b[31m line\nhere"), ()),
        ("b", PermissionError(13, "Permission denied", "/x"), ()),
        ("c", fail("\x07", "\x9b"), ()),
    )
    assert found["a"].text == r"bad \x1b[31m line\nhere"
    assert found["b"].text == "permission denied: /x"
    assert (found["c"].text, found["c"].remedy) == (r"\x07", r"\x9b")


async def test_what_was_opened_is_closed_also_after_a_bug() -> None:
    context, closed = Context(), []

    async def close(name: str) -> None:
        closed.append(name)

    context.closing += [lambda: close("first"), lambda: close("second")]
    with pytest.raises(ZeroDivisionError):
        await examine([Check("a", answering(ZeroDivisionError()))], context)  # type: ignore[arg-type]
    assert closed == ["second", "first"]


@pytest.mark.parametrize("checks", [lists.CLIENT, lists.EXIT])
def test_a_check_needs_only_what_stands_before_it(checks: tuple[Check, ...]) -> None:
    for place, check in enumerate(checks):
        assert set(check.needs) <= {before.name for before in checks[:place]}
        assert len(check.name) < report._NAME, "it ends before the sentence begins"
    assert len({check.name for check in checks}) == len(checks)


def test_findings_fit_a_terminal_of_80_columns() -> None:
    finding = Finding("handshake", CheckState.FAIL, "word " * 40, "mend " * 40)
    mark, body = lines(finding, 80)
    assert max(len(mark + body[0]), *map(len, body[1:])) <= 80
    assert any("-> mend" in line for line in body)
    assert len(lines(Finding("a", CheckState.OK, "", "unneeded"), 80)[1]) == 1
    assert summary([finding]) == "1 of 1 checks failed"
    assert summary([Finding("a", CheckState.WARN, "", "")]) == "nothing is broken, 1 with a warning"


# --- a real exit ---


class Web(BaseHTTPRequestHandler):
    """A server of large files, and of one that is not there."""

    def do_GET(self) -> None:
        if self.path != "/big":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(4 << 20))
        self.end_headers()
        self.wfile.write(bytes(4 << 20))

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def own_log_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets up the process's logging; pytest's own is to stay."""
    monkeypatch.setattr("cryprq_proxy.base.log.setup", lambda *_: None)


@pytest.fixture
def pair(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def client_config(pair: Setup, more: str = "", peer_id: str = "", port: int = 0) -> Path:
    file = pair.directory / "client.toml"
    file.write_text(
        f'identity = "client.key"\nlisten = "127.0.0.1:{free_port()}"\ncontrol_socket = "c.sock"\nadmin = "off"\n'
        f'peer = "cryprq://{peer_id or pair.exit_id}@127.0.0.1:{port or pair.exit_port}"\n{more}'
    )
    return file


async def diagnose(file: Path, *, exit: bool = False, **more: object) -> dict[str, Finding]:
    context = Context(file=file, environment={}, which=lambda _: None, **more)  # type: ignore[arg-type]
    return {found.name: found for found in await examine(lists.EXIT if exit else lists.CLIENT, context)}


OUTSIDE = {"exit's routes", "exit's names", "routes", "names"}
"""What is checked of the network around the machine that runs the tests, which may have none."""


def failed(found: dict[str, Finding]) -> list[str]:
    return [
        name for name, finding in found.items() if finding.state is CheckState.FAIL and name not in OUTSIDE
    ]


def failures(said: str) -> list[str]:
    """As `failed`, of what the command has said."""
    names = re.findall(r"^FAIL (.{15})", said, re.MULTILINE)
    return [name.strip() for name in names if name.strip() not in OUTSIDE]


@pytest.mark.process
async def test_all_is_well(pair: Setup) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    url = f"http://127.0.0.1:{server.server_address[1]}/big"
    with serving(server), pair.exit() as exit:
        found = await diagnose(client_config(pair), speed=url, target=Destination(*server.server_address))
        assert failed(found) == []
        for name in (
            *("handshake", "link", "exit", "exit's clock", "target"),
            *("UDP", "round trip", "throughput", "port"),
        ):
            assert found[name].state is CheckState.OK, found[name]
        # On a busy machine the search for larger datagrams may not be over yet.
        assert found["MTU"].text.startswith("the path carries UDP payloads of "), found["MTU"]
        assert "4.0 MiB came at" in found["throughput"].text
        nobody = Destination("127.0.0.1", free_port())
        found = await diagnose(client_config(pair), speed=url.replace("big", "none"), target=nobody)
        assert failed(found) == ["target", "throughput"]
        assert found["target"].text == f"{nobody}: it was reached, and refuses the connection"
        assert "answers 404" in found["throughput"].text
        # Nothing of these visits stays at the exit: the sessions were closed, not lost.
        exit.log.wait("closed the link: normal")
        assert pair.status("exit")["sessions"] == []


@pytest.mark.process
async def test_a_running_client_is_asked_instead_of_a_link_of_our_own(pair: Setup) -> None:
    with pair.exit() as exit, pair.client() as client:
        client.log.wait("link up")
        exit.log.wait("link up")
        listening = client.log.wait(r"proxy on (127\.0\.0\.1:\d+)")[1]
        file = pair.directory / "client.toml"
        file.write_text(file.read_text().replace("127.0.0.1:0", listening))
        links = sum("link up" in line for line in exit.log.lines)
        nobody = Destination("127.0.0.1", free_port())
        found = await diagnose(file, target=nobody)
        assert failed(found) == ["target"]
        assert found["target"].text == f"{nobody}: it was reached, and refuses the connection"
        assert found["exit"].text.startswith("127.0.0.1, of version "), found["exit"]
        assert found["exit's clock"].state is CheckState.OK
        assert found["running"].text.startswith("the client has been running for")
        assert "running client" in found["handshake"].text
        assert found["port"].text == f"the running proxy listens on {listening}"
        # What the exit has logged before it answers has come when its answer to the reload has.
        exit.send(signal.SIGHUP)
        exit.log.wait("reloaded")
        assert sum("link up" in line for line in exit.log.lines) == links


@pytest.mark.process
async def test_an_unlisted_client(pair: Setup) -> None:
    (pair.directory / "authorized").write_text("")
    with pair.exit():
        found = await diagnose(client_config(pair))
    assert failed(found) == ["handshake"]
    assert "does not let this client in" in found["handshake"].text
    assert pair.client_id in found["handshake"].remedy
    assert found["link"].state is CheckState.SKIP


@pytest.mark.process
@pytest.mark.parametrize("wrong", ["id", "psk", "no psk"])
async def test_strangers_get_silence_and_doctor_says_what_that_may_mean(pair: Setup, wrong: str) -> None:
    key = pair.directory / "psk"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    other = new_identity(pair.directory / "other.key") if wrong == "id" else ""
    if wrong == "no psk":
        (pair.directory / "exit.toml").write_text("")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "write_text", _adding(Path.write_text, 'psk_file = "psk"\n'))
            exit = pair.exit()
    else:
        exit = pair.exit()
    with exit:
        found = await diagnose(
            client_config(pair, 'psk_file = "psk"\n' if wrong == "psk" else "", peer_id=other)
        )
    assert failed(found) == ["handshake"]
    text = found["handshake"].text
    assert "as an exit does with strangers" in text and "the peer id in the URL is not this exit's" in text
    assert ("differs from the exit's" in text) == (wrong == "psk")
    assert "psk_file" in found["handshake"].remedy


def _adding(plain: Callable[..., int], more: str) -> Callable[..., int]:
    """A Path.write_text that writes something more into an exit.toml."""
    return lambda path, text, *rest, **named: plain(
        path, text + more if path.name == "exit.toml" else text, *rest, **named
    )


@pytest.mark.process
async def test_something_else_listens_there(pair: Setup) -> None:
    class Mute(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mute)
    with serving(server):
        found = await diagnose(client_config(pair, port=server.server_address[1]))
    assert failed(found) == ["handshake"]
    assert "something else listens there" in found["handshake"].text


async def test_an_exit_that_says_nothing_after_its_proof(
    pair: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def proved(*_: object) -> None:
        """The exit has proved its identity."""

    async def silent(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(reach, "meet_exit", proved)
    monkeypatch.setattr(reach, "introduce", silent)
    checks = [
        check for check in lists.CLIENT if check.name in ("configuration", "identity", "reach", "handshake")
    ]
    with socket.create_server(("127.0.0.1", 0)) as exit:
        context = Context(file=client_config(pair, port=exit.getsockname()[1]))
        found = {finding.name: finding for finding in await examine(checks, context)}
    assert found["handshake"].state is CheckState.FAIL
    assert found["handshake"].text.endswith("but there is no link: it gave no answer in time")


async def test_a_pac_file_that_nobody_serves_is_told_in_words(pair: Setup) -> None:
    dead = free_port()
    file = client_config(pair, port=1)
    file.write_text(file.read_text().replace('admin = "off"', f'admin = "127.0.0.1:{dead}"'))
    context = Context(file=file, running=ClientStatus())
    await client_configuration(context)
    assert await pac(context) == warn(
        f"http://127.0.0.1:{dead}/proxy.pac does not answer: connection refused",
        "another program may have that port: see the client's log, or set another `admin`",
    )


async def test_a_pac_file_where_something_else_listens(pair: Setup) -> None:
    class Shell(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"SSH-2.0-other\r\n")

    with serving(server := socketserver.ThreadingTCPServer(("127.0.0.1", 0), Shell)):
        file = client_config(pair, port=1)
        port = server.server_address[1]
        file.write_text(file.read_text().replace('admin = "off"', f'admin = "127.0.0.1:{port}"'))
        context = Context(file=file, running=ClientStatus())
        await client_configuration(context)
        verdict = await pac(context)
    assert verdict.state is CheckState.FAIL
    assert "something else listens there" in verdict.text


@pytest.mark.process
async def test_a_dead_port(pair: Setup) -> None:
    found = await diagnose(client_config(pair, port=free_port()))
    assert failed(found) == ["reach"]
    assert "connection refused" in found["reach"].text
    assert "cryprq-proxy status" in found["reach"].remedy
    assert found["handshake"].text == "not tried: it needs 'reach' to be in order first"


async def test_one_way_of_two_is_a_warning(pair: Setup) -> None:
    with socket.create_server(("127.0.0.1", 0)) as answers:
        peer = f"cryprq://{pair.exit_id}@127.0.0.1"
        file = client_config(pair, port=1)
        text = file.read_text().replace(
            f'peer = "{peer}:1"', f'peer = ["{peer}:{free_port()}", "{peer}:{answers.getsockname()[1]}"]'
        )
        file.write_text(text)
        checks = [check for check in lists.CLIENT if check.name in ("configuration", "reach")]
        findings = await examine(checks, Context(file=file))
    assert [finding.state for finding in findings] == [CheckState.OK, CheckState.WARN]


@pytest.mark.process
async def test_a_name_that_does_not_exist(pair: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_such(name: str) -> list[str]:
        raise CarrierError(
            CloseReason.TIMED_OUT, f"the exit's name {name} could not be resolved: no such name"
        )

    monkeypatch.setattr(reach, "by_system", no_such)
    file = client_config(pair, port=1)
    file.write_text(file.read_text().replace("@127.0.0.1:", "@exit.example:"))
    found = await diagnose(file)
    assert failed(found) == ["name", "reach"]
    assert "exit.example" in found["name"].text
    assert "getent" in found["name"].remedy


async def test_behind_the_kill_switch_only_the_running_client_knows(pair: Setup) -> None:
    context = Context(file=client_config(pair, port=1))
    await examine([lists.CLIENT[1]], context)
    context.running = ClientStatus(link="down", last_error="no route", tun=TunStatus())
    verdict = await reach.reach(context)
    assert verdict.state is CheckState.FAIL
    assert "no route" in verdict.text and "cleanup" in verdict.remedy


@pytest.mark.parametrize("lockdown", [True, False])
async def test_behind_a_block_without_a_client_nothing_is_said_of_the_exit(
    lockdown: bool, pair: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block itself is a finding already."""
    monkeypatch.setattr(marks, "holder", lambda role: None)
    monkeypatch.setattr(marks, "lockdown", lambda: lockdown)
    monkeypatch.setattr(marks, "kill_switch_in", lambda left: not lockdown)
    file = client_config(pair, port=1)
    file.write_text(file.read_text().replace("@127.0.0.1:", "@exit.example:"))
    checks = [
        check for check in lists.CLIENT if check.name in ("configuration", "name", "reach", "handshake")
    ]
    found = {finding.name: finding for finding in await examine(checks, Context(file=file))}
    block = "lockdown lets" if lockdown else "the kill switch that an earlier --tun has left lets"
    for name in ("name", "reach"):
        assert found[name].state is CheckState.SKIP and block in found[name].text
    assert found["handshake"].state is CheckState.SKIP


async def test_the_identity_of_an_exit_that_is_known_is_not_to_be_made_anew(pair: Setup) -> None:
    (pair.directory / "exit.key").unlink()
    file = pair.directory / "exit.toml"
    file.write_text('identity = "exit.key"\n')
    found = await examine(lists.EXIT[1:3], Context(file=file))
    assert found[1].state is CheckState.FAIL
    assert "known by it to 1 peer in " in found[1].text and "back from a backup" in found[1].text


async def test_a_lane_that_is_not_wanted_is_not_looked_for(pair: Setup) -> None:
    context = Context(file=client_config(pair, 'carrier = "tcp"\n', port=4433))
    await examine([lists.CLIENT[1]], context)
    verdict = await link.lane(context)
    assert verdict.state is CheckState.SKIP and 'carrier = "tcp"' in verdict.text


async def test_the_mtu_without_a_lane_is_that_of_the_route(pair: Setup) -> None:
    context = Context(file=client_config(pair, port=4433))
    await examine([lists.CLIENT[1]], context)
    context.running = ClientStatus(link="up", packets=PacketLinkStatus(lane=LaneStatus(up=False)))
    verdict = await link.mtu(context)
    assert verdict.state is CheckState.OK
    assert f"MTU of {link.route_mtu('127.0.0.1', 4433)} bytes" in verdict.text
    context.running = ClientStatus(link="up", packets=PacketLinkStatus(lane=LaneStatus(up=True, size=1100)))
    assert (await link.mtu(context)).state is CheckState.WARN


async def test_the_first_size_is_not_the_result_of_the_search(
    pair: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every search begins with a size that would be a fault of the path."""

    def lane(*, searching: bool, size: int) -> PacketLinkStatus:
        return PacketLinkStatus(lane=LaneStatus(up=True, size=size, searching=searching))

    context = Context(file=client_config(pair, port=4433))
    await examine([lists.CLIENT[1]], context)
    context.running = ClientStatus(link="up", packets=lane(searching=True, size=1200))
    verdict = await link.mtu(context)
    assert verdict.state is CheckState.OK
    assert "still runs: 1200 bytes pass so far" in verdict.text

    class Link:
        """As client.Client: its search ends after that many looks."""

        def __init__(self, looks: float) -> None:
            self.left = looks

        def status(self) -> ClientStatus:
            self.left -= 1
            return ClientStatus(packets=lane(searching=self.left > 0, size=1200 if self.left > 0 else 1452))

    context.link = Link(3)  # type: ignore[assignment]
    assert "carries UDP payloads of 1452 bytes" in (await link.mtu(context)).text
    monkeypatch.setattr(link, "SEARCH_SECONDS", 0.0)
    context.link = Link(math.inf)  # type: ignore[assignment]
    assert "still runs" in (await link.mtu(context)).text


async def test_an_exit_that_is_not_well_is_named(pair: Setup) -> None:
    exits = KnownExit(name="home", last_error="refused"), KnownExit(name="work", healthy=True)
    context = Context(file=client_config(pair, port=1))
    context.running = ClientStatus(link="up", exits=exits)
    verdict = await reach.reach(context)
    assert verdict.state is CheckState.WARN
    assert verdict.text == "the exit home has a fault: refused"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (CloseReason.NOT_AUTHORIZED, "does not let this client in"),
        (CloseReason.LIMIT, "too many sessions"),
        (CloseReason.SHUTTING_DOWN, "refuses: the exit closed the link"),
    ],
)
def test_refusals(reason: CloseReason, words: str) -> None:
    endpoint = parse_endpoint("tcp", "exit.example:4433")
    verdict = reach._refused(PeerError(reason, "the exit closed the link"), endpoint, PeerId(bytes(32)))
    assert verdict.state is CheckState.FAIL
    assert words in verdict.text and verdict.remedy
    if reason is CloseReason.NOT_AUTHORIZED:
        assert verdict.remedy.endswith(
            f"or at the exit, run: cryprq-proxy peers add {PeerId(bytes(32))} NAME"
        )


# --- configuration, identity, clock ---


async def test_a_broken_configuration_stops_nearly_all(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text('peer = "nonsense"')
    found = await diagnose(file)
    assert failed(found) == ["configuration"]
    assert found["configuration"].remedy.startswith(f"change {file}")
    assert {name for name, finding in found.items() if finding.state is not CheckState.SKIP} <= {
        "leftovers",
        "configuration",
        "clock",
        "algorithms",
    }


@pytest.mark.process
@pytest.mark.parametrize(
    ("spoil", "text", "remedy"),
    [
        (lambda key: key.unlink(), "there are no keys", "keygen"),
        (lambda key: key.chmod(0o644), "others can read", "chmod 600"),
        (lambda key: key.write_bytes(b"x"), "", "restore"),
    ],
)
async def test_identity(pair: Setup, spoil: Callable[[Path], object], text: str, remedy: str) -> None:
    key = pair.directory / "client.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    spoil(key)
    found = await diagnose(client_config(pair, port=free_port()))
    assert found["identity"].state is CheckState.FAIL
    assert text in found["identity"].text and remedy in found["identity"].remedy
    assert found["handshake"].state is CheckState.SKIP


@pytest.mark.parametrize(
    ("now", "state"), [(0.0, CheckState.FAIL), (5e9, CheckState.FAIL), (1_790_000_000.0, CheckState.OK)]
)
async def test_clock(now: float, state: CheckState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryprq_proxy.doctor.start.clock_is_kept", lambda: True)
    assert (await clock(Context(now=lambda: now))).state is state


@pytest.mark.parametrize(
    ("kept", "state", "end"),
    [
        (True, CheckState.OK, ", and is kept in step"),
        (False, CheckState.WARN, ", and nothing keeps it in step"),
        (None, CheckState.OK, " UTC"),
    ],
)
async def test_whether_the_clock_is_kept_in_step(
    kept: bool | None, state: CheckState, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryprq_proxy.doctor.start.clock_is_kept", lambda: kept)
    verdict = await clock(Context(now=lambda: 1_790_000_000.0))
    assert verdict.state is state and verdict.text.endswith(end)


@pytest.mark.process
async def test_broken_lines_of_a_list_are_a_warning(pair: Setup) -> None:
    (pair.directory / "ads.txt").write_text("ads.example\nno/thing\n")
    file = client_config(pair, '[[rule]]\nto = "block"\nlists = ["ads.txt"]\n', port=free_port())
    found = await diagnose(file)
    assert found["rules"].state is CheckState.WARN
    assert "ads.txt, line 2" in found["rules"].text
    (pair.directory / "ads.txt").unlink()
    assert (await diagnose(file))["rules"].state is CheckState.FAIL


# --- the machine ---


async def with_client(pair: Setup, check: Callable[[Context], object], **more: object) -> CheckVerdict:
    context = Context(file=client_config(pair, port=1), **more)  # type: ignore[arg-type]
    await examine([lists.CLIENT[1]], context)
    verdict = await check(context)  # type: ignore[misc]
    assert isinstance(verdict, CheckVerdict)
    return verdict


@pytest.mark.process
async def test_a_port_that_another_program_has(pair: Setup) -> None:
    file = client_config(pair, port=free_port())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = file.read_text().splitlines()
        file.write_text(
            "\n".join(f'listen = "127.0.0.1:{port}"' if "listen" in line else line for line in text)
        )
        found = await diagnose(file)
    assert "port" in failed(found)
    assert f"sport = :{port}" in found["port"].remedy


@pytest.mark.parametrize(
    ("value", "state", "words"),
    [
        (None, CheckState.OK, "no variable"),
        ("http://127.0.0.1:{dead}", CheckState.FAIL, "nothing answers"),
        ("http://127.0.0.1:{other}", CheckState.WARN, "not this proxy"),
        ("socks5h://user:secret@localhost:{ours}", CheckState.OK, "name this proxy"),
        ("127.0.0.1:{ours}", CheckState.OK, "name this proxy"),
        ("http://[::1", CheckState.FAIL, "no address"),
        ("http://127.0.0.1:99999", CheckState.FAIL, "no address"),
    ],
)
async def test_variables(pair: Setup, value: str | None, state: CheckState, words: str) -> None:
    context = Context(file=client_config(pair, port=1))
    await examine([lists.CLIENT[1]], context)
    assert context.client is not None
    ours = context.client.listen.port
    with (
        socket.create_server(("127.0.0.1", ours)),
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        if value is not None:
            filled = value.format(ours=ours, other=other.getsockname()[1], dead=free_port())
            context.environment = {"https_proxy": filled}
        else:
            context.environment = {}
        verdict = await variables(context)
    assert (verdict.state, words in verdict.text) == (state, True), verdict
    assert "secret" not in verdict.text + verdict.remedy


_GSETTINGS = """#!/bin/sh
case "$2 $3" in
"org.gnome.system.proxy mode") echo "'{mode}'" ;;
"org.gnome.system.proxy autoconfig-url") echo "'http://other.example/proxy.pac'" ;;
"org.gnome.system.proxy.socks host") echo "'127.0.0.1'" ;;
"org.gnome.system.proxy.socks port") echo "{port}" ;;
esac
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("mode", "listening", "other", "state"),
    [
        ("none", True, False, CheckState.WARN),
        ("auto", True, False, CheckState.WARN),
        ("manual", True, False, CheckState.OK),
        ("manual", False, False, CheckState.FAIL),
        ("manual", True, True, CheckState.WARN),
    ],
)
async def test_desktop(pair: Setup, mode: str, listening: bool, other: bool, state: CheckState) -> None:
    program = pair.directory / "gsettings"
    session = {"XDG_CURRENT_DESKTOP": "GNOME"}
    context = Context(file=client_config(pair, port=1), which=lambda _: str(program), environment=session)
    await examine([lists.CLIENT[1]], context)
    assert context.client is not None
    ours = context.client.listen.port
    program.write_text(_GSETTINGS.format(mode=mode, port=1 if other else ours))
    program.chmod(0o755)
    server = socket.create_server(("127.0.0.1", ours))
    if not listening:
        server.close()
    with server:
        assert (await desktop(context)).state is state
    context.running = ClientStatus(tun=TunStatus())
    assert "carries what browsers send" in (await desktop(context)).text
    context.running, context.which = None, lambda _: None
    assert (await desktop(context)).state is CheckState.SKIP


async def test_where_no_desktop_is_none_is_looked_at(pair: Setup) -> None:
    """A server with gsettings installed had a warning for ever."""

    def which(program: str) -> str:
        raise AssertionError(program)

    verdict = await with_client(pair, desktop, which=which, environment={"LANG": "C"})
    assert verdict == skip("there is no desktop here whose settings browsers would follow")


async def test_what_system_wide_mode_needs(pair: Setup, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dev/net").mkdir(parents=True)
    there = {"root": root, "which": lambda _: "/usr/sbin/nft", "euid": 0}
    assert (await with_client(pair, tun, **there)).state is CheckState.SKIP
    (root / "dev/net/tun").touch()
    verdict = await with_client(pair, tun, **there)
    assert verdict.state is CheckState.OK and "no IPv6" in verdict.text
    context = Context(file=client_config(pair, "[tun]\nenabled = true\n", port=1), root=root, euid=1000)
    await examine([lists.CLIENT[1]], context)
    verdict = await tun(context)
    assert verdict.state is CheckState.FAIL and "not root" in verdict.text


async def test_a_forwarders_port_that_every_user_may_have_is_named(pair: Setup, tmp_path: Path) -> None:
    """Where system-wide mode is asked for, and nowhere else."""
    root = tmp_path / "root"
    setting = root / "proc/sys/net/ipv4/ip_unprivileged_port_start"
    setting.parent.mkdir(parents=True)
    (root / "dev/net").mkdir(parents=True)
    (root / "dev/net/tun").touch()
    there = {"root": root, "which": lambda _: "/usr/sbin/nft", "euid": 0}
    enabled = client_config(pair, "[tun]\nenabled = true\n", port=1)
    for value, state in (("1024\n", CheckState.OK), ("0\n", CheckState.WARN)):
        setting.write_text(value)
        context = Context(file=enabled, **there)  # type: ignore[arg-type]
        await examine([lists.CLIENT[1]], context)
        verdict = await tun(context)
        assert verdict.state is state
    assert "ip_unprivileged_port_start is 0" in verdict.text and "port_start=1024" in verdict.remedy
    assert (await with_client(pair, tun, **there)).state is CheckState.OK


@pytest.mark.parametrize("role", ["client", "exit"])
async def test_what_a_running_one_cannot_keep_is_named(role: str) -> None:
    repairs = (
        RepairStatus(name="device", repairs=3),
        RepairStatus(name="rules of others", trouble="IPv4 rule 25399 stands before ours"),
    )
    client = ClientStatus(tun=TunStatus(repairs=repairs))
    exit = ExitStatus(network=TunNetworkStatus(repairs=repairs))
    verdict = await tun(Context(running=client if role == "client" else exit))
    assert verdict.state is CheckState.WARN
    assert verdict.text == "rules of others: IPv4 rule 25399 stands before ours"


@pytest.mark.process
async def test_what_a_killed_one_has_left(pair: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    left: dict[str, tuple[str, ...]] = {"client": (), "exit": ()}
    lives: dict[str, int] = {}
    monkeypatch.setattr(marks, "marks", left.__getitem__)
    monkeypatch.setattr(marks, "holder", lives.get)
    state = pair.directory / "state"
    state.mkdir()
    context = Context(file=client_config(pair, '[tun]\nstate_dir = "state"\n', port=1), euid=0)
    assert (await leftovers(context)).state is CheckState.OK
    (state / "client.journal").write_text("{}\n")
    verdict = await leftovers(context)
    assert verdict.state is CheckState.FAIL
    assert verdict.text == f"an earlier --tun has left the journal {state}/client.journal: {marks.REMEDY}"
    left["client"] = ("the table cryprq of the packet filter", "routing rules")
    verdict = await leftovers(context)
    assert verdict.state is CheckState.FAIL
    assert marks.KILL_SWITCH_STANDS in verdict.text and "routing rules" in verdict.text
    assert verdict.remedy == "sudo cryprq-proxy cleanup"
    lives["client"] = 7
    assert (await leftovers(context)).state is CheckState.OK
    left["exit"] = ("the table cryprq_exit of the packet filter",)
    assert (await leftovers(context)).state is CheckState.FAIL, "one that is dead beside one that lives"


async def test_leftovers_need_no_configuration_and_come_first(tmp_path: Path) -> None:
    for checks in (lists.CLIENT, lists.EXIT):
        assert checks[0].name == "leftovers" and not checks[0].needs
    (tmp_path / "client.toml").write_text("no configuration")
    verdict = await leftovers(Context(file=tmp_path / "client.toml", euid=1000))
    assert verdict.state is CheckState.OK and "without root" in verdict.text


# --- an exit ---


@pytest.mark.process
async def test_an_exit(pair: Setup) -> None:
    with pair.exit() as exit:
        found = await diagnose(pair.directory / "exit.toml", exit=True)
        assert failed(found) == []
        assert found["peers"].text == "1 client may come in"
        assert "127.0.0.1" in found["listeners"].text
        assert found["public address"].state is CheckState.WARN
        exit.end(signal.SIGTERM)
    (pair.directory / "authorized").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = pair.directory / "exit.toml"
        config.write_text(f'identity = "exit.key"\nlisten = "127.0.0.1:{taken.getsockname()[1]}"\n')
        found = await diagnose(config, exit=True)
    assert failed(found) == ["peers", "listeners"]
    assert found["peers"].remedy == "invite one: cryprq-proxy invite NAME"


# --- the command ---


@pytest.mark.process
def test_the_command(pair: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    file = client_config(pair, port=free_port())
    assert run_command(["doctor", "--config", str(file), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert [check["name"] for check in told["checks"]] == [check.name for check in lists.CLIENT]
    assert {check["state"] for check in told["checks"]} <= {"ok", "warn", "fail", "skip"}
    assert run_command(["doctor", "--config", str(file)]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "FAIL reach" in out and out.endswith("checks failed\n")


@pytest.mark.process
def test_flags_of_what_runs_are_known(pair: Setup) -> None:
    """Of a client and an exit that no file describes whole."""
    listen = f"127.0.0.1:{free_port()}"
    with pair.exit("--listen", listen) as exit:
        pair.exit_port = int(listen.rpartition(":")[2])
        done = call("doctor", "--config", str(pair.directory / "exit.toml"))
        assert "exit.toml with --listen of what runs is valid" in done.stdout, done.stdout
        assert f"the running exit listens on {listen}\n" in done.stdout
        file = pair.directory / "client.toml"
        file.write_text('control_socket = "c.sock"\nadmin = "off"\n')
        peer = f"cryprq://{pair.exit_id}@{listen}"
        identity = str(pair.directory / "client.key")
        with Program(
            "--config", str(file), "--peer", peer, "--identity", identity, "--listen", "127.0.0.1:0"
        ) as client:
            client.log.wait("link up")
            exit.log.wait("link up")
            done = call("doctor", "--config", str(file))
    assert (
        "client.toml with --identity, --listen and --peer of what runs is valid and names 1 exit"
        in done.stdout
    )
    assert "the client has been running for" in done.stdout
    assert not failures(done.stdout), done.stdout


@pytest.mark.process
def test_an_exits_configuration_is_recognised(pair: Setup) -> None:
    with pair.exit():
        done = call("doctor", "--config", str(pair.directory / "exit.toml"))
    assert (failures(done.stdout), done.stderr) == ([], "")
    assert "peers" in done.stdout and os.linesep + "ok   listeners" in done.stdout
    (pair.directory / "exit.toml").write_text("listen = true\n")
    done = call("doctor", "--config", str(pair.directory / "exit.toml"))
    assert "exit.toml: listen: expected" in done.stdout, (
        "the mistake is named, not what a client has no use for"
    )
