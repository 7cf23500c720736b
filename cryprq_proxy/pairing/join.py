"""Pairing, the client's side: from an invitation to a working client.toml.

    read the invitation -> plan the new file -> identity -> dial, show the secret -> write the file
                                                             ^      v
                                                            busy: again, a few times

The new file is planned before the secret is used up, so a file that cannot be extended does not waste the invite. An
existing file is never overwritten: the exit is added to it, or takes the place of the one that had its address before,
or gets the address of the invite beside those that it had; or an error says what to do. To show the secret again is
safe: whoever has used it up is on the list, and is let in for that.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..base.clock import clock
from ..base.file_access import access_for, exists
from ..base.files import SharedFile
from ..base.paths import config_dir, read_text
from ..base.tasks import spawn
from ..client.backoff import Backoff
from ..client.client import Client
from ..client.rest import Pause
from ..client.settings import ClientSettings
from ..config.client import ClientConfig, client_from
from ..config.decode import parse_toml
from ..config.exits import ExitChoice
from ..config.foreign import only_harmless
from ..config.keys import choose_provider, own_identity
from ..config.urls import PeerUrl, parse_peer_url
from ..crypto.identity import PeerId
from ..errors import CarrierError, CloseReason, ConfigError, CryprqError, PeerError, reason_of
from ..process.lifecycle import Stop
from .invitation import Invitation
from .replacing import replace_id, with_address, with_another_identity

_log = logging.getLogger(__name__)

WHAT: Final = "the configuration"
ATTEMPTS: Final = 8
RETRY_SECONDS: Final = 15.0
"""After that no further attempt begins. An exit takes a crowd of 200 in two seconds."""
_PASSING: Final = (CloseReason.LIMIT, CloseReason.SHUTTING_DOWN)
_HEAD: Final = (
    "# Written by `cryprq-proxy join`. configs/client.toml of the program's source lists every key.\n"
)
_OWN_NETWORKS: Final = """
[[rule]]
name = "private networks"
to = "direct"
cidrs = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]
"""
_PROPOSAL: Final = (
    "\n# Your own router, printers and so on, past the exit, which has other private networks:"
    + (_OWN_NETWORKS.rstrip("\n").replace("\n", "\n#") + "\n")
)


@dataclass(frozen=True, slots=True)
class Plan:
    """The change of the configuration."""

    file: Path
    before: str
    """The present text of the file; empty if there is none."""
    text: str
    config: ClientConfig
    """`text`, decoded."""
    keep: Path | None
    """The path to keep the present file at, if it is replaced and not extended."""
    replaces: ExitChoice | None = None
    """The exit whose identity the text changes: another one answers at its address, which a person must know of."""
    moved: ExitChoice | None = None
    """The exit that gets the invite's address beside those that it has in the present file."""

    @property
    def proposes(self) -> bool:
        """Whether the new text has the rule for private networks as a comment."""
        return self.changed and _PROPOSAL in self.text

    @property
    def changed(self) -> bool:
        """False if the exit is in the file already."""
        return self.text != self.before or self.keep is not None


def plan(
    invitation: Invitation, file: Path | None, name: str | None, force: bool, direct_private: bool = False
) -> Plan:
    """Plan how to make or extend `file`, or client.toml in the default directory; writes nothing.

    `name` is the exit's name there; an exit with another identity than before keeps the one that it has. `force` begins
    a new file and keeps the old one under another name.
    `direct_private` adds a rule that sends private networks past the exit; a new file has it as a comment otherwise.
    Raises ConfigError if the exit cannot be added.
    """
    source = config_dir() / "client.toml" if file is None else file
    old, private = "", True
    if exists(source, WHAT) and not force:
        old, private = read_text(source, WHAT)
    document = parse_toml(old, source)
    rule = _OWN_NETWORKS if direct_private and _OWN_NETWORKS not in old else ""
    if not old and not rule:
        rule = _PROPOSAL
    present = client_from(old, source, private, {}) if document.keys() & {"peer", "exit"} else None
    url = parse_peer_url(invitation.url)
    known = None if present is None else _known(present, url.peer_id)
    if present is not None and known is not None:
        return _of_known(Plan(source, old, old, present, None), known, invitation, name, private, rule)
    replaced = None if present is None else with_another_identity(present, url)
    if replaced is None:
        text = _extended(old, document, invitation, _free_name(present, url) if name is None else name)
    else:
        _keeps_name(replaced, name, url, source)
        text = replace_id(old, replaced.peer_id, invitation.peer_id)
    if rule:
        text = f"{_whole_lines(text)}{rule}"
    try:
        config = client_from(text, source, private, {})
    except ConfigError as error:
        if not old:
            raise
        raise ConfigError(
            f"the exit cannot be added to {source} ({error}): mend that file, use another one with "
            "--config F, or begin a new one with --force"
        ) from None
    if invitation.peer_id not in {choice.peer_id for choice in config.exits()}:
        raise ConfigError(
            f"{source} writes the peer id of {url.endpoint} in an unusual form: put the new one there"
        )
    keep = _free(source) if force and exists(source, WHAT) else None
    return Plan(source, old, text, only_harmless(config), keep, replaced)


def _known(config: ClientConfig, peer: PeerId) -> ExitChoice | None:
    return next((choice for choice in config.exits() if choice.peer_id == peer), None)


def _of_known(
    present: Plan, known: ExitChoice, invitation: Invitation, name: str | None, private: bool, rule: str
) -> Plan:
    """`present`, which changes nothing, with the invite's address for the exit `known`, and with `rule`."""
    url = parse_peer_url(invitation.url)
    _keeps_name(known, name, url, present.file)
    texts = [present.before]
    if moved := url.endpoint not in known.endpoints:
        texts = list(with_address(present.before, url.peer_id, invitation.url))
    why = ""
    for text in texts:
        if rule:
            text = f"{_whole_lines(text)}{rule}"
        try:
            config = client_from(text, present.file, private, {})
        except ConfigError as error:
            why = why or f" ({error})"
            continue
        choice = _known(config, url.peer_id)
        if choice is not None and url.endpoint in choice.endpoints:
            return replace(present, text=text, config=only_harmless(config), moved=known if moved else None)
    raise ConfigError(
        f"{url.endpoint} cannot be added to the addresses of the exit {known.name} in {present.file}{why}: "
        "change that file by hand, and join again"
    )


def _keeps_name(known: ExitChoice, name: str | None, url: PeerUrl, file: Path) -> None:
    """Raises ConfigError if `name` is another one."""
    if name not in (None, known.name):
        raise ConfigError(
            f"the exit at {url.endpoint} is called {known.name} in {file} and keeps that name: leave out --name"
        )


def _extended(old: str, document: dict[str, Any], invitation: Invitation, name: str | None) -> str:
    """`old` with this exit. A JSON string of printable ASCII is valid TOML too."""
    url = json.dumps(invitation.url)
    if name is None and "peer" not in document and "exit" not in document:
        # A key of the whole file must stand before its first table.
        return f"{'' if old else _HEAD}peer = {url}\n{old}"
    called = "" if name is None else f"name = {json.dumps(name)}\n"
    return f"{_whole_lines(old) or _HEAD}\n[[exit]]\n{called}peer = {url}\n"


def _free_name(present: ClientConfig | None, url: PeerUrl) -> str | None:
    """A name for a second exit on the same host; None: it needs none of its own."""
    host, port = url.endpoint.address
    if present is None or host not in {choice.name for choice in present.exits()}:
        return None
    return f"{host}-{port}"


def _whole_lines(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"


def _free(source: Path) -> Path:
    kept, number = source.with_name(f"{source.name}.old"), 1
    while exists(kept, WHAT):
        number += 1
        kept = source.with_name(f"{source.name}.old{number}")
    return kept


def write(plan: Plan) -> None:
    """Put the plan into force. Raises ConfigError, also if the file has appeared or changed meanwhile."""
    if not plan.changed:
        return
    shared = SharedFile(plan.file, WHAT)
    with shared.locked():
        if plan.keep is not None:
            try:
                access_for(plan.file.parent, f"the directory of {WHAT},").rename(plan.file, plan.keep)
            except OSError as error:
                raise ConfigError(f"{plan.file} cannot be moved to {plan.keep}: {reason_of(error)}") from None
        elif shared.read() != plan.before:
            raise ConfigError(f"{plan.file} was changed meanwhile; join again")
        shared.replace(plan.text)


async def join_unless(stop: Stop, invitation: Invitation, plan: Plan) -> PeerId | None:
    """As `join`, but None if a stop is asked for first."""
    task, asked = spawn(join(invitation, plan), "join"), spawn(stop.asked.wait(), "signals")
    await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
        return None
    return task.result()


async def join(invitation: Invitation, plan: Plan, pause: Pause = asyncio.sleep) -> PeerId:
    """Show the exit the secret and write the configuration. Returns this machine's peer id.

    Raises CryprqError with the reason of a failure.
    """
    provider = choose_provider(plan.config.provider)
    identity = own_identity(provider, plan.config.identity)
    client = Client(identity, _settings(invitation, plan.config), provider)
    try:
        await _reach(client, pause)
    except PeerError as error:
        if error.reason is CloseReason.NOT_AUTHORIZED:
            raise CryprqError(
                "the exit refused this invite: it was used, has expired or was withdrawn; ask for a new one"
            ) from None
        raise CryprqError(
            f"the exit was not reached: {error}; make sure that the exit runs at this address, and try again"
        ) from None
    finally:
        await client.stop()
    write(plan)
    return identity.peer_id


async def _reach(client: Client, pause: Pause) -> None:
    """Attempts, until one succeeds or they are enough. Raises PeerError with the reason of the last one.

    An exit that is busy, or has had too many attempts from this address, ends the connection without a word.
    """
    backoff, said = Backoff(), ""
    give_up = clock() + RETRY_SECONDS
    for left in reversed(range(ATTEMPTS)):
        try:
            await client.reach()
            return
        except PeerError as error:
            passing = isinstance(error, CarrierError) or error.reason in _PASSING
            if not passing or not left or clock() >= give_up:
                raise
            if str(error) != said:
                said = str(error)
                _log.warning("the exit was not reached: %s; trying again", said)
        await pause(backoff.next())


def _settings(invitation: Invitation, config: ClientConfig) -> ClientSettings:
    """The client's settings for showing an invite to its exit, at the invitation's address. Raises ConfigError."""
    known = next(choice for choice in config.exits() if choice.peer_id == invitation.peer_id)
    endpoint = parse_peer_url(invitation.url).endpoint
    return replace(config.link_settings(known, None), endpoints=(endpoint,), invite=invitation.secret)
