"""Clients that are broken on purpose, by what they find on their host: for tests of what looks for such faults.

Each changes the environment of `Links`, for the clients that are started from then on.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import pytest

from tests.support.lab.links import Links
from tests.support.logged import ROOT
from tun.linux.firewall.marks import KIND_MASK, MarkKind
from tun.settings import MARK

_NO_CTNETLINK: Final = """
import socket
class Socket(socket.socket):
    def send(self, data, *flags):
        # nfnetlink.h: the upper byte of a message's type is the subsystem, 1 for conntrack.
        if self.family == socket.AF_NETLINK and self.proto == 12 and data[5] == 1:
            raise OSError(22, "Invalid argument")
        return super().send(data, *flags)
socket.socket = Socket
"""
_ANY_RUN: Final = ", ".join(f"{kind.any_run:#x}" for kind in (MarkKind.DIRECT, MarkKind.PAUSED))
_OLD_MARKS: Final = f"ct mark & {KIND_MASK:#x} {{ {_ANY_RUN} }}"
_PROGRAMS: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
_FAULTS: Final = f"""
insert rule inet cryprq mark_in {_OLD_MARKS} meta mark set {MARK:#x} accept
insert rule inet cryprq mark_out {_OLD_MARKS} meta mark set {MARK:#x} accept
insert rule inet cryprq output {_OLD_MARKS} accept
insert rule inet cryprq leaving {_OLD_MARKS} accept
"""


def without_ctnetlink(links: Links, patch: pytest.MonkeyPatch) -> None:
    """What they ask of conntrack is refused, so they cannot delete its entries."""
    directory = links.directory / "no-ctnetlink"
    directory.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(_NO_CTNETLINK)
    patch.setitem(links.environment, "PYTHONPATH", f"{directory}:{ROOT}")


def slow_nft(links: Links, patch: pytest.MonkeyPatch) -> Path:
    """Their nft waits while the returned file is there."""
    nft = shutil.which("nft", path=_PROGRAMS)
    assert nft is not None
    directory = links.directory / "slow-nft"
    directory.mkdir(exist_ok=True)
    hold = directory / "hold"
    program = directory / "nft"
    program.write_text(
        f'#!/bin/sh\nPATH={_PROGRAMS}\nwhile [ -e {hold} ]; do sleep 0.02; done\nexec {nft} "$@"\n'
    )
    program.chmod(0o755)
    patch.setitem(links.environment, "PATH", f"{directory}{os.pathsep}{links.environment['PATH']}")
    return hold


def accepting_old_marks(links: Links, patch: pytest.MonkeyPatch) -> None:
    """Their filter lets past the tunnel whatever has ever been marked by a pause or a rule, in any run."""
    without_ctnetlink(links, patch)
    nft = shutil.which("nft", path=_PROGRAMS)
    assert nft is not None
    directory = links.directory / "broken-nft"
    directory.mkdir(exist_ok=True)
    (directory / "faults").write_text(_FAULTS)
    program = Path(directory, "nft")
    # Only a script of the whole table makes the chain.
    program.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = -f ] || exec {nft} "$@"\n'
        f"PATH={_PROGRAMS}\n"
        "script=$(cat)\n"
        'faults=""\n'
        f'case "$script" in *"chain mark_out {{"*) faults=$(cat {directory}/faults) ;; esac\n'
        f'printf "%s\\n" "$script" "$faults" | {nft} -f -\n'
    )
    program.chmod(0o755)
    patch.setitem(links.environment, "PATH", f"{directory}{os.pathsep}{links.environment['PATH']}")
