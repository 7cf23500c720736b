"""After a join: the client that runs takes the exit over at once, where it was started with the same file."""

from __future__ import annotations

from pathlib import Path

from ..errors import CryprqError
from ..process.control import query
from .control import READING_SECONDS
from .running import find


class NotTakenOver(CryprqError):
    """The client that runs goes on without the exit; the reason, and what to do, in one sentence."""


def take_over(file: Path) -> str | None:
    """Have the client that was started with `file` read it again. Returns what to tell a person; None: no such client
    runs. Raises NotTakenOver."""
    about = find("client", file)
    if about.socket is None:
        return None
    if "peer" in about.flags:
        raise NotTakenOver(
            "the client that runs was started with --peer, and keeps to the exits that this names: stop it, and start "
            "it without --peer"
        )
    try:
        said = query(about.socket, "reload", READING_SECONDS)["reloaded"]
    except CryprqError as error:
        raise NotTakenOver(
            f"the client that runs did not take it over: {error}; mend that, and it does so by itself"
        ) from None
    return f"the client that runs uses it from now on: {said}"
