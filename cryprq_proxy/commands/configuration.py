"""Look at configurations without starting anything: what is wrong in them, and what an editor needs to know of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click

from .common import FILE

WRONG: Final = 2
"""The exit code where something is to be mended."""
MOST: Final = 100
"""Sentences that are shown of one file."""


@click.group("config")
def config() -> None:
    """Check a configuration, or tell an editor what may stand in it."""


@config.command()
@click.argument("files", type=FILE, nargs=-1, metavar="[FILE]...")
@click.option(
    "--role",
    type=click.Choice(["client", "exit"]),
    help="Whose it is (default: as its name says, or else its keys).",
)
def check(files: tuple[Path, ...], role: str | None) -> None:
    """Say all that is wrong with a configuration, or with those at the usual place. Nothing is started or contacted.

    Exit code 0 says that the role would start with it, 2 that something is to be mended.
    """
    from ..base.log import one_line
    from ..base.paths import ROLES, config_dir
    from ..config.check import problems
    from ..config.whose import role_of
    from ..errors import ConfigError
    from .common import act_for

    act_for(files[0] if files else None)
    found = files or tuple(file for each in ROLES if (file := config_dir() / f"{each}.toml").exists())
    if not found:
        raise ConfigError(f"there is no configuration in {config_dir()}: name the file to check")
    bad = False
    for file in found:
        whose = next((each for each in ROLES if each == role), None) or role_of(file)
        wrong = problems(file, whose)
        for sentence in wrong[:MOST]:
            click.echo(f"cryprq-proxy: {one_line(sentence)}", err=True)
        if len(wrong) > MOST:
            click.echo(f"cryprq-proxy: {one_line(str(file))}: and {len(wrong) - MOST} more", err=True)
        if not wrong:
            click.echo(one_line(f"{file}: nothing is wrong, as configuration of the {whose}"))
        bad = bad or bool(wrong)
    if bad:
        raise click.exceptions.Exit(WRONG)


@config.command()
@click.argument("role", type=click.Choice(["client", "exit"]))
def schema(role: str) -> None:
    """Print the JSON schema of a role's configuration, for editors."""
    from ..config.schema import schema as make
    from ..config.whose import KINDS

    kind = KINDS["exit" if role == "exit" else "client"]
    click.echo(json.dumps(make(kind, f"cryprq-proxy: {role}.toml"), indent=2))
