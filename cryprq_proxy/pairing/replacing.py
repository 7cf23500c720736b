"""An exit that has come back with another identity, or at another address.

    peer = "cryprq://OLD@exit.example:4433"  # at home      ->      peer = "cryprq://NEW@exit.example:4433"  # at home
    peer = "cryprq://ID@192.0.2.1"  ->  peer = ["cryprq://ID@192.0.2.9:4433", "cryprq://ID@192.0.2.1"]

Only ids inside of TOML's strings are replaced, so that comments, rules, the exit's name and its other keys stay as they
are. All addresses of that exit get the new id: they lead to one machine. A new address comes before those that it had,
which may be good elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

from ..config.client import ClientConfig
from ..config.exits import ExitChoice
from ..config.urls import PeerUrl
from ..crypto.identity import PeerId

_STRING_OR_COMMENT: Final = re.compile(
    r'''"""(?:[^\\]|\\.)*?"""|\'\'\'.*?\'\'\'|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\#[^\n]*''', re.DOTALL
)
"""TOML 1.0: multi-line strings first. What stands in none of these has no quotation mark and no number sign."""


def with_another_identity(config: ClientConfig, url: PeerUrl) -> ExitChoice | None:
    """The exit that the configuration has at the address of `url`, and that is not the one `url` names."""
    return next(
        (
            choice
            for choice in config.exits()
            if url.endpoint in choice.endpoints and choice.peer_id != url.peer_id
        ),
        None,
    )


def replace_id(text: str, old: PeerId, new: PeerId) -> str:
    """`text`, valid TOML, with `new` in place of `old` in each string, whatever case its letters have."""
    id = re.compile(re.escape(str(old)), re.IGNORECASE)

    def renewed(found: re.Match[str]) -> str:
        return found[0] if found[0].startswith("#") else id.sub(str(new), found[0])

    return _STRING_OR_COMMENT.sub(renewed, text)


def with_address(text: str, peer: PeerId, url: str) -> Iterator[str]:
    """`text`, valid TOML, with `url` as a further address of `peer`: where it is the value of a key, and in lists, each
    place a try of its own, as only a decoder knows whether it is the right one. First before, then behind what is
    there: an exit without a name has that of its first host, which a rule may use."""
    places, outside, end = [], "", 0
    for found in _STRING_OR_COMMENT.finditer(text):
        outside += text[end : found.start()]
        end = found.end()
        if found[0].startswith("#"):
            continue
        if str(peer) in found[0].lower() and (before := outside.rstrip()[-1:]) in ("=", "[", ","):
            places.append((found, before == "="))
        outside += "."
    for ahead in (True, False):
        for found, alone in places:
            both = ", ".join((json.dumps(url), found[0]) if ahead else (found[0], json.dumps(url)))
            yield f"{text[: found.start()]}{f'[{both}]' if alone else both}{text[found.end() :]}"
