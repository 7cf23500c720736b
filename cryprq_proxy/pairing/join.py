"""Pairing, the client's side: from an invite to a client.toml that works.

    read the invite -> what will the configuration be? -> identity -> connect, show the secret -> write the file

What the file will look like is settled before the secret is used up, so that a file which cannot be extended costs
nobody the invite. A file that is there is never overwritten: the exit is added to it, or the person is told what to do.
"""

from __future__ import annotations

import asyncio
import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..base.files import SharedFile
from ..base.paths import config_dir, read_text
from ..base.tasks import spawn
from ..base.text import reason_of
from ..client.client import Client
from ..client.settings import ClientSettings
from ..config.client import ClientConfig, client_from
from ..config.keys import choose_provider, own_identity
from ..config.urls import parse_peer_url
from ..crypto.identity import PeerId
from ..errors import CloseReason, ConfigError, CryprqError, PeerError
from ..process.lifecycle import Stop
from .invitation import Invitation

WHAT: Final = "the configuration"
_HEAD: Final = (
    "# Written by `cryprq-proxy join`. configs/client.toml of the program's source lists every key.\n"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of the configuration."""

    file: Path
    before: str
    """What it holds now; nothing if there is none."""
    text: str
    config: ClientConfig
    """`text`, decoded."""
    keep: Path | None
    """Where the present file is kept, if it is replaced and not extended."""

    @property
    def changed(self) -> bool:
        """Whether there is something to write: not if the exit is in it already."""
        return self.text != self.before or self.keep is not None


def plan(invitation: Invitation, file: Path | None, name: str | None, force: bool) -> Plan:
    """How `file`, or client.toml in the default directory, is made or extended; nothing is written yet.

    `name` is what the exit is called in it; `force` begins a new file and keeps the old one under another name. Raises
    ConfigError where the exit cannot be added.
    """
    source = config_dir() / "client.toml" if file is None else file
    old, private = "", True
    if os.path.lexists(source) and not force:
        old, private = read_text(source, WHAT)
    document = _document(old, source)
    if _names(document, invitation.peer_id):
        return Plan(source, old, old, client_from(old, source, private, {}), None)
    text = _extended(old, document, invitation, name)
    try:
        config = client_from(text, source, private, {})
    except ConfigError as error:
        if not old:
            raise
        raise ConfigError(
            f"the exit cannot be added to {source} ({error}): mend that file, keep this exit in another one with "
            "--config F, or begin anew with --force"
        ) from None
    return Plan(source, old, text, config, _free(source) if force and os.path.lexists(source) else None)


def _document(text: str, source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"{source}: not valid TOML: {reason}") from None


def _names(value: object, peer: PeerId) -> bool:
    """Whether that exit is in the configuration, at whatever key."""
    if isinstance(value, dict):
        return any(_names(inner, peer) for inner in value.values())
    if isinstance(value, list):
        return any(_names(inner, peer) for inner in value)
    return isinstance(value, str) and str(peer) in value.lower()


def _extended(old: str, document: dict[str, Any], invitation: Invitation, name: str | None) -> str:
    """`old` with this exit. A JSON string of printable ASCII is a TOML one too."""
    url = json.dumps(invitation.url)
    if name is None and "peer" not in document and "exit" not in document:
        # A key of the whole file must stand before its first table.
        return f"{'' if old else _HEAD}peer = {url}\n{old}"
    end = "" if not old or old.endswith("\n") else "\n"
    called = "" if name is None else f"name = {json.dumps(name)}\n"
    return f"{old or _HEAD}{end}\n[[exit]]\n{called}peer = {url}\n"


def _free(source: Path) -> Path:
    kept, number = source.with_name(f"{source.name}.old"), 1
    while os.path.lexists(kept):
        number += 1
        kept = source.with_name(f"{source.name}.old{number}")
    return kept


def write(plan: Plan) -> None:
    """Put the plan into force. Raises ConfigError, also if the file has come or changed meanwhile."""
    if not plan.changed:
        return
    shared = SharedFile(plan.file, WHAT)
    with shared.locked():
        if plan.keep is not None:
            try:
                os.rename(plan.file, plan.keep)
            except OSError as error:
                raise ConfigError(f"{plan.file} cannot be moved to {plan.keep}: {reason_of(error)}") from None
        elif shared.read() != plan.before:
            raise ConfigError(f"{plan.file} was changed by somebody else meanwhile; join once more")
        shared.replace(plan.text)


async def join_unless(stop: Stop, invitation: Invitation, plan: Plan) -> PeerId | None:
    """As `join`, but None if a stop is asked for before it is done."""
    task, asked = spawn(join(invitation, plan), "join"), spawn(stop.asked.wait(), "signals")
    await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
        return None
    return task.result()


async def join(invitation: Invitation, plan: Plan) -> PeerId:
    """Show the exit the invite and write the configuration; the id of this machine, by which the exit knows it now.

    Raises CryprqError saying why it did not work.
    """
    provider = choose_provider(plan.config.provider)
    identity = own_identity(provider, plan.config.identity)
    client = Client(identity, _settings(invitation, plan.config), provider)
    try:
        await client.reach()
    except PeerError as error:
        if error.reason is CloseReason.NOT_AUTHORIZED:
            raise CryprqError(
                "the exit does not take this invite: it was used, has expired or was withdrawn; ask for a new one"
            ) from None
        raise CryprqError(
            f"the exit was not reached: {error}; see that the exit which made this invite runs there, and try again"
        ) from None
    finally:
        await client.stop()
    write(plan)
    return identity.peer_id


def _settings(invitation: Invitation, config: ClientConfig) -> ClientSettings:
    """What is needed to show an invite to its exit, at the address that it names. Raises ConfigError."""
    known = next(each for each in config.exits() if each.peer_id == invitation.peer_id)
    return ClientSettings(
        peer=known.peer_id,
        endpoints=(parse_peer_url(invitation.url).endpoint,),
        psk=known.psk(),
        upstream=config.upstream,
        wait_for_link=config.wait_for_link,
        limits=config.session_limits(),
        ca=known.ca,
        invite=invitation.secret,
    )
