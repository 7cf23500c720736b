"""Show what runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..asked import control_sockets
from ..common import ask, ask_status, config_option, seconds


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, one object for each running process.")
@click.option(
    "--watch",
    type=seconds(0.2, 3600),
    is_flag=False,
    flag_value=1.0,
    metavar="[SECONDS]",
    help="Ask again every so many seconds (default: 1), until Ctrl-C; with --json, one line each time.",
)
@config_option
def status(as_json: bool, watch: float | None, config: Path | None) -> None:
    """Show the state of the running client or exit."""
    sockets = control_sockets(config)
    if watch is not None:
        _watch(sockets, watch, as_json)
        return
    if as_json:
        for answer in ask(sockets):
            click.echo(json.dumps(answer, indent=2))
        return
    from .view import render

    width = _width()
    for told in ask_status(sockets):
        click.echo(render(told) if width is None else render(told, width))


def _watch(sockets: list[Path], seconds: float, as_json: bool) -> None:
    if not as_json and _width() is None:
        raise click.UsageError("--watch needs a terminal; with --json it does without")
    from rich.console import Console

    from .live import repeat, watch

    if as_json:
        repeat(lambda: ask(sockets), seconds)
    else:
        watch(lambda: ask_status(sockets), seconds, Console(highlight=False, markup=False, emoji=False))


def _width() -> int | None:
    """The columns of the terminal; None for anything else, like a pipe."""
    import shutil
    import sys

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
