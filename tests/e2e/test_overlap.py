"""An exit with --overlap under a service manager, which signals the main process alone, and starts the successor as
soon as that has ended."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import pytest

from tests.support.applications import UdpApplication, through
from tests.support.background import Background
from tests.support.load import Load, Talk
from tests.support.notify_socket import NotifySocket
from tests.support.programs import Exit, World, free_port, until
from tests.support.targets import TcpTarget, UdpEcho

RESTARTS: Final = 10
PROMISED: Final = 10.0
"""Seconds that a request waits for the link, as docs/applications.md says."""


class Manager:
    """Of one unit: all its exits have the same address, control socket and flags."""

    def __init__(self, world: World, passed: tuple[socket.socket, ...] = ()) -> None:
        self._world = world
        self._passed = passed
        self._port = passed[0].getsockname()[1] if passed else free_port()
        self.control = world.directory / "unit.sock"
        self.exit = self._start()

    def _start(self) -> Exit:
        return self._world.exit(
            {"shutdown_grace": 60, "control_socket": str(self.control)},
            port=self._port,
            passed=self._passed,
            flags=("--overlap",),
        )

    def restart(self) -> float:
        """`systemctl restart`; how many seconds the main process took to end."""
        begun = time.monotonic()
        self.exit.process.terminate()
        assert self.exit.process.wait(PROMISED) == 0
        ended = time.monotonic() - begun
        self.exit = self._start()
        return ended


def child_of(exit: Exit) -> int:
    """The process that does the work; the main one has no other child."""
    (child,) = Path(f"/proc/{exit.pid}/task/{exit.pid}/children").read_text().split()
    return int(child)


def gone(pid: int) -> bool:
    """Whether the process has ended. Where nobody takes in orphans, it stays as a zombie, which has no command line."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def test_restarts_refuse_nobody_and_end_nothing(
    world: World,
    background: Background,
    echo_target: TcpTarget,
    udp_echo: UdpEcho,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manager = Manager(world)
    first, child, slowest = manager.exit, child_of(manager.exit), 0.0
    client = world.client(manager.exit)
    until(lambda: client.status()["packets"]["lane"]["up"], "the lane is up")
    talk = Talk(through(client.port, echo_target.port))
    with ExitStack() as stack:
        old = stack.enter_context(closing(UdpApplication(client.port)))
        old.send(b"before", udp_echo.port)
        assert old.receive()[1] == b"before"
        with Load(background, client.port, echo_target) as load:
            for number in range(RESTARTS):
                mark, answered = client.written, load.answered
                slowest = max(slowest, manager.restart())
                client.says("link up", since=mark)
                until(lambda: load.answered > answered + 100, "new connections go on")  # noqa: B023
                if not number:
                    until(lambda: client.status()["packets"]["lane"]["up"], "the successor has a lane")
                    new = stack.enter_context(closing(UdpApplication(client.port)))
                    for udp in (old, new, old, new):
                        udp.send(b"x" * 1_000, udp_echo.port)
                        assert udp.receive()[1] == b"x" * 1_000
        assert not gone(child), "it is there for what is open"
        talk.goes_on()
        talk.end()
        old.control.close()
        until(lambda: gone(child), "the first exit has ended")
    with capsys.disabled():
        print(f"\n{RESTARTS} restarts by a manager: main process ended in {slowest:.2f} s at most; {load}")
    assert not load.wrong
    assert load.slowest < PROMISED
    assert "released: another exit can start here" in first.log
    assert manager.exit.stop() == 0
    assert not manager.control.exists()


def test_the_manager_hears_of_an_exit_until_it_is_released(world: World, echo_target: TcpTarget) -> None:
    with NotifySocket.within(world.directory) as heard:
        world.environment |= heard.environment(WATCHDOG_USEC="1000000")
        exit = world.exit({"shutdown_grace": 60}, flags=("--overlap",))
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
            del world.environment[name]
        heard.wait("READY", "1")
        heard.wait("WATCHDOG", "1")
        child = child_of(exit)
        exit.process.send_signal(signal.SIGHUP)
        heard.wait("RELOADING", "1")
        client = world.client(exit)
        talk = Talk(through(client.port, echo_target.port))
        exit.process.terminate()
        heard.wait("STOPPING", "1")
        assert exit.process.wait(PROMISED) == 0
        heard.drain()
        mark = exit.written
        os.kill(child, signal.SIGHUP)
        exit.says("reloaded", since=mark)
        assert heard.silent_for(1.2), "two times the watchdog's"
        talk.end()
        until(lambda: gone(child), "the exit has ended")


def test_the_main_process_is_killed(world: World) -> None:
    """The exit does not stay behind with the ports."""
    manager = Manager(world)
    child = child_of(manager.exit)
    manager.exit.process.kill()
    manager.exit.says("released: another exit can start here")
    until(lambda: gone(child), "the exit has ended")
    assert manager.exit.wait() == -signal.SIGKILL
    assert not manager.control.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT], ids=lambda number: number.name)
def test_the_exit_is_killed(world: World, number: signal.Signals) -> None:
    """By somebody, or by the manager's watchdog, which knows the main process alone."""
    exit = world.exit(flags=("--overlap",))
    child = child_of(exit)
    os.kill(child if number == signal.SIGKILL else exit.pid, number)
    assert exit.wait() == -number
    assert gone(child)


def test_a_second_signal_ends_open_streams(world: World, echo_target: TcpTarget) -> None:
    manager = Manager(world)
    client = world.client(manager.exit)
    child = child_of(manager.exit)
    with through(client.port, echo_target.port) as sock:
        manager.exit.process.terminate()
        assert manager.exit.process.wait(PROMISED) == 0
        os.kill(child, signal.SIGTERM)
        until(lambda: gone(child), "the exit has ended at once")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_an_exit_that_cannot_start(world: World) -> None:
    """Its exit code is the main process's: systemd does not try again after 2."""
    exit = world.exit({"nonsense": True}, flags=("--overlap",), wait=False)
    assert exit.wait() == 2
    exit.may_complain = True


def test_sockets_of_the_manager_pass_through_the_parent(world: World, echo_target: TcpTarget) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        manager = Manager(world, (held,))
        client = world.client(manager.exit)
        talk = Talk(through(client.port, echo_target.port))
        for _ in range(2):
            mark = client.written
            manager.restart()
            client.says("link up", since=mark)
            talk.goes_on()
        talk.end()
        assert "connection refused" not in client.log
