"""Tests that need a Mac and root; elsewhere they say why they are skipped. `make test-macos` runs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.process)


@pytest.fixture(scope="session", autouse=True)
def a_mac_and_root() -> None:
    if sys.platform != "darwin":
        pytest.skip("needs macOS: utun devices, pf and scutil")
    if os.geteuid():
        pytest.skip("needs root: run it with sudo")
