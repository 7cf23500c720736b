"""Files of names, with up to millions of lines: the only parser of lists, and the table of their names.

Each line has one of three formats:

    0.0.0.0 ads.example tracker.example     hosts file: exactly these names
    ads.example    .ads.example             plain domains: the name and everything below it
    *.ads.example                           everything below it, not the name itself
    ||ads.example^                          filter list of a browser: the name and everything below it
    @@||ok.ads.example^                     an exception: not this name, nor anything below it

`#` begins a comment at the start of a line or after a space; a line that begins with `!` is one. Other entries of
filter lists (paths, options, parts of pages) are not about a host. Lists often come from strangers: an invalid line is
reported, and the rest counts.

Only hashes are kept: 62 bits of Python's keyed hash of the name and two bits for the kind of entry. They are sorted in
an array of machine words, with the number of the file in a second array. An index tells where each value of the highest
bits begins. A name takes 14 to 18 bytes, in a set of strings 100. One look-up in 10^12 finds another name by chance.
"""

from __future__ import annotations

import os
import re
import stat
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import BinaryIO, Final

from ..address import MAX_NAME
from ..errors import ConfigError, reason_of

MAX_NAMES: Final = 4_000_000
"""Names in all files: 60 MB, and 300 MB for a moment during sorting."""
MAX_FILES: Final = 1 << 16
MAX_FILE: Final = 1 << 28
"""Bytes in a file: enough for 4,000,000 long lines."""
MAX_LINE: Final = 4096
"""Bytes; longer lines are invalid."""
MAX_PROBLEMS: Final = 20
"""Invalid lines that are described; more are only counted."""

EXACT, TREE, BELOW, ALLOWED = range(4)
"""The kinds of entries: the name, the name and all below, all below, an exception for the name and all below."""

_CHUNK: Final = 1 << 18
_PIECES: Final = 1 << 8
_PIECE_SHIFT: Final = 64 - 8

# A host name in lower-case ASCII. No top-level domain is a number: that is an address, or a wrong cut.
_NAME: Final = rb"(?:[a-z0-9_-]{1,63}\.)*(?!(?:[0-9]+|0x[0-9a-f]*)(?:[\s.^]|\Z))[a-z0-9_-]{1,63}"
_HOST: Final = re.compile(_NAME)
# Nearly all lines of lists match this; group 1 tells the kind.
_COMMON: Final = re.compile(
    rb"(0\.0\.0\.0[ \t]+|127\.0\.0\.1[ \t]+|@@\|\||\|\||\*\.|\.|)(" + _NAME + rb")\.?(\^?)\s*"
)
_KINDS: Final = {b"||": TREE, b"@@||": ALLOWED, b"*.": BELOW, b".": TREE, b"": TREE}
_COMMENT: Final = re.compile(rb"(?:\A|\s)#.*")

# Names of the machine itself in hosts files.
_ITSELF: Final = frozenset(
    (
        *(b"localhost", b"localhost.localdomain", b"local", b"broadcasthost", b"0.0.0.0"),
        *(b"ip6-localhost", b"ip6-loopback", b"ip6-localnet", b"ip6-mcastprefix"),
        *(b"ip6-allnodes", b"ip6-allrouters", b"ip6-allhosts"),
    )
)
_SINKS: Final = frozenset((b"0.0.0.0", b"127.0.0.1", b"::", b"::1", b"0"))
# hosts files from systems carry these lines as well
_SYSTEM: Final = frozenset(
    (b"255.255.255.255", b"fe80::1%lo0", b"ff00::0", b"ff02::1", b"ff02::2", b"ff02::3")
)

type ReadProgress = Callable[[int, int], None]
"""Called with the bytes read so far and the total, some times a second."""


def unreported(done: int, total: int) -> None:
    """The ReadProgress of a caller without a progress bar."""


type OpenList = Callable[[Path], BinaryIO]
"""Opens a list. Raises OSError, and ConfigError if this process must not open it."""


def open_any(path: Path) -> BinaryIO:
    """The OpenList of a caller for whom every path is as good as another. A pipe does not stop it."""
    return open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb")


@dataclass(frozen=True, slots=True)
class Problem:
    """A skipped line."""

    path: Path
    line: int
    text: str
    """Why the line is invalid."""

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.text}"


class ListedNames:
    """The names of some files. `add` and `read` fill it, `seal` sorts it; look-ups come after."""

    __slots__ = ("_half", "_keys", "_masks", "_shift", "_sources", "_starts", "broken", "problems")

    def __init__(self) -> None:
        self._keys = array("q")
        self._sources = array("H")
        self._masks: Sequence[int] = ()
        self._starts = array("I")
        self._shift = self._half = 0
        self.problems: list[Problem] = []
        """The first `MAX_PROBLEMS` invalid lines."""
        self.broken = 0
        """The number of all invalid lines."""

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, entry: str, source: int, *, allowed: bool = False) -> None:
        """Add one name, spelled as in a list of plain domains, for the file with the number `source`.

        Raises ValueError with a text for a person.
        """
        kind, name = parse_plain(entry.encode("utf-8", "replace").lower())
        self._append(ALLOWED if allowed else kind, name, source)

    def _append(self, kind: int, name: bytes, source: int) -> None:
        self._keys.append(hash(name) & ~3 | kind)
        self._sources.append(source)

    def read(self, file: BinaryIO, path: Path, source: int, progress: Callable[[int], None]) -> None:
        """Add all lines of a file; `progress` gets the bytes of each part. Raises ConfigError for too many names, and
        for too many bytes: the file may grow while it is read."""
        number = size = 0
        rest = file.read(3).removeprefix(b"\xef\xbb\xbf")
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            _check_size(size, path)
            lines = (rest + chunk).lower().split(b"\n")
            rest = lines.pop()[: MAX_LINE + 1]
            self._take_lines(lines, path, number, source)
            number += len(lines)
            if len(self) > MAX_NAMES:
                raise ConfigError(
                    f"the lists hold more than {MAX_NAMES} names at {path}, line {number}; use shorter ones"
                )
            progress(len(chunk))
        self._take_lines([rest.lower()], path, number, source)

    def _take_lines(self, lines: Iterable[bytes], path: Path, number: int, source: int) -> None:
        """`number` is that of the previous line. This loop takes nearly all the time of loading."""
        common, kinds = _COMMON.fullmatch, _KINDS
        keys, sources = self._keys.append, self._sources.append
        for line in lines:
            number += 1
            match = common(line) if len(line) <= MAX_NAME else None
            if match:
                before, name, after = match.groups()
                kind = kinds.get(before, EXACT)
                if (before[-1:] == b"|") == (after == b"^") and not (kind == EXACT and name in _ITSELF):
                    keys(hash(name) & ~3 | kind)
                    sources(source)
                    continue
            wrong = self._take(line, source) if len(line) <= MAX_LINE else "the line is too long"
            if wrong:
                self.broken += 1
                if len(self.problems) < MAX_PROBLEMS:
                    self.problems.append(Problem(path, number, wrong))

    def _take(self, line: bytes, source: int) -> str:
        """Add the names of one lower-case line. Returns why it is invalid, or an empty string."""
        words = _COMMENT.sub(b"", line).split()
        if not words or words[0] in _SYSTEM or words[0].startswith(b"!"):
            return ""
        if words[0].startswith(b"[") and words[-1].endswith(b"]"):  # "[Adblock Plus 2.0]"
            return ""
        first, *names = words
        try:
            if first in _SINKS and names:
                for name in names:
                    if name not in _ITSELF:
                        self._append(EXACT, _to_host(name), source)
            elif names:
                return f"{_shown(first)} is followed by something, but is not 0.0.0.0, 127.0.0.1, :: or ::1"
            elif first.startswith((b"||", b"@@||")) and first.endswith(b"^"):
                kind = ALLOWED if first.startswith(b"@@") else TREE
                self._append(kind, _to_host(first[:-1].removeprefix(b"@@")[2:]), source)
            else:
                self._append(*parse_plain(first), source)
        except ValueError as error:
            return str(error)
        return ""

    def seal(self, masks: Sequence[int]) -> None:
        """Sort all names. `masks[source]` are the bits that `mask` gives for a name of that source."""
        # In many small pieces: one sort of all would stop the other threads for a second.
        pieces: list[list[int]] = [[] for _ in range(_PIECES)]
        for key, source in zip(self._keys, self._sources, strict=True):
            pieces[key >> _PIECE_SHIFT].append(key << 16 | source)
        self._keys, self._sources = array("q"), array("H")
        for number in range(-_PIECES // 2, _PIECES // 2):  # hashes have signs
            piece = pieces[number]
            piece.sort()
            for key, _ in groupby(piece):  # without repeated keys: a look-up would read them all
                self._keys.append(key >> 16)
                self._sources.append(key & 0xFFFF)
            piece.clear()
        # About as many buckets as names: a look-up reads one or two names, or an empty bucket.
        bits = max(len(self).bit_length() - 1, 1)
        self._shift, self._half = 64 - bits, 1 << (bits - 1)
        counts = array("I", bytes(4 * ((1 << bits) + 1)))
        for key in self._keys:
            counts[(key >> self._shift) + self._half + 1] += 1
        self._starts = array("I", accumulate(counts))
        self._masks = masks

    def mask(self, host: str) -> int:
        """The bits of all sources that list `host`, a lower-case A-label name."""
        if not self._keys:
            return 0
        name = host.encode("ascii", "replace")
        keys, starts, shift, half = self._keys, self._starts, self._shift, self._half
        found = allowed = 0
        itself = True
        while name:
            key = hash(name) & ~3
            bucket = (key >> shift) + half
            at, end = starts[bucket], starts[bucket + 1]
            while at < end:
                kind = keys[at] ^ key
                if kind > ALLOWED or kind < EXACT:
                    pass  # another name
                elif kind == ALLOWED:
                    allowed |= self._masks[self._sources[at]]
                elif kind == TREE or (kind == EXACT) == itself:
                    found |= self._masks[self._sources[at]]
                at += 1
            itself = False
            name = name.partition(b".")[2]
        return found & ~allowed


NOTHING: Final = ListedNames()


def load(
    paths: Sequence[Path],
    masks: Sequence[int],
    progress: ReadProgress = unreported,
    opener: OpenList = open_any,
) -> ListedNames:
    """Read each file once; `masks` has the bits for the names of each. About a second per million lines.

    Raises ConfigError for a file that cannot be read, and for more than `MAX_NAMES` names in all of them.
    """
    names = ListedNames()
    read_files(names, paths, progress, opener)
    names.seal(masks)
    return names


def read_files(
    names: ListedNames,
    paths: Sequence[Path],
    progress: ReadProgress = unreported,
    opener: OpenList = open_any,
) -> None:
    """As `load`, into existing `names`: the number of the source is the index in `paths`."""
    if len(paths) > MAX_FILES:
        raise ConfigError(
            f"{len(paths)} lists are named, and at most {MAX_FILES} are read; join some of them"
        )
    done, total = 0, sum(map(_size, paths))

    def read(count: int) -> None:
        nonlocal done
        done += count
        progress(min(done, total), total)

    for source, path in enumerate(paths):
        try:
            with opener(path) as file:
                _check(os.fstat(file.fileno()), path)
                names.read(file, path, source, read)
        except OSError as error:
            raise _unreadable(path, reason_of(error)) from None
    progress(total, total)


def _size(path: Path) -> int:
    """Bytes in a file, for the progress. Raises ConfigError as `_check`."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise _unreadable(path, reason_of(error)) from None
    except ValueError:
        raise _unreadable(path, "no file can have this path") from None
    _check(found, path)
    return found.st_size


def _check(found: os.stat_result, path: Path) -> None:
    """Raise ConfigError for what is no file, or too large: devices and pipes may have no end. What is read is checked
    by its descriptor, since the path may lead elsewhere by then."""
    if stat.S_ISDIR(found.st_mode):
        raise _unreadable(path, "is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise _unreadable(path, "it is no regular file")
    _check_size(found.st_size, path)


def _check_size(size: int, path: Path) -> None:
    if size > MAX_FILE:
        raise _unreadable(path, f"it has more than {MAX_FILE >> 20} MiB")


def _unreadable(path: Path, reason: str | None) -> ConfigError:
    return ConfigError(f"the list {path} cannot be read: {reason}")


# --- words ---


def parse_plain(word: bytes) -> tuple[int, bytes]:
    """Kind and name of a lower-case word in a list of plain domains. Raises ValueError with a text for a person."""
    if word.startswith(b"*."):
        return BELOW, _to_host(word[2:], word)
    return TREE, _to_host(word.removeprefix(b"."), word)


def _to_host(word: bytes, whole: bytes = b"") -> bytes:
    """The name in lower-case A-labels, without a dot at its end. Raises ValueError; its text shows `whole`."""
    name = word
    if not word.isascii():
        try:
            name = word.decode("utf-8").lower().encode("idna").lower()
        except UnicodeError:
            name = b""
    name = name.removesuffix(b".")
    if len(name) > MAX_NAME or not _HOST.fullmatch(name):
        raise ValueError(f"{_shown(whole or word)} is not a domain")
    return name


def _shown(word: bytes) -> str:
    return ascii(word[:60].decode("utf-8", "replace"))
