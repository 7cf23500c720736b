"""An exit that has come back with another identity: the same address in the configuration, and another peer id.

    peer = "cryprq://OLD@exit.example:4433"  # at home      ->      peer = "cryprq://NEW@exit.example:4433"  # at home

Only ids inside of TOML's strings are replaced, so that comments, rules, the exit's name and its other keys stay as they
are. All addresses of that exit get the new id: they lead to one machine.
"""

from __future__ import annotations

import re
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
