"""Which path carries what belongs to the session: one at a time.

The one in use stays in use, unless the client prefers another: it says so in PREFER, and then both sides send on that.
One in doubt (path.py) comes last until something is heard on it, and one that waits for the exit's verdict after those.
Among others the newest is taken: it was opened because an earlier one was lost, or worse.
"""

from __future__ import annotations

from collections.abc import Iterable

from .path import SessionPath


def choose(paths: Iterable[SessionPath], preferred: int, current: SessionPath | None) -> SessionPath | None:
    """The path to use now; None if there is none. `preferred` is a path's number, perhaps of one that is not there."""
    return max(paths, key=lambda path: _rank(path, preferred, current), default=None)


def _rank(
    path: SessionPath, preferred: int, current: SessionPath | None
) -> tuple[bool, bool, bool, bool, int]:
    return (path.admitted, not path.in_doubt, path.number == preferred, path is current, path.number)
