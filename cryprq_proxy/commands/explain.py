"""Tell which rule decides about a target: the running client is asked, or else its files. The target never is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..base.log import one_line
from . import completion
from .common import config_option

if TYPE_CHECKING:
    from ..address import Destination
    from ..service.explanation import Explanation
    from .running import Found

_PORTS: Final = {
    "http": 80,
    "https": 443,
    "ws": 80,
    "wss": 443,
    "ftp": 21,
    "ssh": 22,
    "git": 9418,
    "ldap": 389,
}
_HTTPS: Final = 443


@click.command()
@click.argument("target", metavar="URL|HOST[:PORT]", shell_complete=completion.TARGETS)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@config_option
def explain(target: str, as_json: bool, config: Path | None) -> None:
    """Say which rule of the running client decides about a target: in the proxy, in the PAC file, and in system-wide
    mode. Where none runs, the files tell.

    Without a port it is that of the URL's scheme, or 443.
    """
    from msgspec import structs

    from .running import find

    destination = parse_target(target)
    about = find("client", config)
    answer = _of_files(about, destination) if about.socket is None else _of_running(about.socket, destination)
    if as_json:
        source = {"running": about.socket is not None, "file": str(about.file)}
        click.echo(json.dumps(structs.asdict(answer) | source, indent=2))
        return
    by = "by default" if answer.index < 0 else f"by {answer.rule}"
    sentences = [("proxy:", answer.proxy), ("PAC file:", answer.pac), ("--tun:", answer.tun)]
    lines = [f"{answer.target}: {answer.action}, {by}", *(f"  {label:10}{text}" for label, text in sentences)]
    for line in lines:
        click.echo(one_line(line))
    for line in _notes(about, answer):
        click.echo(one_line(line), err=True)


def _of_running(socket: Path, target: Destination) -> Explanation:
    import msgspec

    from ..process.control import query
    from ..service.explanation import EXPLAIN, Explanation

    return msgspec.convert(query(socket, EXPLAIN, argument=str(target)), Explanation)


def _of_files(about: Found, target: Destination) -> Explanation:
    """Raises ConfigError."""
    from ..base.file_access import open_list
    from ..base.progress import bar, unseen
    from ..rules.engine import load_rules
    from ..service.explanation import explain_target

    settings = about.client()
    unread = settings.rules()
    with (bar if any(rule.lists for rule in unread) else unseen)("reading lists") as report:
        rules = load_rules(unread, settings.default, progress=report, opener=open_list)
    return explain_target(rules, target)


def _notes(about: Found, answer: Explanation) -> Iterator[str]:
    """What else a person should know: about the lists, and about where the answer comes from."""
    if answer.broken:
        yield f"broken lines in lists: {answer.broken}, the first: {answer.problems[0]}"
    if about.socket is None:
        yield about.source
    elif answer.error is not None:
        yield f"by the rules that the client has, not by its files: {answer.error}"
    elif answer.changed:
        yield "by the rules that the client has; its files have changed since, and it reads them in some seconds"


def parse_target(text: str) -> Destination:
    """Read a URL, or a host with or without a port. Raises ConfigError.

    User and password of a URL are dropped first, so that no error shows them.
    """
    from ..address import AddressError, parse_host_port
    from ..errors import ConfigError

    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = "", text.strip()
    for end in "/?#":
        rest = rest.partition(end)[0]
    host = rest.rpartition("@")[2]
    port = _PORTS.get(scheme.lower()) if separator else _HTTPS
    try:
        return parse_host_port(host, port)
    except AddressError as error:
        raise ConfigError(f"expected a URL, or a host with or without a port: {error}") from None
