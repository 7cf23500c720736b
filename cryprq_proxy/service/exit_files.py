"""What an exit reads at its start, and again while it runs: its configuration, the list of peers, a certificate."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from ..base.log import one_line
from ..base.program import to_run
from ..config.authorized import KeptRevocations, revoked_beside
from ..config.exit import ExitConfig, WebSocketTable
from ..crypto.identity import PeerId
from ..errors import ConfigError
from ..exit.web_certificate import WebCertificate, read_certificate
from ..process.file_watch import FileWatch

_log = logging.getLogger(__name__)

MAX_PEERS_NAMED: Final = 5
"""In one line of the log."""


class LoadedExit(NamedTuple):
    """What was read again. `names` are those of the peers, `certificate` is that of the second entrance, or why it
    cannot be used."""

    config: ExitConfig
    names: dict[PeerId, str]
    certificate: WebCertificate | ConfigError | None


class ExitFiles:
    """`read` gives the configuration as it is by then; `watch` looks at all files that are read, from then on.
    `authorized` is where the list of peers would be if there is none."""

    def __init__(self, read: Callable[[], ExitConfig], watch: FileWatch, authorized: Path | None) -> None:
        self._read = read
        self._watch = watch
        self._authorized = authorized
        self._revocations = KeptRevocations()
        if authorized is not None:
            watch.before_reading(authorized, revoked_beside(authorized))

    def again(self) -> LoadedExit:
        """Blocks. Raises ConfigError."""
        config = self._read()
        return LoadedExit(config, self.peers(config), _certificate(config.websocket))

    def peers(self, config: ExitConfig) -> dict[PeerId, str]:
        """Those that `config` lets in, of the file that it names, each with its name. Says which of the listed peers
        are not let in, and which are listed several times. Raises ConfigError."""
        self._mark_certificate(config.websocket)
        if config.authorized is not None:
            self._watch.before_reading(config.authorized, revoked_beside(config.authorized))
        allowed, revoked, repeated = config.peers(self._authorized)
        if (place := config.authorized or self._authorized) is not None:
            self._revocations.check(place)
        if revoked:
            _log.warning(
                "%s listed but revoked, and not let in: %s; to let one in again, run: %s",
                "1 peer is" if len(revoked) == 1 else f"{len(revoked)} peers are",
                _first_of([one_line(name) or str(peer) for peer, name in revoked.items()]),
                to_run("peers add PEERID NAME"),
            )
        if repeated:
            _log.warning(
                "%s: %s listed more than once, and the name of the last line counts: %s",
                config.authorized,
                "1 peer is" if len(repeated) == 1 else f"{len(repeated)} peers are",
                _first_of([f"{peer.shown} (lines {first} and {last})" for peer, first, last in repeated]),
            )
        return allowed

    def _mark_certificate(self, web: WebSocketTable) -> None:
        if web.listen is not None:
            files = (web.certificate, web.key)
            self._watch.before_reading(*(file for file in files if file is not None))


def _certificate(web: WebSocketTable) -> WebCertificate | ConfigError | None:
    """What is wrong with it holds up nothing else: another program renews it, and a revoked peer is out at once."""
    try:
        return None if web.listen is None else read_certificate(web.certificate, web.key)
    except ConfigError as error:
        return error


def _first_of(named: list[str]) -> str:
    """As many as fit into one line of the log."""
    more = len(named) - MAX_PEERS_NAMED
    return ", ".join(named[:MAX_PEERS_NAMED]) + (f" and {more} more" if more > 0 else "")
