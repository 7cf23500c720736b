"""The proxy pairs under test, each a client process and an exit process on loopback, behind one small class.

A pair counts as started when a small request went through it and came back: that holds for any
program, whatever it prints, and nothing here waits for a fixed time. All processes run in a throwaway
directory and write their output to a file there. The harness ends them, or the kernel when it is gone.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from commandline import ROOT, BenchError

from cryprq_proxy.errors import reason_of

START_LIMIT = 30.0
"""Seconds a pair may take until its first request comes back."""
STOP_LIMIT = 8.0
"""Seconds a process may take to end after SIGTERM."""
CARRIERS = ("auto", "tcp", "udp")
"""Of the client's `carrier`: what carries streams (docs/exits-and-carriers.md)."""
REQUEST = b"readiness".ljust(64)


def free_port() -> int:
    """A port below the ephemeral range: no outgoing connection can take it before its server does."""
    for _ in range(200):
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise BenchError("No free port between 20000 and 32000 on 127.0.0.1.")


def _receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionError("closed early")
        data += piece
    return data


def request_through(proxy: int, target: int, timeout: float) -> None:
    """One small request to the target through the SOCKS5 port `proxy` (RFC 1928). Raises OSError."""
    with socket.create_connection(("127.0.0.1", proxy), timeout) as sock:
        sock.sendall(b"\x05\x01\x00")
        if _receive(sock, 2) != b"\x05\x00":
            raise ConnectionError("greeting refused")
        sock.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + target.to_bytes(2))
        reply = _receive(sock, 5)
        if reply[1]:
            raise ConnectionError(f"SOCKS reply {reply[1]}")
        _receive(sock, {1: 4, 3: 1 + reply[4], 4: 16}[reply[3]] + 1)
        sock.sendall(b"E" + REQUEST)
        if _receive(sock, len(REQUEST)) != REQUEST:
            raise ConnectionError("wrong answer")


class Process:
    """One process with its output in a file. Ends with stop()."""

    def __init__(
        self, name: str, command: list[str], directory: Path, environ: dict[str, str] | None = None
    ) -> None:
        self.name = name
        if shutil.which("setpriv"):
            # Execs in place: the pid stays, and a harness that is killed leaves nothing running.
            command = ["setpriv", "--pdeathsig", "TERM", *command]
        self.log = directory / f"{name}.log"
        with self.log.open("wb") as log:
            try:
                self.popen = subprocess.Popen(
                    command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ
                )
            except OSError as error:
                raise BenchError(f"Cannot start {command[0]}: {reason_of(error)}.") from error

    @property
    def pid(self) -> int:
        return self.popen.pid

    def check(self) -> None:
        """Raises BenchError, with the end of its output, if it has ended by itself."""
        if self.popen.poll() is not None:
            raise BenchError(f"{self.name} ended with code {self.popen.returncode}:\n{self.tail()}")

    def wait_for_port(self, port: int) -> None:
        """Returns when something accepts on that loopback port. Raises BenchError if nothing does."""
        deadline = time.monotonic() + START_LIMIT
        while True:
            self.check()
            try:
                socket.create_connection(("127.0.0.1", port), 5.0).close()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise BenchError(f"{self.name} does not listen on port {port}.") from error
            time.sleep(0.01)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]

    def stop(self) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


class Pair:
    """Client and exit of one kind. Subclasses give `launch`; use it as a context manager."""

    name = ""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="cryprq-bench-"))
        self.socks_port = 0
        self.processes: list[Process] = []

    def launch(self) -> list[Process]:
        """Starts the processes, client first in the list, and sets socks_port."""
        raise NotImplementedError

    def start(self, target: int) -> None:
        """Starts the pair; returns when a request to `target` came back. Raises BenchError if none does."""
        self.processes = self.launch()
        deadline = time.monotonic() + START_LIMIT
        while True:
            for process in self.processes:
                process.check()
            try:
                return request_through(self.socks_port, target, 5.0)
            except OSError as error:
                if time.monotonic() > deadline:
                    tails = "\n".join(f"[{p.name}] {p.tail()}" for p in self.processes)
                    raise BenchError(f"{self.name} did not carry a request ({error}):\n{tails}") from error
            time.sleep(0.02)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    def private_kib(self) -> list[int]:
        """Private memory of each process in KiB: what would be free again if it ended (smaps_rollup)."""
        sizes = []
        for process in self.processes:
            process.check()
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            sizes.append(sum(int(line.split()[1]) for line in lines if line.startswith("Private_")))
        return sizes

    def stop(self) -> None:
        for process in self.processes:
            process.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Shadowsocks(Pair):
    """Debian's C pair, with the cipher that our link takes on the same machine, else with its defaults."""

    name = "shadowsocks-libev"

    @staticmethod
    def missing() -> str | None:
        """What to do where it is not installed, else None."""
        if shutil.which("ss-local") and shutil.which("ss-server"):
            return None
        return "shadowsocks-libev is not installed; on Debian: apt-get install shadowsocks-libev"

    def launch(self) -> list[Process]:
        port, self.socks_port = free_port(), free_port()
        common = ["-s", "127.0.0.1", "-p", str(port), "-k", "bench", "-m", "aes-256-gcm"]
        server = Process("ss-server", ["ss-server", *common], self.directory)
        local = Process(
            "ss-local", ["ss-local", *common, "-b", "127.0.0.1", "-l", str(self.socks_port)], self.directory
        )
        return [local, server]


class Cryprq(Pair):
    """Our pair: two processes of this very interpreter and this working tree."""

    name = "cryprq-proxy"

    def __init__(
        self, rotation: float | None = None, dashboard: bool = False, carrier: str | None = None
    ) -> None:
        """`carrier` is the client's setting of that name, None for the default."""
        super().__init__()
        self.carrier = carrier
        self.rotation = rotation
        self.admin_port = free_port() if dashboard else 0

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cryprq_proxy", *arguments]

    def _environ(self) -> dict[str, str]:
        # Nothing of the user's own configuration may be found, and none of it touched.
        here = str(self.directory)
        places = {"HOME": here, "XDG_CONFIG_HOME": here, "XDG_STATE_HOME": here, "XDG_RUNTIME_DIR": here}
        return {**os.environ, **places, "PYTHONPATH": str(ROOT)}

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs one of the short commands to its end."""
        return subprocess.run(
            self._command(*arguments),
            cwd=self.directory,
            env=self._environ(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def _keygen(self, role: str) -> str:
        done = self._call("keygen", str(self.directory / f"{role}.key"))
        if done.returncode:
            raise BenchError(f"cryprq-proxy keygen failed: {done.stderr.strip()[-500:]}")
        return done.stdout.strip()

    def _write(self, role: str, values: dict[str, object]) -> str:
        values = {
            "identity": str(self.directory / f"{role}.key"),
            "control_socket": str(self.directory / f"{role}.sock"),
            **values,
        }
        # A JSON string, list or boolean of these values is a TOML one too.
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        if self.rotation is not None:
            text += f"\n[rotation]\ninterval = {float(self.rotation)}\n"
        path = self.directory / f"{role}.toml"
        path.write_text(text)
        return str(path)

    def launch(self) -> list[Process]:
        exit_id, client_id = self._keygen("exit"), self._keygen("client")
        port, self.socks_port = free_port(), free_port()
        exit_config = self._write(
            "exit", {"listen": f"127.0.0.1:{port}", "allow": [client_id], "allow_private": True}
        )
        client_config = self._write(
            "client",
            {
                "listen": f"127.0.0.1:{self.socks_port}",
                "peer": f"cryprq://{exit_id}@127.0.0.1:{port}",
                "admin": f"127.0.0.1:{self.admin_port}" if self.admin_port else "off",
                **({"carrier": self.carrier} if self.carrier else {}),
            },
        )
        environ = self._environ()
        exit_ = Process("exit", self._command("exit", "--config", exit_config), self.directory, environ)
        client = Process("client", self._command("--config", client_config), self.directory, environ)
        return [client, exit_]

    def epoch(self) -> int | None:
        """The highest epoch number in the client's `status --json`; None if it tells none."""
        done = self._call("status", "--json", "--config", str(self.directory / "client.toml"))
        try:
            return max(_epochs(json.loads(done.stdout)), default=None)
        except ValueError:
            return None


def _epochs(value: object, within: bool = False) -> list[int]:
    """All integers under a key `epoch`, or under `number` within one."""
    if isinstance(value, dict):
        inside = {key: "epoch" in key or (within and key == "number") for key in value}
        return [n for key, item in value.items() for n in _epochs(item, inside[key])]
    if isinstance(value, list):
        return [n for item in value for n in _epochs(item, within)]
    return [value] if within and isinstance(value, int) and not isinstance(value, bool) else []


class Direct(Pair):
    """No proxy at all: what the generator and its target can do, and so the ceiling of every figure."""

    name = "direct"

    def start(self, target: int) -> None:
        self.socks_port = 0
