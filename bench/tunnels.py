"""What bench/tunnel.py compares: the same three hosts (hosts.py), once for each kind of tunnel, and once with none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hosts import CLIENT, EXIT, SERVER, Hosts
from pairs import BenchError

from tests.support.lab.links import PORT, Links
from tests.support.lab.net import LabError, until

IPERF_PORT = 5201
START_LIMIT = 30.0
"""Seconds until the first packet must have come through a tunnel."""


class Contender(Hosts):
    """Three hosts and no tunnel: the ceiling. Subclasses give `tunnel`. Use it as a context manager."""

    name = "no tunnel"

    @staticmethod
    def missing() -> str | None:
        """What to do where it is not installed, else None."""
        return None

    def start(self) -> None:
        """Makes hosts and tunnel; returns when the server answers through it. Raises BenchError."""
        try:
            self.cable()
            self.server.popen(["iperf3", "-s", "-p", str(IPERF_PORT)])
            until(lambda: f":{IPERF_PORT}" in self.server.run(["ss", "-Hltn"]), "iperf3 listens")
            self.tunnel()
            probe = ["ping", "-c", "1", "-W", "1", SERVER]
            until(lambda: not self.client.attempt(probe).returncode, "the server answers", START_LIMIT)
        except LabError as error:
            raise BenchError(f"{self.name} did not start: {error}") from error

    def tunnel(self) -> None:
        self.lab.forward(self.exit)
        self._masquerade(CLIENT)

    def _masquerade(self, source: str) -> None:
        self.exit.nft(
            "table ip bench { chain post { type nat hook postrouting priority 100;"
            f' ip saddr {source} oifname "eth1" masquerade; }}; }}'
        )


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
