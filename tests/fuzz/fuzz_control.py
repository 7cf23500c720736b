"""Whatever line comes over the control socket, it is a command or raises RequestError."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.process.control import ControlRequest, RequestError, parse_request


def one_input(data: bytes) -> None:
    with contextlib.suppress(RequestError):
        assert isinstance(parse_request(data), ControlRequest)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
