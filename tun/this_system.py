"""Which system this is."""

from __future__ import annotations

import sys

from cryprq_proxy.errors import ConfigError

from .system import System


def this_system() -> System:
    """Raises ConfigError where there is no system-wide mode."""
    if sys.platform == "linux":
        from .linux.system import Linux

        return Linux()
    if sys.platform == "darwin":
        from .macos.system import MacOS

        return MacOS()
    raise ConfigError(
        f"system-wide mode works on Linux and macOS, not on {sys.platform}; the local proxy works here"
    )
