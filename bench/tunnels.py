"""What bench/tunnel.py compares: the same three hosts, once for each kind of tunnel, and once with none.

    client 45.83.20.2 ---- 45.83.20.1 exit 93.184.20.1 ---- 93.184.20.10 server

The hosts are namespaces of tests/lab. The cable between client and exit is a veth, or a delay line (delayline.py)
that loses frames. Every contender has hosts of its own, so that none sees the other's routes; its exit masquerades.
The addresses are ordinary public ones because an exit refuses others; they never leave the namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pairs import ROOT, BenchError

sys.path.insert(0, str(ROOT))
from tests.support.lab.links import PORT, Links
from tests.support.lab.net import Lab, LabError, until

CLIENT = "45.83.20.2"
EXIT = "45.83.20.1"
EXIT_OUTER = "93.184.20.1"
SERVER = "93.184.20.10"
IPERF_PORT = 5201
START_LIMIT = 30.0
"""Seconds until the first packet must have come through a tunnel."""
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Wire:
    """The cable between client and exit; with neither delay, loss nor rate it is a veth."""

    delay: float = 0.0
    """Seconds in each direction."""
    loss: float = 0.0
    """Chance of each frame, in each direction."""
    rate: float = 0.0
    """Bit/s in each direction, 0 for what the machine can do."""
    limit: int = 64 << 20
    """Bytes that it holds in each direction."""
    seed: int = 1


def new_lab() -> Lab:
    """Where the contenders' hosts are made. Raises BenchError where none can be."""
    try:
        return Lab()
    except LabError as error:
        raise BenchError(f"The hosts cannot be made: {error}.") from error


class Contender:
    """Three hosts and no tunnel: the ceiling. Subclasses give `tunnel`. Use it as a context manager."""

    name = "no tunnel"

    def __init__(self, lab: Lab, wire: Wire) -> None:
        self.lab = lab
        self.wire = wire
        self.programs: list[subprocess.Popen[str]] = []

    @staticmethod
    def missing() -> str | None:
        """What to do where it is not installed, else None."""
        return None

    def start(self) -> None:
        """Makes hosts and tunnel; returns when the server answers through it. Raises BenchError."""
        try:
            self._cable()
            self.server.popen(["iperf3", "-s", "-p", str(IPERF_PORT)])
            until(lambda: f":{IPERF_PORT}" in self.server.run(["ss", "-Hltn"]), "iperf3 listens")
            self.tunnel()
            probe = ["ping", "-c", "1", "-W", "1", SERVER]
            until(lambda: not self.client.attempt(probe).returncode, "the server answers", START_LIMIT)
        except LabError as error:
            raise BenchError(f"{self.name} did not start: {error}") from error

    def _cable(self) -> None:
        lab = self.lab
        self.client, self.exit, self.server = (lab.namespace(label) for label in ("client", "exit", "server"))
        if self.wire.delay or self.wire.loss or self.wire.rate:
            self._delay_line()
        else:
            lab.veth(self.client, "eth0", self.exit, "eth0")
        lab.veth(self.exit, "eth1", self.server, "eth0")
        lab.address(self.client, "eth0", f"{CLIENT}/24")
        lab.address(self.exit, "eth0", f"{EXIT}/24")
        lab.address(self.exit, "eth1", f"{EXIT_OUTER}/24")
        lab.address(self.server, "eth0", f"{SERVER}/24")
        for host, device in ((self.client, "eth0"), (self.exit, "eth0")):
            host.ip(f"link set {device} up")
        self.client.ip(f"route add default via {EXIT}")
        self.server.ip(f"route add default via {EXIT_OUTER}")
        # Buffers that hold what 40 ms of delay and a few Gbit/s put in flight; the same for all.
        for host in (self.client, self.exit, self.server):
            host.sysctl("net.ipv4.tcp_rmem", "4096 131072 16777216")
            host.sysctl("net.ipv4.tcp_wmem", "4096 65536 16777216")

    def _delay_line(self) -> None:
        ends = [f"{host.name}:eth0" for host in (self.client, self.exit)]
        script = str(Path(__file__).with_name("delayline.py"))
        wire = self.wire
        options = ["--delay", str(wire.delay), "--loss", str(wire.loss), "--seed", str(wire.seed)]
        options += ["--rate", str(wire.rate), "--limit", str(wire.limit)]
        if not wire.loss:
            options.append("--offload")
        # Inside the server's host only to end with it; it finds the others by name.
        cable = self.server.popen(
            [sys.executable, script, *ends, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert cable.stdout is not None
        if cable.stdout.readline() != "ready\n":
            raise BenchError("The delay line did not start.")

    def tunnel(self) -> None:
        self.lab.forward(self.exit)
        self._masquerade(CLIENT)

    def _masquerade(self, source: str) -> None:
        self.exit.nft(
            "table ip bench { chain post { type nat hook postrouting priority 100;"
            f' ip saddr {source} oifname "eth1" masquerade; }}; }}'
        )

    def cpu(self) -> float:
        """Seconds of user and system time of the tunnel's processes so far."""
        total = 0
        for program in self.programs:
            if program.poll() is not None:
                raise BenchError(f"A process of {self.name} ended with code {program.returncode}.")
            values = Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()
            total += int(values[11]) + int(values[12])
        return total / TICKS

    def stop(self) -> None:
        """Nothing that the hosts' end does not end as well."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class WireGuardGo(Contender):
    """Debian's wireguard-go in userspace, one process on each side."""

    name = "wireguard-go"
    INNER = ("10.66.0.2", "10.66.0.1")
    MTU = 1420
    LISTEN = 51820

    @staticmethod
    def missing() -> str | None:
        for program, package in (("wireguard-go", "wireguard-go"), ("wg", "wireguard-tools")):
            if shutil.which(program) is None:
                return f"{program} is not installed; on Debian: apt-get install {package}"
        return None

    def tunnel(self) -> None:
        hosts, outer = (self.client, self.exit), (CLIENT, EXIT)
        keys = [host.run(["wg", "genkey"]).strip() for host in hosts]
        public = [self.client.run(["wg", "pubkey"], stdin=key).strip() for key in keys]
        for side, host in enumerate(hosts):
            far = 1 - side
            # Its control socket lies in a directory of the machine, so the names must differ.
            device = f"wg{host.name.split('-')[1]}{side}"
            self.programs.append(
                host.popen(
                    ["wireguard-go", "--foreground", device],
                    env={
                        **os.environ,
                        "WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1",
                        "LOG_LEVEL": "error",
                    },
                )
            )
            socket = Path("/var/run/wireguard", f"{device}.sock")
            until(socket.exists, f"wireguard-go makes {device}")
            allowed = "0.0.0.0/0" if host is self.client else f"{self.INNER[0]}/32"
            config = (
                f"[Interface]\nPrivateKey = {keys[side]}\nListenPort = {self.LISTEN}\n"
                f"[Peer]\nPublicKey = {public[far]}\nEndpoint = {outer[far]}:{self.LISTEN}\n"
                f"AllowedIPs = {allowed}\n"
            )
            host.run(["wg", "setconf", device, "/dev/stdin"], stdin=config)
            self.lab.address(host, device, f"{self.INNER[side]}/24")
            host.ip(f"link set {device} up mtu {self.MTU}")
            if host is self.client:
                host.ip(f"route add {SERVER}/32 dev {device}")
        self.lab.forward(self.exit)
        self._masquerade(self.INNER[0])

    def stop(self) -> None:
        # On SIGTERM it takes its socket away with it.
        for program in self.programs:
            program.terminate()
        for program in self.programs:
            program.wait(10)


class Cryprq(Contender):
    """Our own, of this interpreter and this working tree: `cryprq-proxy exit` and `cryprq-proxy --tun`."""

    name = "cryprq-proxy"

    def tunnel(self) -> None:
        self.links = Links(self.client.directory / "links")
        # Debug lines would be part of what is measured.
        quiet = {"log_level": "info"}
        try:
            roles = [
                self.links.exit(self.exit, quiet),
                self.links.client(self.client, settings=quiet, address=f"{EXIT}:{PORT}"),
            ]
        except AssertionError as error:
            raise BenchError(f"{self.name} did not start: {error}") from error
        self.programs += [role.process for role in roles]

    def stop(self) -> None:
        if hasattr(self, "links") and (wrong := self.links.close()):
            raise BenchError("\n".join(wrong))


KINDS: dict[str, type[Contender]] = {kind.name: kind for kind in (Cryprq, WireGuardGo, Contender)}
