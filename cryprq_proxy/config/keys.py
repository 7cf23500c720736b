"""The implementation of ML-KEM and ML-DSA, and the identity, as the configuration names them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ..crypto.identity import Identity
from ..crypto.primitives import Provider, select_provider
from ..errors import ConfigError
from .both_roles import ProviderChoice

_log = logging.getLogger(__name__)


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


def own_identity(provider: Provider, path: Path) -> Identity:
    """The identity in that file; a missing one is made. Raises ConfigError."""
    if not os.path.lexists(path):
        identity = Identity.generate(provider)
        try:
            identity.save(path)
        except ConfigError:
            if not os.path.lexists(path):
                raise
            # The other role, started at the same time, made it.
        else:
            _log.info("a new identity is in %s: its peer id is %s", path, identity.peer_id)
            return identity
    return Identity.load(provider, path)
