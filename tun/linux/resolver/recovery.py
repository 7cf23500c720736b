"""Our /etc/resolv.conf where what was there before is lost: no journal knows it any more, or its backup is gone.

A file that a killed run has left is recognised by its header.

    header with a tag  ->  the backup of that tag in the state directory  ->  back in its place
                           no backup  ->  what this system offers: the file of systemd-resolved, NetworkManager, ...
                                          nothing offered  ->  say so

The settings of systemd-resolved need no such search: they belong to the interface and have ended with it.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Final

from cryprq_proxy.base.files import is_own_directory
from cryprq_proxy.base.linux_marks import RESOLV_CONF_HEADER
from cryprq_proxy.base.resolv_conf import nameservers
from cryprq_proxy.errors import ConfigError, reason_of

from ...journal import Entry
from . import resolvconf_files
from .resolvconf_files import (
    RESOLV_CONF,
    BackupLostError,
    backup_of,
    content_of,
    lead_to,
    put_back,
    read,
    write,
)
from .resolvconf_text import is_ours, without_nameservers

_log = logging.getLogger(__name__)

OFFERED: Final = (
    Path("/run/systemd/resolve/stub-resolv.conf"),
    Path("/run/NetworkManager/resolv.conf"),
    Path("/run/resolvconf/resolv.conf"),
)
"""Files that services of the system keep for a link at /etc/resolv.conf, the best first."""
_TAG: Final = re.compile(rf"{RESOLV_CONF_HEADER}([0-9a-f]{{16}}):".encode())


def recover(state: Path, path: Path = RESOLV_CONF, offered: tuple[Path, ...] = OFFERED) -> str:
    """Put the earlier resolver back in the place of ours. Returns from where, in words; "" if ours is not there.

    Call it where no journal names a change of `path`. Raises ConfigError if there is nothing to put back.
    """
    content = content_of(path)
    if not is_ours(content):
        return ""
    tag = _TAG.match(content)
    if tag is not None and _trusted(state):
        backup = backup_of(state, tag[1].decode())
        if os.path.lexists(backup):
            try:
                put_back(path, backup)
                backup.unlink()
            except OSError as error:
                raise ConfigError(f"{path} cannot be put back from {backup}: {reason_of(error)}") from None
            return "its backup"
    for target in offered:
        if _is_of_use(target):
            try:
                lead_to(path, str(target))
            except OSError:
                # A mount point takes no link, but a copy.
                write(path, content_of(target))
            return str(target)
    raise ConfigError(
        f"{path} names the resolver of an earlier --tun, and its backup is gone: put your own in its place "
        f"(for example a line 'nameserver ADDRESS')"
    )


def undo(entry: Entry, state: Path, path: Path = RESOLV_CONF, offered: tuple[Path, ...] = OFFERED) -> None:
    """Undo an entry of the journal; without its backup, as `recover`. Raises ConfigError."""
    try:
        resolvconf_files.undo(entry, path=path, state=state)
    except BackupLostError:
        recover(state, path, offered)


def recover_or_empty(state: Path, path: Path = RESOLV_CONF, offered: tuple[Path, ...] = OFFERED) -> None:
    """As `recover`, for a start, which needs no earlier resolver. Raises ConfigError if `path` cannot be changed."""
    try:
        source = recover(state, path, offered)
    except ConfigError:
        write(path, without_nameservers(content_of(path)))
        _log.warning(
            "%s was left by an earlier run, and which name server it had is lost: when this run ends, names are "
            "resolved again as soon as you put a line 'nameserver ADDRESS' into it",
            path,
        )
    else:
        if source:
            _log.info("%s was left by an earlier run; it is put back from %s", path, source)


def _trusted(state: Path) -> bool:
    """Whether only this user can have written the files in `state`, as for the journal."""
    try:
        return is_own_directory(state.stat())
    except OSError:
        return False


def _is_of_use(target: Path) -> bool:
    try:
        content = read(target)
    except OSError:
        return False
    return not is_ours(content) and bool(nameservers(content))
