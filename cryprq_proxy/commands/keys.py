"""Make an identity, and show its peer id."""

from __future__ import annotations

from pathlib import Path

import click

from .common import FILE


@click.command()
@click.argument("file", type=FILE, required=False, metavar="[F]")
def keygen(file: Path | None) -> None:
    """Create an identity in the file F and print its peer id. Never overwrites one."""
    from ..base.paths import default_identity
    from ..crypto.identity import Identity
    from ..crypto.primitives import select_provider

    identity = Identity.generate(select_provider())
    identity.save(default_identity() if file is None else file)
    click.echo(identity.peer_id)


@click.command("id")
@click.argument("file", type=FILE, required=False, metavar="[F]")
def id_(file: Path | None) -> None:
    """Print the peer id of the identity in the file F."""
    from ..base.paths import default_identity
    from ..crypto.identity import Identity
    from ..crypto.primitives import select_provider

    click.echo(Identity.load(select_provider(), default_identity() if file is None else file).peer_id)
