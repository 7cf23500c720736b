"""Tell which rule decides about a target, from the configuration alone: nothing has to run or is contacted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from .common import act_for, config_option

if TYPE_CHECKING:
    from ..address import Destination

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
@click.argument("target", metavar="URL|HOST[:PORT]")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@config_option
def explain(target: str, as_json: bool, config: Path | None) -> None:
    """Say which rule decides about a target: in the proxy, in the PAC file, and in system-wide mode.

    Without a port it is that of the URL's scheme, or 443.
    """
    from ..base.file_access import open_list
    from ..base.log import one_line
    from ..base.progress import bar, unseen
    from ..config.client import load_client
    from ..config.foreign import only_harmless
    from ..rules.engine import load_rules
    from ..rules.explain import explain as explain_proxy
    from ..rules.pac import script as pac
    from ..service import system_wide as system

    destination = parse_target(target)
    act_for(config)
    settings = only_harmless(load_client(config))
    unread = settings.rules()
    with (bar if any(rule.lists for rule in unread) else unseen)("reading lists") as report:
        rules = load_rules(unread, settings.default, progress=report, opener=open_list)
    decision = rules.decide(*destination)
    sentences = {
        "proxy": explain_proxy(rules, *destination),
        "pac": pac.explain(rules, *destination),
        "tun": system.explain_rules(rules, *destination),
    }
    if as_json:
        found = {
            "target": str(destination),
            "action": str(decision.action),
            "rule": decision.rule,
            "index": decision.index,
            **sentences,
            "problems": list(map(str, rules.listed.problems)),
            "broken": rules.listed.broken,
        }
        click.echo(json.dumps(found, indent=2))
        return
    by = "by default" if decision.index < 0 else f"by {decision.rule}"
    click.echo(one_line(f"{destination}: {decision.action}, {by}"))
    for where, label in (("proxy", "proxy"), ("pac", "PAC file"), ("tun", "--tun")):
        click.echo(one_line(f"  {label + ':':10}{sentences[where]}"))
    if rules.listed.broken:
        click.echo(
            one_line(f"broken lines in lists: {rules.listed.broken}, the first: {rules.listed.problems[0]}"),
            err=True,
        )


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
