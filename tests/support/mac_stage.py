"""Both roles on one Mac, as root, and what of the Mac must be afterwards as it was before.

    application -> client's utun -> client == link on loopback ==> exit -> exit's utun -> pf, forwarding -> far utun
    application <- client's utun <- client <== link on loopback == exit <- exit's utun <- pf              <- far utun

One kernel has one routing table, and one address is local on all interfaces, so two things must be helped by rules of
pf in an anchor that is asked before ours (`rules`):

 - The client routes the test's prefixes into its tunnel. What the exit sends on to them would go there again. So they
   are renamed (rdr) as they come in on the exit's device, to prefixes that only the far utun has routes of. Everything
   behind that is the exit's own: its rules, the kernel's forwarding, its translation.
 - The answer's destination is the client's address, behind the exit's translation. That address is this machine's, so
   the kernel would give the answer to the application at once. So what leaves by the far utun has its answers sent
   into the exit's device (reply-to), as the route to the pool would do on a machine of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple

from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.process.control import query
from tests.support.background import PATIENCE
from tests.support.config_files import Settings, merge, toml
from tests.support.logged import LoggedProcess, environment_in
from tun.macos import networks, pfctl, sysctl
from tun.macos.programs import Run, ask, run

ANCHOR = "com.apple/000.cryprq-proxy-test"
"""Anchors below com.apple/ are asked in the order of their names."""


class Family(NamedTuple):
    """What the test uses of one IP version."""

    name: str
    included: str
    """The prefix that the client sends into its tunnel."""
    renamed: str
    """What it is called behind the exit."""
    targets: tuple[str, ...]
    """Addresses inside of it."""
    far: str
    """The address of the far utun's end on this machine."""

    def behind(self, target: str) -> str:
        """A target's name behind the exit."""
        first, renamed = ip_network(self.included), ip_network(self.renamed)
        return str(renamed[int(ip_network(target)[0]) - int(first[0])])


IPV4 = Family("inet", "192.0.2.0/24", "203.0.113.0/24", ("192.0.2.1", "192.0.2.53"), "203.0.113.254")
IPV6 = Family("inet6", "2001:db8:77::/48", "2001:db8:78::/48", ("2001:db8:77::1",), "2001:db8:78::254")


def rules(
    families: list[Family],
    *,
    client: str,
    exit: str,
    far: str,
    pools: Mapping[str, str],
    own: Mapping[str, str],
) -> str:
    """The text of `ANCHOR`: see the head of this file. `client`, `exit`, `far` are the three devices; `pools` and `own`
    are the exit's, by the family's name."""
    lines = [
        f"rdr on {exit} {family.name} from {pools[family.name]} to {target} -> {family.behind(target)}"
        for family in families
        for target in family.targets
    ]
    # The client's own packets bear an address of the exit's pool, which the exit keeps in elsewhere.
    lines.append(f"pass quick on {client} all no state")
    lines += [
        f"pass out quick on {far} reply-to ({exit} {own[family.name]}) {family.name} from any to {family.renamed} "
        "flags any keep state"
        for family in families
    ]
    return "".join(f"{line}\n" for line in lines)


class MacStage:
    """Starts the roles with all their files in `directory`, whose path must be short: sockets are in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._environment = environment_in(directory)
        self._ids: dict[str, str] = {}
        self._running: list[LoggedProcess] = []

    def identity(self, name: str) -> str:
        """The peer id of an identity, which is made when first asked for."""
        if name not in self._ids:
            identity = Identity.generate(select_provider())
            file = self.directory / f"{name}.key"
            file.touch(0o600)
            file.write_bytes(identity.line())
            self._ids[name] = str(identity.peer_id)
        return self._ids[name]

    def write(self, name: str, settings: Settings) -> Path:
        """NAME.toml."""
        self.identity(name)
        defaults: Settings = {
            "identity": str(self.directory / f"{name}.key"),
            "control_socket": str(self.directory / f"{name}.sock"),
            "log_level": "debug",
            "tun": {"enabled": True, "experimental": True, "state_dir": str(self.directory / "state")},
        }
        file = self.directory / f"{name}.toml"
        file.write_text(toml(merge(defaults, settings)))
        file.chmod(0o600)
        return file

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cryprq_proxy", *arguments]

    def start(self, name: str, file: Path) -> LoggedProcess:
        """The role of this configuration, when it is ready."""
        arguments = ["exit"] if name == "exit" else []
        process = subprocess.Popen(
            self.command(*arguments, "--config", str(file)),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        role = LoggedProcess(name, process)
        self._running.append(role)
        role.says("ready: ")
        return role

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a short command to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def status(self, name: str) -> dict[str, Any]:
        return query(self.directory / f"{name}.sock", timeout=PATIENCE)

    def close(self) -> None:
        """End what still runs, and undo what it has left."""
        for role in reversed(self._running):
            if role.process.poll() is None:
                role.stop()
        self.call("cleanup", "--state-dir", str(self.directory / "state"))


# --- before and after ---

_PASSING = frozenset("WL")
"""Flags of routes that the kernel makes and forgets by itself: neighbours, cached hosts."""


def snapshot(run: Run = run) -> dict[str, Any]:
    """What of a Mac the program may change: routes, resolvers, pf, kernel settings, utun devices."""
    state = networks.look(run)
    routes = sorted(
        f"{route.prefix} {route.gateway} {route.flags} {route.interface}"
        for route in state.routes
        if not _PASSING & set(route.flags)
    )
    anchors = {anchor: pfctl.loaded(anchor, run) for anchor in (*pfctl.ANCHORS.values(), ANCHOR)}
    return {
        "routes": routes,
        "utun": sorted(each.name for each in state.interfaces if each.name.startswith("utun")),
        "resolvers": _store(run, "list State:/Network/Service/[^/]+/DNS", "show State:/Network/Global/DNS"),
        "pf enabled": pfctl.enabled(run),
        "pf references": sorted(pfctl.references(run)),
        "pf main": pfctl.loaded_main(run),
        "pf anchors": anchors,
        "settings": {name: sysctl.read_setting(name, run) for name in (sysctl.FORWARD4, sysctl.FORWARD6)},
    }


def _store(run: Run, *commands: str) -> str:
    return ask(run, "scutil", stdin="".join(f"{command}\n" for command in (*commands, "quit")))


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What differs, for people; empty if nothing does."""
    return "\n".join(
        f"{name}: {json.dumps(before[name], default=str)} became {json.dumps(after[name], default=str)}"
        for name in before
        if before[name] != after[name]
    )
