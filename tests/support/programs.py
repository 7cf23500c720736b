"""The program's roles as real processes, with what a test wants to know of them: log lines, status, memory.

    World.exit(...) and World.client(...) write a config file and start `python -m cryprq_proxy`
    World.close     ends them with SIGTERM and other programs with SIGKILL, and returns what was wrong: exit codes,
                    errors, tracebacks

Ports lie below the range from which the system takes those of outgoing connections: a process that is killed and
started again finds its port free.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryprq_proxy.base.passed_sockets import FIRST_DESCRIPTOR
from cryprq_proxy.config.keys import load_identity, save_identity
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.process.control import query
from tests.support.background import PATIENCE
from tests.support.config_files import Settings, merge, toml
from tests.support.descriptors import lasting_files, no_free_files
from tests.support.logged import BUGS, UNWANTED, LoggedProcess, environment_in

HERE = Path(__file__).resolve().parent
MODULE = ("-m", "cryprq_proxy")
HOSTS = "site.test=127.0.0.1 six.test=::1"
"""Names that exits know, and nobody else."""


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Return as soon as `condition` holds, for what can only be asked for again and again."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def _quiet_ports() -> range:
    """Ports that no outgoing connection is given: nobody takes one of them between a look and its use."""
    lowest, highest = 32_768, 60_999
    with contextlib.suppress(OSError):
        lowest, highest = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return range(10_000, lowest) if lowest >= 12_000 else range(highest + 1, 65_536) or range(1024, 65_536)


def free_port(host: str = "127.0.0.1") -> int:
    while True:
        port = random.choice(_quiet_ports())
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port


class Program(LoggedProcess):
    """One process, and what it uses. It may open `files` descriptors; 0: as many as this one. The sockets `passed` are
    those of a service manager."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        environment: Mapping[str, str],
        directory: Path,
        files: int = 0,
        passed: Sequence[socket.socket] = (),
    ) -> None:
        self.may_complain = False
        """Whether errors in its log are no surprise."""
        before = [f"ulimit -n {files}"] if files else []
        descriptors = [sock.fileno() for sock in passed]
        if passed:
            before += [f"exec {number}<&{fd}" for number, fd in enumerate(descriptors, FIRST_DESCRIPTOR)]
            before.append(f"export LISTEN_PID=$$ LISTEN_FDS={len(passed)}")
        shell = ["bash", "-c", "; ".join((*before, 'exec "$@"')), "bash"] if before else []
        process = subprocess.Popen(
            [*shell, sys.executable, *arguments],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=directory,
            env=dict(environment),
        )
        super().__init__(name, process)

    def memory(self) -> int:
        """Resident memory in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"{self.name} has no memory")

    def files(self) -> int:
        """Open file descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def lasting_files(self) -> set[int]:
        return lasting_files(self.pid)

    def no_free_files(self) -> contextlib.AbstractContextManager[None]:
        return no_free_files(self.pid)


class Role(Program):
    """An exit or a client: listens on `port`, answers `status`."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        world: World,
        config: Settings,
        peer_id: str,
        port: int,
        files: int = 0,
        passed: Sequence[socket.socket] = (),
    ) -> None:
        self.control = world.directory / f"{name}.sock"
        self.peer_id = peer_id
        self.port = port
        own: dict[str, Any] = {"control_socket": str(self.control), "log_level": "debug"}
        config = {**own, **({} if isinstance(self, Exit) else {"admin": "off"}), **config}
        file = world.directory / f"{name}.toml"
        file.write_text(toml(config))
        file.chmod(0o600)
        # An exit knows some names, a client none.
        environment = world.environment | ({"E2E_HOSTS": HOSTS} if isinstance(self, Exit) else {})
        command = [*MODULE, *arguments, "--config", str(file)]
        super().__init__(name, command, environment, world.directory, files, passed)

    def status(self) -> dict[str, Any]:
        return query(self.control, timeout=PATIENCE)


class Exit(Role):
    @property
    def sessions(self) -> list[dict[str, Any]]:
        return list(self.status()["sessions"])

    @property
    def streams(self) -> int:
        return sum(session["streams"] for session in self.sessions)

    def reload(self) -> None:
        """Read the configuration and the list again."""
        mark = self.written
        self.process.send_signal(signal.SIGHUP)
        self.says("reloaded", since=mark)


class Client(Role):
    @property
    def up(self) -> bool:
        return bool(self.status()["link"] == "up")

    @property
    def session(self) -> dict[str, Any]:
        return self.status()["session"] or {}

    @property
    def streams(self) -> int:
        return int(self.session.get("streams", 0))

    def wait_up(self) -> None:
        self.says("link (up|resumed)")


class World:
    """All processes of a test, and their directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = environment_in(directory, HERE / "startup")
        self.programs: list[Program] = []
        self._count = 0

    def identity(self, name: str) -> tuple[Path, str]:
        """The file of an identity, made when first asked for, and its peer id."""
        provider = select_provider()
        file = self.directory / f"{name}.key"
        if not file.exists():
            save_identity(Identity.generate(provider), file)
        return file, str(load_identity(provider, file).peer_id)

    def exit(
        self,
        settings: Settings | None = None,
        *,
        clients: tuple[str, ...] = ("client",),
        identity: str = "exit",
        port: int | None = None,
        private: bool = True,
        files: int = 0,
        passed: Sequence[socket.socket] = (),
        flags: tuple[str, ...] = (),
        wait: bool = True,
    ) -> Exit:
        """Start an exit that lets in the identities of `clients`; with `wait` it is ready when this returns."""
        file, peer_id = self.identity(identity)
        port = port or free_port()
        config = {
            "identity": str(file),
            "listen": [f"127.0.0.1:{port}"],
            "allow": [self.identity(client)[1] for client in clients],
            "allow_private": private,
            "shutdown_grace": 0.5,
        }
        config = merge(config, LIMITS, settings or {})
        role = Exit(self._name("exit"), ["exit", *flags], self, config, peer_id, port, files, passed)
        self.programs.append(role)
        if wait:
            role.says("ready: ")
        return role

    def client(
        self,
        exit: Exit | tuple[str, int] | None,
        settings: Settings | None = None,
        *,
        through: int | None = None,
        identity: str = "client",
        flags: tuple[str, ...] = (),
        wait: bool = True,
    ) -> Client:
        """Start a client of `exit`, which is reached at port `through` if that is given; None: `settings` say of which.

        With `wait` the link is up when this returns.
        """
        file, _ = self.identity(identity)
        listen = free_port()
        config = {"identity": str(file), "listen": f"127.0.0.1:{listen}"}
        peer_id = ""
        if exit is not None:
            peer_id, port = exit if isinstance(exit, tuple) else (exit.peer_id, exit.port)
            config["peer"] = f"cryprq://{peer_id}@127.0.0.1:{through or port}"
        role = Client(self._name("client"), [*flags], self, merge(config, settings or {}), peer_id, listen)
        self.programs.append(role)
        role.says("ready: ")
        if wait:
            role.wait_up()
        return role

    def pair(self, settings: Settings | None = None, *, through: int | None = None) -> tuple[Exit, Client]:
        """An exit and its client, both with `settings`."""
        exit = self.exit(settings)
        return exit, self.client(exit, settings, through=through)

    def command(self, *arguments: str) -> list[str]:
        """A command line of the program, for what ends by itself."""
        return [sys.executable, *MODULE, *arguments]

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"

    def close(self) -> list[str]:
        """End all processes, clients first; what went wrong in any of them."""
        wrong = []
        for program in sorted(self.programs, key=lambda program: isinstance(program, Exit)):
            if program.process.returncode is None:
                if not isinstance(program, Role):
                    program.kill()
                elif code := program.stop(10.0):
                    wrong.append(f"{program.name} ended with {code} on SIGTERM:\n{program.log}")
            if (BUGS if program.may_complain else UNWANTED).search(program.log):
                wrong.append(f"{program.name} had an error:\n{program.log}")
        return wrong


LIMITS: Settings = {"limits": {"handshakes_per_minute": 100_000}}
"""All the world comes from one address here."""
