"""From two bare hosts to the first page through the proxy: two commands there, two here, and nothing written by hand.

The hosts share no file: each has a home of its own. The invite names the address that the exit has found out by itself.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.lab.hosts import EXIT4, SERVER4, ThreeHosts
from tests.support.lab.links import Links, Role
from tests.support.lab.net import LONG, Namespace
from tests.support.lab.server import FarServer


class Bare:
    """A host on which the program is installed, and nothing else done."""

    def __init__(self, links: Links, host: Namespace, home: Path) -> None:
        home.mkdir()
        self.home = home
        self._links = links
        self._host = host
        self._environment = links.environment | {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_RUNTIME_DIR": str(home / "run"),
        }

    def start(self, name: str, *arguments: str) -> Role:
        """A command that goes on; returns when it is ready."""
        role = Role(name, self._host, self._links.command(*arguments), self._environment)
        self._links.roles.append(role)
        role.says("ready: ")
        return role

    def command(self, *arguments: str) -> str:
        """A command that ends; its standard output."""
        return self._host.run(self._links.command(*arguments), env=self._environment)

    def page(self, *proxy: str) -> str:
        """The address from which the far server saw us come."""
        return self._host.run(["curl", "-sS", "--max-time", f"{LONG:g}", *proxy, f"http://{SERVER4}/address"])


def test_two_commands_there_and_two_here(
    three_hosts: ThreeHosts,
    server: FarServer,
    links: Links,
    record_property: Callable[[str, object], None],
) -> None:
    there = Bare(links, three_hosts.exit, links.directory / "there")
    here = Bare(links, three_hosts.client, links.directory / "here")
    began = time.monotonic()

    there.start("exit", "exit")
    invite = there.command("invite", "laptop").strip()
    said = here.command("join", invite)
    client = here.start("client")
    seen = here.page("-x", "socks5h://127.0.0.1:1080")

    seconds = time.monotonic() - began
    record_property("seconds", round(seconds, 2))
    print(f"from two bare hosts to the first page: {seconds:.1f} s")
    assert seen == EXIT4 != here.page()
    assert f"@{EXIT4}:4433#" in invite
    assert re.search(r"Now start the proxy:\n  \S+ -m cryprq_proxy\n", said)

    [peer] = json.loads(there.command("peers", "--json"))["peers"]
    assert peer["name"] == "laptop" and peer["peer_id"] in said
    secret = invite.partition("#")[2]
    kept = [path for home in (there.home, here.home) for path in home.rglob("*") if path.is_file()]
    assert {path.name for path in kept} >= {"identity", "authorized", "invites", "client.toml"}
    assert not any(secret in path.read_text() for path in kept)

    there.command("peers", "revoke", "laptop")
    client.says("link down: .*not authorized")
