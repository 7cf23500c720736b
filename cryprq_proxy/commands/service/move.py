"""What somebody has tried out, carried into root's directory of the configuration, for a service.

    read all as its old owner -> .cryprq.new: written as the new owner, synced -> cryprq, synced -> old files removed

A crash leaves the old files, or both. What stood in root's place before is kept beside it, as cryprq.old.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from msgspec import Struct, structs

from ...base.deputy import act_as_owner
from ...base.file_access import access_for, exists, sync_directory, write_all
from ...base.paths import Role, read_text
from ...config.authorized import revoked_beside
from ...config.client import ClientConfig, client_from
from ...config.exit import ExitConfig, authorized_file, exit_from
from ...config.keys import load_identity
from ...crypto.primitives import select_provider
from ...errors import ConfigError, CryprqError, reason_of
from ...pairing.invite_store import beside
from ...rules.lists import MAX_FILE
from .ownership import NewOwner

NAMES: Final[dict[Role, tuple[str, ...]]] = {
    "client": ("client.toml",),
    "exit": ("exit.toml", "authorized", "revoked", "invites"),
}
"""What belongs to one role alone. The identity belongs to both."""
_OWN_PLACES: Final = {"control_socket", "state_dir"}
"""Keys of paths that no file of the configuration is at."""
_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""What the units hide: ProtectHome=, and PrivateTmp=."""
_PROBE: Final = ".cryprq-moves"


@dataclass(frozen=True, slots=True)
class CarriedFile:
    """One file, as it will be."""

    name: str
    """Below the directory."""
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Carry:
    """What goes from `source` to `target`, and what of it is removed there in the end."""

    source: Path
    target: Path
    files: tuple[CarriedFile, ...]
    removed: tuple[str, ...]

    @property
    def names(self) -> str:
        return ", ".join(file.name for file in self.files)


def has_role(directory: Path, role: Role) -> bool:
    """Whether the directory has files of that role. They are looked at, and not opened."""
    return any(os.path.lexists(directory / name) for name in NAMES[role])


# --- what is carried ---


def plan(source: Path, target: Path, role: Role) -> Carry:
    """Read and check all that `role` uses in `source`, with the rights of its owner. Writes nothing that stays.

    Raises ConfigError for a configuration that is damaged, one that names files which a service does not see, and a
    directory that cannot be changed.
    """
    act_as_owner(source, everywhere=False)
    config, files = gather(source, target, role)
    if not files:
        raise _nothing_in(source, role)
    _check_changeable(source)
    others = NAMES["exit" if role == "client" else "client"]
    shared = any(exists(source / name, "the file") for name in others)
    # The secrets last: whatever fails before, they are still there.
    removed = [carried.name for carried in files if not shared or carried.name in NAMES[role]]
    removed.sort(key=lambda name: name == _below(config.identity, source, source / f"{role}.toml"))
    return Carry(source, target, tuple(files), tuple(removed))


def gather(source: Path, target: Path, role: Role) -> tuple[ClientConfig | ExitConfig, list[CarriedFile]]:
    """The configuration in `source`, and all files there that `role` uses, as they will be in `target`. Raises
    ConfigError for what is damaged, and for files that a service does not see."""
    file = source / f"{role}.toml"
    text = read_text(file, "the configuration")[0] if exists(file, "the configuration") else ""
    config = _decode(text, file, role)
    if config is None:
        raise _nothing_in(source, role)
    names = [_below(path, source, file) for path in _files_of(config)]
    if isinstance(config, ExitConfig):
        listed = authorized_file(file, config)
        structs.replace(config, authorized=listed if exists(listed, "the list") else None).peers(listed)
        names += [_below(path, source, file) for path in (listed, revoked_beside(listed), beside(listed))]
    if exists(config.identity, "the identity"):
        load_identity(select_provider(), config.identity)
    moved = text.replace(f'"{source}/', f'"{target}/').replace(f"'{source}/", f"'{target}/")
    again = _decode(moved, target / file.name, role)
    if source != target and (again is None or any(path.is_relative_to(source) for path in _files_of(again))):
        raise ConfigError(f"{file} names its own directory: write those paths relative to the file")
    wanted = [name for name in dict.fromkeys(names) if name and exists(source / name, "the file")]
    files = [CarriedFile(name, _read(source / name)) for name in wanted]
    if text:
        files.insert(0, CarriedFile(file.name, moved.encode()))
    return config, files


def _nothing_in(source: Path, role: Role) -> ConfigError:
    return ConfigError(f"there is nothing of this kind in {source}: no {' and no '.join(NAMES[role])}")


def _decode(text: str, file: Path, role: Role) -> ClientConfig | ExitConfig | None:
    """None for a client without a configuration: it names no exit."""
    if role == "exit":
        return exit_from(text, file, {})
    return client_from(text, file, True, {}) if text else None


def _files_of(table: Struct) -> Iterator[Path]:
    """All files that the configuration names."""
    for info in structs.fields(table):
        value = getattr(table, info.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Path) and info.name not in _OWN_PLACES:
                yield item
            elif isinstance(item, Struct):
                yield from _files_of(item)


def _below(path: Path, source: Path, file: Path) -> str:
    """The name below `source`, "" for a file elsewhere that a service can see."""
    path = Path(os.path.normpath(path))
    if path.is_relative_to(source):
        return str(path.relative_to(source))
    if any(path.is_relative_to(hidden) for hidden in _HIDDEN):
        raise ConfigError(
            f"{file} names {path}, which a service does not see: put that file beside {file.name} first"
        )
    return ""


def _read(path: Path) -> bytes:
    # A list of names may be that large; all else has been read by its own bound before.
    return read_text(path, "the file", most=MAX_FILE)[0].encode()


def _check_changeable(source: Path) -> None:
    """Raise ConfigError unless files can be removed there: else the secrets would be in two places for good."""
    access = access_for(source, "the directory")
    try:
        with contextlib.suppress(FileNotFoundError):
            access.remove(source / _PROBE)
        access.create(source / _PROBE, b"")
        access.remove(source / _PROBE)
    except OSError as error:
        raise ConfigError(
            f"{source} cannot be changed ({reason_of(error)}), so nothing is moved out of it"
        ) from None


# --- the move ---


def carry(what: Carry, owner: NewOwner) -> Path | None:
    """Do it. Returns where the files are kept that were in the target before, None if there were none.

    Raises CryprqError; the old files are still in their place then, or what could not be removed is named.
    """
    try:
        kept = _place(what, owner)
    except OSError as error:
        raise CryprqError(
            f"{what.names} could not be carried to {what.target}: {reason_of(error)}; they still are in {what.source}"
        ) from None
    access = access_for(what.source, "the directory")
    for name in what.removed:
        try:
            access.remove(what.source / name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CryprqError(
                f"{what.source / name} has a copy in {what.target} now, and could not be removed: {reason_of(error)}"
            ) from None
    return kept


def _place(what: Carry, owner: NewOwner) -> Path | None:
    stage = what.target.with_name(f".{what.target.name}.new")
    if os.path.lexists(stage):
        # Of a run that was ended. It lies in a directory of root, and holds copies.
        shutil.rmtree(stage)
    os.mkdir(stage, 0o700)
    for file in what.files:
        _write(stage, file, owner)
    for directory, _, _ in os.walk(stage, topdown=False):
        os.chown(directory, *owner)
        sync_directory(Path(directory))
    kept = _free(what.target) if what.target.exists() and any(what.target.iterdir()) else None
    if kept is not None:
        os.rename(what.target, kept)
    os.rename(stage, what.target)
    sync_directory(what.target.parent)
    return kept


def _write(stage: Path, file: CarriedFile, owner: NewOwner) -> None:
    path = stage / file.name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        write_all(handle, file.data, 0)
        os.fchown(handle, *owner)
        os.fsync(handle)
    finally:
        os.close(handle)


def _free(target: Path) -> Path:
    kept, number = target.with_name(f"{target.name}.old"), 1
    while os.path.lexists(kept):
        number += 1
        kept = target.with_name(f"{target.name}.old{number}")
    return kept
