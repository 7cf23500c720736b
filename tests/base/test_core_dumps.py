"""What holds a secret leaves no core dump."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from cryprq_proxy.config import keys
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.process import lifecycle
from tests.support.processes import environment

_LOOK = """
import ctypes, resource
from cryprq_proxy.base.core_dumps import forbid_core_dumps
forbid_core_dumps()
forbid_core_dumps()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)[0])  # PR_GET_DUMPABLE
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="the flag is Linux's")
def test_flag_and_limit_are_set() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOOK], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("0 0\n", "")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who has forbidden them."""
    by: list[str] = []
    monkeypatch.setattr(keys, "forbid_core_dumps", lambda: by.append("keys"))
    monkeypatch.setattr(lifecycle, "forbid_core_dumps", lambda: by.append("role"))
    return by


def test_whoever_holds_an_identity_forbids_them(tmp_path: Path, asked: list[str]) -> None:
    provider = select_provider()
    keys.save_identity(Identity.generate(provider), tmp_path / "identity")
    keys.load_identity(provider, tmp_path / "identity")
    assert asked == ["keys", "keys"]


class Ran(Exception):
    pass


def test_every_role_forbids_them(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def role(stop: lifecycle.Stop) -> None:
        asked.append("runs")
        raise Ran

    def make_loop() -> asyncio.AbstractEventLoop:
        asked.append("loop")
        return asyncio.new_event_loop()

    monkeypatch.setattr(lifecycle, "make_loop", make_loop)
    # A role that returned would end the process, if a thread of the tests went on.
    with pytest.raises(Ran):
        lifecycle.run(role)
    assert asked == ["role", "loop", "runs"]
