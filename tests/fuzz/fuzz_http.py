"""Invariant: whatever client and origins send, only StreamReset leaves HttpProxy.run, no stream is left open, and what
an origin gets is in the one strict form, without a field for the proxy."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy", "h11"]):
    import cryprq_proxy.fronts.http_proxy  # noqa: F401

from tests.support.http_bytes import play

LOOP = asyncio.new_event_loop()


def fuzz(data: bytes) -> None:
    play(data, LOOP)


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
