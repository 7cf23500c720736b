"""`cryprq-proxy service`: from a terminal to a service, and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..common import FILE
from ..usage import Commands

if TYPE_CHECKING:
    from .units import Kind


@click.group(cls=Commands)
def service() -> None:
    """Run exit, proxy or system-wide mode as a service: `service install`, `service uninstall`, `service status`."""


@service.command()
@click.argument("kind", type=click.Choice(["exit", "proxy", "tun"]), required=False)
@click.option("--user", "own", is_flag=True, help="A proxy of your own, without root.")
@click.option(
    "--from",
    "source",
    type=FILE,
    metavar="DIR",
    help="Carry along the configuration and keys in DIR (default: yours, if root has none yet).",
)
@click.option(
    "--tun", "packets", is_flag=True, help="With exit: carry packets of clients in system-wide mode."
)
@click.option("--yes", is_flag=True, help="Do not ask before something is replaced.")
def install(kind: Kind | None, own: bool, source: Path | None, packets: bool, yes: bool) -> None:
    """Make a service of what was tried in a terminal: keys, configuration and lists are carried along, and it starts
    with this machine. "tun" is system-wide mode.

    Services of the system are root's, with their files in /etc/cryprq: from then on root's commands speak to them.
    """
    from .install import install_system
    from .manager import on_macos
    from .own import install_macos, install_own

    mac = on_macos()
    if mac and not own and kind in ("exit", "tun") and source is None and not (packets and kind == "tun"):
        from .launchd import install_daemon

        done = install_daemon(kind, packets)
    elif (own or mac) and (kind not in (None, "proxy") or source is not None or packets):
        raise click.UsageError(
            "without root there is a service for the proxy alone, with the files that it has"
        )
    elif mac:
        done = install_macos()
    else:
        done = (
            install_own() if own else install_system(kind, source, packets, lambda text: _agrees(text, yes))
        )
    for line in done.lines:
        click.echo(line)
    click.echo(f"\nNext:\n  {done.next}")


def _agrees(text: str, yes: bool) -> bool:
    from ...errors import ConfigError

    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(f"{text} Without a terminal to ask at, say it with --yes")
    return click.confirm(text, err=True)


@service.command()
@click.argument("kind", type=click.Choice(["exit", "proxy", "tun"]), required=False)
@click.option("--user", "own", is_flag=True, help="The proxy of your own.")
def uninstall(kind: Kind | None, own: bool) -> None:
    """Stop and remove a service, or all that were installed. Keys, configuration and lists stay."""
    from .removal import remove

    for line in remove(kind, own):
        click.echo(line)


@service.command()
def status() -> None:
    """Show which services are installed, what runs them, and how they are."""
    from .removal import described

    for line in described():
        click.echo(line)
