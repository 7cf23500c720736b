"""The program inside the hosts of the lab: `cryprq-proxy exit`, `cryprq-proxy --tun`, and its short commands.

Both roles run this working tree with this interpreter, with identities made by `keygen`, and with all their files in
one directory, which is HOME too. The exit is told to serve system-wide clients, the client gets a state directory of
its own, so that nothing outside the directory and the host is touched. What the roles log is read line by line as it
comes (`says`), and `Links.close` tells what was wrong: an exit code, a traceback, an error line.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.support.lab.hosts import EXIT4
from tests.support.lab.net import Namespace

ROOT: Final = Path(__file__).resolve().parents[3]
PORT: Final = 4433
PATIENCE: Final = 20.0
"""Seconds until a line that does not come is a failure."""
READY: Final = r"ready: "
UNWANTED: Final = re.compile(r"Traceback|this is a bug|^\S+ (error|critical) ", re.MULTILINE)

Settings = Mapping[str, Any]


class Role:
    """One running process of the program."""

    def __init__(self, name: str, host: Namespace, command: list[str], env: Mapping[str, str]) -> None:
        self.name = name
        self.host = host
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self.process = host.popen(command, stderr=subprocess.PIPE, env=env)
        self._reader = threading.Thread(target=self._read, name=f"log of {name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        with self._changed:
            return "\n".join(self.lines)

    @property
    def written(self) -> int:
        """How many lines there are by now, for `since`."""
        with self._changed:
            return len(self.lines)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as pipe:
            for line in pipe:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def says(self, pattern: str, *, since: int = 0, seconds: float = PATIENCE) -> re.Match[str]:
        """Wait for a line with `pattern` in it, from line number `since` on."""
        expression = re.compile(pattern)
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                for line in self.lines[since:]:
                    if match := expression.search(line):
                        return match
                since = max(since, len(self.lines))
                rest = deadline - time.monotonic()
                if self._ended or rest <= 0:
                    log = "\n".join(self.lines)
                    raise AssertionError(f"{self.name} did not say {pattern!r}; it said:\n{log}")
                self._changed.wait(rest)

    def kill(self) -> int:
        """As `kill -9`, and wait for its end."""
        self.process.kill()
        return self.wait()

    def stop(self, seconds: float = PATIENCE) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code of a process that ends, by SIGKILL if it takes longer."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join(PATIENCE)
        return code


class Links:
    """Starts exits and clients inside hosts, all with their files in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.state_dir = directory / "state"
        home = str(directory)
        kept = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
        self.environment = {name: value for name, value in os.environ.items() if name in kept} | {
            "HOME": home,
            "XDG_CONFIG_HOME": f"{home}/config",
            "XDG_RUNTIME_DIR": f"{home}/run",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        self.roles: list[Role] = []
        self._ids: dict[str, str] = {}

    def command(self, *arguments: str) -> list[str]:
        """A command line of the program, for `Namespace.run` and `attempt` with `env=environment`."""
        return [sys.executable, "-m", "cryprq_proxy", *arguments]

    def call(self, host: Namespace, *arguments: str, limit: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Runs one of the short commands inside a host: `cleanup`, `status`, `leaktest`."""
        return host.attempt(self.command(*arguments), env=self.environment, limit=limit)

    def identity(self, name: str) -> tuple[Path, str]:
        """The file of an identity, made by `keygen` when first asked for, and its peer id."""
        file = self.directory / f"{name}.key"
        if name not in self._ids:
            done = subprocess.run(
                self.command("keygen", str(file)),
                env=self.environment,
                cwd=self.directory,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            assert not done.returncode, done.stderr
            self._ids[name] = done.stdout.strip()
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
        return self._start(name, host, ["exit"], merge(defaults, settings or {}))

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
        """Starts `cryprq-proxy --tun` with more `options`; returns when it says that all traffic goes through."""
        defaults: Settings = {"peer": f"cryprq://{self.identity(exit)[1]}@{address}"}
        if tun:
            defaults = merge(defaults, {"tun": {"state_dir": str(self.state_dir)}})
        flags = [*(["--tun"] if tun else []), *options]
        return self._start(name, host, flags, merge(defaults, settings or {}), ready)

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


def merge(*parts: Settings) -> dict[str, Any]:
    """Later settings win, table by table."""
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            known = merged.get(key)
            merged[key] = merge(known, value) if isinstance(known, dict) else value
    return merged


def toml(settings: Settings, table: str = "") -> str:
    """With tables in tables, and arrays of tables. A JSON string, number, list or boolean of these values is a TOML one
    too."""
    inner = {key: value for key, value in settings.items() if isinstance(value, dict) or _tables(value)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if key not in inner]
    parts = ["\n".join([*([f"[{table}]"] if table else []), *lines])]
    for key, value in inner.items():
        name = f"{table}.{key}" if table else key
        if isinstance(value, dict):
            parts.append(toml(value, name))
        else:
            parts += [f"[[{name}]]\n{toml(each)}" for each in value]
    return "\n\n".join(parts) + "\n"


def _tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)
