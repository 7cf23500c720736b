"""The implementation of ML-KEM and ML-DSA, and the identity, as the configuration names them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final, NamedTuple

from ..base.core_dumps import forbid_core_dumps
from ..base.file_access import access_for, exists
from ..base.paths import read_text
from ..base.program import to_run
from ..crypto.identity import Identity
from ..crypto.primitives import Provider, select_provider
from ..errors import ConfigError, reason_of
from .both_roles import ProviderChoice

_log = logging.getLogger(__name__)

_WHAT: Final = "the identity"


def choose_provider(choice: ProviderChoice) -> Provider:
    """The provider with that name. Warns about the slow one. Raises ConfigError."""
    provider = select_provider(None if choice == "auto" else choice)
    if not provider.fast:
        _log.warning(
            "ML-KEM and ML-DSA come from %s, which is slow and not constant-time; install a `cryptography` package "
            "with OpenSSL 3.5 or later",
            provider.name,
        )
    return provider


class PlannedIdentity(NamedTuple):
    """The identity of a role that starts. A new one is written by `keep`, when nothing can refuse the start any more:
    else it would leave keys behind."""

    identity: Identity
    path: Path
    new: bool

    def keep(self) -> None:
        """Raises ConfigError if it cannot be written, also where another role has made one meanwhile."""
        if self.new:
            save_identity(self.identity, self.path)
            _log.info("a new identity is in %s: its peer id is %s", self.path, self.identity.peer_id)


def plan_identity(provider: Provider, path: Path) -> PlannedIdentity:
    """The identity in that file, else a new one. Raises ConfigError."""
    if exists(path, _WHAT):
        return PlannedIdentity(load_identity(provider, path), path, new=False)
    forbid_core_dumps()
    return PlannedIdentity(Identity.generate(provider), path, new=True)


def own_identity(provider: Provider, path: Path) -> Identity:
    """The identity in that file; a missing one is made. Raises ConfigError."""
    if not exists(path, _WHAT):
        identity = Identity.generate(provider)
        try:
            save_identity(identity, path)
        except ConfigError:
            if not exists(path, _WHAT):
                raise
            # The other role, started at the same time, made it.
        else:
            _log.info("a new identity is in %s: its peer id is %s", path, identity.peer_id)
            return identity
    return load_identity(provider, path)


def load_identity(provider: Provider, path: Path) -> Identity:
    """The identity in that file. The process that holds it leaves no core dump. Raises ConfigError."""
    forbid_core_dumps()
    if not exists(path, _WHAT):
        raise ConfigError(f"there is no identity at {path}; make one first: {to_run('keygen')}")
    text, _ = read_text(path, _WHAT, private=True)
    return Identity.parse(provider, text.encode(), path)


def save_identity(identity: Identity, path: Path) -> None:
    """Write the identity to a new file that only its owner may read, and sync it to the disk.

    Makes a missing directory, for its owner alone. Raises ConfigError if the file cannot be written or exists already:
    a key that is overwritten is lost.
    """
    forbid_core_dumps()
    access = access_for(path, _WHAT)
    try:
        access.make_directory(path.parent)
    except OSError as error:
        raise ConfigError(f"the directory {path.parent} cannot be made: {reason_of(error)}") from None
    try:
        access.create(path, identity.line())
    except FileExistsError:
        raise ConfigError(f"{path} exists already; move it away to make a new identity") from None
    except OSError as error:
        raise ConfigError(f"the identity cannot be written to {path}: {reason_of(error)}") from None
