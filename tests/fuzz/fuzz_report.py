"""Whatever an exit tells about itself, it is a report of printable words or raises CryprqError."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.client.ask_exit import read_report
    from cryprq_proxy.errors import CryprqError


def one_input(data: bytes) -> None:
    with contextlib.suppress(CryprqError):
        report = read_report(data)
        words = (report.version, report.ipv4.address, report.ipv6.address, report.resolver.problem)
        assert all(word.isprintable() and len(word) <= 64 for word in words)
        assert 0 <= report.clock <= 1e11


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
