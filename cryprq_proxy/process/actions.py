"""The actions of a running client: one list for the control socket, the dashboard and the commands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from ..errors import CryprqError
from ..status import AskedExit, OpenConnection, Status, Traffic

MAX_PAUSE: Final = 3600
"""Seconds of a pause; the packet filter (tun/linux/firewall/filter.py) opens for no longer either."""

type Action = Callable[[str], Awaitable[Mapping[str, object] | Struct]]
"""Carries out a command of the control socket, with its argument. Raises CryprqError with the reason if it fails."""


class Actions:
    """All methods are called in the event loop, and raise CryprqError if the action fails."""

    async def status(self) -> Status:
        raise NotImplementedError

    def traffic(self) -> Traffic:
        """The bytes since the start, of streams and of packets; costs little."""
        raise NotImplementedError

    def streams(self) -> Sequence[OpenConnection]:
        """The open connections, newest first, at most 1000."""
        raise NotImplementedError

    def pac(self) -> str:
        """The PAC file of the rules in force."""
        raise NotImplementedError

    def close(self, id: str) -> bool:
        """End the connection with that id; False if there is none."""
        raise NotImplementedError

    def choose_exit(self, name: str) -> None:
        """Use that exit for new connections; "auto" chooses by priority and health again."""
        raise NotImplementedError

    async def reload(self) -> str:
        """Read rules and lists again. Returns the result in words."""
        raise NotImplementedError

    async def report(self, exit: str = "") -> AskedExit:
        """What this exit, or the one in use, tells about itself. Raises CryprqError."""
        raise NotImplementedError

    def dashboard(self) -> str:
        """The dashboard's URL, with the token."""
        raise NotImplementedError

    async def pause(self, seconds: int) -> None:
        """Let everything past the tunnel for `seconds`."""
        raise NotImplementedError

    def confirm(self) -> None:
        """Keep system-wide mode: the person says that it works. Raises CryprqError if nothing waits for that."""
        raise NotImplementedError


def commands(actions: Actions) -> dict[str, Action]:
    """The commands of the control socket beside `status`."""

    async def streams(_: str) -> dict[str, object]:
        return {"streams": actions.streams()}

    async def close(id: str) -> dict[str, object]:
        if not actions.close(id):
            raise CryprqError(f"there is no open connection {id[:60]!a}")
        return {"closed": id}

    async def choose_exit(name: str) -> dict[str, object]:
        actions.choose_exit(name)
        return {"exit": name}

    async def reload(_: str) -> dict[str, object]:
        return {"reloaded": await actions.reload()}

    async def report(exit: str) -> AskedExit:
        return await actions.report(exit)

    async def dashboard(_: str) -> dict[str, object]:
        return {"url": actions.dashboard()}

    async def pause(argument: str) -> dict[str, object]:
        # `int` refuses a number of thousands of digits in words of its own.
        digits = argument.isascii() and argument.isdecimal() and len(argument) <= len(str(MAX_PAUSE))
        if not digits or not 1 <= int(argument) <= MAX_PAUSE:
            raise CryprqError(f"a pause has 1 to {MAX_PAUSE} seconds")
        await actions.pause(int(argument))
        return {"paused": int(argument)}

    async def confirm(_: str) -> dict[str, object]:
        actions.confirm()
        return {"confirmed": True}

    async def pac(_: str) -> dict[str, object]:
        return {"pac": actions.pac()}

    return {
        "streams": streams,
        "pac": pac,
        "close": close,
        "exit": choose_exit,
        "reload": reload,
        "report": report,
        "dashboard": dashboard,
        "pause": pause,
        "confirm": confirm,
    }
