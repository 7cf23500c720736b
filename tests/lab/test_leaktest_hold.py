"""`leaktest --hold`: flows that went past the tunnel for a reason which ends while they are open.

A healthy client keeps them in from then on. One whose filter goes by what conntrack remembers lets them out, and only
them: a test with new sockets alone would say that nothing leaks.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import pytest

from tests.support.config_files import Settings
from tests.support.lab.faults import accepting_old_marks
from tests.support.lab.hosts import ROUTER_SERVER4, SERVER4
from tests.support.lab.links import Role
from tests.support.lab.net import until
from tests.support.lab.stage import Stage

WEB: Final = 443
ASKED: Final = "8.8.8.8"
"""In a pause its questions go to the network's resolver, by NAT."""
LONG: Final = 60
"""Seconds of a pause that is cut short as soon as the flows are seen."""
LIMIT: Final = 60.0
PAST: Final[Settings] = {"rule": [{"to": "direct", "cidrs": [SERVER4]}]}
"""All that goes to the server goes past the tunnel, but for questions for names."""


@pytest.fixture(scope="module")
def shared(namespaces: None) -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


@pytest.fixture
def stage(shared: Stage) -> Iterator[Stage]:
    with shared.left_clean():
        yield shared


def reload(stage: Stage, role: Role) -> Role:
    stage.client_file()
    written = role.written
    role.process.send_signal(signal.SIGHUP)
    role.says("reloaded: ", since=written)
    return role


def restart(stage: Stage, role: Role) -> Role:
    assert not role.stop(), role.log
    return stage.links.client(stage.client)


def cut_the_pause_short(stage: Stage, role: Role) -> Role:
    """It ends by itself then. The leak test refuses to judge before."""
    stage.pause(1)
    until(lambda: not stage.status()["kill_switch"]["paused"], "the pause has ended")
    return role


class Change(NamedTuple):
    hold: int
    """Seconds in which it is made where the machine is not busy; else the leak test is stopped meanwhile."""
    paused: bool
    settings: Settings
    """Of the client at first."""
    ends: Callable[[Stage, Role], Role]
    """Ends the reason why the flows go past the tunnel."""


CHANGES: Final = {
    "pause": Change(4, True, {}, cut_the_pause_short),
    "reload": Change(3, False, PAST, reload),
    "restart": Change(5, False, PAST, restart),
}


@contextmanager
def web(stage: Stage) -> Iterator[socket.socket]:
    """The server takes connections for the web, and QUIC: the socket of the latter."""
    with stage.hosts.server.entered():
        listener = socket.create_server((SERVER4, WEB))
    quic = stage.socket(SERVER4, socket.SOCK_DGRAM, stage.hosts.server)
    with listener, quic:
        quic.bind((SERVER4, WEB))
        quic.settimeout(LIMIT)
        yield quic


@contextmanager
def waiting(test: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """The leak test stands still from so many seconds on, until what is inside is done."""
    timer = threading.Timer(seconds, test.send_signal, [signal.SIGSTOP])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        test.send_signal(signal.SIGCONT)


def held_flows(stage: Stage, change: Change) -> tuple[Role, dict[str, Any]]:
    """The client in the end, and what the leak test said after the change."""
    role = stage.links.client(stage.client, settings=change.settings)
    if change.paused:
        stage.pause(LONG)
    file = str(stage.links.directory / "client.toml")
    options = ("--config", file, "--target", SERVER4, "--target", ASKED, "--json", "--hold", str(change.hold))
    with web(stage) as quic:
        test = stage.client.popen(
            stage.links.command("leaktest", *options), stdout=subprocess.PIPE, env=stage.links.environment
        )
        while quic.recvfrom(2048)[1][0] != ROUTER_SERVER4:
            pass
        with waiting(test, change.hold / 2):
            role = change.ends(stage, role)
        output, _ = test.communicate(timeout=LIMIT)
    plain: dict[str, Any] = json.loads(output)
    assert test.returncode == plain["leak"], output
    assert not plain["missed"]
    return role, plain


INSIDE: Final = {"tunnelled", "answered here", "blocked"}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_healthy_client_keeps_them_in(stage: Stage, change: Change) -> None:
    before = stage.client.snapshot()
    role, plain = held_flows(stage, change)
    assert not role.stop(), role.log
    assert not plain["leak"], plain["canaries"]
    names = {row["name"] for row in plain["canaries"]}
    assert names >= {f"{kind}, kept" for kind in ("DNS over UDP", "DNS over TCP", "TCP", "QUIC", "STUN")}
    assert {row["verdict"] for row in plain["canaries"]} <= INSIDE
    stage.unchanged_since(before)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_filter_that_goes_by_old_marks_is_found(
    stage: Stage, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepting_old_marks(stage.links, monkeypatch)
    role, plain = held_flows(stage, change)
    assert not role.stop(), role.log
    leaked = {(row["name"], row["target"]) for row in plain["canaries"] if row["verdict"] == "LEAKED"}
    expected = {("QUIC, kept", f"{SERVER4}:{WEB}"), ("STUN, kept", f"{SERVER4}:3478")}
    assert leaked >= expected, plain["canaries"]
    assert all(name.endswith(", kept") for name, _ in leaked), "new sockets show nothing of it"
