"""Looking at what runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from ..common import ask, config_option, control_sockets


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, one object for each that runs.")
@click.option(
    "--watch",
    type=click.FloatRange(0.2, 3600),
    is_flag=False,
    flag_value=1.0,
    metavar="[SECONDS]",
    help="Ask again every so many seconds (default: 1), until Ctrl-C; with --json, one line each time.",
)
@config_option
def status(as_json: bool, watch: float | None, config: Path | None) -> None:
    """Ask the running client or exit how it is."""
    sockets = control_sockets(config)
    if watch is not None:
        _watch(lambda: ask(sockets), watch, as_json)
        return
    answers = ask(sockets)
    if as_json:
        for answer in answers:
            click.echo(json.dumps(answer, indent=2))
        return
    from .view import render

    width = _width()
    for answer in answers:
        click.echo(render(answer) if width is None else render(answer, width))


def _watch(answers: Callable[[], list[dict[str, Any]]], seconds: float, as_json: bool) -> None:
    import time

    if as_json:
        try:
            while True:
                for answer in answers():
                    click.echo(json.dumps(answer))
                time.sleep(seconds)
        except KeyboardInterrupt:
            return
    if _width() is None:
        raise click.UsageError("--watch needs a terminal; with --json it does without")
    from rich.console import Console

    from .live import watch

    watch(answers, seconds, Console(highlight=False, markup=False, emoji=False))


def _width() -> int | None:
    """The columns of the terminal; None for anything else, like a pipe."""
    import shutil
    import sys

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


COMMANDS: Final = (status,)
