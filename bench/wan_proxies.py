"""What bench/wan.py compares: three hosts for each proxy (hosts.py), its client on one and its exit on the next.

On the server nginx has 100 objects of 20 kB, as many small ones and one large file of zeros, wan_clock.py speaks first,
and iperf3 waits for flows past the proxy. A contender says which processes it is made of, and on which port of the
client SOCKS5 is spoken.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commandline import BenchError
from hosts import CLIENT, EXIT, EXIT_OUTER, Contender
from pairs import Cryprq, Shadowsocks
from wan_clock import PORT as CLOCK_PORT
from wan_load import LARGE, OBJECT, OBJECTS, SMALL, content

from tests.support.lab.links import PORT, Links
from tests.support.lab.net import LabError, Namespace

LOAD = Path(__file__).with_name("wan_load.py")
CLOCK = Path(__file__).with_name("wan_clock.py")
SOCKS = 1080
SETTINGS = ("exact", "learned", "eager")
"""Of `connect`: when an application is answered (docs/applications.md)."""
STOP_LIMIT = 10.0
MEMORY = 10
"""Seconds for which the NAT before the exit knows a flow that is silent."""
MOVED = "45.83.20.3"
"""The client's other address."""
# Behind the NAT it has the address of its other side, and so what leaves forgotten has a source that nobody knows.
NAT = f"""
table ip nat_of_exit {{
    chain pre {{
        type nat hook prerouting priority dstnat;
        ip daddr {EXIT} meta l4proto udp dnat to {EXIT_OUTER}
    }}
}}
"""
NGINX = """
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
worker_processes 1;
events {{ worker_connections 1000; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path {directory};
    proxy_temp_path {directory};
    fastcgi_temp_path {directory};
    uwsgi_temp_path {directory};
    scgi_temp_path {directory};
    server {{ listen 80; root {directory}; }}
}}
"""
Result = dict[str, Any]


class Proxy(Contender):
    """No proxy: what the line and the load can do. Subclasses give `prepare` and the two command lines."""

    name = "no proxy"
    socks = 0
    _client: subprocess.Popen[str] | None = None
    _address = CLIENT

    # Start

    def run(self) -> None:
        self.lab.forward(self.exit)
        self.prepare()
        if command := self.exit_command():
            self._run(self.exit, "exit", command)
        self.start_client()

    def listening(self) -> tuple[int, ...]:
        directory = self.server.directory / "www"
        directory.mkdir()
        directory.chmod(0o755)
        for name in (f"{size}-{number}" for size in (SMALL, OBJECT) for number in range(OBJECTS)):
            (directory / name).write_bytes(content(name))
        with (directory / "large").open("wb") as large:
            large.truncate(LARGE)
        file = directory / "nginx.conf"
        file.write_text("user root;\n" + NGINX.format(directory=directory))
        self.server.popen(
            ["nginx", "-p", str(directory), "-e", str(directory / "nginx.log"), "-c", str(file)]
        )
        self.server.popen([sys.executable, str(CLOCK)])
        return (80, CLOCK_PORT)

    def prepare(self) -> None:
        """Writes configurations and keys, into `files`."""

    def client_command(self) -> list[str]:
        return []

    def exit_command(self) -> list[str]:
        return []

    def environment(self) -> dict[str, str] | None:
        return None

    @property
    def files(self) -> Path:
        """A directory for the files of both ends."""
        directory = self.client.directory / "proxy"
        directory.mkdir(exist_ok=True)
        return directory

    def _run(self, host: Namespace, name: str, command: list[str]) -> subprocess.Popen[str]:
        with (self.files / f"{name}.log").open("a") as log:
            program = host.popen(command, stdout=log, stderr=log, env=self.environment())
        self.programs.append(program)
        return program

    def stop_client(self) -> None:
        """Its link is down after this. Nothing where there is no proxy."""
        if self._client is not None:
            self._client.terminate()
            self._client.wait(STOP_LIMIT)
            self.programs.remove(self._client)

    def start_client(self) -> None:
        """Returns at once. Nothing where there is no proxy."""
        if command := self.client_command():
            self._client = self._run(self.client, "client", command)

    # What happens to the hosts

    def move_client(self) -> None:
        """The client gets its other address, and loses the one that it has."""
        self._address = CLIENT if self._address == MOVED else MOVED
        self.client.sysctl("net.ipv4.conf.eth0.promote_secondaries", "1")
        [old] = re.findall(r"inet (\S+)", self.client.ip("-4 addr show dev eth0"))
        self.client.ip(f"addr add {self._address}/24 dev eth0")
        self.client.ip(f"addr del {old} dev eth0")
        self.client.ip(f"route replace default via {EXIT}")

    @contextmanager
    def behind_nat(self) -> Iterator[None]:
        """The exit is reached by UDP through a NAT that forgets."""
        self.exit.nft(NAT)
        for kind in ("timeout", "timeout_stream"):
            self.exit.sysctl(f"net.netfilter.nf_conntrack_udp_{kind}", str(MEMORY))
        try:
            yield
        finally:
            self.exit.nft("delete table ip nat_of_exit")

    def answers(self) -> bool:
        for program in self.programs:
            if program.poll() is not None:
                raise LabError(f"a process ended with code {program.returncode}")
        return not self.client.attempt(
            self.load_command("requests", "--count", "1", "--workers", "1")
        ).returncode

    def said(self) -> str:
        logs = sorted(self.files.glob("*.log"))
        return "".join(f"\n[{log.name}] {log.read_text(errors='replace')[-1000:]}" for log in logs)

    # Load

    def load_command(self, test: str, *options: str) -> list[str]:
        return [sys.executable, str(LOAD), test, "--proxy", str(self.socks), *options]

    def load(self, test: str, *options: str) -> subprocess.Popen[str]:
        """Starts the load generator in the client's host; give it to `result` then."""
        command = self.load_command(test, *options)
        return self.client.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def result(self, load: subprocess.Popen[str]) -> Result:
        """What it measured. Raises BenchError."""
        output, errors = load.communicate(timeout=150)
        if load.returncode:
            raise BenchError(f"{self.name}: {errors.strip()}.{self.said()}")
        result: Result = json.loads(output.splitlines()[-1])
        return result


class CryprqProxy(Proxy):
    """Ours, of this working tree, as it is configured when nothing is said."""

    name = Cryprq.name
    socks = SOCKS
    tree: Path | None = None
    """Another checkout to run instead, with this interpreter."""
    connect: str | None = None
    """One of SETTINGS, where not as by default."""
    carrier: str | None = None
    """One of CARRIERS, likewise."""

    def prepare(self) -> None:
        self._links = Links(self.files)
        if self.tree is not None:
            self._links.environment["PYTHONPATH"] = str(self.tree)
        # Debug lines would be part of what is measured.
        quiet = {"log_level": "info"}
        try:
            identities = {role: self._links.identity(role)[1] for role in ("client", "exit")}
        except AssertionError as error:
            raise LabError(f"no keys: {error}") from error
        listen = {"listen": [f"0.0.0.0:{PORT}"], "allow": [identities["client"]]}
        self._exit_file = self._links.config("exit", {**quiet, **listen})
        dial = {"peer": f"cryprq://{identities['exit']}@{EXIT}:{PORT}", "admin": "off"}
        given = {"connect": self.connect, "carrier": self.carrier}
        dial |= {key: value for key, value in given.items() if value is not None}
        self._client_file = self._links.config("client", {**quiet, **dial})

    def environment(self) -> dict[str, str] | None:
        return self._links.environment

    def exit_command(self) -> list[str]:
        return self._links.command("exit", "--config", str(self._exit_file))

    def client_command(self) -> list[str]:
        return self._links.command("--config", str(self._client_file))


class ShadowsocksProxy(Proxy):
    """Debian's C pair, with the cipher that our link takes on most machines."""

    name = Shadowsocks.name
    socks = SOCKS
    missing = staticmethod(Shadowsocks.missing)

    def _command(self, program: str, *options: str) -> list[str]:
        return [program, "-s", EXIT, "-p", "8388", "-k", "bench", "-m", "aes-256-gcm", *options]

    def exit_command(self) -> list[str]:
        return self._command("ss-server")

    def client_command(self) -> list[str]:
        return self._command("ss-local", "-b", "127.0.0.1", "-l", str(SOCKS))
