"""`python -m tests.support.macos.driver DIRECTORY ARGUMENT...`: the program itself, on the fake Mac in this directory.

The process takes its Linux for macOS (darwin.py). The programs of the Mac act on the state in that directory; its
kernel is the one of the tests' process (kernel.py). The sockets of the link are real ones.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.support.macos.darwin import become_darwin
from tests.support.macos.machine import FakeMac
from tests.support.macos.utun_hub import control_of, watch_of

become_darwin()
# It was loaded before, and knows O_TMPFILE.
tempfile._O_TMPFILE_WORKS = False  # type: ignore[attr-defined]

from cryprq_proxy.base import lock_sign, macos_programs, route_socket  # noqa: E402
from cryprq_proxy.base.changes import Changes  # noqa: E402
from tun.macos import device, programs  # noqa: E402


def settle_on(directory: Path) -> None:
    """Before the rest of the program is imported, which takes these names from there."""
    root = directory / "root"
    programs.PATHS = {name: f"{root}{path}" for name, path in programs.PATHS.items()}  # type: ignore[misc]
    # In this process, since starting an interpreter for each of some fifty takes half a minute on a busy machine.
    programs.run = FakeMac(directory).run  # type: ignore[assignment]
    macos_programs.SCUTIL = f"{root}{macos_programs.SCUTIL}"
    macos_programs.PFCTL = f"{root}{macos_programs.PFCTL}"
    macos_programs.SYSCTL = f"{root}{macos_programs.SYSCTL}"
    lock_sign.DIRECTORY = directory
    route_socket.route_changes = lambda: Changes(watch_of(directory))
    device.open_control = control_of(directory)  # type: ignore[assignment]


if __name__ == "__main__":
    settle_on(Path(sys.argv[1]))
    del sys.argv[1]
    from cryprq_proxy.__main__ import main

    main()
