"""Two exits as real processes, and a client that prefers the first."""

from __future__ import annotations

from typing import Any

from tests.support.applications import read_exactly, through
from tests.support.config_files import Settings
from tests.support.programs import Client, Exit, World, until
from tests.support.targets import TcpTarget


class TwoExits:
    """Two exits, called first and second in the order of preference, and a client of both."""

    def __init__(
        self,
        world: World,
        exit_settings: Settings | None = None,
        flags: tuple[str, ...] = (),
        **settings: Any,
    ) -> None:
        self.first = world.exit(exit_settings, identity="exit", flags=flags)
        self.second = world.exit(exit_settings, identity="other", flags=flags)
        tables = [
            {"name": name, "priority": priority, "peer": f"cryprq://{exit.peer_id}@127.0.0.1:{exit.port}"}
            for priority, (name, exit) in enumerate([("first", self.first), ("second", self.second)], 1)
        ]
        self.client: Client = world.client(None, {"exit": tables, **settings}, wait=False)
        until(lambda: self.healthy() == ["first", "second"], "both links are up")
        until(lambda: self.active() == "first", "the preferred one is active")

    def healthy(self) -> list[str]:
        return [exit["name"] for exit in self.client.status()["exits"] if exit["healthy"]]

    def active(self) -> str:
        [name] = [exit["name"] for exit in self.client.status()["exits"] if exit["active"]]
        return str(name)

    def goes_through(self, exit: Exit, target: TcpTarget) -> None:
        """A new connection, of which `exit` and no other knows."""
        before = exit.streams
        with through(self.client.port, target.port) as sock:
            sock.sendall(b"hello")
            assert read_exactly(sock, 5) == b"hello"
            assert exit.streams == before + 1
