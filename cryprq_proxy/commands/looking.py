"""Looking at what runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click

from .common import ask, config_option, control_sockets


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, one object for each that runs.")
@config_option
def status(as_json: bool, config: Path | None) -> None:
    """Ask the running client or exit how it is."""
    answers = ask(control_sockets(config))
    if as_json:
        for answer in answers:
            click.echo(json.dumps(answer, indent=2))
        return
    from ..status_view import render

    for answer in answers:
        click.echo(render(answer))


COMMANDS: Final = (status,)
