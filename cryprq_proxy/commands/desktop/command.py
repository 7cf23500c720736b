"""The commands for other programs of this machine: PAC file, shell variables, the desktop's proxy settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...errors import ConfigError
from ..common import act_for, config_option

if TYPE_CHECKING:
    from .environment import Shell


@click.command()
@config_option
def pac(config: Path | None) -> None:
    """Print the PAC file for browsers, made from the rules. The running client serves the same one."""
    from ...address import reachable
    from ...config.client import load_client
    from ...rules.engine import RuleSet
    from ...rules.pac.script import pac as make

    act_for(config)
    loaded = load_client(config)
    listen = reachable(loaded.listen)
    # The PAC file has no names of lists, so the lists are not read.
    rules = RuleSet(loaded.rules(), loaded.default)
    click.echo(make(rules, listen, listen), nl=False)


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
    from ...config.client import load_client
    from .environment import exports, read_login, shell_of, unsets, variables

    chosen = shell or shell_of(os.environ.get("SHELL", ""))
    if unset:
        click.echo(unsets(chosen), nl=False)
        return
    act_for(config)
    loaded = load_client(config)
    login = ""
    if with_password:
        login = read_login(loaded, config)
    elif loaded.credentials() is not None:
        click.echo(
            "cryprq-proxy: the proxy asks for a user and a password, which are not in these variables;"
            " --with-password puts them there",
            err=True,
        )
    click.echo(exports(variables(loaded.listen, login, socks=not http_only), chosen), nl=False)


@click.command("system-proxy")
@click.argument("switch", type=click.Choice(["on", "off"]))
@click.option("--pac", "by_pac", is_flag=True, help="Set the PAC file, not the proxy itself.")
@config_option
def system_proxy(switch: str, by_pac: bool, config: Path | None) -> None:
    """Make this the proxy of the GNOME desktop, or restore what was set before.

    With --pac, what is direct does not pass the proxy; but a browser that starts while the client does not run goes
    past the proxy altogether.
    """
    from ...base.program import to_run
    from . import gsettings as desktop

    file = desktop.state_file()
    if switch == "off":
        left = desktop.turn_off(file)
        if left is None:
            click.echo("nothing to restore: the desktop's proxy settings were not changed by this program")
        else:
            click.echo("the desktop's proxy settings are as they were before")
        for name in left or ():
            click.echo(f"not touched, since it was changed meanwhile: {name}")
        return
    from ...address import reachable
    from ...config.client import load_client

    act_for(config)
    loaded = load_client(config)
    if not by_pac:
        proxy = reachable(loaded.listen)
        desktop.turn_on(desktop.manual(proxy), file)
        click.echo(
            f"the desktop's proxy is {proxy}; `{to_run('system-proxy off')}` restores what was set before"
        )
        return
    if loaded.admin is None:
        raise ConfigError(
            'the PAC file is served at the address admin, which is "off": set one, or leave out --pac'
        )
    url = f"http://{reachable(loaded.admin)}/proxy.pac"
    desktop.turn_on(desktop.automatic(url), file)
    click.echo(
        f"the desktop's proxy is by {url}; `{to_run('system-proxy off')}` restores what was set before"
    )
