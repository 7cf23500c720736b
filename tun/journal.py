"""What system-wide mode has changed on this machine, written down before each change, so that all of it can be undone.

    record(entry)  ->  one line appended, on the disk (fsync)  ->  only then the change itself
    undo()         ->  last entry first, each by the undoer of its kind  ->  the journal is empty

The same undo serves the clean stop, the next start after a crash, and `cryprq-proxy cleanup`. It may be interrupted
anywhere and run again: undoers accept that their change is gone already.

A crash may leave half a line at the end. `record` had not returned, so the change was never made, and the half line is
cut off. Every entry carries the boot id: after a reboot the kernel has forgotten its part, so undoers leave the kernel
alone and put files back only.

The file is trusted as far as its owner: file and directory must belong to this user alone, and sizes are bounded. An
entry names a kind of change and plain values, never a command, and each undoer checks them.

The lock is a file of its own, because the journal is replaced by renaming when some of its entries remain.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from cryprq_proxy.base.file_access import replace_file, sync_directory, write_all
from cryprq_proxy.base.files import is_own_directory, is_own_file
from cryprq_proxy.base.leftovers import in_use
from cryprq_proxy.base.macos_programs import boot_session
from cryprq_proxy.base.program import to_run
from cryprq_proxy.errors import ConfigError, CryprqError, LocalError, reason_of

_log = logging.getLogger(__name__)

type Entry = Mapping[str, Any]
type Record = Callable[[Mapping[str, object]], None]
type Undoer = Callable[[Entry], None]

MAX_ENTRY: Final = 65_536
"""Bytes of one line, its end included."""
MAX_JOURNAL: Final = 4 * 1024 * 1024
"""Bytes of the file. A run writes some dozens of entries of some hundred bytes."""

_KIND: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """The kernel's id of this boot; empty where there is none. On Linux random(4) has it, on macOS sysctl(8)."""
    if sys.platform == "darwin":
        return boot_session()
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def same_boot(entry: Entry) -> bool:
    """Whether the kernel may still have the change of `entry`. An entry without a boot id counts as of this boot."""
    return bool(entry.get("boot", boot_id()) == boot_id())


def parse(content: bytes) -> tuple[list[Entry], int, int]:
    """The entries in a journal's bytes, how many whole bytes they fill, and how many damaged lines stand between.

    A last line that is damaged or has no end is neither counted nor among the bytes. Raises nothing.
    """
    entries: list[Entry] = []
    whole = damaged = suspect = 0
    position = 0
    while (end := content.find(b"\n", position)) >= 0:
        entry = _entry(content[position:end]) if end - position < MAX_ENTRY else None
        position = end + 1
        if entry is None:
            suspect += 1
            continue
        # What came before a good line was not the last one: the disk has damaged it, no crash of ours.
        damaged, suspect, whole = damaged + suspect, 0, position
        entries.append(entry)
    return entries, whole, damaged


def _entry(line: bytes) -> Entry | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if (
        not isinstance(value, dict)
        or not isinstance(kind := value.get("kind"), str)
        or not _KIND.fullmatch(kind)
    ):
        return None
    return value


class JournalInUse(ConfigError):
    """Another process has the journal."""


class Journal:
    """The journal at `path`, locked for this process until `close`. A context manager.

    Directory and file are made where they are missing, for the owner only. Raises JournalInUse, and ConfigError if it
    does not belong to this user alone or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        """Lines in the middle that could not be read when it was opened; what they recorded cannot be undone."""
        self._entries: list[Entry] = []
        self._size = 0
        with contextlib.ExitStack() as undone, _readable(path):
            own_directory(path.parent)
            self._lock = _open(path.with_name(path.name + ".lock"))
            undone.callback(os.close, self._lock)
            self._take_lock()
            new = not path.exists()
            self._file = _open(path)
            undone.callback(os.close, self._file)
            if new:
                sync_directory(path.parent)
            self._read()
            undone.pop_all()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip()
            raise JournalInUse(in_use(int(holder) if holder.isdecimal() else None)) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)

    def _read(self) -> None:
        if os.fstat(self._file).st_size > MAX_JOURNAL:
            raise ConfigError(
                f"the journal {self.path} is larger than we ever write it: look at it and remove it"
            )
        content = bytearray()
        while piece := os.pread(self._file, MAX_JOURNAL, len(content)):
            content += piece
        self._entries, self._size, self.damaged = parse(bytes(content))
        if self._size < len(content):
            os.ftruncate(self._file, self._size)

    def record(self, entry: Mapping[str, object]) -> None:
        """Write `entry` to the disk: a kind and plain values (what JSON holds), at most `MAX_ENTRY` bytes.

        Raises CryprqError where that fails; then the change must not be made. Raises LocalError for an invalid kind or
        too large an entry.
        """
        stamped = {**entry, "boot": boot_id()}
        line = json.dumps(stamped, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if len(line) > MAX_ENTRY or (read_back := _entry(line)) is None:
            raise LocalError(f"this is no entry for the journal: {entry!r:.200}")
        if self._size + len(line) > MAX_JOURNAL:
            raise CryprqError(f"the journal {self.path} is full: stop system-wide mode and start it again")
        try:
            write_all(self._file, line, self._size)
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                # Or the next line would continue this one.
                os.ftruncate(self._file, self._size)
            raise CryprqError(
                f"the journal {self.path} cannot be written, so nothing may be changed: {reason_of(error)}"
            ) from error
        self._size += len(line)
        self._entries.append(read_back)

    def entries(self) -> list[Entry]:
        """The recorded changes that are not undone, in their order."""
        return list(self._entries)

    def keep(self, entries: Sequence[Entry]) -> None:
        """Keep only these of its entries, in one step that a crash cannot halve. Raises CryprqError."""
        content = b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries)
        with _readable(self.path):
            file = replace_file(self.path, content)
        os.close(self._file)
        self._file = file
        self._entries, self._size = list(entries), len(content)

    def clear(self) -> None:
        """Empty the journal: everything in it is undone. Raises CryprqError."""
        with _readable(self.path):
            os.ftruncate(self._file, 0)
            os.fsync(self._file)
        self._entries, self._size, self.damaged = [], 0, 0

    def close(self) -> None:
        """Release the lock, and remove the file if nothing is left to undo. Call nothing afterwards."""
        with contextlib.suppress(OSError):
            if not self._entries and not self.damaged:
                self.path.unlink(missing_ok=True)
            os.ftruncate(self._lock, 0)
        os.close(self._file)
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def undo(journal: Journal, undoers: Mapping[str, Undoer], keep: Container[str] = ()) -> None:
    """Undo all that is recorded, the last change first. Entries of the kinds in `keep` stay.

    A failure stops nothing: the other entries are undone, failed ones stay in the journal for the next time, and one
    CryprqError names them. Safe to call again, and in a process that made none of the changes.
    """
    kept: list[Entry] = []
    reasons: list[str] = []
    hint = ""
    if journal.damaged:
        reasons.append(f"{journal.damaged} damaged line(s) in {journal.path}, now dropped")
    for entry in reversed(journal.entries()):
        kind = entry["kind"]
        if kind in keep:
            kept.append(entry)
            continue
        if kind not in undoers:
            kept.append(entry)
            reasons.append(f"{kind}: this version does not know such changes")
            hint = hint or (
                f"; the rest is undone, use the version that wrote this, or remove {journal.path} "
                "if nothing is missing"
            )
            continue
        try:
            undoers[kind](entry)
        except Exception as error:  # noqa: BLE001  whatever it was, the changes before it must still be undone
            _log.debug("undoing %r failed", entry, exc_info=error)
            kept.append(entry)
            hint = f"; the rest is undone, run `{to_run('cleanup')}` to try these again"
            said = str(error) if isinstance(error, CryprqError) else f"{type(error).__name__}: {error}"
            reasons.append(f"{kind}: {said}")
    try:
        if kept:
            journal.keep(kept[::-1])
            journal.damaged = 0
        else:
            journal.clear()
    except CryprqError as error:
        reasons.append(str(error))
    if reasons:
        raise CryprqError(f"not everything could be undone: {'; '.join(reasons)}{hint}")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into a sentence."""
    try:
        yield
    except PermissionError as error:
        raise ConfigError(f"the journal {path} needs root: {reason_of(error)}") from error
    except OSError as error:
        raise ConfigError(f"the journal {path} cannot be used: {reason_of(error)}") from error


def own_directory(directory: Path) -> None:
    """Make it where it is missing. Raises ConfigError where other users can change its content; OSError."""
    if not directory.exists():
        directory.mkdir(mode=0o700, parents=True)
        sync_directory(directory.parent)
    if not is_own_directory(directory.stat()):
        raise ConfigError(f"others can write to {directory}: make it this user's own, with mode 700")


def _open(path: Path) -> int:
    """Raises ConfigError for anything but a plain file of ours; OSError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if not is_own_file(os.fstat(file)):
        os.close(file)
        raise ConfigError(f"{path} is not a file of this user alone (mode 600): look at it and remove it")
    return file
