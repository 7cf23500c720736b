"""Invariant: of requests and answers by a grammar, no byte comes into another message, no message has two ends, no
password reaches an origin, nothing is forwarded that must be refused, and no cut answer looks complete."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy", "h11"]):
    import cryprq_proxy.fronts.http_proxy  # noqa: F401

from tests.support.choices import Choices
from tests.support.http_play import play

LOOP = asyncio.new_event_loop()


def fuzz(data: bytes) -> None:
    play(Choices(data), LOOP)


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
