"""The command of doctor/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from .common import config_option
from .explain import parse_target

if TYPE_CHECKING:
    from .running import Found

_WHAT: Final = "the configuration"


@click.command()
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.option(
    "--exit", "as_exit", is_flag=True, help="Check this machine as an exit (default: as what runs here)."
)
@click.option("--speed", metavar="URL", help="Measure throughput with this large file; http:// or https://.")
@click.option("--no-speed", is_flag=True, help="Do not measure throughput, whatever --speed says.")
@config_option
def doctor(
    name: str | None,
    as_json: bool,
    as_exit: bool,
    speed: str | None,
    no_speed: bool,
    config: Path | None,
) -> None:
    """Check step by step what can be wrong, and say how to mend it. Changes nothing.

    With a NAME, or NAME:PORT, it is reached through the exit too, on port 443 if none is given. Exit code 1 if a check
    fails.
    """
    import asyncio
    import shutil
    import sys

    from ..base.log import setup
    from ..base.progress import bar, unseen
    from ..doctor import order as lists
    from ..doctor.checks import CheckState, Context, Finding, examine
    from ..doctor.report import COLOURS, lines, summary

    about = _about(config, as_exit)
    about.act()
    # The findings replace the log.
    setup("error")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200

    def told(finding: Finding) -> None:
        if not as_json:
            mark, body = lines(finding, width)
            click.echo(click.style(mark, fg=COLOURS[finding.state]) + "\n".join(body))

    context = Context(
        file=about.named,
        flags=about.flags,
        flags_told="" if about.started is None else about.started.options,
        speed=None if no_speed else speed,
        target=None if name is None else parse_target(name),
        progress=unseen if as_json else bar,
    )
    checks = lists.EXIT if about.role == "exit" else lists.CLIENT
    findings = asyncio.run(examine(checks, context, told))
    healthy = all(finding.state is not CheckState.FAIL for finding in findings)
    if as_json:
        click.echo(
            json.dumps({"ok": healthy, "checks": [finding._asdict() for finding in findings]}, indent=2)
        )
    else:
        click.echo(summary(findings))
    if not healthy:
        raise click.exceptions.Exit(1)


def _about(config: Path | None, as_exit: bool) -> Found:
    """The role to check: the one that was asked for, that runs, or whose files there are. Raises ConfigError."""
    from ..base.file_access import exists
    from ..config.whose import role_of
    from .running import default_file, find

    exit = find("exit", config)
    if as_exit:
        return exit
    client = find("client", config)
    if client.started is not None or exit.started is not None:
        return exit if client.started is None else client
    if config is not None:
        return exit if role_of(config) == "exit" else client
    file = default_file("exit")
    of_exit = any(exists(path, _WHAT) for path in (file, file.with_name("authorized")))
    only_exit = of_exit and not exists(client.file, _WHAT)
    return exit if only_exit else client
