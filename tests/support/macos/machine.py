"""A Mac that is kept in a file: its programs and their kernel, for tests on Linux.

One state (state.py) stands as JSON in a directory and is changed under a lock, so that programs may run inside the
tests' process (`run`, `answer`) or as processes of their own (`install`), at the same time. A program is a module
fake_NAME.py with

    main(argv: Sequence[str], stdin: str, mac: FakeMac) -> Answer

which understands what the real one understands and refuses the rest. It reads the state with `mac.read()` and changes
it inside `with mac.change() as state`: the file is replaced at its end, so that a program that is killed has changed
all or nothing. What happens to a Mac from outside stands in disturbances.py.
"""

from __future__ import annotations

import copy
import fcntl
import importlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.macos import configd
from tests.support.macos.configd import Lease
from tests.support.macos.default import ADDRESS, ADDRESS6, GATEWAY, WIFI, default_state
from tests.support.macos.state import State, from_json, to_json
from tun.macos.programs import PATHS, Command, ProgramAnswer

PROGRAMS = {
    "/sbin/ifconfig": "ifconfig",
    "/sbin/pfctl": "pfctl",
    "/sbin/route": "route",
    "/usr/bin/dscacheutil": "dscacheutil",
    "/usr/bin/killall": "killall",
    "/usr/sbin/netstat": "netstat",
    "/usr/sbin/networksetup": "networksetup",
    "/usr/sbin/scutil": "scutil",
    "/usr/sbin/sysctl": "sysctl",
}
"""Path on a Mac -> the NAME of fake_NAME.py."""
HOME = Lease(f"{ADDRESS}/24", GATEWAY, [GATEWAY, "192.168.1.2"], f"{ADDRESS6}/64")
"""The network at home, by Wi-Fi."""
_ROOT = Path(__file__).resolve().parents[3]
_STATE = "state.json"
_COMMANDS = "commands.jsonl"
_PASSING = ("flushes",)
_STUB = """\
#!{python} -SE
import sys
sys.path.insert(0, {root!r})
from tests.support.macos.machine import program
sys.exit(program({path!r}, {directory!r}))
"""


class Answer(NamedTuple):
    code: int
    stdout: str = ""
    stderr: str = ""


class FakeMac:
    """One Mac. Several of these, also in several processes, may stand for the same directory."""

    def __init__(self, directory: Path, uid: int = 0) -> None:
        """A directory without a state gets the default machine, at home. `uid` is who runs the programs."""
        self.directory = directory
        self.uid = uid
        self.stand_ins: dict[str, Callable[[Sequence[str], str], Answer | None]] = {}
        """NAME -> what answers in the program's place in this process; None lets the program itself answer."""
        self._inside = threading.local()
        if not (directory / _STATE).exists():
            directory.mkdir(parents=True, exist_ok=True)
            state = default_state()
            service = state.service_of(WIFI)
            assert service is not None
            configd.take(state, service, HOME)
            self._write(state)

    # State

    def read(self) -> State:
        """The state as it is now; changes of it change nothing."""
        # Replaced at once, never written in place: no lock is needed.
        return from_json(json.loads((self.directory / _STATE).read_text()))

    @contextmanager
    def change(self) -> Iterator[State]:
        """The state for changing it; other programs wait meanwhile. An exception leaves it as it was."""
        assert not getattr(self._inside, "changes", False), "a change inside a change"
        with open(self.directory / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._inside.changes = True
            try:
                state = self.read()
                before = copy.deepcopy(state)
                yield state
                if state != before:
                    configd.follow(state)
                    self._write(state)
                    if (state.interfaces, state.routes) != (before.interfaces, before.routes):
                        tell_of_change(self.directory)
            finally:
                self._inside.changes = False

    def _write(self, state: State) -> None:
        new = self.directory / f"{_STATE}.{os.getpid()}.{threading.get_ident()}"
        new.write_text(json.dumps(to_json(state)))
        new.replace(self.directory / _STATE)

    def snapshot(self) -> str:
        """All that should be after as it was before, as text for comparison."""
        values = to_json(self.read())
        for name in _PASSING:
            del values[name]
        del values["pf"]["next_token"]
        values["routes"].sort(key=str)
        return json.dumps(values, indent=1, sort_keys=True)

    # Programs

    def answer(self, argv: Sequence[str], stdin: str = "") -> Answer:
        """Run a program to its end, inside this process. Its path must be a Mac's."""
        name = PROGRAMS.get(argv[0])
        assert name is not None, f"{argv[0]} is on no Mac, or no program of the fake one"
        with open(self.directory / _COMMANDS, "a") as log:
            log.write(json.dumps([*argv, stdin]) + "\n")
        stand_in = self.stand_ins.get(name)
        answer = stand_in(argv, stdin) if stand_in is not None else None
        if answer is None:
            module: Any = importlib.import_module(f"tests.support.macos.fake_{name}")
            answer = Answer(*module.main(argv, stdin, self))
        return answer

    def run(self, command: Command) -> ProgramAnswer:
        """As tun/macos/programs.run."""
        name, *arguments = command.argv
        code, stdout, stderr = self.answer([PATHS[name], *arguments], command.stdin)
        return ProgramAnswer(stdout, stderr, code)

    def commands(self) -> list[list[str]]:
        """The argument lists of all programs that were run, each with its standard input at the end."""
        log = self.directory / _COMMANDS
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def forget_commands(self) -> None:
        (self.directory / _COMMANDS).unlink(missing_ok=True)

    def install(self) -> Path:
        """Put the programs into a directory as executables, under their paths on a Mac: /sbin/route is at
        DIRECTORY/sbin/route. They act on this machine as root."""
        place = self.directory / "root"
        for path in PROGRAMS:
            file = place / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            text = _STUB.format(
                python=sys.executable, root=str(_ROOT), path=path, directory=str(self.directory)
            )
            file.write_text(text)
            file.chmod(0o755)
        return place


@contextmanager
def reached(directory: Path) -> Iterator[str]:
    """An address for the socket of this directory's kernel (utun_hub.py), however long the path is: 107 bytes may."""
    if len(plain := str(directory / "kernel")) < 100:
        yield plain
        return
    fd = os.open(directory, os.O_PATH)
    try:
        yield f"/proc/self/fd/{fd}/kernel"
    finally:
        os.close(fd)


def connected(directory: Path, *, blocking: bool = True) -> socket.socket:
    """To the kernel of this directory. Raises OSError where none runs."""
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        asking.setblocking(blocking)
        with reached(directory) as path:
            asking.connect(path)
    except BaseException:
        asking.close()
        raise
    return asking


def tell_of_change(directory: Path) -> None:
    """Where no kernel runs, nobody watches."""
    with suppress(OSError), connected(directory, blocking=False) as asking:
        asking.send(b"changed")


def program(path: str, directory: str) -> int:
    """An executable of `install`: arguments and standard input are this process's."""
    stdin = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    code, stdout, stderr = FakeMac(Path(directory)).answer([path, *sys.argv[1:]], stdin)
    sys.stdout.write(stdout)
    sys.stderr.write(stderr)
    return code
