"""The exit's invites, the file `invites`: each adds one peer to the list, once, until it expires.

One JSON object a line, with the peer's future name, the SHA-256 of the secret, and two times in seconds since 1970. The
secret is shown once and stored nowhere. It has 128 random bits, so a plain hash is enough: it cannot be guessed.

An invite is redeemed under a lock, and in the file on disk it is used before its peer is let in. Of two attempts
at the same time exactly one wins, and a crash at any moment leaves no secret that lets two peers in. Who has used an
invite is known until it expires: a client whose connection broke before the verdict shows the same secret again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct, structs

from ..base.files import SharedFile
from ..base.log import one_line
from ..base.program import to_run
from ..config.authorized import MAX_NAME, PeersFile, check_name
from ..crypto.identity import PEER_ID_LENGTH, PeerId
from ..crypto.payloads import INVITE_SIZE
from ..crypto.primitives import Entropy, constant_time_equal, sha256
from ..errors import ConfigError
from ..exit.providers import Redeemed

_log = logging.getLogger(__name__)

WHAT: Final = "the list of invites"
MAX_OPEN: Final = 1000
LEAST_SECONDS: Final = 60
MOST_SECONDS: Final = 30 * 86_400
_TIME: Final = Meta(ge=0, lt=1 << 48)


class Invite(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the file."""

    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    hash: Annotated[str, Meta(pattern="^[0-9a-f]{64}\\Z")]
    """SHA-256 of the secret, in hexadecimal digits."""
    created: Annotated[int, _TIME]
    expires: Annotated[int, _TIME]
    """The invite is invalid from this second on."""
    peer: Annotated[str, Meta(max_length=PEER_ID_LENGTH)] = ""
    """The id of the peer that has used it; empty while it is open."""


def parse_invites(text: str, file: Path) -> tuple[Invite, ...]:
    """The invites in the text of `file`. Raises ConfigError with the invalid line."""
    invites = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        try:
            invite = msgspec.json.decode(line.encode("utf-8"), type=Invite)
            check_name(invite.name)
            if invite.peer:
                PeerId.parse(invite.peer)
        except (msgspec.DecodeError, UnicodeError, RecursionError, ConfigError):
            raise ConfigError(
                f"{file}: line {number} is not a valid invite; delete that line, or the file with all open invites"
            ) from None
        invites.append(invite)
    if len(invites) > MAX_OPEN:
        raise ConfigError(f"{file}: more than {MAX_OPEN} invites; delete some lines")
    return tuple(invites)


class InviteStore:
    """Reads and changes the file; a missing one holds no invites. All methods block briefly and raise ConfigError.

    `now` is always in seconds since 1970.
    """

    def __init__(self, file: Path) -> None:
        self._file = SharedFile(file, WHAT)

    def open(self, now: float) -> tuple[Invite, ...]:
        """The invites that nobody has used yet."""
        return tuple(invite for invite in self._valid(now) if not invite.peer)

    def create(self, name: str, seconds: int, now: float, entropy: Entropy = secrets.token_bytes) -> bytes:
        """Open an invite for `seconds` and return its secret, 16 bytes. Expired invites are removed."""
        check_name(name)
        if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
            raise ConfigError("an invite is valid for 1 minute to 30 days, as in 30m, 1h or 7d")
        secret = entropy(INVITE_SIZE)
        with self._file.locked():
            invites = self._valid(now)
            opened = [invite for invite in invites if not invite.peer]
            if any(invite.name == name for invite in opened):
                raise ConfigError(
                    f"there is an open invite for {one_line(name)} already; withdraw it with: "
                    f"{to_run(f'invite --cancel {shlex.quote(one_line(name))}')}"
                )
            if len(opened) >= MAX_OPEN:
                raise ConfigError(
                    f"{MAX_OPEN} invites are open, the most that are allowed; withdraw some first"
                )
            created = int(now)
            self._write((*invites, Invite(name, sha256(secret).hex(), created, created + seconds)))
        return secret

    def cancel(self, name: str, now: float) -> None:
        """Withdraw the open invite of that name; ConfigError if there is none."""
        with self._file.locked():
            invites = self._valid(now)
            rest = [invite for invite in invites if invite.peer or invite.name != name]
            if len(rest) == len(invites):
                raise ConfigError(
                    f"there is no open invite for {one_line(name[:MAX_NAME])}; "
                    f"{to_run('invite --list')} shows those that are open"
                )
            self._write(rest)

    def find(self, secret: bytes, now: float) -> Invite | None:
        """The invite with this secret, open or used. Takes no lock and writes nothing: a wrong guess costs little."""
        return _match(self._valid(now), secret)

    def redeem(self, secret: bytes, peer: PeerId, now: float) -> str | None:
        """Let `peer` use up the invite with this secret, and return its name. None for a wrong, used, expired or
        withdrawn one."""
        with self._file.locked():
            invites = self._valid(now)
            found = _match(invites, secret)
            if found is None or found.peer:
                return None
            rest = (invite for invite in invites if invite is not found)
            self._write((*rest, structs.replace(found, peer=str(peer))))
        return found.name

    def _valid(self, now: float) -> tuple[Invite, ...]:
        return tuple(invite for invite in self._read() if now < invite.expires)

    def _read(self) -> tuple[Invite, ...]:
        return parse_invites(self._file.read(), self._file.path)

    def _write(self, invites: Sequence[Invite]) -> None:
        """All that are open, and as many of the used ones as there is room for."""
        used = [invite for invite in invites if invite.peer]
        surplus = set(used[: max(0, len(invites) - MAX_OPEN)])
        kept = (invite for invite in invites if invite not in surplus)
        self._file.replace("".join(msgspec.json.encode(invite).decode() + "\n" for invite in kept))


def _match(invites: Iterable[Invite], secret: bytes) -> Invite | None:
    """Compare with all invites, so that the time does not tell which one matched."""
    wanted, found = sha256(secret).hex().encode(), None
    for invite in invites:
        if constant_time_equal(invite.hash.encode(), wanted):
            found = invite
    return found


def beside(authorized: Path) -> Path:
    """The file of invites in the directory of the file `authorized`."""
    return authorized.with_name("invites")


class Redeemer:
    """The Invites (exit/providers.py) of a running exit. Files are touched on a thread.

    Every call reads the files anew, so a change by `cryprq-proxy invite` is in force at once.
    """

    def __init__(self, authorized: Path, now: Callable[[], float] = time.time) -> None:
        self._peers = PeersFile(authorized)
        self._store = InviteStore(beside(authorized))
        self._now = now
        self._executor = ThreadPoolExecutor(1, "invites")
        self._complaint = ""

    async def redeem(self, secret: bytes, peer: PeerId) -> tuple[Redeemed, str]:
        """See Invites."""
        loop = asyncio.get_running_loop()
        try:
            redeemed, name = await loop.run_in_executor(self._executor, self.redeem_now, secret, peer)
        except ConfigError as error:
            # Repeated attempts do not fill the log.
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.error("an invite could not be redeemed: %s", error)
            return Redeemed.NOT, ""
        self._complaint = ""
        if redeemed is Redeemed.NOW:
            _log.info("%s used an invite and is on the list of peers now, as %s", peer, name)
        return redeemed, name

    def redeem_now(self, secret: bytes, peer: PeerId) -> tuple[Redeemed, str]:
        """The same, blocking. Returns the peer's name on the list too. Raises ConfigError."""
        now = self._now()
        found = self._store.find(secret, now)
        if found is None:
            return Redeemed.NOT, ""
        if found.peer:
            return Redeemed.BEFORE if found.peer == str(peer) else Redeemed.NOT, ""
        self._peers.read()  # raises for an invalid list before the invite is used up
        name = self._store.redeem(secret, peer, now)
        return (Redeemed.NOT, "") if name is None else (Redeemed.NOW, self._peers.add(peer, name).name)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
