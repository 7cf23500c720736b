"""The control groups whose programs go past the tunnel (`--exclude-cgroup`): which of them are there.

A socket belongs to the cgroup (version 2) in which its program was when it made the socket. The filter knows a cgroup
by its number. One that is removed and made again has another number, so the filter must be made anew then: `present`
has the number for comparison. Until then, and while there is none of that name, its programs go through the tunnel.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cryprq_proxy.errors import ConfigError

from ...firewall.filter_settings import Cgroup
from . import nft
from .nft import NftError, block

_log = logging.getLogger(__name__)

MOUNTS: Final = Path("/proc/self/mounts")
NFT_ROOT: Final = Path("/sys/fs/cgroup")
"""Where nft looks for all paths."""
MAX_LEVEL: Final = 64
_PART: Final = re.compile(r"[A-Za-z0-9_@:+-][A-Za-z0-9_.@:+\\-]{0,254}")


def parts_of(path: str) -> tuple[str, ...]:
    """The names from the root of the hierarchy down. Raises ConfigError for a path that nft could misread."""
    parts = tuple(path.strip("/").split("/"))
    if len(parts) > MAX_LEVEL or not all(_PART.fullmatch(part) for part in parts):
        raise ConfigError(
            f"--exclude-cgroup: expected the path of a cgroup like /system.slice/backup.service, got {path[:60]!a}"
        )
    return parts


def find_mount(mounts: str) -> Path | None:
    """Where cgroups of version 2 are mounted, by the text of /proc/self/mounts; None where nft does not find them."""
    found = [
        Path(fields[1])
        for line in mounts.splitlines()
        if len(fields := line.split()) > 2 and fields[2] == "cgroup2"
    ]
    return next((path for path in found if path.is_relative_to(NFT_ROOT)), None)


def check_cgroups(paths: Iterable[str]) -> None:
    """Find out whether this machine can tell cgroups apart; blocks. Raises ConfigError with the reason."""
    names = [parts_of(path) for path in paths]
    if not names:
        return
    mount = _mount()
    if mount is None:
        raise ConfigError(
            f"--exclude-cgroup needs cgroups of version 2, and none are mounted below {NFT_ROOT}: use --exclude-uid"
        )
    rules = block(
        "chain output", ["type route hook output priority mangle;", f"{match(Cgroup('/', 1, 0))} accept"]
    )
    try:
        nft.check("\n".join([*block("table inet cryprq_check", rules), ""]))
    except NftError as error:
        raise ConfigError(
            f"--exclude-cgroup: the packet filter here cannot tell cgroups apart ({error}): use --exclude-uid"
        ) from None
    for parts in names:
        if not mount.joinpath(*parts).is_dir():
            _log.warning(
                "the cgroup /%s is not there; its programs go through the tunnel until it is", "/".join(parts)
            )


def present(paths: Iterable[str]) -> frozenset[Cgroup]:
    """Those that are there now."""
    names = [parts_of(path) for path in paths]
    mount = _mount() if names else None
    found: set[Cgroup] = set()
    if mount is None:
        return frozenset(found)
    for parts in names:
        directory = mount.joinpath(*parts)
        try:
            number = directory.stat().st_ino
        except OSError:
            continue
        found.add(Cgroup(str(directory.relative_to(NFT_ROOT)), len(parts), number))
    return frozenset(found)


def match(cgroup: Cgroup) -> str:
    """The expression of nft for packets of its sockets, and of those of cgroups below it."""
    return f'socket cgroupv2 level {cgroup.level} "{cgroup.path}"'


def _mount() -> Path | None:
    try:
        return find_mount(MOUNTS.read_text("utf-8", "replace"))
    except OSError:
        return None
