"""Whose proxy settings programs of this machine follow."""

from __future__ import annotations

import sys

from .gsettings import Gsettings
from .kept import DesktopSettings
from .networksetup import NetworkSetup


def desktop_settings() -> DesktopSettings:
    """Raises CryprqError where they cannot be had."""
    return NetworkSetup() if sys.platform == "darwin" else Gsettings()
