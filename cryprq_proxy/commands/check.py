"""Ask through the running proxy what our own page tells a browser, and say it in the terminal."""

from __future__ import annotations

from base64 import b64encode
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from .asked import control_sockets
from .common import ask, config_option

if TYPE_CHECKING:
    from ..address import Destination
    from ..fronts.own_page import Checked

PATIENCE: Final = 45.0
"""Seconds: a request waits for the link, and then the exit is asked for its report."""
MAX_ANSWER: Final = 65_536
_ASKS_FOR_LOGIN: Final = 407


@click.command()
@click.option(
    "--browser", is_flag=True, help="With --tun: let browsers open http://cryprq.test/ for five minutes, too."
)
@config_option
@click.pass_context
def check(context: click.Context, browser: bool, config: Path | None) -> None:
    """Say through which exit the running proxy goes, and which address the world sees, as http://cryprq.test/ does in a
    browser. A browser that goes through --tun, and through no proxy, finds that page only after `check --browser`.

    The exit code is 0 where pages should load, as far as client and exit know, else 1.
    """
    from ..address import OWN_NAME
    from ..base.log import one_line
    from ..errors import ConfigError
    from ..fronts.own_page import PAGE
    from .connect.running_proxy import Proxy

    if browser:
        opened = ask(control_sockets(config), PAGE)[0]["open"]
        click.echo(f"http://{OWN_NAME}/ can be opened in a browser for {opened} s")
    proxy = Proxy.find(None, None, config)
    checked = without_link(config) or asked(proxy.address, "")
    if checked is None:
        checked = asked(proxy.address, proxy.login())
    if checked is None:
        raise ConfigError(f"the proxy at {proxy.address} does not accept this user and password")
    click.echo(f"what asks {proxy.address} uses cryprq-proxy")
    width = max(len(name) for name, _ in checked.lines) + 2
    for name, value in checked.lines:
        click.echo(one_line(f"  {name:{width}}{value}"))
    if not checked.good:
        context.exit(1)


def without_link(config: Path | None) -> Checked | None:
    """What the running client knows where an attempt at a link has failed: the page itself would be waited for in vain.
    None: ask the page."""
    from ..errors import CryprqError
    from ..fronts.own_page import Checked, lines
    from ..process.control import query_status
    from ..service.facts import facts_of
    from ..status import ClientStatus
    from .running import find

    about = find("client", config)
    if about.socket is None:
        return None
    try:
        status = query_status(about.socket)
    except CryprqError:
        return None
    if not isinstance(status, ClientStatus) or status.link == "up" or not status.last_error:
        return None
    paused = 0 if status.tun is None else status.tun.kill_switch.paused
    return Checked(good=False, lines=lines(facts_of(status, "there is no link", paused), named=True))


def asked(proxy: Destination, login: str) -> Checked | None:
    """The page of the client that listens at `proxy`, for NAME:PASSWORD; None if it wants such a `login`, or another
    one. Raises CryprqError."""
    import msgspec

    from .. import __version__
    from ..address import OWN_NAME
    from ..base.program import to_run
    from ..errors import CryprqError, reason_of
    from ..fronts.own_page import Checked

    headers = {
        "User-Agent": f"cryprq-proxy/{__version__}",
        "Accept": "application/json",
        "Connection": "close",
    }
    if login:
        headers["Proxy-Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    connection = HTTPConnection(*proxy, timeout=PATIENCE)
    try:
        connection.request("GET", f"http://{OWN_NAME}/", headers=headers)
        with connection.getresponse() as response:
            body = response.read(MAX_ANSWER)
    except TimeoutError:
        raise CryprqError(f"the proxy at {proxy} has not answered within {PATIENCE:g} s") from None
    except OSError as error:
        start = to_run("").strip()
        raise CryprqError(
            f"no proxy answers at {proxy} ({reason_of(error)}): start the client with: {start}"
        ) from None
    except HTTPException:
        raise CryprqError(f"what listens at {proxy} is not this program") from None
    finally:
        connection.close()
    if response.status == _ASKS_FOR_LOGIN:
        return None
    try:
        return msgspec.json.decode(body, type=Checked)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise CryprqError(f"what listens at {proxy} is not this program, or another version of it") from None
