"""Names that a person does not want, from files with up to millions of lines.

Two formats, line by line, also mixed in one file; `#` begins a comment:

    0.0.0.0 ads.example tracker.example     as in a hosts file: exactly these names
    ads.example    .ads.example             plain domains: the name and everything below it
    *.ads.example                           everything below it, not the name itself

Only hashes are kept: Python's own 64-bit keyed hash of the wire form, sorted in an array of machine words. That is 8
bytes for a name where a set of strings takes 100, and by chance one name in 10^13 is blocked for another. The files
are the person's own, but often come from strangers: a line that makes no sense is reported, and the rest counts.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from cryprq_proxy.errors import ConfigError

from .names import from_ascii, from_text, suffixes

MAX_NAMES: Final = 4_000_000
"""Over all files: 32 MB, and four times as much for a moment while they are sorted."""
MAX_LINE: Final = 4096
"""Bytes; longer lines count as broken."""
MAX_PROBLEMS: Final = 20
"""Broken lines that are described; the others are counted."""

# What hosts files say of the machine itself.
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


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that was passed over."""

    path: Path
    line: int
    text: str
    """What is wrong with it."""

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.text}"


class _Hashes:
    """A set of names as sorted hashes."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found = array("q")

    def __len__(self) -> int:
        return len(self._found)

    def add(self, wire: bytes) -> None:
        """Only before `seal`."""
        self._found.append(hash(wire))

    def seal(self) -> None:
        self._found = array("q", sorted(self._found))

    def __contains__(self, wire: bytes) -> bool:
        value = hash(wire)
        at = bisect_left(self._found, value)
        return at < len(self._found) and self._found[at] == value


class Blocklist:
    """All blocked names. Filled by `load`, then only asked."""

    def __init__(self) -> None:
        self._exact = _Hashes()
        self._trees = _Hashes()
        self._below = _Hashes()
        self._allowed = _Hashes()
        self.problems: list[Problem] = []
        """The first `MAX_PROBLEMS` broken lines."""
        self.broken = 0
        """How many there were."""

    def __len__(self) -> int:
        return len(self._exact) + len(self._trees) + len(self._below)

    def blocks(self, name: bytes) -> bool:
        """Whether `name` (lower-case wire form) is blocked. An allowed domain above it wins over every list."""
        if not len(self):
            return False
        found = name in self._exact
        for above, suffix in enumerate(suffixes(name)):
            if suffix in self._allowed:
                return False
            found = found or suffix in self._trees or (above > 0 and suffix in self._below)
        return found

    def _add(self, name: bytes, *, exact: bool) -> bool:
        """Take a lower-case ASCII name in one of the spellings above; False if it is none."""
        target = self._exact if exact else self._trees
        if not exact and name.startswith(b"*."):
            name, target = name[2:], self._below
        elif not exact and name.startswith(b"."):
            name = name[1:]
        wire = from_ascii(name)
        # No top-level domain is a number: this is an address, or a line cut in the wrong place.
        if wire is None or name.rstrip(b".").rpartition(b".")[2].isdigit():
            return False
        target.add(wire)
        return True

    def _read(self, file: BinaryIO, path: Path) -> None:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE)
                self._problem(path, number, "the line is too long")
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            words = line.split(b"#", 1)[0].lower().split()
            if words:
                wrong = self._take(words)
                if wrong:
                    self._problem(path, number, wrong)
                if len(self) > MAX_NAMES:
                    raise ConfigError(
                        f"the blocklists hold more than {MAX_NAMES} names at {path}, line {number};"
                        " use shorter ones"
                    )

    def _take(self, words: list[bytes]) -> str:
        """The names of one line; what is wrong with it, or nothing."""
        exact = words[0] in _SINKS and len(words) > 1
        if words[0] in _SYSTEM:
            return ""
        if not exact and len(words) > 1:
            return f"{_shown(words[0])} is followed by something, but is not 0.0.0.0, 127.0.0.1, :: or ::1"
        for word in words[exact:]:
            if not word.isascii():
                try:
                    word = _to_ascii(word)
                except ValueError:
                    return f"{_shown(word)} is not a domain"
            if not (exact and word in _ITSELF) and not self._add(word, exact=exact):
                return f"{_shown(word)} is not a domain"
        return ""

    def _problem(self, path: Path, line: int, text: str) -> None:
        self.broken += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(path, line, text))


def load(paths: Iterable[Path] = (), block: Iterable[str] = (), allow: Iterable[str] = ()) -> Blocklist:
    """Read all files; takes about two seconds per million lines, so not on the event loop.

    Broken lines are in `problems`. Raises `ConfigError` for a file that cannot be read, for more than `MAX_NAMES`
    and for a broken name in `block` or `allow`.
    """
    found = Blocklist()
    for name in block:
        below = name.startswith("*.")
        (found._below if below else found._trees).add(
            from_text(name[2:] if below else name.removeprefix("."))
        )
    for name in allow:
        found._allowed.add(from_text(name.removeprefix("*").removeprefix(".")))
    for path in paths:
        try:
            with path.open("rb") as file:
                found._read(file, path)
        except OSError as error:
            raise ConfigError(f"the blocklist {path} cannot be read: {error.strerror}") from None
    for hashes in (found._exact, found._trees, found._below, found._allowed):
        hashes.seal()
    return found


def _to_ascii(word: bytes) -> bytes:
    """A-labels for a name in another script. Raises ValueError."""
    text = word.decode("utf-8")
    prefix = next((prefix for prefix in ("*.", ".") if text.startswith(prefix)), "")
    return prefix.encode() + text.removeprefix(prefix).lower().encode("idna").lower()


def _shown(word: bytes) -> str:
    return repr(word[:60].decode("utf-8", "replace"))
