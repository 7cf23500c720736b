"""A program with a small parent, as its service manager meets it: real processes, forked from a script."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from cryprq_proxy.errors import ConfigError
from cryprq_proxy.process import overlap
from cryprq_proxy.process.overlap import attend, begin, readdress
from tests.support.background import PATIENCE
from tests.support.processes import environment

# --- what the parent does, with a child that is no fork of it ---


# A shell that starts tests in the background lets them ignore some signals, and their children too.
WAIT = """
import signal
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_DFL)
print(flush=True)
signal.pause()
"""


class Attended:
    """A child, and the pipes through which its parent would hear of it and of signals."""

    def __init__(self, *command: str) -> None:
        self.child = subprocess.Popen(command or (sys.executable, "-c", WAIT), stdout=subprocess.PIPE)
        assert self.child.stdout is not None
        with self.child.stdout as begun:
            begun.readline()
        self._released, self._tell = os.pipe()
        self._signals, self._arrived = os.pipe()
        self._ended = threading.Thread(target=self._tell_of_end, args=(os.pidfd_open(self.child.pid),))
        self._ended.start()

    def _tell_of_end(self, child: int) -> None:
        select.select([child], [], [])
        os.close(child)
        self.signal(signal.SIGCHLD)

    def signal(self, number: int) -> None:
        os.write(self._arrived, bytes([number]))

    def release(self, said: bytes = b"released") -> None:
        os.write(self._tell, said)
        os.close(self._tell)
        self._tell = -1

    def attend(self) -> int:
        return attend(self.child.pid, self._released, self._signals)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        self._ended.join()
        for file in {self._released, self._tell, self._signals, self._arrived} - {-1}:
            os.close(file)


@pytest.fixture
def attended() -> Iterator[Attended]:
    with contextlib.closing(Attended()) as attended:
        yield attended


@pytest.mark.process
def test_the_parent_ends_when_the_child_has_released(attended: Attended) -> None:
    attended.release()
    assert attended.attend() == 0
    assert attended.child.poll() is None


@pytest.mark.process
@pytest.mark.parametrize("number", overlap.PASSED_ON, ids=lambda number: number.name)
def test_a_signal_reaches_the_child(attended: Attended, number: signal.Signals) -> None:
    attended.signal(number)
    assert attended.attend() == -number


@pytest.mark.process
def test_the_end_of_a_child_says_more_than_its_release() -> None:
    with contextlib.closing(Attended("false")) as attended:
        os.waitid(os.P_PID, attended.child.pid, os.WEXITED | os.WNOWAIT)
        attended.release()
        assert attended.attend() == 1


@pytest.mark.process
def test_a_closed_pipe_is_no_release(attended: Attended) -> None:
    attended.release(b"")
    attended.signal(signal.SIGTERM)
    assert attended.attend() == -signal.SIGTERM


@pytest.mark.process
def test_a_child_that_survives_its_abort_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "ABORT_SECONDS", 0.05)
    with contextlib.closing(Attended("bash", "-c", "trap '' ABRT; echo; exec sleep 1000")) as attended:
        attended.signal(signal.SIGABRT)
        assert attended.attend() == -signal.SIGKILL


def test_what_is_meant_for_the_parent_is_meant_for_the_child() -> None:
    variables = {"LISTEN_PID": "77", "WATCHDOG_PID": "78", "LISTEN_FDS": "77"}
    readdress(variables, 77)
    assert variables == {"LISTEN_PID": str(os.getpid()), "WATCHDOG_PID": "78", "LISTEN_FDS": "77"}


def test_only_linux_tells_a_child_of_its_parents_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="needs Linux"):
        begin()


class Kernel:
    """What `overlap` asks of the system, without another process: `calls` has what was done, in its order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, forked: int = 0) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.status: int | None = None
        """How the child has ended, as from waitpid(2)."""
        replaced = (
            (os, "fork", lambda: forked),
            (os, "getppid", os.getpid),
            (os, "setpgid", self.note("setpgid")),
            (os, "kill", self.kill),
            (os, "waitpid", lambda pid, _: (0, 0) if self.status is None else (pid, self.status)),
            (signal, "signal", self.note("signal")),
            (signal, "alarm", self.note("alarm")),
            (signal, "pthread_sigmask", self.note("mask")),
            (signal, "set_wakeup_fd", self.note("wakeup")),
            (overlap, "_signal_at_parents_end", self.note("parent's end")),
        )
        for place, name, instead in replaced:
            monkeypatch.setattr(place, name, instead)

    def note(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append((name, *arguments))

    def kill(self, pid: int, number: int) -> None:
        self.calls.append(("kill", pid, number))
        if pid != os.getpid() and number != signal.SIGABRT:
            self.status = number

    def did(self, name: str) -> list[tuple[object, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]


def test_the_child_gives_up_its_death_signal_before_it_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    parent = begin()
    assert kernel.did("setpgid") == [(0, 0)] and kernel.did("kill") == []
    assert kernel.did("mask")[-1] == (signal.SIG_SETMASK, None)
    parent.release(2.5)  # nobody holds the other end of the pipe
    assert kernel.did("parent's end") == [(signal.SIGTERM,), (0,)]
    assert kernel.did("alarm") == [(3 + overlap.OVERTIME,)]


def test_a_child_whose_parent_has_gone_already_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    begin().release(0)
    assert kernel.did("kill") == [(os.getpid(), signal.SIGTERM)]


@pytest.mark.parametrize(("code", "killed"), [(7, []), (-signal.SIGKILL, [(os.getpid(), signal.SIGKILL)])])
def test_the_parent_never_returns(
    monkeypatch: pytest.MonkeyPatch, code: int, killed: list[tuple[int, int]]
) -> None:
    kernel = Kernel(monkeypatch, forked=4242)
    seen: list[int] = []

    def attended(child: int, released: int, signals: int) -> int:
        for file in (released, signals, kernel.did("wakeup")[0][0]):
            assert isinstance(file, int)
            os.close(file)
        seen.append(child)
        return code

    monkeypatch.setattr(overlap, "attend", attended)
    with pytest.raises(SystemExit):
        begin()
    assert seen == [4242] and kernel.did("kill") == killed


@pytest.mark.parametrize(
    ("arrives", "says", "code"),
    [
        ([signal.SIGTERM], b"", -signal.SIGTERM),
        ([signal.SIGCHLD], b"released", 0),
        ([signal.SIGABRT], b"", -signal.SIGKILL),
    ],
)
def test_what_the_parent_waits_for(
    monkeypatch: pytest.MonkeyPatch, arrives: list[int], says: bytes, code: int
) -> None:
    monkeypatch.setattr(overlap, "ABORT_SECONDS", 0.0)
    Kernel(monkeypatch)
    released, tell = os.pipe()
    signals, arrived = os.pipe()
    os.write(arrived, bytes(arrives))
    os.write(tell, says)
    os.close(tell)
    assert attend(4242, released, signals) == code
    for file in (released, signals, arrived):
        os.close(file)


# --- both, forked ---

_SCRIPT = """
import os, signal, sys, threading
from cryprq_proxy.process import overlap
def say(*words):
    print(*words, flush=True)
if "tty" in sys.argv:
    os.close(os.open(os.ttyname(0), os.O_RDWR))  # a session's leader gets its controlling terminal by this
    say("leader")
overlap.OVERTIME = 1
parent = overlap.begin()
signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
say(os.getpid(), os.environ.get("LISTEN_PID"))
while True:
    number = signal.sigwait(signals)
    say(number.name)
    if number == signal.SIGUSR1:
        parent.release(0 if "short" in sys.argv else 1000)
        say("released")
    if "fail" in sys.argv:
        sys.exit(7)
"""


class Forked:
    """The script: its parent is the main process, `child` the pid of the other one."""

    def __init__(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> None:
        command = [sys.executable, "-c", _SCRIPT, *arguments]
        self.main = subprocess.Popen(
            ["bash", "-c", 'export LISTEN_PID=$$; exec "$@"', "bash", *command],
            stdin=stdin,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            start_new_session=True,
        )
        if "tty" in arguments:
            assert self.said() == "leader"
        child, listen = self.said().split()
        self.child = int(child)
        assert listen == child

    def said(self) -> str:
        """The next line of the child; empty when no process is left that could write one."""
        assert self.main.stdout is not None
        return self.main.stdout.readline().strip()

    def ends(self) -> int:
        return self.main.wait(PATIENCE)

    def close(self) -> None:
        self.main.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)
        assert self.main.stdout is not None
        self.main.stdout.close()
        self.main.wait()


@pytest.fixture
def forked(request: pytest.FixtureRequest) -> Iterator[Forked]:
    with contextlib.closing(Forked(*getattr(request, "param", ()))) as forked:
        yield forked


@pytest.mark.process
def test_the_child_hears_each_signal_once_and_the_parent_ends_with_its_release(forked: Forked) -> None:
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        forked.main.send_signal(number)
        assert forked.said() == number.name
    os.kill(forked.child, signal.SIGUSR1)
    assert [forked.said(), forked.said()] == ["SIGUSR1", "released"]
    assert forked.ends() == 0
    # The parent's end is no signal any more. One would come second, after that with the lowest number.
    for _ in range(2):
        os.kill(forked.child, signal.SIGHUP)
        assert forked.said() == "SIGHUP"


@pytest.mark.process
@pytest.mark.parametrize("forked", [("fail",)], indirect=True)
def test_the_parent_ends_with_the_childs_code(forked: Forked) -> None:
    forked.main.send_signal(signal.SIGTERM)
    assert forked.ends() == 7
    assert [forked.said(), forked.said()] == ["SIGTERM", ""]


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL], ids=lambda number: number.name)
def test_a_crash_of_the_child_is_one_of_the_parent(forked: Forked, number: signal.Signals) -> None:
    os.kill(forked.child, number)
    assert forked.ends() == -number


@pytest.mark.process
def test_the_managers_abort_ends_both(forked: Forked) -> None:
    forked.main.send_signal(signal.SIGABRT)
    assert forked.ends() == -signal.SIGABRT
    assert forked.said() == ""


@pytest.mark.process
def test_a_child_whose_parent_is_killed_is_told_to_stop(forked: Forked) -> None:
    forked.main.kill()
    assert forked.said() == "SIGTERM"


@pytest.mark.process
@pytest.mark.parametrize("forked", [("short",)], indirect=True)
def test_a_child_that_does_not_end_in_its_time_is_ended(forked: Forked) -> None:
    os.kill(forked.child, signal.SIGUSR1)
    assert [forked.said(), forked.said()] == ["SIGUSR1", "released"]
    assert forked.ends() == 0
    assert forked.said() == "", "the kernel has ended it, a second later"


@pytest.mark.process
def test_ctrl_c_is_heard_once_and_so_is_a_terminal_that_closes() -> None:
    master, slave = pty.openpty()
    with contextlib.closing(Forked("tty", stdin=slave)) as forked:
        os.close(slave)
        for _ in range(2):
            os.write(master, b"\x03")
            assert forked.said() == "SIGINT"
        os.close(master)
        assert forked.said() == "SIGHUP"
