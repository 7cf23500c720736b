"""The dashboard in the browser.

All users of the machine can read a browser's arguments in the list of processes. The browser therefore gets a file that
only this user can read, and that redirects to the address with the token.
"""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

import click

from ..base.program import to_run
from ..errors import CryprqError, reason_of
from .asked import control_sockets
from .common import ask, config_option


@click.command()
@click.option("--print", "print_it", is_flag=True, help="Print the address instead of opening it.")
@config_option
def dashboard(print_it: bool, config: Path | None) -> None:
    """Open the running client's dashboard, with the token that lets the page change things."""
    import webbrowser

    from ..base.paths import default_control_socket

    url = ask(control_sockets(config)[:1] if config else _clients(), "dashboard")[0].get("url")
    if not isinstance(url, str):
        raise CryprqError('the client has no dashboard; take admin = "off" out of its configuration')
    if print_it:
        click.echo(url)
        return
    file = signpost(url, default_control_socket("client").parent)
    if webbrowser.open(file.as_uri()):
        click.echo(f"opened in the browser; if that may not read the file: {to_run('dashboard --print')}")
    else:
        click.echo(f"there is no browser to open; the address is {url}")


def _clients() -> list[Path]:
    """The sockets of clients; an exit has no dashboard."""
    return [path for path in control_sockets(None) if not path.name.startswith("exit")]


def signpost(url: str, directory: Path) -> Path:
    """Write a page that redirects to `url` into `directory`, for this user only. It replaces an earlier one.

    Raises CryprqError.
    """
    path = directory / "dashboard.html"
    target = escape(url)
    page = (
        '<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">'
        f'<meta http-equiv="refresh" content="0; url={target}"><a href="{target}">cryprq-proxy</a>\n'
    )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        raise CryprqError(f"{path} cannot be written ({reason_of(error)}); use --print") from None
    return path
