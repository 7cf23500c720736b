"""The epochs of a session whose secrets this side knows: the newest one, and for some time the one before.

What rotates them: rotation.py. Of an epoch's secrets, `records` is for the keys of paths, and a path joins by `resume`.
"""

from __future__ import annotations

from ..crypto.handshake import EpochSecrets
from ..errors import CarrierError, CloseReason, LocalError


class KnownEpochs:
    """`current` is the newest epoch that is known here, `sending` the one under which this side sends: the one before
    while an exit waits for its confirmation."""

    def __init__(self, epoch: EpochSecrets) -> None:
        self.current = self.sending = 0
        self.newest: EpochSecrets | None = epoch
        """The secrets of `current`; None when the session is over."""
        self._records = {0: epoch.records}
        self._resume = {0: epoch.resume}
        """By epoch, the newest first."""
        self.bound = False
        """Whether a signed join is not yet followed by a rotation: no path joins by a ticket meanwhile."""

    def add(self, epoch: EpochSecrets) -> None:
        """The secrets of the next epoch are there."""
        number = self.current + 1
        self._records = {number: epoch.records, self.current: self._records[self.current]}
        self._resume = {number: epoch.resume, self.current: self._resume[self.current]}
        self.newest, self.current = epoch, number

    def use(self) -> None:
        """Both sides have the secrets of `current`: it is sent under, and paths join by it only."""
        self.sending = self.current
        self._resume = {self.current: self._resume[self.current]}
        self.bound = False

    @property
    def waits_for_paths(self) -> bool:
        """Whether paths may still need the epoch before `current`."""
        return len(self._records) > 1

    def forget_before(self) -> None:
        """No path needs the epoch before `current` any more."""
        del self._records[self.current - 1]

    def end(self) -> None:
        """The session is over: no secret is kept."""
        self.newest = None
        self._records, self._resume = {}, {}

    # --- for the paths ---------------------------------------------------------------------------------------------

    def secret(self, epoch: int) -> bytes | None:
        """The `records` secret of an epoch, for a border; None if it is not, or no longer, known."""
        return self._records.get(epoch)

    @property
    def resume_secrets(self) -> tuple[bytes, ...]:
        """By which a path may join by a ticket, newest first: two at an exit that waits for the confirmation of
        `current`, none after a signed join."""
        return () if self.bound else tuple(self._resume.values())

    @property
    def joining_secret(self) -> bytes:
        """By which the next path joins, at the client. Raises CarrierError if the session has ended."""
        for secret in self._resume.values():
            return secret
        raise CarrierError(CloseReason.RESUME, "the session ended while a path joined it")

    @property
    def claim_secrets(self) -> dict[int, bytes]:
        """By which a session may be claimed with signatures, by epoch."""
        return self._resume

    def resume_epoch(self, secret: bytes) -> int:
        """The epoch to which one of `resume_secrets` belongs. The path that joins by it takes this number along:
        meanwhile the secret may be forgotten. Raises LocalError for any other secret."""
        for epoch, resume in self._resume.items():
            if resume == secret:
                return epoch
        raise LocalError("no path may join by this secret")
