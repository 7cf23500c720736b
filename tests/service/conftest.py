"""What a role changes in its process is put back after each test."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.roles import RoleFiles


@pytest.fixture
def files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[RoleFiles]:
    """The files of roles that run in this process."""
    caplog.set_level(logging.INFO)
    level = logging.getLogger().level
    yield RoleFiles(tmp_path)
    logging.getLogger().setLevel(level)
    gc.unfreeze()
