"""A test of a session fails for whatever the session contains: what an App asserts is raised in a handler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fault_watch import FaultWatch


@pytest.fixture(autouse=True)
def fault_watch() -> Iterator[FaultWatch]:
    """Tests that cause faults clear `faults`."""
    with FaultWatch() as watch:
        yield watch
