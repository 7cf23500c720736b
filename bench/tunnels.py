"""What bench/tunnel.py compares: the same three hosts (hosts.py), once for each kind of tunnel, and once with none."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from commandline import ROOT, BenchError
from hosts import CLIENT, CLIENT6, EXIT, SERVER, SERVER6, Contender, Wire

from tests.support.lab.links import PORT, Links
from tests.support.lab.net import Lab, until


class Tunnel(Contender):
    """No tunnel: the ceiling. Subclasses give `run`."""

    name = "no tunnel"

    def answers(self) -> bool:
        return not self.client.attempt(["ping", "-c", "1", "-W", "1", SERVER]).returncode

    def run(self) -> None:
        self.lab.forward(self.exit)
        self._masquerade(CLIENT, CLIENT6)

    def _masquerade(self, source: str, source6: str) -> None:
        self.exit.nft(
            "table inet bench { chain post { type nat hook postrouting priority 100;"
            f' oifname "eth1" ip saddr {source} masquerade; oifname "eth1" ip6 saddr {source6} masquerade; }}; }}'
        )


class WireGuardGo(Tunnel):
    """wireguard-go, one process on each side: the newest, which `make tunnelbench` builds, else Debian's."""

    name = "wireguard-go"
    BUILT = ROOT / "bench/build/wireguard"
    INNER = ("10.66.0.2", "10.66.0.1")
    INNER6 = ("fd66::2", "fd66::1")
    MTU = 1420
    LISTEN = 51820

    @staticmethod
    def missing() -> str | None:
        if not WireGuardGo.BUILT.exists() and shutil.which("wireguard-go") is None:
            return "wireguard-go is missing; run make tunnelbench, which builds it, or apt-get install wireguard-go"
        if shutil.which("wg") is None:
            return "wg is not installed; on Debian: apt-get install wireguard-tools"
        return None

    @staticmethod
    def program() -> str:
        """The command."""
        return str(WireGuardGo.BUILT) if WireGuardGo.BUILT.exists() else "wireguard-go"

    @staticmethod
    def version() -> str:
        """Which one it is. What it says itself is that of its last release."""
        if WireGuardGo.BUILT.exists() and (go := shutil.which("go")):
            told = subprocess.run(
                [go, "version", "-m", WireGuardGo.BUILT], capture_output=True, text=True, check=False
            )
            for line in told.stdout.splitlines():
                if line.split()[:1] == ["mod"]:
                    return " ".join(line.split()[1:3])
        told = subprocess.run(
            [WireGuardGo.program(), "--version"], capture_output=True, text=True, check=False
        )
        return told.stdout.partition("\n")[0] or "of an unknown version"

    def run(self) -> None:
        hosts, outer = (self.client, self.exit), (CLIENT, EXIT)
        keys = [host.run(["wg", "genkey"]).strip() for host in hosts]
        public = [self.client.run(["wg", "pubkey"], stdin=key).strip() for key in keys]
        for side, host in enumerate(hosts):
            far = 1 - side
            # Its control socket lies in a directory of the machine, so the names must differ.
            device = f"wg{host.name.split('-')[1]}{side}"
            self.programs.append(
                host.popen(
                    [self.program(), "--foreground", device],
                    env={
                        **os.environ,
                        "WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1",
                        "LOG_LEVEL": "error",
                    },
                )
            )
            socket = Path("/var/run/wireguard", f"{device}.sock")
            until(socket.exists, f"wireguard-go makes {device}")
            allowed = (
                "0.0.0.0/0, ::/0" if host is self.client else f"{self.INNER[0]}/32, {self.INNER6[0]}/128"
            )
            config = (
                f"[Interface]\nPrivateKey = {keys[side]}\nListenPort = {self.LISTEN}\n"
                f"[Peer]\nPublicKey = {public[far]}\nEndpoint = {outer[far]}:{self.LISTEN}\n"
                f"AllowedIPs = {allowed}\n"
            )
            host.run(["wg", "setconf", device, "/dev/stdin"], stdin=config)
            host.ip(f"link set {device} up mtu {self.MTU}")
            self.lab.address(host, device, f"{self.INNER[side]}/24", f"{self.INNER6[side]}/64")
            if host is self.client:
                host.ip(f"route add {SERVER}/32 dev {device}")
                host.ip(f"-6 route add {SERVER6}/128 dev {device}")
        self.lab.forward(self.exit)
        self._masquerade(self.INNER[0], self.INNER6[0])

    def stop(self) -> None:
        # On SIGTERM it takes its socket away with it.
        for program in self.programs:
            program.terminate()
        for program in self.programs:
            program.wait(10)


class Cryprq(Tunnel):
    """Our own, with this interpreter: `cryprq-proxy exit` and `cryprq-proxy --tun` of `tree`."""

    name = "cryprq-proxy"

    def __init__(self, lab: Lab, wire: Wire, name: str = name, tree: Path = ROOT) -> None:
        super().__init__(lab, wire)
        self.name = name
        self._tree = tree

    def run(self) -> None:
        self.links = Links(self.client.directory / "links")
        self.links.environment["PYTHONPATH"] = str(self._tree)
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


type Kinds = dict[str, Callable[[Lab, Wire], Tunnel]]

KINDS: dict[str, type[Tunnel]] = {kind.name: kind for kind in (Cryprq, WireGuardGo, Tunnel)}
