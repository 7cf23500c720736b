"""The command that joins standard input and output to a target, as ProxyCommand of ssh wants it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .. import completion
from ..common import FILE, config_option


@click.command()
@click.argument("host", shell_complete=completion.TARGETS)
@click.argument("port", required=False)
@click.option(
    "--proxy",
    metavar="HOST:PORT",
    help="Where the proxy listens (default: where the running client does, else as configured).",
)
@click.option(
    "--user-file",
    type=FILE,
    metavar="F",
    help="The file of mode 0600 with the NAME:PASSWORD that the proxy asks for (default: as configured).",
)
@config_option
def connect(
    host: str, port: str | None, proxy: str | None, user_file: Path | None, config: Path | None
) -> None:
    """Join standard input and output to HOST:PORT, through the running client and its exit.

    For ssh, in ~/.ssh/config:

    \b
        ProxyCommand cryprq-proxy connect %h %p

    Rules and the limits of the client hold, as for every application.
    """
    from . import proxy_request, pump, running_proxy

    if port is None:
        raise click.UsageError(
            "the port is missing: write it behind the host, as in connect example.com 443",
            click.get_current_context(),
        )
    streams = pump.Streams(sys.stdin.fileno(), sys.stdout.fileno())
    target = proxy_request.parse_target(host, port)
    asked = running_proxy.Proxy.find(proxy, user_file, config)
    sock, first = proxy_request.connected(asked, target, streams)
    with sock:
        pump.run(sock, first, streams, target)
