"""Look at configurations without starting anything: what is wrong in them, and what an editor needs to know of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click

from .common import FILE
from .usage import Commands

WRONG: Final = 2
"""The exit code where something is to be mended."""
MOST: Final = 100
"""Sentences that are shown of one file."""


@click.group("config", cls=Commands)
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
    from ..base.paths import ROLES, config_dir
    from ..config.check import problems, problems_of_defaults
    from ..config.whose import role_of
    from ..errors import ConfigError
    from .common import act_for

    act_for(files[0] if files else None)
    directory = config_dir()
    found = files or _usual(directory, role)
    default = not files and _exit_by_default(directory, role)
    if not found and not default:
        raise ConfigError(f"there is no configuration in {directory}: name the file to check")
    right = True
    for file in found:
        whose = next((each for each in ROLES if each == role), None) or role_of(file)
        right &= _tell(
            file, problems(file, whose), f"{file}: nothing is wrong, as configuration of the {whose}"
        )
    if default:
        fine = f"{directory}: there is no exit.toml, so all is as by default: nothing is wrong, for the exit"
        right &= _tell(directory, problems_of_defaults(directory, "exit"), fine)
    if not right:
        raise click.exceptions.Exit(WRONG)


def _usual(directory: Path, role: str | None) -> tuple[Path, ...]:
    """The configurations that are there, of `role` or of both."""
    from ..base.file_access import exists
    from ..base.paths import ROLES

    files = (directory / f"{each}.toml" for each in ROLES if role in (None, each))
    return tuple(file for file in files if exists(file, "the configuration"))


def _exit_by_default(directory: Path, role: str | None) -> bool:
    """Whether there is an exit that has keys or lists and no configuration."""
    from ..base.file_access import exists

    def there(*names: str) -> bool:
        return any(exists(directory / name, "the file") for name in names)

    if role == "client" or there("exit.toml"):
        return False
    return (
        role == "exit" or there("authorized", "invites") or (there("identity") and not there("client.toml"))
    )


def _tell(place: Path, wrong: list[str], fine: str) -> bool:
    """Print what is wrong, else that all is `fine`. Returns which of the two."""
    from ..base.log import one_line

    for sentence in wrong[:MOST]:
        click.echo(f"cryprq-proxy: {one_line(sentence)}", err=True)
    if len(wrong) > MOST:
        click.echo(f"cryprq-proxy: {one_line(str(place))}: and {len(wrong) - MOST} more", err=True)
    if not wrong:
        click.echo(one_line(fine))
    return not wrong


@config.command()
@click.argument("role", type=click.Choice(["client", "exit"]))
def schema(role: str) -> None:
    """Print the JSON schema of a role's configuration, for editors."""
    from ..config.schema import schema as make
    from ..config.whose import KINDS

    kind = KINDS["exit" if role == "exit" else "client"]
    click.echo(json.dumps(make(kind, f"cryprq-proxy: {role}.toml"), indent=2))
