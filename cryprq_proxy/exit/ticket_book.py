"""Which session a ticket of the short handshake belongs to, and for which of its paths.

    renew -> tickets for the next 8 numbers of paths, of each resume secret that the session takes
    find -> the session, the number, the secret: nothing is used up, the client has proved nothing yet
    advance -> that number and those below are over, as many new ones follow

A client names its paths with rising numbers. What it misses here, because more than 8 of its attempts in a row came to
nothing, it does with a signed handshake. A ticket has 16 bytes that only a holder of the secret can compute, so a
dictionary finds it: what the time of that tells is about bytes that a stranger cannot choose.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from ..crypto.payloads import join_ticket
from ..errors import LocalError

AHEAD: Final = 8
"""Numbers of paths for which a session has tickets at a time."""
MAX_SECRETS: Final = 2
"""Epochs of which a session takes tickets: the present one, and the next while the client has not confirmed it."""
_PATHS: Final = 2**32


@dataclass(frozen=True, slots=True, repr=False)
class Ticket[Owner: Hashable]:
    """What the book knows of a ticket."""

    owner: Owner
    path: int
    """The number of the path that it is for."""
    secret: bytes
    """The resume secret that it was made with, 32 bytes."""

    def __repr__(self) -> str:
        return f"Ticket(path={self.path})"


class _Page:
    """The tickets of one session: of each secret those for the paths from `first` on."""

    __slots__ = ("first", "tickets")

    def __init__(self) -> None:
        self.first = 1  # a session begins with path 0
        self.tickets: dict[bytes, list[bytes]] = {}


class TicketBook[Owner: Hashable]:
    """The tickets of all sessions of an exit. `Owner` is what stands for a session: from its first `renew` until
    `forget`, when it ends."""

    def __init__(self) -> None:
        self._pages: dict[Owner, _Page] = {}
        self._owners: dict[bytes, Owner] = {}
        """By ticket."""

    def __len__(self) -> int:
        """How many tickets there are."""
        return len(self._owners)

    def __repr__(self) -> str:
        return f"TicketBook({len(self._pages)} sessions)"

    def renew(self, owner: Owner, secrets: Sequence[bytes]) -> None:
        """From now on these resume secrets count for the session, at most `MAX_SECRETS`, and no others. With none of
        them the session takes no tickets, but its numbers do not begin anew."""
        if len(secrets) > MAX_SECRETS:
            raise LocalError(f"a session takes tickets of at most {MAX_SECRETS} epochs")
        page = self._pages.setdefault(owner, _Page())
        for secret in [secret for secret in page.tickets if secret not in secrets]:
            self._strike(page.tickets.pop(secret))
        for secret in secrets:
            if secret not in page.tickets:
                page.tickets[secret] = []
                self._fill(owner, page)

    def find(self, ticket: bytes) -> Ticket[Owner] | None:
        """What is known of a ticket, None for an unknown one."""
        owner = self._owners.get(ticket)
        if owner is None:
            return None
        page = self._pages[owner]
        return next(
            Ticket(owner, page.first + tickets.index(ticket), secret)
            for secret, tickets in page.tickets.items()
            if ticket in tickets
        )

    def advance(self, owner: Owner, path: int) -> bool:
        """The client has taken `path`: all numbers up to it are over. False if they were before, or if the session has
        been forgotten: the path may not join then."""
        page = self._pages.get(owner)
        if page is None or not page.first <= path < _PATHS:
            return False
        for tickets in page.tickets.values():
            used = path + 1 - page.first
            self._strike(tickets[:used])
            del tickets[:used]
        page.first = path + 1
        self._fill(owner, page)
        return True

    def forget(self, owner: Owner) -> None:
        """The session takes no tickets any more; harmless if it has none."""
        page = self._pages.pop(owner, None)
        if page is not None:
            for tickets in page.tickets.values():
                self._strike(tickets)

    def _fill(self, owner: Owner, page: _Page) -> None:
        for secret, tickets in page.tickets.items():
            for path in range(page.first + len(tickets), min(page.first + AHEAD, _PATHS)):
                ticket = join_ticket(secret, path)
                tickets.append(ticket)
                self._owners[ticket] = owner

    def _strike(self, tickets: Sequence[bytes]) -> None:
        for ticket in tickets:
            self._owners.pop(ticket, None)
