"""The commands for other programs of this machine: PAC file, shell variables, the desktop's proxy settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...base.log import one_line
from ...errors import ConfigError
from ..common import config_option

if TYPE_CHECKING:
    from ..running import Found
    from .environment import Shell


def _say_source(about: Found) -> None:
    """Standard output is for a program to read."""
    click.echo(one_line(f"cryprq-proxy: {about.source}"), err=True)


@click.command()
@config_option
def pac(config: Path | None) -> None:
    """Print the PAC file for browsers that the running client serves. Where none runs, it is made from the files."""
    from ...address import reachable
    from ...process.control import query
    from ...rules.engine import RuleSet
    from ...rules.pac.script import pac as make
    from ..running import find

    about = find("client", config)
    if about.socket is not None:
        click.echo(query(about.socket, "pac")["pac"], nl=False)
        return
    loaded = about.client()
    listen = reachable(loaded.listen)
    # The PAC file has no names of lists, so the lists are not read.
    rules = RuleSet(loaded.rules(), loaded.default)
    click.echo(make(rules, listen, listen), nl=False)
    _say_source(about)


@click.command()
@click.option(
    "--shell",
    type=click.Choice(["sh", "fish", "csh", "file"]),
    help="The shell's language (default: that of $SHELL); sh is also bash and zsh, file is NAME=VALUE as for Docker.",
)
@click.option("--unset", is_flag=True, help="Take the variables away again.")
@click.option(
    "--http-only",
    is_flag=True,
    help="No ALL_PROXY: some programs refuse to start when it names a SOCKS proxy.",
)
@click.option(
    "--with-password",
    is_flag=True,
    help="Put in the user and password that the proxy asks for. Every program that is started can read them.",
)
@config_option
def env(shell: Shell | None, unset: bool, http_only: bool, with_password: bool, config: Path | None) -> None:
    """Print what sets the proxy for the programs of a terminal: eval "$(cryprq-proxy env)"."""
    from ..running import find, listens
    from .environment import asks_for_password, exports, read_login, shell_of, unsets, variables

    chosen = shell or shell_of(os.environ.get("SHELL", ""))
    if unset:
        click.echo(unsets(chosen), nl=False)
        return
    about = find("client", config)
    proxy = listens(about).proxy
    login = ""
    if with_password:
        login = read_login(about)
    elif asks_for_password(about):
        click.echo(
            "cryprq-proxy: the proxy asks for a user and a password, which are not in these variables;"
            " --with-password puts them there",
            err=True,
        )
    click.echo(exports(variables(proxy, login, socks=not http_only), chosen), nl=False)
    if about.socket is None:
        _say_source(about)


@click.command("system-proxy")
@click.argument("switch", type=click.Choice(["on", "off"]))
@click.option("--pac", "by_pac", is_flag=True, help="Set the PAC file, not the proxy itself.")
@config_option
def system_proxy(switch: str, by_pac: bool, config: Path | None) -> None:
    """Make this the proxy of the GNOME desktop or of macOS, or restore what was set before.

    With --pac, what is direct does not pass the proxy; but a browser that starts while the client does not run goes
    past the proxy altogether.
    """
    from ...base.program import to_run
    from . import kept
    from .choose import desktop_settings

    file = kept.state_file()
    if switch == "off":
        left = kept.turn_off(desktop_settings, file)
        if left is None:
            click.echo("nothing to restore: the desktop's proxy settings were not changed by this program")
        else:
            click.echo("the desktop's proxy settings are as they were before")
        for name in left or ():
            click.echo(one_line(f"not touched, since it was changed meanwhile: {name}"))
        return
    from ...address import reachable
    from ..running import find, listens

    about = find("client", config)
    place = listens(about)
    if by_pac and place.admin is None:
        raise ConfigError(
            'the PAC file is served at the address admin, which is "off": set one, or leave out --pac'
        )
    settings = desktop_settings()
    if by_pac and place.admin is not None:
        url = f"http://{reachable(place.admin)}/proxy.pac"
        wanted, now = settings.automatic(url), f"by {url}"
    else:
        proxy = reachable(place.proxy)
        wanted, now = settings.manual(proxy), str(proxy)
    kept.turn_on(lambda: settings, wanted, file)
    click.echo(f"the desktop's proxy is {now}; `{to_run('system-proxy off')}` restores what was set before")
    if about.socket is None:
        _say_source(about)
