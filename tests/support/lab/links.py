"""The program inside the hosts of the lab: `cryprq-proxy exit`, `cryprq-proxy --tun`, and its short commands.

Both roles run this working tree with this interpreter, and with all their files in
one directory, which is HOME too. The exit is told to serve system-wide clients, the client gets a state directory of
its own, so that nothing outside the directory and the host is touched. What the roles log is read line by line as it
comes (`says`), and `Links.close` tells what was wrong: an exit code, a traceback, an error line.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.process.control import query
from tests.support.background import PATIENCE
from tests.support.config_files import Settings, merge, toml
from tests.support.lab.hosts import EXIT4
from tests.support.lab.net import LIMIT, Namespace, until
from tests.support.logged import UNWANTED, LoggedProcess, environment_in

PORT: Final = 4433
READY: Final = r"ready: "


class Role(LoggedProcess):
    """One running process of the program."""

    def __init__(self, name: str, host: Namespace, command: list[str], env: Mapping[str, str]) -> None:
        self.host = host
        super().__init__(name, host.popen(command, stderr=subprocess.PIPE, env=env))


class Links:
    """Starts exits and clients inside hosts, all with their files in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.state_dir = directory / "state"
        self.environment = environment_in(directory)
        self.roles: list[Role] = []
        self._ids: dict[str, str] = {}

    def command(self, *arguments: str) -> list[str]:
        """A command line of the program, for `Namespace.run` and `attempt` with `env=environment`."""
        return [sys.executable, "-m", "cryprq_proxy", *arguments]

    def call(self, host: Namespace, *arguments: str, limit: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Runs one of the short commands inside a host: `cleanup`, `status`, `leaktest`."""
        return host.attempt(self.command(*arguments), env=self.environment, limit=limit)

    def status(self, name: str = "client") -> dict[str, Any]:
        """What `cryprq-proxy status --json` would say, without starting a process for it."""
        return query(self.directory / f"{name}.sock", timeout=LIMIT)

    def identity(self, name: str) -> tuple[Path, str]:
        """The file of an identity, made when first asked for, and its peer id."""
        file = self.directory / f"{name}.key"
        if name not in self._ids:
            identity = Identity.generate(select_provider())
            file.touch(0o600)
            file.write_bytes(identity.line())
            self._ids[name] = str(identity.peer_id)
        return file, self._ids[name]

    def config(self, name: str, settings: Settings) -> Path:
        """Writes NAME.toml. What is set here is needed by every role."""
        defaults: Settings = {
            "identity": str(self.identity(name)[0]),
            "control_socket": str(self.directory / f"{name}.sock"),
            "log_level": "debug",
        }
        file = self.directory / f"{name}.toml"
        file.write_text(toml(merge(defaults, settings)))
        file.chmod(0o600)
        return file

    def exit(
        self,
        host: Namespace,
        settings: Settings | None = None,
        *,
        listen: tuple[str, ...] = (f"0.0.0.0:{PORT}", f"[::]:{PORT}"),
        clients: tuple[str, ...] = ("client",),
        name: str = "exit",
        flags: tuple[str, ...] = (),
        tun: bool = True,
    ) -> Role:
        """Starts an exit that lets in the identities of `clients`; returns when it is ready."""
        defaults: Settings = {
            "listen": list(listen),
            "allow": [self.identity(client)[1] for client in clients],
            "shutdown_grace": 0.5,
            "limits": {"handshakes_per_minute": 100_000},
        }
        if tun:
            defaults = merge(
                defaults, {"tun": {"enabled": True, "state_dir": str(self.directory / f"state-{name}")}}
            )
        return self._start(name, host, ["exit", *flags], merge(defaults, settings or {}))

    def client(
        self,
        host: Namespace,
        *options: str,
        settings: Settings | None = None,
        address: str = f"{EXIT4}:{PORT}",
        exit: str = "exit",
        name: str = "client",
        tun: bool = True,
        ready: str = READY,
    ) -> Role:
        """Starts `cryprq-proxy --tun` with more `options`; returns when it says that all traffic goes through.

        Without its dashboard, which takes a fifth of the time of a start to load.
        """
        defaults: Settings = {"peer": f"cryprq://{self.identity(exit)[1]}@{address}", "admin": "off"}
        if tun:
            defaults = merge(defaults, {"tun": {"state_dir": str(self.state_dir)}})
        flags = [*(["--tun"] if tun else []), *options]
        return self._start(name, host, flags, merge(defaults, settings or {}), ready)

    def crowd(
        self, host: Namespace, clients: Mapping[str, Settings], address: str = f"{EXIT4}:{PORT}"
    ) -> Role:
        """Starts clients without `--tun` in one process; returns when all of them are ready."""
        peer = f"cryprq://{self.identity('exit')[1]}@{address}"
        files = [
            str(self.config(name, {"peer": peer, "admin": "off", **settings}))
            for name, settings in clients.items()
        ]
        command = [sys.executable, "-m", "tests.support.many_clients", *files]
        role = Role("clients", host, command, self.environment)
        self.roles.append(role)
        until(lambda: len(re.findall(READY, role.log)) == len(files), "all clients are ready", PATIENCE)
        return role

    def _start(
        self, name: str, host: Namespace, arguments: list[str], settings: Settings, ready: str = READY
    ) -> Role:
        file = self.config(name, settings)
        role = Role(name, host, self.command(*arguments, "--config", str(file)), self.environment)
        self.roles.append(role)
        role.says(ready)
        return role

    def close(self) -> list[str]:
        """Ends all roles with SIGTERM, clients first; what went wrong in any of them."""
        wrong = []
        for role in sorted(self.roles, key=lambda role: role.name.startswith("exit")):
            if role.process.poll() is None and (code := role.stop()):
                wrong.append(f"{role.name} ended with {code} on SIGTERM:\n{role.log}")
            if UNWANTED.search(role.log):
                wrong.append(f"{role.name} had an error:\n{role.log}")
        self.roles.clear()
        return wrong
