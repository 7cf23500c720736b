"""The command of doctor/."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .common import act_for, config_option


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.option("--exit", "as_exit", is_flag=True, help="Check this machine as an exit (default: as a client).")
@click.option("--speed", metavar="URL", help="Measure throughput with this large file; http:// or https://.")
@click.option("--no-speed", is_flag=True, help="Do not measure throughput, whatever --speed says.")
@config_option
def doctor(as_json: bool, as_exit: bool, speed: str | None, no_speed: bool, config: Path | None) -> None:
    """Check step by step what can be wrong, and say how to mend it. Changes nothing.

    Exit code 1 if a check fails.
    """
    import asyncio
    import shutil
    import sys

    from ..base.log import setup
    from ..base.progress import bar, unseen
    from ..doctor import order as lists
    from ..doctor.checks import CheckState, Context, Finding, examine
    from ..doctor.report import COLOURS, lines, summary

    act_for(config)
    # The findings replace the log.
    setup("error")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200

    def told(finding: Finding) -> None:
        if not as_json:
            mark, body = lines(finding, width)
            click.echo(click.style(mark, fg=COLOURS[finding.state]) + "\n".join(body))

    context = Context(file=config, speed=None if no_speed else speed, progress=unseen if as_json else bar)
    checks = lists.EXIT if as_exit or _is_exit(config) else lists.CLIENT
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


def _is_exit(config: Path | None) -> bool:
    """Whether the named configuration is valid for an exit, and not for a client."""
    from ..config.client import load_client
    from ..config.exit import load_exit
    from ..errors import ConfigError

    if config is None:
        return False
    try:
        load_exit(config)
    except ConfigError:
        return False
    try:
        load_client(config)
    except ConfigError:
        return True
    return False
