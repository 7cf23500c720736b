"""Invariant: whatever a peer with the keys sends, in whatever state, only PeerError leaves the session, bounds hold, no
handler is called after its end, and nothing is kept after the end; two honest sessions lose and change nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    import cryprq_proxy.session.session  # noqa: F401  what is measured; all else is imported faster without that

from tests.support.choices import Choices
from tests.support.session_play import Play


def fuzz(data: bytes) -> None:
    Play(Choices(data)).run()


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
