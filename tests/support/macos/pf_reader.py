"""The words of pf.conf(5), one after the other."""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r'"[^"]*"|<[A-Za-z_][A-Za-z0-9_-]*>|->|<>|><|>=|<=|!=|[=<>!{}(),]|[A-Za-z0-9_./:%*+-]+|\s+|#.*'
)
_WORD = re.compile(r"[A-Za-z0-9_./:%*+-]+")


class PfSyntaxError(Exception):
    """The text is none of pf.conf(5), or none that this grammar knows."""


def tokens_of(line: str) -> list[str]:
    tokens, at = [], 0
    while at < len(line):
        match = _TOKEN.match(line, at)
        if match is None:
            raise PfSyntaxError(f"what is {line[at:]!r}")
        at = match.end()
        if not match[0].isspace() and not match[0].startswith("#"):
            tokens.append(match[0])
    return tokens


class PfReader:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    @property
    def next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def take(self, *wanted: str) -> str:
        """The next token: one of these, or any without any given."""
        found = self.next
        if not found or (wanted and found not in wanted):
            raise PfSyntaxError(f"{found or 'the end'} instead of {' or '.join(wanted) or 'a word'}")
        self._at += 1
        return found

    def took(self, *wanted: str) -> bool:
        if self.next and self.next in wanted:
            self._at += 1
            return True
        return False

    def word(self) -> str:
        found = self.take()
        if _WORD.fullmatch(found) is None:
            raise PfSyntaxError(f"{found} is no word")
        return found

    def string(self) -> str:
        found = self.take()
        if found.startswith('"'):
            return found[1:-1]
        if _WORD.fullmatch(found) is None:
            raise PfSyntaxError(f"{found} is no name")
        return found
