"""Root's directories of configuration and state as they are: given to the user of a service, with all in them.

A user to whom the directory has belonged may have planted anything in it. No link is followed, a file with a second
name is refused, as the other name could lie anywhere, and root takes the directory first, so that nobody changes it
meanwhile, and gives it away last.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ...base.owners import ROOT, user_name
from ...errors import ConfigError, CryprqError, reason_of


class NewOwner(NamedTuple):
    uid: int
    gid: int


def nothing(handle: int) -> None:
    """The `fill` that adds nothing."""


def give(
    target: Path, owner: NewOwner, before: frozenset[int], fill: Callable[[int], None] = nothing
) -> None:
    """Make `target` if it is missing, and let it and all in it belong to `owner`; up to now they may be root's or those
    of the users `before`. `fill` adds files to the open directory while it is root's alone; it may raise OSError.

    Raises ConfigError for files of others, and CryprqError.
    """
    try:
        target.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise CryprqError(f"{target} cannot be used: {reason_of(error)}") from None
    try:
        if fill is not nothing or not _belongs(handle, owner):
            _give(target, handle, owner, before | {ROOT, owner.uid}, fill)
    except OSError as error:
        raise CryprqError(
            f"{target} could not be given to {user_name(owner.uid)}: {reason_of(error)}"
        ) from None
    finally:
        os.close(handle)


def check_givable(target: Path, known: frozenset[int]) -> None:
    """Raise ConfigError for what `give` would refuse in `target` as it is now, if `known` are all users that it may
    have belonged to. A missing directory is none."""
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise ConfigError(f"{target} is no directory of its own but a link or a file: move it away first")
    try:
        handle = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{target} cannot be used: {reason_of(error)}") from None
    try:
        _check_directory(target, os.fstat(handle), known)
        for path, status in _files(target, handle):
            _check_known(path, status, known)
    finally:
        os.close(handle)


def _give(
    target: Path, handle: int, owner: NewOwner, known: frozenset[int], fill: Callable[[int], None]
) -> None:
    status = os.fstat(handle)
    _check_directory(target, status, known)
    os.fchown(handle, ROOT, ROOT)
    os.fchmod(handle, 0o700)
    try:
        for path, found in _files(target, handle):
            _check_known(path, found, known)
        fill(handle)
    except BaseException:
        os.fchown(handle, status.st_uid, status.st_gid)
        raise
    for _, _, files, inside in os.fwalk(".", topdown=False, dir_fd=handle):
        for name in files:
            os.chown(name, *owner, dir_fd=inside, follow_symlinks=False)
        # The directory itself is the last one.
        os.fchown(inside, *owner)
    os.fsync(handle)


def _belongs(handle: int, owner: NewOwner) -> bool:
    """Whether all of it is the owner's already: what runs is not disturbed then."""
    wanted = owner.uid, owner.gid
    return (
        all(
            (status.st_uid, status.st_gid) == wanted
            for _, _, files, inside in os.fwalk(".", dir_fd=handle)
            for status in (os.fstat(inside), *(os.lstat(name, dir_fd=inside) for name in files))
        )
        and not stat.S_IMODE(os.fstat(handle).st_mode) & 0o077
    )


def _files(target: Path, handle: int) -> Iterator[tuple[Path, os.stat_result]]:
    for directory, _, files, inside in os.fwalk(".", dir_fd=handle):
        for name in files:
            yield target / directory / name, os.lstat(name, dir_fd=inside)


def _check_directory(target: Path, status: os.stat_result, known: frozenset[int]) -> None:
    if status.st_uid not in known:
        raise ConfigError(f"{target} belongs to the user {user_name(status.st_uid)}: move it away first")


def _check_known(path: Path, status: os.stat_result, known: frozenset[int]) -> None:
    """A second name could be that of a file elsewhere."""
    if status.st_uid not in known or (stat.S_ISREG(status.st_mode) and status.st_nlink > 1):
        raise ConfigError(
            f"{Path(os.path.normpath(path))} belongs to the user {user_name(status.st_uid)} or has a second name: "
            "move it away first"
        )
