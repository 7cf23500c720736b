"""`--tun --dry-run` of both roles: what a start would change, for people and as JSON."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from ..base.log import one_line

_SHORT: Final = 12
"""Lines of a text that are shown without --full."""


def options[F: Any](command: F) -> F:
    """The flags, for a command with --tun."""
    for name, words in (
        ("--full", "With --dry-run: show the files and scripts whole."),
        ("--json", "With --dry-run: as JSON, everything whole."),
        ("--dry-run", "With --tun: only say what a start would change, in order, with what undoes each."),
    ):
        parameter = "as_json" if name == "--json" else name[2:].replace("-", "_")
        command = click.option(name, parameter, is_flag=True, help=words)(command)
    return command


def check(*, tun: bool, dry_run: bool, as_json: bool, full: bool) -> None:
    """Raises UsageError for flags without the one that they need."""
    if dry_run and not tun:
        raise click.UsageError("--dry-run needs --tun: without it nothing of this machine is changed")
    if not dry_run and (as_json or full):
        raise click.UsageError(f"{'--json' if as_json else '--full'} needs --dry-run")


def show(found: dict[str, Any], *, as_json: bool, full: bool) -> None:
    """`found` is that of service/system_wide.py."""
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for line in render(found, full=full):
        click.echo(line)


def render(found: dict[str, Any], *, full: bool) -> Iterator[str]:
    """The lines for people."""
    yield "Nothing was changed. A start would change, in this order:"
    before: dict[str, list[str]] = {}
    for number, change in enumerate(found["changes"], 1):
        what, lines = change["what"], change["text"].splitlines()
        yield ""
        yield f"{number:3}. {one_line(what)}"
        yield from (f"       {line}" for line in _shown(lines, before.get(what), full=full))
        yield f"     undo: {one_line(change['undo'])}"
        if lines:
            before[what] = lines
    if found["remarks"]:
        yield ""
        yield from (f"- {one_line(remark)}" for remark in found["remarks"])


def _shown(lines: Sequence[str], before: Sequence[str] | None, *, full: bool) -> list[str]:
    if full or len(lines) <= _SHORT:
        return [*lines]
    if before is None:
        return [f"({len(lines)} lines; --full shows them)"]
    differences = [
        line
        for line in difflib.unified_diff(before, lines, lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    return [
        f"({len(lines)} lines, as before but for {len(differences)}; --full shows all)",
        *differences[:_SHORT],
    ]
