"""A role of the program in the test's own event loop, over loopback: its configuration, its start and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.config.client import ClientConfig, client_from
from cryprq_proxy.config.exit import ExitConfig, exit_from
from cryprq_proxy.config.keys import save_identity
from cryprq_proxy.crypto.identity import Identity, PeerId
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.process.control import query, query_status
from cryprq_proxy.process.lifecycle import Stop
from cryprq_proxy.process.sd_notify import Notifier
from cryprq_proxy.process.watchdog import UNWATCHED, Watchdog
from cryprq_proxy.status import Status

type Role = Callable[[Stop], Coroutine[Any, Any, None]]
"""Runs until its `Stop` says so."""


class ReadyNotifier(Notifier):
    """Sets `started` where a service manager would hear READY=1."""

    def __init__(self) -> None:
        super().__init__()
        self.started = asyncio.Event()

    def ready(self, status: Callable[[], str], watch: Watchdog = UNWATCHED) -> None:
        status()
        self.started.set()


class RunningRole:
    """`task` is the role; `stop` is what the signals ask it for."""

    def __init__(self, role: Role) -> None:
        self._notifier = ReadyNotifier()
        self.stop = Stop(self._notifier)
        self.task = spawn(role(self.stop), "role")

    async def started(self) -> None:
        """Return when it is ready. Raises what it raises if it ends before."""
        ready = spawn(self._notifier.started.wait(), "ready")
        await asyncio.wait({ready, self.task}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            await self.task
            raise AssertionError("it ended before it was ready")

    async def end(self) -> None:
        """Stop it at once. Raises what it raises."""
        self.stop.asked.set()
        self.stop.urgent.set()
        await self.task


@asynccontextmanager
async def running(role: Role) -> AsyncIterator[RunningRole]:
    """`role` from when it is ready until it has stopped. Raises what it raises."""
    started = RunningRole(role)
    try:
        await started.started()
        yield started
    finally:
        await started.end()


class RoleFiles:
    """Configurations of an exit and a client in a directory. The lane is off, since it needs nothing of loopback."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authorized = directory / "authorized"
        self.exit_id = self.identity("exit")
        self.client_id = self.identity("client")
        self.authorize(f"{self.client_id} laptop")

    def identity(self, name: str) -> PeerId:
        identity = Identity.generate(select_provider())
        save_identity(identity, self.directory / f"{name}.key")
        return identity.peer_id

    def authorize(self, *lines: str) -> None:
        self.authorized.write_text("".join(f"{line}\n" for line in lines))

    def exit(self, more: str = "", tables: str = "") -> ExitConfig:
        text = (
            'identity = "exit.key"\nauthorized = "authorized"\ncontrol_socket = "exit.sock"\n'
            f"{'' if 'listen =' in more else LISTEN}{more}\n[lane]\nenabled = false\n{tables}"
        )
        return exit_from(text, self.directory / "exit.toml", {})

    def client(self, more: str = "", tables: str = "", port: int = 1) -> ClientConfig:
        """A client of the exit at `port`, where nothing listens unless the test does."""
        text = (
            'identity = "client.key"\ncontrol_socket = "client.sock"\n'
            f'peer = "cryprq://{self.exit_id}@127.0.0.1:{port}"\n'
            f"{'' if 'admin =' in more else ADMIN_OFF}"
            f"{'' if 'carrier =' in more else TCP_ALONE}"
            f"{'' if 'listen =' in more else LISTEN}{more}\n{tables}"
        )
        return client_from(text, self.directory / "client.toml", True, {})

    async def status(self, role: str) -> Status:
        return await asyncio.to_thread(query_status, self.directory / f"{role}.sock")

    async def command(self, role: str, command: str, argument: str = "") -> dict[str, Any]:
        """The answer at the control socket. Raises CryprqError with the text of an error."""
        return await asyncio.to_thread(query, self.directory / f"{role}.sock", command, argument=argument)


LISTEN = 'listen = "127.0.0.1:0"\n'
TCP_ALONE = 'carrier = "tcp"\n'
ADMIN_OFF = 'admin = "off"\n'
