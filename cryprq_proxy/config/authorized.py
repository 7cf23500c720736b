"""The exit's list of peers, the file `authorized`: how to read it and change single lines.

    # friends
    aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa laptop of Alice   # since May

One peer id a line, then an optional name; # begins a comment. People edit this file too, so a change touches only the
lines of that peer, and any text after an id is its name. Names that are set here are unique. Of a peer that stands on
several lines the last name counts.

A peer that was revoked is in the file `revoked` beside it, in lines of the same form. It is not let in, whatever list
names it: an editor that saves an old copy of `authorized` brings nobody back. `add` takes it out of that file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from ..base.file_access import exists
from ..base.files import SharedFile
from ..base.log import one_line
from ..base.paths import MAX_LIST, read_text
from ..base.program import to_run
from ..crypto.identity import PEER_ID_LENGTH, PeerId
from ..errors import ConfigError

WHAT: Final = "the list of authorized peers"
WHAT_REVOKED: Final = "the list of revoked peers"
MAX_REVOKED: Final = 65_536
"""Revocations that are remembered: the latest ones."""
MAX_NAME: Final = 64
"""Characters."""
_ID_LIKE: Final = re.compile(f"[a-z2-7]{{{PEER_ID_LENGTH}}}", re.IGNORECASE)
_LINE: Final = re.compile(r"(\s*)(?P<id>[^\s#]+)(?P<name>[^#]*?)(?P<rest>\s*(?:#.*)?)", re.DOTALL)


class Peer(NamedTuple):
    """One line of the list."""

    peer_id: PeerId
    name: str
    """As in the file; may be empty."""

    @property
    def shown(self) -> str:
        """The peer's name for a terminal, or its id if it has none."""
        return one_line(self.name) or str(self.peer_id)


class RepeatedPeer(NamedTuple):
    """A peer on several lines of the list, under the name that counts."""

    peer: Peer
    first: int
    last: int
    """Numbers of lines."""


def check_name(name: str) -> str:
    """Return `name` if it is valid for a peer. Raises ConfigError with the reason."""
    if not 1 <= len(name) <= MAX_NAME:
        raise ConfigError(f"a peer's name has 1 to {MAX_NAME} characters, but this one has {len(name)}")
    if not name.isprintable() or "#" in name or name != name.strip():
        raise ConfigError(
            f"{name!a} cannot name a peer: use printable characters without #, and no space at the ends"
        )
    if name.startswith("-"):
        raise ConfigError(f"{name!a} cannot name a peer: a name that begins with - looks like a flag")
    if _ID_LIKE.fullmatch(name):
        raise ConfigError("a peer's name must not look like a peer id")
    return name


def free_name(wanted: str, taken: Iterable[str]) -> str:
    """`wanted`, with a number appended if it is taken."""
    names, number, name = set(taken), 1, wanted
    while name in names:
        number += 1
        suffix = f"-{number}"
        name = wanted[: MAX_NAME - len(suffix)].rstrip() + suffix
    return name


def parse_peers(text: str, file: Path) -> tuple[Peer, ...]:
    """The peers in the text of `file`. Raises ConfigError with the invalid line."""
    return tuple(_by_line(text, file).values())


def _by_line(text: str, file: Path) -> dict[int, Peer]:
    peers = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split(maxsplit=1)
        if words:
            try:
                peers[number] = Peer(PeerId.parse(words[0]), words[1].strip() if len(words) > 1 else "")
            except ConfigError as error:
                raise ConfigError(f"{file}: line {number}: {error}") from None
    return peers


def read_peers(file: Path) -> dict[int, Peer]:
    """The peers of a file that must exist, by the number of the line; some may be revoked. Raises ConfigError."""
    return _by_line(read_text(file, WHAT, most=MAX_LIST)[0], file)


def repeated_peers(by_line: Mapping[int, Peer]) -> tuple[RepeatedPeer, ...]:
    """Those that stand on several of the lines, which come in their order."""
    first: dict[PeerId, int] = {}
    repeated = {}
    for number, peer in by_line.items():
        before = first.setdefault(peer.peer_id, number)
        if before != number:
            repeated[peer.peer_id] = RepeatedPeer(peer, before, number)
    return tuple(repeated.values())


def revoked_beside(authorized: Path) -> Path:
    """The file of revocations in the directory of the file `authorized`."""
    return authorized.with_name("revoked")


class KeptRevocations:
    """Remembers which files of revocations there were. `peers add` leaves an empty one at least, so one that has gone
    was removed by mistake, or by somebody who wants a revoked peer back."""

    def __init__(self) -> None:
        self._seen: set[Path] = set()

    def check(self, authorized: Path) -> None:
        """The file beside `authorized` has just been read. Raises ConfigError if it was there once, and is not now."""
        file = revoked_beside(authorized)
        if exists(file, WHAT_REVOKED):
            self._seen.add(file)
        elif file in self._seen:
            raise ConfigError(
                f"{WHAT_REVOKED} {file} has gone; put it back, or make an empty file if all who were in it may come in"
                " again"
            )


class PeersFile:
    """Reads and changes the list; a missing file is an empty one. All methods block briefly and raise ConfigError."""

    def __init__(self, file: Path) -> None:
        self._file = SharedFile(file, WHAT, MAX_LIST)
        self._revoked = SharedFile(revoked_beside(file), WHAT_REVOKED, MAX_LIST)

    def read(self) -> tuple[Peer, ...]:
        """The peers of the list; some may be revoked."""
        return parse_peers(self._file.read(), self._file.path)

    def revoked(self) -> tuple[Peer, ...]:
        """The peers that are not let in, each with its name at that time, the latest last."""
        return parse_peers(self._revoked.read(), self._revoked.path)

    def add(self, peer_id: PeerId, name: str) -> Peer:
        """Add a peer under `name`, or under a free name like it, and forget that it was revoked. A listed peer keeps
        its name."""
        check_name(name)
        with self._file.locked():
            peer = self._listed(peer_id, name)
            text = self._revoked.read()
            if any(peer.peer_id == peer_id for peer in parse_peers(text, self._revoked.path)):
                self._revoked.replace(_without(peer_id, text))
        return peer

    def _listed(self, peer_id: PeerId, name: str) -> Peer:
        text = self._file.read()
        peers = parse_peers(text, self._file.path)
        for peer in peers:
            if peer.peer_id == peer_id:
                return peer
        new = Peer(peer_id, free_name(name, (peer.name for peer in peers)))
        end = "\n" if text and not text.endswith("\n") else ""
        self._file.replace(f"{text}{end}{peer_id} {new.name}\n")
        return new

    def rename(self, old: str, new: str) -> Peer:
        """Give the peer with that name or id another name."""
        check_name(new)
        with self._file.locked():
            text = self._file.read()
            peers = parse_peers(text, self._file.path)
            peer = find(peers, old)
            if any(other.name == new and other.peer_id != peer.peer_id for other in peers):
                raise ConfigError(f"another peer is called {one_line(new)} already; choose another name")
            lines = text.splitlines(keepends=True)
            self._file.replace("".join(_renamed(line, peer.peer_id, new) for line in lines))
        return Peer(peer.peer_id, new)

    def revoke(self, who: str, unlisted: Iterable[PeerId] = ()) -> Peer:
        """Remove the peer with that name or id from the list, and remember that it was revoked. The peers `unlisted`
        are let in too, perhaps without being on the list."""
        with self._file.locked():
            text = self._file.read()
            unnamed = [Peer(peer_id, "") for peer_id in unlisted]
            peer = find([*unnamed, *parse_peers(text, self._file.path)], who)
            # First what keeps the peer out: a crash in between lets nobody in.
            others = [other for other in self.revoked() if other.peer_id != peer.peer_id]
            latest = [*others, peer][-MAX_REVOKED:]
            self._revoked.replace("".join(f"{peer_id} {name}".rstrip() + "\n" for peer_id, name in latest))
            self._file.replace(_without(peer.peer_id, text))
        return peer


def find(peers: Iterable[Peer], who: str) -> Peer:
    """The peer with that name or id. Raises ConfigError if there is none, or if several have that name."""
    wanted = PeerId.parse(who) if _ID_LIKE.fullmatch(who) else None
    found = {peer.peer_id: peer for peer in peers if peer.peer_id == wanted or peer.name == who}
    if len(found) > 1:
        raise ConfigError(
            f"{len(found)} peers are called {one_line(who[:MAX_NAME])}; say which one by its peer id"
        )
    if not found:
        raise ConfigError(f"no peer is called {one_line(who[:MAX_NAME])}; `{to_run('peers')}` lists them")
    return next(iter(found.values()))


def _without(peer_id: PeerId, text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if _id_of(line) != peer_id)


def _id_of(line: str) -> PeerId | None:
    words = line.partition("#")[0].split(maxsplit=1)
    return PeerId.parse(words[0]) if words else None


def _renamed(line: str, peer_id: PeerId, name: str) -> str:
    match = _LINE.fullmatch(line)
    if match is None or _id_of(line) != peer_id:
        return line
    return f"{match[1]}{match['id']} {name}{match['rest']}"
