"""Change what runs: choose the exit, and read the configuration again."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from . import completion
from .asked import control_sockets
from .common import ask, config_option

READING_SECONDS: Final = 60.0
"""For lists with millions of names."""


@click.command()
@click.argument("name", metavar="NAME|auto", shell_complete=completion.EXITS)
@config_option
def switch(name: str, config: Path | None) -> None:
    """Send new connections through the exit NAME and no other; "auto": choose by priority and health again."""
    ask(control_sockets(config), "exit", name)
    click.echo("new connections go " + ("through the best exit" if name == "auto" else f"through {name}"))


@click.command()
@config_option
def reload(config: Path | None) -> None:
    """Make the running client or exit read its configuration and lists again. It also does so when they change."""
    for answer in ask(control_sockets(config), "reload", timeout=READING_SECONDS):
        click.echo(answer["reloaded"])
