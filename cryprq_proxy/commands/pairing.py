"""The commands of pairing: invite a client, join an exit, and manage the list of authorized peers."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..address import OWN_NAME
from ..base.log import one_line
from ..base.program import to_run
from ..errors import ConfigError
from . import completion
from .common import FILE, act_for, client_alone, config_option, refuse_callers_exit
from .usage import Commands

if TYPE_CHECKING:
    from ..config.authorized import PeersFile
    from ..config.exits import ExitChoice
    from ..crypto.identity import PeerId
    from ..pairing.invitation import ExitHere
    from ..pairing.invite_store import InviteStore
    from .running import Found

_WIDTH: Final = 200
"""Columns without a terminal."""


# --- the exit's side ---


@click.command()
@click.argument("name", required=False)
@click.option(
    "--expires", default="1h", metavar="TIME", help="How long it is valid: 30m, 1h, 7d (default: 1h)."
)
@click.option(
    "--address",
    metavar="HOST[:PORT]",
    help="Where clients reach this exit; also wss://HOST/PATH (default: found out).",
)
@click.option("--qr/--no-qr", default=None, help="Show it as a QR code too (default: on a terminal).")
@click.option("--list", "listing", is_flag=True, help="Show the open invites instead.")
@click.option(
    "--cancel",
    metavar="NAME",
    help="Withdraw an open invite instead.",
    shell_complete=completion.INVITES,
)
@config_option
def invite(
    name: str | None,
    expires: str,
    address: str | None,
    qr: bool | None,
    listing: bool,
    cancel: str | None,
    config: Path | None,
) -> None:
    """Invite a client to this exit: print the URI for `cryprq-proxy join` at the client. It works once.

    The client will be on the exit's list of peers under NAME.
    """
    import time

    here, _, store = _lists(config)
    if [name is not None, listing, cancel is not None].count(True) != 1:
        raise click.UsageError("give one of NAME, --list and --cancel NAME")
    if listing:
        _show_invites(store)
        return
    if cancel is not None:
        store.cancel(cancel, time.time())
        click.echo(f"the invite for {one_line(cancel)} is withdrawn")
        return
    if config is None and here.socket is None:
        _refuse_client(here.authorized.parent)
    from ..pairing.invitation import make_invite, parse_expiry
    from .listed_peers import when

    assert name is not None
    seconds, now = parse_expiry(expires), time.time()
    invitation, warnings = make_invite(here, name, seconds, address, now)
    click.echo(str(invitation))
    if qr or (qr is None and sys.stdout.isatty()):
        import segno

        segno.make(str(invitation), error="l", micro=False).terminal(sys.stdout, compact=True)
    click.echo(f"for {one_line(name)}, to be used once, until {when(now + seconds)}; over there:", err=True)
    shown = f"'{invitation}'" if sys.stdout.isatty() else "'...', with that line between the quotes"
    click.echo(f"  cryprq-proxy join {shown}", err=True)
    for warning in warnings:
        click.echo(f"note: {warning}", err=True)


@click.group(cls=Commands, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@config_option
@click.pass_context
def peers(context: click.Context, as_json: bool, config: Path | None) -> None:
    """Show who may come in, who is connected, and when others were last seen; also `peers add`, `peers rename` and
    `peers revoke`."""
    context.obj = config
    if context.invoked_subcommand is None:
        _list(as_json, config)


@peers.command("list")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@config_option
@click.pass_obj
def list_(outer: Path | None, /, as_json: bool, config: Path | None) -> None:
    """Show the peers, and the open invites."""
    _list(as_json, config or outer)


@peers.command()
@click.argument("peer_id", metavar="PEERID")
@click.argument("name")
@config_option
@click.pass_obj
def add(outer: Path | None, /, peer_id: str, name: str, config: Path | None) -> None:
    """Let in the peer with the id PEERID, also one that was revoked. NAME is its name on the list."""
    from ..base.program import to_run
    from ..crypto.identity import PeerId
    from ..pairing.invitation import reload_exit

    here, listed, _ = _lists(config or outer)
    peer = listed.add(PeerId.parse(peer_id), name)
    reload_exit(here)
    click.echo(f"{peer.peer_id} is authorized, as {peer.shown}")
    if peer.name != name:
        taken = f"{one_line(name)} is the name of another peer"
        if any(other.name == name for other in listed.read()):
            click.echo(f"note: {taken}", err=True)
        else:
            again = to_run(shlex.join(["peers", "rename", peer.shown, name]))
            click.echo(
                f"note: it was on the list already and keeps its name; to change it: {again}", err=True
            )


@peers.command()
@click.argument("old", shell_complete=completion.PEERS)
@click.argument("new")
@config_option
@click.pass_obj
def rename(outer: Path | None, /, old: str, new: str, config: Path | None) -> None:
    """Give the peer OLD (its name or its id) the name NEW."""
    from ..pairing.invitation import reload_exit

    here, listed, _ = _lists(config or outer)
    peer = listed.rename(old, new)
    reload_exit(here)
    click.echo(f"{peer.peer_id} is called {peer.shown} now")


@peers.command()
@click.argument("who", metavar="NAME_OR_ID", shell_complete=completion.PEERS)
@config_option
@click.pass_obj
def revoke(outer: Path | None, /, who: str, config: Path | None) -> None:
    """Remove a peer from the list: its sessions at a running exit end at once. It stays out, even if an old copy of
    the list is put back or `allow` names it, until `peers add` or an invite lets it in again."""
    from ..pairing.invitation import reload_exit

    here, listed, _ = _lists(config or outer)
    peer = listed.revoke(who, here.config.allow)
    reload_exit(here)
    click.echo(f"{peer.shown} is no longer authorized")
    if peer.peer_id in here.config.allow:
        click.echo("note: `allow` in the exit's configuration still names it, which lets nobody in", err=True)


def _refuse_client(directory: Path) -> None:
    """Raise ConfigError on a client's machine, where no exit runs or ever did: nobody would answer its invites."""
    from ..base.program import to_run

    if (client := client_alone(directory)) is not None:
        raise ConfigError(
            f"this machine is a client, by {client}, and no exit: make the invite at the exit; if it is to be "
            f"one as well, start that first: {to_run('exit')}"
        )


def _lists(config: Path | None) -> tuple[ExitHere, PeersFile, InviteStore]:
    from ..config.authorized import PeersFile
    from ..pairing.invite_store import InviteStore, beside

    _, here = _here(config)
    return here, PeersFile(here.authorized), InviteStore(beside(here.authorized))


def _here(config: Path | None) -> tuple[Found, ExitHere]:
    """The exit that runs, or that the files describe. Its list is opened with the rights of its owner from now on."""
    from ..base.deputy import act_as_owner
    from ..config.exit import authorized_file
    from ..pairing.invitation import exit_here
    from .running import find

    about = find("exit", config)
    if about.socket is None:
        refuse_callers_exit(config)
    loaded = about.exit()
    about.act()
    here = exit_here(loaded, authorized_file(about.named, loaded), about.socket)
    act_as_owner(here.authorized.parent, everywhere=False)
    return about, here


def _list(as_json: bool, config: Path | None) -> None:
    import shutil

    from .listed_peers import PeersListing

    about, here = _here(config)
    listing = PeersListing.of(here)
    if as_json:
        click.echo(json.dumps(listing.told(), indent=2))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH
        for line in listing.lines(width):
            click.echo(line)
    if here.socket is None:
        click.echo(one_line(f"{about.why}; from {here.authorized}"), err=True)


def _show_invites(store: InviteStore) -> None:
    import time

    from .listed_peers import invite_line

    invites = store.open(time.time())
    for invite in invites:
        click.echo(invite_line(invite))
    if not invites:
        click.echo("no open invites")


# --- the client's side ---


@click.command()
@click.argument("uri", metavar="URI")
@click.option("--name", help="What the exit is called in the configuration.")
@click.option(
    "--replace",
    is_flag=True,
    help="Do not ask whether the exit may take the place of one at the same address.",
)
@click.option("--force", is_flag=True, help="Begin a new configuration; the old file is kept beside it.")
@click.option(
    "--direct-private", is_flag=True, help="Add a rule: private networks are reached past the exit."
)
@click.option("--config", type=FILE, metavar="F", help="The configuration to write (default: client.toml).")
def join(
    uri: str, name: str | None, replace: bool, force: bool, direct_private: bool, config: Path | None
) -> None:
    """Join an exit with the URI that `cryprq-proxy invite` printed there; - reads it from standard input.

    Makes this machine's keys, lets the exit add them to its list, and writes the configuration.
    """
    from ..base.log import setup
    from ..pairing.invitation import MAX_URI, Invitation
    from ..pairing.join import join_unless, plan
    from ..process.lifecycle import Stop, run
    from .joined import NotTakenOver

    act_for(config)
    setup("warning")
    invitation = Invitation.parse(sys.stdin.readline(MAX_URI + 1) if uri == "-" else uri)
    planned = plan(invitation, config, name, force, direct_private)
    if planned.replaces is not None and not replace:
        _ask_to_replace(planned.replaces, planned.file, asked=uri != "-" and sys.stdin.isatty())
    joined: PeerId | None = None

    async def role(stop: Stop) -> None:
        nonlocal joined
        joined = await join_unless(stop, invitation, planned)

    run(role)
    if joined is None:
        raise click.Abort
    click.echo(f"joined: the exit knows this machine as {joined}")
    if planned.keep is not None:
        click.echo(f"the old configuration is in {planned.keep}")
    if planned.replaces is not None:
        click.echo(f"the exit {planned.replaces.name} has its new identity; all else is as it was")
    if planned.moved is not None:
        dead = ", ".join(map(str, planned.moved.endpoints))
        click.echo(
            f"the exit {planned.moved.name} has a further address, which has just answered; if it is no longer at "
            f"{dead}, take that out of the file"
        )
    click.echo(
        f"the exit is in {planned.file}" if planned.changed else f"{planned.file} named the exit already"
    )
    if planned.proposes:
        click.echo(
            "private addresses (your own router, printers) are asked of the exit, which usually refuses them; to reach"
            " your own past it, take the # away from the rule at the end of that file"
        )
    try:
        click.echo(_next_step(planned.file, config))
    except NotTakenOver as error:
        click.echo(f"note: {error}", err=True)
        return
    click.echo(f"  {to_run('check')}{_named(config)}\nor open http://{OWN_NAME}/ in a browser that uses it")


def _ask_to_replace(old: ExitChoice, file: Path, *, asked: bool) -> None:
    """Raises ConfigError where nobody can be asked, Abort if the answer is no."""
    changed = f"the exit {old.name} is in {file} with another identity, {old.peer_id}"
    if not asked:
        raise ConfigError(
            f"{changed}: if it was set up anew, join with --replace, else ask its operator what has happened"
        )
    click.echo(f"{changed}. It was set up anew, or this is another machine at its address.", err=True)
    click.confirm("Put the new identity in its place?", abort=True, err=True)


def _next_step(file: Path, config: Path | None) -> str:
    """The client that runs takes the exit over, or a service that waited for one is started; else what the person
    starts. Raises CryprqError, NotTakenOver if the client that runs goes on without the exit."""
    from .joined import take_over
    from .service.own import after_join

    if (taken := take_over(file)) is not None:
        return f"{taken}\n\nSee through which exit it goes:"
    if config is None and (lines := after_join()):
        return "\n".join(["", *lines, "Try it:"])
    return f"\nNow start the proxy:\n  {to_run('').rstrip()}{_named(config)}\nand see through which exit it goes:"


def _named(config: Path | None) -> str:
    return "" if config is None else f" --config {shlex.quote(str(config))}"
