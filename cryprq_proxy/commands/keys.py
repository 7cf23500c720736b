"""Make an identity, and show its peer id."""

from __future__ import annotations

from pathlib import Path

import click

from .common import FILE, refuse_callers_keys


@click.command()
@click.argument("file", type=FILE, required=False, metavar="[F]")
def keygen(file: Path | None) -> None:
    """Create an identity in the file F and print its peer id. Never overwrites one."""
    from ..base.deputy import act_as_owner
    from ..base.paths import default_identity
    from ..config.keys import save_identity
    from ..crypto.identity import Identity
    from ..crypto.primitives import select_provider

    file = default_identity() if file is None else file
    act_as_owner(file.parent)
    identity = Identity.generate(select_provider())
    save_identity(identity, file)
    click.echo(identity.peer_id)


@click.command("id")
@click.argument("file", type=FILE, required=False, metavar="[F]")
def id_(file: Path | None) -> None:
    """Print the peer id of the identity in the file F."""
    from ..base.deputy import act_as_owner
    from ..base.paths import default_identity
    from ..config.keys import load_identity
    from ..crypto.primitives import select_provider

    refuse_callers_keys(file)
    file = default_identity() if file is None else file
    act_as_owner(file.parent)
    click.echo(load_identity(select_provider(), file).peer_id)
