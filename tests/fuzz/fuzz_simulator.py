"""Invariant: whatever happens to the paths between two sessions, each stream's bytes come once and in order, nothing is
kept after the end, and the sessions agree."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    import cryprq_proxy.session.session  # noqa: F401  what is measured; all else is imported faster without that

from tests.support.choices import Choices
from tests.support.simulated_play import SimulatedPlay


def fuzz(data: bytes) -> None:
    SimulatedPlay(Choices(data)).run()


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
