"""The last addresses of the exits' names, kept in the state directory for a start at which nobody can be asked.

A resolver on this machine asks others by sockets that the closed filter does not let out, so a start behind a standing
kill switch has nothing else. The addresses are no secret and prove nothing: the link checks the exit's identity. A file
that others could have written, or that cannot be read or written, is no failure.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Self

from cryprq_proxy.base.file_access import replace_file
from cryprq_proxy.base.files import is_own_file
from cryprq_proxy.errors import reason_of

_log = logging.getLogger(__name__)

FILE: Final = "exit-addresses.json"
MAX_SIZE: Final = 65_536
"""Bytes of the file that are read; a larger one is not used."""
MAX_ADDRESSES: Final = 16
"""Addresses of one name."""


class KnownAddresses:
    """Name -> addresses as IP literals, at least one. `path` is None for what is kept in memory only."""

    def __init__(self, path: Path | None = None, known: dict[str, tuple[str, ...]] | None = None) -> None:
        self._path = path
        self._known = known or {}
        self._fresh: set[str] = set()

    @classmethod
    def load(cls, path: Path, names: Iterable[str]) -> Self:
        """What the file at `path` knows of `names`. Other names are forgotten at the next change."""
        try:
            held = json.loads(_own_content(path))
        except FileNotFoundError:
            return cls(path)
        except (OSError, ValueError, RecursionError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else "it is damaged"
            _log.warning("the exit's last addresses in %s are not used: %s", path, reason)
            return cls(path)
        held = held if isinstance(held, dict) else {}
        known = {name: _addresses(held.get(name)) for name in names}
        return cls(path, {name: addresses for name, addresses in known.items() if addresses})

    def of(self, name: str) -> tuple[str, ...]:
        """The last addresses; empty if none are known."""
        return self._known.get(name, ())

    def take_fresh(self, name: str) -> bool:
        """Whether the last answer was learned as a fresh one; True once only."""
        fresh = name in self._fresh
        self._fresh.discard(name)
        return fresh

    def learn(self, name: str, addresses: Sequence[str], *, fresh: bool = False) -> None:
        """Take the newest answer; `fresh` if nobody need ask again at first. Writes the file if that changes it."""
        newest = tuple(addresses[:MAX_ADDRESSES])
        # Their order tells what is reachable at the moment: no news for the file.
        changed = set(newest) != set(self.of(name))
        self._known[name] = newest
        if fresh:
            self._fresh.add(name)
        if changed:
            self._write()

    def forget(self, name: str) -> None:
        """The name has no address any more."""
        if self._known.pop(name, None):
            self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            # Whoever owns a file that was there before, and whatever its mode is: it goes.
            self._path.unlink(missing_ok=True)
            os.close(replace_file(self._path, json.dumps(self._known).encode("ascii")))
        except OSError as error:
            _log.warning(
                "the exit's last addresses cannot be kept in %s: %s", self._path.parent, reason_of(error)
            )


def _own_content(path: Path) -> bytes:
    """The content of a plain file of this user alone. Raises OSError, ValueError for a larger one."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(handle, "rb") as file:
        if not is_own_file(os.fstat(handle)):
            raise PermissionError(1, "it is not a file of this user alone")
        content = file.read(MAX_SIZE + 1)
    if len(content) > MAX_SIZE:
        raise ValueError("too large")
    return content


def _addresses(value: object) -> tuple[str, ...]:
    """The addresses in `value` if it is a list of nothing else; empty otherwise."""
    if not isinstance(value, list) or len(value) > MAX_ADDRESSES:
        return ()
    try:
        return tuple(str(ip_address(text)) for text in value if isinstance(text, str))
    except ValueError:
        return ()
