"""Shared by all tests: how much hypothesis tries, and where the program finds its files.

The default tries the same examples every time, so that a run says something about the change and not about luck.
HYPOTHESIS_PROFILE=deep looks for new ones, and much longer, for a night or a change in a parser.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

SAVED = settings.get_profile("default").database  # before a profile without chance drops it
# Machines differ by more than any deadline tells; a hang is for pytest-timeout to find.
settings.register_profile(
    "fast",
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "deep", parent=settings.get_profile("fast"), max_examples=10_000, derandomize=False, database=SAVED
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(autouse=True)
def own_directories(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's real configuration is read, and none is written: every test has a home of its own."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    return home
